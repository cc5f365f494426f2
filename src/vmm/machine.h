/* SPDX-License-Identifier: BSD-3-Clause */
/* The machine: vCPUs and interrupts of the reference VMM behind one border. Two accelerators:
 * `kvm` (needs /dev/kvm) and `none` (the same guest program on threads of this process).
 *
 * One controlling thread calls these functions. Functions marked "any thread" may be called from
 * others, the mmio callback included. */
#ifndef VFMIG_VMM_MACHINE_H
#define VFMIG_VMM_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "vfmig/error.h"
#include "vfmig/memory.h"
#include "vmm/guest_abi.h"

enum vfmig_accel {
    VFMIG_ACCEL_AUTO = 0, /* kvm where it works, else none */
    VFMIG_ACCEL_KVM,
    VFMIG_ACCEL_NONE,
};

struct vfmig_machine;

struct vfmig_machine_config {
    enum vfmig_accel accel;
    uint32_t vcpu_count; /* 1 to GUEST_MAX_VCPUS */
    /* Guest RAM; the first block starts at GPA 0 and holds the guest program. The mappings must
     * outlive the machine. */
    struct vfmig_memory memory;
    /* An access of a vCPU to a GPA that is neither RAM nor the machine's own control page. Runs in
     * that vCPU's thread; size is 1, 2, 4 or 8. A read fills data. */
    void (*mmio)(void *opaque, uint32_t vcpu, uint64_t gpa, bool is_write, void *data,
                 uint32_t size);
    /* The machine has written guest memory itself (tracker `own`: a mark before the write could be
     * read and cleared before it); NULL when nobody cares. Not called by load_guest. */
    void (*own_write)(void *opaque, uint64_t gpa, uint64_t size);
    void *opaque;
    /* kvm: entries of a dirty ring for each vCPU, a power of two; 0: KVM logs by its bitmap. */
    uint32_t dirty_ring;
};

/* What the reference guest does; copied into its parameter page. Zero means the default given. */
struct vfmig_guest_config {
    uint64_t working_set_bytes; /* pages that are dirtied; default: half of block 0 */
    uint32_t rate_mib_s;        /* dirtied per second by all vCPUs together; default 100,
                                 * GUEST_RATE_UNLIMITED for as fast as it goes */
    uint32_t sleep_us;          /* longest idle sleep; default 1000 */
    uint32_t timer_hz;          /* LAPIC timer of each vCPU; default 100, GUEST_TIMER_OFF: none */
    uint32_t idle;              /* enum guest_idle */
    uint64_t seed;              /* of every random order; default 1 */
    uint32_t dma_in_flight;     /* descriptors kept queued per device; default 16 */
    uint32_t dma_bytes;         /* bytes of one descriptor, a multiple of 64; default 4096 */
    uint32_t dma_ops_s;         /* descriptors per second and device; 0: as the device goes */
    uint32_t irq_timeout_ms;    /* an interrupt this late is lost; default 5000 */
    uint32_t device_count;
    uint64_t device_bar[GUEST_MAX_DEVICES]; /* GPA of each dma device's BAR */
    uint32_t device_peer[GUEST_MAX_DEVICES]; /* the dma device, by its place in device_bar plus one,
                                              * that this one reaches by peer to peer DMA; 0: none */
    uint32_t device_iommu[GUEST_MAX_DEVICES]; /* its number at the vIOMMU plus one; 0: not behind it */
    uint32_t device_pasid[GUEST_MAX_DEVICES]; /* the handle that its DMA is tagged with; 0: none */
    uint32_t iommu_answers;                   /* enum guest_iommu_answers */
};

const char *vfmig_accel_name(enum vfmig_accel accel);
/* "auto", "kvm", "none"; -EINVAL for anything else. */
int vfmig_accel_parse(const char *name, enum vfmig_accel *ret_accel);

int vfmig_machine_create(const struct vfmig_machine_config *config,
                         struct vfmig_machine **ret_machine, struct vfmig_error *reterr);
/* Stops the vCPUs if need be. NULL is fine. */
void vfmig_machine_free(struct vfmig_machine *m);
/* The accelerator in use, never AUTO. */
enum vfmig_accel vfmig_machine_accel(const struct vfmig_machine *m);

/* Puts the guest program and its parameters into memory (which must be zero) and the vCPUs at its
 * start. A destination does not call this: its memory and state come with the migration. */
int vfmig_machine_load_guest(struct vfmig_machine *m, const struct vfmig_guest_config *guest,
                             struct vfmig_error *reterr);

/* Lets every vCPU run, from the start or from where it was parked. */
int vfmig_machine_start(struct vfmig_machine *m, struct vfmig_error *reterr);
/* Kicks every vCPU, finishes its pending exit and parks it; returns when all are parked. An mmio
 * callback in progress is waited for. Stopping a stopped machine is fine. */
int vfmig_machine_stop(struct vfmig_machine *m, struct vfmig_error *reterr);
/* Takes this share of their time from the vCPUs, at most VFMIG_MACHINE_MAX_THROTTLE percent, in
 * periods of 20 ms; 0 gives it back, and then no sleep goes on. Running or not. Any thread. */
#define VFMIG_MACHINE_MAX_THROTTLE 99u
int vfmig_machine_throttle(struct vfmig_machine *m, uint32_t percent, struct vfmig_error *reterr);
bool vfmig_machine_running(const struct vfmig_machine *m);
/* CLOCK_MONOTONIC, when the last of the vCPUs that run began to; 0 while one waits to, or none runs. */
uint64_t vfmig_machine_run_since(struct vfmig_machine *m);
/* Negative once a vCPU died (*reterr says how); asked by the VMM now and then. Any thread. */
int vfmig_machine_failed(struct vfmig_machine *m, struct vfmig_error *reterr);

/* With the vCPUs parked and every device quiet: makes sure that each interrupt signalled so far is
 * in the vCPUs' state (irqfds are flushed, eventfds nobody read yet are counted and delivered).
 * The eventfds stay usable; start takes them up again. */
int vfmig_machine_flush_irqs(struct vfmig_machine *m, uint32_t *ret_unread,
                             struct vfmig_error *reterr);

/* State of vCPUs and interrupt controllers, parked only. save appends a versioned blob with its
 * CRC; load checks it whole before it sets anything. */
int vfmig_machine_save(struct vfmig_machine *m, struct vfmig_buffer *out, struct vfmig_error *reterr);
int vfmig_machine_load(struct vfmig_machine *m, const void *data, size_t size,
                       struct vfmig_error *reterr);

/* Appends lines "name=value": what both sides must have in common (accelerator, vCPU count,
 * CPUID, MSR list, XSAVE size, TSC kHz). */
int vfmig_machine_identity(struct vfmig_machine *m, struct vfmig_buffer *out,
                           struct vfmig_error *reterr);

/* The eventfd whose signal raises the MSI (address, data); gsi is any number below
 * GUEST_MAX_GSIS that the caller uses for this vector. Again for the same gsi: new address and data,
 * same eventfd. The machine owns it. Any thread. */
int vfmig_machine_msi_eventfd(struct vfmig_machine *m, uint32_t gsi, uint64_t address, uint32_t data,
                              struct vfmig_error *reterr);

/* Guest writes of size bytes at gpa signal fd instead of calling mmio. -ENOTSUP where the
 * accelerator has no such thing: nothing is lost, mmio is called. */
int vfmig_machine_ioeventfd(struct vfmig_machine *m, uint64_t gpa, uint32_t size, int fd, bool add,
                            struct vfmig_error *reterr);

/* For dirty trackers: KVM's VM descriptor (-1 with none) and its slots; slot numbers are the
 * indices of the memory blocks. */
int vfmig_machine_vm_fd(const struct vfmig_machine *m);
int vfmig_machine_vcpu_fd(const struct vfmig_machine *m, uint32_t vcpu);

/* Entries of each vCPU's dirty ring, 0: there are none. *ret_backup: KVM has a bitmap beside them. */
uint32_t vfmig_machine_dirty_ring(const struct vfmig_machine *m, bool *ret_backup);
/* full is called in a vCPU's thread when its ring is full; NULL, and the vCPUs stopped, before opaque
 * goes away. */
void vfmig_machine_on_ring_full(struct vfmig_machine *m,
                                void (*full)(void *opaque, uint32_t vcpu), void *opaque);

/* The guest's own report, in guest memory, changing while it runs. Any thread. */
const struct guest_scoreboard *vfmig_machine_scoreboard(const struct vfmig_machine *m);
/* Asks the guest to forget the longest pause seen so far. Any thread. */
void vfmig_machine_reset_pause(struct vfmig_machine *m);

#endif
