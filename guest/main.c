/* SPDX-License-Identifier: BSD-3-Clause */
/* The freestanding side: the loop of one vCPU, and sentinels in registers that nothing else here
 * uses (this build has no SSE code). */
#include "guest/guest.h"

#define REGISTERS   16u
#define CHECK_EVERY 64u

struct vector_file {
    uint64_t word[REGISTERS][4];
};

static uint64_t sentinel(uint32_t vcpu, uint32_t reg, uint32_t lane)
{
    return guest_mix((uint64_t)vcpu << 32 | reg << 8 | lane);
}

#define EACH(OP)                                                                                   \
    OP(0) OP(1) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7)                                                \
    OP(8) OP(9) OP(10) OP(11) OP(12) OP(13) OP(14) OP(15)
#define LOAD_XMM(n)  "movups " #n "*32(%0), %%xmm" #n "\n\t"
#define STORE_XMM(n) "movups %%xmm" #n ", " #n "*32(%0)\n\t"
#define LOAD_YMM(n)  "vmovups " #n "*32(%0), %%ymm" #n "\n\t"
#define STORE_YMM(n) "vmovups %%ymm" #n ", " #n "*32(%0)\n\t"

static void set_registers(uint32_t vcpu, uint32_t flags)
{
    struct vector_file file;
    for (uint32_t reg = 0; reg < REGISTERS; reg++)
        for (uint32_t lane = 0; lane < 4; lane++)
            file.word[reg][lane] = sentinel(vcpu, reg, lane);
    if (flags & GUEST_FLAG_YMM)
        __asm__ volatile(EACH(LOAD_YMM) : : "r"(&file) : "memory");
    else if (flags & GUEST_FLAG_XMM)
        __asm__ volatile(EACH(LOAD_XMM) : : "r"(&file) : "memory");
}

static void check_registers(uint32_t vcpu, uint32_t flags)
{
    struct vector_file file;
    uint32_t lanes = flags & GUEST_FLAG_YMM ? 4 : 2;
    if (lanes == 4)
        __asm__ volatile(EACH(STORE_YMM) : : "r"(&file) : "memory");
    else
        __asm__ volatile(EACH(STORE_XMM) : : "r"(&file) : "memory");
    for (uint32_t reg = 0; reg < REGISTERS; reg++)
        for (uint32_t lane = 0; lane < lanes; lane++)
            if (file.word[reg][lane] != sentinel(vcpu, reg, lane))
                guest_fail(NULL, vcpu, GUEST_ERROR_REGISTER, reg, lane, file.word[reg][lane],
                           sentinel(vcpu, reg, lane));
    guest_bump(&guest_scoreboard(NULL)->cpu[vcpu].register_checks, 1);
}

void guest_main(uint32_t vcpu);

void guest_main(uint32_t vcpu)
{
    uint32_t flags = guest_params(NULL)->flags;
    set_registers(vcpu, flags);
    for (uint32_t i = 0;; i++) {
        guest_step(NULL, vcpu);
        if (flags & (GUEST_FLAG_XMM | GUEST_FLAG_YMM) && i % CHECK_EVERY == 0)
            check_registers(vcpu, flags);
    }
}

/* The compiler may call these for structures. */
void *memset(void *to, int value, size_t size);
void *memcpy(void *restrict to, const void *restrict from, size_t size);

void *memset(void *to, int value, size_t size)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return start;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    return start;
}
