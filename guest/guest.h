/* SPDX-License-Identifier: BSD-3-Clause */
/* The reference guest's program, inside. It builds twice: freestanding for KVM (addresses are the
 * guest's own, MMIO is a plain access) and hosted for the accelerator `none` (memory is somewhere,
 * MMIO is a call). All state lives in guest memory, so that the program continues on another host
 * in either form. */
#ifndef VFMIG_GUEST_GUEST_H
#define VFMIG_GUEST_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/guest_abi.h"

struct guest_env {
    uint8_t *base; /* hosted: where GPA 0 is mapped, and how much there is */
    uint64_t size;
    bool *outside; /* set when the program reaches outside, which only a foreign state makes it do */
    void *opaque;
    void (*mmio)(void *opaque, uint32_t vcpu, uint64_t gpa, bool is_write, void *data, uint32_t size);
    uint64_t (*tsc)(void *opaque);
};

/* One vCPU's place in its work, one page at guest_params.cpu_gpa each. */
struct guest_cpu {
    uint32_t index;
    uint32_t started;
    uint64_t loops;
    uint64_t last_tsc;    /* end of the last accounted interval */
    uint64_t rested_tsc;  /* slept since then */
    uint64_t credit_tsc;  /* time earned for writing pages */
    uint64_t share_first; /* pages of the working set that are this vCPU's */
    uint64_t share_pages;
    uint64_t share_mask; /* period of the order, less one */
    uint32_t share_shift;
    uint64_t order;      /* generator: where in the order */
    uint64_t steps;      /* of the order done in this cycle */
    uint64_t cycle;      /* from 1; every page of the share is written once in each */
    uint64_t reads;      /* GUEST_CTL_COUNT reads done */
    uint32_t ticks;      /* of the timer, as last seen */
    uint64_t tick_wait_tsc;
};

/* A descriptor on its way, or what a vector waits for. */
enum guest_irq_wait { GUEST_IRQ_IDLE = 0, GUEST_IRQ_QUEUED, GUEST_IRQ_DUE };

#define GUEST_RING_ENTRIES 64u
#define GUEST_DMA_TARGETS  256u
#define GUEST_SRAM_BYTES   512u   /* SRAM of one ring slot, from offset 0 */
#define GUEST_SRAM_WORDS   0x8000u /* words kept by MMIO, from here */
#define GUEST_SRAM_KEPT    8u
#define GUEST_SRAM_PEER    0xc000u /* blocks that the peer writes, from here */
#define GUEST_PEER_BLOCKS  16u
#define GUEST_PEER_BYTES   512u

/* What a device turned out to be, the first word of its driver's state. */
enum guest_driver { GUEST_DRIVER_UNKNOWN = 0, GUEST_DRIVER_DMA, GUEST_DRIVER_BULK };

/* Driver state of one bulk device, at guest_device_params.heap_gpa. */
struct guest_bulk {
    uint32_t driver; /* enum guest_driver */
    uint32_t phase;
    uint64_t blocks;
    uint64_t inverse;
    uint64_t order; /* generator */
    uint64_t check_tsc;
    uint64_t written, digest; /* the first one of the round */
};

enum guest_p2p_op { GUEST_P2P_NONE = 0, GUEST_P2P_READ, GUEST_P2P_WRITE, GUEST_P2P_OWN };

/* Peer to peer DMA of one dma device. A tag says who wrote a block, and its how manieth write it is. */
struct guest_p2p {
    uint64_t sequence; /* writes queued; the peer's driver reads it */
    uint64_t step;     /* a block is read (even) and then written (odd) */
    uint64_t looks;
    uint64_t queued[GUEST_PEER_BLOCKS]; /* tag last queued for the peer's block */
    uint64_t done[GUEST_PEER_BLOCKS];   /* tag of the last completed write */
    uint64_t seen[GUEST_PEER_BLOCKS];   /* tag last found in the own block */
    uint64_t tag[GUEST_RING_ENTRIES];   /* of the descriptor: written, or to be found */
    uint8_t op[GUEST_RING_ENTRIES];     /* enum guest_p2p_op */
    uint8_t block[GUEST_RING_ENTRIES];
};

/* Driver state of one dma device, at guest_device_params.heap_gpa; then come the ring (one page),
 * the source buffers (one a ring entry) and the targets. */
struct guest_dma {
    uint32_t driver; /* enum guest_driver */
    uint32_t queued, completed; /* free running */
    uint32_t next_target;
    uint64_t serial; /* of the last completion */
    uint64_t order;  /* generator */
    uint64_t credit_tsc;
    uint64_t check_tsc; /* time since the last look at registers and SRAM */
    uint64_t generation;
    uint64_t kept[GUEST_SRAM_KEPT];
    uint32_t irq_state[GUEST_VECTORS];
    uint32_t irq_slot[GUEST_VECTORS];
    uint32_t irq_seen[GUEST_VECTORS];
    uint64_t irq_wait_tsc[GUEST_VECTORS];
    uint32_t irq_at[GUEST_VECTORS]; /* which of the device's interrupts the MSI-X entry raises */
    uint64_t remap_tsc;             /* time since two of them were exchanged */
    uint64_t slot_seed[GUEST_RING_ENTRIES];
    uint32_t slot_target[GUEST_RING_ENTRIES];
    uint64_t sram_seed[GUEST_RING_ENTRIES]; /* 0: nothing loaded yet */
    struct {
        uint64_t seed, stride; /* word i is seed + i * stride */
    } target[GUEST_DMA_TARGETS];
    struct guest_p2p p2p;
};

/* Where the I/O virtual addresses of a device behind the vIOMMU lead. Nothing of it is mapped before
 * the device asks for it, apart from some windows. */
#define GUEST_IOVA_HEAP   (UINT64_C(1) << 36) /* + guest physical address: ring and source buffers */
#define GUEST_IOVA_WINDOW (UINT64_C(1) << 37) /* + slot << GUEST_IOVA_SHIFT: the slot's target, in turn another */
#define GUEST_IOVA_HOLE   (UINT64_C(1) << 38) /* + the same: refused */
#define GUEST_IOVA_SHIFT  21u

#define GUEST_IOMMU_ENTRIES 64u /* of each queue: one page */
#define GUEST_IOMMU_FAULTS  128u
#define GUEST_EFAULT        14u /* errnos, as devices and the vIOMMU report them */
#define GUEST_EEXIST        17u
#define GUEST_ENOENT        2u

/* A ring slot's pages at the vIOMMU. */
enum guest_window { GUEST_WINDOW_FREE = 0, GUEST_WINDOW_USED, GUEST_WINDOW_DONE, GUEST_WINDOW_LEAVING };

/* State of the vIOMMU's driver, at guest_params.iommu_gpa; then come its queues. */
struct guest_iommu {
    uint32_t started;
    uint32_t queued, rung, done; /* commands, free running */
    uint32_t taken, freed;       /* page requests, free running */
    uint64_t order;              /* generator */
    struct {
        uint32_t used, device; /* the guest's number of it */
        uint32_t id, flags;
        uint64_t iova;
        uint64_t due_tsc;    /* when it is answered at the earliest */
        uint64_t due_done;   /* how much the other device has done by then */
    } fault[GUEST_IOMMU_FAULTS];
    struct {
        uint32_t on;        /* 1: its domain is being switched on, 2: it is on */
        uint32_t completed; /* as last seen */
        uint64_t wait_tsc;
        uint64_t peer_page; /* page of a peer's BAR that is mapped, or 0 */
        uint8_t window[GUEST_RING_ENTRIES]; /* enum guest_window */
        uint8_t unmaps[GUEST_RING_ENTRIES]; /* commands that are to end before it is free */
        uint8_t hole[GUEST_RING_ENTRIES];   /* its descriptor is to end with EFAULT */
    } device[GUEST_MAX_DEVICES];
};

#define GUEST_IOMMU_STATE_BYTES 20480u
#define GUEST_IOMMU_HEAP_BYTES  (GUEST_IOMMU_STATE_BYTES + 2 * 4096u)
_Static_assert(sizeof(struct guest_iommu) <= GUEST_IOMMU_STATE_BYTES, "driver state");

#define GUEST_DMA_STATE_BYTES 8192u
_Static_assert(sizeof(struct guest_dma) <= GUEST_DMA_STATE_BYTES, "driver state");

static inline uint64_t guest_page_up(uint64_t bytes)
{
    return (bytes + 4095) & ~UINT64_C(4095);
}

/* Guest memory that the driver of one device needs. */
static inline uint64_t guest_dma_heap_bytes(uint32_t dma_bytes)
{
    return GUEST_DMA_STATE_BYTES + 4096 +
           (GUEST_RING_ENTRIES + GUEST_DMA_TARGETS) * guest_page_up(dma_bytes);
}

/* One round of the main loop: bounded, returns between two complete pieces of work. */
void guest_step(const struct guest_env *env, uint32_t vcpu);
/* Work on the devices of this vCPU; elapsed_tsc since the last call. */
void guest_device_step(const struct guest_env *env, uint32_t vcpu, uint64_t elapsed_tsc);
/* Peer to peer DMA of device index (p2p.c). prepare: whether desc is one of those now; its buffer is
 * the slot's source. complete: whether a descriptor that ended well was one, *ret_right whether its
 * result is right. look: at the peer by MMIO. */
struct dma_descriptor;
bool guest_p2p_prepare(const struct guest_env *env, uint32_t index, uint32_t slot, uint64_t random,
                       uint64_t buffer_gpa, struct dma_descriptor *desc);
bool guest_p2p_complete(const struct guest_env *env, uint32_t index, uint32_t slot,
                        uint64_t buffer_gpa, bool *ret_right);
void guest_p2p_look(const struct guest_env *env, uint32_t index);
/* The vIOMMU (iommu.c), from the vCPU that drives it. */
void guest_iommu_step(const struct guest_env *env, uint32_t vcpu, uint64_t elapsed_tsc);
/* Device index may be used: its domain is on, or it is not behind the vIOMMU. */
bool guest_iommu_ready(const struct guest_env *env, uint32_t index);
/* The slot's pages are as they were before its last use: it may be used again. */
bool guest_iommu_slot_ready(const struct guest_env *env, uint32_t index, uint32_t slot);
/* The address at which device index reaches its heap. */
uint64_t guest_iommu_heap(const struct guest_env *env, uint32_t index, uint64_t gpa);
/* Puts the addresses of a descriptor into the device's terms, and back. True: the descriptor is one
 * that must fail with EFAULT. */
void guest_iommu_prepare(const struct guest_env *env, uint32_t index, uint32_t slot, uint64_t random,
                         struct dma_descriptor *desc);
bool guest_iommu_complete(const struct guest_env *env, uint32_t index, uint32_t slot,
                          struct dma_descriptor *desc);
/* The same on one bulk device. */
void guest_bulk_step(const struct guest_env *env, uint32_t vcpu, uint32_t index,
                     uint64_t elapsed_tsc);
void guest_fail(const struct guest_env *env, uint32_t vcpu, enum guest_error_code code, uint64_t d0,
                uint64_t d1, uint64_t d2, uint64_t d3);

#if __STDC_HOSTED__

static inline void *guest_at(const struct guest_env *env, uint64_t gpa, uint64_t bytes)
{
    if (gpa <= env->size && bytes <= env->size - gpa)
        return env->base + gpa;
    *env->outside = true;
    return env->base; /* GUEST_MIN_MEMORY is more than any piece of work touches */
}

static inline void guest_mmio(const struct guest_env *env, uint32_t vcpu, uint64_t gpa, bool is_write,
                              void *data, uint32_t size)
{
    env->mmio(env->opaque, vcpu, gpa, is_write, data, size);
}

static inline uint64_t guest_tsc(const struct guest_env *env)
{
    return env->tsc(env->opaque);
}

#else

static inline void *guest_at(const struct guest_env *env, uint64_t gpa, uint64_t bytes)
{
    (void)env;
    (void)bytes;
    return (void *)gpa;
}

static inline void guest_mmio(const struct guest_env *env, uint32_t vcpu, uint64_t gpa, bool is_write,
                              void *data, uint32_t size)
{
    (void)env;
    (void)vcpu;
    if (is_write && size == 4)
        *(volatile uint32_t *)gpa = *(uint32_t *)data;
    else if (is_write)
        *(volatile uint64_t *)gpa = *(uint64_t *)data;
    else if (size == 4)
        *(uint32_t *)data = *(volatile uint32_t *)gpa;
    else
        *(uint64_t *)data = *(volatile uint64_t *)gpa;
}

static inline uint64_t guest_tsc(const struct guest_env *env)
{
    (void)env;
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

#endif

static inline void guest_write32(const struct guest_env *env, uint32_t vcpu, uint64_t gpa, uint32_t value)
{
    guest_mmio(env, vcpu, gpa, true, &value, 4);
}

static inline void guest_write64(const struct guest_env *env, uint32_t vcpu, uint64_t gpa, uint64_t value)
{
    guest_mmio(env, vcpu, gpa, true, &value, 8);
}

static inline uint32_t guest_read32(const struct guest_env *env, uint32_t vcpu, uint64_t gpa)
{
    uint32_t value = 0;
    guest_mmio(env, vcpu, gpa, false, &value, 4);
    return value;
}

static inline uint64_t guest_read64(const struct guest_env *env, uint32_t vcpu, uint64_t gpa)
{
    uint64_t value = 0;
    guest_mmio(env, vcpu, gpa, false, &value, 8);
    return value;
}

static inline const struct guest_params *guest_params(const struct guest_env *env)
{
    return guest_at(env, GUEST_PARAMS, sizeof(struct guest_params));
}

static inline struct guest_scoreboard *guest_scoreboard(const struct guest_env *env)
{
    return guest_at(env, GUEST_SCOREBOARD, sizeof(struct guest_scoreboard));
}

static inline uint32_t guest_irq_count(const struct guest_env *env, uint32_t vector)
{
    uint32_t *counts = guest_at(env, GUEST_IRQ_COUNTS, 256 * sizeof(*counts));
    return __atomic_load_n(&counts[vector & 255], __ATOMIC_ACQUIRE);
}

/* A counter with one writer that others read. */
static inline void guest_bump(uint64_t *counter, uint64_t by)
{
    __atomic_store_n(counter, *counter + by, __ATOMIC_RELAXED);
}

/* A bijection of 64-bit words that spreads every bit. */
static inline uint64_t guest_mix(uint64_t x)
{
    x = (x ^ (x >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    x = (x ^ (x >> 29)) * UINT64_C(0xa0761d6478bd642f);
    return x ^ (x >> 32);
}

#endif
