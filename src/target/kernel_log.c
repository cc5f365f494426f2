/* SPDX-License-Identifier: BSD-3-Clause */
/* The log of a kernel device's DMA: the device's own (DMA_LOGGING), the IOMMU's, or the
 * container's, the best that there is. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/sabotage.h"
#include "target/kernel_private.h"

#define LOG_PAGE   4096u
#define MAX_RANGES 256u                /* of DMA_LOGGING_START, the kernel's limit */
#define PIECE_BITS (UINT64_C(1) << 18) /* of one call, where it may be in parts */

/* ---- the device's own ---- */

static int compare_ranges(const void *a, const void *b)
{
    uint64_t x = ((const struct vfmig_iova_range *)a)->iova;
    uint64_t y = ((const struct vfmig_iova_range *)b)->iova;

    return x < y ? -1 : x > y;
}

/* Overlapping ranges are refused, so they become one; and where there are too many, each that is
 * told spans several neighbours and what lies between them. */
static uint32_t gather_ranges(struct vfmig_iova_range told[static MAX_RANGES],
                              struct vfmig_iova_range *ranges, uint32_t count)
{
    uint32_t apart = 0, n = 0;

    qsort(ranges, count, sizeof(*ranges), compare_ranges);
    for (uint32_t i = 0; i < count; i++) {
        struct vfmig_iova_range *before = apart ? &ranges[apart - 1] : NULL;
        if (!before || ranges[i].iova - before->iova >= before->size)
            ranges[apart++] = ranges[i];
        else if (ranges[i].iova - before->iova + ranges[i].size > before->size)
            before->size = ranges[i].iova - before->iova + ranges[i].size;
    }
    uint32_t each = (apart + MAX_RANGES - 1) / MAX_RANGES;
    for (uint32_t i = 0; i < apart; i += each) {
        uint32_t last = apart - i < each ? apart - 1 : i + each - 1;
        told[n++] = (struct vfmig_iova_range){ranges[i].iova, ranges[last].iova - ranges[i].iova +
                                                                  ranges[last].size};
    }
    return n;
}

/* No ranges are all that is mapped. */
static int device_start(struct kernel *k, uint64_t page_size, const struct vfmig_iova_range *ranges,
                        uint32_t count, struct vfmig_error *reterr)
{
    uint32_t n = count ? count : k->map_count;
    struct vfmig_iova_range told[MAX_RANGES], *all = calloc(n + 1, sizeof(*all));
    struct kernel_log_start data = {.page_size = page_size, .ranges = (uintptr_t)told};

    if (!all)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for ranges");
    for (uint32_t i = 0; i < n; i++)
        all[i] = count ? ranges[i] : (struct vfmig_iova_range){k->maps[i].iova, k->maps[i].size};
    data.range_count = gather_ranges(told, all, n);
    free(all);
    int r = kernel_feature(k, KERNEL_FEATURE_SET | KERNEL_F_LOG_START, &data, sizeof(data));
    return r == 0 ? 0
                  : vfmig_error_set(reterr, r, VFMIG_ORIGIN_DEVICE, 0, "%s: its log: %s",
                                    k->base.info.name, strerror(-r));
}

static int device_stop(struct kernel *k, struct vfmig_error *reterr)
{
    int r = kernel_feature(k, KERNEL_FEATURE_SET | KERNEL_F_LOG_STOP, NULL, 0);

    return r == 0 ? 0
                  : vfmig_error_set(reterr, r, VFMIG_ORIGIN_DEVICE, 0, "%s: its log's end: %s",
                                    k->base.info.name, strerror(-r));
}

static int device_fetch(struct kernel *k, uint64_t iova, uint64_t size, uint64_t page_size,
                        uint64_t *words, struct vfmig_error *reterr)
{
    struct kernel_log_report data = {iova, size, page_size, (uintptr_t)words};
    int r = kernel_feature(k, KERNEL_FEATURE_GET | KERNEL_F_LOG_REPORT, &data, sizeof(data));

    return r == 0 ? 0
                  : vfmig_error_set(reterr, r, VFMIG_ORIGIN_DEVICE, 0, "%s: a log report: %s",
                                    k->base.info.name, strerror(-r));
}

const struct kernel_log kernel_log_device = {
    .name = "device",
    .start = device_start,
    .stop = device_stop,
    .fetch = device_fetch,
};

void kernel_choose_log(struct kernel *k)
{
    struct vfmig_target_info *info = &k->base.info;
    static const uint32_t needed[] = {KERNEL_FEATURE_SET | KERNEL_F_LOG_START,
                                      KERNEL_FEATURE_SET | KERNEL_F_LOG_STOP,
                                      KERNEL_FEATURE_GET | KERNEL_F_LOG_REPORT};
    bool own = true;

    for (uint32_t i = 0; own && i < sizeof(needed) / sizeof(needed[0]); i++)
        own = kernel_feature(k, KERNEL_FEATURE_PROBE | needed[i], NULL, 0) == 0;
    info->log_page_size = LOG_PAGE;
    if (own) {
        k->log = &kernel_log_device;
    } else if (k->hwpt) {
        k->log = &kernel_log_iommufd;
    } else if (k->type1_page && k->type1_page <= VFMIG_MAX_LOG_PAGE) {
        k->log = &kernel_log_type1;
        info->log_page_size = k->type1_page;
    }
    info->dma_log = k->log != NULL;
    if (!k->log)
        info->log_page_size = 0;
}

/* ---- bits ---- */

/* ORs count bits of from into to, from bit first on; what is beyond them is not looked at. */
static void or_bits(uint64_t *to, uint64_t first, const uint64_t *from, uint64_t count)
{
    for (uint64_t i = vfmig_bitmap_next(from, count, 0); i < count;
         i = vfmig_bitmap_next(from, count, i + 1))
        vfmig_bitmap_set(to, first + i);
}

void kernel_keep_rest(struct kernel *k, const struct kernel_map *map, uint64_t *bits)
{
    uint64_t pages = (map->size - 1) / k->log_page + 1;

    if (vfmig_bitmap_next(bits, pages, 0) == pages) {
        free(bits);
    } else if (k->rest_count == VFMIG_MAX_LOG_RESTS) {
        k->rests_lost = true;
        free(bits);
    } else {
        k->rests[k->rest_count++] =
            (struct kernel_rest){map->iova, map->iova + (map->size - 1), pages, k->log_page, bits};
    }
}

void kernel_forget_rests(struct kernel *k)
{
    for (uint32_t i = 0; i < k->rest_count; i++)
        free(k->rests[i].bits);
    k->rest_count = 0;
    k->rests_lost = false;
}

/* What a page of a rest and the range have in common is reported. The page is forgotten once all of
 * it was. */
static void take_page(struct kernel_rest *rest, uint64_t bit, uint64_t iova, uint64_t last,
                      uint64_t page_size, uint64_t *bitmap)
{
    uint64_t from = rest->iova + bit * rest->page_size, to = from + (rest->page_size - 1);

    if (to > rest->last || to < from)
        to = rest->last;
    if (to < iova || from > last)
        return;
    if (from >= iova && to <= last)
        vfmig_bitmap_clear(rest->bits, bit);
    uint64_t begin = from > iova ? from : iova, end = to < last ? to : last;
    for (uint64_t page = (begin - iova) / page_size; page <= (end - iova) / page_size; page++)
        vfmig_bitmap_set(bitmap, page);
}

/* maps_lock held. */
static void take_rests(struct kernel *k, uint64_t iova, uint64_t size, uint64_t page_size,
                       uint64_t *bitmap)
{
    for (uint32_t i = 0; i < k->rest_count;) {
        struct kernel_rest *rest = &k->rests[i];
        for (uint64_t bit = vfmig_bitmap_next(rest->bits, rest->pages, 0); bit < rest->pages;
             bit = vfmig_bitmap_next(rest->bits, rest->pages, bit + 1))
            take_page(rest, bit, iova, iova + (size - 1), page_size, bitmap);
        if (vfmig_bitmap_next(rest->bits, rest->pages, 0) < rest->pages) {
            i++;
            continue;
        }
        free(rest->bits);
        *rest = k->rests[--k->rest_count];
    }
}

/* ---- the operations ---- */

static int no_log(const struct vfmig_target *t, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0, "nobody logs the DMA of %s",
                           t->info.name);
}

int kernel_log_stop(struct vfmig_target *t, struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;

    if (!k->log)
        return no_log(t, reterr);
    pthread_mutex_lock(&k->maps_lock);
    k->logging = false;
    int r = k->log->stop(k, reterr);
    pthread_mutex_unlock(&k->maps_lock);
    return r;
}

/* C27: a log that somebody left on is stopped first, because a second start fails or clears
 * nothing. */
int kernel_log_start(struct vfmig_target *t, uint64_t page_size,
                     const struct vfmig_iova_range *ranges, uint32_t range_count,
                     struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;

    if (!k->log)
        return no_log(t, reterr);
    if (page_size < LOG_PAGE || page_size > VFMIG_MAX_LOG_PAGE || (page_size & (page_size - 1)) ||
        (k->log->whole && page_size != t->info.log_page_size))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "%s logs pages of %llu bytes", t->info.name,
                               (unsigned long long)t->info.log_page_size);
    pthread_mutex_lock(&k->maps_lock);
    if (!vfmig_sabotage("kernel-log-left-on"))
        (void)k->log->stop(k, NULL);
    kernel_forget_rests(k);
    int r = k->log->start(k, page_size, ranges, range_count, reterr);
    k->logging = r == 0;
    k->log_page = page_size;
    pthread_mutex_unlock(&k->maps_lock);
    return r;
}

/* In calls of at most piece bytes. base is where bit 0 of bitmap is. */
static int fetch(struct kernel *k, uint64_t base, uint64_t iova, uint64_t size, uint64_t piece,
                 uint64_t page_size, uint64_t *bitmap, struct vfmig_error *reterr)
{
    uint64_t most = (size < piece ? size : piece) / page_size + 1;
    uint64_t *words =
        most / 8 <= VFMIG_MAX_LOG_BYTES ? calloc(vfmig_bitmap_words(most), sizeof(*words)) : NULL;
    int r = words ? 0
                  : vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                                    "no memory for a dirty bitmap");

    for (uint64_t at = 0; r == 0 && at < size;) {
        uint64_t step = size - at < piece ? size - at : piece;
        uint64_t pages = step / page_size + (step % page_size != 0);
        memset(words, 0, vfmig_bitmap_words(pages) * sizeof(*words));
        r = k->log->fetch(k, iova + at, step, page_size, words, reterr);
        if (r == 0)
            or_bits(bitmap, (iova - base + at) / page_size, words, pages);
        at += step;
    }
    free(words);
    return r;
}

/* maps_lock held. What is not mapped was not written. */
static int fetch_mappings(struct kernel *k, uint64_t iova, uint64_t size, uint64_t piece,
                          uint64_t page_size, uint64_t *bitmap, struct vfmig_error *reterr)
{
    uint64_t last = iova + (size - 1);
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < k->map_count; i++) {
        const struct kernel_map *map = &k->maps[i];
        uint64_t map_last = map->iova + (map->size - 1);
        if (map->iova > last || map_last < iova)
            continue;
        uint64_t from = map->iova > iova ? map->iova : iova, to = map_last < last ? map_last : last;
        if (k->log->whole && (from != map->iova || to != map_last))
            r = vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                                "%s: its log is asked for a part of the mapping at 0x%llx",
                                k->base.info.name, (unsigned long long)map->iova);
        else
            r = fetch(k, iova, from, to - from + 1, piece, page_size, bitmap, reterr);
    }
    take_rests(k, iova, size, page_size, bitmap);
    if (r == 0 && k->rests_lost) {
        k->rests_lost = false;
        r = vfmig_error_set(reterr, -ENOSPC, VFMIG_ORIGIN_LOCAL, 0,
                            "%s: what was written to mappings that are gone was not kept",
                            k->base.info.name);
    }
    return r;
}

int kernel_log_report(struct vfmig_target *t, uint64_t iova, uint64_t size, uint64_t page_size,
                      uint64_t *bitmap, struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    uint64_t piece;

    if (!k->log)
        return no_log(t, reterr);
    if (page_size < LOG_PAGE || (page_size & (page_size - 1)) || size == 0 || iova % page_size ||
        iova + (size - 1) < iova || (k->log->whole && page_size != t->info.log_page_size))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "a log of %llu bytes in pages of %llu makes no sense",
                               (unsigned long long)size, (unsigned long long)page_size);
    if (k->log->whole || __builtin_mul_overflow(PIECE_BITS, page_size, &piece))
        piece = UINT64_MAX;
    if (!k->log->by_mapping)
        return fetch(k, iova, iova, size, piece, page_size, bitmap, reterr);
    pthread_mutex_lock(&k->maps_lock);
    int r = fetch_mappings(k, iova, size, piece, page_size, bitmap, reterr);
    pthread_mutex_unlock(&k->maps_lock);
    return r;
}
