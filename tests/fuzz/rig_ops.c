/* SPDX-License-Identifier: BSD-3-Clause */
/* The operations of a program. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "core/devstream.h"
#include "rig.h"
#include "world.h"

#define HEADER      VFMIG_DEVSTREAM_HEADER
#define MAGIC       0x31534456u
#define PIECES_MAX  48u
#define CHUNK       0x8000u
#define WINDOW      0x1000u /* of the migration region: where its data section is */
#define STREAM_ID   0x5a5a5a5a5a5a5a5aull
#define PAGE_RECORD (16u + 1024u)

/* ---- bytes for the server -------------------------------------------------------------------- */

static int make_fd(enum send_fds kind)
{
    uint64_t full = UINT64_MAX - 1;
    int pair[2], fd;

    switch (kind) {
    case FDS_RAM:
    case FDS_MANY:
        return dup(rig_ram());
    case FDS_EVENT:
        return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    case FDS_SHRINK:
        return dup(rig_shrink());
    case FDS_PIPE: /* nobody reads it */
        if (pipe2(pair, O_CLOEXEC) < 0)
            return -1;
        close(pair[0]);
        return pair[1];
    case FDS_FULL: /* who writes to it waits forever */
        fd = eventfd(0, EFD_CLOEXEC);
        CHECK(write(fd, &full, sizeof(full)) == sizeof(full), "an eventfd takes nothing");
        return fd;
    case FDS_FILE:
        return open("/dev/null", O_RDWR | O_CLOEXEC);
    case FDS_NONE:
        break;
    }
    return -1;
}

static void do_send(struct rig *rig, const struct op *op)
{
    static uint8_t bytes[INPUT_MAX];
    uint8_t how = op_byte(op, 0), cut = op_byte(op, 1);
    uint32_t size = op->size > 2 ? op->size - 2u : 0;
    enum send_fds kind = (enum send_fds)SEND_FDS(how);
    unsigned count = kind == FDS_NONE ? 0 : kind == FDS_MANY ? 20 : SEND_COUNT(how);
    bool twin = how & SEND_TWIN;
    int fds[20];

    if (size)
        memcpy(bytes, op->body + 2, size);
    if ((how & SEND_FIX_SIZE) && size >= sizeof(struct vfmig_user_header))
        memcpy(bytes + 4, &size, sizeof(size));
    for (unsigned i = 0; i < count; i++)
        fds[i] = make_fd(kind);
    if (count && (kind == FDS_MANY || rig->held || (how & SEND_HOLD)))
        rig->may_close = rig->blurred = true;
    if (twin)
        rig->may_close = rig->garbled = true;
    rig->reach[REACH_FDS] += count > 0;
    if (cut && cut < size) {
        rig_send(rig, twin, bytes, cut, fds, count);
        rig_pump(rig);
        rig_send(rig, twin, bytes + cut, size - cut, NULL, 0);
    } else {
        rig_send(rig, twin, bytes, size, fds, count);
    }
    for (unsigned i = 0; i < count; i++)
        close(fds[i]);
    if (how & SEND_HOLD)
        rig->held = true;
    else
        rig_pump(rig);
}

static void do_answer(struct rig *rig, const struct op *op)
{
    static uint8_t buf[MESSAGE_MAX];
    uint8_t way = op_byte(op, 1);

    if (!rig->ask_count)
        return;
    uint32_t at = op_byte(op, 0) % rig->ask_count;
    struct dma_ask ask = rig->asks[at];
    memmove(&rig->asks[at], &rig->asks[at + 1], (rig->ask_count - at - 1) * sizeof(ask));
    rig->ask_count--;
    struct vfmig_user_dma_access access = ask.access;
    uint32_t data = ask.header.command == VFMIG_USER_DMA_READ ? (uint32_t)access.count : 0;
    if ((way & 7) == ANSWER_SHORT)
        data -= data ? 1 + data / 2 : 0;
    if ((way & 7) == ANSWER_LONG)
        data += 8;
    if ((way & 7) == ANSWER_COUNT)
        access.count = op_byte(op, 2) * 0x0101010101010101ull;
    struct vfmig_user_header h = {ask.header.id, ask.header.command,
                                  (uint32_t)(sizeof(h) + sizeof(access)) + data,
                                  VFMIG_USER_TYPE_REPLY, 0};
    if ((way & 7) == ANSWER_ERROR) {
        h.size = sizeof(h);
        h.flags |= VFMIG_USER_ERROR;
        h.error = op_byte(op, 2) == 255 ? UINT32_MAX : op_byte(op, 2);
    }
    if ((way & 7) == ANSWER_COMMAND)
        h.command = op_byte(op, 2);
    if ((way & 7) == ANSWER_ID)
        h.id = (uint16_t)(h.id + op_byte(op, 2));
    memset(buf, op_byte(op, 2), h.size);
    memcpy(buf, &h, sizeof(h));
    if (h.size >= sizeof(h) + sizeof(access))
        memcpy(buf + sizeof(h), &access, sizeof(access));
    bool twin = ask.twin != !!(way & ANSWER_ELSEWHERE);
    bool inside = !twin && rig->part_have; /* in the middle of a command: a part of that */
    rig_send(rig, twin, buf, h.size, NULL, 0);
    if ((way & 7) == ANSWER_TWICE)
        rig_send(rig, twin, buf, h.size, NULL, 0);
    if (((way & 7) == ANSWER_ID && op_byte(op, 2)) || (twin && rig->twin.fd < 0) || inside)
        rig->asks[rig->ask_count++] = ask; /* not answered so far */
    rig->reach[REACH_ANSWERS]++;
    rig_pump(rig);
}

static void do_poke(struct rig *rig, const struct op *op)
{
    uint32_t word = op_word(op, 0), at = (word & 0x7fffffffu) % RAM_SIZE;
    size_t size = op->size > 4 ? op->size - 4u : 0;

    size = size < RAM_SIZE - at ? size : RAM_SIZE - at;
    if (!size)
        return;
    bool shrink = word >> 31;
    ssize_t n = pwrite(shrink ? rig_shrink() : rig_ram(), op->body + 4, size, at);
    CHECK(n == (ssize_t)size, "guest memory cannot be written");
    if (shrink)
        return;
    memcpy(rig->expected + at, op->body + 4, size);
    memcpy(rig->quiet + at, op->body + 4, size);
}

/* ---- state ----------------------------------------------------------------------------------- */

void ops_state(struct rig *rig, uint32_t value, uint8_t how)
{
    uint32_t flags = how & STATE_NO_REPLY ? VFMIG_USER_NO_REPLY : 0;
    bool resuming = rig->last_state == VFMIG_STATE_RESUMING;
    uint64_t refused = rig->reach[REACH_REFUSALS];

    if (how & STATE_V1) {
        struct {
            struct vfmig_user_region_access access;
            uint32_t bits;
        } VFMIG_PACKED req = {{0, VFMIG_REGION_MIGRATION, 4}, value};
        rig_command(rig, VFMIG_USER_REGION_WRITE, flags, &req, sizeof(req));
    } else {
        struct {
            struct vfmig_user_feature head;
            struct vfmig_user_feature_state state;
        } VFMIG_PACKED req = {{sizeof(req), VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE},
                              {value, 0}};
        rig_command(rig, VFMIG_USER_FEATURE, flags, &req, sizeof(req));
    }
    rig_pump(rig);
    rig->reach[REACH_LOADS] += resuming && rig->last_state != VFMIG_STATE_RESUMING &&
                               rig->last_state != VFMIG_STATE_ERROR &&
                               refused == rig->reach[REACH_REFUSALS];
}

/* One portion of at most CHUNK bytes. */
static void load_piece(struct rig *rig, bool v1, const uint8_t *data, uint32_t size)
{
    static uint8_t buf[CHUNK + sizeof(struct vfmig_user_region_access)];
    struct vfmig_user_mig_data mig = {8 + size, size};
    struct vfmig_user_region_access access = {WINDOW, VFMIG_REGION_MIGRATION, size};
    uint32_t head = v1 ? sizeof(access) : sizeof(mig);

    memcpy(buf, v1 ? (void *)&access : (void *)&mig, head);
    memcpy(buf + head, data, size);
    rig_command(rig, v1 ? VFMIG_USER_REGION_WRITE : VFMIG_USER_MIG_DATA_WRITE, 0, buf, head + size);
    if (v1) {
        uint64_t value = size;
        access = (struct vfmig_user_region_access){24, VFMIG_REGION_MIGRATION, 8};
        memcpy(buf, &access, sizeof(access));
        memcpy(buf + sizeof(access), &value, sizeof(value));
        rig_command(rig, VFMIG_USER_REGION_WRITE, 0, buf, sizeof(access) + sizeof(value));
    }
    rig_pump(rig);
}

static void load_bytes(struct rig *rig, uint8_t how, const uint8_t *data, uint32_t size)
{
    static const uint32_t most[] = {CHUNK, 1000, 64, 7};
    uint32_t piece = most[DATA_PIECES(how)];

    for (uint32_t n = 0; size && !rig->over && !rig->closed; n++) {
        uint32_t now = n < PIECES_MAX ? piece : CHUNK;
        now = now < size ? now : size;
        load_piece(rig, how & DATA_V1, data, now);
        data += now;
        size -= now;
    }
}

static void put32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof(value));
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

/* A frame's checksum, which continues that of the frame before. */
static void seal(struct rig *rig, uint8_t *frame, uint32_t length)
{
    uint32_t crc = vfmig_crc32c(rig->frame_crc, frame, 32);

    rig->frame_crc = vfmig_crc32c(crc, frame + 36, HEADER - 36 + length);
    put32(frame + 32, rig->frame_crc);
}

/* The payload is at frame + HEADER. */
static void send_frame(struct rig *rig, uint8_t how, uint32_t kind, uint8_t *frame, uint32_t length)
{
    uint64_t id = STREAM_ID + !!(how & DATA_OTHER_ID);

    rig->frame_sequence += !!(how & DATA_SEQUENCE);
    put32(frame, MAGIC);
    put32(frame + 4, kind);
    memcpy(frame + 8, &id, sizeof(id));
    put32(frame + 16, rig->variant->format);
    put32(frame + 20, rig->variant->version);
    put32(frame + 24, rig->frame_sequence++);
    put32(frame + 28, length);
    put32(frame + 36, 0);
    seal(rig, frame, length);
    if (how & DATA_BAD_CRC)
        frame[33] ^= 1;
    rig->reach[REACH_FRAMES]++;
    load_bytes(rig, how, frame, HEADER + length);
}

/* The head of a section, when asked for; returns its size. */
static uint32_t put_section(uint8_t *at, uint8_t how)
{
    if (!(how & (DATA_DEVICE | DATA_LIBRARY)))
        return 0;
    put32(at, how & DATA_DEVICE ? 1 : 2);
    put32(at + 4, 0);
    return 8;
}

static void do_frame(struct rig *rig, const struct op *op)
{
    static uint8_t frame[HEADER + 8 + INPUT_MAX];
    uint32_t size = op->size > 2 ? op->size - 2u : 0;
    uint32_t head = put_section(frame + HEADER, op_byte(op, 0));

    if (size)
        memcpy(frame + HEADER + head, op->body + 2, size);
    send_frame(rig, op_byte(op, 0), op_byte(op, 1), frame, head + size);
}

static void do_pages(struct rig *rig, const struct op *op)
{
    static uint8_t frame[HEADER + 8 + 256 * PAGE_RECORD];
    uint32_t at = HEADER + put_section(frame + HEADER, DATA_DEVICE);
    uint8_t first = op_byte(op, 1), count = op_byte(op, 2);

    for (uint32_t i = 0; i < count; i++, at += PAGE_RECORD) {
        uint64_t offset = (uint64_t)(first + i) * 1024;
        put32(frame + at, 1);
        put32(frame + at + 4, 1024);
        memcpy(frame + at + 8, &offset, sizeof(offset));
        memset(frame + at + 16, op_byte(op, 3) + (int)i, 1024);
    }
    send_frame(rig, op_byte(op, 0), 1, frame, at - HEADER);
}

static void save_v1(struct rig *rig, uint32_t most)
{
    static const uint8_t registers[] = {8, 16, 24};
    uint64_t size = 0, at = 0;
    struct vfmig_user_region_access access = {.region = VFMIG_REGION_MIGRATION, .count = 8};

    for (unsigned i = 0; i < sizeof(registers); i++) {
        access.offset = registers[i];
        if (rig_call(rig, VFMIG_USER_REGION_READ, &access, sizeof(access), -1) != 24)
            return;
    }
    memcpy(&size, rig->reply + sizeof(access), sizeof(size));
    for (; at < size && at < SAVED_MAX - rig->saved_size; at += access.count) {
        access.offset = WINDOW + at;
        access.count = (uint32_t)(size - at < most ? size - at : most);
        int r = rig_call(rig, VFMIG_USER_REGION_READ, &access, sizeof(access), -1);
        if (r < (int)sizeof(access) || access.count > SAVED_MAX - rig->saved_size)
            return;
        memcpy(rig->saved + rig->saved_size, rig->reply + sizeof(access), access.count);
        rig->saved_size += access.count;
    }
    rig->reach[REACH_SAVES] += at > 0;
}

static void do_save(struct rig *rig, const struct op *op)
{
    uint32_t most = 4096u + (op_byte(op, 1) | (uint32_t)op_byte(op, 2) << 8) % 0xe000u;
    struct vfmig_user_mig_data req = {8 + most, most}, got;

    if (op_byte(op, 0) & DATA_V1) {
        save_v1(rig, most);
        return;
    }
    int r = rig_call(rig, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req), -1);
    if (r < (int)sizeof(got))
        return;
    memcpy(&got, rig->reply, sizeof(got));
    if (got.size > SAVED_MAX - rig->saved_size)
        return;
    memcpy(rig->saved + rig->saved_size, rig->reply + sizeof(got), got.size);
    rig->saved_size += got.size;
    rig->reach[REACH_SAVES] += got.size > 0;
}

/* What was saved, with bytes changed and the checksums right again. */
static void do_back(struct rig *rig, const struct op *op)
{
    uint8_t how = op_byte(op, 0);

    for (uint32_t at = 1; at + 5 <= op->size && rig->saved_size; at += 5)
        rig->saved[op_word(op, at) % rig->saved_size] = op_byte(op, at + 4);
    rig->frame_crc = 0;
    for (uint32_t at = 0; rig->saved_size - at >= HEADER;) {
        uint32_t length = get32(rig->saved + at + 28);
        if (length > rig->saved_size - at - HEADER)
            break;
        rig->frame_sequence = get32(rig->saved + at + 24) + 1;
        seal(rig, rig->saved + at, length);
        at += HEADER + length;
        rig->reach[REACH_FRAMES]++;
    }
    if ((how & DATA_BAD_CRC) && rig->saved_size > 33)
        rig->saved[33] ^= 1;
    load_bytes(rig, how, rig->saved, rig->saved_size);
    rig->saved_size = 0;
}

static void do_reconnect(struct rig *rig, uint8_t how)
{
    if ((how & RECONNECT_TWIN) && rig->twin.fd >= 0 && !rig->closed) {
        close(rig->twin.fd); /* half a client is none */
        rig->twin.fd = -1;
        rig->may_close = rig->must_close = true;
        rig->twin_gone = true;
        rig_pump(rig);
        return;
    }
    rig_disconnect(rig);
    rig_connect(rig, how);
}

void ops_do(struct rig *rig, const struct op *op)
{
    switch ((enum op_kind)op->kind) {
    case OP_SEND:
        do_send(rig, op);
        break;
    case OP_ANSWER:
        do_answer(rig, op);
        break;
    case OP_POKE:
        do_poke(rig, op);
        break;
    case OP_TRUNCATE:
        CHECK(ftruncate(rig_shrink(), op_word(op, 0) % (RAM_SIZE + 1)) == 0, "not cut");
        break;
    case OP_TIME:
        world_advance(1000ull << op_byte(op, 0) % 26);
        rig_pump(rig);
        break;
    case OP_RECONNECT:
        do_reconnect(rig, op_byte(op, 0));
        break;
    case OP_STATE:
        ops_state(rig, op_byte(op, 0), op_byte(op, 1));
        break;
    case OP_FRAME:
        do_frame(rig, op);
        break;
    case OP_PAGES:
        do_pages(rig, op);
        break;
    case OP_SAVE:
        do_save(rig, op);
        break;
    case OP_BACK:
        do_back(rig, op);
        break;
    case OP_CONTROL:
    case OP_ASIDE:
    case OP_WINDOW:
        control_do(rig, op);
        break;
    case OP_KINDS:
        break;
    }
}
