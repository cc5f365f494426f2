/* SPDX-License-Identifier: BSD-3-Clause */
/* A workload: what the checker must know of one kind of device to judge it deeply. All of it goes
 * through the functions of rule.h, so that it is recorded and replayed like everything else.
 *
 * How to add one: a file workload_NAME.c with one `const struct check_workload`, and its name in
 * the list of workload.c. Leave out (NULL) what the device cannot do: the rules that need it are
 * skipped and say so. workload_bulk.c is one to look at, workload_dma.c has DMA. */
#ifndef VFMIG_CHECK_WORKLOAD_H
#define VFMIG_CHECK_WORKLOAD_H

#include <stdbool.h>
#include <stdint.h>

struct check;
struct check_facts;

/* IOVAs that belong to the workload (rings and the like). Rules stay outside of them, and map
 * memory from CHECK_MEMORY's begin; a workload takes it from its end. */
#define CHECK_WORKLOAD_IOVA   0x7f00000000ull
#define CHECK_WORKLOAD_SIZE   0x100000ull
#define CHECK_WORKLOAD_OFFSET (CHECK_MEMORY - CHECK_WORKLOAD_SIZE) /* in CHECK_MEMORY */

struct check_workload {
    const char *name;
    const char *help; /* one line */
    /* This one fits the device. */
    bool (*fits)(const struct check_facts *facts);
    /* After a reset, in RUNNING: makes the device ready to work (maps its own memory). 0 or errno.
     */
    int (*set_up)(struct check *c);

    /* DMA: size bytes at iova become pattern, pattern + 1, ... as 8-byte words; iova and size are
     * multiples of 8. write returns when it is done; start only rings the doorbell. -ETIMEDOUT:
     * it was rung and nothing came of it. */
    int (*dma_write)(struct check *c, uint64_t iova, uint32_t size, uint64_t pattern);
    int (*dma_start)(struct check *c, uint64_t iova, uint32_t size, uint64_t pattern);
    /* As dma_start, and MSI-X vector is raised when it is done. */
    int (*dma_start_irq)(struct check *c, uint64_t iova, uint32_t size, uint64_t pattern,
                         uint32_t vector);
    /* How many DMAs are complete, as the device says. */
    int (*dma_done)(struct check *c, uint64_t *ret_count);

    /* Internal state: becomes something that depends on seed; and a digest of all of it. Works in
     * RUNNING and PRE_COPY, with and without NDMA. */
    int (*change)(struct check *c, uint64_t seed);
    int (*digest)(struct check *c, uint64_t *ret_digest);

    /* A range of a BAR that a peer may write by DMA and that can be read back; size 0: none. */
    uint32_t peer_region;
    uint64_t peer_offset, peer_size;

    /* True when every change can be had in pre-copy, so that S after it is short. */
    bool logs_changes;
};

extern const struct check_workload *const check_workloads[]; /* ends with NULL */

#endif
