/* SPDX-License-Identifier: BSD-3-Clause */
/* The paravirtual vIOMMU of the reference VMM: vmm/iommu_regs.h is what the guest sees of it.
 * Devices' accesses are translated here, or wait here for the guest to answer a page request
 * (C60-C63).
 *
 * Commands are done by a thread of its own, so that no vCPU waits for a device. Functions are for
 * any thread unless they say otherwise. */
#ifndef VFMIG_VMM_IOMMU_H
#define VFMIG_VMM_IOMMU_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buffer.h"
#include "vfmig/error.h"
#include "vmm/iommu_regs.h"

struct vmm_dma_space;
struct vmm_iommu;

/* One access of a device, from its begin to its end. The first members are the caller's. */
struct vmm_iommu_access {
    uint32_t device;
    bool is_write;
    uint64_t iova, size;
    /* A page request for it was answered: 0: it is to begin again; < 0: it has failed. From any
     * thread, without locks; must not wait for the vIOMMU. */
    void (*answered)(struct vmm_iommu_access *access, int result);

    struct vmm_iommu_access *next, **link; /* waits, or is in flight; the vIOMMU's */
    bool held;
};

/* devices: a bit for each that is behind it. space is where its queues are; it stays. It begins
 * paused. */
int vmm_iommu_new(const struct vmm_dma_space *space, uint32_t devices, struct vmm_iommu **ret_iommu,
                  struct vfmig_error *reterr);
/* Every access that waits fails, and so does whatever comes; then the accesses are to end. */
void vmm_iommu_close(struct vmm_iommu *iommu);
/* After close. NULL is fine. */
void vmm_iommu_free(struct vmm_iommu *iommu);

/* A vCPU's access to the page of registers. */
void vmm_iommu_mmio(struct vmm_iommu *iommu, uint32_t offset, bool is_write, void *data,
                    uint32_t size);

/* 0: all of it is mapped and stays so until vmm_iommu_end(). -EFAULT: no. Else a page is missing:
 * -EAGAIN, or with hold -EINPROGRESS: the guest is asked and answered() follows. From the first
 * call with hold on the access is an open fault, until vmm_iommu_release(). */
int vmm_iommu_begin(struct vmm_iommu *iommu, struct vmm_iommu_access *access, bool hold);
/* Where iova of an access in flight leads; *ret_left: bytes that lie there. */
void vmm_iommu_translate(struct vmm_iommu *iommu, const struct vmm_iommu_access *access,
                         uint64_t iova, uint64_t *ret_gpa, uint64_t *ret_left);
void vmm_iommu_end(struct vmm_iommu *iommu, struct vmm_iommu_access *access);
/* The device has its answer. */
void vmm_iommu_release(struct vmm_iommu *iommu, struct vmm_iommu_access *access);

/* Open faults: accesses that were held and not released. */
uint32_t vmm_iommu_faults(struct vmm_iommu *iommu);

/* The vIOMMU's part of the grace state (C10): the devices are quiet, so what is still open belongs
 * to DMA that a device has given up, to issue it again later. Such requests are withdrawn: their
 * accesses fail, and the guest is told and has to respond. Returns when nothing is open, the guest
 * has responded to everything, and no command is left. A guest that does not run is not waited for.
 * -ETIMEDOUT. */
int vmm_iommu_idle(struct vmm_iommu *iommu, bool guest_runs, uint64_t timeout_ns,
                   struct vfmig_error *reterr);

/* Returns when no command is under way; none begins, and nothing is written to guest memory, until
 * resume. */
void vmm_iommu_pause(struct vmm_iommu *iommu);
void vmm_iommu_resume(struct vmm_iommu *iommu);

/* While paused. Nothing may be open: -EBUSY. */
int vmm_iommu_save(struct vmm_iommu *iommu, struct vfmig_buffer *out, struct vfmig_error *reterr);
/* While paused, with nothing open. Nothing has changed when it fails: -EBADMSG. */
int vmm_iommu_load(struct vmm_iommu *iommu, const void *data, size_t size,
                   struct vfmig_error *reterr);
/* Lines "key=value\n" that both sides must have in common. */
int vmm_iommu_identity(const struct vmm_iommu *iommu, struct vfmig_buffer *out);

#endif
