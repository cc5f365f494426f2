/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA by message of the VMM's devices: guest RAM, and what lies beside it (a peer's BAR). One
 * access of the server comes in by the callbacks of a struct vfmig_user_dma and is dispatched here:
 *
 *     IOVA -> guest physical address -> RAM, or the hook for everything else
 *
 * Any thread, one of each device at least. */
#ifndef VFMIG_VMM_DMA_H
#define VFMIG_VMM_DMA_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dirty/tracker.h"
#include "target/user.h"
#include "vfmig/memory.h"
#include "vmm/iommu.h"

/* What is the same for all devices of a VMM. */
struct vmm_dma_space {
    struct vfmig_memory memory;
    /* Marked at guest physical addresses after a write and before anybody is told of it. */
    struct vfmig_tracker *own;
    /* An access by device that is in no RAM: size bytes within one page. 0 or a negative errno,
     * -EFAULT where nothing is. Called from the thread that serves that device's DMA. NULL: there
     * is nothing but RAM. */
    int (*beside)(void *opaque, uint32_t device, uint64_t gpa, bool is_write, void *data,
                  uint32_t size);
    void *opaque;
};

/* Accesses of a device behind the vIOMMU that go on after they were held. */
struct vmm_dma_lane {
    bool started, quit;
    pthread_mutex_t lock;
    pthread_cond_t work;
    pthread_t thread;
    struct vmm_dma_held *first, **last;
};

/* One device's view of it. The first members are set before the target is opened. */
struct vmm_dma_device {
    const struct vmm_dma_space *space;
    uint32_t index;          /* among the VMM's devices: who it is that beside hears of */
    struct vmm_iommu *iommu; /* NULL: an IOVA is a guest physical address */
    bool tagged;    /* ... above which the host's PASID stands (devices/dma_regs.h): ... */
    uint32_t pasid; /* ... this one, and no other reaches anything. 0: there is none here */

    _Atomic(struct vfmig_target *) target; /* behind the vIOMMU, while attached */
    struct vmm_dma_lane lane;
};

/* The callbacks with which the target of this device is opened. d stays until it is closed. */
struct vfmig_user_dma vmm_dma_callbacks(struct vmm_dma_device *d);

/* For a device behind the vIOMMU: its accesses may be held from now on; before, and after detach,
 * those that would be fail. Detach comes after vmm_iommu_close() and before the target is closed;
 * it answers what is held. */
int vmm_dma_attach(struct vmm_dma_device *d, struct vfmig_target *target,
                   struct vfmig_error *reterr);
void vmm_dma_detach(struct vmm_dma_device *d);

/* Reads or writes at a guest physical address on behalf of a device; in pieces where it crosses
 * the end of a block of RAM, or a page of what is none. 0 or a negative errno; what came before the
 * piece that failed is done. */
int vmm_dma_access(const struct vmm_dma_space *space, uint32_t device, uint64_t gpa, bool is_write,
                   void *data, uint64_t size);

/* An access of a device behind the vIOMMU; as a callback of struct vfmig_user_dma. */
int vmm_dma_translated(struct vmm_dma_device *d, uint64_t iova, bool is_write, void *data,
                       uint32_t size);

#endif
