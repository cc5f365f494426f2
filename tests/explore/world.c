/* SPDX-License-Identifier: BSD-3-Clause */
#include "world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/state.h"

#define BIT(work) (1u << VFMIG_WORK_##work)

enum { ID_WRITE = 1, ID_RESET = 2 };
enum { NOW = 1, LIMIT_NS = 8, LATE = 200, DUE = 11 };

const uint8_t guest_id[VFMIG_HO_ID_BYTES] = "sixteen-byte-id";
static const struct scope *the_scope;

static void flow_event(struct world *w, unsigned side, const struct vfmig_flow_event *event);
static void handover_event(struct world *w, unsigned side, const struct vfmig_ho_event *event);

bool dev_is_lost(const struct side *s, uint32_t device)
{
    return vfmig_devset_has(&s->flow.lost, device);
}

bool dev_has_ndma(const struct side *s, uint32_t device)
{
    return s->flow.features[device] & VFMIG_FEATURE_NDMA;
}

bool dev_is_late(const struct device *d)
{
    return d->slow == SLOW_LATE || d->slow == SLOW_NEVER;
}

/* --- devices --- */

/* A token says which await an answer belongs to; one is under way at most, so its number is free.
 */
static void rename_token(struct device *d)
{
    d->m.token = d->wait != WAIT_NOTHING;
}

static void dev_event(struct world *w, unsigned side, uint32_t device, struct vfmig_dev_event event,
                      uint64_t now)
{
    struct device *d = &w->side[side].dev[device];
    struct vfmig_dev_actions actions;

    vfmig_dev_step(&d->m, &event, now, &actions);
    for (uint32_t i = 0; i < actions.count; i++) {
        const struct vfmig_dev_action *action = &actions.list[i];
        switch (action->type) {
        case VFMIG_DEV_ACT_GATE_SHUT:
            d->wait = WAIT_QUIET;
            break;
        case VFMIG_DEV_ACT_CALL:
            d->wait = WAIT_CALL;
            d->call = (uint8_t)action->call;
            check_call(w, side, device, action->call);
            break;
        case VFMIG_DEV_ACT_DRAIN_ABORT:
        case VFMIG_DEV_ACT_GATE_CUT:
            if (d->fault == FAULT_OPEN)
                d->fault = FAULT_ABORTED; /* the guest may still answer */
            break;
        case VFMIG_DEV_ACT_REPLY:
            d->answered = 1;
            d->err = (int8_t)action->err;
            d->reset_failed = action->id == ID_RESET && action->err;
            d->idle |= action->id == ID_RESET && !action->err;
            d->wait = WAIT_NOTHING;
            d->call = d->slow = 0;
            break;
        default:
            break;
        }
    }
    rename_token(d);
}

static void dev_go(struct world *w, unsigned side, uint32_t device)
{
    uint8_t want = w->side[side].flow.want[device];
    struct vfmig_dev_event event = {.type = VFMIG_DEV_EVENT_SET_V2, .value = want, .id = ID_WRITE};

    if (want == VFMIG_WANT_RESET) {
        event = (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_RESET, .id = ID_RESET};
    } else if (the_scope->region & (1u << device)) {
        event.type = VFMIG_DEV_EVENT_WRITE_V1;
        vfmig_state_to_bits(want, &event.value);
    }
    dev_event(w, side, device, event, NOW);
}

static void dev_done(struct world *w, unsigned side, uint32_t device, int err)
{
    struct device *d = &w->side[side].dev[device];

    if (d->wait == WAIT_CALL && d->call == VFMIG_DEV_CALL_LOAD && !err) {
        d->loaded = 1;
        d->idle = 0;
    }
    d->wait = WAIT_NOTHING;
    d->call = d->slow = 0;
    dev_event(w, side, device,
              (struct vfmig_dev_event){
                  .type = VFMIG_DEV_EVENT_STEP_DONE, .token = d->m.token, .err = err},
              NOW);
}

/* A fresh device, as a process that begins finds it. */
static void dev_fresh(struct side *s, uint32_t device)
{
    memset(&s->dev[device], 0, sizeof(s->dev[device]));
    vfmig_dev_init(&s->dev[device].m, s->flow.features[device], LIMIT_NS);
    s->dev[device].idle = s->flow.role == VFMIG_FLOW_DESTINATION;
}

/* --- the shell of the flow --- */

static void flow_kind(struct world *w, unsigned side, enum vfmig_flow_event_kind kind)
{
    flow_event(w, side, &(struct vfmig_flow_event){.kind = kind});
}

static void handover_kind(struct world *w, unsigned side, enum vfmig_ho_event_kind kind)
{
    handover_event(w, side, &(struct vfmig_ho_event){.kind = (uint8_t)kind});
}

static void read_log(struct world *w)
{
    w->known |= w->dirty;
    w->dirty = 0;
}

static void begin_work(struct world *w, unsigned side, uint32_t work)
{
    struct side *s = &w->side[side];

    if (s->works & (1u << work))
        broke(w, "shell: a work is asked for once at a time", vfmig_work_name(work));
    check_work(w, side, work);
    s->works |= 1u << work;
    switch (work) {
    case VFMIG_WORK_ROUND:
    case VFMIG_WORK_MEMORY:
    case VFMIG_WORK_LAST_MEMORY:
        w->sending |= w->known;
        w->known = 0;
        break;
    case VFMIG_WORK_TRACK_STOP:
        w->tracking = 0;
        break;
    default:
        break;
    }
}

static void end_work(struct world *w, unsigned side, uint32_t work, int err)
{
    struct side *s = &w->side[side];

    s->works &= ~(1u << work);
    switch (err ? VFMIG_WORK_COUNT : work) {
    case VFMIG_WORK_TRACK_START:
        w->tracking = 1;
        break;
    case VFMIG_WORK_ROUND:
        w->sending = 0;
        read_log(w);
        break;
    case VFMIG_WORK_MEMORY:
    case VFMIG_WORK_LAST_MEMORY:
        w->sending = 0;
        break;
    case VFMIG_WORK_SNAPSHOT:
        w->snapshot = 1;
        read_log(w);
        break;
    case VFMIG_WORK_QUIET_LOG:
        read_log(w);
        break;
    case VFMIG_WORK_FINAL_LOG:
        w->final_log = 1;
        read_log(w);
        break;
    case VFMIG_WORK_VM_STATE:
        w->vm_state = 1;
        break;
    case VFMIG_WORK_VCPU_STOP:
        s->vcpus = 0;
        break;
    case VFMIG_WORK_VCPU_START:
        s->vcpus = 1;
        if (side == SRC) {
            w->stale = w->sent;
            w->snapshot = 0; /* of a stop that was in vain */
        }
        break;
    default:
        break;
    }
    flow_event(
        w, side,
        &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_WORK_DONE, .work = work, .err = err});
}

static void source_told(struct world *w, enum vfmig_flow_action_kind kind)
{
    if (kind == VFMIG_FLOW_ACT_SENT) {
        check_sent(w);
        w->sent = 1;
        handover_kind(w, SRC, VFMIG_HO_EVENT_STOPPED);
    } else if (kind == VFMIG_FLOW_ACT_FAILED) {
        handover_kind(w, SRC, VFMIG_HO_EVENT_ABORT);
    }
}

static void destination_failed(struct world *w)
{
    struct side *s = &w->side[DST];

    switch (vfmig_flow_current(&s->flow)) {
    case VFMIG_STEP_R3:
        handover_kind(w, DST, VFMIG_HO_EVENT_PREPARE_FAILED);
        break;
    case VFMIG_STEP_R4:
        s->flow_active = 0;
        handover_kind(w, DST, VFMIG_HO_EVENT_RUN_FAILED);
        break;
    default:
        /* What is not offered yet is refused when the offer comes. */
        if (s->h.state != VFMIG_HO_DST_LISTEN)
            handover_kind(w, DST, VFMIG_HO_EVENT_LOAD_FAILED);
    }
}

static void destination_told(struct world *w, enum vfmig_flow_action_kind kind)
{
    struct side *s = &w->side[DST];

    if (kind == VFMIG_FLOW_ACT_LOADED)
        handover_kind(w, DST, VFMIG_HO_EVENT_LOADED);
    else if (kind == VFMIG_FLOW_ACT_PREPARED && s->run_early)
        flow_kind(w, DST, VFMIG_FLOW_EVENT_RUN);
    else if (kind == VFMIG_FLOW_ACT_PREPARED)
        handover_kind(w, DST, VFMIG_HO_EVENT_PREPARED);
    else if (kind == VFMIG_FLOW_ACT_FAILED)
        destination_failed(w);
    else if (kind == VFMIG_FLOW_ACT_ENDED && !s->flow.parked)
        handover_kind(w, DST, VFMIG_HO_EVENT_RUN_DONE);
}

static void flow_action(struct world *w, unsigned side, const struct vfmig_flow_action *action)
{
    struct side *s = &w->side[side];

    for (uint32_t i = 0; i < s->flow.device_count; i++) {
        if (!vfmig_devset_has(&action->devices, i))
            continue;
        if (action->kind == VFMIG_FLOW_ACT_GO) {
            check_go(w, side, i);
            dev_go(w, side, i);
        } else if (action->kind == VFMIG_FLOW_ACT_DATA) {
            s->dev[i].data = 1;
        } else if (action->kind == VFMIG_FLOW_ACT_LOST) {
            check_lost(w, side, i, /* answered= */ !action->arg);
            s->dev[i].slow = s->dev[i].slow == SLOW_LATE ? SLOW_TOLD : s->dev[i].slow;
        }
    }
    switch (action->kind) {
    case VFMIG_FLOW_ACT_ENTER:
        check_row(w, side, action->arg);
        break;
    case VFMIG_FLOW_ACT_WORK:
        begin_work(w, side, action->arg);
        break;
    case VFMIG_FLOW_ACT_ABORT:
        s->fell = 1;
        break;
    case VFMIG_FLOW_ACT_ENDED:
        s->flow_active = 0;
        s->over = 1;
        break;
    default:
        break;
    }
    if (side == SRC)
        source_told(w, action->kind);
    else
        destination_told(w, action->kind);
}

/* Time passes only where nothing else can happen, so every deadline that is set is the same. */
static void forget_time(struct vfmig_flow *f)
{
    for (uint32_t i = 0; i < f->device_count; i++)
        f->due_ns[i] = f->due_ns[i] ? DUE : 0;
    f->works_due_ns = f->works_due_ns ? DUE : 0;
    f->deadline_ns = f->deadline_ns ? DUE : 0;
}

static void flow_event(struct world *w, unsigned side, const struct vfmig_flow_event *event)
{
    struct side *s = &w->side[side];
    struct vfmig_flow_actions actions;

    if (!s->flow_active)
        return;
    if (event->kind == VFMIG_FLOW_EVENT_UNWIND)
        s->fell = 1;
    if (vfmig_flow_step(&s->flow, event, event->kind == VFMIG_FLOW_EVENT_TICK ? LATE : NOW,
                        &actions))
        return;
    forget_time(&s->flow);
    if (actions.count + 1 >= VFMIG_FLOW_MAX_ACTIONS)
        broke(w, "shell: the list of actions is long enough", vfmig_row_name(s->flow.row));
    for (uint32_t i = 0; i < actions.count; i++)
        flow_action(w, side, &actions.list[i]);
}

/* --- the shell of the handover --- */

static void send(struct world *w, unsigned side, const struct vfmig_ho_msg *msg)
{
    struct side *s = &w->side[side];

    if (msg->kind == VFMIG_HO_MSG_GRANT)
        w->granted = 1;
    if (w->link == LINK_UP && s->queued < QUEUE_MAX)
        s->queue[s->queued++] = (struct message){msg->kind, msg->record, msg->memory};
}

static void source_asked(struct world *w, unsigned flags)
{
    struct side *s = &w->side[SRC];

    if (flags & VFMIG_HO_ACT_RELEASE)
        flow_kind(w, SRC, VFMIG_FLOW_EVENT_RELEASE);
    if (flags & VFMIG_HO_ACT_RESUME) {
        s->fell = 1;
        flow_kind(w, SRC, VFMIG_FLOW_EVENT_UNWIND);
    }
}

static void destination_asked(struct world *w, unsigned flags)
{
    struct side *s = &w->side[DST];

    if (flags & (VFMIG_HO_ACT_RELEASE | VFMIG_HO_ACT_DROP_LOAD))
        flow_kind(w, DST, VFMIG_FLOW_EVENT_UNWIND);
    if (flags & VFMIG_HO_ACT_PREPARE) {
        if (s->flow.row == VFMIG_ROW_LOADED)
            flow_kind(w, DST, VFMIG_FLOW_EVENT_PREPARE);
        else if (!(flags & VFMIG_HO_ACT_RUN)) /* both: the deliberate fault run-before-grant */
            handover_kind(w, DST, VFMIG_HO_EVENT_PREPARED);
    }
    if (flags & VFMIG_HO_ACT_RUN && s->flow.row != VFMIG_ROW_PREPARED)
        s->run_early = s->flow_active;
    else if (flags & VFMIG_HO_ACT_RUN)
        flow_kind(w, DST, VFMIG_FLOW_EVENT_RUN);
}

static void handover_event(struct world *w, unsigned side, const struct vfmig_ho_event *event)
{
    struct side *s = &w->side[side];
    struct vfmig_ho_actions actions;

    if (vfmig_handover_step(&s->h, event, &actions))
        return;
    if (actions.journal) {
        if (actions.flags & ~VFMIG_HO_ACT_DROP_LOAD || actions.send.kind)
            broke(w, "journal: nothing is done before its record is durable",
                  vfmig_ho_record_name(actions.journal));
        return;
    }
    if (side == SRC)
        source_asked(w, actions.flags);
    else
        destination_asked(w, actions.flags);
    if (actions.send.kind)
        send(w, side, &actions.send);
}

/* --- moves --- */

static void record_written(struct world *w, unsigned side, bool done)
{
    struct side *s = &w->side[side];
    bool offered = done && side == SRC && s->h.pending == VFMIG_HO_RECORD_OFFERED;

    handover_kind(w, side, done ? VFMIG_HO_EVENT_JOURNAL_DONE : VFMIG_HO_EVENT_JOURNAL_FAILED);
    if (offered && s->h.state == VFMIG_HO_SRC_OFFERED && !s->h.pending) {
        s->flow_active = 1;
        flow_kind(w, SRC, VFMIG_FLOW_EVENT_START);
    }
}

static void cut_link(struct world *w, bool loses)
{
    w->link = LINK_DOWN;
    w->cut |= loses || !w->sent;
    for (unsigned side = 0; side < 2; side++) {
        w->side[side].queued = 0;
        memset(w->side[side].queue, 0, sizeof(w->side[side].queue));
        w->side[side].notice = w->side[side].alive;
    }
}

/* A process begins: nothing is under way. */
static void side_fresh(struct side *s, unsigned side, const struct scope *scope)
{
    uint32_t features[DEVICES_MAX];

    for (uint32_t i = 0; i < scope->devices; i++)
        features[i] = scope->features[i];
    vfmig_flow_init(&s->flow, side == SRC ? VFMIG_FLOW_SOURCE : VFMIG_FLOW_DESTINATION,
                    scope->devices, features, LIMIT_NS, LIMIT_NS);
    s->flow.quiet_log = side == SRC && scope->quiet_log;
    for (uint32_t i = 0; i < scope->devices; i++)
        dev_fresh(s, i);
}

static void crash(struct world *w, unsigned side, bool durable)
{
    struct side *s = &w->side[side];

    if (durable)
        s->disk = s->h.pending;
    cut_link(w, /* loses= */ true);
    *s = (struct side){.disk = s->disk, .returned = s->returned};
    side_fresh(s, side, the_scope);
    if (side == SRC)
        w->tracking = 0;
}

static void come_back(struct world *w, unsigned side)
{
    struct side *s = &w->side[side];
    bool listens = side == DST && s->disk == VFMIG_HO_RECORD_NONE;

    s->alive = s->returned = 1;
    vfmig_handover_init(&s->h, side == SRC ? VFMIG_HO_SOURCE : VFMIG_HO_DESTINATION,
                        listens ? NULL : guest_id, listens ? 0 : 1, s->disk, /* memory= */ false);
    if (s->disk != VFMIG_HO_RECORD_NONE)
        handover_kind(w, side, VFMIG_HO_EVENT_START);
}

static void notice(struct world *w, unsigned side)
{
    struct side *s = &w->side[side];

    s->notice = 0;
    handover_kind(w, side, VFMIG_HO_EVENT_LINK_LOST);
    if (side == DST && s->h.state == VFMIG_HO_DST_LISTEN)
        flow_kind(w, DST, VFMIG_FLOW_EVENT_UNWIND);
}

static void deliver(struct world *w, unsigned side, bool again)
{
    struct side *from = &w->side[!side], *s = &w->side[side];
    struct message m = from->queue[0];
    struct vfmig_ho_event event = {.kind = VFMIG_HO_EVENT_MESSAGE};
    bool offered = s->h.state != VFMIG_HO_DST_LISTEN;

    if (!again) {
        from->queued--;
        from->queue[0] = from->queue[1];
        from->queue[1] = (struct message){0};
    }
    event.msg =
        (struct vfmig_ho_msg){.epoch = 1, .kind = m.kind, .record = m.record, .memory = m.memory};
    memcpy(event.msg.id, guest_id, sizeof(guest_id));
    handover_event(w, side, &event);
    bool loads =
        s->flow_active && !s->flow.halted && vfmig_flow_current(&s->flow) != VFMIG_STEP_DROP;
    if (side == DST && !offered && !loads)
        handover_kind(w, DST, VFMIG_HO_EVENT_LOAD_FAILED);
}

static void cancel(struct world *w, unsigned side)
{
    struct side *s = &w->side[side];

    handover_kind(w, side, VFMIG_HO_EVENT_ABORT);
    if (side == DST && s->h.state == VFMIG_HO_DST_LISTEN)
        flow_kind(w, DST, VFMIG_FLOW_EVENT_UNWIND);
}

static void tick(struct world *w, unsigned side)
{
    struct side *s = &w->side[side];

    for (uint32_t i = 0; i < s->flow.device_count; i++)
        if (s->dev[i].slow == SLOW_LATE)
            s->dev[i].slow = SLOW_TOLD;
    flow_kind(w, side, VFMIG_FLOW_EVENT_TICK);
    if (s->idle_hangs && !(s->flow.running & BIT(VIOMMU_IDLE)))
        s->works &= ~BIT(VIOMMU_IDLE);
}

static void move_device(struct world *w, const struct move *move)
{
    struct device *d = &w->side[move->side].dev[move->arg];

    switch ((enum move_kind)move->kind) {
    case MOVE_CHANGE:
        dev_done(w, move->side, move->arg, 0);
        break;
    case MOVE_CHANGE_FAIL:
        dev_done(w, move->side, move->arg, -EIO);
        break;
    case MOVE_CHANGE_SLOW:
        d->slow = SLOW_LATE;
        break;
    case MOVE_CHANGE_HANG:
        d->slow = SLOW_NEVER;
        break;
    case MOVE_ABORT_DMA:
        dev_event(w, move->side, move->arg, (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_TICK},
                  d->m.half_ns);
        break;
    case MOVE_DRAIN_LATE:
        dev_event(w, move->side, move->arg, (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_TICK},
                  d->m.deadline_ns);
        break;
    case MOVE_PAGE_FAULT:
        w->page_faults--;
        d->fault = FAULT_OPEN;
        break;
    case MOVE_PAGE_ANSWER:
        d->fault = FAULT_NONE;
        break;
    case MOVE_DATA:
    case MOVE_DATA_FAIL:
    case MOVE_DATA_CUT:
        d->data = 0;
        d->complete = move->side == DST && move->kind == MOVE_DATA;
        flow_event(w, move->side,
                   &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DATA_DONE,
                                              .device = move->arg,
                                              .err = move->kind == MOVE_DATA ? 0 : -EIO});
        break;
    default:
        abort();
    }
}

static void move_process(struct world *w, const struct move *move)
{
    struct side *s = &w->side[move->side];

    switch ((enum move_kind)move->kind) {
    case MOVE_JOURNAL:
        s->disk = s->h.pending;
        record_written(w, move->side, true);
        break;
    case MOVE_JOURNAL_FAIL:
        if (move->arg)
            s->disk = s->h.pending;
        record_written(w, move->side, false);
        break;
    case MOVE_CRASH:
        crash(w, move->side, move->arg);
        break;
    case MOVE_RETURN:
        come_back(w, move->side);
        break;
    case MOVE_BOOT:
        s->vcpus = 1;
        w->stale = 1;
        break;
    case MOVE_DELIVER:
    case MOVE_DOUBLE:
        deliver(w, move->side, move->kind == MOVE_DOUBLE);
        break;
    case MOVE_LOSE:
        w->side[!move->side].queued--;
        w->side[!move->side].queue[0] = w->side[!move->side].queue[1];
        w->side[!move->side].queue[1] = (struct message){0};
        break;
    case MOVE_LINK_CUT:
        cut_link(w, move->arg);
        break;
    case MOVE_LEAVE:
        cut_link(w, /* loses= */ false);
        s->notice = 0;
        break;
    case MOVE_NOTICE:
        notice(w, move->side);
        break;
    case MOVE_LINK_UP:
        w->link = LINK_UP;
        for (unsigned side = 0; side < 2; side++)
            handover_kind(w, !side, VFMIG_HO_EVENT_LINK_UP);
        break;
    default:
        abort();
    }
}

static void make(struct world *w, const struct move *move)
{
    struct side *s = &w->side[move->side];

    switch ((enum move_kind)move->kind) {
    case MOVE_START:
        handover_kind(w, SRC, VFMIG_HO_EVENT_START);
        break;
    case MOVE_WORK:
        end_work(w, move->side, move->arg, 0);
        break;
    case MOVE_WORK_FAIL:
    case MOVE_WORK_CUT:
        end_work(w, move->side, move->arg, -EIO);
        break;
    case MOVE_IDLE_HANG:
        s->idle_hangs = 1;
        break;
    case MOVE_TICK:
        tick(w, move->side);
        break;
    case MOVE_AGAIN:
        w->rounds--;
        flow_kind(w, SRC, VFMIG_FLOW_EVENT_AGAIN);
        break;
    case MOVE_GO:
        flow_kind(w, SRC, VFMIG_FLOW_EVENT_GO);
        break;
    case MOVE_CANCEL:
        cancel(w, move->side);
        break;
    case MOVE_RETRY:
        handover_kind(w, move->side, VFMIG_HO_EVENT_RETRY);
        break;
    case MOVE_FENCE:
        w->fenced = 1;
        handover_kind(w, DST, VFMIG_HO_EVENT_FENCED);
        break;
    case MOVE_DISCARD:
        handover_kind(w, SRC, VFMIG_HO_EVENT_DISCARD);
        break;
    default:
        if (move->kind >= MOVE_CHANGE && move->kind <= MOVE_DATA_CUT)
            move_device(w, move);
        else
            move_process(w, move);
    }
}

/* Devices whose change is over tell the flow, unless this side writes its journal just then. */
static void tell_answers(struct world *w)
{
    bool again = true;

    while (again && !w->broken) {
        again = false;
        for (unsigned side = 0; side < 2; side++) {
            struct side *s = &w->side[side];
            for (uint32_t i = 0; i < s->flow.device_count; i++) {
                struct device *d = &s->dev[i];
                if (!d->answered || s->h.pending)
                    continue;
                struct vfmig_flow_event event = {.kind = VFMIG_FLOW_EVENT_DEVICE_DONE,
                                                 .device = i,
                                                 .state = vfmig_dev_state(&d->m),
                                                 .err = d->err};
                d->answered = 0;
                d->err = 0;
                flow_event(w, side, &event);
                again = true;
            }
        }
    }
}

/* Whoever may write to memory does it all the time. */
void world_apply_writes(struct world *w)
{
    const struct side *s = &w->side[SRC];
    bool writes = s->vcpus && !s->returned;

    for (uint32_t i = 0; i < s->flow.device_count; i++)
        writes |= s->alive && !s->returned && !vfmig_dev_is_quiet(&s->dev[i].m);
    if (writes)
        w->dirty = 1;
}

bool world_move(struct world *w, const struct move *move)
{
    if (move->kind == MOVE_LOSE || move->kind == MOVE_DOUBLE)
        w->messages--;
    else if (move_is_fault(move))
        w->faults--;
    make(w, move);
    tell_answers(w);
    world_apply_writes(w);
    if (!w->broken)
        check_state(w);
    return !w->broken;
}

void world_start(struct world *w, const struct scope *scope)
{
    memset(w, 0, sizeof(*w));
    the_scope = scope;
    for (unsigned side = 0; side < 2; side++) {
        side_fresh(&w->side[side], side, scope);
        w->side[side].alive = 1;
    }
    vfmig_handover_init(&w->side[SRC].h, VFMIG_HO_SOURCE, guest_id, 1, VFMIG_HO_RECORD_NONE, true);
    vfmig_handover_init(&w->side[DST].h, VFMIG_HO_DESTINATION, NULL, 0, VFMIG_HO_RECORD_NONE,
                        false);
    w->side[SRC].vcpus = 1;
    w->known = 1; /* nothing of memory was sent */
    w->rounds = scope->rounds;
    w->page_faults = scope->page_faults;
    w->faults = scope->faults;
    w->messages = scope->messages;
    /* The verdict has come: the destination began before the source may. */
    handover_kind(w, DST, VFMIG_HO_EVENT_START);
    w->side[DST].flow_active = 1;
    flow_kind(w, DST, VFMIG_FLOW_EVENT_START);
    tell_answers(w);
    world_apply_writes(w);
}
