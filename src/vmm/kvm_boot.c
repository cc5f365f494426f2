/* SPDX-License-Identifier: BSD-3-Clause */
/* The accelerator `kvm`: puts a vCPU into long mode, ring 3, at the guest program. Everything that
 * boot code would do in ring 0 is done here from outside. */
#include "vmm/kvm.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

/* Places in the pages from GUEST_BOOT on. */
#define PML4       GUEST_BOOT
#define PDPT       (GUEST_BOOT + 0x1000)
#define PD         (GUEST_BOOT + 0x2000) /* four pages: 4 GiB by 2 MiB */
#define GDT        (GUEST_BOOT + 0x6000)
#define IDT        (GUEST_BOOT + 0x7000)
#define TSS        (GUEST_BOOT + 0x8000)  /* 256 bytes a vCPU */
#define RING0      (GUEST_BOOT + 0x10000) /* a page of stack a vCPU */
#define TSS_STRIDE 256u

#define PTE_FLAGS 0x67u /* present, writable, user, accessed, dirty */
#define PTE_LARGE 0x80u

#define CODE0 0x08u
#define DATA0 0x10u
#define DATA3 0x1bu
#define CODE3 0x23u
#define TASK  0x28u

#define APIC_SVR       0x0f0u
#define APIC_LVT_TIMER 0x320u
#define APIC_TIMER_SET 0x380u
#define APIC_DIVIDE    0x3e0u
#define APIC_HZ        1000000000u /* of KVM's LAPIC timer, undivided */

static void put64(struct vfmig_machine *m, uint64_t gpa, uint64_t value)
{
    memcpy(machine_memory(m, gpa, 8), &value, 8);
}

static void put_page_tables(struct vfmig_machine *m)
{
    put64(m, PML4, PDPT | PTE_FLAGS);
    for (uint64_t i = 0; i < 4; i++)
        put64(m, PDPT + i * 8, (PD + i * 4096) | PTE_FLAGS);
    for (uint64_t i = 0; i < 2048; i++)
        put64(m, PD + i * 8, i << 21 | PTE_FLAGS | PTE_LARGE);
}

static void put_descriptors(struct vfmig_machine *m)
{
    put64(m, GDT + CODE0, UINT64_C(0x00af9b000000ffff));
    put64(m, GDT + DATA0, UINT64_C(0x00cf93000000ffff));
    put64(m, GDT + (DATA3 & ~7u), UINT64_C(0x00cff3000000ffff));
    put64(m, GDT + (CODE3 & ~7u), UINT64_C(0x00affb000000ffff));
    for (uint64_t i = 0; i < m->config.vcpu_count; i++) {
        uint64_t base = TSS + i * TSS_STRIDE;
        put64(m, GDT + TASK + i * 16, 0x67 | (base & 0xffffff) << 16 | UINT64_C(0x8b) << 40);
        put64(m, base + 4, RING0 + (i + 1) * 4096); /* stack for ring 0 */
    }
    const struct guest_image_header *image = machine_memory(m, GUEST_IMAGE, sizeof(*image));
    for (uint64_t i = 0; i < 256; i++) {
        uint64_t stub = image->stubs + i * image->stub_size;
        put64(m, IDT + i * 16,
              (stub & 0xffff) | CODE0 << 16 | UINT64_C(0x8e) << 40 | (stub >> 16 & 0xffff) << 48);
        put64(m, IDT + i * 16 + 8, stub >> 32);
    }
}

static struct kvm_segment segment(uint16_t selector, uint8_t type, uint8_t dpl, bool code)
{
    return (struct kvm_segment){.limit = 0xffffffff,
                                .selector = selector,
                                .type = type,
                                .present = 1,
                                .dpl = dpl,
                                .db = !code,
                                .s = 1,
                                .l = code,
                                .g = 1};
}

static int set_segments(struct vfmig_machine *m, uint32_t vcpu, struct vfmig_error *reterr)
{
    struct kvm_machine *k = kvm_of(m);
    struct kvm_sregs s;
    if (ioctl(k->vcpus[vcpu].fd, KVM_GET_SREGS, &s) < 0)
        return kvm_fail(reterr, "cannot read the system registers");
    s.cs = segment(CODE3, 0xb, 3, true);
    s.ds = s.es = s.fs = s.gs = s.ss = segment(DATA3, 3, 3, false);
    s.tr = (struct kvm_segment){.base = TSS + vcpu * TSS_STRIDE,
                                .limit = 0x67,
                                .selector = (uint16_t)(TASK + vcpu * 16),
                                .type = 0xb,
                                .present = 1};
    s.ldt = (struct kvm_segment){.unusable = 1};
    s.gdt.base = GDT;
    s.gdt.limit = (uint16_t)(TASK + GUEST_MAX_VCPUS * 16 - 1);
    s.idt.base = IDT;
    s.idt.limit = 4095;
    s.cr0 = 0x80010033; /* PG WP NE ET MP PE */
    s.cr3 = PML4;
    s.cr4 = 0x620 | (k->vector_256 ? UINT64_C(1) << 18 : 0); /* PAE OSFXSR OSXMMEXCPT OSXSAVE */
    s.efer = 0x501;                                          /* LMA LME SCE */
    s.apic_base |= 0xc00;                                    /* enabled, x2APIC */
    if (ioctl(k->vcpus[vcpu].fd, KVM_SET_SREGS, &s) < 0)
        return kvm_fail(reterr, "cannot set the system registers");
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = 7}};
    if (k->vector_256 && ioctl(k->vcpus[vcpu].fd, KVM_SET_XCRS, &xcrs) < 0)
        return kvm_fail(reterr, "cannot set XCR0");
    return 0;
}

static void put_apic(struct kvm_lapic_state *apic, uint32_t reg, uint32_t value)
{
    memcpy(apic->regs + reg, &value, 4);
}

static int set_apic(struct vfmig_machine *m, uint32_t vcpu, struct vfmig_error *reterr)
{
    int fd = kvm_of(m)->vcpus[vcpu].fd;
    const struct guest_params *params = machine_memory(m, GUEST_PARAMS, sizeof(*params));
    struct kvm_lapic_state apic;
    if (ioctl(fd, KVM_GET_LAPIC, &apic) < 0)
        return kvm_fail(reterr, "cannot read the LAPIC");
    put_apic(&apic, APIC_SVR, 0x1ff);
    put_apic(&apic, APIC_DIVIDE, 0xb);
    if (params->timer_hz) {
        put_apic(&apic, APIC_LVT_TIMER, 0x20000 | (GUEST_VECTOR_TIMER + vcpu)); /* periodic */
        put_apic(&apic, APIC_TIMER_SET, APIC_HZ / params->timer_hz);
    }
    if (ioctl(fd, KVM_SET_LAPIC, &apic) < 0)
        return kvm_fail(reterr, "cannot set the LAPIC");
    return 0;
}

int kvm_boot(struct vfmig_machine *m, uint32_t vcpu, struct vfmig_error *reterr)
{
    int fd = kvm_of(m)->vcpus[vcpu].fd;
    const struct guest_params *params = machine_memory(m, GUEST_PARAMS, sizeof(*params));
    const struct guest_image_header *image = machine_memory(m, GUEST_IMAGE, sizeof(*image));
    if (vcpu == 0) {
        put_page_tables(m);
        put_descriptors(m);
    }
    int ret = set_segments(m, vcpu, reterr);
    if (ret == 0)
        ret = set_apic(m, vcpu, reterr);
    if (ret < 0)
        return ret;
    struct kvm_regs regs = {.rip = image->entry,
                            .rsp = params->stack_gpa + vcpu * (uint64_t)GUEST_STACK_SIZE,
                            .rdi = vcpu,
                            .rflags = 0x202};
    struct kvm_mp_state state = {.mp_state = KVM_MP_STATE_RUNNABLE};
    if (ioctl(fd, KVM_SET_REGS, &regs) < 0 || ioctl(fd, KVM_SET_MP_STATE, &state) < 0)
        return kvm_fail(reterr, "cannot set the registers");
    return 0;
}
