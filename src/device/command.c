/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands of the client. Each handler answers, or defers, or returns the errno to answer with;
 * the structure of the message was checked before. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "device/internal.h"

static int reply_empty(struct client *c, const struct vfmig_user_msg *msg)
{
    return server_reply(c, &msg->header, NULL, 0, NULL, 0, NULL, 0);
}

/* ---- VERSION --------------------------------------------------------------------------------- */

/* Only keys that the client sent come back: QEMU warns about others, and refuses a text that is
 * longer than its own. */
static void agree(struct client *c, const struct vfmig_user_caps *theirs,
                  struct vfmig_user_caps *ours)
{
    const struct vfmig_device *dev = c->dev;

    vfmig_user_caps_default(ours);
    ours->has_max_msg_fds = theirs->has_max_msg_fds;
    ours->max_msg_fds = VFMIG_MAX_MSG_FDS;
    ours->has_max_data_xfer_size =
        theirs->has_max_data_xfer_size || dev->config.max_data_xfer_bytes != VFMIG_MAX_DATA_XFER;
    ours->max_data_xfer_size = dev->config.max_data_xfer_bytes;
    ours->has_max_dma_maps = theirs->has_max_dma_maps;
    ours->max_dma_maps = VFMIG_MAX_DMA_REGIONS;
    ours->has_pgsizes = theirs->has_pgsizes;
    ours->pgsizes = PAGE;
    ours->has_migration = theirs->has_migration && dev->features && !dev->config.no_dma_log;
    ours->migration_pgsize = PAGE;
    c->client_max_data = theirs->max_data_xfer_size;
    c->client_max_fds = theirs->max_msg_fds;
}

static int make_reply_room(struct client *c)
{
    c->max_data = c->dev->config.max_data_xfer_bytes;
    c->reply_room = c->max_data < c->client_max_data ? c->max_data : c->client_max_data;
    c->reply_room = c->reply_room < VFMIG_USER_DATA_MIN ? VFMIG_USER_DATA_MIN : c->reply_room;
    free(c->reply);
    c->reply = malloc(c->reply_room);
    return c->reply ? 0 : -ENOMEM;
}

/* The shared window of the feature dialect, for a client that asks for one of at most theirs bytes
 * and can take another descriptor. Without it messages carry the data. */
static void agree_window(struct client *c, const struct vfmig_user_caps *theirs,
                         struct vfmig_user_caps *ours, uint32_t fd_index)
{
    const struct vfmig_device_config *config = &c->dev->config;
    uint64_t bytes = theirs->window & ~(uint64_t)(PAGE - 1);

    bytes = bytes < config->window_bytes ? bytes : config->window_bytes;
    if (!c->dev->features || bytes == 0 || fd_index >= theirs->max_msg_fds)
        return;
    if (shared_make(&c->window, 0, bytes * config->window_count) < 0)
        return;
    ours->window = bytes;
    ours->windows = config->window_count;
    ours->has_window_fd_index = true;
    ours->window_fd_index = fd_index;
}

int version_handle(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_user_version version;
    struct vfmig_user_caps theirs, ours;
    char text[512];
    int fds[2], r;
    unsigned fd_count = 0;

    if (msg->header.command != VFMIG_USER_VERSION)
        return -EINVAL;
    r = vfmig_user_check_command(msg, false, VFMIG_USER_DATA_MIN, NULL);
    if (r < 0)
        return r;
    memcpy(&version, msg->payload, sizeof(version));
    r = vfmig_user_caps_parse(msg->payload + sizeof(version), msg->size - sizeof(version), &theirs,
                              NULL);
    if (r < 0 || version.major != VFMIG_USER_MAJOR)
        return -EINVAL;
    agree(c, &theirs, &ours);
    r = make_reply_room(c);
    if (r < 0)
        return r;
    r = control_join(c, theirs.token);
    if (r < 0)
        return r;
    if (c == &c->dev->control)
        memcpy(ours.token, theirs.token, sizeof(ours.token));
    else if (theirs.twin_socket && theirs.max_msg_fds > 0 && server_add_twin(c->dev, &fds[0]) == 0)
        fd_count = 1;
    bool twin = fd_count == 1;
    ours.twin_socket = ours.has_twin_fd_index = twin;
    agree_window(c, &theirs, &ours, fd_count);
    if (ours.window)
        fds[fd_count++] = c->window.fd;
    r = vfmig_user_caps_format(&ours, text, sizeof(text));
    if (r > 0) {
        version.minor = version.minor < VFMIG_USER_MINOR ? version.minor : VFMIG_USER_MINOR;
        c->negotiated = true;
        server_reply(c, &msg->header, &version, sizeof(version), text, (uint32_t)r, fds,
                     fd_count);
    }
    if (twin)
        close(fds[0]);
    return r < 0 ? r : 0;
}

/* ---- description ----------------------------------------------------------------------------- */

static int get_info(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_device_info info = {
        .argsz = sizeof(info),
        .flags = VFMIG_USER_INFO_F_RESET | VFMIG_USER_INFO_F_PCI,
        .num_regions = dev->features ? VFMIG_REGION_COUNT : VFMIG_REGION_MIGRATION,
        .num_irqs = VFMIG_IRQ_COUNT,
    };
    return server_reply(c, &msg->header, &info, sizeof(info), NULL, 0, NULL, 0);
}

/* Size of a region, 0 when absent; -EINVAL when there is no such index. */
static int64_t region_size(const struct vfmig_device *dev, uint32_t index)
{
    if (index <= VFMIG_REGION_BAR5)
        return (int64_t)dev->config.bars[index].size;
    if (index == VFMIG_REGION_CONFIG)
        return CONFIG_SIZE;
    if (index == VFMIG_REGION_MIGRATION && dev->features)
        return (int64_t)vfmig_window_region_size(&dev->window);
    return index < VFMIG_REGION_MIGRATION ? 0 : -EINVAL;
}

/* The migration region's own part of the reply: capabilities and, when they fit the room, the
 * descriptor. Its register page is never mapped: a register acts when it is accessed. */
static int get_migration_info(struct client *c, struct vfmig_user_msg *msg,
                              const struct vfmig_user_region_info *info, uint32_t room)
{
    struct vfmig_device *dev = c->dev;
    struct {
        struct vfmig_user_region_info info;
        struct vfmig_user_cap_type type;
        struct vfmig_user_cap_sparse sparse;
        struct vfmig_user_cap ndma;
    } VFMIG_PACKED r = {.info = *info};
    bool ndma = (dev->features & VFMIG_FEATURE_NDMA) || vfmig_sabotage("ndma-cap-always");
    bool fits = room >= sizeof(r) - (ndma ? 0 : sizeof(r.ndma));
    uint32_t size = sizeof(r) - (ndma ? 0 : sizeof(r.ndma));

    if (vfmig_sabotage("region-size-lies"))
        r.info.size = sizeof(struct vfmig_user_mig_region);
    if (vfmig_sabotage("region-read-only"))
        r.info.flags &= ~VFMIG_USER_REGION_F_WRITE;
    r.info.argsz = size; /* tells what the rest takes */
    struct shared *section = fits && c->client_max_fds ? region_section(c) : NULL;
    if (!fits)
        return server_reply(c, &msg->header, &r, sizeof(r.info), NULL, 0, NULL, 0);
    r.type = (struct vfmig_user_cap_type){
        {VFMIG_USER_CAP_TYPE, 1,
         section ? (uint32_t)offsetof(typeof(r), sparse)
         : ndma  ? (uint32_t)offsetof(typeof(r), ndma)
                 : 0},
        VFMIG_USER_REGION_TYPE_MIGRATION,
        vfmig_sabotage("region-without-type") ? 0 : VFMIG_USER_REGION_SUBTYPE_MIGRATION};
    if (section)
        r.sparse = (struct vfmig_user_cap_sparse){
            {VFMIG_USER_CAP_SPARSE_MMAP, 1, ndma ? (uint32_t)offsetof(typeof(r), ndma) : 0},
            .count = 1,
            .area = {DATA_OFFSET, info->size - DATA_OFFSET}};
    r.ndma = (struct vfmig_user_cap){VFMIG_USER_CAP_NDMA, 1, 0};
    r.info.cap_offset = offsetof(typeof(r), type);
    r.info.flags |= VFMIG_USER_REGION_F_CAPS | (section ? VFMIG_USER_REGION_F_MMAP : 0);
    if (section)
        vfmig_window_set_mapped(&dev->window, true);
    return server_reply(c, &msg->header, &r, size, NULL, 0, section ? &section->fd : NULL,
                        section ? 1 : 0);
}

static int get_region_info(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_region_info info;
    uint32_t room;

    memcpy(&info, msg->payload, sizeof(info));
    room = info.argsz;
    int64_t bytes = region_size(dev, info.index);
    if (bytes < 0)
        return (int)bytes;
    info = (struct vfmig_user_region_info){
        .argsz = sizeof(info),
        .flags = bytes ? VFMIG_USER_REGION_F_READ | VFMIG_USER_REGION_F_WRITE : 0,
        .index = info.index,
        .size = (uint64_t)bytes,
    };
    if (info.index == VFMIG_REGION_MIGRATION)
        return get_migration_info(c, msg, &info, room);
    return server_reply(c, &msg->header, &info, sizeof(info), NULL, 0, NULL, 0);
}

static int get_region_io_fds(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_region_io_fds req;

    memcpy(&req, msg->payload, sizeof(req));
    if (region_size(dev, req.index) <= 0)
        return -EINVAL;
    return doorbell_hand_out(c, msg);
}

static int get_irq_info(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_irq_info req;

    memcpy(&req, msg->payload, sizeof(req));
    if (req.index >= VFMIG_IRQ_COUNT)
        return -EINVAL;
    req = (struct vfmig_user_irq_info){
        .argsz = sizeof(req),
        .flags = VFMIG_USER_IRQ_F_EVENTFD,
        .index = req.index,
        .count = req.index == VFMIG_IRQ_MSIX ? dev->config.msix_vectors : 0,
    };
    return server_reply(c, &msg->header, &req, sizeof(req), NULL, 0, NULL, 0);
}

/* ---- regions --------------------------------------------------------------------------------- */

/* For a deliberate fault: there is memory that is no file's. */
static bool is_by_message(const struct dma_map *map)
{
    for (uint32_t i = 0; i < map->count; i++)
        if (!map->list[i].host)
            return true;
    return false;
}

bool mmio_reaches(const struct vfmig_device *dev)
{
    if (vfmig_sabotage("mmio-while-stopped"))
        return true;
    if (!vfmig_dev_mmio_allowed(&dev->mig) && vfmig_sabotage("mmio-opens-gate")) {
        dma_gate_open((struct vfmig_device *)dev);
        return true;
    }
    if (dev->irq.latch && is_by_message(&dev->dma) && vfmig_sabotage("peer-dma-under-ndma"))
        dma_gate_open((struct vfmig_device *)dev);
    if (vfmig_sabotage("mmio-dropped-under-ndma") && dev->irq.latch)
        return false;
    if (dev->session.frozen && (vfmig_dev_bits(&dev->mig) & ~VFMIG_V1_NDMA) <= VFMIG_V1_SAVING)
        return true; /* {} or S: as under N, see control.md */
    return vfmig_dev_mmio_allowed(&dev->mig);
}

/* C51: a stopped device answers with all ones and drops writes; C46-C49: what is the VMM's in the
 * same BAR goes on working. */
static int bar_access(struct client *c, const struct vfmig_user_msg *msg,
                      const struct vfmig_user_region_access *access, bool write)
{
    struct vfmig_device *dev = c->dev;
    const uint8_t *written = msg->payload + sizeof(*access);
    uint8_t *data = write ? (uint8_t *)(uintptr_t)written : c->reply;

    if (dev->irq.latch && mmio_reaches(dev) && vfmig_sabotage("mmio-refused-under-ndma"))
        return -EIO;
    if (!mmio_reaches(dev) && write && access->count == 1 && vfmig_sabotage("stopped-byte-kills"))
        _exit(1);
    if ((!mmio_reaches(dev) && vfmig_sabotage("msix-stops")) ||
        !msix_access(dev, access->region, access->offset, data, access->count, write)) {
        if (write && vfmig_sabotage("mmio-write-ignored"))
            return region_reply(c, &msg->header, access, NULL);
        if (mmio_reaches(dev) || (write && vfmig_sabotage("stopped-write-acts")))
            return later_access(c, dev, &msg->header, access, written, write);
        if (write) {
            COUNT(dev, mmio_stopped_writes);
        } else {
            COUNT(dev, mmio_stopped_reads);
            memset(data, 0xff, access->count);
            msix_access(dev, access->region, access->offset, data, access->count, false);
        }
    }
    return region_reply(c, &msg->header, access, write ? NULL : data);
}

static int region_access(struct client *c, struct vfmig_user_msg *msg, bool write)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_region_access access;

    memcpy(&access, msg->payload, sizeof(access));
    int64_t size = region_size(dev, access.region);
    bool outside = size < 0 || access.offset > (uint64_t)size ||
                   access.count > (uint64_t)size - access.offset;
    if (outside && access.region == VFMIG_REGION_MIGRATION && vfmig_sabotage("region-has-no-end"))
        return region_reply(c, &msg->header, &access, write ? NULL : c->reply);
    if (outside && !vfmig_sabotage("bounds-unchecked"))
        return -EINVAL;
    if (access.region == VFMIG_REGION_MIGRATION && access.count)
        return write ? region_v1_write(c, msg) : region_v1_read(c, msg);
    if (!write && access.count > c->reply_room)
        return -E2BIG;
    if (dev->session.hold && access.region <= VFMIG_REGION_BAR5 && access.count)
        return control_hold_access(c, msg);
    if (access.region <= VFMIG_REGION_BAR5 && access.count)
        return bar_access(c, msg, &access, write);
    if (access.region == VFMIG_REGION_CONFIG && write && vfmig_dev_saving(&dev->mig) &&
        vfmig_sabotage("config-change-ends-save"))
        stream_save_begin(dev);
    if (access.region == VFMIG_REGION_CONFIG && write && vfmig_dev_loading(&dev->mig) &&
        vfmig_sabotage("config-change-ends-load"))
        dev->stream.load_err = -EIO;
    if (access.region == VFMIG_REGION_CONFIG && !write && !mmio_reaches(dev) &&
        vfmig_sabotage("config-stops"))
        memset(c->reply, 0xff, access.count);
    else if (access.region == VFMIG_REGION_CONFIG && write)
        pci_config_write(dev, access.offset, msg->payload + sizeof(access), access.count);
    else if (access.region == VFMIG_REGION_CONFIG)
        pci_config_read(dev, access.offset, c->reply, access.count);
    return region_reply(c, &msg->header, &access, write ? NULL : c->reply);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static int dma_map_command(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_dma_map map;

    memcpy(&map, msg->payload, sizeof(map));
    if (!vfmig_dev_mmio_allowed(&dev->mig) && vfmig_sabotage("map-only-running"))
        return -EBUSY;
    int fd = vfmig_fds_take(&msg->fds, 0);
    int r = dma_map_add(dev, &map, fd);
    if (fd >= 0)
        close(fd); /* the mapping keeps the file */
    return r < 0 ? r : reply_empty(c, msg);
}

/* Everything that can fail comes before the mapping goes. *ret_data: reply after the echo. */
static int prepare_unmap_bitmap(const struct client *c, const struct vfmig_user_dma_unmap *un,
                                const struct vfmig_user_bitmap *bitmap, uint8_t **ret_data,
                                uint32_t *ret_size)
{
    if (c->dev->log.mode == LOG_OFF || bitmap->pgsize < PAGE ||
        (bitmap->pgsize & (bitmap->pgsize - 1)) || !log_covers(c->dev, un->address, un->size))
        return -EINVAL;
    struct vfmig_user_bitmap told = {bitmap->pgsize, log_bitmap_bytes(un->size, bitmap->pgsize)};
    if (told.size > bitmap->size)
        return -EINVAL;
    if (told.size > c->client_max_data)
        return -E2BIG;
    *ret_size = (uint32_t)(sizeof(told) + told.size);
    *ret_data = calloc(1, *ret_size);
    if (!*ret_data)
        return -ENOMEM;
    memcpy(*ret_data, &told, sizeof(told));
    return 0;
}

/* Access by this process has stopped, so its bits are final; of messages under way the log is told
 * now what they may still write, and the answer waits for them. */
static void take_unmap_bitmap(struct vfmig_device *dev, const struct vfmig_user_dma_unmap *un,
                              uint8_t *data)
{
    const struct vfmig_user_bitmap *bitmap = (const void *)data;

    message_mark(dev, un->address, un->size);
    if (vfmig_sabotage("unmap-tells-nothing"))
        return;
    log_report(dev, un->address, un->size, bitmap->pgsize, (uint64_t *)(void *)(bitmap + 1));
}

static int dma_unmap_command(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct {
        struct vfmig_user_dma_unmap un;
        struct vfmig_user_bitmap bitmap;
    } VFMIG_PACKED req = {0};
    uint64_t id;
    uint8_t *data = NULL;
    uint32_t data_size = 0;
    int r = 0;

    memcpy(&req, msg->payload, msg->size < sizeof(req) ? msg->size : sizeof(req));
    bool all = req.un.flags & VFMIG_USER_UNMAP_F_ALL;
    if (req.un.flags & VFMIG_USER_UNMAP_F_BITMAP) {
        r = prepare_unmap_bitmap(c, &req.un, &req.bitmap, &data, &data_size);
        if (r < 0)
            return r;
        req.un.argsz = (uint32_t)sizeof(req.un) + data_size;
    }
    struct pending *p = server_defer(c, &msg->header, &req, sizeof(req.un), &id);
    if (!p)
        r = -EBUSY;
    else if (all)
        dma_map_clear(dev);
    else
        r = dma_map_remove(dev, req.un.address, req.un.size);
    if (r < 0) {
        free(data);
        if (p)
            p->client = NULL;
        return r;
    }
    if (data)
        take_unmap_bitmap(dev, &req.un, data);
    log_unmapped(dev, req.un.address, all ? 0 : req.un.size); /* from 0, 0 bytes: up to the top */
    p->data = data;
    p->data_size = data_size;
    p->unmap = true;
    dev->pending_unmaps++;
    p->iova = req.un.address;
    p->size = all ? 0 : req.un.size;
    if (!message_touches(dev, p->iova, p->size))
        server_answer(dev, id, 0);
    return 0; /* otherwise migrate_poll answers when its DMA messages have ended */
}

static int reset_command(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    uint64_t id;

    if (vfmig_sabotage("reset-ignored"))
        return reply_empty(c, msg);
    if (!server_defer(c, &msg->header, NULL, 0, &id))
        return -EBUSY;
    dev->keep_pci = c == &dev->control;
    migrate_event(dev, VFMIG_DEV_EVENT_RESET, 0, id);
    if (c == &dev->owner)
        control_owner_reset(dev);
    return 0;
}

static int set_irqs_command(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    if (!vfmig_dev_mmio_allowed(&dev->mig) && vfmig_sabotage("irqs-only-running"))
        return -EBUSY;
    int r = irq_set(dev, msg);

    if (vfmig_sabotage("irq-change-ends-save"))
        stream_drop(dev);
    return r < 0 ? r : reply_empty(c, msg);
}

/* Deliberate faults: messages that the wire layer has refused, answered as if they were right. */
static bool answers_bad(const struct vfmig_user_msg *msg)
{
    uint16_t command = msg->header.command;

    if (msg->size < 8)
        return vfmig_sabotage("short-command-answered");
    if (command == VFMIG_USER_MIG_DATA_READ)
        return vfmig_sabotage("data-read-argsz-ignored");
    if (command == VFMIG_USER_FEATURE)
        return vfmig_sabotage("report-of-nothing-answered") && msg->size > 24;
    return msg->size == 16 && vfmig_sabotage("unknown-command-answered");
}

static int handle(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    int r = vfmig_user_check_command(msg, false, c->max_data, NULL);

    if (r < 0) {
        COUNT(dev, bad_messages);
        if (answers_bad(msg))
            return reply_empty(c, msg);
        return r;
    }
    if (dev->drain_token && vfmig_sabotage("busy-while-draining"))
        return -EBUSY;
    if ((dev->call || dev->park.kind) && msg->header.command != VFMIG_USER_RESET &&
        vfmig_sabotage("busy-while-later"))
        return -EBUSY;
    control_before(c, msg);
    r = control_allowed(c, msg);
    if (r < 0)
        return r;
    switch ((enum vfmig_user_command)msg->header.command) {
    case VFMIG_USER_REGION_READ:
        return region_access(c, msg, false);
    case VFMIG_USER_REGION_WRITE:
        r = region_access(c, msg, true);
        if (r < 0 && vfmig_sabotage("failed-write-answered")) {
            struct vfmig_user_region_access none = {0};
            return region_reply(c, &msg->header, &none, NULL);
        }
        return r;
    case VFMIG_USER_DMA_MAP:
        return dma_map_command(c, msg);
    case VFMIG_USER_DMA_UNMAP:
        return dma_unmap_command(c, msg);
    case VFMIG_USER_GET_INFO:
        return get_info(c, msg);
    case VFMIG_USER_GET_REGION_INFO:
        return get_region_info(c, msg);
    case VFMIG_USER_GET_REGION_IO_FDS:
        return get_region_io_fds(c, msg);
    case VFMIG_USER_GET_IRQ_INFO:
        return get_irq_info(c, msg);
    case VFMIG_USER_SET_IRQS:
        return set_irqs_command(c, msg);
    case VFMIG_USER_RESET:
        return reset_command(c, msg);
    case VFMIG_USER_DIRTY_PAGES:
        if (!dev->features || dev->config.no_dma_log || vfmig_sabotage("log-told-refused"))
            return -EOPNOTSUPP;
        return log_dirty_pages(c, msg);
    case VFMIG_USER_FEATURE:
        return migrate_feature(c, msg);
    case VFMIG_USER_MIG_DATA_READ:
        return migrate_data_read(c, msg);
    case VFMIG_USER_MIG_DATA_WRITE:
        return migrate_data_write(c, msg);
    case VFMIG_USER_VERSION:
        return -EINVAL; /* agreed already */
    case VFMIG_USER_REGION_WRITE_MULTI:
    case VFMIG_USER_DMA_READ:
    case VFMIG_USER_DMA_WRITE:
    case VFMIG_USER_COMMAND_COUNT:
        break;
    }
    return vfmig_sabotage("unknown-command-answered") ? reply_empty(c, msg) : -EOPNOTSUPP;
}

/* Not in what the guest does all the time. */
static void migration_point(const struct vfmig_user_msg *msg, const char *when)
{
    switch (msg->header.command) {
    case VFMIG_USER_FEATURE:
    case VFMIG_USER_MIG_DATA_READ:
    case VFMIG_USER_MIG_DATA_WRITE:
    case VFMIG_USER_RESET:
        vfmig_sabotage_point(when, vfmig_user_command_name(msg->header.command));
    }
}

int command_handle(struct client *c, struct vfmig_user_msg *msg)
{
    migration_point(msg, "on-receipt");
    int r = handle(c, msg);
    migration_point(msg, "before-reply");
    return r;
}
