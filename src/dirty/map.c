/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bounds.h"
#include "dirty/private.h"

int vfmig_memory_find(const struct vfmig_memory *memory, uint64_t gpa, uint64_t *ret_offset,
                      uint64_t *ret_left)
{
    for (uint32_t i = 0; i < memory->block_count; i++) {
        const struct vfmig_ram_block *block = &memory->blocks[i];
        if (gpa >= block->gpa && gpa - block->gpa < block->size) {
            *ret_offset = gpa - block->gpa;
            *ret_left = block->size - *ret_offset;
            return (int)i;
        }
    }
    return -1;
}

static bool block_valid(const struct vfmig_ram_block *block, const struct vfmig_ram_block *before)
{
    uint64_t end;

    if (block->size == 0 || block->gpa % VFMIG_PAGE_SIZE || block->size % VFMIG_PAGE_SIZE ||
        __builtin_add_overflow(block->gpa, block->size, &end))
        return false;
    return !before || before->gpa + before->size <= block->gpa;
}

int vfmig_dirty_map_init(struct vfmig_dirty_map *map, const struct vfmig_memory *memory,
                         struct vfmig_error *reterr)
{
    uint32_t count = memory->block_count;

    memset(map, 0, sizeof(*map));
    if (count == 0 || count > VFMIG_MAX_RAM_BLOCKS)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "a memory map of %u blocks, 1 to %u are possible", count,
                               VFMIG_MAX_RAM_BLOCKS);
    for (uint32_t i = 0; i < count; i++)
        if (!block_valid(&memory->blocks[i], i ? &memory->blocks[i - 1] : NULL))
            return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                                   "block %u of the memory map is empty, unaligned or out of order",
                                   i);
    struct vfmig_ram_block *blocks = calloc(count, sizeof(*blocks));
    map->bitmaps = calloc(count, sizeof(*map->bitmaps));
    map->memory.blocks = blocks;
    if (!blocks || !map->bitmaps)
        goto no_memory;
    memcpy(blocks, memory->blocks, count * sizeof(*blocks));
    map->memory.block_count = count;
    for (uint32_t i = 0; i < count; i++) {
        map->bitmaps[i] = calloc(vfmig_bitmap_words(vfmig_block_pages(&blocks[i])), 8);
        if (!map->bitmaps[i])
            goto no_memory;
    }
    return 0;

no_memory:
    vfmig_dirty_map_done(map);
    return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a dirty bitmap");
}

void vfmig_dirty_map_done(struct vfmig_dirty_map *map)
{
    for (uint32_t i = 0; map->bitmaps && i < map->memory.block_count; i++)
        free(map->bitmaps[i]);
    free(map->bitmaps);
    free((void *)map->memory.blocks);
    memset(map, 0, sizeof(*map));
}

void vfmig_dirty_map_fill(struct vfmig_dirty_map *map)
{
    for (uint32_t i = 0; i < map->memory.block_count; i++)
        vfmig_bitmap_set_range_atomic(map->bitmaps[i], 0,
                                      vfmig_block_pages(&map->memory.blocks[i]));
}

uint64_t vfmig_dirty_map_count(const struct vfmig_dirty_map *map)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < map->memory.block_count; i++)
        count += vfmig_bitmap_count(map->bitmaps[i], vfmig_block_pages(&map->memory.blocks[i]));
    return count;
}

bool vfmig_dirty_map_fits(const struct vfmig_dirty_map *map, const struct vfmig_memory *memory)
{
    if (map->memory.block_count != memory->block_count)
        return false;
    for (uint32_t i = 0; i < memory->block_count; i++)
        if (map->memory.blocks[i].gpa != memory->blocks[i].gpa ||
            map->memory.blocks[i].size != memory->blocks[i].size)
            return false;
    return true;
}

static void or_word(uint64_t *word, uint64_t bits)
{
    if (bits)
        __atomic_fetch_or(word, bits, __ATOMIC_RELEASE);
}

void vfmig_dirty_map_merge(struct vfmig_dirty_map *map, uint32_t block, uint64_t first_page,
                           const uint64_t *bits, uint64_t count)
{
    uint64_t *out = map->bitmaps[block] + first_page / 64, whole = count / 64;
    unsigned shift = first_page % 64;

    if (shift == 0) {
        for (uint64_t i = 0; i < whole; i++)
            out[i] |= bits[i];
    } else {
        for (uint64_t i = 0; i < whole; i++) {
            out[i] |= bits[i] << shift;
            out[i + 1] |= bits[i] >> (64 - shift);
        }
    }
    if (count % 64) {
        uint64_t word = bits[whole] & ((UINT64_C(1) << count % 64) - 1);
        out[whole] |= word << shift;
        if (shift && word >> (64 - shift))
            out[whole + 1] |= word >> (64 - shift);
    }
}

/* Words of one block. With pages scattered nobody can foretell which words have a bit, so where
 * nothing is atomic there is no branch. A bit that map has already is not set once more: whoever takes
 * it reads the page afterwards. */
#define GATHER(fresh, map, seen, words, alone, counts)                                             \
    for (uint64_t i = 0; i < (words); i++) {                                                       \
        uint64_t word = (fresh)[i], known = __atomic_load_n(&(map)[i], __ATOMIC_ACQUIRE);          \
        uint64_t ever = (seen)[i] | word;                                                          \
        (fresh)[i] = 0;                                                                            \
        (seen)[i] = ever;                                                                          \
        if (alone)                                                                                 \
            (map)[i] = known | word;                                                               \
        else if (word & ~known)                                                                    \
            known = __atomic_fetch_or(&(map)[i], word, __ATOMIC_ACQ_REL);                          \
        (counts)->fresh += (uint64_t)__builtin_popcountll(word);                                   \
        (counts)->map += (uint64_t)__builtin_popcountll(known | word);                             \
        (counts)->seen += (uint64_t)__builtin_popcountll(ever);                                    \
    }

#define GATHER_FORM(name, target)                                                                  \
    target static void name(uint64_t *fresh, uint64_t *map, uint64_t *seen, uint64_t words,        \
                            bool alone, struct vfmig_dirty_counts *counts)                         \
    {                                                                                              \
        struct vfmig_dirty_counts sum = {0};                                                       \
        if (alone)                                                                                 \
            GATHER(fresh, map, seen, words, true, &sum)                                            \
        else                                                                                       \
            GATHER(fresh, map, seen, words, false, &sum)                                           \
        counts->fresh += sum.fresh;                                                                \
        counts->map += sum.map;                                                                    \
        counts->seen += sum.seen;                                                                  \
    }

GATHER_FORM(gather_plain, )
#if defined(__x86_64__)
GATHER_FORM(gather_popcnt, __attribute__((target("popcnt"))))
#endif

void vfmig_dirty_map_gather(struct vfmig_dirty_map *fresh, struct vfmig_dirty_map *map,
                            struct vfmig_dirty_map *seen, bool alone,
                            struct vfmig_dirty_counts *ret_counts)
{
    void (*form)(uint64_t *, uint64_t *, uint64_t *, uint64_t, bool, struct vfmig_dirty_counts *) =
        gather_plain;

#if defined(__x86_64__)
    if (__builtin_cpu_supports("popcnt"))
        form = gather_popcnt;
#endif
    *ret_counts = (struct vfmig_dirty_counts){0};
    for (uint32_t i = 0; i < fresh->memory.block_count; i++)
        form(fresh->bitmaps[i], map->bitmaps[i], seen->bitmaps[i],
             vfmig_bitmap_words(vfmig_block_pages(&fresh->memory.blocks[i])), alone, ret_counts);
}

void vfmig_dirty_map_take(struct vfmig_dirty_map *from, struct vfmig_dirty_map *to)
{
    for (uint32_t i = 0; i < from->memory.block_count; i++) {
        uint64_t words = vfmig_bitmap_words(vfmig_block_pages(&from->memory.blocks[i]));
        for (uint64_t w = 0; w < words; w++)
            or_word(&to->bitmaps[i][w], vfmig_bitmap_take_word(&from->bitmaps[i][w]));
    }
}

int vfmig_dirty_check(const struct vfmig_memory *memory, bool running,
                      const struct vfmig_dirty_map *map, struct vfmig_error *reterr)
{
    if (!running)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "the dirty log was not started");
    if (!vfmig_dirty_map_fits(map, memory))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "the dirty bitmap belongs to another memory map");
    return 0;
}
