/* SPDX-License-Identifier: BSD-3-Clause */
/* The trackers there are, one for each writer of guest memory. Each is freed by its ops->free. */
#ifndef VFMIG_DIRTY_TRACKERS_H
#define VFMIG_DIRTY_TRACKERS_H

#include "dirty/tracker.h"
#include "target/target.h"

/* Block and byte offset of a guest physical address; -1 when it is no memory. *ret_left: bytes
 * from there to the end of the block. */
int vfmig_memory_find(const struct vfmig_memory *memory, uint64_t gpa, uint64_t *ret_offset,
                      uint64_t *ret_left);

/* --- device: a target's DMA log ---------------------------------------------------------------
 * One window of a device's address space onto guest memory. */
struct vfmig_iova_window {
    uint64_t iova;
    uint64_t gpa;
    uint64_t size;
};

/* The device has a log (info.dma_log). */
bool vfmig_tracker_device_probe(const struct vfmig_target *target);

/* windows NULL: IOVA is GPA, one range a block. Copied otherwise; each must lie in one block. The
 * log's page size is the target's. The target must outlive the tracker. */
int vfmig_tracker_device_new(struct vfmig_target *target, const struct vfmig_iova_window *windows,
                             uint32_t window_count, struct vfmig_tracker **ret_tracker,
                             struct vfmig_error *reterr);

/* --- kvm: the vCPUs' writes -------------------------------------------------------------------
 * 0, or -ENOTSUP when this VM cannot log. *ret_manual_protect (may be NULL): a read does not
 * protect, the clear does, block by block. */
int vfmig_tracker_kvm_probe(int vm_fd, bool *ret_manual_protect);

/* Memory block i is slot slots[i] (NULL: slot i), set by KVM_SET_USER_MEMORY_REGION without
 * flags. vm_fd stays the caller's. */
int vfmig_tracker_kvm_new(int vm_fd, const uint32_t *slots, uint32_t slot_count,
                          struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr);

/* --- kvm-ring: the same by a ring for each vCPU ------------------------------------------------
 * Entries of the largest ring that fd (/dev/kvm or a VM) offers; 0: none. */
uint32_t vfmig_tracker_kvm_ring_probe(int fd);

/* Before the first vCPU and the first slot: this VM logs by rings, and no more by a bitmap.
 * *ret_backup: KVM keeps a bitmap beside them, for writes that come without a vCPU. */
int vfmig_tracker_kvm_ring_enable(int vm_fd, uint32_t entries, bool *ret_backup,
                                  struct vfmig_error *reterr);

struct vfmig_kvm_ring_config {
    int vm_fd;
    const int *vcpu_fds; /* of every vCPU */
    uint32_t vcpu_count;
    uint32_t entries; /* as enabled */
    bool backup;
    const uint32_t *slots; /* as for kvm; slot_count 0: slot i is block i */
    uint32_t slot_count;
};

/* Descriptors stay the caller's. Each vCPU's thread calls vfmig_tracker_kvm_ring_full() when its
 * KVM_RUN ends with KVM_EXIT_DIRTY_RING_FULL, and goes on. */
int vfmig_tracker_kvm_ring_new(const struct vfmig_kvm_ring_config *config,
                               struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr);
void vfmig_tracker_kvm_ring_full(void *tracker, uint32_t vcpu); /* any thread */
uint64_t vfmig_tracker_kvm_ring_full_count(struct vfmig_tracker *tracker);

/* --- own: every write of the VMM itself -------------------------------------------------------- */
int vfmig_tracker_own_new(struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr);

/* [gpa, gpa + size) was written. Called from any thread after the bytes are in memory and before
 * anybody is told of them. NULL, a stopped tracker and addresses that are no memory are fine. */
void vfmig_own_mark(struct vfmig_tracker *own, uint64_t gpa, uint64_t size);

/* --- wp: this process' writes through the blocks' host mappings -------------------------------- */
enum vfmig_wp_method {
    VFMIG_WP_AUTO = 0,
    VFMIG_WP_SCAN,    /* userfaultfd with WP_ASYNC and PAGEMAP_SCAN, Linux 6.7 */
    VFMIG_WP_HANDLER, /* userfaultfd write protection and a thread, Linux 5.19 for memfds */
};

/* 0 when the method (AUTO: any) works here, -ENOTSUP or -EPERM when not. *ret_method (may be
 * NULL): the one to be used. */
int vfmig_tracker_wp_probe(enum vfmig_wp_method method, enum vfmig_wp_method *ret_method);
int vfmig_tracker_wp_new(enum vfmig_wp_method method, struct vfmig_tracker **ret_tracker,
                         struct vfmig_error *reterr);

#endif
