/* SPDX-License-Identifier: BSD-3-Clause */
/* A device's DMA, by the device's own log. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/bounds.h"
#include "dirty/private.h"

struct device_log {
    struct vfmig_tracker base;
    struct vfmig_target *target;
    bool identity;
    struct vfmig_iova_window *windows;
    uint32_t window_count;
    uint64_t page_size;
    uint64_t *scratch; /* bitmap of the largest window */
    struct vfmig_dirty_map layout; /* memory map of the last start; its bitmaps are not used */
    bool started;      /* at least once: a log that was stopped may still be read (C28) */
};

bool vfmig_tracker_device_probe(const struct vfmig_target *target)
{
    return target->info.dma_log && target->ops->log_start;
}

static int check_window(const struct vfmig_memory *memory, const struct vfmig_iova_window *window,
                        uint64_t page_size, struct vfmig_error *reterr)
{
    uint64_t offset, left, end;
    int block = vfmig_memory_find(memory, window->gpa, &offset, &left);

    if (block < 0 || window->size == 0 || window->size > left ||
        __builtin_add_overflow(window->iova, window->size, &end))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "device window at 0x%llx is not inside one memory block",
                               (unsigned long long)window->iova);
    if (window->gpa % VFMIG_PAGE_SIZE || window->size % VFMIG_PAGE_SIZE || window->iova % page_size)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "device window at 0x%llx is not page aligned",
                               (unsigned long long)window->iova);
    return 0;
}

/* Windows of this start: the given ones, or one for each block. */
static int settle_windows(struct device_log *log, const struct vfmig_memory *memory,
                          struct vfmig_error *reterr)
{
    uint64_t most = 0;

    if (log->identity) {
        free(log->windows);
        log->window_count = 0;
        log->windows = calloc(memory->block_count, sizeof(*log->windows));
        if (!log->windows)
            goto no_memory;
        log->window_count = memory->block_count;
        for (uint32_t i = 0; i < memory->block_count; i++)
            log->windows[i] = (struct vfmig_iova_window){memory->blocks[i].gpa, memory->blocks[i].gpa,
                                                         memory->blocks[i].size};
    }
    for (uint32_t i = 0; i < log->window_count; i++) {
        int r = check_window(memory, &log->windows[i], log->page_size, reterr);
        if (r < 0)
            return r;
        if (log->windows[i].size > most)
            most = log->windows[i].size;
    }
    free(log->scratch);
    log->scratch = calloc(vfmig_bitmap_words(most / VFMIG_PAGE_SIZE + 1), 8);
    if (log->scratch)
        return 0;
no_memory:
    return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a device's log");
}

static int device_start(struct vfmig_tracker *t, const struct vfmig_memory *memory,
                        struct vfmig_error *reterr)
{
    struct device_log *log = (struct device_log *)t;
    struct vfmig_dirty_map layout;
    int r = vfmig_dirty_map_init(&layout, memory, reterr);

    if (r < 0)
        return r;
    r = settle_windows(log, memory, reterr);
    if (r < 0) {
        vfmig_dirty_map_done(&layout);
        return r;
    }
    vfmig_dirty_map_done(&log->layout);
    log->layout = layout;
    struct vfmig_iova_range *ranges = calloc(log->window_count, sizeof(*ranges));
    if (!ranges)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for ranges");
    for (uint32_t i = 0; i < log->window_count; i++)
        ranges[i] = (struct vfmig_iova_range){log->windows[i].iova, log->windows[i].size};
    r = log->target->ops->log_start(log->target, log->page_size, ranges, log->window_count, reterr);
    free(ranges);
    log->started = r == 0;
    return r;
}

/* Bits of a page size above ours stand for several pages each. */
static void merge_large(struct vfmig_dirty_map *map, uint32_t block, uint64_t first,
                        const uint64_t *bits, uint64_t bit_count, uint64_t ratio, uint64_t pages)
{
    for (uint64_t bit = vfmig_bitmap_next(bits, bit_count, 0); bit < bit_count;
         bit = vfmig_bitmap_next(bits, bit_count, bit + 1)) {
        uint64_t at = bit * ratio, count = pages - at < ratio ? pages - at : ratio;
        vfmig_bitmap_set_range_atomic(map->bitmaps[block], first + at, count);
    }
}

static int device_sync(struct vfmig_tracker *t, struct vfmig_dirty_map *map,
                       struct vfmig_error *reterr)
{
    struct device_log *log = (struct device_log *)t;
    uint64_t ratio = log->page_size / VFMIG_PAGE_SIZE;
    int r = vfmig_dirty_check(&log->layout.memory, log->started, map, reterr);

    for (uint32_t i = 0; r == 0 && i < log->window_count; i++) {
        const struct vfmig_iova_window *window = &log->windows[i];
        uint64_t pages = window->size / VFMIG_PAGE_SIZE, bits = (pages + ratio - 1) / ratio;
        uint64_t offset, left;
        int block = vfmig_memory_find(&log->layout.memory, window->gpa, &offset, &left);
        memset(log->scratch, 0, vfmig_bitmap_words(bits) * 8);
        r = log->target->ops->log_report(log->target, window->iova, window->size, log->page_size,
                                         log->scratch, reterr);
        if (r == 0 && ratio == 1)
            vfmig_dirty_map_merge(map, (uint32_t)block, offset / VFMIG_PAGE_SIZE, log->scratch, bits);
        else if (r == 0)
            merge_large(map, (uint32_t)block, offset / VFMIG_PAGE_SIZE, log->scratch, bits, ratio,
                        pages);
    }
    return r;
}

static int device_stop(struct vfmig_tracker *t, struct vfmig_error *reterr)
{
    struct device_log *log = (struct device_log *)t;

    return log->target->ops->log_stop(log->target, reterr);
}

static void device_free(struct vfmig_tracker *t)
{
    struct device_log *log = (struct device_log *)t;

    vfmig_dirty_map_done(&log->layout);
    free(log->windows);
    free(log->scratch);
    free(log);
}

static const struct vfmig_tracker_ops device_ops = {
    .name = "device",
    .start = device_start,
    .sync = device_sync,
    .stop = device_stop,
    .free = device_free,
};

int vfmig_tracker_device_new(struct vfmig_target *target, const struct vfmig_iova_window *windows,
                             uint32_t window_count, struct vfmig_tracker **ret_tracker,
                             struct vfmig_error *reterr)
{
    uint64_t page_size = target->info.log_page_size;

    if (!vfmig_tracker_device_probe(target))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "%s does not log its DMA", target->info.name);
    if (page_size < VFMIG_PAGE_SIZE || page_size & (page_size - 1))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "%s logs pages of %llu bytes", target->info.name,
                               (unsigned long long)page_size);
    if (windows && window_count > VFMIG_MAX_DMA_REGIONS)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "too many device windows");
    struct device_log *log = calloc(1, sizeof(*log));
    if (!log)
        goto no_memory;
    log->base.ops = &device_ops;
    log->base.atomic = true;
    log->base.page_bytes = page_size;
    log->base.of = target->info.name;
    log->target = target;
    log->page_size = page_size;
    log->identity = !windows;
    if (windows) {
        log->windows = calloc(window_count ? window_count : 1, sizeof(*windows));
        if (!log->windows)
            goto no_memory;
        memcpy(log->windows, windows, window_count * sizeof(*windows));
        log->window_count = window_count;
    }
    *ret_tracker = &log->base;
    return 0;

no_memory:
    free(log);
    return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a tracker");
}
