/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA that must not happen: with N, without R, and on the way between such states. */
#include "check/rule.h"
#include "check/rules.h"

#define IOVA  0x10000000ull
#define ROOM  0x400000ull
#define PIECE 4096u
#define EMPTY 0xe5u
#define HOLD_MS 40u /* who does not wait for DMA has answered by then */

static bool ready(struct check *c, bool by_message)
{
    check_need(c, c->workload->set_up(c), "making the device ready");
    check_fill(c, 0, ROOM, EMPTY);
    return check_need(c, check_map(c, IOVA, ROOM, 0, by_message), "MAP");
}

/* count doorbells, one page each from page first. */
static void ring(struct check *c, unsigned first, unsigned count)
{
    for (unsigned i = 0; i < count && !check_gone(c); i++)
        c->workload->dma_start(c, IOVA + (first + i) * PIECE, PIECE, 1 + first + i);
}

static unsigned pages_written(const struct check *c)
{
    unsigned count = 0;

    for (uint64_t at = 0; at < ROOM; at += PIECE)
        for (uint64_t i = 0; i < PIECE; i += 8)
            if (c->port->memory[at + i] != EMPTY) {
                count++;
                break;
            }
    return count;
}

/* Nothing is written from now on, whatever the doorbells say. */
static bool is_quiet(struct check *c, unsigned first)
{
    unsigned before = pages_written(c);
    uint64_t messages = c->port->dma.writes;

    ring(c, first, 3);
    check_serve(c, 3);
    return check_that(c, pages_written(c) == before && c->port->dma.writes == messages,
                      "no DMA, though doorbells are rung", "%u pages and %llu messages",
                      pages_written(c) - before,
                      (unsigned long long)(c->port->dma.writes - messages));
}

/* Everything that was asked for is done in the end. */
static void work_is_done(struct check *c, uint64_t before, unsigned asked)
{
    uint64_t done = before, begin = 0;

    while (c->workload->dma_done(c, &done) == 0 && done - before < asked && check_wait(c, &begin))
        ;
    check_that(c, done - before >= asked, "DMA that was asked for under N is done after it",
               "%llu of %u done", (unsigned long long)(done - before), asked);
}

void check_ndma_is_quiet(struct check *c)
{
    static const uint8_t quiet[] = {VFMIG_STATE_RUNNING_NDMA, VFMIG_STATE_PRE_COPY_NDMA};

    for (size_t i = 0; i < sizeof(quiet) && !check_over(c); i++) {
        enum vfmig_state s = (enum vfmig_state)quiet[i];
        if (!check_has(c, s))
            continue;
        check_doing(c, "doorbells in %s", check_state_name(s));
        if (!check_reach(c, VFMIG_STATE_RUNNING) || check_reset(c) < 0)
            return;
        check_unmap(c, IOVA, ROOM);
        check_unmap(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE);
        if (ready(c, false) && check_ok(c, check_go(c, s), "the request"))
            is_quiet(c, 0);
    }
}

void check_work_after_ndma(struct check *c)
{
    uint64_t before = 0;

    check_doing(c, "doorbells in RUNNING_NDMA, then RUNNING");
    if (!ready(c, false) || !check_ok(c, check_go(c, VFMIG_STATE_RUNNING_NDMA), "NDMA"))
        return;
    c->workload->dma_done(c, &before);
    ring(c, 0, 4);
    if (check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RUNNING")) {
        work_is_done(c, before, 4);
        check_that(c, pages_written(c) == 4, "four pages are written", "%u", pages_written(c));
    }
}

void check_stopped_is_quiet(struct check *c)
{
    static const uint8_t stopped[] = {VFMIG_STATE_STOP, VFMIG_STATE_STOP_COPY,
                                      VFMIG_STATE_RESUMING};

    for (size_t i = 0; i < sizeof(stopped) && !check_over(c); i++) {
        enum vfmig_state s = (enum vfmig_state)stopped[i];
        check_doing(c, "much DMA under way, then %s, then doorbells", check_state_name(s));
        if (!check_reach(c, VFMIG_STATE_RUNNING) || check_reset(c) < 0)
            return;
        check_unmap(c, IOVA, ROOM);
        check_unmap(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE);
        if (!ready(c, false))
            return;
        ring(c, 0, 40);
        if (check_ok(c, check_go(c, s), "the request"))
            is_quiet(c, 100);
    }
}

/* What was in flight is finished before the request is answered. */
void check_ndma_drains(struct check *c)
{
    check_doing(c, "much DMA under way, then RUNNING_NDMA");
    if (!ready(c, false))
        return;
    ring(c, 0, 40);
    if (check_ok(c, check_go(c, VFMIG_STATE_RUNNING_NDMA), "NDMA"))
        is_quiet(c, 100);
}

/* DMA by message that the checker answers late: N must not be answered before that. */
static void drains_messages(struct check *c, enum vfmig_state s)
{
    uint64_t begin = 0;

    check_doing(c, "DMA by message that is not answered, then %s, and %u ms later the answer",
                check_state_name(s), HOLD_MS);
    if (!ready(c, true))
        return;
    check_hold(c, HOLD_MS);
    ring(c, 0, 2);
    while (!c->port->dma.open && check_wait(c, &begin))
        ;
    if (!c->port->dma.open) {
        if (!check_over(c))
            check_skip(c, "no DMA by message came");
        return;
    }
    if (check_ok(c, check_go(c, s), "the request"))
        check_that(c, c->port->dma.answered_open == 0,
                   "the request is answered when no DMA is in flight",
                   "it is answered while DMA of the device waits for its answer");
    uint64_t writes = c->port->dma.writes;
    check_hold(c, 0);
    check_serve(c, 3);
    check_that(c, c->port->dma.writes == writes, "no DMA after the answer", "%llu more",
               (unsigned long long)(c->port->dma.writes - writes));
}

void check_ndma_waits_for_messages(struct check *c)
{
    drains_messages(c, VFMIG_STATE_RUNNING_NDMA);
}

void check_stop_waits_for_messages(struct check *c)
{
    drains_messages(c, VFMIG_STATE_STOP);
}

/* DMA waits under N; then a write of several bits between states that are both quiet. */
void check_multi_bit_is_quiet(struct check *c)
{
    static const struct {
        uint32_t first, then;
    } writes[] = {{11, 0}, {11, 2}, {11, 8}, {9, 0}, {9, 2}, {9, 11}, {11, 9}};

    for (size_t i = 0; i < sizeof(writes) / sizeof(writes[0]) && !check_over(c); i++) {
        check_doing(c, "DMA waits in device_state %u, then %u is written", writes[i].first,
                    writes[i].then);
        check_reset(c);
        check_unmap(c, IOVA, ROOM);
        check_unmap(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE);
        if (!ready(c, false) || !check_ok(c, check_set_raw(c, writes[i].first), "the first write"))
            return;
        ring(c, 0, 8);
        check_ok(c, check_set_raw(c, writes[i].then), "the second write");
        check_serve(c, 3);
        check_that(c, pages_written(c) == 0, "no DMA on the way between two states without DMA",
                   "%u pages", pages_written(c));
    }
}

/* An image with DMA that waits is loaded and leaves RESUMING for NR: quiet until N is cleared. */
void check_resume_is_quiet(struct check *c)
{
    struct check_blob image = {0};
    uint64_t before = 0;

    check_doing(c, "DMA waits under N, a save, reset, a load, RUNNING_NDMA, RUNNING");
    if (!ready(c, false) || !check_ok(c, check_go(c, VFMIG_STATE_RUNNING_NDMA), "NDMA"))
        goto done;
    ring(c, 0, 4);
    if (!check_ok(c, check_go(c, VFMIG_STATE_STOP_COPY), "STOP_COPY") ||
        !check_ok(c, check_save_all(c, &image), "reading the stream") ||
        !check_need(c, check_reset(c), "RESET") ||
        !check_ok(c, check_go(c, VFMIG_STATE_RESUMING), "RESUMING") ||
        !check_ok(c, check_load_all(c, &image), "loading the image") ||
        !check_ok(c, check_go(c, VFMIG_STATE_RUNNING_NDMA), "RUNNING_NDMA"))
        goto done;
    check_serve(c, 3);
    check_that(c, pages_written(c) == 0, "no DMA before N is cleared", "%u pages",
               pages_written(c));
    c->workload->dma_done(c, &before);
    if (check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RUNNING"))
        work_is_done(c, before, 4);
done:
    check_blob_free(&image);
}

/* A page fault that stays open (a DMA that is not answered) does not hold up PRE_COPY. */
void check_precopy_waits_for_nobody(struct check *c)
{
    uint32_t late = c->port->deadline_ms * 4;
    uint64_t begin = 0;

    check_doing(c, "DMA by message that is not answered, then PRE_COPY");
    if (!ready(c, true))
        return;
    check_hold(c, late);
    ring(c, 0, 1);
    while (!c->port->dma.open && check_wait(c, &begin))
        ;
    if (!c->port->dma.open) {
        check_skip(c, "no DMA by message came");
        return;
    }
    if (check_ok(c, check_go(c, VFMIG_STATE_PRE_COPY), "the request"))
        check_is(c, VFMIG_STATE_PRE_COPY, "while DMA is open");
    check_hold(c, 0);
    check_serve(c, 1);
}
