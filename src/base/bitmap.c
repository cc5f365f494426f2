/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/bitmap.h"

/* Bits [low, high) of a word; 0 <= low < high <= 64. */
static uint64_t word_mask(uint64_t low, uint64_t high)
{
    return (~UINT64_C(0) >> (64 - (high - low))) << low;
}

static inline void or_range(uint64_t *map, uint64_t first, uint64_t count, bool atomic)
{
    uint64_t end = first + count;

    while (first < end) {
        uint64_t low = first % 64;
        uint64_t high = end - first >= 64 - low ? 64 : low + (end - first);
        uint64_t mask = word_mask(low, high);
        if (atomic)
            __atomic_fetch_or(&map[first / 64], mask, __ATOMIC_RELEASE);
        else
            map[first / 64] |= mask;
        first += high - low;
    }
}

void vfmig_bitmap_set_range(uint64_t *map, uint64_t first, uint64_t count)
{
    or_range(map, first, count, false);
}

void vfmig_bitmap_set_range_atomic(uint64_t *map, uint64_t first, uint64_t count)
{
    or_range(map, first, count, true);
}

/* Others may be setting bits: each word is read once, whole. */
uint64_t vfmig_bitmap_count(const uint64_t *map, uint64_t bits)
{
    uint64_t count = 0;

    for (uint64_t word = 0; word < bits / 64; word++)
        count += (uint64_t)__builtin_popcountll(__atomic_load_n(&map[word], __ATOMIC_RELAXED));
    if (bits % 64)
        count += (uint64_t)__builtin_popcountll(
            __atomic_load_n(&map[bits / 64], __ATOMIC_RELAXED) & word_mask(0, bits % 64));
    return count;
}

/* Next bit whose word, xored with flip, has it set. */
static uint64_t next_bit(const uint64_t *map, uint64_t bits, uint64_t from, uint64_t flip)
{
    while (from < bits) {
        uint64_t word = (map[from / 64] ^ flip) >> (from % 64);
        if (word) {
            from += (uint64_t)__builtin_ctzll(word);
            return from < bits ? from : bits;
        }
        from = (from / 64 + 1) * 64;
    }
    return bits;
}

uint64_t vfmig_bitmap_next(const uint64_t *map, uint64_t bits, uint64_t from)
{
    return next_bit(map, bits, from, 0);
}

uint64_t vfmig_bitmap_next_zero(const uint64_t *map, uint64_t bits, uint64_t from)
{
    return next_bit(map, bits, from, ~UINT64_C(0));
}
