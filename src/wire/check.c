/* SPDX-License-Identifier: BSD-3-Clause */
/* Structure of messages, in one fixed order (see wire.h); nothing here knows a device. */
#include <errno.h>
#include <string.h>

#include "wire/wire.h"

#include "base/caps.h"

enum direction { TO_SERVER = 1, TO_CLIENT = 2 };

/* One row a command: who sends it, fixed part of request and reply, descriptors. */
struct rule {
    const char *name;
    enum direction dir;
    uint32_t fixed;       /* least payload of the command */
    uint32_t reply_fixed; /* least payload of a reply without error */
    uint32_t fds, reply_fds;
    bool exact;           /* the command's payload is the fixed part and nothing else */
};

#define SIZE(type) ((uint32_t)sizeof(struct vfmig_user_##type))
static const struct rule rules[VFMIG_USER_COMMAND_COUNT] = {
    [VFMIG_USER_VERSION] = {"VERSION", TO_SERVER, SIZE(version), SIZE(version), 0, 2, false},
    [VFMIG_USER_DMA_MAP] = {"DMA_MAP", TO_SERVER, SIZE(dma_map), 0, 1, 0, true},
    [VFMIG_USER_DMA_UNMAP] = {"DMA_UNMAP", TO_SERVER, SIZE(dma_unmap), 0, 0, 0, false},
    [VFMIG_USER_GET_INFO] = {"GET_INFO", TO_SERVER, SIZE(device_info), SIZE(device_info), 0, 0,
                             false},
    [VFMIG_USER_GET_REGION_INFO] = {"GET_REGION_INFO", TO_SERVER, SIZE(region_info),
                                    SIZE(region_info), 0, 1, false},
    [VFMIG_USER_GET_REGION_IO_FDS] = {"GET_REGION_IO_FDS", TO_SERVER, SIZE(region_io_fds),
                                      SIZE(region_io_fds), 0, VFMIG_MAX_MSG_FDS, false},
    [VFMIG_USER_GET_IRQ_INFO] = {"GET_IRQ_INFO", TO_SERVER, SIZE(irq_info), SIZE(irq_info), 0, 0,
                                 false},
    [VFMIG_USER_SET_IRQS] = {"SET_IRQS", TO_SERVER, SIZE(set_irqs), 0, VFMIG_MAX_MSG_FDS, 0,
                             false},
    [VFMIG_USER_REGION_READ] = {"REGION_READ", TO_SERVER, SIZE(region_access), 0, 0, 0, true},
    [VFMIG_USER_REGION_WRITE] = {"REGION_WRITE", TO_SERVER, SIZE(region_access), 0, 0, 0, false},
    [VFMIG_USER_DMA_READ] = {"DMA_READ", TO_CLIENT, SIZE(dma_access), SIZE(dma_access), 0, 0,
                             true},
    [VFMIG_USER_DMA_WRITE] = {"DMA_WRITE", TO_CLIENT, SIZE(dma_access), 0, 0, 0, false},
    [VFMIG_USER_RESET] = {"RESET", TO_SERVER, 0, 0, 0, 0, true},
    [VFMIG_USER_DIRTY_PAGES] = {"DIRTY_PAGES", TO_SERVER, SIZE(dirty_pages), 0, 0, 0, false},
    [VFMIG_USER_REGION_WRITE_MULTI] = {"REGION_WRITE_MULTI", TO_SERVER, SIZE(write_multi), 0, 0, 0,
                                       false},
    [VFMIG_USER_FEATURE] = {"DEVICE_FEATURE", TO_SERVER, SIZE(feature), 0, 0, 0, false},
    [VFMIG_USER_MIG_DATA_READ] = {"MIG_DATA_READ", TO_SERVER, SIZE(mig_data), SIZE(mig_data), 0, 0,
                                  true},
    [VFMIG_USER_MIG_DATA_WRITE] = {"MIG_DATA_WRITE", TO_SERVER, SIZE(mig_data), 0, 0, 0, false},
};

const char *vfmig_user_command_name(uint32_t command)
{
    return command < VFMIG_USER_COMMAND_COUNT && rules[command].name ? rules[command].name
                                                                      : "unknown";
}

/* What is wrong with a message, for the one sentence. */
struct verdict {
    int code;
    const char *why;
};
#define FINE ((struct verdict){0, NULL})
#define WRONG(errno_, why_) ((struct verdict){-(errno_), why_})

/* [address, address + size) is not empty and does not wrap; the last byte may be UINT64_MAX. */
static bool range_ok(uint64_t address, uint64_t size)
{
    return size > 0 && address + (size - 1) >= address;
}

static struct verdict check_version(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    if (msg->size - SIZE(version) > VFMIG_MAX_JSON)
        return WRONG(EINVAL, "text too long");
    return FINE;
}

static struct verdict check_dma_map(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    const struct vfmig_user_dma_map *map = (const void *)msg->payload;
    if (map->flags & ~(VFMIG_USER_DMA_F_READ | VFMIG_USER_DMA_F_WRITE))
        return WRONG(EINVAL, "unknown flag");
    if (map->argsz < SIZE(dma_map))
        return WRONG(EINVAL, "argsz too small");
    if (!range_ok(map->address, map->size) || !range_ok(map->offset, map->size))
        return WRONG(EINVAL, "address or offset wraps, or size is 0");
    return FINE;
}

static struct verdict check_dma_unmap(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    const struct vfmig_user_dma_unmap *un = (const void *)msg->payload;
    const struct vfmig_user_bitmap *bitmap = (const void *)(un + 1);
    bool with_bitmap = un->flags & VFMIG_USER_UNMAP_F_BITMAP;

    if (un->flags & ~(VFMIG_USER_UNMAP_F_BITMAP | VFMIG_USER_UNMAP_F_ALL))
        return WRONG(EINVAL, "unknown flag");
    if (with_bitmap && (un->flags & VFMIG_USER_UNMAP_F_ALL))
        return WRONG(EINVAL, "bitmap and all exclude each other");
    if (msg->size != SIZE(dma_unmap) + (with_bitmap ? SIZE(bitmap) : 0))
        return WRONG(EINVAL, "size does not fit the flags");
    if (un->argsz < SIZE(dma_unmap))
        return WRONG(EINVAL, "argsz too small");
    if (with_bitmap && bitmap->size > max_data)
        return WRONG(E2BIG, "bitmap above the limit");
    if (with_bitmap && un->argsz < SIZE(dma_unmap) + SIZE(bitmap) + bitmap->size)
        return WRONG(EINVAL, "argsz too small for the bitmap");
    if (un->flags & VFMIG_USER_UNMAP_F_ALL)
        return un->address || un->size ? WRONG(EINVAL, "address with all") : FINE;
    if (!range_ok(un->address, un->size))
        return WRONG(EINVAL, "address wraps or size is 0");
    return FINE;
}

/* GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO: argsz is the first field. */
static struct verdict check_argsz(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    const struct vfmig_user_device_info *info = (const void *)msg->payload;
    return info->argsz < rules[msg->header.command].fixed ? WRONG(EINVAL, "argsz too small")
                                                          : FINE;
}

static bool one_bit(uint32_t bits)
{
    return bits && !(bits & (bits - 1));
}

static struct verdict check_set_irqs(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    const struct vfmig_user_set_irqs *irqs = (const void *)msg->payload;
    uint32_t data = irqs->flags & VFMIG_USER_IRQ_DATA_MASK;
    uint32_t bools = data == VFMIG_USER_IRQ_DATA_BOOL ? irqs->count : 0;

    if (irqs->flags & ~(VFMIG_USER_IRQ_DATA_MASK | VFMIG_USER_IRQ_ACTIONS))
        return WRONG(EINVAL, "unknown flag");
    if (!one_bit(data) || !one_bit(irqs->flags & VFMIG_USER_IRQ_ACTIONS))
        return WRONG(EINVAL, "not exactly one data and one action flag");
    if (irqs->argsz < SIZE(set_irqs))
        return WRONG(EINVAL, "argsz too small");
    if (msg->size - SIZE(set_irqs) != bools)
        return WRONG(EINVAL, "data does not fit the count");
    if (msg->fds.count && data != VFMIG_USER_IRQ_DATA_EVENTFD)
        return WRONG(EINVAL, "descriptors without the eventfd flag");
    if (msg->fds.count && msg->fds.count != irqs->count)
        return WRONG(EINVAL, "not one descriptor for each vector");
    if (irqs->count > UINT32_MAX - irqs->start)
        return WRONG(EINVAL, "start and count wrap");
    return FINE;
}

static struct verdict check_region(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    const struct vfmig_user_region_access *access = (const void *)msg->payload;
    bool write = msg->header.command == VFMIG_USER_REGION_WRITE;

    if (access->count > max_data)
        return WRONG(E2BIG, "more data than negotiated");
    if (write && msg->size - SIZE(region_access) != access->count)
        return WRONG(EINVAL, "data does not fit the count");
    if (access->count && !range_ok(access->offset, access->count))
        return WRONG(EINVAL, "offset wraps");
    return FINE;
}

static struct verdict check_dma(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    const struct vfmig_user_dma_access *access = (const void *)msg->payload;
    bool write = msg->header.command == VFMIG_USER_DMA_WRITE;

    if (access->count > max_data)
        return WRONG(E2BIG, "more data than negotiated");
    if (write && msg->size - SIZE(dma_access) != access->count)
        return WRONG(EINVAL, "data does not fit the count");
    if (!range_ok(access->address, access->count))
        return WRONG(EINVAL, "address wraps or count is 0");
    return FINE;
}

static struct verdict check_dirty_pages(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    const struct vfmig_user_dirty_pages *dirty = (const void *)msg->payload;
    const struct vfmig_user_dirty_range *range = (const void *)(dirty + 1);
    bool get = dirty->flags == VFMIG_USER_DIRTY_GET;

    if (dirty->flags & ~(VFMIG_USER_DIRTY_START | VFMIG_USER_DIRTY_STOP | VFMIG_USER_DIRTY_GET))
        return WRONG(EINVAL, "unknown flag");
    if (!one_bit(dirty->flags))
        return WRONG(EINVAL, "not exactly one flag");
    if (msg->size != SIZE(dirty_pages) + (get ? SIZE(dirty_range) : 0))
        return WRONG(EINVAL, "size does not fit the flags");
    if (dirty->argsz < SIZE(dirty_pages) + (get ? SIZE(dirty_range) : 0))
        return WRONG(EINVAL, "argsz too small");
    if (get && range->bitmap.size > max_data)
        return WRONG(E2BIG, "bitmap above the limit");
    if (get && !range_ok(range->iova, range->size))
        return WRONG(EINVAL, "address wraps or size is 0");
    return FINE;
}

static struct verdict check_write_multi(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    const struct vfmig_user_write_multi *multi = (const void *)msg->payload;
    uint32_t bytes = msg->size - SIZE(write_multi);
    if (bytes % SIZE(write_entry) || multi->count != bytes / SIZE(write_entry))
        return WRONG(EINVAL, "entries do not fit the count");
    return FINE;
}

static struct verdict check_log_start(const struct vfmig_user_msg *msg)
{
    const struct vfmig_user_feature_log_start *start = (const void *)(msg->payload + SIZE(feature));
    uint32_t bytes = msg->size - SIZE(feature);

    if (bytes < SIZE(feature_log_start))
        return WRONG(EINVAL, "too short for its feature");
    bytes -= SIZE(feature_log_start);
    if (bytes % SIZE(log_range) || start->num_ranges != bytes / SIZE(log_range))
        return WRONG(EINVAL, "ranges do not fit the count");
    const struct vfmig_user_log_range *range = (const void *)(start + 1);
    for (uint32_t i = 0; i < start->num_ranges; i++)
        if (!range_ok(range[i].iova, range[i].length))
            return WRONG(EOVERFLOW, "a range wraps or is empty");
    return FINE;
}

static struct verdict check_handles(const struct vfmig_user_msg *msg)
{
    const struct vfmig_user_feature_handles *handles = (const void *)(msg->payload + SIZE(feature));
    uint32_t bytes = msg->size - SIZE(feature);

    if (bytes < SIZE(feature_handles) || handles->reserved)
        return WRONG(EINVAL, "not a list of handles");
    bytes -= SIZE(feature_handles);
    if (handles->count > VFMIG_MAX_HANDLES)
        return WRONG(E2BIG, "more handles than a device has");
    if (bytes != handles->count * SIZE(handle))
        return WRONG(EINVAL, "handles do not fit the count");
    return FINE;
}

static struct verdict check_feature(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    const struct vfmig_user_feature *feature = (const void *)msg->payload;
    uint32_t ops = feature->flags & (VFMIG_USER_FEATURE_GET | VFMIG_USER_FEATURE_SET);
    uint32_t data = msg->size - SIZE(feature);

    if (feature->flags & ~VFMIG_USER_FEATURE_FLAGS)
        return WRONG(EINVAL, "unknown flag");
    if (feature->argsz < SIZE(feature))
        return WRONG(EINVAL, "argsz too small");
    if (feature->flags & VFMIG_USER_FEATURE_PROBE)
        return FINE;
    if (!one_bit(ops))
        return WRONG(EINVAL, "not exactly one of get and set");
    bool set = ops == VFMIG_USER_FEATURE_SET;
    switch (feature->flags & VFMIG_USER_FEATURE_MASK) {
    case VFMIG_USER_F_DEVICE_STATE:
        return set && data < SIZE(feature_state) ? WRONG(EINVAL, "too short for its feature")
                                                 : FINE;
    case VFMIG_USER_F_LOG_START:
        return set ? check_log_start(msg) : FINE;
    case VFMIG_USER_F_LOG_REPORT: {
        const struct vfmig_user_feature_log_report *report = (const void *)(feature + 1);
        if (!set && data < SIZE(feature_log_report))
            return WRONG(EINVAL, "too short for its feature");
        if (!set && !range_ok(report->iova, report->length))
            return WRONG(EINVAL, "range wraps or is empty");
        return FINE;
    }
    case VFMIG_USER_F_WINDOW_READ:
    case VFMIG_USER_F_WINDOW_WRITE: {
        const struct vfmig_user_feature_window *window = (const void *)(feature + 1);
        if (data != sizeof(*window) || window->reserved)
            return WRONG(EINVAL, "not a place in the window");
        if (window->offset > UINT64_MAX - window->size)
            return WRONG(EINVAL, "offset wraps");
        return FINE;
    }
    case VFMIG_USER_F_HANDLES:
        return set ? check_handles(msg) : FINE;
    case VFMIG_USER_F_FREEZE:
    case VFMIG_USER_F_DMA_MODE:
    case VFMIG_USER_F_HOLD: {
        const struct vfmig_user_feature_switch *sw = (const void *)(feature + 1);
        if (set && (data != sizeof(*sw) || sw->value > 1 || sw->reserved))
            return WRONG(EINVAL, "not a switch");
        return FINE;
    }
    case VFMIG_USER_F_PENDING:
        return set && data != SIZE(feature_pending) ? WRONG(EINVAL, "wrong size for its feature")
                                                    : FINE;
    case VFMIG_USER_F_DIRTY_LIST:
    case VFMIG_USER_F_DMA_MAP_LIST:
        return data < SIZE(feature_list) ? WRONG(EINVAL, "too short for its feature") : FINE;
    default:
        return FINE;
    }
}

static struct verdict check_mig_data(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    const struct vfmig_user_mig_data *mig = (const void *)msg->payload;
    bool write = msg->header.command == VFMIG_USER_MIG_DATA_WRITE;

    if (write && msg->size - SIZE(mig_data) != mig->size)
        return WRONG(EINVAL, "data does not fit the size");
    if (mig->size > max_data)
        return WRONG(E2BIG, "more data than negotiated");
    if (mig->argsz < SIZE(mig_data) || mig->argsz - SIZE(mig_data) < mig->size)
        return WRONG(EINVAL, "argsz too small");
    return FINE;
}

static struct verdict check_body(const struct vfmig_user_msg *msg, uint32_t max_data)
{
    switch ((enum vfmig_user_command)msg->header.command) {
    case VFMIG_USER_VERSION:
        return check_version(msg, max_data);
    case VFMIG_USER_DMA_MAP:
        return check_dma_map(msg, max_data);
    case VFMIG_USER_DMA_UNMAP:
        return check_dma_unmap(msg, max_data);
    case VFMIG_USER_GET_INFO:
    case VFMIG_USER_GET_REGION_INFO:
    case VFMIG_USER_GET_REGION_IO_FDS:
    case VFMIG_USER_GET_IRQ_INFO:
        return check_argsz(msg, max_data);
    case VFMIG_USER_SET_IRQS:
        return check_set_irqs(msg, max_data);
    case VFMIG_USER_REGION_READ:
    case VFMIG_USER_REGION_WRITE:
        return check_region(msg, max_data);
    case VFMIG_USER_DMA_READ:
    case VFMIG_USER_DMA_WRITE:
        return check_dma(msg, max_data);
    case VFMIG_USER_RESET:
        return FINE;
    case VFMIG_USER_DIRTY_PAGES:
        return check_dirty_pages(msg, max_data);
    case VFMIG_USER_REGION_WRITE_MULTI:
        return check_write_multi(msg, max_data);
    case VFMIG_USER_FEATURE:
        return check_feature(msg, max_data);
    case VFMIG_USER_MIG_DATA_READ:
    case VFMIG_USER_MIG_DATA_WRITE:
        return check_mig_data(msg, max_data);
    case VFMIG_USER_COMMAND_COUNT:
        break;
    }
    return WRONG(EOPNOTSUPP, "unknown command");
}

static struct verdict judge_command(const struct vfmig_user_msg *msg, bool from_server,
                                    uint32_t max_data)
{
    const struct vfmig_user_header *h = &msg->header;

    if ((h->flags & VFMIG_USER_TYPE_MASK) != VFMIG_USER_TYPE_CMD)
        return WRONG(EINVAL, "not a command");
    if (h->flags & ~(VFMIG_USER_TYPE_MASK | VFMIG_USER_NO_REPLY))
        return WRONG(EINVAL, "unknown header flag");
    if (h->command >= VFMIG_USER_COMMAND_COUNT || !rules[h->command].name ||
        rules[h->command].dir != (from_server ? TO_CLIENT : TO_SERVER))
        return WRONG(EOPNOTSUPP, "unknown command");
    const struct rule *rule = &rules[h->command];
    if (msg->size < rule->fixed || (rule->exact && msg->size != rule->fixed))
        return WRONG(EINVAL, "wrong size");
    if (msg->fds.count > rule->fds)
        return WRONG(EINVAL, "descriptors that it does not take");
    return check_body(msg, max_data);
}

int vfmig_user_check_command(const struct vfmig_user_msg *msg, bool from_server, uint32_t max_data,
                             struct vfmig_error *reterr)
{
    struct verdict verdict = judge_command(msg, from_server, max_data);

    if (verdict.code == 0)
        return 0;
    return vfmig_error_set(reterr, verdict.code, VFMIG_ORIGIN_PEER, 0, "%s (%u): %s",
                           vfmig_user_command_name(msg->header.command), msg->header.command,
                           verdict.why);
}

static const char *judge_reply(const struct vfmig_user_msg *msg, const struct rule *rule,
                               const void *request, uint32_t request_size)
{
    const void *p = msg->payload;

    if (msg->size < rule->reply_fixed)
        return "too short";
    if (msg->fds.count > rule->reply_fds)
        return "unexpected descriptors";
    if (!request || request_size < rule->fixed)
        return NULL;
    if (msg->header.command == VFMIG_USER_REGION_READ) {
        const struct vfmig_user_region_access *asked = request, *got = p;
        if (asked->count == 0)
            return NULL; /* a bare header is seen from libvfio-user */
        if (msg->size < SIZE(region_access) || got->count != asked->count ||
            got->offset != asked->offset || msg->size != SIZE(region_access) + got->count)
            return "data does not fit the request";
    } else if (msg->header.command == VFMIG_USER_DMA_READ) {
        const struct vfmig_user_dma_access *asked = request, *got = p;
        if (got->count != asked->count || got->address != asked->address ||
            msg->size != SIZE(dma_access) + got->count)
            return "data does not fit the request";
    } else if (msg->header.command == VFMIG_USER_MIG_DATA_READ) {
        /* libvfio-user pads the body to the size asked for; only the size field counts. */
        const struct vfmig_user_mig_data *asked = request, *got = p;
        if (got->size > asked->size || msg->size - SIZE(mig_data) < got->size)
            return "data does not fit the request";
    }
    return NULL;
}

int vfmig_user_check_reply(const struct vfmig_user_msg *msg, uint16_t command, const void *request,
                           uint32_t request_size, struct vfmig_error *reterr)
{
    const struct vfmig_user_header *h = &msg->header;
    const char *name = vfmig_user_command_name(command);
    const char *why = NULL;

    if ((h->flags & VFMIG_USER_TYPE_MASK) != VFMIG_USER_TYPE_REPLY || h->command != command ||
        command >= VFMIG_USER_COMMAND_COUNT || !rules[command].name)
        why = "not the reply that was waited for";
    else if (h->flags & VFMIG_USER_ERROR) {
        int code = h->error > 0 && h->error < 4096 ? -(int)h->error : -EIO;
        return vfmig_error_set(reterr, code, VFMIG_ORIGIN_PEER, 0, "%s refused by the peer: %s",
                               name, strerror(-code));
    } else
        why = judge_reply(msg, &rules[command], request, request_size);
    if (!why)
        return 0;
    return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0, "reply to %s: %s", name, why);
}

const void *vfmig_user_find_cap(const void *info, uint32_t size, uint16_t id, uint32_t *ret_size)
{
    const struct vfmig_user_region_info *head = info;

    if (size < sizeof(*head) || !(head->flags & VFMIG_USER_REGION_F_CAPS) || head->cap_offset < sizeof(*head))
        return NULL;
    return vfmig_find_cap(info, size, head->cap_offset, id, ret_size);
}

struct vfmig_user_header vfmig_user_make_command(uint16_t id, uint16_t command,
                                                 uint32_t payload_size, bool no_reply)
{
    return (struct vfmig_user_header){
        .id = id,
        .command = command,
        .size = (uint32_t)sizeof(struct vfmig_user_header) + payload_size,
        .flags = VFMIG_USER_TYPE_CMD | (no_reply ? VFMIG_USER_NO_REPLY : 0),
    };
}

struct vfmig_user_header vfmig_user_make_reply(const struct vfmig_user_header *request,
                                               uint32_t payload_size)
{
    return (struct vfmig_user_header){
        .id = request->id,
        .command = request->command,
        .size = (uint32_t)sizeof(struct vfmig_user_header) + payload_size,
        .flags = VFMIG_USER_TYPE_REPLY,
    };
}

struct vfmig_user_header vfmig_user_make_error(const struct vfmig_user_header *request, int error)
{
    struct vfmig_user_header h = vfmig_user_make_reply(request, 0);

    h.flags |= VFMIG_USER_ERROR;
    h.error = error < 0 ? (uint32_t)-error : EIO;
    return h;
}
