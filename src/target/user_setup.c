/* SPDX-License-Identifier: BSD-3-Clause */
/* What is asked of a vfio-user server before it is used. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/guard.h"
#include "base/sabotage.h"
#include "core/state.h"
#include "target/user_private.h"

#define MAX_SERVER_REGIONS 100u /* what other clients take, too; ours to look at are the first 16 */
#define MAX_REGION_INFO    4096u
#define MAX_SPARSE_AREAS   64u

/* ---- VERSION ---- */

static int take_twin(struct user *u, const struct vfmig_user_caps *theirs, struct vfmig_fds *fds,
                     struct vfmig_error *reterr)
{
    if (!theirs->twin_socket)
        return 0;
    if (u->opt.no_twin)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                               "VERSION: a twin socket that was not agreed");
    int fd = theirs->has_twin_fd_index ? vfmig_fds_take(fds, theirs->twin_fd_index) : -1;
    if (fd < 0)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                               "VERSION: the twin socket is missing");
    return user_twin_start(u, fd, reterr);
}

/* The shared windows of the feature dialect. The memory must be as large as they are and stay so:
 * a page that goes away would end this process. */
static int take_window(struct user *u, const struct vfmig_user_caps *theirs, struct vfmig_fds *fds,
                       struct vfmig_error *reterr)
{
    uint64_t size = (uint64_t)theirs->window * theirs->windows;
    struct stat st;

    if (!theirs->window)
        return 0;
    int fd = theirs->has_window_fd_index ? vfmig_fds_take(fds, theirs->window_fd_index) : -1;
    int seals = fd >= 0 ? fcntl(fd, F_GET_SEALS) : -1;
    bool good = fd >= 0 && !u->opt.no_window && theirs->window <= u->opt.window && seals >= 0 &&
                (seals & F_SEAL_SHRINK) && fstat(fd, &st) == 0 && st.st_size >= 0 &&
                (uint64_t)st.st_size >= size;
    void *map = good ? mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                     : MAP_FAILED;
    if (fd >= 0)
        close(fd);
    if (!good)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                               "VERSION: a shared window that was not agreed");
    if (map == MAP_FAILED)
        return 0; /* there are messages */
    u->shared = map;
    u->shared_size = theirs->window;
    u->shared_count = theirs->windows;
    return 0;
}

/* VERSION told who the server is; the rest is taken at its word, within what we offered. */
static int settle(struct user *u, const struct vfmig_user_caps *theirs, struct vfmig_fds *fds,
                  struct vfmig_error *reterr)
{
    uint32_t offered = u->opt.max_data_xfer;

    u->max_data = theirs->max_data_xfer_size < offered ? theirs->max_data_xfer_size : offered;
    u->max_fds = theirs->max_msg_fds < VFMIG_MAX_MSG_FDS ? theirs->max_msg_fds : VFMIG_MAX_MSG_FDS;
    u->max_write = u->max_data < USER_CAREFUL_BYTES ? u->max_data : USER_CAREFUL_BYTES;
    u->log_region = theirs->has_migration;
    u->region_pgsize = theirs->migration_pgsize;
    u->base.info.max_data_xfer = u->max_data;
    int r = take_window(u, theirs, fds, reterr);
    if (r == 0)
        r = take_twin(u, theirs, fds, reterr);
    for (uint32_t i = 0; r == 0 && i < fds->count; i++)
        if (fds->fd[i] >= 0)
            r = vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                                "VERSION: a descriptor that was not agreed");
    return r;
}

static int agree(struct user *u, const char *answer, size_t size, struct vfmig_fds *fds,
                 struct vfmig_error *reterr)
{
    struct vfmig_user_caps theirs;
    int r = vfmig_user_caps_parse(answer, size, &theirs, reterr);

    if (r == 0)
        r = settle(u, &theirs, fds, reterr);
    if (r < 0)
        vfmig_error_prefix(reterr, "%s", u->base.info.name);
    return r;
}

int user_negotiate(struct user *u, struct vfmig_error *reterr)
{
    struct vfmig_user_version version = {VFMIG_USER_MAJOR, VFMIG_USER_MINOR};
    struct vfmig_user_caps ours;
    char text[512], *answer = malloc(VFMIG_MAX_JSON);
    struct vfmig_fds fds = {.count = 0};

    if (!answer)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for VERSION");
    vfmig_user_caps_default(&ours);
    ours.has_max_msg_fds = ours.has_max_data_xfer_size = ours.has_max_dma_maps = true;
    ours.has_pgsizes = ours.has_migration = true;
    ours.max_msg_fds = VFMIG_MAX_MSG_FDS;
    ours.max_data_xfer_size = u->opt.max_data_xfer;
    ours.twin_socket = !u->opt.no_twin;
    ours.window = u->opt.no_window ? 0 : u->opt.window;
    int size = vfmig_user_caps_format(&ours, text, sizeof(text));
    struct vfmig_call call = {
        .command = VFMIG_USER_VERSION,
        .request = &version,
        .request_size = sizeof(version),
        .data = text,
        .data_size = size > 0 ? (uint32_t)size : 0,
        .reply = &version,
        .reply_room = sizeof(version),
        .reply_data = answer,
        .reply_data_room = VFMIG_MAX_JSON,
        .ret_fds = &fds,
    };
    int r = user_call(u, &call, reterr);
    if (r == 0 && (version.major != VFMIG_USER_MAJOR || version.minor > VFMIG_USER_MINOR))
        r = vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                            "%s: VERSION %u.%u was answered", u->base.info.name, version.major,
                            version.minor);
    if (r == 0)
        r = agree(u, answer, call.ret_size - sizeof(version), &fds, reterr);
    vfmig_fds_close(&fds);
    free(answer);
    return r;
}

/* ---- description ---- */

/* Maps what the server lets us map of the migration region: the largest area is enough. Failing
 * is fine, every byte can be had by message. */
static void map_window(struct user *u, const void *info, uint32_t size, int fd)
{
    const struct {
        struct vfmig_user_cap cap;
        uint32_t count, reserved;
        struct {
            uint64_t offset, size;
        } area[];
    } VFMIG_PACKED *sparse;
    const struct vfmig_user_region_info *head = info;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), best = 0, best_size = 0, file;
    uint32_t cap_size = 0;

    sparse = vfmig_user_find_cap(info, size, VFMIG_USER_CAP_SPARSE_MMAP, &cap_size);
    if (!sparse || cap_size < sizeof(*sparse) || sparse->count > MAX_SPARSE_AREAS ||
        cap_size - sizeof(*sparse) < sparse->count * sizeof(sparse->area[0]))
        return;
    for (uint32_t i = 0; i < sparse->count; i++) {
        uint64_t offset = sparse->area[i].offset, bytes = sparse->area[i].size;
        if (offset < head->size && bytes <= head->size - offset && bytes > best_size) {
            best = offset;
            best_size = bytes;
        }
    }
    if (best_size == 0 || best % page || u->opt.no_window ||
        best_size > (uint64_t)VFMIG_MAX_DATA_XFER_CAP * VFMIG_MAX_WINDOWS ||
        __builtin_add_overflow(head->offset, best, &file) || file % page || file > INT64_MAX)
        return;
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (fstat(fd, &st) < 0 || st.st_size < 0 || (uint64_t)st.st_size < file ||
        (uint64_t)st.st_size - file < best_size)
        return;
    void *map = mmap(NULL, (size_t)best_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)file);
    if (map == MAP_FAILED)
        return;
    vfmig_guard_arm();
    /* Sealed pages stay. Others may go at any time: they are copied with care, once. */
    u->sealed = seals >= 0 && (seals & F_SEAL_SHRINK);
    u->window = map;
    u->window_offset = best;
    u->window_size = best_size;
}

static void look_at_caps(struct user *u, uint32_t index, const void *info, uint32_t size, int fd)
{
    const struct vfmig_user_region_info *head = info;
    uint32_t cap_size = 0;
    const struct vfmig_user_cap_type *type =
        vfmig_user_find_cap(info, size, VFMIG_USER_CAP_TYPE, &cap_size);

    if (u->mig_index || index < VFMIG_REGION_MIGRATION || !type || cap_size < sizeof(*type) ||
        type->type != VFMIG_USER_REGION_TYPE_MIGRATION ||
        type->subtype != VFMIG_USER_REGION_SUBTYPE_MIGRATION ||
        head->size <= sizeof(struct vfmig_user_mig_region))
        return;
    u->mig_index = index;
    u->mig_size = head->size;
    u->mig_ndma = vfmig_user_find_cap(info, size, VFMIG_USER_CAP_NDMA, &cap_size) != NULL;
    if (fd >= 0 && (head->flags & VFMIG_USER_REGION_F_MMAP))
        map_window(u, info, size, fd);
}

static int ask_region(struct user *u, uint32_t index, void *info, uint32_t room,
                      struct vfmig_fds *fds, uint32_t *ret_size, struct vfmig_error *reterr)
{
    struct vfmig_user_region_info request = {.argsz = room, .index = index};
    struct vfmig_call call = {
        .command = VFMIG_USER_GET_REGION_INFO,
        .request = &request,
        .request_size = sizeof(request),
        .reply = info,
        .reply_room = room,
        .ret_fds = fds,
    };
    int r = user_call(u, &call, reterr);

    *ret_size = call.ret_size;
    return r;
}

static int describe_region(struct user *u, uint32_t index, struct vfmig_error *reterr)
{
    union {
        struct vfmig_user_region_info info;
        uint8_t bytes[MAX_REGION_INFO];
    } buf;
    struct vfmig_fds fds = {.count = 0};
    uint32_t size;
    int r = ask_region(u, index, &buf, sizeof(buf.info), &fds, &size, reterr);

    /* Capabilities and the descriptor come only when there is room for them. */
    if (r == 0 && buf.info.argsz > sizeof(buf.info) && buf.info.argsz <= sizeof(buf)) {
        vfmig_fds_close(&fds);
        r = ask_region(u, index, &buf, buf.info.argsz, &fds, &size, reterr);
    }
    if (r < 0) {
        vfmig_fds_close(&fds);
        return r;
    }
    u->base.info.region_size[index] = buf.info.size;
    u->region_flags[index] = buf.info.flags;
    int fd = vfmig_fds_take(&fds, 0);
    look_at_caps(u, index, &buf, size, fd);
    if (fd >= 0)
        close(fd);
    vfmig_fds_close(&fds);
    return 0;
}

static int describe_irqs(struct user *u, uint32_t count, struct vfmig_error *reterr)
{
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < count && i < VFMIG_IRQ_COUNT; i++) {
        struct vfmig_user_irq_info info = {.argsz = sizeof(info), .index = i};
        struct vfmig_call call = {
            .command = VFMIG_USER_GET_IRQ_INFO,
            .request = &info,
            .request_size = sizeof(info),
            .reply = &info,
            .reply_room = sizeof(info),
        };
        r = user_call(u, &call, reterr);
        if (r == 0 && info.count > VFMIG_MAX_IRQS)
            r = vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                                "%s: interrupt index %u has %u vectors", u->base.info.name, i,
                                info.count);
        if (r == 0)
            u->base.info.irq_count[i] = info.count;
    }
    return r;
}

static int describe_pci(struct user *u, struct vfmig_error *reterr)
{
    struct vfmig_target_info *info = &u->base.info;
    uint8_t config[VFMIG_TARGET_PCI_HEAD];

    if (info->region_size[VFMIG_REGION_CONFIG] < sizeof(config))
        return 0;
    int r = user_region_read(&u->base, VFMIG_REGION_CONFIG, 0, config, sizeof(config), reterr);
    if (r < 0)
        return r;
    vfmig_target_take_pci(info, config);
    return 0;
}

int user_describe(struct user *u, struct vfmig_error *reterr)
{
    struct vfmig_user_device_info info = {.argsz = sizeof(info)};
    struct vfmig_call call = {
        .command = VFMIG_USER_GET_INFO,
        .request = &info,
        .request_size = sizeof(info),
        .reply = &info,
        .reply_room = sizeof(info),
    };
    int r = user_call(u, &call, reterr);

    if (r == 0 && info.num_regions > MAX_SERVER_REGIONS)
        r = vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0, "%s: %u regions are too many",
                            u->base.info.name, info.num_regions);
    if (r < 0)
        return r;
    u->base.info.region_count = info.num_regions < 16 ? info.num_regions : 16;
    for (uint32_t i = 0; r == 0 && i < u->base.info.region_count; i++)
        r = describe_region(u, i, reterr);
    if (r == 0)
        r = describe_irqs(u, info.num_irqs, reterr);
    if (r == 0 && (info.flags & VFMIG_USER_INFO_F_PCI))
        r = describe_pci(u, reterr);
    return r;
}

/* ---- dialects ---- */

/* 1: the server serves all operations in flags on the feature; 0: it refuses. */
static int probe(struct user *u, uint32_t flags, struct vfmig_error *reterr)
{
    struct vfmig_error err = {.code = 0};
    int r = user_feature(u, flags | VFMIG_USER_FEATURE_PROBE, NULL, 0, 0, NULL,
                         vfmig_deadline_ns(u->opt.timeout_ns), &err);

    if (r == 0)
        return 1;
    if (user_refused(u, &err))
        return 0;
    if (reterr)
        *reterr = err;
    return r;
}

/* *ret_flags: VFMIG_FEATURE_*, 0 when the server has no feature dialect. */
static int ask_migration(struct user *u, uint32_t *ret_flags, struct vfmig_error *reterr)
{
    struct vfmig_user_feature_migration data = {.flags = 0};
    struct vfmig_error err = {.code = 0};
    uint32_t size;
    int r = user_feature(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_MIGRATION, &data, 0, sizeof(data),
                         &size, vfmig_deadline_ns(u->opt.timeout_ns), &err);

    *ret_flags = 0;
    if (r < 0 && user_refused(u, &err))
        return 0;
    if (r < 0) {
        if (reterr)
            *reterr = err;
        return r;
    }
    /* Flags that we do not know are additions; a set without STOP_COPY is none. */
    uint32_t known = (uint32_t)data.flags & (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA |
                                             VFMIG_FEATURE_PRE_COPY);
    if (size == sizeof(data) && vfmig_features_valid(known))
        *ret_flags = known;
    return 0;
}

/* A server of this project reads bodies in pieces. It is known by what no other server has: both
 * dialects on one device, feature 9 over vfio-user, or region capability 6. */
static void settle_ours(struct user *u, uint32_t flags)
{
    u->ours = (flags && u->mig_index) || u->data_size || u->mig_ndma;
    if (u->ours || vfmig_sabotage("large-requests"))
        u->max_write = u->max_data;
}

static int choose_feature(struct user *u, uint32_t flags, struct vfmig_error *reterr)
{
    struct vfmig_target_info *info = &u->base.info;
    int log = probe(u, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_START, reterr);

    if (log == 1)
        log = probe(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_LOG_REPORT, reterr);
    if (log < 0)
        return log;
    info->dialect = VFMIG_DIALECT_FEATURE;
    info->features = flags;
    info->dma_log = log == 1;
    info->log_page_size = 4096;
    info->max_data_xfer = u->shared_size > u->max_data ? u->shared_size : u->max_data;
    info->data_in_place = u->shared != NULL;
    info->quiet = !(flags & VFMIG_FEATURE_NDMA) ? VFMIG_QUIET_NONE
                  : u->mig_ndma || vfmig_sabotage("p2p-is-all") ? VFMIG_QUIET_ALL
                                                : VFMIG_QUIET_P2P;
    u->base.ops = &user_feature_ops;
    return 0;
}

static int choose_region(struct user *u)
{
    struct vfmig_target_info *info = &u->base.info;
    uint64_t room = u->mig_size < VFMIG_MAX_DATA_XFER_CAP ? u->mig_size : VFMIG_MAX_DATA_XFER_CAP;

    info->dialect = VFMIG_DIALECT_REGION;
    /* C22: SR is always accepted, its stream may be empty. */
    info->features = VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_PRE_COPY |
                     (u->mig_ndma ? VFMIG_FEATURE_NDMA : 0);
    info->quiet = u->mig_ndma ? VFMIG_QUIET_ALL : VFMIG_QUIET_NONE;
    info->dma_log = u->log_region;
    info->log_page_size = u->region_pgsize;
    info->max_data_xfer = u->max_data > room ? u->max_data : room; /* a portion comes whole */
    info->data_in_place = u->window && u->sealed;
    u->base.ops = &user_region_ops;
    return 0;
}

int user_choose_dialect(struct user *u, struct vfmig_error *reterr)
{
    enum vfmig_dialect want = u->opt.dialect;
    uint32_t flags = 0;
    int r = ask_migration(u, &flags, reterr);

    if (r == 0 && (flags || u->mig_index)) {
        r = probe(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DATA_SIZE, reterr);
        u->data_size = r == 1;
    }
    if (r < 0)
        return r;
    settle_ours(u, flags);
    if (flags && want != VFMIG_DIALECT_REGION)
        return choose_feature(u, flags, reterr);
    if (u->mig_index && want != VFMIG_DIALECT_FEATURE)
        return choose_region(u);
    if (want != VFMIG_DIALECT_AUTO)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "%s: the device does not migrate in the %s dialect",
                               u->base.info.name,
                               want == VFMIG_DIALECT_FEATURE ? "feature" : "region");
    u->base.ops = &user_feature_ops;
    return 0;
}

int vfmig_user_set_dialect(struct vfmig_target *target, enum vfmig_dialect dialect,
                           struct vfmig_error *reterr)
{
    struct user *u = (struct user *)target;
    enum vfmig_dialect before = u->opt.dialect;

    u->opt.dialect = dialect;
    u->pending = 0;
    u->unacknowledged = u->ended = u->doubtful = false;
    int ret = user_choose_dialect(u, reterr);
    if (ret)
        u->opt.dialect = before;
    return ret;
}
