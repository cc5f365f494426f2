/* SPDX-License-Identifier: BSD-3-Clause */
/* The accelerator `kvm`: creating the VM, running its vCPUs. */
#include "vmm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#include "dirty/trackers.h"

#define KICK_SIGNAL (SIGRTMIN + 1)
#define TSS_ADDRESS 0xfffbd000u /* three pages nobody uses, for hosts that need them */
#define MAP_ADDRESS 0xfffbc000u

int kvm_fail(struct vfmig_error *reterr, const char *what)
{
    int code = -errno;
    return vfmig_error_set(reterr, code, VFMIG_ORIGIN_KERNEL, 0, "KVM: %s: %s", what,
                           strerror(-code));
}

static int check_kernel(struct kvm_machine *k, struct vfmig_error *reterr)
{
    static const struct {
        int cap;
        const char *name;
    } needed[] = {
        {KVM_CAP_USER_MEMORY, "user memory"}, {KVM_CAP_IRQCHIP, "an interrupt controller"},
        {KVM_CAP_IRQFD, "irqfd"},             {KVM_CAP_SIGNAL_MSI, "MSI injection"},
        {KVM_CAP_IMMEDIATE_EXIT, "immediate exit"}, {KVM_CAP_XSAVE, "XSAVE"},
        {KVM_CAP_XCRS, "XCRS"},               {KVM_CAP_DEBUGREGS, "debug registers"},
        {KVM_CAP_VCPU_EVENTS, "vCPU events"}, {KVM_CAP_GET_TSC_KHZ, "the TSC frequency"},
    };
    if (ioctl(k->kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_KERNEL, 0,
                               "KVM: not the API version %d", KVM_API_VERSION);
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
        if (ioctl(k->vm_fd, KVM_CHECK_EXTENSION, needed[i].cap) <= 0)
            return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_KERNEL, 0,
                                   "KVM: this kernel lacks %s", needed[i].name);
    int size = ioctl(k->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
    k->xsave_size = size > (int)sizeof(struct kvm_xsave) ? (size_t)size : sizeof(struct kvm_xsave);
    if (k->xsave_size > KVM_XSAVE_MAX)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_KERNEL, 0,
                               "KVM: %zu bytes of XSAVE state", k->xsave_size);
    return 0;
}

static int add_memory(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    struct kvm_machine *k = kvm_of(m);
    for (uint32_t i = 0; i < m->config.memory.block_count; i++) {
        struct kvm_userspace_memory_region slot = {
            .slot = i,
            .guest_phys_addr = m->blocks[i].gpa,
            .memory_size = m->blocks[i].size,
            .userspace_addr = (uintptr_t)m->blocks[i].host,
        };
        if (ioctl(k->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
            return kvm_fail(reterr, "cannot add guest memory");
    }
    return 0;
}

static int make_vm(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    struct kvm_machine *k = kvm_of(m);
    k->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (k->kvm_fd < 0)
        return kvm_fail(reterr, "cannot open /dev/kvm");
    k->vm_fd = ioctl(k->kvm_fd, KVM_CREATE_VM, 0);
    if (k->vm_fd < 0)
        return kvm_fail(reterr, "cannot create a VM");
    int ret = check_kernel(k, reterr);
    if (ret == 0 && m->config.dirty_ring)
        ret = vfmig_tracker_kvm_ring_enable(k->vm_fd, m->config.dirty_ring, &k->ring_backup, reterr);
    if (ret < 0)
        return ret;
    uint64_t map = MAP_ADDRESS;
    if (ioctl(k->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &map) < 0 ||
        ioctl(k->vm_fd, KVM_SET_TSS_ADDR, TSS_ADDRESS) < 0)
        return kvm_fail(reterr, "cannot place its private pages");
    if (ioctl(k->vm_fd, KVM_CREATE_IRQCHIP, 0) < 0)
        return kvm_fail(reterr, "cannot create the interrupt controllers");
    int size = ioctl(k->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < (int)sizeof(struct kvm_run))
        return kvm_fail(reterr, "no size of the shared page");
    k->run_size = (size_t)size;
    return add_memory(m, reterr);
}

/* What says on which host CPU the question was asked is not part of what the guest gets, and
 * differs from one call to the next. */
static void forget_host_cpu(struct kvm_machine *k)
{
    for (uint32_t i = 0; i < k->cpuid.head.nent; i++) {
        struct kvm_cpuid_entry2 *e = &k->cpuid.entries[i];
        if (e->function == 1)
            e->ebx &= 0x00ffffff; /* initial APIC id */
        if (e->function == 0xb || e->function == 0x1f)
            e->edx = 0; /* x2APIC id */
        if (e->function == 0x8000001e)
            e->eax = e->ebx = e->ecx = 0; /* APIC, core and node id */
    }
}

static int set_cpuid(struct kvm_machine *k, uint32_t vcpu, struct vfmig_error *reterr)
{
    struct kvm_cpuid_table cpuid = k->cpuid;
    for (uint32_t i = 0; i < cpuid.head.nent; i++) {
        struct kvm_cpuid_entry2 *e = &cpuid.entries[i];
        if (e->function == 1)
            e->ebx = (e->ebx & 0x00ffffff) | vcpu << 24;
        if (e->function == 0xb || e->function == 0x1f)
            e->edx = vcpu;
    }
    if (ioctl(k->vcpus[vcpu].fd, KVM_SET_CPUID2, &cpuid) < 0)
        return kvm_fail(reterr, "cannot set CPUID");
    return 0;
}

static int make_vcpu(struct vfmig_machine *m, uint32_t vcpu, struct vfmig_error *reterr)
{
    struct kvm_machine *k = kvm_of(m);
    struct kvm_vcpu *v = &k->vcpus[vcpu];
    v->fd = ioctl(k->vm_fd, KVM_CREATE_VCPU, vcpu);
    if (v->fd < 0)
        return kvm_fail(reterr, "cannot create a vCPU");
    void *run = mmap(NULL, k->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    if (run == MAP_FAILED)
        return kvm_fail(reterr, "cannot map the shared page of a vCPU");
    v->run = run;
    struct {
        struct kvm_signal_mask head;
        uint64_t set;
    } mask = {.head.len = 8};
    memcpy(mask.head.sigset, &k->run_mask, 8);
    if (ioctl(v->fd, KVM_SET_SIGNAL_MASK, &mask) < 0)
        return kvm_fail(reterr, "cannot set the signal mask of a vCPU");
    return set_cpuid(k, vcpu, reterr);
}

static void ignore_signal(int number)
{
    (void)number;
}

/* The kick signal is blocked in every thread and open only inside KVM_RUN, so that no other system
 * call of a vCPU's thread is ever interrupted by it. */
static int prepare_signal(struct kvm_machine *k, struct vfmig_error *reterr)
{
    struct sigaction action = {.sa_handler = ignore_signal};
    if (sigaction(KICK_SIGNAL, &action, NULL) < 0)
        return kvm_fail(reterr, "cannot install the kick signal");
    pthread_sigmask(SIG_SETMASK, NULL, &k->run_mask);
    sigdelset(&k->run_mask, KICK_SIGNAL);
    return 0;
}

static bool try_vector_256(struct kvm_machine *k)
{
    struct kvm_sregs sregs;
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = 7}};
    int fd = k->vcpus[0].fd;
    if (!__builtin_cpu_supports("avx") || ioctl(fd, KVM_GET_SREGS, &sregs) < 0)
        return false;
    sregs.cr4 |= UINT64_C(1) << 18; /* OSXSAVE */
    return ioctl(fd, KVM_SET_SREGS, &sregs) == 0 && ioctl(fd, KVM_SET_XCRS, &xcrs) == 0;
}

static int create_parts(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    struct kvm_machine *k = kvm_of(m);
    int ret = make_vm(m, reterr);
    if (ret == 0)
        ret = prepare_signal(k, reterr);
    if (ret < 0)
        return ret;
    k->cpuid.head.nent = KVM_CPUID_MAX;
    if (ioctl(k->kvm_fd, KVM_GET_SUPPORTED_CPUID, &k->cpuid) < 0)
        return kvm_fail(reterr, "cannot read the supported CPUID");
    forget_host_cpu(k);
    for (uint32_t i = 0; i < m->config.vcpu_count; i++) {
        ret = make_vcpu(m, i, reterr);
        if (ret < 0)
            return ret;
    }
    int khz = ioctl(k->vcpus[0].fd, KVM_GET_TSC_KHZ, 0);
    if (khz <= 0)
        return kvm_fail(reterr, "no TSC frequency");
    k->tsc_khz = (uint64_t)khz;
    k->vector_256 = try_vector_256(k);
    k->tsc_offset = kvm_keeps_tsc_offset(k);
    return kvm_find_msrs(k, reterr);
}

static void kvm_destroy(struct vfmig_machine *m)
{
    struct kvm_machine *k = kvm_of(m);
    for (uint32_t i = 0; i < m->config.vcpu_count; i++) {
        if (k->vcpus[i].run)
            munmap(k->vcpus[i].run, k->run_size);
        if (k->vcpus[i].fd >= 0)
            close(k->vcpus[i].fd);
    }
    if (k->vm_fd >= 0)
        close(k->vm_fd);
    if (k->kvm_fd >= 0)
        close(k->kvm_fd);
    free(k);
    m->accel = NULL;
}

static int kvm_create(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    struct kvm_machine *k = calloc(1, sizeof(*k));
    if (!k)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for KVM");
    k->kvm_fd = k->vm_fd = -1;
    for (uint32_t i = 0; i < GUEST_MAX_VCPUS; i++)
        k->vcpus[i].fd = -1;
    m->accel = k;
    int ret = create_parts(m, reterr);
    if (ret < 0)
        kvm_destroy(m);
    return ret;
}

/* The guest has not gone on since, so nothing is lost: whoever logs empties the ring. */
static bool empty_ring(struct vfmig_machine *m, uint32_t vcpu)
{
    struct kvm_machine *k = kvm_of(m);
    void (*full)(void *opaque, uint32_t vcpu) = k->ring_full;

    if (full)
        full(k->ring_opaque, vcpu);
    else
        machine_vcpu_died(m, vcpu, "its dirty ring is full and nobody reads it");
    return full;
}

/* True when the vCPU may go on. */
static bool handle_exit(struct vfmig_machine *m, uint32_t vcpu)
{
    struct kvm_vcpu *v = &kvm_of(m)->vcpus[vcpu];
    struct kvm_run *run = v->run;
    switch (run->exit_reason) {
    case KVM_EXIT_MMIO:
        machine_mmio(m, vcpu, run->mmio.phys_addr, run->mmio.is_write, run->mmio.data,
                     run->mmio.len);
        v->pending = true;
        return !m->vcpus[vcpu].dead;
    case KVM_EXIT_INTR:
        return true;
    case KVM_EXIT_DIRTY_RING_FULL:
        return empty_ring(m, vcpu);
    case KVM_EXIT_FAIL_ENTRY:
        machine_vcpu_died(m, vcpu, "KVM cannot enter it, reason %#llx",
                          (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
        return false;
    case KVM_EXIT_INTERNAL_ERROR:
        machine_vcpu_died(m, vcpu, "KVM internal error %u", run->internal.suberror);
        return false;
    default:
        machine_vcpu_died(m, vcpu, "unexpected KVM exit %u", run->exit_reason);
        return false;
    }
}

static void take_kick(void)
{
    sigset_t set;
    struct timespec now = {0};
    sigemptyset(&set);
    sigaddset(&set, KICK_SIGNAL);
    while (sigtimedwait(&set, NULL, &now) > 0)
        ;
}

/* A stop says so in m->stop before it kicks, which is looked at after this. */
static void forget_kick(struct kvm_vcpu *v)
{
    __atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    take_kick();
}

/* Entering with immediate_exit finishes the last exit (its MMIO read reaches the register, its
 * instruction pointer moves on) and comes back before the guest runs. */
static void kvm_run_vcpu(struct vfmig_machine *m, uint32_t vcpu)
{
    struct kvm_vcpu *v = &kvm_of(m)->vcpus[vcpu];
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, KICK_SIGNAL);
    pthread_sigmask(SIG_BLOCK, &kick, NULL);
    forget_kick(v); /* of the last stop, which may have come after its thread had seen m->stop */
    for (;;) {
        if (machine_stopping(m)) {
            if (!v->pending)
                break;
            __atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
        } else if (machine_throttle_due(m, vcpu)) {
            machine_throttle_sleep(m, vcpu);
            continue;
        }
        int ret = ioctl(v->fd, KVM_RUN, 0);
        int code = ret < 0 ? errno : 0;
        v->pending = false;
        if (code == EINTR) {
            forget_kick(v);
        } else if (code && code != EAGAIN) {
            machine_vcpu_died(m, vcpu, "KVM_RUN: %s", strerror(code));
            break;
        }
        if (ret == 0 && !handle_exit(m, vcpu))
            break;
    }
}

static void kvm_kick(struct vfmig_machine *m, uint32_t vcpu)
{
    __atomic_store_n(&kvm_of(m)->vcpus[vcpu].run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    pthread_kill(m->vcpus[vcpu].thread, KICK_SIGNAL);
}

static uint64_t kvm_tsc_khz(struct vfmig_machine *m)
{
    return kvm_of(m)->tsc_khz;
}

static uint32_t kvm_guest_flags(struct vfmig_machine *m)
{
    return GUEST_FLAG_IRQ | GUEST_FLAG_XMM | (kvm_of(m)->vector_256 ? GUEST_FLAG_YMM : 0);
}

int vfmig_machine_vm_fd(const struct vfmig_machine *m)
{
    return m->ops == &machine_kvm_ops ? ((struct kvm_machine *)m->accel)->vm_fd : -1;
}

int vfmig_machine_vcpu_fd(const struct vfmig_machine *m, uint32_t vcpu)
{
    bool mine = m->ops == &machine_kvm_ops && vcpu < m->config.vcpu_count;
    return mine ? ((struct kvm_machine *)m->accel)->vcpus[vcpu].fd : -1;
}

uint32_t vfmig_machine_dirty_ring(const struct vfmig_machine *m, bool *ret_backup)
{
    bool mine = m->ops == &machine_kvm_ops;

    *ret_backup = mine && ((struct kvm_machine *)m->accel)->ring_backup;
    return mine ? m->config.dirty_ring : 0;
}

void vfmig_machine_on_ring_full(struct vfmig_machine *m,
                                void (*full)(void *opaque, uint32_t vcpu), void *opaque)
{
    if (m->ops != &machine_kvm_ops)
        return;
    kvm_of(m)->ring_opaque = opaque;
    kvm_of(m)->ring_full = full;
}

const struct machine_ops machine_kvm_ops = {
    .accel = VFMIG_ACCEL_KVM,
    .create = kvm_create,
    .destroy = kvm_destroy,
    .boot = kvm_boot,
    .run = kvm_run_vcpu,
    .kick = kvm_kick,
    .resume = kvm_resume,
    .flush_irqs = kvm_flush_irqs,
    .save = kvm_save,
    .load = kvm_load,
    .identity = kvm_identity,
    .msi = kvm_msi,
    .ioeventfd = kvm_ioeventfd,
    .tsc_khz = kvm_tsc_khz,
    .guest_flags = kvm_guest_flags,
};
