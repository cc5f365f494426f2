/* SPDX-License-Identifier: BSD-3-Clause */
/* The feature dialect ("v2") of kernel devices: DEVICE_FEATURE and a descriptor for the data. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/sabotage.h"
#include "core/state.h"
#include "io/sock.h"
#include "target/kernel_private.h"

#define NS_PER_MS UINT64_C(1000000)

/* The head and data behind it. */
struct feature_buffer {
    struct kernel_feature head;
    uint8_t data[sizeof(struct kernel_log_report)];
} __attribute__((aligned(8)));

int kernel_raw_feature(struct kernel *k, uint32_t argsz, uint32_t flags, void *data, size_t size)
{
    struct feature_buffer buffer = {.head = {.argsz = argsz, .flags = flags}};

    if (size > sizeof(buffer.data) || argsz > sizeof(buffer.head) + size)
        return -E2BIG;
    if (size)
        memcpy(buffer.data, data, size);
    int r = kernel_ioctl(k, k->device, KERNEL_FEATURE, &buffer);
    if (size)
        memcpy(data, buffer.data, size);
    return r;
}

int kernel_feature(struct kernel *k, uint32_t flags, void *data, uint32_t size)
{
    int r =
        kernel_raw_feature(k, (uint32_t)sizeof(struct kernel_feature) + size, flags, data, size);

    return r > 0 ? -EPROTO : r; /* no feature has a count: it would pass for success with some */
}

static bool offers(struct kernel *k, uint32_t flags)
{
    return kernel_feature(k, KERNEL_FEATURE_PROBE | flags, NULL, 0) == 0;
}

uint32_t kernel_feature_probe(struct kernel *k)
{
    uint64_t flags = 0;

    if (kernel_feature(k, KERNEL_FEATURE_GET | KERNEL_F_MIGRATION, &flags, sizeof(flags)) < 0)
        return 0;
    /* Flags that came after us are of no use. What is left must be one of the sets of the uAPI. */
    uint32_t known =
        (uint32_t)flags & (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY);
    if (!vfmig_features_valid(known))
        return 0;
    k->data_size = offers(k, KERNEL_FEATURE_GET | KERNEL_F_DATA_SIZE);
    return known;
}

/* ---- state and session ---- */

void kernel_session_end(struct kernel *k)
{
    kernel_close_file(k, &k->data_fd);
    k->pending = k->part_left = 0;
    k->loading_part = false;
}

static bool has_session(uint32_t state)
{
    return state == VFMIG_STATE_STOP_COPY || state == VFMIG_STATE_RESUMING ||
           state == VFMIG_STATE_PRE_COPY || state == VFMIG_STATE_PRE_COPY_NDMA;
}

static int read_state(struct kernel *k, enum vfmig_state *ret_state, struct vfmig_error *reterr)
{
    struct kernel_state data = {.data_fd = -1};
    int r = kernel_feature(k, KERNEL_FEATURE_GET | KERNEL_F_DEVICE_STATE, &data, sizeof(data));

    if (r < 0)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_DEVICE, 0, "%s: its state: %s",
                               k->base.info.name, strerror(-r));
    if (data.state >= VFMIG_STATE_COUNT)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_DEVICE, 0,
                               "%s says that its state is %u", k->base.info.name, data.state);
    *ret_state = (enum vfmig_state)data.state;
    return 0;
}

static int get_state(struct vfmig_target *t, enum vfmig_state *ret_state,
                     struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    int r = kernel_settle(k, reterr);

    return r < 0 ? r : read_state(k, ret_state, reterr);
}

/* Takes the descriptor that a change gave, if the new state has one. */
static int adopt(struct kernel *k, uint32_t state, int fd, struct vfmig_error *reterr)
{
    const char *name = k->base.info.name;

    /* Out of Z, or into it, no session goes on. */
    if (!has_session(state) ||
        (state == VFMIG_STATE_RESUMING) != (k->asked == VFMIG_STATE_RESUMING))
        kernel_session_end(k);
    if (!has_session(state)) {
        /* Not closed: whoever gives one here does not mean a descriptor, and it may be anybody's.
         */
        return fd < 0 ? 0
                      : vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_DEVICE, state,
                                        "%s: %s has no data, and a descriptor of it was given",
                                        name, vfmig_state_name(state));
    }
    if (fd < 0)
        return k->data_fd >= 0 ? 0
                               : vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_DEVICE, state,
                                                 "%s gave no descriptor for the data of %s", name,
                                                 vfmig_state_name(state));
    kernel_session_end(k);
    k->data_fd = fd;
    int r = k->calls->nonblock(k->opt.opaque, fd);
    if (r == 0)
        return 0;
    kernel_session_end(k);
    return vfmig_error_set(reterr, r, VFMIG_ORIGIN_KERNEL, state, "%s: the data's descriptor: %s",
                           name, strerror(-r));
}

/* A kernel_work. After a failure the device may be anywhere on the way: a session that it has left
 * is of no use to anybody, one that it is still in goes on. */
static int change_state(struct kernel *k, uint32_t state, struct vfmig_error *reterr)
{
    struct kernel_state data = {.state = state, .data_fd = -1};
    enum vfmig_state now = VFMIG_STATE_ERROR;
    int r = kernel_feature(k, KERNEL_FEATURE_SET | KERNEL_F_DEVICE_STATE, &data, sizeof(data));

    if (r == 0) {
        r = adopt(k, state, data.data_fd, reterr);
        k->asked = (enum vfmig_state)state;
        return r;
    }
    vfmig_error_set(reterr, r, VFMIG_ORIGIN_DEVICE, state, "%s: change to %s: %s",
                    k->base.info.name, vfmig_state_name(state), strerror(-r));
    if (read_state(k, &now, NULL) < 0 || !has_session(now))
        kernel_session_end(k);
    else
        k->asked = now;
    return r;
}

static int set_state(struct vfmig_target *t, enum vfmig_state state, uint64_t timeout_ns,
                     struct vfmig_error *reterr)
{
    if (state == VFMIG_STATE_ERROR || !vfmig_state_supported(t->info.features, state))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, state,
                               "%s has no state %s to go to", t->info.name,
                               vfmig_state_name(state));
    return kernel_work_until((struct kernel *)t, change_state, state, timeout_ns, reterr);
}

/* ---- data ---- */

static int need_session(struct kernel *k, struct vfmig_error *reterr)
{
    int r = kernel_settle(k, reterr);

    if (r < 0 || k->data_fd >= 0)
        return r;
    return vfmig_error_set(reterr, -EBADF, VFMIG_ORIGIN_LOCAL, k->asked,
                           "%s: no data is moved in %s", k->base.info.name,
                           vfmig_state_name(k->asked));
}

/* Until the descriptor is ready: a driver may fetch the data first. *deadline_ns: made 0 when it is
 * the last time, because one that is ready and takes or gives nothing would be asked for ever. */
static int await(struct kernel *k, short events, uint64_t *deadline_ns, struct vfmig_error *reterr)
{
    uint64_t now = vfmig_now_ns(), left = now < *deadline_ns ? *deadline_ns - now : 0;
    int ms = left / NS_PER_MS < INT32_MAX ? (int)(left / NS_PER_MS) + (left > 0) : INT32_MAX;
    int r = *deadline_ns ? k->calls->poll(k->opt.opaque, k->data_fd, events, ms) : 0;

    if (r == 0 && left == 0)
        return vfmig_error_set(reterr, -ETIMEDOUT, VFMIG_ORIGIN_DEVICE, k->asked,
                               "%s: its data did not move in time", k->base.info.name);
    if (r < 0 && r != -EINTR)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_KERNEL, k->asked, "%s: its data: %s",
                               k->base.info.name, strerror(-r));
    if (left == 0)
        *deadline_ns = 0;
    return 0;
}

/* A read may be short at any time; only nothing, without R, is the end. With R nothing is ENOMSG,
 * and some drivers say 0 there: neither ends anything. */
static ssize_t save(struct vfmig_target *t, void *buf, size_t size, struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    uint64_t deadline_ns = vfmig_deadline_ns(k->opt.timeout_ns);
    int r = need_session(k, reterr);

    while (r == 0) {
        bool running = k->asked != VFMIG_STATE_STOP_COPY;
        ssize_t n = k->calls->read(k->opt.opaque, k->data_fd, buf, size);
        if (n > (ssize_t)size)
            return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_DEVICE, k->asked,
                                   "%s read %lld bytes where %zu were asked for", t->info.name,
                                   (long long)n, size);
        if (n >= 0)
            return n;
        if ((n == -ENOMSG && !vfmig_sabotage("kernel-enomsg-is-an-error")) || n == -EAGAIN) {
            if (running)
                return 0;
            if (n == -EAGAIN && (r = await(k, POLLIN, &deadline_ns, reterr)) == 0)
                continue;
        }
        if (r == 0)
            r = vfmig_error_set(reterr, (int)n, VFMIG_ORIGIN_DEVICE, k->asked,
                                "%s: its data in %s: %s", t->info.name, vfmig_state_name(k->asked),
                                strerror(-(int)n));
    }
    return r;
}

static int load(struct vfmig_target *t, const void *data, size_t size, struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    uint64_t deadline_ns = vfmig_deadline_ns(k->opt.timeout_ns);
    int r = need_session(k, reterr);

    for (size_t at = 0; r == 0 && at < size;) {
        ssize_t n = k->calls->write(k->opt.opaque, k->data_fd, (const char *)data + at, size - at);
        if (n > 0 && (size_t)n <= size - at) {
            at += vfmig_sabotage("kernel-short-write-ignored") ? size - at : (size_t)n;
            deadline_ns = vfmig_deadline_ns(k->opt.timeout_ns);
        } else if (n == -EAGAIN) {
            r = await(k, POLLOUT, &deadline_ns, reterr);
        } else {
            /* Nothing taken, or more than there was: it would go on for ever, or beyond the end. */
            int code = n < 0 ? (int)n : -EIO;
            r = vfmig_error_set(reterr, code, VFMIG_ORIGIN_DEVICE, k->asked,
                                "%s refused the data of its state: %s", t->info.name,
                                n < 0 ? strerror(-code) : "a count that makes no sense");
        }
    }
    return r;
}

/* Boundaries mean nothing in a stream. */
static int load_part(struct vfmig_target *t, const void *data, size_t size, bool more,
                     struct vfmig_error *reterr)
{
    return load(t, data, size, reterr);
}

/* What a read now, or a stop now, would still bring: the larger of the device's two answers, both
 * of which are estimates and optional. flags of PRECOPY_INFO are not looked at: drivers left them
 * undefined. */
static int left(struct vfmig_target *t, uint64_t *ret_bytes, struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    struct kernel_precopy_info info = {.argsz = sizeof(info)};
    uint64_t bytes = 0, sum;
    int r = kernel_settle(k, reterr);

    *ret_bytes = UINT64_MAX;
    if (r < 0)
        return r;
    if (k->data_size &&
        kernel_feature(k, KERNEL_FEATURE_GET | KERNEL_F_DATA_SIZE, &bytes, sizeof(bytes)) == 0)
        *ret_bytes = bytes;
    if (k->data_fd >= 0 &&
        (k->asked == VFMIG_STATE_PRE_COPY || k->asked == VFMIG_STATE_PRE_COPY_NDMA) &&
        kernel_ioctl(k, k->data_fd, KERNEL_PRECOPY_INFO, &info) == 0) {
        if (__builtin_add_overflow(info.initial_bytes, info.dirty_bytes, &sum))
            sum = UINT64_MAX - 1;
        if (*ret_bytes == UINT64_MAX || *ret_bytes < sum)
            *ret_bytes = sum;
    }
    return 0;
}

const struct vfmig_target_ops kernel_feature_ops = {
    .name = "kernel feature",
    .get_state = get_state,
    .set_state = set_state,
    .reset = kernel_reset,
    .save = save,
    .load = load,
    .load_part = load_part,
    .left = left,
    .log_start = kernel_log_start,
    .log_stop = kernel_log_stop,
    .log_report = kernel_log_report,
    .dma_map = kernel_dma_map,
    .dma_unmap = kernel_dma_unmap,
    .region_read = kernel_region_read,
    .region_write = kernel_region_write,
    .set_irqs = kernel_set_irqs,
    .close = kernel_close,
};
