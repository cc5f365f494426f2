/* SPDX-License-Identifier: BSD-3-Clause */
/* The dma device's object, shared by its two files: engine and registers, and migration. */
#ifndef VFMIG_DEVICES_DMA_PRIV_H
#define VFMIG_DEVICES_DMA_PRIV_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/devices.h"
#include "devices/dma_regs.h"

#define SRAM_PAGE      1024u /* of the internal log */
#define SRAM_PAGES     (DMA_SRAM_SIZE / SRAM_PAGE)
#define RING_MAX       1024u

/* What a descriptor in flight does next. */
enum dma_phase {
    DMA_IDLE = 0,
    DMA_FETCH,
    DMA_DELAY,
    DMA_FETCH_DATA,
    DMA_WORK,
    DMA_STORE_DATA,
    DMA_COMPLETE,
    DMA_STATUS,
    DMA_MESSAGE,
    DMA_FINISH,
};

/* Registers and counters: all of the device's state but the SRAM. */
struct dma_regs {
    uint64_t ring;
    uint64_t scratch;
    uint64_t irqs;
    uint64_t chain;
    uint64_t serial;
    uint32_t ctrl;
    uint32_t entries;
    uint32_t tail;
    uint32_t head;
    uint32_t errors;
    uint32_t pasid; /* the handle, never the host's value */
};

#define DMA_AHEAD_MAX 32u

/* A look ahead that is under way. */
struct dma_ahead {
    struct dma_device *device;
    bool busy;
    bool data; /* its descriptor is here */
    uint32_t index; /* of the descriptor, free running */
    struct vfmig_dma dma;
    struct dma_descriptor desc;
    uint8_t bytes[4096];
};

struct dma_device {
    struct vfmig_device *dev;
    struct vfmig_device_knobs knobs;
    struct dma_regs regs;
    uint32_t ims; /* a register that few states have; the handle, never the host's value */
    uint8_t sram[DMA_SRAM_SIZE];

    /* The descriptor in flight; nothing of it outlives a drain. */
    enum dma_phase phase;
    bool abandoned; /* the ring was disabled meanwhile */
    int err;        /* of this descriptor, 0 or negative */
    struct vfmig_dma dma;
    struct dma_descriptor desc;
    uint32_t message; /* the interrupt's */
    uint8_t *data; /* DMA_MAX_LENGTH bytes */

    struct dma_ahead ahead[DMA_AHEAD_MAX];
    uint32_t ahead_next; /* descriptor to be looked at next, free running */

    /* Saving. */
    uint64_t dirty; /* SRAM pages to be sent */
    bool logging;
    bool regs_saved;
    uint64_t pad_bytes; /* state beyond SRAM, so that it is as large as was asked for */
    uint64_t pad_saved;
    /* Loading. */
    uint64_t pages_loaded;
    bool regs_loaded;
    uint64_t pad_loaded;

    struct dma_regs saved; /* last: for a deliberate fault */
    bool saved_once;
};

/* dma_ahead.c: starts as many looks as there are to be; forgets them all. */
void dma_ahead_kick(struct dma_device *d);
void dma_ahead_reset(struct dma_device *d);

/* dma.c */
void dma_device_kick(struct dma_device *d);
/* Where DMA at iova goes on this host. */
uint64_t dma_iova(const struct dma_device *d, uint64_t iova);
bool dma_regs_valid(const struct dma_regs *regs);
static inline void dma_touch_sram(struct dma_device *d, uint64_t offset, uint64_t size)
{
    for (uint64_t page = offset / SRAM_PAGE; size && page <= (offset + size - 1) / SRAM_PAGE; page++)
        d->dirty |= UINT64_C(1) << page;
}

/* dma_state.c: the callbacks of a migration. */
void dma_state_ops(struct vfmig_device_ops *ops);

#endif
