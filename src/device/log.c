/* SPDX-License-Identifier: BSD-3-Clause */
/* DIRTY TRACKING of the device's own DMA (C27, C28, C30, C40): one bitmap for each logged range,
 * served in both dialects. Writers set bits under the reader's side of the lock; a report takes
 * each word atomically. Memory that was written by message is the client's to mark. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/sabotage.h"
#include "device/internal.h"

void log_init(struct dma_log *log)
{
    memset(log, 0, sizeof(*log));
    pthread_rwlock_init(&log->lock, NULL);
}

/* Writer's lock held. */
static void forget(struct dma_log *log)
{
    for (uint32_t i = 0; i < log->count; i++)
        free(log->list[i].bitmap);
    free(log->list);
    log->list = NULL;
    log->count = log->room = 0;
    log->bytes = 0;
    log->mode = LOG_OFF;
}

void log_done(struct dma_log *log)
{
    forget(log);
    pthread_rwlock_destroy(&log->lock);
}

uint64_t log_bitmap_bytes(uint64_t size, uint64_t page_size)
{
    uint64_t pages = size / page_size + (size % page_size != 0);
    return (pages / 64 + (pages % 64 != 0)) * 8;
}

/* Index of the first range that ends at or after iova. */
static uint32_t find(const struct dma_log *log, uint64_t iova)
{
    uint32_t low = 0, high = log->count;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (log->list[mid].last < iova)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Writer's lock held. The bits are of whole pages of the log; two ranges may lie in one. */
static int add_range(struct dma_log *log, uint64_t iova, uint64_t size)
{
    uint64_t mask = (UINT64_C(1) << log->page_shift) - 1;
    uint64_t base = iova & ~mask, end = iova + (size - 1);
    uint64_t pages = (end >> log->page_shift) - (base >> log->page_shift) + 1;
    uint64_t bytes = vfmig_bitmap_words(pages) * 8;
    uint32_t at = find(log, iova);

    if (at < log->count && log->list[at].iova <= end)
        return -EINVAL;
    if (log->count == VFMIG_MAX_LOG_RANGES || bytes > VFMIG_MAX_LOG_BYTES - log->bytes)
        return -E2BIG;
    if (log->count == log->room) {
        uint32_t room = log->room ? log->room * 2 : 16;
        struct log_range *list = realloc(log->list, room * sizeof(*list));
        if (!list)
            return -ENOMEM;
        log->list = list;
        log->room = room;
    }
    uint64_t *bitmap = calloc(1, (size_t)bytes);
    if (!bitmap)
        return -ENOMEM;
    memmove(&log->list[at + 1], &log->list[at], (log->count - at) * sizeof(log->list[0]));
    log->list[at] = (struct log_range){iova, end, base, pages, bitmap};
    log->count++;
    log->bytes += bytes;
    return 0;
}

int log_start(struct vfmig_device *dev, uint64_t page_size,
              const struct vfmig_user_log_range *ranges, uint32_t count)
{
    struct dma_log *log = &dev->log;
    int r = 0;

    if (page_size < PAGE || (page_size & (page_size - 1)) || page_size > (1ull << 30))
        return -EINVAL;
    pthread_rwlock_wrlock(&log->lock);
    forget(log); /* C27: clean */
    log->page_shift = (uint32_t)__builtin_ctzll(page_size);
    log->everything = count == 0;
    for (uint32_t i = 0; r == 0 && i < count; i++)
        r = add_range(log, ranges[i].iova, ranges[i].length);
    for (uint32_t i = 0; r == 0 && count == 0 && i < dev->dma.count; i++)
        r = add_range(log, dev->dma.list[i].iova, dev->dma.list[i].size);
    if (vfmig_sabotage("log-not-clean-on-start") && log->count)
        vfmig_bitmap_set(log->list[0].bitmap, 0);
    if (r == 0)
        log->mode = LOG_ON;
    else
        forget(log);
    pthread_rwlock_unlock(&log->lock);
    return r;
}

int log_stop(struct vfmig_device *dev)
{
    struct dma_log *log = &dev->log;

    if (log->mode == LOG_OFF)
        return -EINVAL;
    pthread_rwlock_wrlock(&log->lock);
    log->mode = LOG_FROZEN; /* C28: what is in it stays readable */
    if (vfmig_sabotage("log-lost-on-stop"))
        forget(log);
    pthread_rwlock_unlock(&log->lock);
    return 0;
}

void log_client_reset(struct vfmig_device *dev)
{
    pthread_rwlock_wrlock(&dev->log.lock);
    if (dev->log.mode == LOG_FROZEN)
        forget(&dev->log);
    pthread_rwlock_unlock(&dev->log.lock);
}

void log_mark(struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    struct dma_log *log = &dev->log;
    uint64_t last = iova + (size - 1);

    if (size == 0 || vfmig_sabotage("dma-not-logged"))
        return;
    pthread_rwlock_rdlock(&log->lock);
    for (uint32_t i = log->mode == LOG_ON ? find(log, iova) : log->count; i < log->count; i++) {
        const struct log_range *range = &log->list[i];
        if (range->iova > last)
            break;
        uint64_t from = (iova > range->iova ? iova : range->iova) - range->base;
        uint64_t to = (last < range->last ? last : range->last) - range->base;
        uint64_t first = from >> log->page_shift;
        vfmig_bitmap_set_range_atomic(range->bitmap, first, (to >> log->page_shift) - first + 1);
    }
    pthread_rwlock_unlock(&log->lock);
}

int log_mapped(struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    struct dma_log *log = &dev->log;
    int r = 0;

    if (log->mode == LOG_ON && log->everything) {
        pthread_rwlock_wrlock(&log->lock);
        r = add_range(log, iova, size);
        pthread_rwlock_unlock(&log->lock);
    }
    return r;
}

void log_unmapped(struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    struct dma_log *log = &dev->log;

    pthread_rwlock_wrlock(&log->lock);
    uint32_t at = log->mode == LOG_OFF ? log->count : find(log, iova);
    if (log->everything && at < log->count && log->list[at].iova == iova) {
        log->bytes -= vfmig_bitmap_words(log->list[at].pages) * 8;
        free(log->list[at].bitmap);
        log->count--;
        memmove(&log->list[at], &log->list[at + 1], (log->count - at) * sizeof(log->list[0]));
    }
    pthread_rwlock_unlock(&log->lock);
}

void log_forget(struct vfmig_device *dev)
{
    pthread_rwlock_wrlock(&dev->log.lock);
    forget(&dev->log);
    pthread_rwlock_unlock(&dev->log.lock);
}

/* A page of the log, as far as it lies in the range. */
static uint64_t page_start(const struct dma_log *log, const struct log_range *range, uint64_t bit)
{
    uint64_t start = range->base + (bit << log->page_shift);
    return start > range->iova ? start : range->iova;
}

static uint64_t page_end(const struct dma_log *log, const struct log_range *range, uint64_t bit)
{
    uint64_t end = range->base + ((bit + 1) << log->page_shift) - 1;
    return end < range->last ? end : range->last;
}

/* Takes the run of dirty pages at bit, all of it; returns the bit behind it. */
static uint64_t take_run(const struct log_range *range, uint64_t bit)
{
    uint64_t mask = UINT64_C(1) << (bit % 64);

    while (bit < range->pages &&
           (__atomic_fetch_and(&range->bitmap[bit / 64], ~mask, __ATOMIC_ACQ_REL) & mask)) {
        bit++;
        mask = UINT64_C(1) << (bit % 64);
    }
    return bit;
}

uint32_t log_take_ranges(struct vfmig_device *dev, uint64_t *next, void *entries, uint32_t room,
                         bool *ret_more)
{
    struct dma_log *log = &dev->log;
    struct vfmig_user_log_range *to = entries;
    uint32_t count = 0;

    pthread_rwlock_rdlock(&log->lock);
    for (uint32_t i = find(log, *next); i < log->count; i++) {
        const struct log_range *range = &log->list[i];
        uint64_t bit = *next > range->iova ? (*next - range->base) >> log->page_shift : 0;
        while ((bit = vfmig_bitmap_next(range->bitmap, range->pages, bit)) < range->pages) {
            *next = page_start(log, range, bit);
            if (count == room) {
                *ret_more = true;
                goto out;
            }
            bit = take_run(range, bit);
            to[count].iova = *next;
            to[count++].length = page_end(log, range, bit - 1) - *next + 1;
        }
    }
out:
    pthread_rwlock_unlock(&log->lock);
    return count;
}

/* What a report looks at: pages of the log [first, last] of one range, seen from iova in pages
 * of 1 << shift bytes. */
struct view {
    uint64_t iova, last; /* of the report */
    uint32_t shift;
    uint64_t *bitmap;
};

/* [from, to] is dirty: sets what it overlaps in the report. */
static void put_page(const struct view *view, uint64_t from, uint64_t to)
{
    from = from > view->iova ? from : view->iova;
    to = to < view->last ? to : view->last;
    uint64_t first = (from - view->iova) >> view->shift;
    vfmig_bitmap_set_range(view->bitmap, first, ((to - view->iova) >> view->shift) - first + 1);
}

/* Bits [first, last] as far as they are in word w. */
static uint64_t word_mask(uint64_t w, uint64_t first, uint64_t last)
{
    uint64_t mask = first <= last && w >= first / 64 && w <= last / 64 ? ~UINT64_C(0) : 0;

    if (w == first / 64)
        mask &= ~UINT64_C(0) << (first % 64);
    if (w == last / 64)
        mask &= ~UINT64_C(0) >> (63 - last % 64);
    return mask;
}

/* Takes what a report sees of one range, a word at a time. A page of the log that the report ends
 * in the middle of is reported and stays dirty: the other part of it is still due. */
static void take_range(const struct dma_log *log, const struct log_range *range,
                       const struct view *view)
{
    uint64_t from = view->iova > range->iova ? view->iova : range->iova;
    uint64_t to = view->last < range->last ? view->last : range->last;
    uint64_t first = (from - range->base) >> log->page_shift, whole_first = first;
    uint64_t last = (to - range->base) >> log->page_shift, whole_end = last + 1;
    bool same = view->shift == log->page_shift && first % 64 == 0 &&
                range->base + (first << log->page_shift) == view->iova;

    if (page_start(log, range, first) < view->iova)
        whole_first++;
    if (page_end(log, range, last) > view->last)
        whole_end--;
    for (uint64_t w = first / 64; w <= last / 64; w++) {
        uint64_t mask = word_mask(w, first, last);
        uint64_t clear = whole_first < whole_end ? word_mask(w, whole_first, whole_end - 1) : 0;
        uint64_t word = __atomic_load_n(&range->bitmap[w], __ATOMIC_RELAXED) & mask;
        if (!word)
            continue;
        if (!vfmig_sabotage("log-not-cleared"))
            word = __atomic_fetch_and(&range->bitmap[w], ~clear, __ATOMIC_ACQ_REL) & mask;
        if (same) {
            view->bitmap[w - first / 64] |= word;
            continue;
        }
        for (; word; word &= word - 1) {
            uint64_t bit = w * 64 + (uint64_t)__builtin_ctzll(word);
            put_page(view, page_start(log, range, bit), page_end(log, range, bit));
        }
    }
}

int log_report(struct vfmig_device *dev, uint64_t iova, uint64_t size, uint64_t page_size,
               uint64_t *bitmap)
{
    struct dma_log *log = &dev->log;
    bool any = false;

    if (log->mode == LOG_OFF || page_size < PAGE || (page_size & (page_size - 1)))
        return -EINVAL;
    struct view view = {iova, iova + (size - 1), (uint32_t)__builtin_ctzll(page_size), bitmap};
    pthread_rwlock_rdlock(&log->lock);
    for (uint32_t i = find(log, iova); i < log->count && log->list[i].iova <= view.last; i++) {
        take_range(log, &log->list[i], &view);
        any = true;
    }
    pthread_rwlock_unlock(&log->lock);
    return any ? 0 : -ENOENT; /* silence about memory that nobody logs would be a lie */
}

/* ---- the messages --------------------------------------------------------------------------- */

/* Bitmap bytes of a report when it can be served: fits the client and the log can be read. */
static int64_t report_size(const struct client *c, uint64_t size, uint64_t page_size)
{
    if (c->dev->log.mode == LOG_OFF || page_size < PAGE || (page_size & (page_size - 1)))
        return -EINVAL;
    uint64_t bytes = log_bitmap_bytes(size, page_size);
    if (bytes > c->client_max_data || bytes > c->reply_room)
        return -E2BIG;
    return (int64_t)bytes;
}

static int dirty_get(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct {
        struct vfmig_user_dirty_pages head;
        struct vfmig_user_dirty_range range;
    } VFMIG_PACKED req;

    memcpy(&req, msg->payload, sizeof(req));
    int64_t bytes = report_size(c, req.range.size, req.range.bitmap.pgsize);
    if (bytes < 0)
        return (int)bytes;
    if (req.range.bitmap.size < (uint64_t)bytes)
        return -EINVAL;
    uint32_t room = req.head.argsz;
    req.head.argsz = (uint32_t)sizeof(req) + (uint32_t)bytes;
    if (room < req.head.argsz) /* told what it takes; nothing was read or cleared */
        return server_reply(c, &msg->header, &req, sizeof(req), NULL, 0, NULL, 0);
    memset(c->reply, 0, (size_t)bytes);
    int r = log_report(dev, req.range.iova, req.range.size, req.range.bitmap.pgsize,
                       (uint64_t *)c->reply);
    if (r < 0)
        return r;
    req.range.bitmap.size = (uint64_t)bytes;
    return server_reply(c, &msg->header, &req, sizeof(req), c->reply, (uint32_t)bytes, NULL,
                        0);
}

int log_dirty_pages(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    const struct vfmig_user_dirty_pages *req = (const void *)msg->payload;
    int r = 0;

    if (req->flags == VFMIG_USER_DIRTY_GET)
        return dirty_get(c, msg);
    /* As the type1 container: starting twice or stopping twice has no effect. */
    if (req->flags == VFMIG_USER_DIRTY_START && dev->log.mode != LOG_ON)
        r = log_start(dev, PAGE, NULL, 0);
    else if (req->flags == VFMIG_USER_DIRTY_STOP && dev->log.mode == LOG_ON)
        r = log_stop(dev);
    return r < 0 ? r : server_reply(c, &msg->header, NULL, 0, NULL, 0, NULL, 0);
}

static int feature_start(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_feature_log_start *start =
        (void *)((uint8_t *)(uintptr_t)msg->payload + sizeof(struct vfmig_user_feature));

    if (dev->log.mode == LOG_ON)
        return -EINVAL;
    if (start->num_ranges > VFMIG_MAX_LOG_RANGES)
        return -E2BIG;
    if (start->page_size < PAGE) /* a hint; the choice is in the reply */
        start->page_size = PAGE;
    int r = log_start(dev, start->page_size, (const void *)(start + 1), start->num_ranges);
    return r < 0 ? r
                 : server_reply(c, &msg->header, msg->payload, msg->size, NULL, 0, NULL, 0);
}

static int feature_report(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_log_report report;
    } VFMIG_PACKED req;

    memcpy(&req, msg->payload, sizeof(req));
    int64_t bytes = report_size(c, req.report.length, req.report.page_size);
    if (bytes < 0)
        return (int)bytes;
    if (req.head.argsz < sizeof(req) + (uint64_t)bytes)
        return -EINVAL;
    memset(c->reply, 0, (size_t)bytes);
    int r = log_report(dev, req.report.iova, req.report.length, req.report.page_size,
                       (uint64_t *)c->reply);
    if (r < 0)
        return r;
    req.head.argsz = (uint32_t)sizeof(req) + (uint32_t)bytes;
    return server_reply(c, &msg->header, &req, sizeof(req), c->reply, (uint32_t)bytes, NULL,
                        0);
}

int log_feature(struct client *c, struct vfmig_user_msg *msg, uint32_t feature, bool set)
{
    struct vfmig_device *dev = c->dev;

    if (set != (feature != VFMIG_USER_F_LOG_REPORT))
        return -EINVAL;
    if (feature == VFMIG_USER_F_LOG_START)
        return feature_start(c, msg);
    if (feature == VFMIG_USER_F_LOG_REPORT)
        return feature_report(c, msg);
    int r = dev->log.mode == LOG_ON ? log_stop(dev) : 0;
    return r < 0 ? r
                 : server_reply(c, &msg->header, msg->payload, msg->size, NULL, 0, NULL, 0);
}
