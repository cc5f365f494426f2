/* SPDX-License-Identifier: BSD-3-Clause */
/* Where a vCPU starts (in ring 3, vCPU number in rdi, its stack in rsp: set up by the loader) and
 * the ring-0 interrupt stubs. The stubs are short because some hosts interpret ring 0. */
#include "vmm/guest_asm.h"

    .section .header, "a"
    .quad GUEST_IMAGE_MAGIC
    .quad guest_start
    .quad stubs
    .quad GUEST_STUB_SIZE

    .text
    .globl guest_start
guest_start:
    xorl %ebp, %ebp
    call guest_main
    ud2

/* One stub per vector, GUEST_STUB_SIZE apart: 0-31 exceptions except where the timers are. */
    .balign GUEST_STUB_SIZE
stubs:
    .set vector, 0
    .rept 256
    .balign GUEST_STUB_SIZE
    .if vector == 6
        jmp undefined
    .elseif vector == 255
        iretq
    .else
        pushq $vector
        .if vector < GUEST_VECTOR_TIMER
            jmp fault
        .else
            jmp interrupt
        .endif
    .endif
    .set vector, vector + 1
    .endr

interrupt:
    pushq %rax
    pushq %rcx
    pushq %rdx
    movl 24(%rsp), %eax
    incl GUEST_IRQ_COUNTS(,%rax,4)
    movl $0x80b, %ecx /* x2APIC end of interrupt */
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    popq %rdx
    popq %rcx
    popq %rax
    addq $8, %rsp
    iretq

/* How ring 3 asks to sleep until the next interrupt: ud2 with a number in eax (INT n and SYSCALL
 * do not work on every host). */
undefined:
    cmpl $GUEST_HALT_NUMBER, %eax
    jne 1f
    addq $2, (%rsp)
    sti
    hlt
    iretq
1:  pushq $6
    jmp fault

/* The vCPU ends here. The value: vector in the low byte, rest of rip above (with an error code
 * pushed by some exceptions it is that code instead). */
fault:
    movq 8(%rsp), %rax
    shlq $8, %rax
    orq (%rsp), %rax
    movl $GUEST_CONTROL_DEAD, %ecx
    movq %rax, (%rcx)
    cli
    hlt
    jmp fault

    .section .note.GNU-stack, "", @progbits
