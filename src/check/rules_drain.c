/* SPDX-License-Identifier: BSD-3-Clause */
/* A request that waits for DMA, and what happens meanwhile: another request, a reset, a client that
 * goes, no end of it. The DMA is one by message that the checker leaves open until a command has
 * waited for its answer for a while. */
#include "check/rule.h"
#include "check/rules.h"

#define IOVA    0x10000000ull
#define ROOM    0x100000ull
#define PIECE   4096u
#define HOLD_MS 100u /* a command that is not answered before is waited for */
#define LONG_MS 150u /* a device that has a limit of its own may lose patience */

/* Its answer comes later. */
static void ask(struct check *c, enum vfmig_state state)
{
    struct check_step step = {.kind = CHECK_STEP_STATE_ASK, .arg = {check_raw_of(c, state)}};

    check_do(c, &step);
}

static int answer(struct check *c)
{
    struct check_step step = {.kind = CHECK_STEP_STATE_ANSWER};

    return (int)check_do(c, &step);
}

/* A DMA is open and stays so. False: there is none, or the device is gone. */
static bool begin(struct check *c, uint32_t hold_ms)
{
    uint64_t since = 0;

    check_need(c, c->workload->set_up(c), "making the device ready");
    if (!check_need(c, check_map(c, IOVA, ROOM, 0, true), "MAP"))
        return false;
    check_hold(c, hold_ms);
    c->workload->dma_start(c, IOVA, PIECE, 1);
    while (!c->port->dma.open && check_wait(c, &since))
        ;
    if (!c->port->dma.open && !check_over(c))
        check_skip(c, "no DMA by message came");
    return c->port->dma.open && !check_over(c);
}

/* The state becomes that one, by what was asked for without a reply. */
static void comes_to(struct check *c, enum vfmig_state state, const char *what)
{
    uint64_t since = 0;

    while (check_now(c) != (unsigned)state && check_wait(c, &since))
        ;
    check_is(c, state, what);
}

/* And is what it was before all this: it does DMA, stops, and runs. */
static void works(struct check *c, const char *what)
{
    check_hold(c, 0);
    check_unmap(c, IOVA, ROOM);
    check_unmap(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE);
    if (check_over(c) || !check_ok(c, c->workload->set_up(c), what) ||
        !check_need(c, check_map(c, IOVA, ROOM, 0, false), "MAP") ||
        !check_ok(c, c->workload->dma_write(c, IOVA + PIECE, 8, 77), "DMA afterwards"))
        return;
    check_that(c, !memcmp(c->port->memory + PIECE, &(uint64_t){77}, 8), "the bytes of that DMA",
               "others");
    if (check_ok(c, check_go(c, VFMIG_STATE_STOP), "STOP afterwards") &&
        check_is(c, VFMIG_STATE_STOP, "afterwards") &&
        check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RUNNING afterwards"))
        check_ok(c, c->workload->dma_write(c, IOVA + 2 * PIECE, 8, 78), "DMA at the end");
}

void check_drain_busy(struct check *c)
{
    check_doing(c, "NDMA waits for DMA, and RUNNING is asked for");
    if (!begin(c, HOLD_MS))
        return;
    ask(c, VFMIG_STATE_RUNNING_NDMA);
    unsigned seen = check_now(c);
    check_that(c, seen == VFMIG_STATE_RUNNING || seen == VFMIG_STATE_RUNNING_NDMA,
               "the old state or the new one meanwhile", "%s", check_state_name(seen));
    int r = check_go(c, VFMIG_STATE_RUNNING);
    check_hold(c, 0);
    int first = answer(c);
    check_that(c, r >= 0 || first >= 0, "one of two requests succeeds", "the first: %s",
               check_outcome(c, first));
    comes_to(c, r < 0 ? VFMIG_STATE_RUNNING_NDMA : VFMIG_STATE_RUNNING,
             r < 0 ? "the second request is refused, so the first one counts"
                   : "the second request succeeds");
    if (!check_over(c) && check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RUNNING"))
        works(c, "working after two requests");
}

void check_drain_reset(struct check *c)
{
    static const uint8_t asked[] = {VFMIG_STATE_RUNNING_NDMA, VFMIG_STATE_STOP};

    for (size_t i = 0; i < sizeof(asked) && !check_over(c); i++) {
        if (!check_has(c, (enum vfmig_state)asked[i]))
            continue;
        check_doing(c, "%s waits for DMA, and a reset comes", check_state_name(asked[i]));
        if (!begin(c, HOLD_MS))
            return;
        ask(c, (enum vfmig_state)asked[i]);
        if (!check_ok(c, check_reset(c), "RESET") ||
            !check_is(c, VFMIG_STATE_RUNNING, "after the reset"))
            return;
        check_hold(c, 0);
        answer(c); /* whatever it is; and the DMA is answered now */
        check_serve(c, 1);
        check_is(c, VFMIG_STATE_RUNNING, "after what the DMA waited for");
        works(c, "working after the reset");
        check_unmap(c, IOVA, ROOM);
        check_unmap(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE);
        check_reset(c);
    }
}

void check_drain_gone(struct check *c)
{
    check_doing(c, "STOP waits for DMA, and the connection is closed");
    if (!begin(c, HOLD_MS))
        return;
    ask(c, VFMIG_STATE_STOP);
    if (check_ok(c, check_reconnect(c), "a new connection") &&
        check_is(c, VFMIG_STATE_RUNNING, "a fresh connection"))
        works(c, "working after it");
}

/* However long it takes: an answer, and a state that fits it. */
static void outlast(struct check *c, enum vfmig_state to)
{
    uint64_t done = 0, since = 0;

    check_doing(c, "DMA that takes long, then %s", check_state_name(to));
    if (!begin(c, LONG_MS))
        return;
    int r = check_go(c, to);
    unsigned now = check_now(c);
    check_that(c, now == (unsigned)to ? r >= 0 : r < 0 && now == VFMIG_STATE_RUNNING,
               "the new state after success, the old one after a failure", "%s, then %s",
               check_outcome(c, r), check_state_name(now));
    check_hold(c, 0);
    check_serve(c, 1);
    if (!check_over(c) && !check_ok(c, check_go(c, VFMIG_STATE_RUNNING), "RUNNING"))
        return;
    while (c->workload->dma_done(c, &done) == 0 && done == 0 && check_wait(c, &since))
        ;
    check_that(c, done == 1, "the DMA is done in the end", "it is not");
    check_reset(c);
    works(c, "working after it");
    check_unmap(c, IOVA, ROOM);
    check_unmap(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE);
    check_reset(c);
}

void check_drain_long(struct check *c)
{
    if (check_has_ndma(c))
        outlast(c, VFMIG_STATE_RUNNING_NDMA);
    if (!check_over(c))
        outlast(c, VFMIG_STATE_STOP);
}
