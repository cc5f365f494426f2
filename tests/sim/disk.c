/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk with one file. What is written is seen at once and is on the disk after a sync; a crash
 * before that leaves each write there, not there, or torn. After a failed sync nobody knows, and a
 * later sync does not write it again, as file systems do it. */
#include "sim.h"

#include <errno.h>
#include <string.h>

static unsigned side_of(const struct disk *d)
{
    return d == &sim.side[DST].disk;
}

static int64_t disk_read(void *opaque, void *data, size_t size, uint64_t offset)
{
    struct disk *d = opaque;

    if (offset >= d->size)
        return 0;
    if (size > d->size - offset)
        size = d->size - (size_t)offset;
    if (d->torn_io && size > 1) {
        size = 1 + (size_t)chance_below(&sim.chance, size - 1);
        fault_struck(FAULT_SHORT_IO, side_of(d));
    }
    memcpy(data, d->cache + offset, size);
    return (int64_t)size;
}

static void persist(struct disk *d, uint32_t from, uint32_t size)
{
    memcpy(d->durable + from, d->cache + from, size);
    if (d->durable_size < from + size)
        d->durable_size = from + size;
}

static int64_t disk_write(void *opaque, const void *data, size_t size, uint64_t offset)
{
    struct disk *d = opaque;

    if (d->full) {
        fault_struck(FAULT_FULL, side_of(d));
        return -ENOSPC;
    }
    if (offset >= DISK_BYTES)
        return -ENOSPC;
    if (size > DISK_BYTES - offset)
        size = DISK_BYTES - (size_t)offset;
    if (d->torn_io && size > 1) {
        size = 1 + (size_t)chance_below(&sim.chance, size - 1);
        fault_struck(FAULT_SHORT_IO, side_of(d));
    }
    memcpy(d->cache + offset, data, size);
    if (d->size < offset + size)
        d->size = (uint32_t)(offset + size);
    if (d->dirty_count == 16) { /* the system writes some back by itself */
        persist(d, d->dirty_from[0], d->dirty_size[0]);
        d->dirty_count--;
        memmove(d->dirty_from, d->dirty_from + 1, d->dirty_count * sizeof(d->dirty_from[0]));
        memmove(d->dirty_size, d->dirty_size + 1, d->dirty_count * sizeof(d->dirty_size[0]));
    }
    d->dirty_from[d->dirty_count] = (uint32_t)offset;
    d->dirty_size[d->dirty_count++] = (uint32_t)size;
    return (int64_t)size;
}

/* Each write that was not synced: all of it, nothing, or some bytes. */
static void settle(struct disk *d)
{
    for (uint32_t i = 0; i < d->dirty_count; i++) {
        uint32_t size = d->dirty_size[i];
        unsigned what = (unsigned)chance_below(&sim.chance, 3);
        if (what == 2)
            size = (uint32_t)chance_below(&sim.chance, size);
        if (what)
            persist(d, d->dirty_from[i], size);
    }
    d->dirty_count = 0;
}

static int disk_sync(void *opaque, bool all)
{
    struct disk *d = opaque;
    unsigned side = side_of(d);

    (void)all;
    sim.side[side].busy_until = sim.now + some(MS / 4, MS);
    fault_point(side); /* written, not synced */
    if (d->sync_fails) {
        fault_struck(FAULT_SYNC, side_of(d));
        d->sync_fails--;
        settle(d);
        return -EIO;
    }
    for (uint32_t i = 0; i < d->dirty_count; i++)
        persist(d, d->dirty_from[i], d->dirty_size[i]);
    d->dirty_count = 0;
    fault_point(side); /* synced, and nobody knows yet */
    return 0;
}

void disk_store(struct disk *disk, struct vfmig_journal_store *ret_store)
{
    *ret_store = (struct vfmig_journal_store){disk_read, disk_write, disk_sync, disk};
}

void disk_crash(struct disk *d)
{
    settle(d);
    memcpy(d->cache, d->durable, sizeof(d->cache));
    d->size = d->durable_size;
}

void disk_summary(struct disk *disk, bool held, struct vfmig_journal_summary *ret_summary)
{
    struct vfmig_journal_store store;
    uint8_t torn = disk->torn_io;

    disk->torn_io = 0;
    disk_store(disk, &store);
    (void)vfmig_journal_scan(&store, "journal", ret_summary, NULL);
    ret_summary->held = held;
    disk->torn_io = torn;
}
