/* SPDX-License-Identifier: BSD-3-Clause */
/* What the trackers share. */
#ifndef VFMIG_DIRTY_PRIVATE_H
#define VFMIG_DIRTY_PRIVATE_H

#include "dirty/trackers.h"

static inline uint64_t vfmig_block_pages(const struct vfmig_ram_block *block)
{
    return block->size >> VFMIG_PAGE_SHIFT;
}

/* Same blocks, by address and size. */
bool vfmig_dirty_map_fits(const struct vfmig_dirty_map *map, const struct vfmig_memory *memory);

/* ORs count bits into the block's bitmap from first_page on, word-wise. The map is the caller's
 * alone; the range must lie in the block. */
void vfmig_dirty_map_merge(struct vfmig_dirty_map *map, uint32_t block, uint64_t first_page,
                           const uint64_t *bits, uint64_t count);

/* Moves every bit from one map to another that fits; atomic on both. */
void vfmig_dirty_map_take(struct vfmig_dirty_map *from, struct vfmig_dirty_map *to);

/* -EINVAL when a sync into map makes no sense. */
int vfmig_dirty_check(const struct vfmig_memory *memory, bool running,
                      const struct vfmig_dirty_map *map, struct vfmig_error *reterr);

#endif
