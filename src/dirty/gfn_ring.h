/* SPDX-License-Identifier: BSD-3-Clause */
/* Rings of dirty pages, one a vCPU, as KVM shares them: KVM puts entries in, we take them out, and
 * a reset of all rings at once protects the pages that were taken and frees their entries.
 *
 * Between taking and reset a write to a taken page is not seen. So both are one step, under the
 * lock, and nobody is told of a page before it is protected again.
 *
 * A ring can overrun: KVM asks a vCPU to leave when a ring is nearly full, and one whose
 * instructions it emulates may write many pages before it does. Then as many entries as the ring
 * has are there at once, or the reset does not reach all that was taken; that shows it, and
 * everything is dirty. */
#ifndef VFMIG_DIRTY_GFN_RING_H
#define VFMIG_DIRTY_GFN_RING_H

#include <linux/kvm.h>
#include <pthread.h>

#include "base/bounds.h"
#include "dirty/private.h"

struct vfmig_gfn_ring {
    struct kvm_dirty_gfn *entries; /* shared with who fills it */
    uint32_t count;                /* a power of two */
    uint32_t fetch;                /* of all entries so far: the next one */
    uint32_t freed;                /* of them, what the reset has reached */
    uint32_t doubt;                /* for so many entries more, some may be missing in between */
    bool skipped;                  /* the last pass found some missing */
    uint32_t futile;               /* times it was full and had no entry, since the last entry */
};

struct vfmig_gfn_rings {
    struct vfmig_gfn_ring ring[VFMIG_MAX_VCPUS];
    uint32_t ring_count;
    uint32_t slots[VFMIG_MAX_RAM_BLOCKS]; /* block i is slot slots[i] */
    /* Protects what was taken from any ring and frees it: 0 or a negative errno. */
    int (*reset)(void *opaque);
    void *opaque;
    pthread_mutex_t lock;
    struct vfmig_dirty_map log; /* what was taken and not asked for yet; empty before `begin` */
    bool lost;                  /* an entry that names no page, an overrun: all is dirty */
    uint64_t full;              /* times that a ring was full */
};

/* The caller fills rings, slots and reset in afterwards. */
void vfmig_gfn_rings_init(struct vfmig_gfn_rings *rings);
void vfmig_gfn_rings_done(struct vfmig_gfn_rings *rings);

/* The log is empty and of this memory; what the rings hold is thrown away. Nobody may be filling
 * them. */
int vfmig_gfn_rings_begin(struct vfmig_gfn_rings *rings, const struct vfmig_memory *memory,
                          struct vfmig_error *reterr);
/* Takes everything out of the rings and moves the log into map, with OR. -EPROTO: something was
 * lost, everything is dirty, and pages that nobody protects are about: logging is to be started
 * anew. */
int vfmig_gfn_rings_take(struct vfmig_gfn_rings *rings, struct vfmig_dirty_map *map,
                         struct vfmig_error *reterr);
/* Ring `index` is full: all are emptied into the log. Any thread, any time. */
void vfmig_gfn_rings_full(struct vfmig_gfn_rings *rings, uint32_t index);

#endif
