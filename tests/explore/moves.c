/* SPDX-License-Identifier: BSD-3-Clause */
/* What may happen next in a world, and how a reader is told of it. */
#include <stdio.h>
#include <stdlib.h>

#include "core/state.h"
#include "world.h"

#define BIT(work) (1u << VFMIG_WORK_##work)

struct list {
    struct move *moves;
    unsigned count;
};

static const struct {
    const char *text;
    bool fault;
} kinds[MOVE_COUNT] = {
    [MOVE_START] = {"begins the migration", false},
    [MOVE_CHANGE] = {"does", false},
    [MOVE_CHANGE_FAIL] = {"fails to do", true},
    [MOVE_CHANGE_SLOW] = {"takes too long over", true},
    [MOVE_CHANGE_HANG] = {"never answers", true},
    [MOVE_ABORT_DMA] = {"puts off the DMA that waits for a page", false},
    [MOVE_DRAIN_LATE] = {"misses the drain deadline", true},
    [MOVE_PAGE_FAULT] = {"waits for a page", false},
    [MOVE_PAGE_ANSWER] = {"gets its page from the guest", false},
    [MOVE_DATA] = {"data is through", false},
    [MOVE_DATA_FAIL] = {"data fails", true},
    [MOVE_DATA_CUT] = {"data ends too early", false},
    [MOVE_WORK] = {"ends work", false},
    [MOVE_WORK_FAIL] = {"fails in work", true},
    [MOVE_WORK_CUT] = {"gets no more for work", false},
    [MOVE_IDLE_HANG] = {"gets no answer to page requests from the guest any more", true},
    [MOVE_TICK] = {"reaches a deadline", false},
    [MOVE_AGAIN] = {"makes another round", false},
    [MOVE_GO] = {"switches over", false},
    [MOVE_CANCEL] = {"is cancelled", true},
    [MOVE_JOURNAL] = {"has written its record", false},
    [MOVE_JOURNAL_FAIL] = {"cannot write its record", true},
    [MOVE_CRASH] = {"crashes", true},
    [MOVE_RETURN] = {"comes back", false},
    [MOVE_BOOT] = {"boots the guest afresh", false},
    [MOVE_DELIVER] = {"receives", false},
    [MOVE_DOUBLE] = {"receives a copy of", true},
    [MOVE_LOSE] = {"never receives", true},
    [MOVE_RETRY] = {"asks again", false},
    [MOVE_LINK_CUT] = {"link is cut", true},
    [MOVE_LEAVE] = {"is done and closes the link", false},
    [MOVE_NOTICE] = {"notices that the link is gone", false},
    [MOVE_LINK_UP] = {"link is back", false},
    [MOVE_FENCE] = {"is told by an operator that the source is off", false},
    [MOVE_DISCARD] = {"is told by an operator to give its memory up", false},
};

bool move_is_fault(const struct move *move)
{
    return kinds[move->kind].fault;
}

static void add(struct list *l, enum move_kind kind, unsigned side, unsigned arg)
{
    if (l->count == MOVES_MAX)
        abort();
    l->moves[l->count++] = (struct move){(uint8_t)kind, (uint8_t)side, (uint8_t)arg};
}

static void add_faults(const struct world *w, struct list *l, enum move_kind kind, unsigned side,
                       unsigned arg)
{
    if (w->faults)
        add(l, kind, side, arg);
}

static void add_change(const struct world *w, unsigned side, uint32_t i, struct list *l)
{
    const struct device *d = &w->side[side].dev[i];

    if (d->wait == WAIT_NOTHING || d->slow == SLOW_NEVER)
        return;
    if (d->slow != SLOW_LATE && !(d->wait == WAIT_QUIET && d->fault == FAULT_OPEN))
        add(l, MOVE_CHANGE, side, i);
    if (d->wait == WAIT_QUIET && d->fault == FAULT_OPEN && d->m.half_ns != UINT64_MAX)
        add(l, MOVE_ABORT_DMA, side, i);
    if (d->wait == WAIT_QUIET && d->m.half_ns == UINT64_MAX && d->m.deadline_ns != UINT64_MAX)
        add_faults(w, l, MOVE_DRAIN_LATE, side, i);
    if (d->wait == WAIT_CALL)
        add_faults(w, l, MOVE_CHANGE_FAIL, side, i);
    if (d->slow == SLOW_NOT) {
        add_faults(w, l, MOVE_CHANGE_SLOW, side, i);
        add_faults(w, l, MOVE_CHANGE_HANG, side, i);
    }
}

/* Nothing more will come from the source. */
static bool cut_off(const struct world *w)
{
    const struct side *d = &w->side[DST];

    return d->fell || (w->cut && !d->notice);
}

static void add_data(const struct world *w, unsigned side, uint32_t i, struct list *l)
{
    bool there = side == SRC || (w->sent && !w->cut);

    if (!w->side[side].dev[i].data)
        return;
    if (there)
        add(l, MOVE_DATA, side, i);
    if (!there && cut_off(w))
        add(l, MOVE_DATA_CUT, side, i);
    add_faults(w, l, MOVE_DATA_FAIL, side, i);
}

static void add_pages(const struct world *w, uint32_t i, struct list *l)
{
    const struct side *s = &w->side[SRC];
    const struct device *d = &s->dev[i];

    if (!s->vcpus || s->returned)
        return;
    if (d->fault != FAULT_NONE && !s->idle_hangs)
        add(l, MOVE_PAGE_ANSWER, SRC, i);
    if (d->fault != FAULT_NONE && !s->idle_hangs)
        add_faults(w, l, MOVE_IDLE_HANG, SRC, 0);
    if (d->fault == FAULT_NONE && w->page_faults && dev_has_ndma(s, i) &&
        !vfmig_dev_is_quiet(&d->m))
        add(l, MOVE_PAGE_FAULT, SRC, i);
}

static bool all_answered(const struct side *s)
{
    for (uint32_t i = 0; i < s->flow.device_count; i++)
        if (s->dev[i].fault != FAULT_NONE)
            return false;
    return true;
}

static bool work_may_end(const struct world *w, unsigned side, uint32_t work)
{
    const struct side *s = &w->side[side];

    if (work ==
        VFMIG_WORK_EXTERNAL) /* its first copy comes behind the offer, in the same channel */
        return s->h.state != VFMIG_HO_DST_LISTEN;
    if (work == VFMIG_WORK_RECEIVE)
        return w->sent && !w->cut;
    return work != VFMIG_WORK_VIOMMU_IDLE || all_answered(s);
}

static void add_works(const struct world *w, unsigned side, struct list *l)
{
    const struct side *s = &w->side[side];

    for (uint32_t work = 0; work < VFMIG_WORK_COUNT; work++) {
        if (!(s->works & (1u << work)))
            continue;
        if (work_may_end(w, side, work))
            add(l, MOVE_WORK, side, work);
        else if (side == DST && cut_off(w))
            add(l, MOVE_WORK_CUT, side, work);
        if (side == SRC && work == VFMIG_WORK_VCPU_START)
            continue; /* vCPUs that were parked can be let go: nothing is asked of anybody */
        add_faults(w, l, MOVE_WORK_FAIL, side, work);
    }
}

/* Time passes when whatever is under way and has a limit is late. */
static bool time_may_pass(const struct side *s)
{
    uint32_t hangs = s->idle_hangs && !all_answered(s) ? BIT(VIOMMU_IDLE) & s->works : 0;
    bool any = hangs;

    if (!s->flow_active || !s->flow.deadline_ns)
        return false;
    for (uint32_t i = 0; i < s->flow.device_count; i++) {
        if (vfmig_devset_has(&s->flow.streaming, i))
            return false;
        if (!vfmig_devset_has(&s->flow.busy, i))
            continue;
        if (!dev_is_late(&s->dev[i]))
            return false;
        any = true;
    }
    return any && !(s->works & ~hangs);
}

static void add_own(const struct world *w, unsigned side, struct list *l)
{
    const struct side *s = &w->side[side];

    for (uint32_t i = 0; i < s->flow.device_count; i++) {
        add_change(w, side, i, l);
        add_data(w, side, i, l);
        if (side == SRC)
            add_pages(w, i, l);
    }
    add_works(w, side, l);
    if (time_may_pass(s))
        add(l, MOVE_TICK, side, 0);
}

static void add_source(const struct world *w, struct list *l)
{
    const struct side *s = &w->side[SRC];

    if (s->h.state == VFMIG_HO_SRC_IDLE && !s->returned)
        add(l, MOVE_START, SRC, 0);
    bool asks = s->flow.row == VFMIG_ROW_ASK || s->flow.row == VFMIG_ROW_CHECK;
    if (s->flow_active && asks && !s->flow.halted) {
        if (w->rounds)
            add(l, MOVE_AGAIN, SRC, 0);
        add(l, MOVE_GO, SRC, 0);
    }
    if (s->h.state == VFMIG_HO_SRC_GRANTED && s->h.memory &&
        s->h.outcome == VFMIG_HO_OUTCOME_DIED_AT_DESTINATION)
        add(l, MOVE_DISCARD, SRC, 0);
    if (s->returned && !s->vcpus &&
        (s->h.state == VFMIG_HO_SRC_RESUMED || s->h.state == VFMIG_HO_SRC_IDLE))
        add(l, MOVE_BOOT, SRC, 0);
    if (s->h.state == VFMIG_HO_SRC_RESUMED && !s->flow_active && !s->queued && w->link == LINK_UP)
        add(l, MOVE_LEAVE, SRC, 0);
    if (s->h.state != VFMIG_HO_SRC_IDLE && s->h.state != VFMIG_HO_SRC_RESUMED &&
        s->h.state != VFMIG_HO_SRC_RELEASED && !s->returned)
        add_faults(w, l, MOVE_CANCEL, SRC, 0);
}

static void add_destination(const struct world *w, struct list *l)
{
    const struct side *s = &w->side[DST];

    if (s->over && s->flow.parked && !s->queued && w->link == LINK_UP)
        add(l, MOVE_LEAVE, DST, 0);
    if (!w->side[SRC].alive && s->h.state == VFMIG_HO_DST_READY && s->h.memory)
        add(l, MOVE_FENCE, DST, 0);
    if (s->h.state != VFMIG_HO_DST_RUNNING && s->h.state != VFMIG_HO_DST_REFUSED && !s->returned)
        add_faults(w, l, MOVE_CANCEL, DST, 0);
}

static void add_messages(const struct world *w, unsigned side, struct list *l)
{
    const struct side *s = &w->side[side], *from = &w->side[!side];

    if (s->notice && (side == DST || s->h.state != VFMIG_HO_SRC_IDLE || s->returned))
        add(l, MOVE_NOTICE, side, 0);
    if (from->queued && w->link == LINK_UP) {
        add(l, MOVE_DELIVER, side, from->queue[0].kind);
        if (w->messages) {
            add(l, MOVE_DOUBLE, side, from->queue[0].kind);
            add(l, MOVE_LOSE, side, from->queue[0].kind);
        }
    }
    if (vfmig_handover_waits(&s->h) && !s->queued && (side == DST || w->link == LINK_UP))
        add(l, MOVE_RETRY, side, 0);
}

static void add_side(const struct world *w, unsigned side, struct list *l)
{
    const struct side *s = &w->side[side];

    if (!s->alive) {
        add(l, MOVE_RETURN, side, 0);
        return;
    }
    for (unsigned durable = 0; durable <= !!s->h.pending; durable++)
        add_faults(w, l, MOVE_CRASH, side, durable);
    if (s->h.pending) { /* whoever writes its journal does nothing else */
        add(l, MOVE_JOURNAL, side, 0);
        add_faults(w, l, MOVE_JOURNAL_FAIL, side, 0);
        add_faults(w, l, MOVE_JOURNAL_FAIL, side, 1);
        return;
    }
    add_own(w, side, l);
    if (side == SRC)
        add_source(w, l);
    else
        add_destination(w, l);
    add_messages(w, side, l);
}

static void add_link(const struct world *w, struct list *l)
{
    const struct side *s = &w->side[SRC], *d = &w->side[DST];
    bool ready = s->alive && d->alive && !s->h.pending && !d->h.pending;

    if (w->link == LINK_UP) {
        add_faults(w, l, MOVE_LINK_CUT, SRC, 0);
        if (w->sent && d->works & BIT(RECEIVE))
            add_faults(w, l, MOVE_LINK_CUT, SRC, 1);
    } else if (ready && !s->notice && !d->notice && !d->works &&
               (vfmig_handover_waits(&s->h) || vfmig_handover_waits(&d->h))) {
        add(l, MOVE_LINK_UP, SRC, 0);
    }
}

/* The destination goes on by itself in the steps where it neither waits for the source nor tells it
 * anything. */
static bool has_own_steps(const struct world *w)
{
    const struct side *s = &w->side[DST];
    struct move moves[MOVES_MAX];
    struct list l = {moves, 0};
    bool alone =
        s->flow.row <= VFMIG_ROW_R2_ENTER || vfmig_flow_current(&s->flow) == VFMIG_STEP_DROP;

    if (!s->alive || !s->flow_active || s->h.pending || s->notice || !alone)
        return false;
    add_own(w, DST, &l);
    for (unsigned i = 0; i < l.count; i++)
        if (!move_is_fault(&moves[i]))
            return true;
    return false;
}

unsigned world_moves(const struct world *w, const struct scope *scope, struct move *moves)
{
    struct list l = {moves, 0};

    if (scope->own_steps_first && has_own_steps(w)) {
        add_faults(w, &l, MOVE_CRASH, DST, 0);
        add_own(w, DST, &l);
        add_destination(w, &l);
        return l.count;
    }
    add_side(w, SRC, &l);
    add_side(w, DST, &l);
    add_link(w, &l);
    return l.count;
}

/* --- for readers --- */

static const char *const side_names[] = {"source", "destination"};

static const char *call_name(const struct device *d)
{
    static const char *const names[VFMIG_DEV_CALL_COUNT] = {
        "", "end of stream", "stop", "load", "self-reset", "capture", "start", "pre-copy", "reset"};

    return d->wait == WAIT_QUIET ? "drain" : names[d->call];
}

void move_print(const struct world *before, const struct move *move)
{
    const char *text = kinds[move->kind].text, *name = side_names[move->side];
    const struct side *s = &before->side[move->side];

    if (move->kind >= MOVE_CHANGE && move->kind <= MOVE_PAGE_ANSWER)
        printf("%s device %u %s%s%s", name, move->arg, text,
               move->kind <= MOVE_CHANGE_SLOW ? " " : "",
               move->kind <= MOVE_CHANGE_SLOW ? call_name(&s->dev[move->arg]) : "");
    else if (move->kind >= MOVE_DATA && move->kind <= MOVE_DATA_CUT)
        printf("%s device %u: %s", name, move->arg, text);
    else if (move->kind >= MOVE_WORK && move->kind <= MOVE_WORK_CUT)
        printf("%s %s %s", name, text, vfmig_work_name(move->arg));
    else if (move->kind == MOVE_JOURNAL || move->kind == MOVE_JOURNAL_FAIL)
        printf("%s %s %s%s", name, text, vfmig_ho_record_name(s->h.pending),
               move->kind == MOVE_JOURNAL_FAIL && move->arg ? ", which is there nevertheless" : "");
    else if (move->kind == MOVE_CRASH && s->h.pending)
        printf("%s %s %s %s is on disk", name, text, move->arg ? "after" : "before",
               vfmig_ho_record_name(s->h.pending));
    else if (move->kind >= MOVE_DELIVER && move->kind <= MOVE_LOSE)
        printf("%s %s %s", name, text, vfmig_ho_msg_name(move->arg));
    else if (move->kind == MOVE_LINK_CUT || move->kind == MOVE_LINK_UP)
        printf("the %s%s", text, move->arg ? ", with part of what was sent" : "");
    else
        printf("%s %s", name, text);
    printf("\n");
}

void world_print(const struct world *w)
{
    for (unsigned side = 0; side < 2; side++) {
        const struct side *s = &w->side[side];
        printf("      %-11s %s, flow %s%s%s, vCPUs %s, handover %s, record %s%s%s, outcome %s; "
               "devices",
               side_names[side], s->alive ? "up" : "down",
               s->flow.row < VFMIG_ROW_COUNT ? vfmig_row_name(s->flow.row)
                                             : vfmig_step_name(vfmig_row_step(s->flow.row)),
               s->flow_active ? "" : " (over)", s->flow.halted ? " halted" : "",
               s->vcpus ? "run" : "stand", vfmig_ho_state_name(s->h.state),
               vfmig_ho_record_name(s->disk), s->h.pending ? ", writing " : "",
               s->h.pending ? vfmig_ho_record_name(s->h.pending) : "",
               vfmig_ho_outcome_name(s->h.outcome));
        for (uint32_t i = 0; i < s->flow.device_count; i++)
            printf(" %s%s%s", vfmig_state_name(vfmig_dev_state(&s->dev[i].m)),
                   s->dev[i].wait ? ">" : "", dev_is_lost(s, i) ? "(lost)" : "");
        printf("\n");
    }
}
