/* SPDX-License-Identifier: BSD-3-Clause */
#include "dirty/gfn_ring.h"

#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/sabotage.h"

#define SMALL_RING 1024u /* entries; looking at all of them costs nothing */
#define MAX_RESETS 3u    /* for what an overrun wrote over */

void vfmig_gfn_rings_init(struct vfmig_gfn_rings *rings)
{
    memset(rings, 0, sizeof(*rings));
    pthread_mutex_init(&rings->lock, NULL);
    for (uint32_t i = 0; i < VFMIG_MAX_RAM_BLOCKS; i++)
        rings->slots[i] = i;
}

void vfmig_gfn_rings_done(struct vfmig_gfn_rings *rings)
{
    vfmig_dirty_map_done(&rings->log);
    pthread_mutex_destroy(&rings->lock);
}

/* The page is what we know, not what the entry says: address space 0, a slot of ours, inside it. */
static bool mark(struct vfmig_gfn_rings *rings, uint32_t slot, uint64_t offset)
{
    const struct vfmig_memory *memory = &rings->log.memory;

    for (uint32_t i = 0; i < memory->block_count; i++) {
        if (rings->slots[i] != slot)
            continue;
        if (offset >= vfmig_block_pages(&memory->blocks[i]) && !vfmig_sabotage("ring-unchecked"))
            return false;
        vfmig_bitmap_set_range_atomic(rings->log.bitmaps[i], offset, 1);
        return true;
    }
    return false;
}

static uint32_t flags_at(const struct vfmig_gfn_ring *ring, uint32_t at)
{
    return __atomic_load_n(&ring->entries[at & (ring->count - 1)].flags, __ATOMIC_ACQUIRE);
}

static void give_back(struct vfmig_gfn_ring *ring, uint32_t at)
{
    __atomic_store_n(&ring->entries[at & (ring->count - 1)].flags, KVM_DIRTY_GFN_F_RESET,
                     __ATOMIC_RELEASE);
}

/* Entries that an overrun wrote over, or the reset freed at the moment they were filled, are missing
 * in front of the next one: they are given back as if they had been taken. */
static bool skip_missing(struct vfmig_gfn_ring *ring)
{
    uint32_t missing = 0;

    while (missing < ring->count && flags_at(ring, ring->fetch + missing) != KVM_DIRTY_GFN_F_DIRTY)
        missing++;
    if (missing == ring->count)
        return false; /* nothing has come since */
    /* Entries come in order: one that came while we looked is there by now. */
    while (missing && flags_at(ring, ring->fetch) != KVM_DIRTY_GFN_F_DIRTY) {
        give_back(ring, ring->fetch++);
        missing--;
        ring->skipped = true;
    }
    return true;
}

static void take_entry(struct vfmig_gfn_rings *rings, struct vfmig_gfn_ring *ring, bool keep)
{
    const struct kvm_dirty_gfn *entry = &ring->entries[ring->fetch & (ring->count - 1)];
    uint32_t slot = __atomic_load_n(&entry->slot, __ATOMIC_RELAXED);
    uint64_t offset = __atomic_load_n(&entry->offset, __ATOMIC_RELAXED);

    if (keep)
        rings->lost |= !mark(rings, slot, offset);
    give_back(ring, ring->fetch++);
    ring->futile = 0;
    if (ring->doubt)
        ring->doubt--;
}

/* At most one turn: an entry is free for its owner only after the reset. The order is in doubt for
 * a turn after a ring was half full, and always in one so small that a burst fills it. */
static void empty_ring(struct vfmig_gfn_rings *rings, struct vfmig_gfn_ring *ring, bool keep)
{
    uint32_t taken = 0;

    ring->skipped = false;
    do {
        while (taken < ring->count && flags_at(ring, ring->fetch) == KVM_DIRTY_GFN_F_DIRTY) {
            take_entry(rings, ring, keep && !(taken == 0 && vfmig_sabotage("ring-skips-entry")));
            taken++;
        }
    } while ((ring->doubt || ring->count <= SMALL_RING) && taken < ring->count && skip_missing(ring));
    if (taken > ring->count / 2)
        ring->doubt = ring->count;
    if ((taken == ring->count || ring->skipped) && !vfmig_sabotage("ring-overrun-unseen"))
        rings->lost = true;
}

/* How far the reset has come in a ring shows in the flags; at most one turn. What it did not reach
 * was written over meanwhile: either it is there again to be taken, or it is given back once more. */
static bool settle(struct vfmig_gfn_ring *ring)
{
    for (uint32_t i = 0; i < ring->count && ring->freed != ring->fetch; i++, ring->freed++)
        if (flags_at(ring, ring->freed) != 0)
            break;
    for (uint32_t at = ring->freed; at != ring->fetch; at++)
        if (flags_at(ring, at) == 0)
            give_back(ring, at);
    return ring->freed == ring->fetch;
}

static bool reset_all(struct vfmig_gfn_rings *rings)
{
    bool all = rings->reset(rings->opaque) == 0;

    for (uint32_t i = 0; i < rings->ring_count; i++)
        if (!settle(&rings->ring[i])) {
            rings->ring[i].doubt = rings->ring[i].count;
            all = false;
        }
    return all;
}

/* Under the lock. */
static void empty_all(struct vfmig_gfn_rings *rings, bool keep)
{
    bool behind = false;

    for (uint32_t i = 0; i < rings->ring_count; i++) {
        empty_ring(rings, &rings->ring[i], keep);
        behind |= rings->ring[i].freed != rings->ring[i].fetch;
    }
    for (unsigned tries = 0; behind && tries < MAX_RESETS; tries++) {
        behind = !reset_all(rings);
        rings->lost |= behind;
    }
}

int vfmig_gfn_rings_begin(struct vfmig_gfn_rings *rings, const struct vfmig_memory *memory,
                          struct vfmig_error *reterr)
{
    pthread_mutex_lock(&rings->lock);
    vfmig_dirty_map_done(&rings->log);
    int ret = vfmig_dirty_map_init(&rings->log, memory, reterr);
    empty_all(rings, /* keep= */ false);
    rings->lost = false;
    pthread_mutex_unlock(&rings->lock);
    return ret;
}

int vfmig_gfn_rings_take(struct vfmig_gfn_rings *rings, struct vfmig_dirty_map *map,
                         struct vfmig_error *reterr)
{
    int ret = 0;

    pthread_mutex_lock(&rings->lock);
    empty_all(rings, /* keep= */ true);
    vfmig_dirty_map_take(&rings->log, map);
    if (rings->lost)
        ret = vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_KERNEL, 0,
                              "a dirty ring overran, or names a page that is no memory");
    rings->lost = false;
    pthread_mutex_unlock(&rings->lock);
    return ret;
}

/* The first time somebody else may have emptied it just before. When it is full again and nothing
 * has come since, all that KVM counts in it was written over: that is more than half of it. */
void vfmig_gfn_rings_full(struct vfmig_gfn_rings *rings, uint32_t index)
{
    if (index >= rings->ring_count)
        return;
    struct vfmig_gfn_ring *ring = &rings->ring[index];
    pthread_mutex_lock(&rings->lock);
    rings->full++;
    uint32_t before = ring->fetch;
    empty_all(rings, /* keep= */ rings->log.memory.block_count != 0);
    if (ring->fetch == before && ++ring->futile > 1) {
        for (uint32_t i = 0; i < ring->count / 2; i++)
            give_back(ring, ring->fetch++);
        rings->lost = true;
        empty_all(rings, /* keep= */ rings->log.memory.block_count != 0);
    }
    pthread_mutex_unlock(&rings->lock);
}
