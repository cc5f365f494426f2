/* SPDX-License-Identifier: BSD-3-Clause */
#include "input.h"

#include <string.h>

#include "devices/dma_regs.h"
#include "device.h"
#include "rig.h"
#include "wire/proto.h"

#define BODY_MAX 4096u

/* ---- reading --------------------------------------------------------------------------------- */

void program_parse(const uint8_t *data, size_t size, struct program *ret_program)
{
    size_t at = 1;

    ret_program->choice = size ? data[0] : 0;
    ret_program->count = 0;
    while (at + 3 <= size && ret_program->count < OPS_MAX) {
        struct op *op = &ret_program->ops[ret_program->count++];
        op->kind = data[at] % OP_KINDS;
        op->size = (uint16_t)(data[at + 1] | data[at + 2] << 8);
        at += 3;
        op->size = op->size < size - at ? op->size : (uint16_t)(size - at);
        op->body = data + at;
        at += op->size;
    }
}

uint8_t op_byte(const struct op *op, uint32_t at)
{
    return at < op->size ? op->body[at] : 0;
}

uint32_t op_word(const struct op *op, uint32_t at)
{
    return op_byte(op, at) | (uint32_t)op_byte(op, at + 1) << 8 |
           (uint32_t)op_byte(op, at + 2) << 16 | (uint32_t)op_byte(op, at + 3) << 24;
}

/* ---- making up ------------------------------------------------------------------------------- */

struct dice {
    uint64_t state;
    bool aside; /* what a control client would say */
};

static uint32_t any(struct dice *dice, uint32_t below)
{
    dice->state ^= dice->state << 13;
    dice->state ^= dice->state >> 7;
    dice->state ^= dice->state << 17;
    return (uint32_t)(dice->state >> 32) % below;
}

static uint64_t any_number(struct dice *dice)
{
    static const uint64_t some[] = {0,
                                    1,
                                    2,
                                    4,
                                    8,
                                    9,
                                    16,
                                    64,
                                    255,
                                    4096,
                                    0x8000,
                                    0xffff,
                                    RAM_IOVA,
                                    RAM_IOVA + 0x4000,
                                    RAM_SIZE,
                                    MESSAGE_IOVA,
                                    MESSAGE_SIZE,
                                    INT32_MAX,
                                    UINT32_MAX,
                                    1ull << 30,
                                    INT64_MAX,
                                    UINT64_MAX,
                                    UINT64_MAX - 4095};
    uint64_t value = some[any(dice, sizeof(some) / sizeof(some[0]))];

    return any(dice, 3) ? value : value + any(dice, 64) - 32;
}

/* An address of guest memory, most of the time. */
static uint64_t any_iova(struct dice *dice)
{
    switch (any(dice, 8)) {
    case 0:
        return any_number(dice);
    case 1:
    case 2:
    case 3:
        return MESSAGE_IOVA + any(dice, 17) * (MESSAGE_SIZE / 16);
    default:
        return RAM_IOVA + (any(dice, 3) ? any(dice, 17) * 0x1000u : any(dice, RAM_SIZE + 64));
    }
}

static uint64_t any_size(struct dice *dice)
{
    switch (any(dice, 6)) {
    case 0:
        return any_number(dice);
    case 1:
        return any(dice, 300);
    default:
        return 0x1000u << any(dice, 5);
    }
}

/* Memory that is mapped, or is the next time: what is mapped has to be unmapped as it is. */
static void any_area(struct dice *dice, uint64_t *ret_iova, uint64_t *ret_size)
{
    static const uint64_t areas[][2] = {{RAM_IOVA, RAM_SIZE},   {MESSAGE_IOVA, MESSAGE_SIZE},
                                        {0x800000, 0x4000},     {0x804000, 0x4000},
                                        {0x900000, 0x10000},    {0x50000000, 0x10000},
                                        {0xfffff000, 0x100000}, {UINT64_MAX - 0xffff, 0x10000}};
    unsigned i = any(dice, any(dice, 2) ? 2 : sizeof(areas) / sizeof(areas[0]));

    *ret_iova = any(dice, 5) ? areas[i][0] : any_iova(dice);
    *ret_size = any(dice, 5) ? areas[i][1] : any_size(dice);
}

/* A register of the migration region, of a BAR or of config space, with a size that it takes. */
static void any_access(struct dice *dice, struct vfmig_user_region_access *access)
{
    static const struct {
        uint32_t region, offset, count;
    } places[] = {
        {9, 0, 4},
        {9, 8, 8},
        {9, 16, 8},
        {9, 24, 8},
        {9, 0x1000, 64},
        {7, 0x42, 2},
        {7, 0x10, 4},
        {7, 4, 2},
        {0, DMA_REG_CTRL, 4},
        {0, DMA_REG_RING, 8},
        {0, DMA_REG_ENTRIES, 4},
        {0, DMA_REG_TAIL, 4},
        {0, DMA_REG_HEAD, 4},
        {0, POOL_IOVA, 8},
        {0, POOL_SIZE, 4},
        {0, POOL_GO, 4},
        {0, POOL_GO, 4},
        {0, POOL_IRQ, 4},
        {0, POOL_END, 4},
        {0, POOL_TIMER, 4},
        {0, DMA_MSIX_TABLE + 12, 4},
        {0, DMA_MSIX_PBA, 8},
        {0, DMA_SRAM, 64},
        {0, 0x1000, 128},
        {2, 0, 256},
        {5, 8, 8},
    };
    unsigned i = any(dice, sizeof(places) / sizeof(places[0]));

    *access =
        (struct vfmig_user_region_access){places[i].offset, places[i].region, places[i].count};
    if (any(dice, 6) == 0)
        access->offset = any_number(dice);
    if (any(dice, 6) == 0)
        access->count = any(dice, 2) ? 1u << any(dice, 4) : any(dice, 400);
    if (any(dice, 12) == 0)
        access->region = any(dice, 11);
}

static uint32_t any_write(struct dice *dice, uint8_t *out)
{
    struct vfmig_user_region_access access;

    any_access(dice, &access);
    memcpy(out, &access, sizeof(access));
    access.count = access.count < 1024 ? access.count : 1024;
    for (uint32_t i = 0; i < access.count; i += 8) {
        uint64_t value = any(dice, 3) ? any(dice, 12) : any_number(dice);
        if (access.region == 0 && (access.offset == DMA_REG_RING || access.offset == POOL_IOVA))
            value = any_iova(dice);
        memcpy(out + sizeof(access) + i, &value, access.count - i < 8 ? access.count - i : 8);
    }
    return (uint32_t)sizeof(access) + access.count;
}

/* docs/control.md, docs/vfio-user-extensions.md */
static uint32_t any_extension(struct dice *dice, uint16_t feature, uint8_t *out)
{
    bool only_get = feature == VFMIG_USER_F_DIRTY_LIST || feature == VFMIG_USER_F_DMA_MAP_LIST ||
                    feature == VFMIG_USER_F_WINDOW_READ || feature == VFMIG_USER_F_PRECOPY_INFO;
    bool set = feature == VFMIG_USER_F_WINDOW_WRITE || (!only_get && any(dice, 4));
    struct vfmig_user_feature head = {any(dice, 8) ? 4096 : (uint32_t)any_number(dice),
                                      feature | (set == (any(dice, 16) > 0) ? VFMIG_USER_FEATURE_SET
                                                                            : VFMIG_USER_FEATURE_GET)};
    uint64_t words[5] = {any(dice, 6) ? any(dice, 2) : any_number(dice)};
    uint32_t size = sizeof(struct vfmig_user_feature_switch);

    if (feature == VFMIG_USER_F_WINDOW_READ || feature == VFMIG_USER_F_WINDOW_WRITE) {
        struct vfmig_user_feature_window place = {any(dice, 3) ? 4096 * any(dice, 16) : any_number(dice),
                                                  (uint32_t)any_size(dice), any(dice, 16) == 0};
        memcpy(words, &place, sizeof(place));
        size = sizeof(place);
    } else if (feature == VFMIG_USER_F_DIRTY_LIST || feature == VFMIG_USER_F_DMA_MAP_LIST) {
        words[0] = any(dice, 2) ? 0 : any_iova(dice);
        size = sizeof(struct vfmig_user_feature_list);
    } else if (feature == VFMIG_USER_F_HANDLES) {
        words[0] = any(dice, 8) ? any(dice, 3) : any_number(dice);
        for (unsigned i = 1; i < 5; i += 2) {
            words[i] = any(dice, 4) | (uint64_t)any(dice, 4) << 32;
            words[i + 1] = any(dice, 4) ? any(dice, 4) : any_number(dice);
        }
        size = 8 + 16 * any(dice, 3);
    } else if (feature == VFMIG_USER_F_PENDING) {
        words[0] = any(dice, 8) ? any(dice, 2) ? POOL_VECTORS : DMA_VECTORS : any_number(dice);
        words[1] = any(dice, 3) ? any(dice, 16) : any_number(dice);
        words[2] = any(dice, 8) ? 0 : any_number(dice);
        size = sizeof(struct vfmig_user_feature_pending);
    }
    memcpy(out, &head, sizeof(head));
    memcpy(out + sizeof(head), words, size);
    return (uint32_t)sizeof(head) + (set || size == 16 ? size : 0);
}

static uint32_t any_feature(struct dice *dice, uint8_t *out)
{
    static const uint8_t features[] = {1, 2, 2, 2, 6, 6, 7, 8, 8, 9};
    static const uint16_t ours[] = {0xf000, 0xf001, 0xf002, 0xf003, 0xf010,
                                    0xf011, 0xf012, 0xf013, 0xf014, 0xf015};
    uint32_t feature = any(dice, 12) ? features[any(dice, sizeof(features))] : any(dice, 20);
    if (any(dice, 2) < dice->aside || any(dice, 20) == 0)
        return any_extension(dice, ours[any(dice, sizeof(ours) / sizeof(ours[0]))], out);
    uint32_t op = feature == 2                   ? VFMIG_USER_FEATURE_GET << any(dice, 2)
                  : feature == 6 || feature == 7 ? VFMIG_USER_FEATURE_SET
                                                 : VFMIG_USER_FEATURE_GET;
    struct vfmig_user_feature head = {any(dice, 8) ? 4096 : (uint32_t)any_number(dice),
                                      feature | (any(dice, 12) ? op : any(dice, 8) << 16)};
    uint32_t size = sizeof(head);
    uint64_t iova, length;

    any_area(dice, &iova, &length);
    memcpy(out, &head, sizeof(head));
    if (feature == VFMIG_USER_F_DEVICE_STATE) {
        struct vfmig_user_feature_state state = {any(dice, 9), 0};
        memcpy(out + size, &state, sizeof(state));
        size += sizeof(state);
    } else if (feature == VFMIG_USER_F_LOG_START) {
        struct vfmig_user_feature_log_start start = {
            any(dice, 3) ? 4096u << any(dice, 6) : any_number(dice), any(dice, 4), 0};
        memcpy(out + size, &start, sizeof(start));
        size += sizeof(start);
        for (uint32_t i = 0; i < start.num_ranges; i++) {
            struct vfmig_user_log_range range = {iova, length};
            any_area(dice, &iova, &length);
            memcpy(out + size, &range, sizeof(range));
            size += sizeof(range);
        }
    } else if (feature == VFMIG_USER_F_LOG_REPORT) {
        struct vfmig_user_feature_log_report report = {iova, length, 4096u << any(dice, 6)};
        memcpy(out + size, &report, sizeof(report));
        size += sizeof(report);
    }
    return size;
}

static uint32_t any_irqs(struct dice *dice, uint8_t *out)
{
    struct vfmig_user_set_irqs irqs = {sizeof(irqs), 1u << any(dice, 3) | 8u << any(dice, 3),
                                       any(dice, 6) ? VFMIG_IRQ_MSIX : any(dice, 6), any(dice, 5),
                                       any(dice, 5)};

    if (any(dice, 2))
        irqs.flags = VFMIG_USER_IRQ_DATA_EVENTFD | VFMIG_USER_IRQ_ACTION_TRIGGER;
    memcpy(out, &irqs, sizeof(irqs));
    uint32_t bools = irqs.flags & VFMIG_USER_IRQ_DATA_BOOL ? irqs.count : 0;
    for (uint32_t i = 0; i < bools; i++)
        out[sizeof(irqs) + i] = (uint8_t)any(dice, 3);
    return (uint32_t)sizeof(irqs) + bools;
}

static uint32_t any_memory(struct dice *dice, uint16_t command, uint8_t *out)
{
    uint64_t iova, length;

    any_area(dice, &iova, &length);
    if (command == VFMIG_USER_DMA_MAP) {
        struct vfmig_user_dma_map map = {sizeof(map), any(dice, 6) ? 3 : any(dice, 5),
                                         any(dice, 3) ? 0 : any_size(dice), iova, length};
        memcpy(out, &map, sizeof(map));
        return sizeof(map);
    }
    if (command == VFMIG_USER_DMA_UNMAP) {
        struct vfmig_user_dma_unmap un = {4096, any(dice, 8) ? any(dice, 2) : any(dice, 4), iova,
                                          length};
        struct vfmig_user_bitmap bitmap = {4096u << any(dice, 3), 8u << any(dice, 8)};
        if (un.flags & VFMIG_USER_UNMAP_F_ALL)
            un.address = un.size = 0;
        memcpy(out, &un, sizeof(un));
        memcpy(out + sizeof(un), &bitmap, sizeof(bitmap));
        return (uint32_t)sizeof(un) + (un.flags & 1 ? (uint32_t)sizeof(bitmap) : 0);
    }
    struct vfmig_user_dirty_pages dirty = {4096, 1u << any(dice, 3)};
    struct vfmig_user_dirty_range range = {
        iova, length, {4096u << any(dice, 3), 8u << any(dice, 8)}};
    memcpy(out, &dirty, sizeof(dirty));
    memcpy(out + sizeof(dirty), &range, sizeof(range));
    return (uint32_t)sizeof(dirty) + (dirty.flags == VFMIG_USER_DIRTY_GET ? sizeof(range) : 0);
}

/* A payload of about the right form. */
static uint32_t any_payload(struct dice *dice, uint16_t command, uint8_t *out)
{
    struct vfmig_user_region_access access;
    uint32_t words[8] = {64};

    switch (command) {
    case VFMIG_USER_DMA_MAP:
    case VFMIG_USER_DMA_UNMAP:
    case VFMIG_USER_DIRTY_PAGES:
        return any_memory(dice, command, out);
    case VFMIG_USER_SET_IRQS:
        return any_irqs(dice, out);
    case VFMIG_USER_REGION_READ:
        any_access(dice, &access);
        memcpy(out, &access, sizeof(access));
        return sizeof(access);
    case VFMIG_USER_REGION_WRITE:
        return any_write(dice, out);
    case VFMIG_USER_FEATURE:
        return any_feature(dice, out);
    case VFMIG_USER_RESET:
        return 0;
    case VFMIG_USER_MIG_DATA_READ:
    case VFMIG_USER_MIG_DATA_WRITE:
        words[1] = any(dice, 3) ? any(dice, 100) : (uint32_t)any_size(dice);
        words[0] = 8 + words[1];
        memcpy(out, words, sizeof(words));
        return command == VFMIG_USER_MIG_DATA_READ ? 8 : 8 + words[1] % 24;
    default:
        for (unsigned i = 1; i < 8; i++)
            words[i] = any(dice, 3) ? any(dice, 10) : (uint32_t)any_number(dice);
        memcpy(out, words, sizeof(words));
        return any(dice, 4) ? 16 + 16 * any(dice, 2) : any(dice, 32);
    }
}

static uint32_t make_send(struct dice *dice, uint8_t *body)
{
    static const uint8_t asides[] = {16, 16, 16, 16, 16, 17, 18, 14, 9, 9, 10, 10, 13, 5, 7};
    static const uint8_t usual[] = {2,  2,  3,  4,  5,  6,  7,  8,  8,  9,  9,  10,
                                    10, 10, 10, 10, 13, 14, 14, 16, 16, 16, 17, 18};
    struct vfmig_user_header h = {.id = (uint16_t)any(dice, 9),
                                  .command = usual[any(dice, sizeof(usual))]};
    uint8_t fds = FDS_NONE;

    if (dice->aside)
        h.command = asides[any(dice, sizeof(asides))];
    if (any(dice, 40) == 0)
        h.command = (uint16_t)(any(dice, 2) ? any(dice, 20) : any(dice, 65536));
    if (any(dice, 5) == 0)
        h.flags = VFMIG_USER_NO_REPLY;
    if (any(dice, 60) == 0)
        h.flags = any(dice, 256);
    if (h.command == VFMIG_USER_DMA_MAP)
        fds = (uint8_t)(any(dice, 2) ? FDS_RAM : any(dice, 2) ? FDS_NONE : FDS_SHRINK);
    else if (h.command == VFMIG_USER_SET_IRQS)
        fds = any(dice, 3) ? FDS_EVENT : (uint8_t)any(dice, 8);
    if (any(dice, 60) == 0)
        fds = (uint8_t)any(dice, 8);
    body[0] = (uint8_t)(SEND_FIX_SIZE | fds << 3 | any(dice, 4) << 6);
    if (h.command == VFMIG_USER_DMA_MAP)
        body[0] &= 0x3f;
    if (any(dice, 8) == 0)
        body[0] |= SEND_HOLD;
    if (any(dice, 40) == 0)
        body[0] ^= any(dice, 2) ? SEND_TWIN : SEND_FIX_SIZE;
    body[1] = any(dice, 8) ? 0 : (uint8_t)any(dice, 48);
    uint32_t size = any_payload(dice, h.command, body + 2 + sizeof(h));
    if (h.command == VFMIG_USER_SET_IRQS && any(dice, 4)) /* as many as it says */
        body[0] = (uint8_t)((body[0] & 0x3f) | (body[2 + sizeof(h) + 16] + 3u) << 6);
    if (any(dice, 60) == 0)
        size = any(dice, 64);
    h.size = (uint32_t)sizeof(h) + size;
    memcpy(body + 2, &h, sizeof(h));
    return 2 + (uint32_t)sizeof(h) + size;
}

/* A descriptor of the dma device, where its ring is looked for. */
static uint32_t make_poke(struct dice *dice, uint8_t *body)
{
    uint32_t offset = any(dice, 4) ? 64 * any(dice, 8) : any(dice, RAM_SIZE);
    struct dma_descriptor desc = {.op = any(dice, 7),
                                  .flags = any(dice, 2),
                                  .src = any_iova(dice),
                                  .dst = any_iova(dice),
                                  .length = (uint32_t)any_size(dice),
                                  .vector = any(dice, 5),
                                  .pattern = any_number(dice)};

    if (desc.op == DMA_OP_SRAM_LOAD)
        desc.dst = any(dice, 2) * any_number(dice);
    if (desc.op == DMA_OP_SRAM_STORE)
        desc.src = any(dice, 2) * any_number(dice);
    offset |= any(dice, 8) ? 0 : 0x80000000u;
    memcpy(body, &offset, sizeof(offset));
    memcpy(body + sizeof(offset), &desc, sizeof(desc));
    return sizeof(offset) + sizeof(desc);
}

/* Records of the devices' state. */
static uint32_t make_frame(struct dice *dice, uint8_t *body)
{
    struct {
        uint32_t kind, length;
        uint64_t offset;
    } record = {1 + any(dice, 4), 1024, any(dice, 3) ? any(dice, 66) * 1024 : any_number(dice)};
    uint32_t size = 2 + sizeof(record);

    body[0] = (uint8_t)(any(dice, 8) ? any(dice, 2) : any(dice, 16));
    body[0] |= (uint8_t)(any(dice, 12) ? 0 : any(dice, 4) << 6);
    body[1] = (uint8_t)(any(dice, 6) ? 1 + any(dice, 3) : any(dice, 256));
    switch (any(dice, 6)) {
    case 0: /* the end */
        body[1] = 3;
        return 2;
    case 1: /* the library's own */
        body[0] |= DATA_LIBRARY;
        body[1] = 2;
        memset(body + 2, 0, 40);
        body[2] = (uint8_t)(any(dice, 3) ? 4 : any(dice, 2) ? POOL_VECTORS : any(dice, 256));
        body[10] = any(dice, 2) ? (uint8_t)any(dice, 256) : 0;
        return 2 + (any(dice, 8) ? 40 : any(dice, 48));
    default:
        body[0] |= DATA_DEVICE;
        break;
    }
    if (record.kind == 2) {
        record.length = 64;
        record.offset = 0;
    }
    if (any(dice, 8) == 0)
        record.length = (uint32_t)any_number(dice);
    memcpy(body + 2, &record, sizeof(record));
    uint32_t data = record.length <= 1024 ? record.length : any(dice, 64);
    memset(body + size, any(dice, 4) ? 0 : (int)any(dice, 256), data);
    if (record.kind == 2 && any(dice, 2))
        for (uint32_t i = 0; i + 8 <= data; i += 8) {
            uint64_t value = any(dice, 2) ? any_number(dice) : any(dice, 5);
            memcpy(body + size + i, &value, 8);
        }
    return size + data;
}

/* The body of a new operation; returns its size. */
static uint32_t make_op(struct dice *dice, enum op_kind kind, uint8_t *body)
{
    for (unsigned i = 0; i < 8; i++)
        body[i] = (uint8_t)any(dice, 256);
    switch (kind) {
    case OP_SEND:
        return make_send(dice, body);
    case OP_ANSWER:
        body[0] = (uint8_t)(any(dice, 2) * any(dice, 8));
        body[1] = (uint8_t)(any(dice, 2) * any(dice, 16));
        body[2] = (uint8_t)(any(dice, 2) ? any(dice, 134) : body[2]);
        return 3;
    case OP_POKE:
        return make_poke(dice, body);
    case OP_TRUNCATE:
        body[2] = body[3] = 0;
        return 4;
    case OP_TIME:
        body[0] = (uint8_t)any(dice, 26);
        return 1;
    case OP_RECONNECT:
        return 1;
    case OP_STATE:
        body[0] = (uint8_t)any(dice, 16);
        body[1] = (uint8_t)any(dice, any(dice, 4) ? 2 : 4);
        return 2;
    case OP_FRAME:
        return make_frame(dice, body);
    case OP_PAGES:
        body[0] = (uint8_t)(any(dice, 4) ? any(dice, 2) : any(dice, 256));
        body[1] = (uint8_t)(any(dice, 2) ? 0 : any(dice, 65));
        body[2] = (uint8_t)(any(dice, 2) ? 64 : any(dice, 66));
        return 4;
    case OP_SAVE:
        body[0] &= 1;
        return 3;
    case OP_BACK:
        body[0] = (uint8_t)(any(dice, 4) ? any(dice, 2) : any(dice, 16));
        body[3] = body[4] = 0;
        return any(dice, 2) ? 1 : 6;
    case OP_CONTROL:
        body[0] = (uint8_t)(any(dice, 3) ? any(dice, 4) ? any(dice, 2) : any(dice, 8) : CONTROL_GOES);
        return 1;
    case OP_ASIDE: {
        struct dice other = {dice->state, true};
        uint32_t size = make_send(&other, body);
        dice->state = other.state;
        return size;
    }
    case OP_WINDOW:
        body[2] &= 1;
        body[3] = body[4] = 0;
        memset(body + 5, body[5], 600);
        return 5 + any(dice, 600);
    case OP_KINDS:
        break;
    }
    return 0;
}

static enum op_kind any_kind(struct dice *dice, const struct weights *weights)
{
    uint32_t total = 0, kind = 0;

    for (unsigned i = 0; i < OP_KINDS; i++)
        total += weights->of[i];
    for (uint32_t at = any(dice, total); at >= weights->of[kind]; kind++)
        at -= weights->of[kind];
    return (enum op_kind)kind;
}

/* ---- changing -------------------------------------------------------------------------------- */

static bool is_send(const struct op *op)
{
    return op->kind == OP_SEND || op->kind == OP_ASIDE;
}

static struct op *put_op(struct program *p, uint32_t at)
{
    if (p->count == OPS_MAX)
        return &p->ops[at < p->count ? at : p->count - 1];
    at = at < p->count ? at : p->count;
    memmove(&p->ops[at + 1], &p->ops[at], (p->count - at) * sizeof(p->ops[0]));
    p->count++;
    return &p->ops[at];
}

static void drop_op(struct program *p, uint32_t at)
{
    memmove(&p->ops[at], &p->ops[at + 1], (p->count - at - 1) * sizeof(p->ops[0]));
    p->count--;
}

/* A copy of the body with some of its fields changed, in room of BODY_MAX bytes. */
static void change_body(struct dice *dice, struct op *op, uint8_t *room)
{
    uint32_t size = op->size < BODY_MAX - 16 ? op->size : BODY_MAX - 16;

    memcpy(room, op->body, size);
    for (uint32_t n = 1 + any(dice, 3); n > 0; n--) {
        uint32_t width = 1u << any(dice, 4), at = any(dice, size + 1);
        uint64_t value = any(dice, 2) ? any_number(dice) : any_iova(dice);
        at = any(dice, 4) ? (at & ~(width - 1)) + (is_send(op) ? 2 : 0) : at;
        if (any(dice, 16) == 0)
            size = any(dice, 2) ? size - any(dice, size + 1) / 4 : size + any(dice, 8);
        else if (at < size && any(dice, 4) == 0)
            room[at] ^= (uint8_t)(1u << any(dice, 8));
        else if (at + width <= size)
            memcpy(room + at, &value, width);
        size = size < BODY_MAX ? size : BODY_MAX;
    }
    op->body = room;
    op->size = (uint16_t)size;
}

static void change(struct program *p, struct dice *dice, const struct weights *weights,
                   uint8_t *room)
{
    uint32_t at = p->count ? any(dice, p->count) : 0, way = p->count ? any(dice, 16) : 15;
    struct op *op = &p->ops[at], copy;

    memset(room, 0, BODY_MAX);
    if (way == 0) {
        drop_op(p, at);
    } else if (way == 1) {
        copy = *op;
        *put_op(p, any(dice, p->count + 1)) = copy;
    } else if (way == 2) {
        uint32_t other = any(dice, p->count);
        copy = *op;
        *op = p->ops[other];
        p->ops[other] = copy;
    } else if (way == 3) {
        p->choice = (uint8_t)any(dice, 256);
    } else if (way == 4 && is_send(op) && op->size >= 2) {
        memcpy(room, op->body, op->size < BODY_MAX ? op->size : BODY_MAX);
        room[any(dice, 2)] = (uint8_t)any(dice, 256);
        op->body = room;
        op->size = op->size < BODY_MAX ? op->size : BODY_MAX;
    } else if (way <= 9) {
        change_body(dice, op, room);
    } else {
        enum op_kind kind = any_kind(dice, weights);
        uint32_t size = make_op(dice, kind, room);
        *put_op(p, any(dice, 3) ? p->count : at) = (struct op){(uint8_t)kind, (uint16_t)size, room};
    }
}

static size_t program_write(const struct program *p, uint8_t *data, size_t max)
{
    size_t at = 1;

    if (max == 0)
        return 0;
    data[0] = p->choice;
    for (uint32_t i = 0; i < p->count && at + 3 + p->ops[i].size <= max; i++) {
        const struct op *op = &p->ops[i];
        data[at] = op->kind;
        data[at + 1] = (uint8_t)op->size;
        data[at + 2] = (uint8_t)(op->size >> 8);
        memcpy(data + at + 3, op->body, op->size);
        at += 3u + op->size;
    }
    return at;
}

#define CHANGES 4u

size_t program_mutate(uint8_t *data, size_t size, size_t max, uint64_t seed,
                      const struct weights *weights)
{
    static uint8_t out[INPUT_MAX], room[CHANGES][BODY_MAX];
    struct dice dice = {seed * UINT64_C(0x9e3779b97f4a7c15) + 1};
    struct program p;

    for (unsigned i = 0; i < 4; i++)
        any(&dice, 2);
    program_parse(data, size, &p);
    for (uint32_t n = 1 + any(&dice, CHANGES); n > 0; n--)
        change(&p, &dice, weights, room[n - 1]);
    size = program_write(&p, out, max < sizeof(out) ? max : sizeof(out));
    memcpy(data, out, size);
    return size;
}

size_t program_cross(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                     uint8_t *ret_data, size_t max, uint64_t seed)
{
    struct dice dice = {seed * UINT64_C(0x9e3779b97f4a7c15) + 1};
    struct program head, tail;

    program_parse(a, a_size, &head);
    program_parse(b, b_size, &tail);
    head.count = any(&dice, head.count + 1);
    for (uint32_t i = any(&dice, tail.count + 1); i < tail.count && head.count < OPS_MAX; i++)
        head.ops[head.count++] = tail.ops[i];
    return program_write(&head, ret_data, max);
}
