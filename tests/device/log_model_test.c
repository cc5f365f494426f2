/* SPDX-License-Identifier: BSD-3-Clause */
/* The log against a model that has one flag for each unit of address space: random mappings,
 * ranges, writes and reports in every pair of page sizes, with fixed seeds. And threads that mark
 * while ranges are reported, mapped and unmapped: no page is lost, none is seen too often. */
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "peer.h"
#include "toy.h"

#include "device/internal.h"

#define UNITS     1024u /* of the address space that is looked at */
#define SLOTS     8u    /* mappings and ranges at most */
#define SMALLEST  12u   /* page shifts */
#define LARGEST   30u
#define SEQUENCES 40u /* for each pair of page sizes */
#define STEPS     80u
#define BITS      (UINT64_C(1) << 18)
#define GUARD     UINT64_C(0x5a5aa5a5deadbeef)

struct span {
    unsigned from, to; /* units; to is outside. Empty: none */
};

struct model {
    uint64_t base; /* IOVA of unit 0 */
    unsigned unit_shift;
    enum log_mode mode;
    bool everything;
    unsigned page_shift;
    struct span maps[SLOTS], ranges[SLOTS];
    bool with_file[SLOTS];
    bool dirty[UNITS];
};

static struct toy *toy;
static struct vfmig_device *dev;
static struct model model;
static uint64_t seed;
static uint64_t got[BITS / 64 + 2], want[BITS / 64 + 1];
static uint8_t bytes[1u << 20];
static int file;
static unsigned reports_with_bits;

static unsigned any(unsigned below)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)((seed >> 33) % below);
}

/* Often short, sometimes at the edges of what there is. */
static struct span any_span(void)
{
    static const unsigned sizes[] = {1, 2, 5, 16, 64, 200, 700, UNITS};
    unsigned from = any(3) ? any(UNITS) : any(UNITS / 64) * 64;
    unsigned size = any(2) ? sizes[any(8)] : 1 + any(sizes[any(8)]);

    return (struct span){from, from + size < UNITS ? from + size : UNITS};
}

static bool is_empty(struct span s)
{
    return s.from == s.to;
}

static bool meet(struct span a, struct span b)
{
    return !is_empty(a) && !is_empty(b) && a.from < b.to && b.from < a.to;
}

static bool meets_any(const struct span *list, struct span s)
{
    for (unsigned i = 0; i < SLOTS; i++)
        if (meet(list[i], s))
            return true;
    return false;
}

static uint64_t iova(unsigned unit)
{
    return model.base + ((uint64_t)unit << model.unit_shift);
}

static uint64_t size(struct span s)
{
    return (uint64_t)(s.to - s.from) << model.unit_shift;
}

/* ---- steps ---- */

static void step_start(unsigned page_shift)
{
    struct vfmig_user_log_range ranges[SLOTS] = {{0}};
    struct span spans[SLOTS] = {{0}};
    unsigned count = any(3) ? any(SLOTS) : 0;
    bool overlap = false;

    for (unsigned i = 0; i < count; i++) {
        struct span s = any_span();
        if (meets_any(spans, s) && any(8)) { /* seldom: a start that is refused */
            s = (struct span){0, 0};
            for (unsigned u = 0; u < UNITS && is_empty(s); u++)
                if (!meets_any(spans, (struct span){u, u + 1}))
                    s = (struct span){u, u + 1};
        }
        if (is_empty(s)) {
            count = i;
            break;
        }
        overlap |= meets_any(spans, s);
        spans[i] = s;
        ranges[i] = (struct vfmig_user_log_range){iova(s.from), size(s)};
    }
    int r = log_start(dev, UINT64_C(1) << page_shift, ranges, count);
    assert_int_equal(r, overlap ? -EINVAL : 0);
    if (r < 0)
        return;
    model.mode = LOG_ON;
    model.everything = count == 0;
    model.page_shift = page_shift;
    memcpy(model.ranges, count ? spans : model.maps, sizeof(spans));
    memset(model.dirty, 0, sizeof(model.dirty));
}

static void step_map(void)
{
    struct span s = any_span();
    unsigned slot = any(SLOTS);
    bool with_file = any(2) && size(s) <= sizeof(bytes);
    struct vfmig_user_dma_map req = {sizeof(req), 3, 0, iova(s.from), size(s)};

    if (!is_empty(model.maps[slot]))
        return;
    int r = dma_map_add(dev, &req, with_file ? file : -1);
    assert_int_equal(r, meets_any(model.maps, s) ? -EEXIST : 0);
    if (r < 0)
        return;
    model.maps[slot] = s;
    model.with_file[slot] = with_file;
    if (model.mode != LOG_ON || !model.everything)
        return;
    for (slot = 0; !is_empty(model.ranges[slot]); slot++)
        ;
    model.ranges[slot] = s;
}

static void expect_report(struct span s, uint64_t page, uint64_t bits)
{
    bool any_bit = false;

    memset(want, 0, (bits + 63) / 64 * 8);
    for (unsigned u = s.from; u < s.to; u++) {
        if (!model.dirty[u])
            continue;
        uint64_t first = (iova(u) - iova(s.from)) / page;
        uint64_t last = (iova(u) - iova(s.from) + (UINT64_C(1) << model.unit_shift) - 1) / page;
        for (uint64_t bit = first; bit <= last; bit++)
            want[bit / 64] |= UINT64_C(1) << bit % 64;
        model.dirty[u] = false;
        any_bit = true;
    }
    reports_with_bits += any_bit;
}

static void report(struct span s, unsigned page_shift)
{
    uint64_t page = UINT64_C(1) << page_shift, bits = (size(s) + page - 1) / page;
    uint64_t words = (bits + 63) / 64;

    assert_true(words * 8 == log_bitmap_bytes(size(s), page));
    memset(got, 0, words * 8);
    got[words] = GUARD;
    int r = log_report(dev, iova(s.from), size(s), page, got);
    int right = model.mode == LOG_OFF ? -EINVAL
                : meets_any(model.ranges, s) || (model.everything && meets_any(model.maps, s))
                    ? 0
                    : -ENOENT;
    assert_int_equal(r, right);
    assert_true(got[words] == GUARD);
    if (r < 0)
        return;
    expect_report(s, page, bits);
    assert_memory_equal(got, want, words * 8);
}

static void step_unmap(unsigned page_shift)
{
    struct span *map = &model.maps[any(SLOTS)], s = *map;

    if (is_empty(s))
        return;
    assert_int_equal(dma_map_remove(dev, iova(s.from), size(s)), 0);
    if (any(2)) { /* with GET_DIRTY_BITMAP */
        if (model.mode != LOG_OFF && meets_any(model.ranges, s))
            report(s, page_shift);
    }
    log_unmapped(dev, iova(s.from), size(s));
    *map = (struct span){0, 0};
    if (model.mode != LOG_ON || !model.everything)
        return;
    for (unsigned i = 0; i < SLOTS; i++)
        if (meet(model.ranges[i], s))
            model.ranges[i] = (struct span){0, 0};
    memset(model.dirty + s.from, 0, s.to - s.from);
}

static void step_unmap_all(void)
{
    dma_map_clear(dev);
    log_unmapped(dev, 0, 0);
    memset(model.maps, 0, sizeof(model.maps));
    if (model.mode == LOG_ON && model.everything) {
        memset(model.ranges, 0, sizeof(model.ranges));
        memset(model.dirty, 0, sizeof(model.dirty));
    }
}

/* Every page that [from, to) of a range touches, as far as it is in that range. */
static void expect_write(struct span range, struct span s)
{
    unsigned from = s.from > range.from ? s.from : range.from;
    unsigned to = s.to < range.to ? s.to : range.to;
    uint64_t low = iova(from) >> model.page_shift;
    uint64_t high = (iova(to) - 1) >> model.page_shift;

    for (unsigned u = range.from; u < range.to; u++)
        if ((iova(u + 1) - 1) >> model.page_shift >= low && iova(u) >> model.page_shift <= high)
            model.dirty[u] = true;
}

/* As DMA into a mapping with memory, or as DMA by message marks, which may be anywhere. */
static void step_write(void)
{
    struct span s = any_span();
    unsigned map = 0;

    if (any(2))
        s.to = s.from + 1;
    while (map < SLOTS &&
           !(model.with_file[map] && s.from >= model.maps[map].from && s.to <= model.maps[map].to))
        map++;
    if (map < SLOTS)
        assert_int_equal(vfmig_device_dma_write(dev, iova(s.from), bytes, size(s)), 0);
    else
        log_mark(dev, iova(s.from), size(s));
    for (unsigned i = 0; model.mode == LOG_ON && i < SLOTS; i++)
        if (meet(model.ranges[i], s))
            expect_write(model.ranges[i], s);
}

static void step_report(unsigned page_shift)
{
    static const unsigned shapes[] = {0, 0, 1, 2};
    unsigned shape = shapes[any(4)];
    struct span s = any_span();

    if (shape == 0)
        s = (struct span){0, UNITS};
    if (shape == 1)
        s.from &= ~63u;
    report(s, page_shift);
}

/* The whole log as ranges, a few at a time. */
static void step_list(void)
{
    struct vfmig_user_log_range entries[3];
    bool seen[UNITS] = {false}, more = true;
    uint64_t next = 0;

    while (more) {
        more = false;
        uint32_t count = log_take_ranges(dev, &next, entries, 3, &more);
        assert_true(count <= 3 && (count == 3 || !more));
        for (uint32_t i = 0; i < count; i++) {
            assert_true(entries[i].iova >= model.base && entries[i].length > 0);
            uint64_t from = (entries[i].iova - model.base) >> model.unit_shift;
            uint64_t to = from + (entries[i].length >> model.unit_shift);
            assert_true(to <= UNITS && iova((unsigned)from) == entries[i].iova);
            assert_true(entries[i].length % (UINT64_C(1) << model.unit_shift) == 0);
            memset(seen + from, true, to - from);
        }
    }
    assert_memory_equal(seen, model.dirty, sizeof(seen));
    memset(model.dirty, 0, sizeof(model.dirty));
}

static void step(unsigned start_shift, unsigned report_shift)
{
    unsigned what = any(100);

    if (what < 8) {
        step_start(start_shift);
    } else if (what < 10) {
        if (model.mode != LOG_OFF)
            assert_int_equal(log_stop(dev), 0);
        if (model.mode != LOG_OFF)
            model.mode = LOG_FROZEN;
    } else if (what < 11) {
        log_client_reset(dev);
        if (model.mode == LOG_FROZEN) {
            model.mode = LOG_OFF;
            model.everything = false;
            memset(model.ranges, 0, sizeof(model.ranges));
            memset(model.dirty, 0, sizeof(model.dirty));
        }
    } else if (what < 30) {
        step_map();
    } else if (what < 39) {
        step_unmap(report_shift);
    } else if (what < 41) {
        step_unmap_all();
    } else if (what < 74) {
        step_write();
    } else if (what < 76) {
        step_list();
    } else {
        step_report(report_shift);
    }
}

/* ---- tests ---- */

static int open_device(void **state)
{
    toy = toy_new(true, true, true, 0);
    dev = toy->dev;
    file = memfd_create("log-model", MFD_CLOEXEC);
    assert_true(file >= 0);
    assert_int_equal(ftruncate(file, sizeof(bytes)), 0);
    return 0;
}

static int close_device(void **state)
{
    close(file);
    toy_free(toy);
    return 0;
}

/* Units of 1 KiB to 1 MiB, so that each page size is larger and smaller than mappings; the space
 * begins at 0, in the middle of a page, across a word of pages, and ends at the very top. */
static void sequence(unsigned start_shift, unsigned report_shift)
{
    static const unsigned unit_shifts[] = {10, 12, 16, 20};

    memset(&model, 0, sizeof(model));
    do
        model.unit_shift = unit_shifts[any(4)];
    while (UNITS << model.unit_shift >> report_shift > BITS ||
           (model.unit_shift > 16 && report_shift < 16 && any(8)));
    uint64_t space = (uint64_t)UNITS << model.unit_shift;
    uint64_t bases[] = {0, (uint64_t)any(1u << 20) << model.unit_shift, (62u << 12) + 0x400,
                        -space - (UINT64_C(1) << model.unit_shift)};
    model.base = bases[any(4)] & ~((UINT64_C(1) << model.unit_shift) - 1);
    for (unsigned i = any(4); i > 0; i--)
        step_map();
    if (any(4))
        step_start(start_shift);
    for (unsigned i = 0; i < STEPS; i++)
        step(start_shift, any(5) ? report_shift : start_shift > 14 ? start_shift : report_shift);
    /* What is left must come out, and come out once. */
    report((struct span){0, UNITS}, report_shift);
    report((struct span){0, UNITS}, report_shift);
    step_unmap_all();
    if (model.mode == LOG_ON)
        log_stop(dev);
    log_client_reset(dev);
}

static void every_pair_of_page_sizes(void **state)
{
    for (unsigned start = SMALLEST; start <= LARGEST; start++)
        for (unsigned report_shift = SMALLEST; report_shift <= LARGEST; report_shift++) {
            reports_with_bits = 0;
            for (unsigned i = 0; i < SEQUENCES; i++) {
                seed = ((start * 64 + report_shift) * 1000u + i) * UINT64_C(0x9e3779b97f4a7c15);
                sequence(start, report_shift);
            }
            assert_true(reports_with_bits >= SEQUENCES); /* it was a test */
        }
}

/* One range of two words of bits: every pair of pages written, every report that begins and ends
 * at a page, the rest afterwards. */
static void every_small_report(void **state)
{
    const struct span pages = {3, 93};

    memset(&model, 0, sizeof(model));
    model.unit_shift = 12;
    model.page_shift = 13;
    model.base = UINT64_C(1) << 40;
    const struct vfmig_user_log_range range = {iova(pages.from), size(pages)};
    for (unsigned a = pages.from; a < pages.to; a += 1 + a % 5)
        for (unsigned from = 0; from < 96; from++)
            for (unsigned to = from + 1; to <= 96; to += 1 + to % 7) {
                unsigned b = (a * 7 + to) % 96;
                assert_int_equal(log_start(dev, UINT64_C(1) << model.page_shift, &range, 1), 0);
                model.mode = LOG_ON;
                model.ranges[0] = pages;
                memset(model.dirty, 0, sizeof(model.dirty));
                log_mark(dev, iova(a), 1);
                log_mark(dev, iova(b), 4096);
                expect_write(pages, (struct span){a, a + 1});
                if (b >= pages.from && b < pages.to)
                    expect_write(pages, (struct span){b, b + 1});
                report((struct span){from, to}, 12 + (a + to) % 3);
                report((struct span){0, 96}, 12 + from % 3);
            }
    assert_int_equal(log_stop(dev), 0);
    log_client_reset(dev);
}

/* More fragments than are remembered: reported again, never lost. */
static void fragments_beyond_the_limit(void **state)
{
    const uint64_t page = UINT64_C(1) << 30, small = 4096, count = page / small;
    const struct vfmig_user_log_range range = {0, 2 * page};
    uint64_t bit;

    assert_int_equal(log_start(dev, page, &range, 1), 0);
    log_mark(dev, 5, 1);
    for (uint64_t i = 0; i < 2 * VFMIG_MAX_LOG_RESTS + 50; i++) { /* every other page: no end of holes */
        bit = 0;
        assert_int_equal(log_report(dev, (2 * i + 1) * small, small, small, &bit), 0);
        assert_int_equal(bit, 1);
    }
    memset(got, 0, count / 8);
    assert_int_equal(log_report(dev, 0, page, small, got), 0);
    for (uint64_t i = 0; i < count; i++)
        assert_true((got[i / 64] >> i % 64 & 1) || (i % 2 && i <= 2 * (2 * VFMIG_MAX_LOG_RESTS + 50)));
    memset(got, 0, count / 8);
    assert_int_equal(log_report(dev, 0, page, small, got), 0);
    for (uint64_t i = 0; i < count / 64; i++)
        assert_int_equal(got[i], 0);
    assert_int_equal(log_stop(dev), 0);
    log_client_reset(dev);
}

/* As many mappings as there may be, all in one page of the log; and one that the log has no memory
 * for is refused instead of not logged. */
static void mappings_up_to_the_limit(void **state)
{
    struct vfmig_user_dma_map req = {sizeof(req), 3, 0, 0, 0x1000};
    uint64_t bit = 0;

    assert_int_equal(log_start(dev, UINT64_C(1) << 30, NULL, 0), 0);
    for (uint32_t i = 0; i < VFMIG_MAX_DMA_REGIONS; i++, req.address += 0x3000)
        assert_int_equal(dma_map_add(dev, &req, -1), 0);
    assert_int_equal(dma_map_add(dev, &req, -1), -ENOSPC);
    log_mark(dev, 0x3000 * 1000, 0x3000); /* and the gap behind it */
    memset(got, 0, sizeof(got));
    assert_int_equal(log_report(dev, 0, 0x3000 * VFMIG_MAX_DMA_REGIONS, 0x1000, got), 0);
    for (uint32_t i = 0; i < 3 * VFMIG_MAX_DMA_REGIONS; i++)
        assert_int_equal(got[i / 64] >> i % 64 & 1, i == 3000);
    assert_int_equal(log_stop(dev), 0);
    dma_map_clear(dev);

    assert_int_equal(log_start(dev, 4096, NULL, 0), 0);
    req = (struct vfmig_user_dma_map){sizeof(req), 3, 0, 0, UINT64_C(1) << 43}; /* 256 MiB of bits */
    assert_int_equal(dma_map_add(dev, &req, -1), 0);
    req.address = req.size;
    req.size = 0x1000;
    assert_int_equal(dma_map_add(dev, &req, -1), -E2BIG);
    assert_int_equal(dma_map_remove(dev, req.address, req.size), -ENOENT);
    assert_int_equal(log_report(dev, req.address, req.size, 4096, &bit), -ENOENT);
    assert_int_equal(dma_map_remove(dev, 0, req.address), 0);
    log_unmapped(dev, 0, req.address);
    assert_int_equal(dma_map_add(dev, &req, -1), 0);
    dma_map_clear(dev);
    log_unmapped(dev, 0, 0);
    assert_int_equal(log_stop(dev), 0);
    log_client_reset(dev);
}

/* ---- threads ---- */

#define THREADS    3u
#define PAGES      4096u
#define PASSES     20u
#define THREAD_LOG UINT64_C(0x7f000) /* not at a word */

/* Marks pages number, number + THREADS, ... in an order of its own, PASSES times each. */
static void *mark_all(void *arg)
{
    unsigned number = (unsigned)(uintptr_t)arg, mine = (PAGES - number + THREADS - 1) / THREADS;

    for (unsigned pass = 0; pass < PASSES; pass++)
        for (unsigned i = 0; i < mine; i++) {
            unsigned page = number + THREADS * (pass % 2 ? mine - 1 - i : i);
            log_mark(dev, THREAD_LOG + page * UINT64_C(4096) + i % 4096, 1);
        }
    return NULL;
}

static void count_report(unsigned *seen, uint64_t first, uint64_t count)
{
    memset(got, 0, (count + 63) / 64 * 8);
    assert_int_equal(log_report(dev, THREAD_LOG + first * 4096, count * 4096, 4096, got), 0);
    for (uint64_t i = 0; i < count; i++)
        seen[first + i] += got[i / 64] >> i % 64 & 1;
}

static void threads_mark_while_reports_take(void **state)
{
    const struct vfmig_user_dma_map all = {sizeof(all), 3, 0, THREAD_LOG, PAGES * 4096};
    const struct vfmig_user_dma_map other = {sizeof(other), 3, 0, 0x70000, 0x8000};
    unsigned seen[PAGES] = {0};
    pthread_t threads[THREADS];

    assert_int_equal(dma_map_add(dev, &all, -1), 0);
    assert_int_equal(log_start(dev, 4096, NULL, 0), 0);
    for (uintptr_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, mark_all, (void *)i), 0);
    seed = 7;
    for (unsigned round = 0; round < 2000; round++) {
        unsigned first = any(PAGES), left = PAGES - first;
        count_report(seen, first, 1 + any(left));
        if (round % 2) { /* ranges move in the list meanwhile */
            assert_int_equal(dma_map_remove(dev, other.address, other.size), 0);
            log_unmapped(dev, other.address, other.size);
        } else {
            assert_int_equal(dma_map_add(dev, &other, -1), 0);
        }
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    count_report(seen, 0, PAGES);
    for (unsigned i = 0; i < PAGES; i++)
        assert_in_range(seen[i], 1, PASSES);
    count_report(seen, 0, PAGES);
    for (unsigned i = 0; i < PAGES; i++)
        assert_in_range(seen[i], 1, PASSES); /* nothing is left that would be seen again */
    assert_int_equal(log_stop(dev), 0);
    log_client_reset(dev);
    step_unmap_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_of_page_sizes),
        cmocka_unit_test(every_small_report),
        cmocka_unit_test(fragments_beyond_the_limit),
        cmocka_unit_test(mappings_up_to_the_limit),
        cmocka_unit_test(threads_mark_while_reports_take),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
