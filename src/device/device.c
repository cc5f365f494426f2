/* SPDX-License-Identifier: BSD-3-Clause */
/* Making and ending a device. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/internal.h"

#define DRAIN_DEFAULT_NS 10000000000ull
#define WINDOW_MAX       (64u << 20)

static int wrong(struct vfmig_error *reterr, const char *what)
{
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "device: %s", what);
}

static int take_config(struct vfmig_device *dev, const struct vfmig_device_config *config,
                       const struct vfmig_device_ops *ops, struct vfmig_error *reterr)
{
    struct vfmig_device_config *c = &dev->config;

    /* Members that a caller built for an older library does not have stay 0. */
    if (config->version != VFMIG_DEVICE_VERSION || ops->version != VFMIG_DEVICE_VERSION)
        return wrong(reterr, "config or ops are of a version that this library does not know");
    if (config->size > sizeof(*c) || ops->size > sizeof(dev->ops))
        return wrong(reterr, "config or ops are larger than this library knows");
    memcpy(c, config, config->size);
    memcpy(&dev->ops, ops, ops->size);
    snprintf(dev->name, sizeof(dev->name), "%s", c->name ? c->name : "device");
    c->name = dev->name;
    c->pci_class = c->pci_class ? c->pci_class : 0xff0000;
    c->drain_timeout_ns = c->drain_timeout_ns ? c->drain_timeout_ns : DRAIN_DEFAULT_NS;
    if (!c->state_format)
        c->state_format = (uint32_t)c->pci_vendor << 16 | c->pci_device;
    if (c->window_bytes < VFMIG_MAX_DATA_XFER)
        c->window_bytes = VFMIG_MAX_DATA_XFER;
    if (!c->max_data_xfer_bytes)
        c->max_data_xfer_bytes = VFMIG_MAX_DATA_XFER;
    if (c->window_bytes > WINDOW_MAX || c->window_bytes % PAGE)
        return wrong(reterr, "window_bytes is no multiple of 4096 up to 64 MiB");
    if (c->max_data_xfer_bytes > VFMIG_MAX_DATA_XFER_CAP)
        return wrong(reterr, "max_data_xfer_bytes is above 64 MiB");
    if (c->state_oldest > c->state_version)
        return wrong(reterr, "state_oldest is newer than state_version");
    return 0;
}

static int take_buffers(struct vfmig_device *dev)
{
    dev->window_buf = malloc(dev->config.window_bytes);
    dev->stream.out = malloc(FRAME_PAYLOAD + PAGE);
    dev->stream.in = malloc(FRAME_PAYLOAD + PAGE);
    return dev->window_buf && dev->stream.out && dev->stream.in ? 0 : -ENOMEM;
}

int vfmig_device_new(const struct vfmig_device_config *config, const struct vfmig_device_ops *ops,
                     void *user, struct vfmig_device **ret_dev, struct vfmig_error *reterr)
{
    struct vfmig_device *dev = calloc(1, sizeof(*dev));

    if (!dev && ops->free)
        ops->free(user);
    if (!dev)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_LOCAL, 0, "out of memory");
    dev->user = user;
    irq_init(dev);
    dma_init(dev);
    log_init(&dev->log);
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
        dev->ops.free = ops->free;
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
    server_done(dev);
    dma_done(dev);
    log_done(&dev->log);
    irq_detach_all(dev);
    free(dev->window_buf);
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
