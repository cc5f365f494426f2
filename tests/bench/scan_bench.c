/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading a dirty log of 1 TiB in 4 KiB pages (32 MiB of bits) of which one in a hundred was written:
 * what a tracker brought is merged into the map of this sync, gathered into what is to be sent and
 * what was ever seen, counted, and each dirty page is visited and cleared, as a round does it. The
 * limit: the same bits moved by plain loops over plain words, one pass for each bitmap that has to be
 * touched, nothing atomic, nothing counted, no bit looked at. Once with the pages scattered, so that half
 * of all words have a bit, and once in runs of 64 pages. Prints a JSON list of rows. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#include "base/bitmap.h"
#include "dirty/private.h"

#define SPAN  (UINT64_C(1) << 40)
#define PAGES (SPAN / VFMIG_PAGE_SIZE)
#define WORDS (PAGES / 64)
#define TURNS 9u

static struct vfmig_dirty_map fresh, map, seen;
static uint64_t *source, *bare[3];

static uint64_t *words(void)
{
    uint64_t *at = malloc(WORDS * 8);

    need(at != NULL, "no memory");
    memset(at, 0, WORDS * 8);
    return at;
}

/* A hundredth of all pages, in runs. */
static uint64_t fill(uint64_t run)
{
    uint64_t seed = 1;

    memset(source, 0, WORDS * 8);
    for (uint64_t i = 0; i < PAGES / 100 / run; i++) {
        seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        vfmig_bitmap_set_range(source, (seed >> 33) % (PAGES / run) * run, run);
    }
    return vfmig_bitmap_count(source, PAGES);
}

static double our_turn(uint64_t expected)
{
    struct vfmig_dirty_counts counts;
    uint64_t *bits = map.bitmaps[0], visited = 0;
    uint64_t begin = now_ns();

    vfmig_dirty_map_merge(&fresh, 0, 0, source, PAGES);
    vfmig_dirty_map_gather(&fresh, &map, &seen, /* alone= */ true, &counts);
    for (uint64_t i = 0; i < WORDS; i++)
        for (uint64_t word = vfmig_bitmap_take_word(&bits[i]); word; word &= word - 1)
            visited += i * 64 + (uint64_t)__builtin_ctzll(word) < PAGES;
    uint64_t took = now_ns() - begin;
    need(visited == expected && counts.fresh == expected && counts.map == expected &&
             counts.seen == expected, "pages were lost");
    return (double)took * 1e-6;
}

static double bare_turn(void)
{
    uint64_t begin = now_ns();

    for (uint64_t i = 0; i < WORDS; i++)
        bare[0][i] |= source[i];
    __asm__ volatile("" ::: "memory");
    for (uint64_t i = 0; i < WORDS; i++) {
        bare[1][i] |= bare[0][i];
        bare[2][i] |= bare[0][i];
        bare[0][i] = 0;
    }
    __asm__ volatile("" ::: "memory");
    for (uint64_t i = 0; i < WORDS; i++)
        bare[1][i] = 0;
    __asm__ volatile("" ::: "memory");
    return (double)(now_ns() - begin) * 1e-6;
}

static void row(const char *name, uint64_t run, double ceiling)
{
    double ours[TURNS], limit[TURNS];
    uint64_t expected = fill(run);

    memset(seen.bitmaps[0], 0, WORDS * 8);
    our_turn(expected);
    bare_turn();
    for (unsigned turn = 0; turn < TURNS; turn++) {
        if (turn % 2)
            limit[turn] = bare_turn();
        ours[turn] = our_turn(expected);
        if (turn % 2 == 0)
            limit[turn] = bare_turn();
    }
    double our = median(ours, TURNS), bare_one = median(limit, TURNS);
    printf("{\"name\": \"%s\", \"unit\": \"ms\", \"ours\": %.2f, \"limit\": %.2f, "
           "\"ratio\": %.3f, \"ceiling\": %.1f}", name, our, bare_one,
           our / bare_one, ceiling);
}

int main(void)
{
    const struct vfmig_ram_block block = {0, SPAN, NULL, -1, 0};
    const struct vfmig_memory memory = {&block, 1};

    need(!vfmig_dirty_map_init(&fresh, &memory, NULL) && !vfmig_dirty_map_init(&map, &memory, NULL) &&
             !vfmig_dirty_map_init(&seen, &memory, NULL), "no memory");
    source = words();
    for (unsigned i = 0; i < 3; i++)
        bare[i] = words();
    printf("[");
    row("dirty-scan-1t-1", 1, 8.0);
    printf(",\n ");
    row("dirty-scan-1t-1-clustered", 64, 2.5);
    printf("]\n");
    vfmig_dirty_map_done(&fresh);
    vfmig_dirty_map_done(&map);
    vfmig_dirty_map_done(&seen);
    free(source);
    for (unsigned i = 0; i < 3; i++)
        free(bare[i]);
    return 0;
}
