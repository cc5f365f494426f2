/* SPDX-License-Identifier: BSD-3-Clause */
/* The destination's memory is cold: the first write to a page finds no page there. What that costs
 * the source needs for its prediction, so the pages of some records are made in one go right before
 * they are received, and that is timed. Not those of all: of memory that is there this would be
 * another look at every page. docs/performance.md has the measurements. */
#include <errno.h>
#include <sys/mman.h>

#include "engine/channel_private.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define TIMED_RECORDS 32u /* one of so many that have new pages */

/* Pages of a run that were not written here before; they are from now on. A page belongs to one
 * channel, so nobody else changes its word meanwhile (memory_mover.h). */
static uint64_t take_cold(struct vfmig_channel *channel, const struct vfmig_page_run *run)
{
    uint64_t *bitmap = channel->warm->bitmaps[run->block];
    uint64_t cold = 0;

    for (uint64_t page = run->first_page; page < run->first_page + run->page_count; page++) {
        uint64_t bit = UINT64_C(1) << page % 64;
        cold += !(bitmap[page / 64] & bit);
        bitmap[page / 64] |= bit;
    }
    return cold;
}

/* Pages and time of a run that is new in whole; a kernel that cannot do it leaves the pages to be made
 * by the copy, and nothing is measured. */
static void populate(struct vfmig_channel *channel, const struct vfmig_page_run *run)
{
    size_t bytes = (size_t)run->page_count * VFMIG_PAGE_SIZE;
    uint64_t begin_ns = vfmig_channel_now_ns();

    if (madvise(vfmig_page_address(channel->memory, run), bytes, MADV_POPULATE_WRITE) == 0)
        vfmig_rates_add(&channel->cold, bytes, vfmig_channel_now_ns() - begin_ns);
}

void vfmig_channel_note_cold(struct vfmig_channel *channel, uint32_t run_count)
{
    bool timed = channel->cold_records % TIMED_RECORDS == 0;
    uint64_t all = 0;

    for (uint32_t i = 0; channel->warm && i < run_count; i++) {
        const struct vfmig_page_run *run = &channel->runs[i];
        uint64_t cold = take_cold(channel, run);
        if (timed && cold == run->page_count)
            populate(channel, run);
        all += cold;
    }
    channel->cold_records += all > 0;
    channel->cold_pages += all;
}
