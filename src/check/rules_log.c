/* SPDX-License-Identifier: BSD-3-Clause */
/* The DMA log without DMA (any device), and with it (a workload): at the edges of words, pages and
 * mappings, with every pair of page sizes, across mappings. */
#include "check/rule.h"
#include "check/rules.h"

#define IOVA   0x10000000ull
#define LENGTH 0x400000ull /* 1024 pages of 4 KiB */
#define PAGE   4096u
#define ROOM   (LENGTH / PAGE / 8)

static const uint64_t page_sizes[] = {4096, 8192, 16384, 65536, 2u << 20};
#define SIZES (sizeof(page_sizes) / sizeof(page_sizes[0]))

/* The page size that a report in this dialect may use beside the log's own: v1 has one. */
static uint64_t own_page(const struct check *c)
{
    return c->dialect == CHECK_DIALECT_REGION ? c->port->facts.log_region_pgsize : PAGE;
}

static uint32_t bytes_of(uint64_t length, uint64_t page)
{
    return (uint32_t)((length + page * 64 - 1) / (page * 64) * 8);
}

static bool bit(const uint64_t *bitmap, uint64_t page)
{
    return bitmap[page / 64] >> (page % 64) & 1;
}

static unsigned bits(const uint64_t *bitmap, uint32_t bytes)
{
    unsigned count = 0;

    for (uint32_t i = 0; i < bytes / 8; i++)
        count += (unsigned)__builtin_popcountll(bitmap[i]);
    return count;
}

/* A mapping, and the log on. */
static bool start(struct check *c, uint64_t page)
{
    return check_need(c, check_map(c, IOVA, LENGTH, 0, false), "MAP") &&
           check_need(c, check_log_start(c, page, IOVA, LENGTH), "LOG_START");
}

/* A report that must come whole. */
static bool report(struct check *c, uint64_t iova, uint64_t length, uint64_t page, uint64_t *bitmap)
{
    int r = check_log_report(c, iova, length, page, bitmap, ROOM);

    return check_ok(c, r, "the report") &&
           check_that(c, (uint32_t)r == bytes_of(length, page), "a bitmap for the whole range",
                      "%d bytes of %u", r, bytes_of(length, page));
}

/* ---- without DMA ---- */

void check_log_told(struct check *c)
{
    check_doing(c, "the log is started and stopped");
    if (check_need(c, check_map(c, IOVA, LENGTH, 0, false), "MAP") &&
        check_ok(c, check_log_start(c, own_page(c), IOVA, LENGTH), "the start"))
        check_ok(c, check_log_stop(c), "the stop");
}

void check_log_off(struct check *c)
{
    uint64_t bitmap[ROOM / 8];

    check_doing(c, "a report before the log was ever on");
    check_need(c, check_map(c, IOVA, LENGTH, 0, false), "MAP");
    check_refused(c, check_log_report(c, IOVA, LENGTH, own_page(c), bitmap, ROOM), "the report");
}

void check_log_clean(struct check *c)
{
    uint64_t bitmap[ROOM / 8];

    check_doing(c, "the log is started, then a report");
    if (start(c, own_page(c)) && report(c, IOVA, LENGTH, own_page(c), bitmap))
        check_that(c, bits(bitmap, ROOM) == 0, "an empty log", "%u pages", bits(bitmap, ROOM));
}

/* libvfio-user loops for ever, or puts bits elsewhere, where the sizes differ. */
void check_log_sizes(struct check *c)
{
    uint64_t bitmap[ROOM / 8];

    for (size_t s = 0; s < SIZES; s++)
        for (size_t r = 0; r < SIZES && !check_over(c); r++) {
            check_doing(c, "log of %llu byte pages, report of %llu byte pages",
                        (unsigned long long)page_sizes[s], (unsigned long long)page_sizes[r]);
            check_map(c, IOVA, LENGTH, 0, false);
            if (check_log_start(c, page_sizes[s], IOVA, LENGTH) == 0 &&
                report(c, IOVA, LENGTH, page_sizes[r], bitmap))
                check_that(c, bits(bitmap, ROOM) == 0, "an empty log", "%u pages",
                           bits(bitmap, ROOM));
            check_log_stop(c);
            check_unmap(c, IOVA, LENGTH);
        }
}

void check_log_wrong_sizes(struct check *c)
{
    static const uint64_t wrong[] = {0, 1, 2048, 4095, 4097, 12288, UINT64_MAX};
    uint64_t bitmap[ROOM / 8];

    if (!start(c, PAGE))
        return;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]) && !check_over(c); i++) {
        struct vfmig_user_feature_log_report head = {IOVA, 65536, wrong[i]};
        struct check_step step = {.kind = CHECK_STEP_FEATURE_GET,
                                  .arg = {VFMIG_USER_F_LOG_REPORT, ROOM, sizeof(head)},
                                  .data = &head,
                                  .room = bitmap,
                                  .room_size = ROOM};
        check_doing(c, "a report of pages of %llu bytes", (unsigned long long)wrong[i]);
        check_refused(c, check_do(c, &step), "the report");
    }
}

void check_log_wrong_ranges(struct check *c)
{
    static const struct vfmig_user_log_range wrong[] = {
        {IOVA, 0}, {UINT64_MAX - 4095, 8192}, {UINT64_MAX, UINT64_MAX}};
    uint64_t bitmap[ROOM / 8];

    if (!start(c, PAGE))
        return;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]) && !check_over(c); i++) {
        struct vfmig_user_feature_log_report head = {wrong[i].iova, wrong[i].length, PAGE};
        struct check_step step = {.kind = CHECK_STEP_FEATURE_GET,
                                  .arg = {VFMIG_USER_F_LOG_REPORT, ROOM, sizeof(head)},
                                  .data = &head,
                                  .room = bitmap,
                                  .room_size = ROOM};
        check_doing(c, "a report of [0x%llx, +0x%llx)", (unsigned long long)wrong[i].iova,
                    (unsigned long long)wrong[i].length);
        check_refused(c, check_do(c, &step), "the report");
    }
}

/* Two mappings side by side: the report is for both, or refused; never short. */
void check_log_across(struct check *c)
{
    uint64_t bitmap[ROOM / 8], page = own_page(c);

    check_doing(c, "a report across two mappings");
    check_need(c, check_map(c, IOVA, LENGTH / 2, 0, false), "MAP");
    check_need(c, check_map(c, IOVA + LENGTH / 2, LENGTH / 2, LENGTH / 2, false), "MAP");
    if (!check_need(c, check_log_start(c, page, IOVA, LENGTH), "LOG_START"))
        return;
    int r = check_log_report(c, IOVA, LENGTH, page, bitmap, ROOM);
    check_that(c, r < 0 || (uint32_t)r == bytes_of(LENGTH, page),
               "a bitmap for the whole range, or a refusal", "success and %d bytes of %u", r,
               bytes_of(LENGTH, page));
    r = check_log_report(c, IOVA + LENGTH / 4, LENGTH / 4, page, bitmap, ROOM);
    check_that(c, r < 0 || (uint32_t)r == bytes_of(LENGTH / 4, page),
               "a part of a mapping: a bitmap for all of it, or a refusal",
               "success and %d bytes of %u", r, bytes_of(LENGTH / 4, page));
}

void check_log_unmapped(struct check *c)
{
    uint64_t bitmap[ROOM / 8], page = own_page(c);

    check_doing(c, "a report of a range that is not mapped");
    if (!start(c, page))
        return;
    int r = check_log_report(c, IOVA + 4 * LENGTH, LENGTH, page, bitmap, ROOM);
    check_that(c, r < 0 || bits(bitmap, ROOM) == 0, "a refusal, or nothing dirty", "%u pages",
               bits(bitmap, ROOM));
}

void check_log_second_start(struct check *c)
{
    check_doing(c, "the log is started twice");
    if (start(c, PAGE))
        check_refused(c, check_log_start(c, PAGE, IOVA, LENGTH), "the second LOG_START");
}

/* ---- with DMA ---- */

/* Where writes are made: edges of words of 64 pages, of pages, of the mapping. */
struct place {
    uint64_t offset;
    uint32_t size;
};

static const struct place places[] = {
    {0, 8},                      /* first bytes */
    {PAGE - 8, 8},               /* up to an edge */
    {3 * PAGE - 8, 16},          /* across one */
    {5 * PAGE, PAGE},            /* a page, and no more */
    {63 * PAGE, 2 * PAGE},       /* across a word of the bitmap */
    {127 * PAGE + 8, 8},         /* last bit of a word */
    {128 * PAGE, 8},             /* first of the next */
    {255 * PAGE, 3 * PAGE},      /* around bit 256 */
    {600 * PAGE + 16, 5 * PAGE}, /* out of line, several pages */
    {LENGTH - PAGE, 8},          /* last page */
    {LENGTH - 8, 8},             /* last bytes */
};
#define PLACES (sizeof(places) / sizeof(places[0]))

static void mark(uint64_t *bitmap, uint64_t offset, uint64_t size, uint64_t page)
{
    for (uint64_t p = offset / page; p <= (offset + size - 1) / page; p++)
        bitmap[p / 64] |= 1ull << (p % 64);
}

/* Every page that was written is in the log; *ret_extra: those that were not, but are. */
static void compare(struct check *c, const uint64_t *want, const uint64_t *got, uint64_t page,
                    unsigned *ret_extra)
{
    *ret_extra = 0;
    for (uint64_t p = 0; p < LENGTH / page && !check_over(c); p++) {
        check_that(c, !bit(want, p) || bit(got, p), "every page that was written is in the log",
                   "page %llu of %llu (%llu bytes each) is not", (unsigned long long)p,
                   (unsigned long long)(LENGTH / page), (unsigned long long)page);
        *ret_extra += !bit(want, p) && bit(got, p);
    }
}

static bool dma(struct check *c, uint64_t offset, uint32_t size)
{
    return check_need(c, c->workload->dma_write(c, IOVA + offset, size, offset | 1), "DMA");
}

static void write_places(struct check *c, uint64_t *want, uint64_t page)
{
    memset(want, 0, ROOM);
    for (size_t i = 0; i < PLACES && !check_over(c); i++)
        if (dma(c, places[i].offset, places[i].size))
            mark(want, places[i].offset, places[i].size, page);
}

static bool ready(struct check *c)
{
    return check_need(c, c->workload->set_up(c), "making the device ready");
}

void check_log_edges(struct check *c)
{
    uint64_t want[ROOM / 8], got[ROOM / 8];
    unsigned extra;

    check_doing(c, "DMA at the edges of pages, words and the mapping, then a report");
    if (!ready(c) || !start(c, own_page(c)))
        return;
    write_places(c, want, own_page(c));
    if (!check_over(c) && report(c, IOVA, LENGTH, own_page(c), got))
        compare(c, want, got, own_page(c), &extra);
}

void check_log_exact(struct check *c)
{
    uint64_t want[ROOM / 8], got[ROOM / 8];
    unsigned extra = 0;

    check_doing(c, "DMA to some pages, then a report");
    if (!ready(c) || !start(c, own_page(c)))
        return;
    write_places(c, want, own_page(c));
    if (!check_over(c) && report(c, IOVA, LENGTH, own_page(c), got)) {
        compare(c, want, got, own_page(c), &extra);
        check_that(c, extra == 0, "no page that was not written", "%u of them", extra);
    }
}

void check_log_read_and_clear(struct check *c)
{
    uint64_t want[ROOM / 8], got[ROOM / 8];
    unsigned extra;

    check_doing(c, "DMA, a report, another report");
    if (!ready(c) || !start(c, own_page(c)))
        return;
    write_places(c, want, own_page(c));
    if (check_over(c) || !report(c, IOVA, LENGTH, own_page(c), got))
        return;
    compare(c, want, got, own_page(c), &extra);
    if (!check_over(c) && report(c, IOVA, LENGTH, own_page(c), got))
        check_that(c, bits(got, ROOM) == 0, "the report has cleared what it told", "%u pages again",
                   bits(got, ROOM));
    check_doing(c, "DMA once more after two reports");
    if (!check_over(c) && dma(c, 7 * PAGE, 8) && report(c, IOVA, LENGTH, own_page(c), got))
        check_that(c, bit(got, 7 * PAGE / own_page(c)),
                   "a page that is written again is told again", "it is not");
}

void check_log_start_clears(struct check *c)
{
    uint64_t got[ROOM / 8];

    check_doing(c, "DMA before the log is on, and DMA of an earlier log; started, a report");
    if (!ready(c) || !check_need(c, check_map(c, IOVA, LENGTH, 0, false), "MAP"))
        return;
    dma(c, 0, 8);
    check_need(c, check_log_start(c, own_page(c), IOVA, LENGTH), "LOG_START");
    dma(c, 9 * PAGE, 8);
    check_ok(c, check_log_stop(c), "LOG_STOP");
    check_need(c, check_log_start(c, own_page(c), IOVA, LENGTH), "LOG_START");
    if (!check_over(c) && report(c, IOVA, LENGTH, own_page(c), got))
        check_that(c, bits(got, ROOM) == 0, "nothing from before it was started", "%u pages",
                   bits(got, ROOM));
}

void check_log_frozen(struct check *c)
{
    uint64_t got[ROOM / 8];

    check_doing(c, "DMA, the log off, DMA elsewhere, a report");
    if (!ready(c) || !start(c, own_page(c)))
        return;
    dma(c, 9 * PAGE, 8);
    check_ok(c, check_log_stop(c), "LOG_STOP");
    dma(c, 300 * PAGE, 8);
    if (!check_over(c) && report(c, IOVA, LENGTH, own_page(c), got)) {
        check_that(c, bit(got, 9 * PAGE / own_page(c)),
                   "what was logged can be read after the stop", "it is gone");
        check_that(c, !bit(got, 300 * PAGE / own_page(c)), "the log is frozen", "it has later DMA");
    }
}

/* Every pair of page sizes: each page that was written is told, in its place. */
void check_log_pairs(struct check *c)
{
    uint64_t want[ROOM / 8], got[ROOM / 8];

    if (!ready(c))
        return;
    for (size_t s = 0; s < SIZES; s++)
        for (size_t r = 0; r < SIZES && !check_over(c); r++) {
            unsigned extra;
            check_doing(c, "log of %llu byte pages, DMA, report of %llu byte pages",
                        (unsigned long long)page_sizes[s], (unsigned long long)page_sizes[r]);
            check_map(c, IOVA, LENGTH, 0, false);
            if (check_log_start(c, page_sizes[s], IOVA, LENGTH) == 0) {
                write_places(c, want, page_sizes[r]);
                if (!check_over(c) && report(c, IOVA, LENGTH, page_sizes[r], got))
                    compare(c, want, got, page_sizes[r], &extra);
            }
            check_log_stop(c);
            check_unmap(c, IOVA, LENGTH);
        }
}

/* Reports of one part of the mapping after the other, in pages of another size than the log's. */
static void parts(struct check *c, uint64_t log_page, uint64_t page, uint64_t part)
{
    uint64_t want[ROOM / 8], got[ROOM / 8], all[ROOM / 8] = {0};
    unsigned extra;

    check_doing(c, "log of %llu byte pages, DMA, reports of %llu bytes each in pages of %llu bytes",
                (unsigned long long)log_page, (unsigned long long)part, (unsigned long long)page);
    if (!start(c, log_page))
        return;
    write_places(c, want, page);
    for (uint64_t at = 0; at < LENGTH && !check_over(c); at += part) {
        int r = check_log_report(c, IOVA + at, part, page, got, ROOM);
        if (r < 0) {
            check_that(c, at != 0, "a report from the start of a mapping", "%s",
                       check_outcome(c, r));
            return; /* a mapping's part may be refused, as libvfio-user does */
        }
        for (uint64_t p = 0; p < part / page; p++)
            if (bit(got, p))
                all[(at / page + p) / 64] |= 1ull << ((at / page + p) % 64);
    }
    if (!check_over(c))
        compare(c, want, all, page, &extra);
    check_log_stop(c);
    check_unmap(c, IOVA, LENGTH);
}

void check_log_parts(struct check *c)
{
    uint64_t page = own_page(c);

    if (!ready(c))
        return;
    parts(c, page, page, LENGTH / 8);
    if (c->dialect == CHECK_DIALECT_REGION)
        return; /* one page size */
    parts(c, 65536, PAGE, 32768);
    parts(c, 2u << 20, PAGE, LENGTH / 8);
    if (!check_over(c))
        parts(c, PAGE, 65536, LENGTH / 8);
}

void check_log_across_dma(struct check *c)
{
    uint64_t got[ROOM / 8], page = own_page(c), middle = LENGTH / 2;

    check_doing(c, "DMA to both sides of an edge between mappings, a report across");
    if (!ready(c))
        return;
    check_need(c, check_map(c, IOVA, middle, 0, false), "MAP");
    check_need(c, check_map(c, IOVA + middle, middle, middle, false), "MAP");
    check_need(c, check_log_start(c, page, IOVA, LENGTH), "LOG_START");
    dma(c, middle - 8, 8);
    dma(c, middle, 8);
    dma(c, LENGTH - 8, 8);
    if (check_over(c))
        return;
    int r = check_log_report(c, IOVA, LENGTH, page, got, ROOM);
    if (r < 0) { /* refused: mapping by mapping then */
        r = check_log_report(c, IOVA, middle, page, got, ROOM);
        check_that(c, r > 0 && bit(got, middle / page - 1), "the first mapping's page",
                   "not there");
        r = check_log_report(c, IOVA + middle, middle, page, got, ROOM);
        check_that(c, r > 0 && bit(got, 0) && bit(got, middle / page - 1), "the second one's pages",
                   "not there");
        return;
    }
    check_that(
        c, bit(got, middle / page - 1) && bit(got, middle / page) && bit(got, LENGTH / page - 1),
        "the pages of both mappings", "%d bytes, %u pages", r, bits(got, ROOM));
}

void check_log_unmap(struct check *c)
{
    uint64_t got[ROOM / 8] = {0}, page = own_page(c);

    check_doing(c, "DMA, then the mapping is taken away with its bitmap");
    if (!ready(c) || !start(c, page) || !dma(c, 9 * PAGE, 8) || !dma(c, LENGTH - 8, 8))
        return;
    struct check_step step = {.kind = CHECK_STEP_UNMAP_REPORT,
                              .arg = {IOVA, LENGTH, page},
                              .room = got,
                              .room_size = ROOM};
    if (check_ok(c, check_do(c, &step), "DMA_UNMAP with a bitmap"))
        check_that(c, bit(got, 9 * PAGE / page) && bit(got, LENGTH / page - 1),
                   "the pages that were written", "%u pages, not those", bits(got, ROOM));
}

/* From the beginning of pre-copy to the last snapshot the log misses nothing. */
void check_log_through_a_save(struct check *c)
{
    static const uint8_t states[] = {VFMIG_STATE_PRE_COPY, VFMIG_STATE_PRE_COPY_NDMA,
                                     VFMIG_STATE_STOP_COPY};
    uint64_t got[ROOM / 8], page = own_page(c), offset = 11 * PAGE;

    if (!ready(c) || !start(c, page))
        return;
    for (size_t i = 0; i < sizeof(states) && !check_over(c); i++) {
        enum vfmig_state s = (enum vfmig_state)states[i];
        if (!check_has(c, s))
            continue;
        check_doing(c, "DMA, then %s, then a report", check_state_name(s));
        if (!dma(c, offset, 8) || !check_ok(c, check_go(c, s), check_state_name(s)) ||
            !report(c, IOVA, LENGTH, page, got))
            return;
        check_that(c, bit(got, offset / page), "the page that was written before", "not there");
        if (s == VFMIG_STATE_PRE_COPY_NDMA) {
            check_ok(c, check_go(c, VFMIG_STATE_PRE_COPY), "back to PRE_COPY");
        }
        offset += 40 * PAGE;
    }
}

/* After N the first report has all, the second nothing. */
void check_log_final(struct check *c)
{
    uint64_t got[ROOM / 8], page = own_page(c);

    check_doing(c, "DMA, RUNNING_NDMA, two reports");
    if (!ready(c) || !start(c, page) || !dma(c, 9 * PAGE, 64) ||
        !check_ok(c, check_go(c, VFMIG_STATE_RUNNING_NDMA), "NDMA") ||
        !report(c, IOVA, LENGTH, page, got))
        return;
    check_that(c, bit(got, 9 * PAGE / page), "the page that was written", "not there");
    if (report(c, IOVA, LENGTH, page, got))
        check_that(c, bits(got, ROOM) == 0, "no DMA after N, so nothing more", "%u pages",
                   bits(got, ROOM));
}
