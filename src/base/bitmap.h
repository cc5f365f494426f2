/* SPDX-License-Identifier: BSD-3-Clause */
/* Bitmaps as the uAPI has them: little-endian words of 64 bits, bit i is page i. The atomic forms
 * are for writers in other threads; relaxed order is enough because a reader synchronises by
 * stopping the writers or by reading again. */
#ifndef VFMIG_BASE_BITMAP_H
#define VFMIG_BASE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline size_t vfmig_bitmap_words(uint64_t bits)
{
    return (size_t)(bits / 64 + (bits % 64 != 0));
}

static inline bool vfmig_bitmap_test(const uint64_t *map, uint64_t bit)
{
    return (map[bit / 64] >> (bit % 64)) & 1;
}

static inline void vfmig_bitmap_set(uint64_t *map, uint64_t bit)
{
    map[bit / 64] |= UINT64_C(1) << (bit % 64);
}

static inline void vfmig_bitmap_clear(uint64_t *map, uint64_t bit)
{
    map[bit / 64] &= ~(UINT64_C(1) << (bit % 64));
}

/* Sets [first, first + count), word-wise. */
void vfmig_bitmap_set_range(uint64_t *map, uint64_t first, uint64_t count);

/* The same while other threads set and take bits of the same words. */
void vfmig_bitmap_set_range_atomic(uint64_t *map, uint64_t first, uint64_t count);

/* Read-and-clear of one word against concurrent setters. */
static inline uint64_t vfmig_bitmap_take_word(uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED)
               ? __atomic_exchange_n(word, 0, __ATOMIC_ACQ_REL)
               : 0;
}

/* Whether none of so many words, one at least, has a bit. Ends at the first one that has, and else
 * goes at the speed of memcmp. */
static inline bool vfmig_bitmap_is_clean(const uint64_t *words, size_t count)
{
    return words[0] == 0 && memcmp(words, words + 1, (count - 1) * sizeof(*words)) == 0;
}

uint64_t vfmig_bitmap_count(const uint64_t *map, uint64_t bits);

/* First set bit at or after from, or bits when there is none. */
uint64_t vfmig_bitmap_next(const uint64_t *map, uint64_t bits, uint64_t from);

/* First clear bit at or after from, or bits when there is none. */
uint64_t vfmig_bitmap_next_zero(const uint64_t *map, uint64_t bits, uint64_t from);

#endif
