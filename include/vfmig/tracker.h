/* SPDX-License-Identifier: BSD-3-Clause */
/* DIRTY TRACKING (RFC): who sees the writes to guest memory. A VMM gives the engine one tracker for
 * every writer there is: the vCPUs, each device, and itself. A writer that nobody sees is a page
 * that is lost; one that two see costs nothing but time.
 *
 * The engine starts, reads and stops them. Functions return 0 or a negative errno with *reterr
 * filled. */
#ifndef VFMIG_TRACKER_H
#define VFMIG_TRACKER_H

#include <stdint.h>

#include "vfmig/error.h"
#include "vfmig/memory.h"

#ifdef __cplusplus
extern "C" {
#endif

struct vfmig_target;
struct vfmig_tracker;

/* The device's own log of its DMA; IOVA is GPA. The target must outlive it. -ENOTSUP: the device
 * has none, and a guest with it cannot be moved away, because nobody else sees what it writes. */
int vfmig_tracker_open_device(struct vfmig_target *target, struct vfmig_tracker **ret_tracker,
                              struct vfmig_error *reterr);

/* vCPUs of a KVM guest. Memory block i is slot slots[i] (NULL: slot i), of slot_count blocks, set
 * by KVM_SET_USER_MEMORY_REGION without flags. vm_fd stays the caller's. */
int vfmig_tracker_open_kvm(int vm_fd, const uint32_t *slots, uint32_t slot_count,
                           struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr);

/* All that this process writes through the blocks' host mappings, by userfaultfd: for vCPUs that
 * are threads. -ENOTSUP or -EPERM: not here. */
int vfmig_tracker_open_process(struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr);

/* What the VMM itself writes, and says so. */
int vfmig_tracker_open_vmm(struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr);
/* [gpa, gpa + size) was written. Any thread, once the bytes are in memory and before anybody is
 * told of them. Only a tracker of vfmig_tracker_open_vmm(); NULL and addresses that are no memory
 * are fine. */
void vfmig_tracker_mark(struct vfmig_tracker *tracker, uint64_t gpa, uint64_t size);

/* Only when no migration is under way. NULL is fine. */
void vfmig_tracker_close(struct vfmig_tracker *tracker);

#ifdef __cplusplus
}
#endif

#endif
