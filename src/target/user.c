/* SPDX-License-Identifier: BSD-3-Clause */
/* The vfio-user client: what both dialects have in common. */
#include "target/user.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/sabotage.h"
#include "core/state.h"
#include "target/user_private.h"

#define DEFAULT_TIMEOUT_NS UINT64_C(5000000000)
#define DEFAULT_WINDOW     (UINT32_C(16) << 20)
#define DEFAULT_RESET_NS   UINT64_C(30000000000)
#define RESET_PAUSE_NS     2000000   /* between looks at the state after a reset */

int user_call_until(struct user *u, struct vfmig_call *call, uint64_t deadline_ns,
                    struct vfmig_error *reterr)
{
    int r = vfmig_conn_call(u->conn, call, deadline_ns, reterr);

    if (r < 0)
        vfmig_error_prefix(reterr, "%s", u->base.info.name);
    return r;
}

int user_call(struct user *u, struct vfmig_call *call, struct vfmig_error *reterr)
{
    return user_call_until(u, call, vfmig_deadline_ns(u->opt.timeout_ns), reterr);
}

bool user_refused(struct user *u, const struct vfmig_error *err)
{
    return err->origin == VFMIG_ORIGIN_PEER && err->code != -ETIMEDOUT &&
           !vfmig_conn_failed(u->conn);
}

int user_settle(struct user *u, struct vfmig_error *reterr)
{
    struct vfmig_ticket *loading = u->loading;

    u->loading = NULL;
    int r = loading ? vfmig_conn_finish(u->conn, loading, reterr) : 0;
    if (r < 0)
        vfmig_error_prefix(reterr, "%s", u->base.info.name);
    return r;
}

int user_feature(struct user *u, uint32_t flags, void *data, uint32_t size, uint32_t room,
                 uint32_t *ret_size, uint64_t deadline_ns, struct vfmig_error *reterr)
{
    bool get = (flags & VFMIG_USER_FEATURE_GET) && !(flags & VFMIG_USER_FEATURE_PROBE);
    uint32_t reply_data = get ? room : size; /* SET and PROBE echo */
    struct vfmig_user_feature head = {
        .argsz = (uint32_t)sizeof(head) + (reply_data > size ? reply_data : size),
        .flags = flags,
    };
    struct vfmig_call call = {
        .command = VFMIG_USER_FEATURE,
        .request = &head,
        .request_size = sizeof(head),
        .data = data,
        .data_size = size,
        .reply = &head,
        .reply_room = sizeof(head),
        .reply_data = data,
        .reply_data_room = reply_data,
    };
    int r = user_call_until(u, &call, deadline_ns, reterr);

    if (ret_size)
        *ret_size = call.ret_size > sizeof(head) ? call.ret_size - (uint32_t)sizeof(head) : 0;
    return r;
}

/* ---- regions ---- */

int user_region_access(struct user *u, uint32_t region, uint64_t offset, void *read_to,
                       const void *write_from, uint32_t size, uint64_t deadline_ns,
                       struct vfmig_error *reterr)
{
    struct vfmig_user_region_access access, reply;
    uint32_t most = read_to ? u->max_data : u->max_write;

    for (uint32_t at = 0; at < size;) {
        uint32_t step = size - at < most ? size - at : most;
        access = (struct vfmig_user_region_access){offset + at, region, step};
        struct vfmig_call call = {
            .command = read_to ? VFMIG_USER_REGION_READ : VFMIG_USER_REGION_WRITE,
            .request = &access,
            .request_size = sizeof(access),
            .data = write_from ? (const char *)write_from + at : NULL,
            .data_size = write_from ? step : 0,
            .reply = &reply,
            .reply_room = sizeof(reply),
            .reply_data = read_to ? (char *)read_to + at : NULL,
            .reply_data_room = read_to ? step : 0,
        };
        int r = user_call_until(u, &call, deadline_ns, reterr);
        if (r < 0)
            return r;
        /* A driver is known to say so where it means a failure. */
        if (write_from && reply.count != step && !vfmig_sabotage("write-count-ignored"))
            return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_PEER, 0,
                                   "%s: a write to region %u took %u of %u bytes", u->base.info.name,
                                   region, reply.count, step);
        at += step;
    }
    return 0;
}

static int check_region(const struct user *u, uint32_t region, uint64_t offset, uint32_t size,
                        struct vfmig_error *reterr)
{
    const struct vfmig_target_info *info = &u->base.info;

    if (region < info->region_count && offset <= info->region_size[region] &&
        size <= info->region_size[region] - offset)
        return 0;
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                           "%s: %u bytes at 0x%llx are not in region %u", info->name, size,
                           (unsigned long long)offset, region);
}

int user_region_read(struct vfmig_target *t, uint32_t region, uint64_t offset, void *data,
                     uint32_t size, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    int r = check_region(u, region, offset, size, reterr);

    if (r < 0)
        return r;
    r = user_region_access(u, region, offset, data, NULL, size, vfmig_deadline_ns(u->opt.timeout_ns),
                           reterr);
    return r == -EINVAL && user_kept_config(u, region, offset, data, size) ? 0 : r;
}

int user_region_write(struct vfmig_target *t, uint32_t region, uint64_t offset, const void *data,
                      uint32_t size, bool posted, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    int r = check_region(u, region, offset, size, reterr);

    if (r < 0)
        return r;
    if (!posted || size > u->max_write)
        return user_region_access(u, region, offset, NULL, data, size,
                                  vfmig_deadline_ns(u->opt.timeout_ns), reterr);
    struct vfmig_user_region_access access = {offset, region, size};
    struct vfmig_call call = {
        .command = VFMIG_USER_REGION_WRITE,
        .no_reply = true,
        .request = &access,
        .request_size = sizeof(access),
        .data = data,
        .data_size = size,
    };
    return user_call(u, &call, reterr);
}

/* ---- memory ---- */

static int send_map(struct user *u, uint64_t iova, uint64_t size, int fd, uint64_t fd_offset,
                    uint32_t prot, struct vfmig_error *reterr)
{
    struct vfmig_user_dma_map map = {
        .argsz = sizeof(map),
        .flags = (prot & 1 ? VFMIG_USER_DMA_F_READ : 0) | (prot & 2 ? VFMIG_USER_DMA_F_WRITE : 0),
        .offset = fd >= 0 ? fd_offset : 0,
        .address = iova,
        .size = size,
    };
    const struct vfmig_fds fds = {.count = fd >= 0, .fd = {fd}};
    struct vfmig_call call = {
        .command = VFMIG_USER_DMA_MAP,
        .request = &map,
        .request_size = sizeof(map),
        .fds = &fds,
    };
    int r = user_call(u, &call, reterr);

    if (r == 0)
        user_note_map(u, iova, size, fd < 0);
    return r;
}

/* The answer comes when no access is in flight any more, which may take as long as a reset. */
static int send_unmap(struct user *u, uint64_t iova, uint64_t size, struct vfmig_error *reterr)
{
    struct vfmig_user_dma_unmap un = {.argsz = sizeof(un), .address = iova, .size = size};
    struct vfmig_call call = {
        .command = VFMIG_USER_DMA_UNMAP,
        .request = &un,
        .request_size = sizeof(un),
        .reply = &un,
        .reply_room = sizeof(un),
    };

    int r = user_call_until(u, &call, vfmig_deadline_ns(u->opt.reset_ns), reterr);
    if (r == 0)
        user_note_unmap(u, iova, size);
    return r;
}

int user_dma_map(struct vfmig_target *t, uint64_t iova, uint64_t size, int fd, uint64_t fd_offset,
                 uint32_t prot, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    uint64_t most = user_map_piece(u), at = 0;
    int r = 0;

    do {
        uint64_t step = size - at < most ? size - at : most;
        r = send_map(u, iova + at, step, fd, fd_offset + at, prot, reterr);
        at += r == 0 ? step : 0;
    } while (r == 0 && at < size);
    if (r < 0 && at)
        (void)user_dma_unmap(t, iova, at, NULL);
    return r;
}

int user_dma_unmap(struct vfmig_target *t, uint64_t iova, uint64_t size, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    uint64_t most = user_map_piece(u), at = 0;
    int r = 0;

    do {
        uint64_t step = size - at < most ? size - at : most;
        r = send_unmap(u, iova + at, step, reterr);
        at += step;
    } while (r == 0 && at < size);
    return r;
}

/* ---- interrupts ---- */

static int set_irqs(struct user *u, uint32_t flags, uint32_t index, uint32_t start, uint32_t count,
                    const struct vfmig_fds *fds, struct vfmig_error *reterr)
{
    struct vfmig_user_set_irqs irqs = {
        .argsz = sizeof(irqs),
        .flags = flags | VFMIG_USER_IRQ_ACTION_TRIGGER,
        .index = index,
        .start = start,
        .count = count,
    };
    struct vfmig_call call = {
        .command = VFMIG_USER_SET_IRQS,
        .request = &irqs,
        .request_size = sizeof(irqs),
        .fds = fds,
    };

    return user_call(u, &call, reterr);
}

/* A message says either "these vectors, these eventfds" or "these vectors, none": a mix goes in
 * runs, and each run in as many messages as the server takes descriptors. */
int user_send_irqs(struct user *u, uint32_t index, uint32_t start, uint32_t count, const int *fds,
                   struct vfmig_error *reterr)
{
    const struct vfmig_target_info *info = &u->base.info;
    int r = 0;

    if (!fds && start == 0 && count == info->irq_count[index])
        return count ? set_irqs(u, VFMIG_USER_IRQ_DATA_NONE, index, 0, 0, NULL, reterr) : 0;
    for (uint32_t at = 0; r == 0 && at < count;) {
        struct vfmig_fds run = {.count = 0};
        uint32_t n = 0;
        bool attach = fds && fds[at] >= 0;
        while (at + n < count && (fds && fds[at + n] >= 0) == attach &&
               (!attach || n < u->max_fds)) {
            if (attach)
                run.fd[run.count++] = fds[at + n];
            n++;
        }
        if (n == 0)
            return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_PEER, 0,
                                   "%s takes no descriptors", info->name);
        r = set_irqs(u, VFMIG_USER_IRQ_DATA_EVENTFD, index, start + at, n, &run, reterr);
        at += n;
    }
    return r;
}

int user_set_irqs(struct vfmig_target *t, uint32_t index, uint32_t start, uint32_t count,
                  const int *fds, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    const struct vfmig_target_info *info = &t->info;

    if (index >= VFMIG_IRQ_COUNT || start > info->irq_count[index] ||
        count > info->irq_count[index] - start)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%s has no vectors %u to %u of interrupt index %u", info->name,
                               start, start + count, index);
    int r = user_send_irqs(u, index, start, count, fds, reterr);
    if (r == -EINVAL && user_may_defer(u))
        return user_defer_irqs(u, index, start, count, fds, reterr);
    return r;
}

/* ---- reset ---- */

int user_send_reset(struct user *u, struct vfmig_error *reterr)
{
    struct vfmig_call call = {.command = VFMIG_USER_RESET};

    u->pending = 0;
    u->part_left = 0;
    u->unacknowledged = u->loading_part = u->ended = u->doubtful = false;
    u->halfway = u->held = u->saved_before = u->saved = false;
    u->asked = VFMIG_STATE_RUNNING;
    return user_call_until(u, &call, vfmig_deadline_ns(u->opt.reset_ns), reterr);
}

/* From any state to R (X10). libvfio-user refuses a reset in STOP and STOP_COPY, and its reset
 * leaves the state alone: both are put right by asking for RUNNING. */
int user_reset(struct vfmig_target *t, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    struct vfmig_error err = {.code = 0};

    (void)user_settle(u, NULL); /* of no interest any more */
    int r = user_send_reset(u, &err);

    if (r == -EINVAL && t->info.features &&
        t->ops->set_state(t, VFMIG_STATE_RUNNING, u->opt.reset_ns, NULL) == 0)
        r = user_send_reset(u, &err);
    if (r < 0) {
        if (reterr)
            *reterr = err;
        return r;
    }
    if (t->info.features == 0 || vfmig_sabotage("reset-is-believed"))
        return 0;
    return vfmig_target_await_running(t, u->opt.reset_ns, RESET_PAUSE_NS, reterr);
}

/* ---- logs ---- */

/* The bitmap of a piece and its head fit one message of any server (LVU: argsz of 1 MiB). */
uint64_t user_report_bytes(const struct user *u)
{
    return u->max_data > 4096 ? (u->max_data - 64) & ~UINT64_C(7) : 4032;
}

/* Bits of another range, or of other pages, would be taken for those that were asked for. */
int user_same_report(const struct user *u, const struct vfmig_user_feature_log_report *asked,
                     const struct vfmig_user_feature_log_report *told, struct vfmig_error *reterr)
{
    if (!memcmp(asked, told, sizeof(*told)) || vfmig_sabotage("report-head-ignored"))
        return 0;
    return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                           "%s: a log report of 0x%llx bytes at 0x%llx in pages of %llu was not asked for",
                           u->base.info.name, (unsigned long long)told->length,
                           (unsigned long long)told->iova, (unsigned long long)told->page_size);
}

int user_report_range(struct user *u, user_report_fn fetch, uint64_t iova, uint64_t size,
                      uint64_t page_size, uint64_t *bitmap, struct vfmig_error *reterr)
{
    uint64_t most_bytes = user_report_bytes(u);
    uint64_t pages, piece_bytes;

    if (page_size == 0 || (page_size & (page_size - 1)) || size == 0 ||
        __builtin_mul_overflow(most_bytes * 8, page_size, &piece_bytes))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "a log of %llu bytes in pages of %llu makes no sense",
                               (unsigned long long)size, (unsigned long long)page_size);
    uint64_t *words = NULL;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < size;) {
        uint64_t step = size - at < piece_bytes ? size - at : piece_bytes;
        uint32_t bytes = (uint32_t)user_bitmap_bytes(step, page_size);
        uint64_t *out = bitmap + at / page_size / 64, *in = out;
        if (!vfmig_bitmap_is_clean(out, bytes / 8)) { /* what is there is kept */
            in = words ? words : (words = malloc((size_t)bytes)); /* the first piece is the largest */
            if (!in)
                return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                                       "no memory for a dirty bitmap");
        }
        r = fetch(u, iova + at, step, page_size, in, bytes, reterr);
        if (r < 0) {
            if (in == out)
                memset(out, 0, bytes);
            break;
        }
        pages = step / page_size + (step % page_size != 0);
        if (pages % 64) /* bits beyond the range are not to be trusted */
            in[pages / 64] &= (UINT64_C(1) << (pages % 64)) - 1;
        for (uint32_t w = 0; in != out && w < bytes / 8; w++)
            out[w] |= in[w];
        at += step;
    }
    free(words);
    return r;
}

/* ---- life ---- */

void user_close(struct vfmig_target *t)
{
    struct user *u = (struct user *)t;

    user_twin_stop(u);
    user_late_forget(u);
    pthread_mutex_destroy(&u->late.lock);
    if (u->loading)
        vfmig_conn_end(u->conn, NULL);
    (void)user_settle(u, NULL);
    vfmig_conn_free(u->conn);
    if (u->window)
        munmap(u->window, (size_t)u->window_size);
    if (u->shared)
        munmap(u->shared, (size_t)u->shared_size * u->shared_count);
    user_quirks_done(u);
    free(u->dma_buffer);
    free(u);
}

void vfmig_user_set_own(struct vfmig_target *target, struct vfmig_tracker *own)
{
    atomic_store(&((struct user *)target)->own, own);
}

bool vfmig_user_has_twin(const struct vfmig_target *target)
{
    bool user = target->ops == &user_feature_ops || target->ops == &user_region_ops;

    return user && ((const struct user *)target)->twin != NULL;
}

static void fill_options(struct user *u, const struct vfmig_user_options *opt)
{
    uint32_t *most = &u->opt.max_data_xfer;

    if (opt)
        u->opt = *opt;
    if (u->opt.timeout_ns == 0)
        u->opt.timeout_ns = DEFAULT_TIMEOUT_NS;
    if (u->opt.reset_ns == 0)
        u->opt.reset_ns = DEFAULT_RESET_NS;
    if (*most == 0)
        *most = VFMIG_MAX_DATA_XFER;
    if (*most < VFMIG_USER_DATA_MIN)
        *most = VFMIG_USER_DATA_MIN;
    if (*most > VFMIG_MAX_DATA_XFER_CAP)
        *most = VFMIG_MAX_DATA_XFER_CAP;
    if (u->opt.window == 0)
        u->opt.window = DEFAULT_WINDOW;
    if (u->opt.window > VFMIG_MAX_DATA_XFER_CAP)
        u->opt.window = VFMIG_MAX_DATA_XFER_CAP;
    atomic_init(&u->own, u->opt.own);
    u->max_data = *most;
}

/* libvfio-user keeps the migration state of a client that is gone, and in STOP refuses to
 * describe itself: a device that is not running is set running first. What half a stream was loaded
 * into does not go there by itself. */
static int wake(struct user *u, struct vfmig_error *reterr)
{
    struct vfmig_user_feature_state state = {.device_state = VFMIG_STATE_RUNNING};
    const struct vfmig_user_feature_state running = state;
    uint64_t deadline_ns = vfmig_deadline_ns(u->opt.reset_ns);
    struct vfmig_error err = {.code = 0};
    uint32_t size = 0;
    int r = user_feature(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DEVICE_STATE, &state, 0,
                         sizeof(state), &size, deadline_ns, &err);

    if (r == 0 && size == sizeof(state) && state.device_state != VFMIG_STATE_RUNNING) {
        if (state.device_state == VFMIG_STATE_ERROR)
            return user_send_reset(u, reterr);
        for (unsigned tries = 0; tries < 2; tries++) {
            state = running;
            r = user_feature(u, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE, &state,
                             sizeof(state), sizeof(state), NULL, deadline_ns, reterr);
            if (r == 0 || tries == 1 || user_send_reset(u, NULL) < 0)
                break;
        }
        return r;
    }
    if (r == 0 || user_refused(u, &err))
        return 0;
    if (reterr)
        *reterr = err;
    return r;
}

int vfmig_user_open(const char *path, const struct vfmig_user_options *opt,
                    struct vfmig_target **ret_target, struct vfmig_error *reterr)
{
    struct user *u = calloc(1, sizeof(*u));
    char address[128];
    int fd;

    if (!u)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a target");
    fill_options(u, opt);
    pthread_mutex_init(&u->late.lock, NULL);
    pthread_mutex_init(&u->maps_lock, NULL);
    pthread_mutex_init(&u->deferred_lock, NULL);
    u->asked = VFMIG_STATE_RUNNING;
    snprintf(u->base.info.name, sizeof(u->base.info.name), "%s", path);
    u->dma_buffer = malloc(u->max_data);
    snprintf(address, sizeof(address), "%s%s", strncmp(path, "unix:", 5) ? "unix:" : "", path);
    int r = u->dma_buffer ? vfmig_sock_connect(strlen(path) < sizeof(address) - 5 ? address : path,
                                               vfmig_deadline_ns(u->opt.timeout_ns), &fd, reterr)
                          : vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                                            "no memory for a target");
    if (r == 0)
        r = vfmig_conn_new(fd, u->max_data, user_main_serve, u, &u->conn, reterr);
    if (r == 0)
        r = user_negotiate(u, reterr);
    if (r == 0)
        r = wake(u, reterr);
    if (r == 0)
        r = user_describe(u, reterr);
    if (r == 0)
        r = user_choose_dialect(u, reterr);
    if (r == 0 && u->opt.incoming)
        r = user_try_halt(u, reterr);
    if (r < 0) {
        user_close(&u->base);
        return r;
    }
    *ret_target = &u->base;
    return 0;
}
