/* SPDX-License-Identifier: BSD-3-Clause */
/* The devices of the targets. */
#ifndef VFMIG_TESTS_FUZZ_DEVICES_H
#define VFMIG_TESTS_FUZZ_DEVICES_H

#include "device.h"
#include "devices/bulk_regs.h"
#include "devices/devices.h"
#include "devices/dma_regs.h"
#include "rig.h"
#include "world.h"

#define DMA_FORMAT  (DMA_PCI_VENDOR << 16 | DMA_PCI_DEVICE)
#define POOL_FORMAT (POOL_VENDOR << 16 | POOL_DEVICE)
#define BULK_FORMAT (BULK_PCI_VENDOR << 16 | BULK_PCI_DEVICE)
#define NULL_FORMAT 0x1b367fd1u

static inline struct vfmig_device *make(const char *kind, struct vfmig_device_knobs knobs)
{
    struct vfmig_device *dev;

    knobs.max_data_xfer_bytes = RIG_MAX_DATA;
    int r = vfmig_device_kind_find(kind)->make(&knobs, &dev, NULL);
    CHECK(r == 0, "%s device: %d", kind, r);
    return dev;
}

static inline struct vfmig_device *make_null(void)
{
    return make("null", (struct vfmig_device_knobs){0});
}

static inline struct vfmig_device *make_dma(void)
{
    return make("dma", (struct vfmig_device_knobs){0});
}

static inline struct vfmig_device *make_dma_plain(void)
{
    return make("dma", (struct vfmig_device_knobs){.no_ndma = true,
                                                   .no_precopy = true,
                                                   .state_bytes = DMA_SRAM_SIZE + 100});
}

static inline struct vfmig_device *make_dma_slow(void)
{
    return make("dma", (struct vfmig_device_knobs){.latency_ns = 1000000, .quiesce_ns = 1000});
}

static inline struct vfmig_device *make_bulk(void)
{
    return make("bulk", (struct vfmig_device_knobs){.state_bytes = 0x20000});
}

static inline struct vfmig_device *make_pool(void)
{
    return pool_device_new(false, false, RIG_MAX_DATA);
}

static inline struct vfmig_device *make_pool_plain(void)
{
    return pool_device_new(true, true, RIG_MAX_DATA);
}

/* clang-format off */
#define VARIANT_NULL       {make_null, NULL_FORMAT, 0, false, true}
#define VARIANT_BULK       {make_bulk, BULK_FORMAT, 1, false, true}
#define VARIANT_DMA        {make_dma, DMA_FORMAT, 1, true, true}
#define VARIANT_DMA_PLAIN  {make_dma_plain, DMA_FORMAT, 1, true, false}
#define VARIANT_DMA_SLOW   {make_dma_slow, DMA_FORMAT, 1, true, true}
#define VARIANT_POOL       {make_pool, POOL_FORMAT, 0, false, true}
#define VARIANT_POOL_PLAIN {make_pool_plain, POOL_FORMAT, 0, false, false}
#define VARIANT_DMA_CONTROL  {make_dma, DMA_FORMAT, 1, true, true, true}
#define VARIANT_SLOW_CONTROL {make_dma_slow, DMA_FORMAT, 1, true, true, true}
#define VARIANT_BULK_CONTROL {make_bulk, BULK_FORMAT, 1, false, true, true}
#define VARIANT_POOL_CONTROL {make_pool, POOL_FORMAT, 0, false, true, true}
/* clang-format on */

#define BIT(reach) (1u << (reach))

#endif
