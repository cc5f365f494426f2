/* SPDX-License-Identifier: BSD-3-Clause */
/* Every register that a saved machine carries: a sentinel that is not zero goes into machine A by
 * KVM's own interface, the state goes to machine B, and KVM's own interface finds it there. */
#include "machine_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#define VCPUS     2u
#define MSRS_MAX  1024u
#define MSR_TSC   0x10u
#define TSC_OFFSET (UINT64_C(0) - 0x123456789000)
#define MSR_TSC_ADJUST 0x3bu
#define MSR_DEADLINE 0x6e0u

struct msr_list {
    struct kvm_msr_list head;
    uint32_t index[MSRS_MAX];
};

struct registers {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_xsave xsave;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debug;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp;
    struct kvm_lapic_state lapic;
    uint64_t msr[MSRS_MAX];
    uint64_t tsc_offset;
};

static struct msr_list msrs;

static int vcpu_fd(const struct rig_vm *vm, uint32_t vcpu)
{
    return vfmig_machine_vcpu_fd(vm->machine, vcpu);
}

static void must(int ret, const char *what)
{
    if (ret < 0)
        fail_msg("%s: %s", what, strerror(errno));
}

static bool msr_get(int fd, uint32_t index, uint64_t *ret_value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } one = {.head.nmsrs = 1, .entry.index = index};
    bool good = ioctl(fd, KVM_GET_MSRS, &one) == 1;
    *ret_value = one.entry.data;
    return good;
}

static bool msr_set(int fd, uint32_t index, uint64_t value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } one = {.head.nmsrs = 1, .entry = {.index = index, .data = value}};
    return ioctl(fd, KVM_SET_MSRS, &one) == 1;
}

static struct kvm_device_attr tsc_attr(uint64_t *value)
{
    return (struct kvm_device_attr){.attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)value};
}

static void get_all(int fd, struct registers *r)
{
    struct kvm_device_attr attr = tsc_attr(&r->tsc_offset);
    memset(r, 0, sizeof(*r));
    must(ioctl(fd, KVM_GET_MP_STATE, &r->mp), "MP state");
    must(ioctl(fd, KVM_GET_VCPU_EVENTS, &r->events), "events");
    must(ioctl(fd, KVM_GET_REGS, &r->regs), "registers");
    must(ioctl(fd, KVM_GET_SREGS, &r->sregs), "system registers");
    must(ioctl(fd, KVM_GET_XSAVE, &r->xsave), "XSAVE");
    must(ioctl(fd, KVM_GET_XCRS, &r->xcrs), "XCRs");
    must(ioctl(fd, KVM_GET_DEBUGREGS, &r->debug), "debug registers");
    must(ioctl(fd, KVM_GET_LAPIC, &r->lapic), "LAPIC");
    must(ioctl(fd, KVM_GET_DEVICE_ATTR, &attr), "TSC offset");
    for (uint32_t i = 0; i < msrs.head.nmsrs; i++)
        msr_get(fd, msrs.index[i], &r->msr[i]);
}

static uint64_t sentinel(uint32_t vcpu, uint32_t number)
{
    return UINT64_C(0x5a00c3d400000001) + ((uint64_t)vcpu << 32) + number * 0x10204u;
}

static void set_regs(int fd, uint32_t vcpu)
{
    struct kvm_regs regs;
    uint64_t *words = (uint64_t *)&regs; /* rax to r15, rip, rflags */
    for (uint32_t i = 0; i < sizeof(regs) / 8; i++)
        words[i] = sentinel(vcpu, i);
    regs.rip = 0x123456 + vcpu;
    regs.rflags = 0x246 + (vcpu << 11);
    must(ioctl(fd, KVM_SET_REGS, &regs), "registers");
}

static void set_sregs(int fd, uint32_t vcpu)
{
    struct kvm_sregs s;
    must(ioctl(fd, KVM_GET_SREGS, &s), "system registers");
    struct kvm_segment *segments[] = {&s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.cs, &s.tr, &s.ldt};
    for (uint32_t i = 0; i < 8; i++) {
        struct kvm_segment *g = segments[i];
        *g = (struct kvm_segment){.base = i < 2 || i > 3 ? 0 : 0x7f0012340000 + i * 0x1000 + vcpu,
                                  .limit = 0xffffffff,
                                  .selector = (uint16_t)((i + 1) * 8 | 3),
                                  .type = 3,
                                  .present = 1,
                                  .dpl = 3,
                                  .db = 1,
                                  .s = 1,
                                  .g = 1};
    }
    s.cs.type = 0xb;
    s.cs.l = 1;
    s.cs.db = 0;
    s.tr = (struct kvm_segment){
        .base = 0x18000 + vcpu * 256, .limit = 0x67, .selector = 0x40, .type = 0xb, .present = 1};
    s.ldt = (struct kvm_segment){
        .base = 0x29000, .limit = 0xff, .selector = 0x48, .type = 2, .present = 1};
    s.gdt.base = 0x16000 + vcpu;
    s.gdt.limit = 0x7f;
    s.idt.base = 0x17000 + vcpu;
    s.idt.limit = 0xfff;
    s.cr0 = 0x80010033;
    s.cr2 = 0x12345000 + vcpu;
    s.cr3 = 0x10000;
    s.cr4 = 0x620;
    s.cr8 = 3;
    s.efer = 0x501;
    s.apic_base |= 0xc00;
    must(ioctl(fd, KVM_SET_SREGS, &s), "system registers");
}

/* x87, MXCSR, XMM, and the upper halves of YMM where KVM keeps them. */
static void set_vectors(int fd, uint32_t vcpu)
{
    struct kvm_xsave x;
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.value = 7}};
    struct kvm_sregs s;
    must(ioctl(fd, KVM_GET_SREGS, &s), "system registers");
    s.cr4 |= 1u << 18;
    if (ioctl(fd, KVM_SET_SREGS, &s) == 0)
        ioctl(fd, KVM_SET_XCRS, &xcrs);
    must(ioctl(fd, KVM_GET_XSAVE, &x), "XSAVE");
    uint8_t *area = (uint8_t *)x.region;
    for (uint32_t i = 32; i < 416; i++) /* ST0-7 and XMM0-15 */
        if (i >= 160 || i % 16 < 10)
            area[i] = (uint8_t)(i * 7 + vcpu + 1) | 1;
    x.region[0] = 0x037f | 0x4100u << 16; /* control and status word */
    area[4] = 0xff;                       /* tags: all in use */
    x.region[6] = 0x1fa0;                 /* MXCSR */
    uint64_t features = 3;
    for (uint32_t i = 576; i < 832; i++)
        area[i] = (uint8_t)(i * 11 + vcpu + 1) | 1;
    memcpy(area + 512, &features, 8);
    features = 7;
    struct kvm_xsave with_ymm = x;
    memcpy((uint8_t *)with_ymm.region + 512, &features, 8);
    if (ioctl(fd, KVM_SET_XSAVE, &with_ymm) < 0)
        must(ioctl(fd, KVM_SET_XSAVE, &x), "XSAVE");
}

static void set_debug(int fd, uint32_t vcpu)
{
    struct kvm_debugregs debug = {
        .db = {0x111000 + vcpu, 0x222000 + vcpu, 0x333000 + vcpu, 0x444000 + vcpu},
        .dr6 = 0xffff0ff1,
        .dr7 = 0x455};
    must(ioctl(fd, KVM_SET_DEBUGREGS, &debug), "debug registers");
}

static void set_lapic(int fd, uint32_t vcpu)
{
    struct kvm_lapic_state lapic;
    static const struct {
        uint32_t reg, value;
    } values[] = {{0x0f0, 0x1ef}, {0x080, 0x30}, {0x320, 0x10035}, {0x340, 0x10036},
                  {0x350, 0x10037}, {0x360, 0x10038}, {0x370, 0x10039}, {0x3e0, 0xa},
                  {0x220, 0x20000}, {0x120, 0x4}, {0x380, 0x7fffffff}};
    must(ioctl(fd, KVM_GET_LAPIC, &lapic), "LAPIC");
    for (uint32_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
        memcpy(lapic.regs + values[i].reg, &values[i].value, 4);
    must(ioctl(fd, KVM_SET_LAPIC, &lapic), "LAPIC");
    (void)vcpu;
}

static void set_events(int fd, uint32_t vcpu)
{
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp = {.mp_state = vcpu ? KVM_MP_STATE_HALTED : KVM_MP_STATE_RUNNABLE};
    must(ioctl(fd, KVM_SET_MP_STATE, &mp), "MP state");
    must(ioctl(fd, KVM_GET_VCPU_EVENTS, &events), "events");
    events.exception.injected = 1;
    events.exception.nr = 13;
    events.exception.has_error_code = 1;
    events.exception.error_code = 0x1234 + vcpu;
    events.nmi.pending = 1;
    events.nmi.masked = 1;
    events.interrupt.shadow = 1;
    must(ioctl(fd, KVM_SET_VCPU_EVENTS, &events), "events");
}

/* A value other than zero and other than the present one that the MSR takes. */
static bool set_some_value(int fd, uint32_t index, uint32_t vcpu)
{
    static const uint64_t tries[] = {0x7ff012345000, 0x12345670, 0x1230, 0x0f, 7, 3, 1, 2};
    uint64_t old, now;
    if (!msr_get(fd, index, &old))
        return false;
    for (uint32_t i = 0; i < sizeof(tries) / sizeof(tries[0]); i++) {
        uint64_t value = tries[i] + (i < 3 ? vcpu * 0x10 : 0);
        if (value != old && msr_set(fd, index, value) && msr_get(fd, index, &now) && now == value)
            return true;
    }
    msr_set(fd, index, old);
    return old != 0;
}

static uint32_t set_msrs(int fd, uint32_t vcpu)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < msrs.head.nmsrs; i++) {
        uint32_t index = msrs.index[i];
        /* KVM's own (0x4b564d.., 0x11, 0x12) name guest memory that the test has not prepared. */
        if (index >> 8 == 0x4b564d || index == 0x11 || index == 0x12 || index == MSR_TSC ||
            index == MSR_DEADLINE || index == MSR_TSC_ADJUST)
            continue;
        count += set_some_value(fd, index, vcpu);
    }
    return count;
}

static void set_all(const struct rig_vm *vm, uint32_t vcpu)
{
    int fd = vcpu_fd(vm, vcpu);
    uint64_t offset = TSC_OFFSET;
    struct kvm_device_attr attr = tsc_attr(&offset);
    set_sregs(fd, vcpu);
    set_vectors(fd, vcpu);
    uint32_t count = set_msrs(fd, vcpu);
    assert_true(count >= 10);
    must(ioctl(fd, KVM_SET_DEVICE_ATTR, &attr), "TSC offset");
    set_lapic(fd, vcpu);
    set_debug(fd, vcpu);
    set_regs(fd, vcpu);
    set_events(fd, vcpu);
}

static void same_bytes(const char *what, const void *a, const void *b, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (((const uint8_t *)a)[i] != ((const uint8_t *)b)[i])
            fail_msg("%s differ at byte %zu: %#x was set, %#x is there", what, i,
                     ((const uint8_t *)a)[i], ((const uint8_t *)b)[i]);
}

static void check_sentinels(const struct registers *r, uint32_t vcpu)
{
    const uint64_t *words = (const uint64_t *)&r->regs;
    for (uint32_t i = 0; i < 16; i++)
        assert_int_equal(words[i], sentinel(vcpu, i));
    assert_int_equal(r->regs.rip, 0x123456 + vcpu);
    assert_int_equal(r->sregs.cr2, 0x12345000 + vcpu);
    assert_int_equal(r->sregs.fs.base, 0x7f0012342000 + vcpu);
    assert_int_equal(r->sregs.gs.base, 0x7f0012343000 + vcpu);
    const uint8_t *area = (const uint8_t *)r->xsave.region;
    for (uint32_t i = 160; i < 416; i++)
        assert_int_equal(area[i], (uint8_t)(i * 7 + vcpu + 1) | 1);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(r->debug.db[i], 0x111000 * (i + 1) + vcpu);
    assert_int_equal(r->events.exception.error_code, 0x1234 + vcpu);
    assert_int_equal(r->events.exception.injected, 1);
    assert_int_equal(r->events.nmi.masked, 1);
    assert_int_equal(r->events.interrupt.shadow != 0, 1);
    assert_int_equal(r->mp.mp_state, vcpu ? KVM_MP_STATE_HALTED : KVM_MP_STATE_RUNNABLE);
    if (!r->tsc_offset)
        print_message("this KVM does not keep a TSC offset: not tested\n");
    else
        assert_int_equal(r->tsc_offset, TSC_OFFSET);
    uint32_t timer;
    memcpy(&timer, r->lapic.regs + 0x320, 4);
    assert_int_equal(timer, 0x10035);
}

static void compare(const struct registers *a, struct registers *b)
{
    memcpy(b->lapic.regs + 0x390, a->lapic.regs + 0x390, 4); /* the timer counts down meanwhile */
    same_bytes("registers", &a->regs, &b->regs, sizeof(a->regs));
    same_bytes("system registers", &a->sregs, &b->sregs, sizeof(a->sregs));
    same_bytes("XSAVE", &a->xsave, &b->xsave, sizeof(a->xsave));
    same_bytes("XCRs", &a->xcrs, &b->xcrs, sizeof(a->xcrs));
    same_bytes("debug registers", &a->debug, &b->debug, sizeof(a->debug));
    same_bytes("LAPIC", &a->lapic, &b->lapic, sizeof(a->lapic));
    same_bytes("MP state", &a->mp, &b->mp, sizeof(a->mp));
    same_bytes("events", &a->events, &b->events, sizeof(a->events));
    assert_int_equal(a->tsc_offset, b->tsc_offset);
    for (uint32_t i = 0; i < msrs.head.nmsrs; i++)
        if (msrs.index[i] != MSR_TSC && a->msr[i] != b->msr[i])
            fail_msg("MSR %#x: %#llx was set, %#llx is there", msrs.index[i],
                     (unsigned long long)a->msr[i], (unsigned long long)b->msr[i]);
}

static void set_chips(int vm_fd)
{
    struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
    must(ioctl(vm_fd, KVM_GET_IRQCHIP, &chip), "IOAPIC");
    for (uint32_t i = 0; i < 24; i++)
        chip.chip.ioapic.redirtbl[i].bits = 0x10000 | (0x40 + i);
    chip.chip.ioapic.ioregsel = 5;
    must(ioctl(vm_fd, KVM_SET_IRQCHIP, &chip), "IOAPIC");
    for (uint32_t i = 0; i < 2; i++) {
        struct kvm_irqchip pic = {.chip_id = i};
        must(ioctl(vm_fd, KVM_GET_IRQCHIP, &pic), "PIC");
        pic.chip.pic.imr = (uint8_t)(0xf8 + i);
        pic.chip.pic.irq_base = (uint8_t)(0x20 + 8 * i);
        must(ioctl(vm_fd, KVM_SET_IRQCHIP, &pic), "PIC");
    }
}

static void compare_chips(int a, int b)
{
    for (uint32_t i = 0; i < 3; i++) {
        struct kvm_irqchip chip[2] = {{.chip_id = i}, {.chip_id = i}};
        must(ioctl(a, KVM_GET_IRQCHIP, &chip[0]), "interrupt controller");
        must(ioctl(b, KVM_GET_IRQCHIP, &chip[1]), "interrupt controller");
        same_bytes("interrupt controllers", &chip[0], &chip[1], sizeof(chip[0]));
        assert_true(i == 2 || chip[1].chip.pic.imr == 0xf8 + i);
    }
}

static void test_every_register(void **state)
{
    (void)state;
    static struct registers before[VCPUS], after;
    struct rig_vm a, b;
    struct vfmig_buffer blob = {0};
    struct kvm_clock_data clock = {.clock = UINT64_C(987654321000000)};
    rig_open(&a, VFMIG_ACCEL_KVM, NULL, NULL);
    rig_open(&b, VFMIG_ACCEL_KVM, NULL, NULL);
    for (uint32_t i = 0; i < VCPUS; i++) {
        set_all(&a, i);
        get_all(vcpu_fd(&a, i), &before[i]);
        check_sentinels(&before[i], i);
    }
    set_chips(vfmig_machine_vm_fd(a.machine));
    must(ioctl(vfmig_machine_vm_fd(a.machine), KVM_SET_CLOCK, &clock), "clock");
    RIG_OK(vfmig_machine_save(a.machine, &blob, &rig_error));
    RIG_OK(vfmig_machine_load(b.machine, blob.data, blob.size, &rig_error));
    for (uint32_t i = 0; i < VCPUS; i++) {
        get_all(vcpu_fd(&b, i), &after);
        check_sentinels(&after, i);
        compare(&before[i], &after);
    }
    compare_chips(vfmig_machine_vm_fd(a.machine), vfmig_machine_vm_fd(b.machine));
    must(ioctl(vfmig_machine_vm_fd(b.machine), KVM_GET_CLOCK, &clock), "clock");
    assert_true(clock.clock >= UINT64_C(987654321000000));
    vfmig_buffer_free(&blob);
    rig_close(&a);
    rig_close(&b);
}

int main(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) {
        printf("SKIPPED: /dev/kvm cannot be used here, no register was tested\n");
        return RIG_SKIPPED;
    }
    msrs.head.nmsrs = MSRS_MAX;
    int ret = ioctl(kvm, KVM_GET_MSR_INDEX_LIST, &msrs);
    close(kvm);
    if (ret < 0)
        return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_register)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
