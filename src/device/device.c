/* SPDX-License-Identifier: BSD-3-Clause */
/* Making and ending a device. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/internal.h"

#define DRAIN_DEFAULT_NS 10000000000ull

_Static_assert(VFMIG_DEVICE_DATA_XFER == VFMIG_MAX_DATA_XFER &&
               VFMIG_DEVICE_DATA_XFER_MAX == VFMIG_MAX_DATA_XFER_CAP &&
               VFMIG_DEVICE_WINDOWS_MAX == VFMIG_MAX_WINDOWS &&
               VFMIG_DEVICE_DOORBELLS == VFMIG_MAX_MSG_FDS &&
               VFMIG_DEVICE_SAVE_MAX == FRAME_PAYLOAD && VFMIG_DEVICE_OPEN_DMA == VFMIG_MAX_OPEN_DMA,
               "what an author is told is what the library does");

static int wrong(struct vfmig_error *reterr, const char *what)
{
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "device: %s", what);
}

/* A struct of a caller's version into one of ours. What the caller does not know stays 0; what we
 * do not know must be 0. */
static bool take_struct(void *to, size_t room, const void *from, size_t size, size_t least)
{
    const uint8_t *bytes = from;

    if (size < least)
        return false;
    for (size_t i = room; i < size; i++)
        if (bytes[i])
            return false;
    memcpy(to, from, size < room ? size : room);
    return true;
}

static int take_config(struct vfmig_device *dev, const struct vfmig_device_config *config,
                       const struct vfmig_device_ops *ops, struct vfmig_error *reterr)
{
    struct vfmig_device_config *c = &dev->config;

    const size_t least_config = offsetof(struct vfmig_device_config, version) + sizeof(uint32_t);
    const size_t least_ops = offsetof(struct vfmig_device_ops, version) + sizeof(uint32_t);
    if (!take_struct(c, sizeof(*c), config, config->size, least_config) ||
        !take_struct(&dev->ops, sizeof(dev->ops), ops, ops->size, least_ops))
        return wrong(reterr, "config or ops ask for what this library does not know");
    if (config->version != VFMIG_DEVICE_VERSION || ops->version != VFMIG_DEVICE_VERSION)
        return wrong(reterr, "config or ops are of a version that this library does not know");
    snprintf(dev->name, sizeof(dev->name), "%s", c->name ? c->name : "device");
    c->name = dev->name;
    c->pci_class = c->pci_class ? c->pci_class : 0xff0000;
    c->drain_timeout_ns = c->drain_timeout_ns ? c->drain_timeout_ns : DRAIN_DEFAULT_NS;
    if (!c->state_format)
        c->state_format = (uint32_t)c->pci_vendor << 16 | c->pci_device;
    if (c->window_bytes < VFMIG_DEVICE_WINDOW_MIN)
        c->window_bytes = VFMIG_DEVICE_WINDOW_MIN;
    if (!c->max_data_xfer_bytes)
        c->max_data_xfer_bytes = VFMIG_MAX_DATA_XFER;
    if (c->window_bytes > VFMIG_DEVICE_WINDOW_MAX || c->window_bytes % PAGE)
        return wrong(reterr, "window_bytes is no multiple of 4096 up to 64 MiB");
    c->window_count = c->window_count ? c->window_count : VFMIG_DEVICE_WINDOWS;
    if (c->window_count > VFMIG_DEVICE_WINDOWS_MAX)
        return wrong(reterr, "window_count is above 8");
    if (c->max_data_xfer_bytes > VFMIG_MAX_DATA_XFER_CAP)
        return wrong(reterr, "max_data_xfer_bytes is above 64 MiB");
    if (c->state_oldest > c->state_version)
        return wrong(reterr, "state_oldest is newer than state_version");
    return 0;
}

static int take_buffers(struct vfmig_device *dev)
{
    dev->stream.out = malloc(FRAME_PAYLOAD + PAGE);
    dev->stream.in = malloc(FRAME_PAYLOAD + PAGE);
    return dev->stream.out && dev->stream.in ? 0 : -ENOMEM;
}

int vfmig_device_new(const struct vfmig_device_config *config, const struct vfmig_device_ops *ops,
                     void *user, struct vfmig_device **ret_dev, struct vfmig_error *reterr)
{
    struct vfmig_device *dev = calloc(1, sizeof(*dev));

    void (*free_user)(void *) = NULL;

    if (ops->size >= offsetof(struct vfmig_device_ops, free) + sizeof(ops->free))
        free_user = ops->free;
    if (!dev && free_user)
        free_user(user);
    if (!dev)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_LOCAL, 0, "out of memory");
    dev->user = user;
    irq_init(dev);
    dma_init(dev);
    log_init(&dev->log);
    later_init(dev);
    shared_init(&dev->owner_section);
    shared_init(&dev->session_section);
    pthread_mutex_init(&dev->message_lock, NULL);
    pthread_cond_init(&dev->message_cond, NULL);
    int r = server_init(dev, reterr);
    if (r == 0)
        r = take_config(dev, config, ops, reterr);
    if (r == 0)
        r = pci_init(dev, reterr);
    if (r == 0)
        r = migrate_init(dev, reterr);
    if (r == 0 && (r = take_buffers(dev)) < 0)
        vfmig_error_set(reterr, r, VFMIG_ORIGIN_LOCAL, 0, "out of memory");
    if (r < 0) {
        dev->ops.free = free_user;
        vfmig_device_free(dev);
        return r;
    }
    *ret_dev = dev;
    return 0;
}

void vfmig_device_free(struct vfmig_device *dev)
{
    if (!dev)
        return;
    if (dev->started) {
        vfmig_device_stop(dev);
        vfmig_device_join(dev, NULL);
    }
    server_done(dev);
    dma_done(dev);
    log_done(&dev->log);
    irq_detach_all(dev);
    later_done(dev);
    shared_drop(&dev->owner_section);
    shared_drop(&dev->session_section);
    free(dev->stream.out);
    free(dev->stream.in);
    if (dev->ops.free)
        dev->ops.free(dev->user);
    free(dev);
}

void vfmig_device_get_counters(const struct vfmig_device *dev,
                               struct vfmig_device_counters *ret_counters)
{
    uint64_t *to = (uint64_t *)ret_counters;

    for (unsigned i = 0; i < sizeof(*ret_counters) / sizeof(*to); i++)
        to[i] = atomic_load_explicit(&dev->counts[i], memory_order_relaxed);
}
