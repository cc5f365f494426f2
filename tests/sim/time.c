/* SPDX-License-Identifier: BSD-3-Clause */
/* What a side does because time has passed (on_time in engine/source.c and destination.c); crashes,
 * returns, operators. */
#include "sim.h"

#include <errno.h>
#include <string.h>

#include "core/state.h"

#define RETRY_NS      (60 * MS)
#define RECONNECT_NS  (20 * MS)
#define ANSWER_NS     (500 * MS)
#define STANDSTILL_NS (600 * MS)

static bool due(uint64_t *at)
{
    if (!*at || sim.now < *at)
        return false;
    *at = 0;
    return true;
}

/* Data that waits for the peer or the link is not late: only a device that was asked can be. */
static void tick(unsigned side)
{
    struct side *s = &sim.side[side];

    if (!s->flow_active || !s->flow.deadline_ns || sim.now < s->flow.deadline_ns)
        return;
    for (unsigned i = 0; i < DEVICES; i++)
        if (vfmig_devset_has(&s->flow.streaming, i) && s->dev[i].working &&
            s->dev[i].jobs[0].kind == JOB_DATA)
            flow_event(
                side, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DATA_MOVES, .device = i});
    flow_kind(side, VFMIG_FLOW_EVENT_TICK);
}

static void retry(unsigned side)
{
    struct side *s = &sim.side[side];

    if (due(&s->retry_at) && (s->linked || side == DST))
        handover_kind(side, VFMIG_HO_EVENT_RETRY);
    if (!s->retry_at && s->handover_active && vfmig_handover_waits(&s->h))
        s->retry_at = sim.now + RETRY_NS;
}

static void try_again(void)
{
    struct side *s = &sim.side[SRC];
    bool idle = !s->flow_active || (s->flow.row >= VFMIG_ROW_WAIT && !s->flow.running);

    if (s->linked || !s->handover_active || !vfmig_handover_waits(&s->h))
        return;
    if (!idle || !sim.side[DST].alive || sim.now < sim.partition_until) {
        s->reconnect_at = sim.now + RECONNECT_NS;
        return;
    }
    say("source connects again");
    link_begin();
    s->generation = sim.generation;
    s->linked = true;
    handover_kind(SRC, VFMIG_HO_EVENT_LINK_UP);
}

static void check_answer(void)
{
    struct side *s = &sim.side[SRC];
    uint8_t state = s->h.state;
    bool waits = state == VFMIG_HO_SRC_STOPPED && s->linked;

    if (!waits || state != s->answer_state)
        s->answer_at = 0;
    s->answer_state = state;
    if (!waits)
        return;
    if (!s->answer_at)
        s->answer_at = sim.now + ANSWER_NS;
    if (due(&s->answer_at))
        handover_kind(SRC, VFMIG_HO_EVENT_ABORT);
}

static void check_standstill(void)
{
    struct side *s = &sim.side[SRC];
    bool stands =
        s->flow_active && s->flow.row >= VFMIG_ROW_S5_ENTER && s->flow.row < VFMIG_ROW_HAND_OVER;

    if (!stands || s->flow.halted) {
        s->standstill_at = 0;
        return;
    }
    if (!s->standstill_at)
        s->standstill_at = sim.now + STANDSTILL_NS;
    if (due(&s->standstill_at))
        handover_kind(SRC, VFMIG_HO_EVENT_ABORT);
}

/* Neither accepted nor refused: the channel's own limit. */
static void check_connect(void)
{
    struct side *s = &sim.side[SRC];

    if (s->began || !s->linked || sim.now < s->connect_until)
        return;
    s->linked = false;
    link_reset();
}

/* What hangs does not hold up the way back: three rows of devices, each of which is asked three
 * times. */
static void check_way_back(void)
{
    struct side *s = &sim.side[SRC];

    if (!s->flow_active || s->flow.halted || vfmig_flow_current(&s->flow) != VFMIG_STEP_UNWIND)
        s->unwinding_since = 0;
    else if (!s->unwinding_since)
        s->unwinding_since = sim.now;
    else if (sim.now > s->unwinding_since + 1500 * MS)
        broke("dead-end", "the source has been on its way back for 1.5 s, in %s",
              vfmig_row_name(s->flow.row));
}

static void check_deadline(void)
{
    struct side *s = &sim.side[SRC];

    if (s->flow_active && !s->flow.halted && s->vcpus && sim.now > s->deadline_at &&
        vfmig_flow_current(&s->flow) < VFMIG_STEP_S4)
        handover_kind(SRC, VFMIG_HO_EVENT_ABORT);
}

/* Nothing is left to be done or said: the source hangs up. After an attempt that was unwound for
 * good the user may try once more. */
static void source_ends(void)
{
    struct side *s = &sim.side[SRC];
    bool over = s->began && !s->flow_active && s->handover_active && !vfmig_handover_waits(&s->h);

    if (!over) {
        s->close_at = 0;
        return;
    }
    if (!s->close_at)
        s->close_at = sim.now + 40 * MS;
    if (sim.now < s->close_at)
        return;
    if (s->linked) {
        s->linked = false;
        link_reset();
    }
    if (!sim.migrate_again || s->h.state != VFMIG_HO_SRC_RESUMED || !s->h.memory)
        return;
    for (unsigned i = 0; i < DEVICES; i++)
        if (s->dev[i].job_count || s->dev[i].working || s->dev[i].m.failed ||
            vfmig_dev_state(&s->dev[i].m) != VFMIG_STATE_RUNNING)
            return;
    if (s->h.record != VFMIG_HO_RECORD_RESUMED || !destination_idle())
        return;
    sim.migrate_again = false;
    source_connects();
}

void side_polls(unsigned side)
{
    struct side *s = &sim.side[side];

    if (!s->alive)
        return;
    fault_point(side);
    if (side == SRC) {
        check_connect();
        check_way_back();
        check_deadline();
        check_answer();
        check_standstill();
    }
    tick(side);
    retry(side);
    if (side == SRC) {
        if (due(&s->reconnect_at))
            try_again();
        if (!s->linked && !s->reconnect_at && s->handover_active && vfmig_handover_waits(&s->h))
            s->reconnect_at = sim.now + RECONNECT_NS;
        source_ends();
    } else if (s->closing && due(&s->close_at)) {
        s->closing = s->linked = false;
        link_reset();
    }
}

/* --- crashes --- */

void side_crashes(unsigned side)
{
    struct side *s = &sim.side[side];
    struct disk disk;
    uint16_t life = s->life;
    uint32_t epoch = s->epoch;

    say("side %u crashes", side);
    sim.crashed |= (uint8_t)(1u << side);
    link_reset();
    disk_crash(&s->disk);
    disk = s->disk;
    for (unsigned d = 0; d < DEVICES; d++)
        device_drop(side, d);
    memset(s, 0, sizeof(*s));
    s->disk = disk;
    s->life = life + 1;
    s->epoch = epoch;
    memset(memory_of[side], 0, sizeof(memory_of[side]));
    side_fresh(side);
    event_in(some(20 * MS, 500 * MS), EVENT_RETURN, side, 0, 0, 0);
    longjmp(sim.died, 1);
}

void side_returns(unsigned side)
{
    struct side *s = &sim.side[side];

    if (s->alive)
        return;
    s->alive = s->returned = true;
    say("side %u is back", side);
    event_in(some(0, 10 * MS), EVENT_POLL, side, 0, 0, 0);
    if (journal_open(side, /* memory= */ false)) { /* once more, a little later */
        s->alive = false;
        event_in(50 * MS, EVENT_RETURN, side, 0, 0, 0);
        return;
    }
    const struct vfmig_journal_entry *last = &s->log.last;
    bool known = last->record != VFMIG_HO_RECORD_NONE;
    if (!known && side == SRC)
        return; /* no attempt of it is on record: there is nobody to talk to */
    vfmig_handover_init(&s->h, side == SRC ? VFMIG_HO_SOURCE : VFMIG_HO_DESTINATION,
                        known ? guest_id : NULL, known ? last->epoch : 0, last->record,
                        /* memory= */ false);
    s->handover_active = known;
    s->began = true;
    if (known)
        handover_kind(side, VFMIG_HO_EVENT_START);
}

/* --- operators, once nothing goes wrong any more --- */

void operators_act(void)
{
    struct vfmig_journal_summary source, destination;
    struct vfmig_resolve_view view;
    struct side *s = &sim.side[SRC], *d = &sim.side[DST];

    if (!s->alive || !d->alive)
        return;
    disk_summary(&s->disk, true, &source);
    disk_summary(&d->disk, true, &destination);
    vfmig_resolve_judge(&destination, &source, &view);
    if (d->h.state == VFMIG_HO_DST_READY && d->h.memory &&
        view.outcome == VFMIG_HO_OUTCOME_ONLY_AT_DESTINATION) {
        sim.fenced = true;
        handover_kind(DST, one_in(3) ? VFMIG_HO_EVENT_ABORT : VFMIG_HO_EVENT_FENCED);
    }
    if (s->h.state == VFMIG_HO_SRC_GRANTED && s->h.memory &&
        s->h.outcome == VFMIG_HO_OUTCOME_DIED_AT_DESTINATION)
        handover_kind(SRC, VFMIG_HO_EVENT_DISCARD);
}
