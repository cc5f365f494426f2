/* SPDX-License-Identifier: BSD-3-Clause */
/* What a kernel device is, its registers and its interrupts. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/sabotage.h"
#include "target/kernel_private.h"

/* ---- description ---- */

static int describe_region(struct kernel *k, uint32_t index, struct vfmig_error *reterr)
{
    void *info = NULL;
    uint32_t size = 0;
    struct vfmig_error err = {.code = 0};
    int r = kernel_get_info(k, k->device, VFIO_DEVICE_GET_REGION_INFO,
                            sizeof(struct vfio_region_info), index, &info, &size, &err);

    /* A region that a device of this kind could have, and this one has not: VGA, above all. */
    if (r == -EINVAL)
        return 0;
    if (r < 0) {
        if (reterr)
            *reterr = err;
        return r;
    }
    const struct vfio_region_info *head = info;
    k->regions[index] = (struct kernel_region){head->offset, head->size, head->flags};
    if (index < KERNEL_INFO_REGIONS)
        k->base.info.region_size[index] = head->size;
    kernel_look_at_region(k, index, info, size);
    free(info);
    return 0;
}

static int describe_irqs(struct kernel *k, uint32_t count, struct vfmig_error *reterr)
{
    for (uint32_t i = 0; i < count && i < KERNEL_IRQS; i++) {
        struct vfio_irq_info info = {.argsz = sizeof(info), .index = i};
        struct vfmig_error err = {.code = 0};
        int r = kernel_need(k, k->device, VFIO_DEVICE_GET_IRQ_INFO, &info, "interrupts", &err);
        if (r == -EINVAL)
            continue; /* as for regions: no error interrupt */
        if (r < 0) {
            if (reterr)
                *reterr = err;
            return r;
        }
        if (info.count > VFMIG_MAX_IRQS)
            return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_KERNEL, 0,
                                   "%s: interrupt index %u has %u vectors", k->base.info.name, i,
                                   info.count);
        k->base.info.irq_count[i] = info.count;
    }
    return 0;
}

static int describe_pci(struct kernel *k, struct vfmig_error *reterr)
{
    struct vfmig_target_info *info = &k->base.info;
    uint8_t config[VFMIG_TARGET_PCI_HEAD];

    if (info->region_size[VFIO_PCI_CONFIG_REGION_INDEX] < sizeof(config))
        return 0;
    int r = kernel_access(k, VFIO_PCI_CONFIG_REGION_INDEX, 0, config, NULL, sizeof(config), reterr);
    if (r < 0)
        return r;
    vfmig_target_take_pci(info, config);
    return 0;
}

int kernel_describe(struct kernel *k, struct vfmig_error *reterr)
{
    struct vfio_device_info info = {.argsz = sizeof(info)};
    int r = kernel_need(k, k->device, VFIO_DEVICE_GET_INFO, &info, "description", reterr);

    if (r < 0)
        return r;
    if (!(info.flags & VFIO_DEVICE_FLAGS_PCI))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0, "%s is no PCI device",
                               k->base.info.name);
    if (info.num_regions > KERNEL_MAX_REGIONS)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_KERNEL, 0, "%s has %u regions",
                               k->base.info.name, info.num_regions);
    k->region_count = info.num_regions;
    k->base.info.region_count =
        info.num_regions < KERNEL_INFO_REGIONS ? info.num_regions : KERNEL_INFO_REGIONS;
    for (uint32_t i = 0; r == 0 && i < info.num_regions; i++)
        r = describe_region(k, i, reterr);
    if (r == 0)
        r = describe_irqs(k, info.num_irqs, reterr);
    return r == 0 ? describe_pci(k, reterr) : r;
}

/* ---- registers ---- */

int kernel_access(struct kernel *k, uint32_t region, uint64_t offset, void *read_to,
                  const void *write_from, uint64_t size, struct vfmig_error *reterr)
{
    const struct vfmig_kernel_calls *calls = k->calls;
    const struct kernel_region *r = region < k->region_count ? &k->regions[region] : NULL;
    uint64_t at;

    if (!r || offset > r->size || size > r->size - offset ||
        __builtin_add_overflow(r->offset, offset, &at))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%s: 0x%llx bytes at 0x%llx are not in region %u", k->base.info.name,
                               (unsigned long long)size, (unsigned long long)offset, region);
    ssize_t n = read_to ? calls->pread(k->opt.opaque, k->device, read_to, (size_t)size, at)
                        : calls->pwrite(k->opt.opaque, k->device, write_from, (size_t)size, at);
    if (n < 0)
        return vfmig_error_set(reterr, (int)n, VFMIG_ORIGIN_DEVICE, 0,
                               "%s: %s at 0x%llx of region %u: %s", k->base.info.name,
                               read_to ? "read" : "write", (unsigned long long)offset, region,
                               strerror(-(int)n));
    /* One driver answered what it refused with 0 bytes (X3). */
    if ((uint64_t)n != size && !vfmig_sabotage("kernel-count-ignored"))
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_DEVICE, 0,
                               "%s took %lld of %llu bytes at 0x%llx of region %u",
                               k->base.info.name, (long long)n, (unsigned long long)size,
                               (unsigned long long)offset, region);
    return 0;
}

int kernel_region_read(struct vfmig_target *t, uint32_t region, uint64_t offset, void *data,
                       uint32_t size, struct vfmig_error *reterr)
{
    return kernel_access((struct kernel *)t, region, offset, data, NULL, size, reterr);
}

int kernel_region_write(struct vfmig_target *t, uint32_t region, uint64_t offset, const void *data,
                        uint32_t size, bool posted, struct vfmig_error *reterr)
{
    return kernel_access((struct kernel *)t, region, offset, NULL, data, size, reterr);
}

/* ---- interrupts ---- */

struct irq_set {
    struct vfio_irq_set head;
    int32_t fds[VFMIG_MAX_IRQS];
};

static int switch_off(struct kernel *k, uint32_t index, struct vfmig_error *reterr)
{
    struct vfio_irq_set set = {
        .argsz = sizeof(set),
        .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
        .index = index,
    };

    k->irq_started &= ~(1u << index);
    return kernel_need(k, k->device, VFIO_DEVICE_SET_IRQS, &set, "interrupts off", reterr);
}

/* Vectors cannot be added to an index that is on (before Linux 6.5): the first time all are
 * switched on, those without eventfd included. */
int kernel_set_irqs(struct vfmig_target *t, uint32_t index, uint32_t start, uint32_t count,
                    const int *fds, struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    struct irq_set set = {
        .head = {.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, .index = index}};
    uint32_t all = index < KERNEL_IRQS ? t->info.irq_count[index] : 0;

    if (index >= KERNEL_IRQS || start > all || count > all - start)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%s has no vectors %u to %u of interrupt index %u", t->info.name,
                               start, start + count, index);
    bool on = k->irq_started & (1u << index);
    if (count == 0 || (!fds && !on))
        return 0;
    if (!fds && count == all)
        return switch_off(k, index, reterr);
    uint32_t first = on ? start : 0, n = on ? count : all;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t vector = first + i;
        bool meant = fds && vector >= start && vector - start < count;
        set.fds[i] = meant && fds[vector - start] >= 0 ? fds[vector - start] : -1;
    }
    set.head.start = first;
    set.head.count = n;
    set.head.argsz = (uint32_t)(sizeof(set.head) + n * sizeof(set.fds[0]));
    int r = kernel_need(k, k->device, VFIO_DEVICE_SET_IRQS, &set, "interrupts", reterr);
    if (r == 0)
        k->irq_started |= 1u << index;
    return r;
}
