/* SPDX-License-Identifier: BSD-3-Clause */
/* The VMM's own writes: it says so itself, in one place. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/bitmap.h"
#include "base/sabotage.h"
#include "dirty/private.h"

/* Writers may be inside vfmig_own_mark at any time, so a log that a start with another memory map
 * replaced lives until the tracker is freed. */
struct own_log {
    struct vfmig_dirty_map map;
    struct own_log *older;
};

struct own {
    struct vfmig_tracker base;
    _Atomic(struct own_log *) log;
    atomic_bool running;
};

static int own_start(struct vfmig_tracker *t, const struct vfmig_memory *memory,
                     struct vfmig_error *reterr)
{
    struct own *own = (struct own *)t;
    struct own_log *log = atomic_load(&own->log);

    if (!log || !vfmig_dirty_map_fits(&log->map, memory)) {
        struct own_log *fresh = calloc(1, sizeof(*fresh));
        if (!fresh)
            return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                                   "no memory for a dirty log");
        int r = vfmig_dirty_map_init(&fresh->map, memory, reterr);
        if (r < 0) {
            free(fresh);
            return r;
        }
        fresh->older = log;
        log = fresh;
        atomic_store(&own->log, log);
    }
    for (uint32_t i = 0; i < memory->block_count; i++) {
        if (vfmig_sabotage("start-keeps-log"))
            break;
        uint64_t words = vfmig_bitmap_words(vfmig_block_pages(&memory->blocks[i]));
        for (uint64_t w = 0; w < words; w++)
            vfmig_bitmap_take_word(&log->map.bitmaps[i][w]);
    }
    atomic_store(&own->running, true);
    return 0;
}

/* Also after stop: the log is frozen then, not gone (C28). */
static int own_sync(struct vfmig_tracker *t, struct vfmig_dirty_map *map, struct vfmig_error *reterr)
{
    struct own *own = (struct own *)t;
    struct own_log *log = atomic_load(&own->log);
    int r = vfmig_dirty_check(log ? &log->map.memory : &map->memory, log, map, reterr);

    if (r == 0)
        vfmig_dirty_map_take(&log->map, map);
    return r;
}

static int own_stop(struct vfmig_tracker *t, struct vfmig_error *reterr)
{
    atomic_store(&((struct own *)t)->running, false);
    return 0;
}

static void own_free(struct vfmig_tracker *t)
{
    struct own *own = (struct own *)t;
    struct own_log *log = atomic_load(&own->log);

    while (log) {
        struct own_log *older = log->older;
        vfmig_dirty_map_done(&log->map);
        free(log);
        log = older;
    }
    free(own);
}

static const struct vfmig_tracker_ops own_ops = {
    .name = "own",
    .start = own_start,
    .sync = own_sync,
    .stop = own_stop,
    .free = own_free,
};

int vfmig_tracker_own_new(struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr)
{
    struct own *own = calloc(1, sizeof(*own));

    if (!own)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a tracker");
    own->base.ops = &own_ops;
    own->base.atomic = true;
    *ret_tracker = &own->base;
    return 0;
}

void vfmig_own_mark(struct vfmig_tracker *tracker, uint64_t gpa, uint64_t size)
{
    struct own *own = (struct own *)tracker;

    if (!own || !atomic_load(&own->running) || vfmig_sabotage("skip-own-mark"))
        return;
    struct own_log *log = atomic_load(&own->log);
    while (size) {
        uint64_t offset, left;
        int block = vfmig_memory_find(&log->map.memory, gpa, &offset, &left);
        if (block < 0)
            return;
        uint64_t step = size < left ? size : left;
        uint64_t first = offset >> VFMIG_PAGE_SHIFT;
        uint64_t last = (offset + step - 1) >> VFMIG_PAGE_SHIFT;
        vfmig_bitmap_set_range_atomic(log->map.bitmaps[block], first, last - first + 1);
        gpa += step;
        size -= step;
    }
}
