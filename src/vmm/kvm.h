/* SPDX-License-Identifier: BSD-3-Clause */
/* The accelerator `kvm`, inside. */
#ifndef VFMIG_VMM_KVM_H
#define VFMIG_VMM_KVM_H

#include <linux/kvm.h>

#include "vmm/machine_internal.h"

#define KVM_CPUID_MAX 256u
#define KVM_MSRS_MAX  1024u
#define KVM_XSAVE_MAX (1u << 20) /* bytes of XSAVE state that are taken from a kernel */

struct kvm_cpuid_table {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[KVM_CPUID_MAX];
};

struct kvm_msr_list_full {
    struct kvm_msr_list head;
    uint32_t indices[KVM_MSRS_MAX];
};

struct kvm_vcpu {
    int fd;
    struct kvm_run *run;
    bool pending; /* the last exit is not finished: its thread only */
};

struct kvm_machine {
    int kvm_fd, vm_fd;
    size_t run_size;
    size_t xsave_size;
    uint64_t tsc_khz;
    bool vector_256; /* the guest may use YMM */
    bool tsc_offset; /* false: the guest's TSC is the host's, whatever offset is set */
    bool ring_backup; /* beside the dirty rings there is a bitmap */
    void (*_Atomic ring_full)(void *opaque, uint32_t vcpu);
    void *ring_opaque;
    sigset_t run_mask;
    struct kvm_cpuid_table cpuid; /* of vCPU 0 */
    struct kvm_msr_list_full msrs; /* the readable ones */
    struct kvm_vcpu vcpus[GUEST_MAX_VCPUS];
};

static inline struct kvm_machine *kvm_of(struct vfmig_machine *m)
{
    return m->accel;
}

/* "KVM: what: strerror" */
int kvm_fail(struct vfmig_error *reterr, const char *what);

int kvm_boot(struct vfmig_machine *m, uint32_t vcpu, struct vfmig_error *reterr);

bool kvm_keeps_tsc_offset(struct kvm_machine *k);
int kvm_find_msrs(struct kvm_machine *k, struct vfmig_error *reterr);
int kvm_save(struct vfmig_machine *m, struct vfmig_buffer *out, struct vfmig_error *reterr);
int kvm_load(struct vfmig_machine *m, const void *data, size_t size, struct vfmig_error *reterr);
int kvm_identity(struct vfmig_machine *m, struct vfmig_buffer *out, struct vfmig_error *reterr);

int kvm_msi(struct vfmig_machine *m, uint32_t gsi, struct vfmig_error *reterr);
int kvm_resume(struct vfmig_machine *m, struct vfmig_error *reterr);
int kvm_flush_irqs(struct vfmig_machine *m, uint32_t *ret_unread, struct vfmig_error *reterr);
int kvm_ioeventfd(struct vfmig_machine *m, uint64_t gpa, uint32_t size, int fd, bool add,
                  struct vfmig_error *reterr);

#endif
