/* SPDX-License-Identifier: BSD-3-Clause */
/* The accelerator `kvm`: reading and setting the state of vCPUs, interrupt controllers and clock,
 * in the order of design section 5. */
#include "vmm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <x86intrin.h>

#define MSR_TSC          0x10u
#define MSR_TSC_DEADLINE 0x6e0u

#ifndef KVM_GET_XSAVE2
#define KVM_GET_XSAVE2 _IOR(KVMIO, 0xcf, struct kvm_xsave)
#endif

enum { /* records of a vCPU, in the order in which they are set; then those of the VM */
    TAG_SREGS = 16,
    TAG_LAPIC,
    TAG_XCRS,
    TAG_XSAVE,
    TAG_TSC,
    TAG_MSRS,
    TAG_DEBUGREGS,
    TAG_REGS,
    TAG_MP_STATE,
    TAG_EVENTS,
    TAG_VCPU_END,
    TAG_IRQCHIP = 64, /* + chip */
    TAG_CLOCK = 67,
    TAG_VM_END,
};

struct msr_batch {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[KVM_MSRS_MAX];
};

struct clock_record {
    uint64_t clock_ns;
    uint64_t realtime_ns;
};

static uint64_t read_tsc(void)
{
    return __rdtsc();
}

static uint64_t realtime_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* An MSR that KVM names but cannot read is not carried. */
int kvm_find_msrs(struct kvm_machine *k, struct vfmig_error *reterr)
{
    struct kvm_msr_list_full all = {.head.nmsrs = KVM_MSRS_MAX};
    if (ioctl(k->kvm_fd, KVM_GET_MSR_INDEX_LIST, &all) < 0)
        return kvm_fail(reterr, "cannot read the list of MSRs");
    k->msrs.head.nmsrs = 0;
    for (uint32_t i = 0; i < all.head.nmsrs; i++) {
        struct {
            struct kvm_msrs head;
            struct kvm_msr_entry entry;
        } one = {.head.nmsrs = 1, .entry.index = all.indices[i]};
        if (all.indices[i] == MSR_TSC) /* carried by its offset */
            continue;
        if (ioctl(k->vcpus[0].fd, KVM_GET_MSRS, &one) == 1)
            k->msrs.indices[k->msrs.head.nmsrs++] = all.indices[i];
    }
    return 0;
}

static int no_room(struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ENOBUFS, VFMIG_ORIGIN_LOCAL, 0,
                           "no room for the state of the vCPUs");
}

/* The plain structures: one ioctl to read, one to set. */
static const struct plain {
    uint32_t tag;
    size_t size;
    unsigned long get, set;
    const char *name;
} plains[] = {
    {TAG_SREGS, sizeof(struct kvm_sregs), KVM_GET_SREGS, KVM_SET_SREGS, "the system registers"},
    {TAG_LAPIC, sizeof(struct kvm_lapic_state), KVM_GET_LAPIC, KVM_SET_LAPIC, "the LAPIC"},
    {TAG_XCRS, sizeof(struct kvm_xcrs), KVM_GET_XCRS, KVM_SET_XCRS, "the XCRs"},
    {TAG_DEBUGREGS, sizeof(struct kvm_debugregs), KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS,
     "the debug registers"},
    {TAG_REGS, sizeof(struct kvm_regs), KVM_GET_REGS, KVM_SET_REGS, "the registers"},
    {TAG_MP_STATE, sizeof(struct kvm_mp_state), KVM_GET_MP_STATE, KVM_SET_MP_STATE, "the MP state"},
    {TAG_EVENTS, sizeof(struct kvm_vcpu_events), KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS,
     "the pending events"},
};

static const struct plain *find_plain(uint32_t tag)
{
    for (size_t i = 0; i < sizeof(plains) / sizeof(plains[0]); i++)
        if (plains[i].tag == tag)
            return &plains[i];
    return NULL;
}

static int save_plain(struct kvm_machine *k, uint32_t vcpu, uint32_t tag, struct vfmig_buffer *out,
                      struct vfmig_error *reterr)
{
    const struct plain *plain = find_plain(tag);
    uint64_t data[512] = {0};
    _Static_assert(sizeof(struct kvm_lapic_state) <= sizeof(data), "the largest plain structure");
    if (ioctl(k->vcpus[vcpu].fd, plain->get, data) < 0) {
        int ret = kvm_fail(reterr, plain->name);
        vfmig_error_prefix(reterr, "reading the state of vCPU %u", vcpu);
        return ret;
    }
    return machine_put(out, tag, vcpu, data, plain->size) < 0 ? no_room(reterr) : 0;
}

static int save_xsave(struct kvm_machine *k, uint32_t vcpu, struct vfmig_buffer *out,
                      struct vfmig_error *reterr)
{
    void *area = calloc(1, k->xsave_size);
    if (!area)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for XSAVE state");
    unsigned long get = k->xsave_size > sizeof(struct kvm_xsave) ? KVM_GET_XSAVE2 : KVM_GET_XSAVE;
    int ret = ioctl(k->vcpus[vcpu].fd, get, area);
    if (ret < 0)
        ret = kvm_fail(reterr, "cannot read the XSAVE state");
    else if (machine_put(out, TAG_XSAVE, vcpu, area, k->xsave_size) < 0)
        ret = no_room(reterr);
    free(area);
    return ret;
}

static int save_msrs(struct kvm_machine *k, uint32_t vcpu, struct vfmig_buffer *out,
                     struct vfmig_error *reterr)
{
    struct msr_batch *batch = calloc(1, sizeof(*batch));
    if (!batch)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for MSRs");
    uint32_t count = k->msrs.head.nmsrs;
    batch->head.nmsrs = count;
    for (uint32_t i = 0; i < count; i++)
        batch->entries[i].index = k->msrs.indices[i];
    int ret = ioctl(k->vcpus[vcpu].fd, KVM_GET_MSRS, batch);
    if (ret != (int)count)
        ret = vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_KERNEL, 0,
                              "KVM: cannot read MSR %#x of vCPU %u",
                              ret >= 0 ? k->msrs.indices[ret] : 0, vcpu);
    else if (machine_put(out, TAG_MSRS, vcpu, batch->entries, count * sizeof(batch->entries[0])) < 0)
        ret = no_room(reterr);
    else
        ret = 0;
    free(batch);
    return ret;
}

static struct kvm_device_attr tsc_attr(uint64_t *value)
{
    return (struct kvm_device_attr){
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)value};
}

/* Some hosts (kvm_pvm) take an offset and do not use it. */
bool kvm_keeps_tsc_offset(struct kvm_machine *k)
{
    uint64_t old = 0, wanted, found = 0;
    struct kvm_device_attr attr = tsc_attr(&old);
    if (ioctl(k->vcpus[0].fd, KVM_GET_DEVICE_ATTR, &attr) < 0)
        return false;
    wanted = old + (UINT64_C(1) << 40);
    attr = tsc_attr(&wanted);
    ioctl(k->vcpus[0].fd, KVM_SET_DEVICE_ATTR, &attr);
    attr = tsc_attr(&found);
    ioctl(k->vcpus[0].fd, KVM_GET_DEVICE_ATTR, &attr);
    attr = tsc_attr(&old);
    ioctl(k->vcpus[0].fd, KVM_SET_DEVICE_ATTR, &attr);
    return found == wanted;
}

static int save_tsc(struct kvm_machine *k, uint32_t vcpu, struct vfmig_buffer *out,
                    struct vfmig_error *reterr)
{
    struct machine_tsc tsc;
    uint64_t offset = 0;
    struct kvm_device_attr attr = tsc_attr(&offset);
    if (ioctl(k->vcpus[vcpu].fd, KVM_GET_DEVICE_ATTR, &attr) < 0)
        return kvm_fail(reterr, "cannot read the TSC offset");
    machine_tsc_fill(&tsc, read_tsc, offset, k->tsc_khz);
    return machine_put(out, TAG_TSC, vcpu, &tsc, sizeof(tsc)) < 0 ? no_room(reterr) : 0;
}

/* MP state comes first: reading it makes KVM take in what INIT and SIPI left pending. */
static int save_vcpu(struct kvm_machine *k, uint32_t vcpu, struct vfmig_buffer *out,
                     struct vfmig_error *reterr)
{
    static const uint32_t order[] = {TAG_MP_STATE, TAG_EVENTS,    TAG_REGS, TAG_SREGS, TAG_XSAVE,
                                     TAG_XCRS,     TAG_DEBUGREGS, TAG_MSRS, TAG_TSC,   TAG_LAPIC};
    for (size_t i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
        int ret;
        if (order[i] == TAG_XSAVE)
            ret = save_xsave(k, vcpu, out, reterr);
        else if (order[i] == TAG_MSRS)
            ret = save_msrs(k, vcpu, out, reterr);
        else if (order[i] == TAG_TSC)
            ret = save_tsc(k, vcpu, out, reterr);
        else
            ret = save_plain(k, vcpu, order[i], out, reterr);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int kvm_save(struct vfmig_machine *m, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct kvm_machine *k = kvm_of(m);
    for (uint32_t i = 0; i < m->config.vcpu_count; i++) {
        int ret = save_vcpu(k, i, out, reterr);
        if (ret < 0)
            return ret;
    }
    for (uint32_t i = 0; i < 3; i++) {
        struct kvm_irqchip chip = {.chip_id = i};
        if (ioctl(k->vm_fd, KVM_GET_IRQCHIP, &chip) < 0)
            return kvm_fail(reterr, "cannot read an interrupt controller");
        if (machine_put(out, TAG_IRQCHIP + i, 0, &chip, sizeof(chip)) < 0)
            return no_room(reterr);
    }
    struct kvm_clock_data clock = {0};
    if (ioctl(k->vm_fd, KVM_GET_CLOCK, &clock) < 0)
        return kvm_fail(reterr, "cannot read the clock");
    struct clock_record record = {.clock_ns = clock.clock, .realtime_ns = realtime_now()};
    return machine_put(out, TAG_CLOCK, 0, &record, sizeof(record)) < 0 ? no_room(reterr) : 0;
}

static int bad_record(struct vfmig_error *reterr, uint32_t tag)
{
    return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                           "record %u of the machine's state is missing or has a wrong size", tag);
}

static int set_plain(struct kvm_machine *k, const struct machine_record *r, struct vfmig_error *reterr)
{
    const struct plain *plain = find_plain(r->tag);
    uint64_t data[512];
    if (r->size != plain->size)
        return bad_record(reterr, r->tag);
    memcpy(data, r->data, r->size);
    if (ioctl(k->vcpus[r->vcpu].fd, plain->set, data) == 0)
        return 0;
    int ret = kvm_fail(reterr, plain->name);
    vfmig_error_prefix(reterr, "setting the state of vCPU %u", r->vcpu);
    return ret;
}

static int set_xsave(struct kvm_machine *k, const struct machine_record *r, struct vfmig_error *reterr)
{
    if (r->size != k->xsave_size)
        return bad_record(reterr, r->tag);
    void *area = malloc(r->size);
    if (!area)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for XSAVE state");
    memcpy(area, r->data, r->size);
    int ret = ioctl(k->vcpus[r->vcpu].fd, KVM_SET_XSAVE, area);
    if (ret < 0)
        ret = kvm_fail(reterr, "cannot set the XSAVE state");
    free(area);
    return ret;
}

static int set_tsc(struct kvm_machine *k, const struct machine_record *r, struct vfmig_error *reterr)
{
    struct machine_tsc tsc;
    if (r->size != sizeof(tsc))
        return bad_record(reterr, r->tag);
    memcpy(&tsc, r->data, sizeof(tsc));
    uint64_t offset = machine_tsc_offset(&tsc, read_tsc);
    if (!k->tsc_offset && offset)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_KERNEL, 0,
                               "this host's KVM keeps no TSC offset: the guest's clock would jump");
    struct kvm_device_attr attr = tsc_attr(&offset);
    if (ioctl(k->vcpus[r->vcpu].fd, KVM_SET_DEVICE_ATTR, &attr) < 0)
        return kvm_fail(reterr, "cannot set the TSC offset");
    return 0;
}

/* One MSR. What cannot be set but already has the value is right as it is. */
static int set_msr(struct kvm_machine *k, uint32_t vcpu, const struct kvm_msr_entry *entry,
                   struct vfmig_error *reterr)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } one = {.head.nmsrs = 1, .entry = *entry};
    if (ioctl(k->vcpus[vcpu].fd, KVM_SET_MSRS, &one) == 1)
        return 0;
    one.entry.data = ~entry->data;
    if (ioctl(k->vcpus[vcpu].fd, KVM_GET_MSRS, &one) == 1 && one.entry.data == entry->data)
        return 0;
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_KERNEL, 0,
                           "KVM: vCPU %u does not take %#llx in MSR %#x", vcpu,
                           (unsigned long long)entry->data, entry->index);
}

/* The TSC deadline comes last: it is armed against the TSC and the LAPIC, which stand by now. */
static int set_msrs(struct kvm_machine *k, const struct machine_record *r, struct vfmig_error *reterr)
{
    uint32_t count = r->size / sizeof(struct kvm_msr_entry);
    if (r->size % sizeof(struct kvm_msr_entry) || count > KVM_MSRS_MAX)
        return bad_record(reterr, r->tag);
    for (int last = 0; last < 2; last++)
        for (uint32_t i = 0; i < count; i++) {
            struct kvm_msr_entry entry;
            memcpy(&entry, (const uint8_t *)r->data + i * sizeof(entry), sizeof(entry));
            if ((entry.index == MSR_TSC_DEADLINE) != last)
                continue;
            int ret = set_msr(k, r->vcpu, &entry, reterr);
            if (ret < 0)
                return ret;
        }
    return 0;
}

static int set_irqchip(struct kvm_machine *k, const struct machine_record *r,
                       struct vfmig_error *reterr)
{
    struct kvm_irqchip chip;
    if (r->size != sizeof(chip))
        return bad_record(reterr, r->tag);
    memcpy(&chip, r->data, sizeof(chip));
    if (ioctl(k->vm_fd, KVM_SET_IRQCHIP, &chip) < 0)
        return kvm_fail(reterr, "cannot set an interrupt controller");
    return 0;
}

static int set_clock(struct kvm_machine *k, const struct machine_record *r, struct vfmig_error *reterr)
{
    struct clock_record record;
    if (r->size != sizeof(record))
        return bad_record(reterr, r->tag);
    memcpy(&record, r->data, sizeof(record));
    uint64_t now = realtime_now();
    struct kvm_clock_data clock = {.clock = record.clock_ns};
    if (now > record.realtime_ns)
        clock.clock += now - record.realtime_ns;
    if (ioctl(k->vm_fd, KVM_SET_CLOCK, &clock) < 0)
        return kvm_fail(reterr, "cannot set the clock");
    return 0;
}

static int set_record(struct kvm_machine *k, const struct machine_record *r,
                      struct vfmig_error *reterr)
{
    if (find_plain(r->tag))
        return set_plain(k, r, reterr);
    if (r->tag == TAG_XSAVE)
        return set_xsave(k, r, reterr);
    if (r->tag == TAG_TSC)
        return set_tsc(k, r, reterr);
    if (r->tag == TAG_MSRS)
        return set_msrs(k, r, reterr);
    return r->tag == TAG_CLOCK ? set_clock(k, r, reterr) : set_irqchip(k, r, reterr);
}

static int load_tag(struct kvm_machine *k, const void *data, size_t size, uint32_t vcpu, uint32_t tag,
                    struct vfmig_error *reterr)
{
    struct machine_record record;
    size_t offset = 0;
    while (machine_get(data, size, &offset, &record) > 0)
        if (record.vcpu == vcpu && record.tag == tag)
            return set_record(k, &record, reterr);
    return bad_record(reterr, tag);
}

int kvm_load(struct vfmig_machine *m, const void *data, size_t size, struct vfmig_error *reterr)
{
    struct kvm_machine *k = kvm_of(m);
    int ret = 0;
    for (uint32_t vcpu = 0; vcpu < m->config.vcpu_count && ret == 0; vcpu++) {
        for (uint32_t tag = TAG_SREGS; tag < TAG_VCPU_END && ret == 0; tag++)
            ret = load_tag(k, data, size, vcpu, tag, reterr);
    }
    for (uint32_t tag = TAG_IRQCHIP; tag < TAG_VM_END && ret == 0; tag++)
        ret = load_tag(k, data, size, 0, tag, reterr);
    return ret;
}

static int put_cpuid(struct kvm_machine *k, struct vfmig_buffer *out)
{
    for (uint32_t i = 0; i < k->cpuid.head.nent; i++) {
        const struct kvm_cpuid_entry2 *e = &k->cpuid.entries[i];
        int ret = vfmig_buffer_printf(out, "cpuid.%x.%x=%08x %08x %08x %08x\n", e->function, e->index,
                                      e->eax, e->ebx, e->ecx, e->edx);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int kvm_identity(struct vfmig_machine *m, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct kvm_machine *k = kvm_of(m);
    struct machine_tsc tsc;
    machine_tsc_fill(&tsc, read_tsc, 0, k->tsc_khz);
    int ret = vfmig_buffer_printf(out, "tsc=%s", k->tsc_offset ? "offset" : "host:");
    for (uint32_t i = 0; i < 16 && ret == 0 && !k->tsc_offset; i++)
        ret = vfmig_buffer_printf(out, "%02x", tsc.boot_id[i]);
    if (ret == 0)
        ret = vfmig_buffer_printf(out, "\nxsave_size=%zu\nmsrs=", k->xsave_size);
    for (uint32_t i = 0; i < k->msrs.head.nmsrs && ret == 0; i++)
        ret = vfmig_buffer_printf(out, "%s%x", i ? "," : "", k->msrs.indices[i]);
    if (ret == 0)
        ret = vfmig_buffer_printf(out, "\n");
    if (ret == 0)
        ret = put_cpuid(k, out);
    if (ret < 0)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_LOCAL, 0, "no room for the identity text");
    return 0;
}
