/* SPDX-License-Identifier: BSD-3-Clause */
/* The DMA log against a model of it: ranges, DMA and reports anywhere, in pages of any size. The
 * model knows of each 4 KiB of memory whether it must be told (it was written since it was last
 * told) and whether it may be (a page of the log that it is in was). */
#include "check/rule.h"
#include "check/rules.h"

#define IOVA       0x40000000ull
#define PAGE       4096u
#define LENGTH     0x800000ull /* that the model knows, and that is mapped */
#define PAGES      (LENGTH / PAGE)
#define MAX_RANGES 128u
#define ROUNDS     70u         /* of DMA and a report, with one set of ranges */
#define ROOM       (64u << 10) /* of a bitmap */

/* The wide log: chunks of 32768 pages, each with memory around its beginning. */
#define CHUNK       0x8000000ull
#define CHUNKS      4u
#define CHUNK_SPOT  0x80000ull /* mapped on both sides */
#define WIDE_REPORT (CHUNK * CHUNKS)

struct model {
    struct check *c;
    bool exact; /* what is told and may not be counts, and nothing else does */
    uint64_t log_page;
    uint32_t count;
    struct vfmig_user_log_range range[MAX_RANGES];
    uint64_t last_write;
    bool must[PAGES], may[PAGES];
};

static const uint64_t page_sizes[] = {4096, 8192, 65536, 262144, 2u << 20};
#define SIZES (sizeof(page_sizes) / sizeof(page_sizes[0]))

static bool is_region(const struct check *c)
{
    return c->dialect == CHECK_DIALECT_REGION;
}

static uint64_t bytes_of(uint64_t length, uint64_t page)
{
    return ((length - 1) / page / 64 + 1) * 8;
}

static bool bit(const uint64_t *bitmap, uint64_t page)
{
    return bitmap[page / 64] >> (page % 64) & 1;
}

static bool judge(const struct model *m, bool is_of_exactness, bool good, const char *expected,
                  uint64_t iova, uint64_t length, uint64_t page, uint64_t at)
{
    if (is_of_exactness != m->exact)
        return good;
    return check_that(
        m->c, good, expected,
        "in a report of [0x%llx, +0x%llx) in pages of %llu bytes, of a log in pages of "
        "%llu, bit %llu is the contrary",
        (unsigned long long)iova, (unsigned long long)length, (unsigned long long)page,
        (unsigned long long)m->log_page, (unsigned long long)at);
}

static void model_write(struct model *m, uint64_t iova, uint64_t size)
{
    for (uint32_t i = 0; i < m->count; i++) {
        uint64_t from = m->range[i].iova, end = from + m->range[i].length;
        uint64_t first = iova / m->log_page * m->log_page;
        uint64_t behind = (iova + size - 1) / m->log_page * m->log_page + m->log_page;
        for (uint64_t at = from; at < end; at += PAGE) {
            m->must[(at - IOVA) / PAGE] |= at + PAGE > iova && at < iova + size;
            m->may[(at - IOVA) / PAGE] |= at >= first && at < behind;
        }
    }
}

/* Some page of the model in [iova, iova + length) is set. */
static bool any(const bool *pages, uint64_t iova, uint64_t length)
{
    for (uint64_t at = iova; at < iova + length; at += PAGE)
        if (pages[(at - IOVA) / PAGE])
            return true;
    return false;
}

static void told(bool *pages, uint64_t iova, uint64_t length)
{
    memset(&pages[(iova - IOVA) / PAGE], 0, length / PAGE);
}

/* needed: may not be refused. Others, of a part of a range or across ranges, may be; what was in
 * them then counts as told, as clients must assume that all of it is dirty. */
static void model_report(struct model *m, uint64_t iova, uint64_t length, uint64_t page,
                         bool needed)
{
    static uint64_t bitmap[ROOM / 8];
    struct check *c = m->c;
    int r = check_log_report(c, iova, length, page, bitmap, ROOM);

    if (check_gone(c) || (needed && !check_need(c, r, "the report of a range that is logged")))
        return;
    if (r >= 0 && !m->exact)
        check_that(c, (uint64_t)r == bytes_of(length, page), "a bitmap for the whole report",
                   "%d bytes of %llu", r, (unsigned long long)bytes_of(length, page));
    for (uint64_t b = 0; r >= 0 && b * page < length && !check_over(c); b++) {
        uint64_t at = iova + b * page, size = length - b * page < page ? length - b * page : page;
        judge(m, false, !any(m->must, at, size) || bit(bitmap, b), "what was written is told", iova,
              length, page, b);
        judge(m, true, any(m->may, at, size) || !bit(bitmap, b), "what was not written is not told",
              iova, length, page, b);
    }
    for (uint64_t b = (length - 1) / page + 1; r >= 0 && b < bytes_of(length, page) * 8; b++)
        judge(m, true, !bit(bitmap, b), "nothing behind the end", iova, length, page, b);
    told(m->must, iova, length);
    if (r >= 0)
        told(m->may, iova, length);
}

static int start_log(struct model *m)
{
    struct check_step step = {.kind = CHECK_STEP_LOG_START,
                              .arg = {m->log_page, m->count * sizeof(m->range[0])},
                              .data = m->range};

    return (int)check_do(m->c, &step);
}

static bool dma(struct model *m, uint64_t iova, uint32_t size)
{
    bool done = check_need(m->c, m->c->workload->dma_write(m->c, iova, size, iova | 1), "DMA");

    if (done)
        model_write(m, iova, size);
    m->last_write = iova;
    return done;
}

/* Ranges that do not touch each other, in no order; what v1 logs is what is mapped. */
static bool random_ranges(struct model *m)
{
    struct check *c = m->c;
    uint64_t units = LENGTH / m->log_page;

    for (unsigned tries = 0; tries < 8 && m->count < 4; tries++) {
        uint64_t first = check_random(c, units), most = units - first < 150 ? units - first : 150;
        struct vfmig_user_log_range range = {IOVA + first * m->log_page,
                                             (1 + check_random(c, most)) * m->log_page};
        bool free = true;
        for (uint32_t i = 0; i < m->count; i++)
            free = free && (m->range[i].iova >= range.iova + range.length ||
                            range.iova >= m->range[i].iova + m->range[i].length);
        if (free)
            m->range[m->count++] = range;
    }
    if (!is_region(c))
        return check_need(c, check_map(c, IOVA, LENGTH, 0, false), "MAP");
    for (uint32_t i = 0; i < m->count; i++)
        if (!check_need(
                c,
                check_map(c, m->range[i].iova, m->range[i].length, m->range[i].iova - IOVA, false),
                "MAP"))
            return false;
    return true;
}

/* DMA inside of some range; in v2 also beside them, which is nobody's business. */
static void random_dma(struct model *m)
{
    struct check *c = m->c;
    struct vfmig_user_log_range whole = {IOVA, LENGTH};
    const struct vfmig_user_log_range *in = &m->range[check_random(c, m->count)];

    if (!is_region(c) && check_random(c, 4) == 0)
        in = &whole;
    uint64_t offset = check_random(c, in->length / 8) * 8;
    if (check_random(c, 3) == 0)
        offset = offset / PAGE * PAGE; /* at an edge */
    if (check_random(c, 4) == 0) {     /* in the first or last bit of a word of the log */
        uint64_t word = 64 * m->log_page, at = (in->iova + offset) / word * word;
        at += check_random(c, 2) * 63 * m->log_page;
        offset = at < in->iova ? 0 : at - in->iova;
    }
    if (offset >= in->length)
        offset = in->length - 8;
    uint64_t most = in->length - offset < 3 * PAGE ? in->length - offset : 3 * PAGE;
    dma(m, in->iova + offset, 8 + (uint32_t)check_random(c, most / 8) * 8);
}

static void random_report(struct model *m)
{
    struct check *c = m->c;
    uint64_t page = is_region(c) ? m->log_page : page_sizes[check_random(c, SIZES)];
    const struct vfmig_user_log_range *in = &m->range[check_random(c, m->count)];

    if (check_random(c, 3) == 0) {
        model_report(m, in->iova, in->length, page, page <= m->log_page);
        return;
    }
    uint64_t pages = PAGES, first = check_random(c, PAGES);
    if (check_random(c, 2)) { /* near a range */
        first = (in->iova - IOVA) / PAGE + check_random(c, in->length / PAGE);
        pages = first + 200 < PAGES ? first + 200 : PAGES;
    }
    uint64_t count = 1 + check_random(c, pages - first);
    if (m->last_write && check_random(c, 3) == 0) { /* a part of a page of the log, or some */
        uint64_t at = (m->last_write - IOVA) / PAGE, back = check_random(c, 12);
        first = at > back ? at - back : 0;
        count = 1 + check_random(c, PAGES - first < 24 ? PAGES - first : 24);
        page = is_region(c) ? page : PAGE;
    } else if (check_random(c, 2)) { /* in line with its own pages */
        first = first * PAGE / page * page / PAGE;
        count = count * PAGE > page ? count * PAGE / page * page / PAGE : page / PAGE;
        count = first + count <= PAGES ? count : PAGES - first;
    }
    model_report(m, IOVA + first * PAGE, count * PAGE, page, false);
}

static void with_random_ranges(struct check *c, bool exact, uint64_t log_page)
{
    struct model m = {.c = c, .exact = exact, .log_page = log_page};

    check_doing(c, "log of %llu byte pages, DMA and reports anywhere",
                (unsigned long long)log_page);
    if (!random_ranges(&m) || !check_need(c, start_log(&m), "LOG_START"))
        return;
    for (unsigned n = 0; n < ROUNDS && !check_over(c); n++) {
        /* Often none: what a report has left is reported next. */
        uint64_t writes = check_random(c, 3) ? 0 : 1 + check_random(c, 6);
        for (; writes && !check_over(c); writes--)
            random_dma(&m);
        random_report(&m);
    }
    for (uint32_t i = 0; i < m.count && !check_over(c); i++)
        model_report(&m, m.range[i].iova, m.range[i].length, is_region(c) ? log_page : PAGE, true);
    check_log_stop(c);
    for (uint32_t i = 0; i < m.count && is_region(c); i++)
        check_unmap(c, m.range[i].iova, m.range[i].length);
    if (!is_region(c))
        check_unmap(c, IOVA, LENGTH);
}

static bool ready(struct check *c)
{
    return check_need(c, c->workload->set_up(c), "making the device ready");
}

static void anywhere(struct check *c, bool exact)
{
    if (!ready(c))
        return;
    for (size_t i = 0; i < SIZES && !check_over(c); i++)
        if (!is_region(c))
            with_random_ranges(c, exact, page_sizes[i]);
        else
            with_random_ranges(c, exact, c->port->facts.log_region_pgsize);
}

void check_log_anywhere(struct check *c)
{
    anywhere(c, /* exact= */ false);
}

/* Many ranges of a page or two, given in no order. */
void check_log_many_ranges(struct check *c)
{
    struct model m = {.c = c, .log_page = PAGE};
    uint32_t order[100];

    check_doing(c, "a log of %zu ranges, in no order", sizeof(order) / sizeof(order[0]));
    if (!ready(c) || !check_need(c, check_map(c, IOVA, LENGTH, 0, false), "MAP"))
        return;
    for (uint32_t i = 0; i < 100; i++) {
        uint32_t k = (uint32_t)check_random(c, i + 1);
        order[i] = order[k];
        order[k] = i;
    }
    for (; m.count < 100; m.count++)
        m.range[m.count] = (struct vfmig_user_log_range){IOVA + order[m.count] * 16ull * PAGE,
                                                         (1 + m.count % 3) * PAGE};
    if (!check_ok(c, start_log(&m), "LOG_START"))
        return;
    for (uint32_t i = 0; i < 100 && !check_over(c); i += 1 + i % 2)
        dma(&m, m.range[i].iova + (i % 5 ? 0 : PAGE - 8), i % 7 ? 8 : 16);
    for (uint32_t i = 0; i < 50 && !check_over(c); i++)
        model_report(&m, m.range[i].iova, m.range[i].length, PAGE, true);
    if (!check_over(c))
        model_report(&m, IOVA, LENGTH, PAGE, false);
}

/* ---- more than fits into small buffers ---- */

static uint64_t spot(uint64_t chunk)
{
    return IOVA + chunk * CHUNK - (chunk ? CHUNK_SPOT : 0);
}

static bool map_spots(struct check *c)
{
    for (uint64_t k = 0; k <= CHUNKS; k++) {
        uint64_t size = k && k < CHUNKS ? 2 * CHUNK_SPOT : CHUNK_SPOT;
        if (!check_need(c, check_map(c, spot(k), size, k * 2 * CHUNK_SPOT, false), "MAP"))
            return false;
    }
    return true;
}

/* Pages at both sides of each chunk's beginning, and the report of all in one. */
static void wide_report(struct check *c, bool exact, uint64_t page, uint64_t shift)
{
    static uint64_t bitmap[WIDE_REPORT / PAGE / 64];
    uint64_t begin = IOVA + shift, length = WIDE_REPORT - shift;
    uint64_t written[4 * CHUNKS];
    unsigned count = 0;

    check_doing(c,
                "DMA all over a log of 0x%llx bytes, a report in pages of %llu bytes from 0x%llx",
                WIDE_REPORT, (unsigned long long)page, (unsigned long long)begin);
    for (uint64_t k = 0; k <= CHUNKS; k++) {
        uint64_t edge = IOVA + k * CHUNK, off = check_random(c, 8) * PAGE;
        if (k)
            written[count++] = edge - PAGE - off;
        if (k < CHUNKS)
            written[count++] = edge + off + (k ? 0 : shift);
    }
    for (unsigned i = 0; i < count && !check_over(c); i++)
        check_need(c, c->workload->dma_write(c, written[i], 8, i), "DMA");
    int r = check_over(c) ? -ENOTCONN
                          : check_log_report(c, begin, length, page, bitmap, sizeof(bitmap));
    if (check_over(c) || !check_need(c, r, "the report"))
        return;
    for (unsigned i = 0; i < count && !check_over(c); i++) {
        uint64_t at = (written[i] - begin) / page;
        if (!exact)
            check_that(c, bit(bitmap, at), "every page that was written is in the log",
                       "0x%llx, bit %llu, is not", (unsigned long long)written[i],
                       (unsigned long long)at);
        bitmap[at / 64] &= ~(1ull << (at % 64));
        for (unsigned k = i + 1; k < count; k++)
            if ((written[k] - begin) / page == at)
                written[k] = written[--count]; /* told with it */
    }
    for (uint64_t w = 0; exact && w < bytes_of(length, page) / 8 && !check_over(c); w++)
        check_that(c, bitmap[w] == 0, "no page that was not written",
                   "word %llu of the bitmap has some", (unsigned long long)w);
}

static void wide(struct check *c, bool exact)
{
    if (!map_spots(c) || !check_need(c, check_log_start(c, PAGE, IOVA, WIDE_REPORT), "LOG_START"))
        return;
    wide_report(c, exact, PAGE, 0);
    for (unsigned i = 0; i < 2 && !check_over(c); i++) {
        wide_report(c, exact, 2 * PAGE, 0);
        wide_report(c, exact, PAGE, PAGE * (1 + check_random(c, 63)));
        wide_report(c, exact, 65536, 65536 * (1 + check_random(c, 2)));
        wide_report(c, exact, 2u << 20, 0);
    }
}

void check_log_wide(struct check *c)
{
    if (ready(c))
        wide(c, /* exact= */ false);
}

void check_log_exact_anywhere(struct check *c)
{
    anywhere(c, /* exact= */ true);
    if (!is_region(c) && !check_over(c))
        wide(c, /* exact= */ true);
}

/* A little of each of many pages of the log is told, then the rest. */
void check_log_many_parts(struct check *c)
{
    struct model m = {.c = c, .log_page = 16384, .count = 1, .range = {{IOVA, LENGTH}}};
    const unsigned many = 300;

    check_doing(c, "4 KiB of each of %u dirty pages of 16 KiB are told, then the rest", many);
    if (!ready(c) || !check_need(c, check_map(c, IOVA, LENGTH, 0, false), "MAP") ||
        !check_need(c, start_log(&m), "LOG_START"))
        return;
    for (unsigned i = 0; i < many && !check_over(c); i++)
        dma(&m, IOVA + i * m.log_page, (uint32_t)m.log_page);
    for (unsigned i = 0; i < many && !check_over(c); i++)
        model_report(&m, IOVA + i * m.log_page + i % 4 * PAGE, PAGE, PAGE, false);
    if (!check_over(c))
        model_report(&m, IOVA, LENGTH, PAGE, true);
}

/* ---- what is refused ---- */

static void refuse_start(struct check *c, const char *what,
                         const struct vfmig_user_log_range *ranges, uint32_t count)
{
    uint64_t bitmap[8];
    struct check_step step = {
        .kind = CHECK_STEP_LOG_START, .arg = {PAGE, count * sizeof(*ranges)}, .data = ranges};

    check_doing(c, "a log of %s", what);
    if (check_refused(c, check_do(c, &step), "LOG_START"))
        check_refused(c, check_log_report(c, IOVA, 0x10000, PAGE, bitmap, sizeof(bitmap)),
                      "a report after it");
}

void check_log_bad_start(struct check *c)
{
    static const struct {
        const char *what;
        struct vfmig_user_log_range ranges[3];
        uint32_t count;
    } bad[] = {
        {"the same range twice", {{IOVA, 0x10000}, {IOVA, 0x10000}}, 2},
        {"a range and its last page", {{IOVA, 0x10000}, {IOVA + 0xf000, PAGE}}, 2},
        {"a range and its first page", {{IOVA, 0x10000}, {IOVA, PAGE}}, 2},
        {"a page and a range that ends in it", {{IOVA + 0xf000, PAGE}, {IOVA, 0x10000}}, 2},
        {"a page and a range around it", {{IOVA + 0x8000, PAGE}, {IOVA, 0x10000}}, 2},
        {"three ranges, the last over both others",
         {{IOVA, PAGE}, {IOVA + 0x8000, PAGE}, {IOVA, 0x10000}},
         3},
        {"no bytes", {{IOVA, 0}}, 1},
        {"a range that wraps", {{UINT64_MAX - 0xfff, 0x2000}}, 1},
    };
    struct vfmig_user_log_range beside[2] = {{IOVA + 0x8000, 0x8000}, {IOVA, 0x8000}};
    struct check_step step = {
        .kind = CHECK_STEP_LOG_START, .arg = {PAGE, sizeof(beside)}, .data = beside};

    check_need(c, check_map(c, IOVA, 0x10000, 0, false), "MAP");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]) && !check_over(c); i++)
        refuse_start(c, bad[i].what, bad[i].ranges, bad[i].count);
    check_doing(c, "a log of two ranges side by side");
    if (!check_over(c))
        check_ok(c, check_do(c, &step), "LOG_START");
}

/* A page of the log that is no power of two is refused, or another one is chosen. */
void check_log_start_page(struct check *c)
{
    static const uint64_t odd[] = {0, 1, 4095, 12288, 3u << 20, UINT64_MAX, 1ull << 63};

    check_need(c, check_map(c, IOVA, 0x10000, 0, false), "MAP");
    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]) && !check_over(c); i++) {
        struct vfmig_user_log_range range = {IOVA, 0x10000};
        struct check_step step = {
            .kind = CHECK_STEP_LOG_START, .arg = {odd[i], sizeof(range)}, .data = &range};
        check_doing(c, "a log in pages of %llu bytes", (unsigned long long)odd[i]);
        bool refused = check_do(c, &step) < 0;
        check_that(c, refused || (step.value >= PAGE && !(step.value & (step.value - 1))),
                   "a refusal, or a page that is a power of two and 4 KiB at least", "%llu bytes",
                   (unsigned long long)step.value);
        if (!refused)
            check_need(c, check_log_stop(c), "LOG_STOP");
    }
}

/* A report with room for so many bytes of a bitmap. What v1 has: the message has room, the bitmap
 * is said to be smaller. */
static int report_into(struct check *c, uint64_t length, uint32_t bitmap)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_log_report report;
    } VFMIG_PACKED get = {{sizeof(get) + bitmap, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_LOG_REPORT},
                          {IOVA, length, PAGE}};
    struct {
        struct vfmig_user_dirty_pages head;
        struct vfmig_user_dirty_range range;
    } VFMIG_PACKED dirty = {{UINT32_MAX, VFMIG_USER_DIRTY_GET},
                            {IOVA, length, {c->port->facts.log_region_pgsize, bitmap}}};

    return is_region(c) ? check_command(c, VFMIG_USER_DIRTY_PAGES, 0, &dirty, sizeof(dirty))
                        : check_command(c, VFMIG_USER_FEATURE, 0, &get, sizeof(get));
}

/* argsz of vfio-user's v1 report: what the answer takes. Too little gets no bitmap, and is told. */
static void report_argsz(struct check *c, uint32_t argsz, uint32_t full)
{
    static struct {
        struct vfmig_user_dirty_pages head;
        struct vfmig_user_dirty_range range;
        uint8_t bitmap[ROOM];
    } VFMIG_PACKED dirty;
    const uint32_t size = (uint32_t)(sizeof(dirty) - sizeof(dirty.bitmap));
    struct check_step step = {.kind = CHECK_STEP_COMMAND,
                              .arg = {VFMIG_USER_DIRTY_PAGES, 0, size},
                              .data = &dirty,
                              .room = &dirty,
                              .room_size = sizeof(dirty)};

    dirty.head = (struct vfmig_user_dirty_pages){argsz ? argsz : size + full, VFMIG_USER_DIRTY_GET};
    dirty.range =
        (struct vfmig_user_dirty_range){IOVA, LENGTH, {c->port->facts.log_region_pgsize, full}};
    check_doing(c, "a report with argsz %u", dirty.head.argsz);
    int64_t r = check_do(c, &step);
    check_that(c, r < 0 || (dirty.head.argsz == size + full && r == (argsz ? size : size + full)),
               argsz ? "a refusal, or no bitmap and what it takes" : "a bitmap, and its size",
               "%lld bytes, argsz %u", (long long)r, dirty.head.argsz);
}

/* A report that there is no room for is refused, and what it would have told is told later. */
void check_log_room(struct check *c)
{
    uint64_t page = is_region(c) ? c->port->facts.log_region_pgsize : PAGE;
    struct model m = {.c = c, .log_page = page, .count = 1, .range = {{IOVA, LENGTH}}};
    const uint32_t full = (uint32_t)bytes_of(LENGTH, page);
    const uint32_t rooms[] = {0, 8, full - 8, full - 1};

    if (!ready(c) || !check_need(c, check_map(c, IOVA, LENGTH, 0, false), "MAP") ||
        !check_need(c, start_log(&m), "LOG_START") || !dma(&m, IOVA, 8) ||
        !dma(&m, IOVA + LENGTH - 8, 8))
        return;
    for (size_t i = 0; i < sizeof(rooms) / sizeof(rooms[0]) && !check_over(c); i++) {
        check_doing(c, "a report with room for %u bytes of %u", rooms[i], full);
        check_refused(c, report_into(c, LENGTH, rooms[i]), "the report");
    }
    check_doing(c, "a report that no message holds");
    if (!check_over(c))
        check_refused(c, report_into(c, LENGTH << 20, INT32_MAX), "the report");
    if (is_region(c) && !check_over(c))
        report_argsz(c,
                     (uint32_t)(sizeof(struct vfmig_user_dirty_pages) +
                                sizeof(struct vfmig_user_dirty_range)),
                     full);
    check_doing(c, "the report, with room");
    if (!check_over(c))
        model_report(&m, IOVA, LENGTH, page, true);
    if (is_region(c) && !check_over(c))
        report_argsz(c, 0, full);
}

/* ---- mappings that come and go while the log is on (type1 logs all that is mapped) ---- */

static bool is_told(struct check *c, uint64_t iova, uint64_t at, const char *what)
{
    static uint64_t bitmap[ROOM / 8];
    uint64_t page = c->port->facts.log_region_pgsize;
    int r = check_log_report(c, iova, 0x200000, page, bitmap, ROOM);

    return check_ok(c, r, "the report of a mapping") &&
           check_that(c, bit(bitmap, (at - iova) / page), what, "it is not there");
}

void check_log_late_maps(struct check *c)
{
    const uint64_t size = 0x200000, first = IOVA, late = IOVA + 2 * size, between = IOVA + size;

    check_doing(c, "the log on, then a mapping, DMA to it and to the one of before");
    if (!ready(c) || !check_need(c, check_map(c, first, size, 0, false), "MAP") ||
        !check_need(c, check_log_start(c, c->port->facts.log_region_pgsize, 0, 0), "START") ||
        !check_need(c, check_map(c, late, size, size, false), "MAP") ||
        !check_need(c, check_map(c, between, size, 2 * size, false), "MAP"))
        return;
    for (unsigned i = 0; i < 3; i++)
        check_need(c, c->workload->dma_write(c, first + i * size + 9 * PAGE, 8, i), "DMA");
    if (check_over(c) || !is_told(c, late, late + 9 * PAGE, "what is mapped later is logged"))
        return;
    check_doing(c, "... then START once more, and DMA");
    check_need(c, check_log_start(c, c->port->facts.log_region_pgsize, 0, 0), "START");
    check_need(c, c->workload->dma_write(c, late + 33 * PAGE, 8, 1), "DMA");
    if (check_over(c) || !is_told(c, late, late + 33 * PAGE, "a log that is on stays on"))
        return;
    check_need(c, c->workload->dma_write(c, first + 9 * PAGE, 8, 1), "DMA");
    check_doing(c, "... then a mapping is taken away");
    if (!check_need(c, check_unmap(c, between, size), "UNMAP") ||
        !is_told(c, first, first + 9 * PAGE, "another mapping's pages stay"))
        return;
    check_doing(c, "... and comes back");
    if (check_need(c, check_map(c, between, size, 0, false), "MAP") &&
        check_need(c, c->workload->dma_write(c, between + 5 * PAGE, 8, 1), "DMA"))
        is_told(c, between, between + 5 * PAGE, "what is mapped again is logged");
    check_need(c, c->workload->dma_write(c, late + size - 8, 8, 1), "DMA");
    if (!check_over(c))
        is_told(c, late, late + size - 8, "so is what was there all the time");
}
