/* SPDX-License-Identifier: BSD-3-Clause */
/* What is asked of a kernel device as it is said, for whoever judges its driver. */
#include <errno.h>
#include <poll.h>

#include "target/kernel_private.h"

#define STATE_REG offsetof(struct kernel_migration_region, device_state)

int vfmig_kernel_feature(struct vfmig_target *target, uint32_t argsz, uint32_t flags, void *data,
                         size_t size)
{
    int r = kernel_settle((struct kernel *)target, NULL);

    return r < 0 ? r : kernel_raw_feature((struct kernel *)target, argsz, flags, data, size);
}

/* ---- states ---- */

static bool by_region(const struct kernel *k)
{
    return k->base.info.dialect == VFMIG_DIALECT_REGION;
}

int vfmig_kernel_look_state(struct vfmig_target *target, uint32_t *ret_value)
{
    struct kernel *k = (struct kernel *)target;
    struct kernel_state data = {.data_fd = -1};
    int r = kernel_settle(k, NULL);

    if (r < 0)
        return r;
    if (by_region(k))
        return kernel_access(k, k->mig_index, STATE_REG, ret_value, NULL, sizeof(*ret_value), NULL);
    r = kernel_feature(k, KERNEL_FEATURE_GET | KERNEL_F_DEVICE_STATE, &data, sizeof(data));
    *ret_value = data.state;
    return r;
}

/* A kernel_work. */
static int ask_region(struct kernel *k, uint32_t value, struct vfmig_error *reterr)
{
    k->opened = false;
    return kernel_access(k, k->mig_index, STATE_REG, NULL, &value, sizeof(value), reterr);
}

/* A kernel_work. */
static int ask_feature(struct kernel *k, uint32_t value, struct vfmig_error *reterr)
{
    struct kernel_state data = {.state = value, .data_fd = -1};
    int r = kernel_feature(k, KERNEL_FEATURE_SET | KERNEL_F_DEVICE_STATE, &data, sizeof(data));

    if (r == 0 && value < VFMIG_STATE_COUNT)
        k->asked = (enum vfmig_state)value;
    k->opened = r == 0 && data.data_fd >= 0;
    if (k->opened) {
        kernel_close_file(k, &k->earlier_fd);
        k->earlier_fd = k->data_fd;
        k->data_fd = data.data_fd;
        (void)k->calls->nonblock(k->opt.opaque, k->data_fd);
    }
    return r;
}

int vfmig_kernel_ask_state(struct vfmig_target *target, uint32_t value, uint64_t timeout_ns,
                           bool *ret_opened, int *ret_earlier)
{
    struct kernel *k = (struct kernel *)target;
    int r = kernel_work_until(k, by_region(k) ? ask_region : ask_feature, value, timeout_ns, NULL);

    *ret_opened = r == 0 && k->opened;
    if (!*ret_opened || !ret_earlier) {
        if (*ret_opened)
            kernel_close_file(k, &k->earlier_fd);
        if (ret_earlier)
            *ret_earlier = -1;
        return r;
    }
    *ret_earlier = k->earlier_fd;
    k->earlier_fd = -1;
    return r;
}

int vfmig_kernel_reset_once(struct vfmig_target *target, uint64_t timeout_ns)
{
    return kernel_work_until((struct kernel *)target, kernel_send_reset, 0, timeout_ns, NULL);
}

/* ---- the session ---- */

ssize_t vfmig_kernel_read_data(struct vfmig_target *target, void *data, size_t size)
{
    struct kernel *k = (struct kernel *)target;
    int r = kernel_settle(k, NULL);

    if (r == 0 && k->data_fd < 0)
        r = -EBADF;
    return r < 0 ? r : k->calls->read(k->opt.opaque, k->data_fd, data, size);
}

ssize_t vfmig_kernel_write_data(struct vfmig_target *target, const void *data, size_t size)
{
    struct kernel *k = (struct kernel *)target;
    int r = kernel_settle(k, NULL);

    if (r == 0 && k->data_fd < 0)
        r = -EBADF;
    return r < 0 ? r : k->calls->write(k->opt.opaque, k->data_fd, data, size);
}

int vfmig_kernel_await_data(struct vfmig_target *target, bool to_write)
{
    struct kernel *k = (struct kernel *)target;
    uint64_t ms = k->opt.timeout_ns / 1000000 + 1;
    int r = kernel_settle(k, NULL);

    if (r == 0)
        r = k->data_fd < 0 ? -EBADF
                           : k->calls->poll(k->opt.opaque, k->data_fd, to_write ? POLLOUT : POLLIN,
                                            ms < INT32_MAX ? (int)ms : INT32_MAX);
    return r > 0 || r == -EINTR ? 0 : r == 0 ? -ETIMEDOUT : r; /* the caller tries again */
}

int vfmig_kernel_precopy_info(struct vfmig_target *target, uint32_t argsz, uint64_t *ret_initial,
                              uint64_t *ret_dirty)
{
    struct kernel *k = (struct kernel *)target;
    struct kernel_precopy_info info = {.argsz = argsz};
    int r = argsz > sizeof(info) ? -E2BIG : kernel_settle(k, NULL);

    if (r == 0)
        r = k->data_fd < 0 ? -EBADF : kernel_ioctl(k, k->data_fd, KERNEL_PRECOPY_INFO, &info);
    *ret_initial = info.initial_bytes;
    *ret_dirty = info.dirty_bytes;
    return r;
}

/* ---- region and log ---- */

bool vfmig_kernel_migration_region(const struct vfmig_target *target, uint32_t *ret_index,
                                   uint64_t *ret_size)
{
    const struct kernel *k = (const struct kernel *)target;

    if (!k->mig_index)
        return false;
    *ret_index = k->mig_index;
    *ret_size = k->regions[k->mig_index].size;
    return true;
}

int vfmig_kernel_log_once(struct vfmig_target *target, bool on, uint64_t page_size)
{
    struct kernel *k = (struct kernel *)target;

    if (!k->log)
        return -ENOTSUP;
    pthread_mutex_lock(&k->maps_lock);
    int r = on ? k->log->start(k, page_size, NULL, 0, NULL) : k->log->stop(k, NULL);
    k->logging = on && (r == 0 || k->logging) && page_size;
    k->log_page = page_size;
    pthread_mutex_unlock(&k->maps_lock);
    return r;
}

int vfmig_kernel_report_once(struct vfmig_target *target, uint64_t iova, uint64_t size,
                             uint64_t page_size, uint64_t *bitmap)
{
    struct kernel *k = (struct kernel *)target;

    if (!k->log)
        return -ENOTSUP;
    if (page_size == 0)
        return -EINVAL;
    pthread_mutex_lock(&k->maps_lock);
    int r = k->log->fetch(k, iova, size, page_size, bitmap, NULL);
    pthread_mutex_unlock(&k->maps_lock);
    return r;
}
