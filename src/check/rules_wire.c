/* SPDX-License-Identifier: BSD-3-Clause */
/* vfio-user messages that are wrong, or need no answer: refused or ignored, and no harm done. */
#include "check/rule.h"
#include "check/rules.h"

static void still_there(struct check *c)
{
    if (!check_over(c))
        check_is(c, VFMIG_STATE_RUNNING, "after it");
}

void check_wire_unknown(struct check *c)
{
    static const uint16_t numbers[] = {0,     VFMIG_USER_DMA_READ, VFMIG_USER_DMA_WRITE, 19, 255,
                                       0xffff};
    static const uint8_t payload[16];

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]) && !check_over(c); i++) {
        check_doing(c, "command %u, which no server has", numbers[i]);
        check_refused(c, check_command(c, numbers[i], 0, payload, sizeof(payload)), "the command");
        still_there(c);
    }
}

void check_wire_short(struct check *c)
{
    static const struct {
        uint16_t command;
        uint32_t size;
    } commands[] = {
        {VFMIG_USER_DMA_MAP, 31},         {VFMIG_USER_DMA_UNMAP, 23},     {VFMIG_USER_GET_INFO, 15},
        {VFMIG_USER_GET_REGION_INFO, 31}, {VFMIG_USER_GET_IRQ_INFO, 15},  {VFMIG_USER_SET_IRQS, 19},
        {VFMIG_USER_REGION_READ, 15},     {VFMIG_USER_REGION_WRITE, 15},  {VFMIG_USER_FEATURE, 7},
        {VFMIG_USER_MIG_DATA_READ, 7},    {VFMIG_USER_MIG_DATA_WRITE, 7},
    };
    static const uint8_t payload[32];

    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        for (uint32_t size = 1; size <= commands[i].size && !check_over(c);
             size += commands[i].size - 1) {
            check_doing(c, "command %u with %u bytes of payload", commands[i].command, size);
            check_refused(c, check_command(c, commands[i].command, 0, payload, size),
                          "the command");
            still_there(c);
        }
}

static int feature(struct check *c, uint32_t argsz, uint32_t flags, const void *data, uint32_t size)
{
    uint8_t payload[64] = {0};
    struct vfmig_user_feature head = {argsz, flags};

    memcpy(payload, &head, sizeof(head));
    if (size)
        memcpy(payload + sizeof(head), data, size);
    return check_command(c, VFMIG_USER_FEATURE, 0, payload, (uint32_t)sizeof(head) + size);
}

void check_wire_feature(struct check *c)
{
    const uint32_t both = VFMIG_USER_FEATURE_GET | VFMIG_USER_FEATURE_SET;
    static const struct vfmig_user_feature_state stop = {VFMIG_STATE_STOP, 0};
    const struct {
        const char *what;
        uint32_t argsz, flags, size;
    } wrong[] = {
        {"neither GET nor SET", 16, VFMIG_USER_F_DEVICE_STATE, 8},
        {"GET and SET without PROBE", 16, both | VFMIG_USER_F_DEVICE_STATE, 8},
        {"an unknown flag", 16, VFMIG_USER_FEATURE_SET | 0x80000u | VFMIG_USER_F_DEVICE_STATE, 8},
        {"SET of a state in two bytes", 10, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE, 2},
        {"SET of MIGRATION", 16, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_MIGRATION, 8},
        {"GET with argsz too small", 8, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DEVICE_STATE, 0},
        {"GET of an unknown feature", 64, VFMIG_USER_FEATURE_GET | 0x7abcu, 0},
        {"SET of an unknown feature", 16, VFMIG_USER_FEATURE_SET | 0x7abcu, 8},
        {"PROBE of an unknown feature", 16,
         VFMIG_USER_FEATURE_PROBE | VFMIG_USER_FEATURE_GET | 0x7abcu, 0},
        {"PROBE of SET of MIGRATION", 16,
         VFMIG_USER_FEATURE_PROBE | VFMIG_USER_FEATURE_SET | VFMIG_USER_F_MIGRATION, 0},
    };

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]) && !check_over(c); i++) {
        check_doing(c, "DEVICE_FEATURE: %s", wrong[i].what);
        check_refused(c, feature(c, wrong[i].argsz, wrong[i].flags, &stop, wrong[i].size),
                      "the command");
        still_there(c);
    }
    check_doing(c, "PROBE of GET and SET of the state");
    if (!check_over(c))
        check_ok(
            c, feature(c, 8, VFMIG_USER_FEATURE_PROBE | both | VFMIG_USER_F_DEVICE_STATE, NULL, 0),
            "PROBE");
    still_there(c);
}

/* No reply is sent, not even of a failure: a stray one breaks the next step. */
void check_wire_no_reply(struct check *c)
{
    struct check_step step = {.kind = CHECK_STEP_STATE_POST};

    check_doing(c, "STOP asked for without a reply");
    step.arg[0] = check_raw_of(c, VFMIG_STATE_STOP);
    if (!check_need(c, check_do(c, &step), "sending it") ||
        !check_is(c, VFMIG_STATE_STOP, "after it"))
        return;
    check_doing(c, "a state that is none asked for without a reply");
    step.arg[0] = 5 + 0x100;
    if (!check_need(c, check_do(c, &step), "sending it") ||
        !check_is(c, VFMIG_STATE_STOP, "after it"))
        return;
    check_doing(c, "RUNNING asked for without a reply");
    step.arg[0] = check_raw_of(c, VFMIG_STATE_RUNNING);
    if (check_need(c, check_do(c, &step), "sending it"))
        check_is(c, VFMIG_STATE_RUNNING, "after it");
}

void check_wire_regions(struct check *c)
{
    const struct check_facts *facts = &c->port->facts;
    uint8_t bytes[8] = {0};
    uint64_t config = facts->region_size[VFMIG_REGION_CONFIG];
    const struct {
        uint32_t region;
        uint64_t offset;
    } wrong[] = {/* of the regions above CHECK_MAX_REGIONS nothing is known */
                 {facts->region_count < CHECK_MAX_REGIONS ? facts->region_count : 0xfffffffeu, 0},
                 {0xffffffffu, 0},
                 {VFMIG_REGION_CONFIG, config},
                 {VFMIG_REGION_CONFIG, config - 4},
                 {VFMIG_REGION_CONFIG, UINT64_MAX - 7},
                 {VFMIG_REGION_CONFIG, 1ull << 63}};

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]) && !check_over(c); i++) {
        check_doing(c, "8 bytes at 0x%llx of region %u", (unsigned long long)wrong[i].offset,
                    wrong[i].region);
        check_refused(c, check_read(c, wrong[i].region, wrong[i].offset, bytes, 8), "the read");
        check_refused(c, check_write(c, wrong[i].region, wrong[i].offset, bytes, 8), "the write");
    }
    still_there(c);
}

void check_wire_maps(struct check *c)
{
    static const struct {
        const char *what;
        uint64_t iova, size;
    } wrong[] = {{"over a mapping", 0x100000, 0x10000},
                 {"into one", 0xf8000, 0x10000},
                 {"inside of one", 0x104000, 0x1000},
                 {"of no bytes", 0x900000, 0},
                 {"that wraps", UINT64_MAX - 0xfff, 0x2000}};

    check_need(c, check_map(c, 0x100000, 0x10000, 0, false), "MAP");
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]) && !check_over(c); i++) {
        check_doing(c, "a mapping %s", wrong[i].what);
        check_refused(c, check_map(c, wrong[i].iova, wrong[i].size, 0x100000, false), "MAP");
    }
    check_doing(c, "an unmap of what was not mapped so");
    if (!check_over(c)) {
        check_refused(c, check_unmap(c, 0x700000, 0x10000), "UNMAP of nothing");
        check_refused(c, check_unmap(c, 0x100000, 0x8000), "UNMAP of half of one");
        check_ok(c, check_unmap(c, 0x100000, 0x10000), "UNMAP of all of it");
    }
    still_there(c);
}

/* Sizes in the header that are no sizes: the connection may be lost, the device not. */
void check_wire_sizes(struct check *c)
{
    static const uint32_t sizes[] = {0, 1, 15, 0x7fffffff, 0xffffffff};
    static const uint8_t payload[32];

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]) && !check_over(c); i++) {
        struct check_step step = {.kind = CHECK_STEP_CUT,
                                  .arg = {VFMIG_USER_FEATURE, sizes[i], sizeof(payload)},
                                  .data = payload};
        check_doing(c, "a message whose header says %u bytes", sizes[i]);
        check_do(c, &step);
        if (check_ok(c, check_reconnect(c), "a new connection"))
            check_is(c, VFMIG_STATE_RUNNING, "a fresh connection");
    }
}

void check_wire_pieces(struct check *c)
{
    static uint8_t room[VFMIG_REGION_COUNT * 64];
    const struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_state state;
    } VFMIG_PACKED set = {{sizeof(set), VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE},
                          {VFMIG_STATE_STOP, 0}};
    struct check_step step = {.kind = CHECK_STEP_PIECES,
                              .arg = {VFMIG_USER_FEATURE, 0, sizeof(set)},
                              .data = &set,
                              .room = room,
                              .room_size = sizeof(room)};

    check_doing(c, "a request for STOP that arrives byte by byte");
    if (check_ok(c, check_do(c, &step), "the request"))
        check_is(c, VFMIG_STATE_STOP, "after it");
}
