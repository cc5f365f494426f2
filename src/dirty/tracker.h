/* SPDX-License-Identifier: BSD-3-Clause */
/* DIRTY TRACKING (RFC): whoever writes guest memory is behind one tracker. */
#ifndef VFMIG_DIRTY_TRACKER_H
#define VFMIG_DIRTY_TRACKER_H

#include <stdbool.h>
#include <stdint.h>

#include "vfmig/error.h"
#include "vfmig/memory.h"

/* One bitmap over the whole memory map: block after block, each starting at a word. */
struct vfmig_dirty_map {
    struct vfmig_memory memory;
    uint64_t **bitmaps; /* bitmaps[i] covers memory.blocks[i], one bit a page of 4 KiB */
};

int vfmig_dirty_map_init(struct vfmig_dirty_map *map, const struct vfmig_memory *memory,
                         struct vfmig_error *reterr);
void vfmig_dirty_map_done(struct vfmig_dirty_map *map);
void vfmig_dirty_map_fill(struct vfmig_dirty_map *map); /* all dirty */
uint64_t vfmig_dirty_map_count(const struct vfmig_dirty_map *map);

/* Set bits of each map afterwards; of fresh before. */
struct vfmig_dirty_counts {
    uint64_t fresh, map, seen;
};

/* Moves every bit of fresh into map and into seen; all fit. fresh and seen are the caller's alone;
 * with alone false map's words are atomic against whoever takes bits from it meanwhile. One pass,
 * because at 1 TiB each is 32 MiB. */
void vfmig_dirty_map_gather(struct vfmig_dirty_map *fresh, struct vfmig_dirty_map *map,
                            struct vfmig_dirty_map *seen, bool alone,
                            struct vfmig_dirty_counts *ret_counts);

struct vfmig_tracker;

struct vfmig_tracker_ops {
    const char *name;
    /* Clears the log and starts it (C27). */
    int (*start)(struct vfmig_tracker *t, const struct vfmig_memory *memory, struct vfmig_error *reterr);
    /* Reads and clears the log into map, with OR; map is the caller's alone. Atomic against the
     * writers it watches unless atomic is false in the base: then they are quiet meanwhile (C68).
     * On an error the caller takes everything as dirty. */
    int (*sync)(struct vfmig_tracker *t, struct vfmig_dirty_map *map, struct vfmig_error *reterr);
    /* Only once its writers are quiet (C29). */
    int (*stop)(struct vfmig_tracker *t, struct vfmig_error *reterr);
    void (*free)(struct vfmig_tracker *t);
};

/* Base of every tracker; each kind embeds it first. */
struct vfmig_tracker {
    const struct vfmig_tracker_ops *ops;
    uint64_t full; /* times that a vCPU waited for its ring to be emptied, as of the last sync */
    uint64_t page_bytes; /* what a bit of its log stands for; 0: VFMIG_PAGE_SIZE */
    bool atomic; /* false only for a log of devices' DMA: what they write between the read and the
                    clear is lost, so the engine brings them into N, or waits until they are stopped */
    const char *of; /* the device whose writes it knows; NULL: it knows others' */
    bool slow_stop; /* stopping goes over all memory, and may as well come late: only vCPUs write */
};

#endif
