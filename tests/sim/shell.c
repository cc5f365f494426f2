/* SPDX-License-Identifier: BSD-3-Clause */
/* The control threads of both sides: they drive the real machines as engine/drive.c, source.c and
 * destination.c do, in one thread and without blocking. */
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/sabotage.h"
#include "core/converge.h"
#include "core/state.h"

#define DEVICE_LIMIT_NS (100 * MS)
#define VIOMMU_LIMIT_NS (120 * MS)

static const char *const side_names[] = {"source", "destination"};

static void on_flow_action(unsigned side, const struct vfmig_flow_action *action);
static void on_handover(unsigned side, const struct vfmig_ho_actions *actions);

/* --- a process begins, an attempt begins --- */

void side_fresh(unsigned side)
{
    struct side *s = &sim.side[side];

    for (unsigned d = 0; d < DEVICES; d++)
        device_fresh(side, d);
    s->disk.exists = true;
}

static void attempt_fresh(unsigned side)
{
    struct side *s = &sim.side[side];

    for (unsigned i = 0; i < DEVICES; i++) {
        struct device *d = &s->dev[i];
        device_drop(side, i);
        d->segments = d->bytes = 0;
        d->ended = d->reset_done = 0;
    }
    s->cut = false;
    memset(s->inbox_full, 0, sizeof(s->inbox_full));
    memset(s->doubt, 0, sizeof(s->doubt));
    memset(s->round_seen, 0, sizeof(s->round_seen));
    memset(s->pages_got, 0, sizeof(s->pages_got));
    memset(s->zero_got, 0, sizeof(s->zero_got));
    memset(s->pages_sent, 0, sizeof(s->pages_sent));
    memset(s->zero_sent, 0, sizeof(s->zero_sent));
    memset(s->sending, 0, sizeof(s->sending));
    s->final_round = s->round = s->stop_round = s->works = 0;
    s->abort = s->run_early = s->closing = false;
    s->answer_at = s->retry_at = s->reconnect_at = s->close_at = s->standstill_at = 0;
    vfmig_flow_init(&s->flow, side == SRC ? VFMIG_FLOW_SOURCE : VFMIG_FLOW_DESTINATION, DEVICES,
                    sim.features, DEVICE_LIMIT_NS, VIOMMU_LIMIT_NS);
    s->flow.quiet_log = side == SRC && sim.seed % 4 == 0;
}

int journal_open(unsigned side, bool memory)
{
    struct side *s = &sim.side[side];
    struct vfmig_journal_entry entry = {.pid = s->life, .time_ns = sim.now, .memory = memory};
    struct vfmig_error error = {0};

    memset(&s->log, 0, sizeof(s->log));
    disk_store(&s->disk, &s->log.store);
    s->log.role = side == SRC ? VFMIG_HO_SOURCE : VFMIG_HO_DESTINATION;
    memcpy(s->log.id, guest_id, sizeof(s->log.id));
    snprintf(s->log.path, sizeof(s->log.path), "%s", side_names[side]);
    int ret = vfmig_journal_log_take_up(&s->log, &error);
    if (ret == -EBADMSG || ret == -ENOTSUP)
        broke("journal", "%s: %s", side_names[side], error.text);
    if (ret == 0)
        ret = vfmig_journal_log_opened(&s->log, &entry, &error);
    s->journal_open = ret == 0;
    const struct vfmig_journal_entry *last = &s->log.last;
    if (ret == 0 && last->record &&
        (last->epoch > EPOCHS_MAX || !(s->disk.asked[last->epoch] & (1u << last->record))))
        broke("journal", "%s reads %s of attempt %u, which was never written", side_names[side],
              vfmig_ho_record_name(last->record), last->epoch);
    say("%s opens its journal: %d, %s", side_names[side], ret,
        vfmig_ho_record_name(s->log.last.record));
    return ret;
}

/* --- the flow --- */

void flow_kind(unsigned side, enum vfmig_flow_event_kind kind)
{
    flow_event(side, &(struct vfmig_flow_event){.kind = kind});
}

void flow_event(unsigned side, const struct vfmig_flow_event *event)
{
    struct side *s = &sim.side[side];
    struct vfmig_flow_actions actions;

    if (!s->flow_active)
        return;
    if (vfmig_flow_step(&s->flow, event, sim.now, &actions))
        return;
    for (uint32_t i = 0; i < actions.count; i++) {
        fault_point(side);
        on_flow_action(side, &actions.list[i]);
    }
}

static void each_device(unsigned side, const struct vfmig_flow_action *action)
{
    struct side *s = &sim.side[side];
    bool here = side == SRC && s->h.state != VFMIG_HO_SRC_RELEASED;

    for (unsigned i = 0; i < DEVICES; i++) {
        if (!vfmig_devset_has(&action->devices, i))
            continue;
        if (action->kind == VFMIG_FLOW_ACT_GO) {
            job_add(side, i, JOB_GO, s->flow.want[i]);
        } else if (action->kind == VFMIG_FLOW_ACT_DATA) {
            job_add(side, i, JOB_DATA, action->arg);
        } else {
            say("%s gives device %u up", side_names[side], i);
            if (!action->arg && !s->dev[i].reset_done)
                broke("ladder", "%s gives device %u up, and has not tried to reset it",
                      side_names[side], i);
            if (side == sim.owner)
                sim.excused[i] = 1; /* and says so */
            if (action->arg)        /* it never answered: it is dealt with when it does */
                job_add(side, i, JOB_RECOVER,
                        here ? (unsigned)VFMIG_STATE_RUNNING : VFMIG_WANT_RESET);
        }
    }
}

static enum vfmig_converge_verdict judge(const struct side *s)
{
    struct vfmig_converge limit = {.limit_ns = 30 * MS, .deadline_ns = s->deadline_at};
    struct vfmig_converge_input in = {.memory_pages = PAGES,
                                      .dirty_pages_per_s = 1000,
                                      .bandwidth = UINT64_C(64) << 20,
                                      .channels = CHANNELS,
                                      .change_ns = MS,
                                      .devices = true,
                                      .stop_ns = MS,
                                      .rounds = s->round};

    for (unsigned i = 0; i < PAGE_WORDS; i++)
        in.dirty_pages += (uint64_t)__builtin_popcountll(s->known[i]);
    /* One that does not converge goes anyway: there is enough to be seen behind it. */
    if (s->round > 5)
        return VFMIG_CONVERGE_GO;
    return vfmig_converge_decide(&limit, &in, sim.now);
}

static void source_told(const struct vfmig_flow_action *action)
{
    struct side *s = &sim.side[SRC];

    switch (action->kind) {
    case VFMIG_FLOW_ACT_ASK: {
        enum vfmig_converge_verdict verdict = judge(s);
        if (verdict == VFMIG_CONVERGE_GIVE_UP)
            flow_event(SRC,
                       &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_FAIL, .err = -ETIME});
        else
            flow_kind(SRC,
                      verdict == VFMIG_CONVERGE_GO ? VFMIG_FLOW_EVENT_GO : VFMIG_FLOW_EVENT_AGAIN);
        break;
    }
    case VFMIG_FLOW_ACT_CHECK: /* there is more than was thought, now and then */
        if (s->round <= 5 && one_in(4)) {
            s->round = s->stop_round; /* a trial was one, too */
            flow_kind(SRC, VFMIG_FLOW_EVENT_AGAIN);
        } else {
            flow_kind(SRC, VFMIG_FLOW_EVENT_GO);
        }
        break;
    case VFMIG_FLOW_ACT_SENT:
        handover_kind(SRC, VFMIG_HO_EVENT_STOPPED);
        break;
    case VFMIG_FLOW_ACT_FAILED:
        handover_kind(SRC, VFMIG_HO_EVENT_ABORT);
        break;
    default:
        break;
    }
}

/* As engine/destination.c says it. */
static bool unoffered(const struct side *s)
{
    return s->h.state == VFMIG_HO_DST_LISTEN ||
           (s->h.state == VFMIG_HO_DST_REFUSED && s->flow_active &&
            vfmig_flow_current(&s->flow) != VFMIG_STEP_DROP);
}

static void destination_failed(void)
{
    struct side *s = &sim.side[DST];

    switch (vfmig_flow_current(&s->flow)) {
    case VFMIG_STEP_R3:
        handover_kind(DST, VFMIG_HO_EVENT_PREPARE_FAILED);
        break;
    case VFMIG_STEP_R4:
        s->flow_active = false;
        handover_kind(DST, VFMIG_HO_EVENT_RUN_FAILED);
        break;
    default:
        if (!unoffered(s))
            handover_kind(DST, VFMIG_HO_EVENT_LOAD_FAILED);
    }
}

static void attempt_over(void)
{
    struct side *s = &sim.side[DST];

    s->retry_at = 0;
    s->closing = s->linked;
    s->close_at = sim.now + 100 * MS;
    for (unsigned i = 0; i < DEVICES; i++)
        device_drop(DST, i);
}

static void destination_told(const struct vfmig_flow_action *action)
{
    struct side *s = &sim.side[DST];

    switch (action->kind) {
    case VFMIG_FLOW_ACT_LOADED:
        handover_kind(DST, VFMIG_HO_EVENT_LOADED);
        break;
    case VFMIG_FLOW_ACT_PREPARED:
        if (s->run_early)
            flow_kind(DST, VFMIG_FLOW_EVENT_RUN);
        else
            handover_kind(DST, VFMIG_HO_EVENT_PREPARED);
        break;
    case VFMIG_FLOW_ACT_FAILED:
        destination_failed();
        break;
    case VFMIG_FLOW_ACT_ENDED:
        if (s->flow.parked)
            attempt_over();
        else
            handover_kind(DST, VFMIG_HO_EVENT_RUN_DONE);
        break;
    default:
        break;
    }
}

static void on_flow_action(unsigned side, const struct vfmig_flow_action *action)
{
    struct side *s = &sim.side[side];

    switch (action->kind) {
    case VFMIG_FLOW_ACT_ENTER:
        say("%s enters %s", side_names[side], vfmig_row_name(action->arg));
        break;
    case VFMIG_FLOW_ACT_GO:
    case VFMIG_FLOW_ACT_DATA:
    case VFMIG_FLOW_ACT_LOST:
        each_device(side, action);
        break;
    case VFMIG_FLOW_ACT_WORK:
        work_begins(side, action->arg);
        break;
    case VFMIG_FLOW_ACT_ABORT:
        s->abort = true;
        break;
    case VFMIG_FLOW_ACT_FAILED:
        say("%s fails in %s: %u", side_names[side], vfmig_row_name(s->flow.row), action->arg);
        break;
    case VFMIG_FLOW_ACT_ENDED:
        s->flow_active = false;
        break;
    default:
        break;
    }
    if (side == SRC)
        source_told(action);
    else
        destination_told(action);
}

/* --- the handover --- */

static int write_record(unsigned side, uint32_t record)
{
    struct side *s = &sim.side[side];
    struct vfmig_journal_entry entry = {
        .epoch = s->h.epoch, .record = (uint8_t)record, .pid = s->life, .time_ns = sim.now};
    struct vfmig_error error = {0};

    fault_point(side);
    if (entry.epoch <= EPOCHS_MAX)
        s->disk.asked[entry.epoch] |= 1u << record;
    int ret = s->journal_open ? vfmig_journal_log_append(&s->log, &entry, &error) : -EBADF;
    say("%s writes %s: %d", side_names[side], vfmig_ho_record_name(record), ret);
    return ret;
}

/* Rule 2 of docs/handover.md: what a message or an action stands for is on record before. */
static void check_record(unsigned side, const struct vfmig_ho_actions *actions)
{
    const struct side *s = &sim.side[side];
    uint8_t kind = actions->send.kind, record = s->log.last.record;
    bool missing = (kind == VFMIG_HO_MSG_GRANT && record != VFMIG_HO_RECORD_GRANT_SENT) ||
                   (kind == VFMIG_HO_MSG_READY && record != VFMIG_HO_RECORD_READY) ||
                   (kind == VFMIG_HO_MSG_RUNNING && record != VFMIG_HO_RECORD_RUNNING) ||
                   (kind == VFMIG_HO_MSG_RELEASED && record != VFMIG_HO_RECORD_RELEASED) ||
                   (actions->flags & VFMIG_HO_ACT_RUN && record != VFMIG_HO_RECORD_RUNNING);

    if (side == DST && kind == VFMIG_HO_MSG_READY && sim.sealed != s->h.epoch)
        broke("journal",
              "the destination is ready, and the source has not said that it has stopped");
    if (kind && actions->send.memory && s->returned && !s->received)
        broke("journal", "%s came back without the memory, and says that it has it",
              side_names[side]);
    if (missing)
        broke("journal", "%s %s, and has %s on record", side_names[side],
              kind ? vfmig_ho_msg_name(kind) : "RUN", vfmig_ho_record_name(record));
}

static void handover_step(unsigned side, const struct vfmig_ho_event *event)
{
    struct side *s = &sim.side[side];
    struct vfmig_ho_actions actions;

    if (!s->handover_active)
        return;
    int ret = vfmig_handover_step(&s->h, event, &actions);
    while (ret == 0 && actions.journal) {
        struct vfmig_ho_event written = {.kind = VFMIG_HO_EVENT_JOURNAL_DONE};

        if (actions.flags & ~VFMIG_HO_ACT_DROP_LOAD || actions.send.kind)
            broke("journal", "%s acts before %s is durable", side_names[side],
                  vfmig_ho_record_name(actions.journal));
        if (write_record(side, actions.journal))
            written.kind = VFMIG_HO_EVENT_JOURNAL_FAILED;
        ret = vfmig_handover_step(&s->h, &written, &actions);
    }
    if (ret)
        return;
    check_record(side, &actions);
    if (actions.flags & VFMIG_HO_ACT_REPORT)
        say("%s reports %s", side_names[side], vfmig_ho_outcome_name(actions.outcome));
    if (actions.flags)
        on_handover(side, &actions);
    if (!actions.send.kind)
        return;
    fault_point(side);
    if (s->linked && s->generation == sim.generation) {
        say("%s sends %s", side_names[side], vfmig_ho_msg_name(actions.send.kind));
        send_message(side, &actions.send);
    }
}

void handover_kind(unsigned side, enum vfmig_ho_event_kind kind)
{
    handover_step(side, &(struct vfmig_ho_event){.kind = (uint8_t)kind});
}

void handover_msg(unsigned side, const struct vfmig_ho_msg *msg)
{
    fault_point(side);
    say("%s receives %s", side_names[side], vfmig_ho_msg_name(msg->kind));
    const struct vfmig_handover *h = &sim.side[side].h, before = *h;
    bool foreign = h->epoch && (memcmp(msg->id, h->id, sizeof(h->id)) ||
                                (side == SRC ? msg->epoch != h->epoch : msg->epoch < h->epoch));
    if (side == DST && !foreign && msg->kind == VFMIG_HO_MSG_SEAL)
        sim.sealed = msg->epoch;
    handover_step(side, &(struct vfmig_ho_event){.kind = VFMIG_HO_EVENT_MESSAGE, .msg = *msg});
    if (foreign && memcmp(h, &before, sizeof(before)))
        broke("stale", "%s of another attempt moves the %s", vfmig_ho_msg_name(msg->kind),
              side_names[side]);
}

static void on_handover(unsigned side, const struct vfmig_ho_actions *actions)
{
    struct side *s = &sim.side[side];

    if (side == SRC) {
        if (actions->flags & VFMIG_HO_ACT_RELEASE)
            flow_kind(SRC, VFMIG_FLOW_EVENT_RELEASE);
        if (actions->flags & VFMIG_HO_ACT_RESUME && s->flow_active)
            flow_kind(SRC, VFMIG_FLOW_EVENT_UNWIND);
        return;
    }
    if (actions->flags & (VFMIG_HO_ACT_RELEASE | VFMIG_HO_ACT_DROP_LOAD))
        flow_kind(DST, VFMIG_FLOW_EVENT_UNWIND);
    if (actions->flags & VFMIG_HO_ACT_PREPARE) {
        if (s->flow.row == VFMIG_ROW_LOADED)
            flow_kind(DST, VFMIG_FLOW_EVENT_PREPARE);
        else
            handover_kind(DST, VFMIG_HO_EVENT_PREPARED);
    }
    if (actions->flags & VFMIG_HO_ACT_RUN) {
        if (!s->flow_active && !s->flow.parked) {
            handover_kind(DST, VFMIG_HO_EVENT_RUN_DONE);
        } else if (s->flow.row == VFMIG_ROW_PREPARED) {
            oracle_takes_over(DST); /* from here on devices may write and vCPUs run */
            flow_kind(DST, VFMIG_FLOW_EVENT_RUN);
        } else {
            s->run_early = true;
        }
    }
}

/* --- the link --- */

void side_link_lost(unsigned side, uint32_t generation)
{
    struct side *s = &sim.side[side];

    if (!s->alive || !s->linked || generation != s->generation)
        return;
    s->linked = false;
    s->cut = true;
    say("%s loses the link", side_names[side]);
    handover_kind(side, VFMIG_HO_EVENT_LINK_LOST);
    if (side == SRC) {
        if (s->handover_active && vfmig_handover_waits(&s->h))
            s->reconnect_at = sim.now + 5 * MS;
        return;
    }
    if (s->flow_active && unoffered(s))
        flow_kind(DST, VFMIG_FLOW_EVENT_UNWIND);
    s->closing = false;
}

/* --- cancel --- */

void side_cancel(unsigned side)
{
    struct side *s = &sim.side[side];

    fault_struck(FAULT_CANCEL, side);
    if (side == DST && s->h.state == VFMIG_HO_DST_RUNNING && s->h.memory)
        return;
    if (s->handover_active)
        handover_kind(side, VFMIG_HO_EVENT_ABORT);
    if (side == DST && s->flow_active && unoffered(s))
        flow_kind(DST, VFMIG_FLOW_EVENT_UNWIND);
    s->cancelled = true;
}

/* --- the source's attempt --- */

void source_begins(void)
{
    struct side *s = &sim.side[SRC];

    if (s->began || !s->linked)
        return;
    s->began = true;
    vfmig_handover_init(&s->h, VFMIG_HO_SOURCE, guest_id, s->epoch, VFMIG_HO_RECORD_NONE,
                        /* memory= */ true);
    s->handover_active = true;
    handover_kind(SRC, VFMIG_HO_EVENT_START);
    if (s->h.state != VFMIG_HO_SRC_OFFERED)
        return;
    if (!source_sends_first()) {
        handover_kind(SRC, VFMIG_HO_EVENT_ABORT);
        return;
    }
    s->flow_active = true;
    flow_kind(SRC, VFMIG_FLOW_EVENT_START);
}

void source_connects(void)
{
    struct side *s = &sim.side[SRC];
    struct vfmig_hello hello = {.version_min = VFMIG_STREAM_VERSION,
                                .version_max = VFMIG_STREAM_VERSION,
                                .channel_count = CHANNELS,
                                .page_size = VFMIG_PAGE_SIZE};
    uint8_t out[VFMIG_HELLO_BYTES];

    if (!s->alive)
        return;
    attempt_fresh(SRC);
    s->handover_active = s->began = false;
    if (journal_open(SRC, /* memory= */ true))
        return;
    s->epoch = s->log.last.epoch + 1;
    s->deadline_at = sim.now + 1500 * MS;
    s->connect_until = sim.now + 200 * MS;
    sim.attempts++;
    if (!sim.side[DST].alive || sim.now < sim.partition_until)
        return;
    link_begin();
    s->generation = sim.generation;
    s->linked = true;
    memcpy(hello.migration_id, guest_id, sizeof(hello.migration_id));
    for (unsigned c = 0; c < CHANNELS; c++) {
        hello.channel = c;
        vfmig_hello_encode(out, &hello);
        send_record(SRC, c, VFMIG_RECORD_HELLO, out, sizeof(out), sizeof(out));
    }
    send_record(SRC, 0, VFMIG_RECORD_IDENTITY, "four devices", 12, 12);
}

/* --- the destination's --- */

bool destination_idle(void)
{
    const struct side *s = &sim.side[DST];
    uint8_t state = s->h.state;

    for (unsigned i = 0; i < DEVICES; i++)
        if (s->dev[i].job_count || s->dev[i].working)
            return false;
    return !s->flow_active && (!s->linked || s->closing) &&
           (!s->handover_active || state == VFMIG_HO_DST_LISTEN || state == VFMIG_HO_DST_REFUSED);
}

/* The journal decides what is known of this migration. */
static int take_up_journal(bool memory)
{
    struct side *s = &sim.side[DST];
    int ret = journal_open(DST, memory);

    s->handover_active = false;
    if (ret)
        return ret;
    const struct vfmig_journal_entry *last = &s->log.last;
    bool known = last->record != VFMIG_HO_RECORD_NONE;
    vfmig_handover_init(&s->h, VFMIG_HO_DESTINATION, known ? guest_id : NULL,
                        known ? last->epoch : 0, last->record, /* memory= */ false);
    s->handover_active = true;
    return 0;
}

void destination_asked(void)
{
    struct side *s = &sim.side[DST];
    struct vfmig_verdict verdict = {.accept = destination_idle() && !s->cancelled};
    uint8_t out[VFMIG_VERDICT_BYTES_MAX];

    if (verdict.accept) {
        attempt_fresh(DST);
        verdict.accept = take_up_journal(/* memory= */ true) == 0;
    }
    uint32_t old = s->generation;
    s->generation = sim.generation;
    uint32_t size = (uint32_t)vfmig_verdict_encode(out, &verdict);
    send_record(DST, 0, VFMIG_RECORD_VERDICT, out, size, size);
    if (!verdict.accept) {
        s->generation = old;
        return;
    }
    s->linked = s->received = true;
    handover_kind(DST, VFMIG_HO_EVENT_START);
    s->flow_active = true;
    flow_kind(DST, VFMIG_FLOW_EVENT_START);
}

void destination_message(const struct vfmig_ho_msg *msg)
{
    struct side *s = &sim.side[DST];
    bool loading = s->h.state == VFMIG_HO_DST_LOADING;

    handover_msg(DST, msg);
    bool loads =
        s->flow_active && !s->flow.halted && vfmig_flow_current(&s->flow) != VFMIG_STEP_DROP;
    if (!loading && s->h.state == VFMIG_HO_DST_LOADING && !loads)
        handover_kind(DST, VFMIG_HO_EVENT_LOAD_FAILED);
}

static bool receives(void)
{
    enum vfmig_step step = vfmig_flow_current(&sim.side[DST].flow);

    return !sim.side[DST].flow.halted &&
           (step == VFMIG_STEP_R0 || step == VFMIG_STEP_R1 || step == VFMIG_STEP_R2);
}

/* The first message of a new connection: a source that lost its link, or came back, asks. */
static void asked_again(const struct vfmig_ho_msg *msg)
{
    struct side *s = &sim.side[DST];

    if (!s->handover_active || !s->h.epoch) {
        if (!destination_idle()) {
            link_reset();
            return;
        }
        attempt_fresh(DST);
        if (take_up_journal(/* memory= */ false)) {
            link_reset();
            return;
        }
        handover_kind(DST, VFMIG_HO_EVENT_START);
    }
    /* What hangs on the old link learns first that it is gone, and ends with what came over it. */
    if (s->flow_active && (s->flow.running || receives())) {
        uint32_t generation = s->generation;
        link_reset();
        side_link_lost(DST, generation);
        return;
    }
    if (s->linked) {
        s->linked = false;
        handover_kind(DST, VFMIG_HO_EVENT_LINK_LOST);
    }
    s->linked = true;
    s->closing = false;
    s->generation = sim.generation;
    handover_kind(DST, VFMIG_HO_EVENT_LINK_UP);
    destination_message(msg);
}

void destination_heard(const struct vfmig_ho_msg *msg)
{
    struct side *s = &sim.side[DST];

    if (s->linked && s->generation == sim.generation)
        destination_message(msg);
    else
        asked_again(msg);
}
