/* SPDX-License-Identifier: BSD-3-Clause */
/* What the reference guest and the VMM have in common: addresses, parameters, the scoreboard.
 * Freestanding: fixed-size integers only. */
#ifndef VFMIG_VMM_GUEST_ABI_H
#define VFMIG_VMM_GUEST_ABI_H

#include <stdint.h>

#define GUEST_MAX_VCPUS   16u
#define GUEST_MAX_DEVICES 32u
#define GUEST_VECTORS     4u    /* MSI-X vectors of one device */
#define GUEST_MAX_GSIS    1024u
#define GUEST_MIN_MEMORY  (32u << 20)

/* Guest physical addresses. Everything from GUEST_DMA on is laid out by the loader and named in
 * the parameters. */
#define GUEST_PARAMS     0x1000u   /* struct guest_params */
#define GUEST_SCOREBOARD 0x2000u   /* struct guest_scoreboard */
#define GUEST_IRQ_COUNTS 0x4000u   /* uint32_t[256]: interrupts taken, by vector */
#define GUEST_BOOT       0x10000u  /* page tables, GDT, IDT, TSS: written by the loader only */
#define GUEST_IMAGE      0x100000u /* the program */
#define GUEST_HEAP       0x200000u /* stacks, driver state, rings, tables, the working set */
#define GUEST_CONTROL    0xfe000000u /* MMIO page of the machine itself */
#define GUEST_MSI_BASE   0xfee00000u

/* Registers of the control page. */
#define GUEST_CTL_SLEEP 0x00u /* wo u32: this vCPU sleeps so many microseconds at most */
#define GUEST_CTL_DEAD  0x08u /* wo u64: the guest gives up; the value says why */
#define GUEST_CTL_COUNT 0x10u /* ro u64: number of reads of this register by this vCPU before */

/* Interrupt vectors. */
#define GUEST_VECTOR_TIMER  0x20u /* + vCPU */
#define GUEST_VECTOR_DEVICE 0x40u /* + 4 * device + MSI-X vector */

#define GUEST_PARAMS_MAGIC   0x5453455547474d56ull
#define GUEST_ABI_VERSION    5u
#define GUEST_RATE_UNLIMITED 0xffffffffu
#define GUEST_TIMER_OFF      0xffffffffu

enum guest_idle {
    GUEST_IDLE_SLEEP = 0, /* by GUEST_CTL_SLEEP */
    GUEST_IDLE_HALT = 1,  /* HLT until the next timer tick (kvm only) */
    GUEST_IDLE_SPIN = 2,  /* never */
    GUEST_IDLE_READ = 3,  /* reads GUEST_CTL_COUNT */
};

/* When the guest answers page requests. */
enum guest_iommu_answers {
    GUEST_ANSWERS_LATE = 0, /* after a while, out of order */
    GUEST_ANSWERS_PEER,     /* once a device that is not behind the vIOMMU has done some work */
    GUEST_ANSWERS_NEVER,
};

#define GUEST_FLAG_XMM 1u /* XMM sentinels are kept and checked */
#define GUEST_FLAG_YMM 2u /* the upper halves too */
#define GUEST_FLAG_IRQ 4u /* interrupts are taken by the vCPU: a timer tick can be expected */

struct guest_device_params {
    uint64_t bar_gpa;
    uint64_t heap_gpa; /* driver state, ring and buffers */
    uint32_t vcpu;     /* who drives it and takes its interrupts */
    uint32_t first_vector;
    uint64_t peer_bar_gpa; /* BAR of the dma device that this one reaches by peer to peer DMA; 0: none */
    uint32_t writer;       /* the device that reaches this one, plus one; 0: none */
    uint32_t iommu;        /* its number at the vIOMMU, plus one; 0: not behind it */
    uint32_t pasid;        /* dma device: the handle that all of its DMA is tagged with; 0: none */
    uint32_t reserved;
};

/* One page at GUEST_PARAMS, written before the start and never again. */
struct guest_params {
    uint64_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t vcpu_count;
    uint32_t device_count;
    uint64_t tsc_khz;
    uint64_t seed;
    uint64_t working_gpa; /* the working set */
    uint64_t working_pages;
    uint64_t table_gpa; /* uint32_t per page: the last sequence written */
    uint64_t cpu_gpa;   /* struct guest_cpu of each vCPU, one page apart */
    uint64_t stack_gpa; /* top of vCPU 0's stack; the others follow, GUEST_STACK_SIZE apart */
    uint32_t rate_mib_s;
    uint32_t sleep_us;
    uint32_t timer_hz;
    uint32_t idle;
    uint32_t dma_in_flight;
    uint32_t dma_bytes;
    uint32_t dma_ops_s;
    uint32_t irq_timeout_ms;
    uint64_t iommu_gpa;     /* state of the vIOMMU's driver and its queues; 0: there is no vIOMMU */
    uint32_t iommu_answers; /* enum guest_iommu_answers */
    uint32_t reserved;
    struct guest_device_params devices[GUEST_MAX_DEVICES];
};

#define GUEST_STACK_SIZE 0x4000u

enum guest_error_code {
    GUEST_OK = 0,
    GUEST_ERROR_PAGE,      /* a page of the working set is not as last written */
    GUEST_ERROR_TABLE,     /* the sequence table is not as last written */
    GUEST_ERROR_REGISTER,  /* a sentinel register changed */
    GUEST_ERROR_TIMER,     /* no timer tick for too long */
    GUEST_ERROR_DEVICE,    /* a dma device answers nonsense to a register read */
    GUEST_ERROR_STATUS,    /* a descriptor failed */
    GUEST_ERROR_RESULT,    /* a descriptor's result or target data is wrong */
    GUEST_ERROR_SERIAL,    /* completions are not consecutive */
    GUEST_ERROR_STALE_DMA, /* a DMA target changed or went back after it was checked */
    GUEST_ERROR_SRAM,      /* the device's SRAM lost what was put there, bulk its state */
    GUEST_ERROR_IRQ_LOST,
    GUEST_ERROR_IRQ_TWICE, /* an interrupt with nothing outstanding, or before its completion */
    GUEST_ERROR_PARAMS,
    GUEST_ERROR_FAULT,     /* an exception: the vCPU is dead */
    GUEST_ERROR_P2P,       /* a device's memory is not as its peer wrote it: lost, doubled, late */
    GUEST_ERROR_IOMMU,     /* the vIOMMU fails a command, or asks for a page that no DMA is about */
    GUEST_ERROR_FAULT_LOST, /* every page request is answered and the device does not go on */
    GUEST_ERROR_COUNT
};

/* Written by one vCPU each; the counters only grow. */
struct guest_cpu_score {
    uint64_t heartbeats; /* rounds of the main loop */
    uint64_t pages_written;
    uint64_t pages_verified;
    uint64_t cycles; /* complete passes over this vCPU's share of the working set */
    uint64_t sleeps;
    uint64_t ticks;          /* timer interrupts seen */
    uint64_t register_checks;
    uint64_t pause_max_ns;   /* since the last reset */
    uint64_t pause_last_ns;  /* the last one over 2 ms */
    uint64_t pause_last_tsc; /* when that one ended */
    uint64_t pauses;         /* over 2 ms */
    uint64_t resets;         /* the pause_reset this vCPU obeyed last */
    uint64_t moves;          /* the scoreboard's, as this vCPU saw it last */
    uint64_t pause_move_ns;  /* the pause in which it changed: what the guest saw of the move */
    uint64_t reserved[2];
};

struct guest_device_score {
    uint64_t queued;
    uint64_t completed;
    uint64_t checked; /* completed with the right result */
    uint64_t targets_rechecked; /* DMA targets looked at again before they were reused */
    uint64_t sram_checks;
    uint64_t doorbells;
    uint64_t irqs[GUEST_VECTORS];
    uint64_t irqs_asked[GUEST_VECTORS];
    uint64_t irq_remaps; /* times that two MSI-X entries were exchanged */
    uint64_t digest;    /* of a bulk device's state, ... */
    uint64_t digest_at; /* ... after so many writes to it; UINT64_MAX while these two change */
    uint64_t p2p_done;    /* writes to the peer's memory that are complete */
    uint64_t p2p_checked; /* blocks of the peer's memory read back by DMA, as written */
    uint64_t p2p_looks;   /* blocks seen otherwise: by MMIO at the peer, in the own memory */
};

/* Page requests and the vIOMMU's driver. */
struct guest_iommu_score {
    uint64_t faults;    /* page requests taken */
    uint64_t answered;  /* with a mapping */
    uint64_t refused;   /* on purpose */
    uint64_t withdrawn; /* by the vIOMMU: the device gave the DMA up */
    uint64_t late;      /* responses that met nobody */
    uint64_t open;      /* taken and not answered */
    uint64_t maps, unmaps;
    uint64_t efaults;   /* descriptors that ended with EFAULT, as they should */
};

/* At GUEST_SCOREBOARD, two pages. */
struct guest_scoreboard {
    uint64_t magic; /* GUEST_PARAMS_MAGIC once the guest runs */
    uint32_t vcpus_started;
    uint32_t errors;
    uint32_t first_error; /* enum guest_error_code, set last of the first_ fields */
    uint32_t first_vcpu;
    uint64_t first_detail[4];
    uint64_t pause_reset; /* written by the VMM: count of resets asked for */
    uint64_t moves;       /* written by the machine: starts from a state that was loaded */
    uint64_t reserved[6];
    struct guest_iommu_score iommu;
    struct guest_cpu_score cpu[GUEST_MAX_VCPUS];
    struct guest_device_score device[GUEST_MAX_DEVICES];
};

_Static_assert(sizeof(struct guest_params) <= 4096, "parameters fit their page");
_Static_assert(sizeof(struct guest_scoreboard) <= 8192, "the scoreboard fits its pages");

#endif
