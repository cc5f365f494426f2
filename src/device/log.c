/* SPDX-License-Identifier: BSD-3-Clause */
/* DIRTY TRACKING of the device's own DMA (C27, C28, C30, C40), in both dialects.
 *
 * The log is a set of bytes. A write adds every page of the log that it touches, as far as that
 * page is inside the logged range; a report says which of its pages overlap the set, and takes its
 * own range out of it. So no page is lost and none is invented, whatever the page sizes of log and
 * report and wherever a report begins and ends.
 *
 * Each range has a bitmap. Bit 0 is a page number that is a multiple of 64, so that the words of
 * all ranges and of most reports coincide. Whoever marks sets bits atomically under the reader's
 * side of the lock; a report takes a few kilobytes of words at a time under the writer's side,
 * where it can copy and clear them at memory speed. Of a page of the log that a report covers
 * partly, what it did not cover is remembered as bytes ("rests").
 *
 * Ranges, rests and mode are changed by the serving thread alone, which may therefore read them
 * without the lock. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/sabotage.h"
#include "device/internal.h"

#define TAKE_WORDS 512u /* taken under the lock at once */

_Static_assert(VFMIG_MAX_LOG_RANGES >= VFMIG_MAX_DMA_REGIONS, "every mapping can be logged");

void log_init(struct dma_log *log)
{
    memset(log, 0, sizeof(*log));
    dma_lock_init(&log->lock);
}

static void free_ranges(struct log_set *set)
{
    for (uint32_t i = 0; i < set->count; i++)
        free(set->list[i].bitmap);
    free(set->list);
    memset(set, 0, sizeof(*set));
}

/* Writer's lock held. */
static void forget(struct dma_log *log)
{
    free_ranges(&log->set);
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

static uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* ---- ranges --------------------------------------------------------------------------------- */

/* Index of the first range that ends at or after iova. */
static uint32_t find(const struct log_set *set, uint64_t iova)
{
    uint32_t low = 0, high = set->count;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (set->list[mid].last < iova)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Two ranges may share a page of the log: each has a bit for its own part of it. */
static int add_range(struct log_set *set, uint64_t iova, uint64_t size)
{
    struct log_range range = {.iova = iova, .last = iova + (size - 1)};
    uint32_t at = find(set, iova);

    if (size == 0 || range.last < iova)
        return -EOVERFLOW;
    if (set->count == 16 && vfmig_sabotage("log-first-ranges"))
        return 0;
    range.base = (iova >> set->page_shift) & ~UINT64_C(63);
    range.words = ((range.last >> set->page_shift) - range.base) / 64 + 1;
    if (at < set->count && set->list[at].iova <= range.last && !vfmig_sabotage("log-ranges-overlap"))
        return -EINVAL;
    if (set->count == VFMIG_MAX_LOG_RANGES ||
        range.words > (VFMIG_MAX_LOG_BYTES - set->bytes) / 8)
        return -E2BIG;
    if (set->count == set->room) {
        uint32_t room = set->room ? set->room * 2 : 16;
        struct log_range *list = realloc(set->list, room * sizeof(*list));
        if (!list)
            return -ENOMEM;
        set->list = list;
        set->room = room;
    }
    range.bitmap = calloc((size_t)range.words, 8);
    if (!range.bitmap)
        return -ENOMEM;
    memmove(&set->list[at + 1], &set->list[at], (set->count - at) * sizeof(range));
    set->list[at] = range;
    set->count++;
    set->bytes += range.words * 8;
    return 0;
}

/* Takes [iova, last] out of the rests. A rest that would have to be split when there is no room
 * stays whole: reported once too often, but not lost. */
static void cut_rests(struct log_set *set, uint64_t iova, uint64_t last)
{
    for (uint32_t i = 0; i < set->rest_count;) {
        struct log_rest *rest = &set->rest[i];
        if (rest->last < iova || rest->iova > last) {
            i++;
            continue;
        }
        bool left = rest->iova < iova;
        bool right = rest->last > last;
        if (left && right) {
            if (set->rest_count < VFMIG_MAX_LOG_RESTS) {
                set->rest[set->rest_count++] = (struct log_rest){last + 1, rest->last};
                rest->last = iova - 1;
            }
            i++;
        } else if (left) {
            rest->last = iova - 1;
            i++;
        } else if (right) {
            rest->iova = last + 1;
            i++;
        } else {
            *rest = set->rest[--set->rest_count];
        }
    }
}

int log_start(struct vfmig_device *dev, uint64_t page_size,
              const struct vfmig_user_log_range *ranges, uint32_t count)
{
    struct dma_log *log = &dev->log;
    struct log_set fresh = {.everything = count == 0};
    int r = 0;

    if (page_size < PAGE || page_size > VFMIG_MAX_LOG_PAGE ||
        ((page_size & (page_size - 1)) && !vfmig_sabotage("log-page-any")))
        return -EINVAL;
    fresh.page_shift = (uint32_t)__builtin_ctzll(page_size);
    for (uint32_t i = 0; r == 0 && i < count; i++)
        r = add_range(&fresh, ranges[i].iova, ranges[i].length);
    for (uint32_t i = 0; r == 0 && count == 0 && i < dev->dma.count; i++)
        r = add_range(&fresh, dev->dma.list[i].iova, dev->dma.list[i].size);
    if (r < 0) { /* a start that is refused leaves a frozen log as it is */
        free_ranges(&fresh);
        return r;
    }
    if (vfmig_sabotage("log-not-clean-on-start") && fresh.count)
        vfmig_bitmap_set(fresh.list[0].bitmap, (fresh.list[0].iova >> fresh.page_shift) % 64);
    if (log->set.count && fresh.count && log->set.list[0].words == fresh.list[0].words &&
        vfmig_sabotage("log-kept-on-restart"))
        memcpy(fresh.list[0].bitmap, log->set.list[0].bitmap, fresh.list[0].words * 8);
    pthread_rwlock_wrlock(&log->lock);
    forget(log); /* C27: clean */
    log->set = fresh;
    log->mode = LOG_ON;
    pthread_rwlock_unlock(&log->lock);
    return 0;
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

int log_mapped(struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    struct dma_log *log = &dev->log;
    int r = 0;

    if (log->mode == LOG_ON && log->set.everything && !vfmig_sabotage("log-late-map-missed")) {
        pthread_rwlock_wrlock(&log->lock);
        r = add_range(&log->set, iova, size);
        pthread_rwlock_unlock(&log->lock);
    }
    return r;
}

/* Where ranges were given, they are of addresses and not of mappings, and keep their bits; so does
 * a frozen log (C28). */
void log_unmapped(struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    struct dma_log *log = &dev->log;
    struct log_set *set = &log->set;
    uint64_t last = iova + (size - 1);

    if (!set->everything || (log->mode != LOG_ON && !vfmig_sabotage("frozen-log-unmapped")))
        return;
    pthread_rwlock_wrlock(&log->lock);
    uint32_t at = find(set, iova), end = at;
    for (; end < set->count && set->list[end].iova <= last; end++) {
        set->bytes -= set->list[end].words * 8;
        free(set->list[end].bitmap);
    }
    if (end > at)
        memmove(&set->list[at], &set->list[end], (set->count - end) * sizeof(set->list[0]));
    set->count -= end - at;
    cut_rests(set, iova, last);
    pthread_rwlock_unlock(&log->lock);
}

void log_mark(struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    struct dma_log *log = &dev->log;
    const struct log_set *set = &log->set;
    uint64_t last = iova + (size - 1);

    if (size == 0 || vfmig_sabotage("dma-not-logged"))
        return;
    pthread_rwlock_rdlock(&log->lock);
    for (uint32_t i = log->mode == LOG_ON ? find(set, iova) : set->count; i < set->count; i++) {
        const struct log_range *range = &set->list[i];
        if (range->iova > last)
            break;
        uint64_t first = later(iova, range->iova) >> set->page_shift;
        uint64_t end = earlier(last, range->last) >> set->page_shift;
        if (end < range->last >> set->page_shift && vfmig_sabotage("log-marks-neighbour"))
            end++;
        vfmig_bitmap_set_range_atomic(range->bitmap, first - range->base, end - first + 1);
    }
    pthread_rwlock_unlock(&log->lock);
}

/* ---- reports -------------------------------------------------------------------------------- */

/* [iova, last] in pages of 1 << shift bytes. */
struct view {
    uint64_t iova, last;
    uint32_t shift;
    uint64_t *bitmap;
    uint64_t fresh; /* nothing was put into the words from here on */
};

/* The part of one range that a report covers: bytes [from, to], in pages [first, end]. */
struct part {
    const struct log_range *range;
    uint64_t from, to, first, end;
};

static void put(const struct view *view, uint64_t from, uint64_t to)
{
    uint64_t bit = (from - view->iova) >> view->shift;

    vfmig_bitmap_set_range(view->bitmap, bit, ((to - view->iova) >> view->shift) - bit + 1);
}

/* ORs words into the report from bit pos on, which may be below 0: those bits are 0. */
static void put_words(const struct view *view, int64_t pos, const uint64_t *words, uint32_t count)
{
    int64_t at = (pos + 64) / 64 - 1;
    uint32_t shift = (uint32_t)(pos - at * 64);

    if (shift == 0) {
        for (uint32_t i = 0; i < count; i++)
            view->bitmap[at + i] |= words[i];
        return;
    }
    for (uint32_t i = 0; i < count; i++, at++) {
        uint64_t low = words[i] << shift, high = words[i] >> (64 - shift);
        if (vfmig_sabotage("report-odd-drops"))
            high = 0;
        if (low)
            view->bitmap[at] |= low;
        if (high)
            view->bitmap[at + 1] |= high;
    }
}

/* A bit for every two: which of the pages twice as large are dirty. Half as many words. */
static uint32_t halve(uint64_t *words, uint32_t count)
{
    words[count] = 0;
    for (uint32_t i = 0; i < count + 1; i++) {
        uint64_t odd = vfmig_sabotage("report-larger-drops") ? 0 : words[i] >> 1;
        uint64_t w = (words[i] | odd) & 0x5555555555555555u;
        w = (w | w >> 1) & 0x3333333333333333u;
        w = (w | w >> 2) & 0x0f0f0f0f0f0f0f0fu;
        w = (w | w >> 4) & 0x00ff00ff00ff00ffu;
        w = (w | w >> 8) & 0x0000ffff0000ffffu;
        words[i] = (w | w >> 16) & 0xffffffffu;
    }
    for (uint32_t i = 0; i < (count + 1) / 2; i++)
        words[i] = words[2 * i] | words[2 * i + 1] << 32;
    return (count + 1) / 2;
}

/* A report in pages of the log or larger ones, whose first page begins where words can be reduced
 * to it. page: of the first bit; words has room for one more. False: not such a report. */
static bool put_reduced(const struct view *view, uint32_t shift, uint64_t page, uint64_t *words,
                        uint32_t count)
{
    uint64_t first = view->iova >> shift;
    uint32_t ratio = view->shift - shift; /* pages of the log in one of the report, as a shift */

    if (view->shift < shift || (view->iova & ((UINT64_C(1) << shift) - 1)))
        return false;
    if (ratio <= 6) {
        if (first & ((UINT64_C(1) << ratio) - 1))
            return false;
        for (uint32_t i = 0; i < ratio; i++)
            count = halve(words, count);
        /* Both are multiples of what is divided by, so this is exact below 0 too. */
        put_words(view, (int64_t)(page - first) / (INT64_C(1) << ratio), words, count);
        return true;
    }
    if (first % 64)
        return false;
    for (uint32_t i = 0; i < count; i++) { /* without a branch: which words are 0 is random */
        uint64_t bit = (page + i * UINT64_C(64) - first) >> ratio;
        view->bitmap[bit / 64] |= (uint64_t)(words[i] != 0) << (bit % 64);
    }
    return true;
}

/* Smaller pages, or larger ones at odd places: the runs of ones of a word. */
static void put_runs(const struct view *view, const struct part *part, uint32_t shift,
                     uint64_t page, uint64_t word)
{
    uint64_t mask = (UINT64_C(1) << shift) - 1;

    while (word) {
        uint32_t low = (uint32_t)__builtin_ctzll(word);
        uint32_t high = 63 - (uint32_t)__builtin_clzll(word);
        uint64_t from = later(part->from, (page + low) << shift);
        uint64_t to = earlier(part->to, ((page + high) << shift) | mask);
        if (vfmig_sabotage("report-smaller-drops")) {
            put(view, from, from);
            return;
        }
        if ((from - view->iova) >> view->shift == (to - view->iova) >> view->shift) {
            put(view, from, to);
            return;
        }
        uint64_t after = ~(word >> low); /* 0: ones up to the top */
        uint32_t ones = low == 0 && after == 0 ? 64 : (uint32_t)__builtin_ctzll(after);
        to = earlier(part->to, ((page + low + ones - 1) << shift) | mask);
        put(view, from, to);
        word = low + ones == 64 ? 0 : word & (~UINT64_C(0) << (low + ones));
    }
}

/* Takes count words of a range, of the first and the last only the bits of their masks. False:
 * nothing was set. */
static bool take(struct dma_log *log, uint64_t *words, uint32_t count, uint64_t head, uint64_t tail,
                 uint64_t *out)
{
    pthread_rwlock_wrlock(&log->lock);
    bool any = !vfmig_bitmap_is_clean(words, count);
    if (any) {
        memcpy(out, words, count * sizeof(*out));
        out[0] &= head;
        out[count - 1] &= tail;
        bool keep = vfmig_sabotage("log-not-cleared") ||
                    (tail != ~UINT64_C(0) && vfmig_sabotage("report-part-kept"));
        for (uint32_t i = 0; i < count && !keep; i++)
            words[i] &= ~out[i];
    }
    pthread_rwlock_unlock(&log->lock);
    return any;
}

/* The same where words of log and report are the same: straight into the report. fresh: there is
 * nothing in those words yet, which makes it a copy. */
static void move(struct dma_log *log, uint64_t *words, uint32_t count, uint64_t *out, bool fresh)
{
    bool keep = vfmig_sabotage("log-not-cleared");

    pthread_rwlock_wrlock(&log->lock);
    if (!vfmig_bitmap_is_clean(words, count)) {
        if (fresh)
            memcpy(out, words, count * sizeof(*words));
        for (uint32_t i = 0; !fresh && i < count; i++)
            out[i] |= words[i];
        if (!keep)
            memset(words, 0, count * sizeof(*words));
    } else if (fresh) {
        memset(out, 0, count * sizeof(*out));
    }
    pthread_rwlock_unlock(&log->lock);
}

/* Bytes of a page of the log that a report took and did not cover. With no room for them the page
 * becomes dirty again as a whole. */
static void add_rest(struct dma_log *log, const struct log_range *range, uint64_t iova,
                     uint64_t last)
{
    struct log_set *set = &log->set;

    if (vfmig_sabotage("log-rest-lost") ||
        (set->rest_count == 200 && vfmig_sabotage("log-rests-few")))
        return;
    cut_rests(set, iova, last);
    if (set->rest_count < VFMIG_MAX_LOG_RESTS) {
        set->rest[set->rest_count++] = (struct log_rest){iova, last};
        return;
    }
    pthread_rwlock_wrlock(&log->lock);
    vfmig_bitmap_set(range->bitmap, (iova >> set->page_shift) - range->base);
    pthread_rwlock_unlock(&log->lock);
}

static void add_rests(struct dma_log *log, const struct part *part, bool first_set, bool end_set)
{
    const struct log_range *range = part->range;
    uint32_t shift = log->set.page_shift;
    uint64_t begin = later(range->iova, part->first << shift);
    uint64_t end = earlier(range->last, (part->end << shift) | ((UINT64_C(1) << shift) - 1));

    if (first_set && begin < part->from)
        add_rest(log, range, begin, part->from - 1);
    if (end_set && end > part->to)
        add_rest(log, range, part->to + 1, end);
}

static void take_part(struct dma_log *log, const struct part *part, const struct view *view)
{
    const struct log_range *range = part->range;
    uint32_t shift = log->set.page_shift;
    uint64_t mask = (UINT64_C(1) << shift) - 1, view_page = view->iova >> shift;
    bool same = view->shift == shift && view_page % 64 == 0 && !(view->iova & mask) &&
                (view->last & mask) == mask;
    bool first_set = false, end_set = false;
    uint64_t words[TAKE_WORDS + 1];
    uint64_t w = (part->first - range->base) / 64, stop = (part->end - range->base) / 64 + 1;

    while (w < stop) {
        uint32_t count = stop - w < TAKE_WORDS ? (uint32_t)(stop - w) : TAKE_WORDS;
        uint64_t page = range->base + w * 64;
        bool is_head = page <= part->first, is_tail = w + count == stop;
        uint64_t head = is_head ? ~UINT64_C(0) << (part->first % 64) : ~UINT64_C(0);
        uint64_t tail = is_tail ? ~UINT64_C(0) >> (63 - part->end % 64) : ~UINT64_C(0);
        if (same && (head & tail) == ~UINT64_C(0))
            move(log, range->bitmap + w, count, view->bitmap + (page - view_page) / 64,
                 (page - view_page) / 64 >= view->fresh);
        else if (take(log, range->bitmap + w, count, head, tail, words)) {
            first_set |= is_head && vfmig_bitmap_test(words, part->first % 64);
            end_set |= is_tail && vfmig_bitmap_test(words + count - 1, part->end % 64);
            bool done = put_reduced(view, shift, page, words, count);
            for (uint32_t i = 0; !done && i < count; i++)
                put_runs(view, part, shift, page + i * 64, words[i]);
        }
        w += count;
        if (vfmig_sabotage("report-wide-cut"))
            break;
    }
    add_rests(log, part, first_set, end_set);
}

/* One range holds all of the report, word by word: move() fills every word then. */
static bool is_filled(const struct log_set *set, const struct log_range *range,
                      const struct view *view)
{
    uint64_t word = (UINT64_C(64) << set->page_shift) - 1; /* bytes of one, less one */

    return view->shift == set->page_shift && range->iova <= view->iova &&
           view->last <= range->last && !(view->iova & word) && (view->last & word) == word;
}

/* Bytes from iova to the end of the mapping that it is in, at most size. */
static uint64_t in_one_mapping(const struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    for (uint32_t i = 0; i < dev->dma.count; i++) {
        const struct dma_region *region = &dev->dma.list[i];
        if (region->iova <= iova && iova - region->iova < region->size)
            return earlier(size, region->size - (iova - region->iova));
    }
    return size;
}

/* A deliberate fault: pages of the second mapping are not told. */
static void drop_second(const struct vfmig_device *dev, const struct view *view)
{
    uint64_t size = view->last - view->iova + 1;
    uint64_t first = in_one_mapping(dev, view->iova, size) >> view->shift;

    for (uint64_t page = first; page < size >> view->shift; page++)
        view->bitmap[page / 64] &= ~(UINT64_C(1) << (page % 64));
}

int log_report(struct vfmig_device *dev, uint64_t iova, uint64_t size, uint64_t page_size,
               uint64_t *bitmap)
{
    struct dma_log *log = &dev->log;
    struct log_set *set = &log->set;
    bool any = false;

    if (log->mode == LOG_OFF && vfmig_sabotage("log-off-answered")) {
        memset(bitmap, 0, log_bitmap_bytes(size, page_size));
        return 0;
    }
    if (dev->irq.latch && vfmig_sabotage("ndma-dirties"))
        log_mark(dev, iova, PAGE);
    if (log->mode == LOG_OFF || page_size < PAGE || (page_size & (page_size - 1)))
        return -EINVAL;
    struct view view = {iova, iova + (size - 1), (uint32_t)__builtin_ctzll(page_size), bitmap, 0};
    uint32_t at = find(set, iova);
    if (at == set->count || !is_filled(set, &set->list[at], &view))
        memset(bitmap, 0, (((view.last - iova) >> view.shift) / 64 + 1) * sizeof(*bitmap));
    for (uint32_t i = at; i < set->count && set->list[i].iova <= view.last; i++) {
        struct part part = {
            .range = &set->list[i],
            .from = later(iova, set->list[i].iova),
            .to = earlier(view.last, set->list[i].last),
        };
        part.first = part.from >> set->page_shift;
        part.end = part.to >> set->page_shift;
        take_part(log, &part, &view);
        view.fresh = ((part.to - iova) >> view.shift) / 64 + 1; /* ranges come in order */
        any = true;
    }
    for (uint32_t i = 0; i < set->rest_count; i++)
        if (set->rest[i].iova <= view.last && set->rest[i].last >= iova)
            put(&view, later(iova, set->rest[i].iova), earlier(view.last, set->rest[i].last));
    cut_rests(set, iova, view.last);
    if (!any && vfmig_sabotage("unmapped-is-dirty")) {
        memset(bitmap, 0xff, log_bitmap_bytes(size, page_size));
        return 0;
    }
    if (vfmig_sabotage("report-across-half"))
        drop_second(dev, &view);
    /* What was mapped after the log was frozen has not been written before. But silence about
     * memory that nobody logs would be a lie. */
    return any || (set->everything && dma_map_touches(dev, iova, size)) ? 0 : -ENOENT;
}

bool log_covers(const struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    const struct log_set *set = &dev->log.set;
    uint32_t at = find(set, iova);

    return set->everything || (at < set->count && set->list[at].iova <= iova + (size - 1));
}

void log_forget(struct vfmig_device *dev)
{
    pthread_rwlock_wrlock(&dev->log.lock);
    forget(&dev->log);
    pthread_rwlock_unlock(&dev->log.lock);
}

/* Takes the run of dirty pages at bit, all of it; returns the bit behind it. */
static uint64_t take_run(const struct log_range *range, uint64_t bit)
{
    uint64_t mask = UINT64_C(1) << (bit % 64);

    while (bit < range->words * 64 &&
           (__atomic_fetch_and(&range->bitmap[bit / 64], ~mask, __ATOMIC_ACQ_REL) & mask)) {
        bit++;
        mask = UINT64_C(1) << (bit % 64);
    }
    return bit;
}

/* The rests first, whatever *next is: they are few, and gone once they were told. */
uint32_t log_take_ranges(struct vfmig_device *dev, uint64_t *next, void *entries, uint32_t room,
                         bool *ret_more)
{
    struct dma_log *log = &dev->log;
    struct log_set *set = &log->set;
    struct vfmig_user_log_range *to = entries;
    uint32_t count = 0;

    for (; set->rest_count && count < room; count++) {
        const struct log_rest *rest = &set->rest[--set->rest_count];
        to[count] = (struct vfmig_user_log_range){rest->iova, rest->last - rest->iova + 1};
    }
    pthread_rwlock_rdlock(&log->lock);
    for (uint32_t i = find(set, *next); i < set->count; i++) {
        const struct log_range *range = &set->list[i];
        uint64_t bit = (later(*next, range->iova) >> set->page_shift) - range->base;
        while ((bit = vfmig_bitmap_next(range->bitmap, range->words * 64, bit)) <
               range->words * 64) {
            uint64_t iova = later(range->iova, (range->base + bit) << set->page_shift);
            if (count == room) {
                *next = iova;
                *ret_more = true;
                goto out;
            }
            bit = take_run(range, bit);
            uint64_t last = earlier(range->last, ((range->base + bit) << set->page_shift) - 1);
            to[count++] = (struct vfmig_user_log_range){iova, last - iova + 1};
        }
    }
    if (set->rest_count)
        *ret_more = true;
out:
    pthread_rwlock_unlock(&log->lock);
    return count;
}

/* ---- the messages --------------------------------------------------------------------------- */

/* Bitmap bytes of a report when it can be served: fits the client and the log can be read. */
static int64_t report_size(const struct client *c, uint64_t size, uint64_t page_size)
{
    if ((c->dev->log.mode == LOG_OFF && !vfmig_sabotage("log-off-answered")) || page_size < PAGE ||
        (page_size & (page_size - 1)))
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
    int r = log_report(dev, req.range.iova, req.range.size, req.range.bitmap.pgsize,
                       (uint64_t *)c->reply);
    if (r < 0)
        return r;
    if (in_one_mapping(dev, req.range.iova, req.range.size) < req.range.size &&
        vfmig_sabotage("report-across-empty"))
        bytes = 0;
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

    if (dev->log.mode == LOG_ON && !vfmig_sabotage("log-starts-twice"))
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
    if (vfmig_sabotage("report-any-page") &&
        (req.report.page_size < PAGE || (req.report.page_size & (req.report.page_size - 1))))
        req.report.page_size = PAGE;
    int64_t bytes = report_size(c, req.report.length, req.report.page_size);
    if (bytes < 0)
        return (int)bytes;
    if (req.report.page_size >> dev->log.set.page_shift == 0 && vfmig_sabotage("report-smaller-refused"))
        return -EINVAL;
    if (req.head.argsz < sizeof(req) + (uint64_t)bytes) {
        if (vfmig_sabotage("report-no-room-clears"))
            log_report(dev, req.report.iova, req.report.length, req.report.page_size,
                       (uint64_t *)c->reply);
        return -EINVAL;
    }
    int r = log_report(dev, req.report.iova, req.report.length, req.report.page_size,
                       (uint64_t *)c->reply);
    if (r < 0)
        return r;
    if ((in_one_mapping(dev, req.report.iova, req.report.length) < req.report.length &&
         vfmig_sabotage("report-across-empty")) ||
        (req.report.page_size >> dev->log.set.page_shift > 1 && vfmig_sabotage("report-larger-empty")))
        bytes = 0;
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
