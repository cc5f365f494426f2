/* SPDX-License-Identifier: BSD-3-Clause */
/* The source: its control thread and its public face. */
#include "engine/source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "io/sock.h"

#define RETRY_NS     UINT64_C(1000000000)
#define RECONNECT_NS UINT64_C(200000000)
#define FIRST_TRY_NS UINT64_C(10000000)
#define STANDSTILL_TIMES 10u
#define REPORT_NS    UINT64_C(1000000000) /* how long the destination's times are waited for */

/* --- what the machines ask for --- */

/* Why the deadline was missed, in figures that say what could be done about it. */
static void deadline_error(struct engine *e, struct vfmig_error *error)
{
    const struct vfmig_prediction *predicted = &e->progress.prediction;

    if (!predicted->bound_ns)
        vfmig_error_set(error, -ETIME, VFMIG_ORIGIN_LOCAL, 0,
                        "the deadline passed before the guest's memory was sent");
    else
        vfmig_error_set(error, -ETIME, VFMIG_ORIGIN_LOCAL, 0,
                        "the deadline passed: the downtime would be up to %llu ms, the limit is %llu;"
                        " the guest dirties %llu MiB/s of memory, %llu can be sent",
                        (unsigned long long)(predicted->bound_ns / 1000000),
                        (unsigned long long)(e->options.downtime_limit_ns / 1000000),
                        (unsigned long long)(e->progress.dirty_bytes >> 20),
                        (unsigned long long)(e->progress.rate_bytes >> 20));
}

static void recheck_error(const struct engine *e, struct vfmig_error *error)
{
    vfmig_error_set(error, -ETIME, VFMIG_ORIGIN_LOCAL, 0,
                    "stopped %u times in vain: with the guest stopped the downtime would be up to %llu ms,"
                    " the limit is %llu", e->progress.returns + 1,
                    (unsigned long long)(e->progress.prediction.bound_ns / 1000000),
                    (unsigned long long)(e->options.downtime_limit_ns / 1000000));
}

/* A file takes every copy of a page that is sent, so that more rounds cost room and save little. */
#define FILE_ROUNDS 2u

static void decide(struct engine *e)
{
    struct vfmig_error error = {0};
    enum vfmig_converge_verdict verdict = engine_decide(e);

    if (verdict == VFMIG_CONVERGE_AGAIN && e->file && e->rounds >= FILE_ROUNDS)
        verdict = VFMIG_CONVERGE_GO;
    switch (verdict) {
    case VFMIG_CONVERGE_AGAIN:
        if (engine_pause(e))
            e->again_at_ns = vfmig_now_ns() + engine_pause(e);
        else
            engine_flow_kind(e, VFMIG_FLOW_EVENT_AGAIN);
        engine_measure_journal(e); /* while the round runs */
        break;
    case VFMIG_CONVERGE_GO:
        engine_flow_kind(e, VFMIG_FLOW_EVENT_GO);
        break;
    default:
        deadline_error(e, &error);
        engine_note(e, &error);
        engine_flow(e, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_FAIL, .err = -ETIME});
    }
}

/* Once more, where the way back is short still. */
static void check(struct engine *e)
{
    struct vfmig_error error = {0};

    switch (engine_recheck(e)) {
    case VFMIG_CONVERGE_AGAIN:
        engine_flow_kind(e, VFMIG_FLOW_EVENT_AGAIN);
        break;
    case VFMIG_CONVERGE_GO:
        engine_flow_kind(e, VFMIG_FLOW_EVENT_GO);
        break;
    default:
        recheck_error(e, &error);
        engine_note(e, &error);
        engine_flow(e, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_FAIL, .err = -ETIME});
    }
}

static enum vfmig_migrate_state unwound_state(const struct engine *e)
{
    return e->cancelled ? VFMIG_MIGRATE_CANCELLED : VFMIG_MIGRATE_FAILED;
}

/* The guest is this side's and runs; the destination may still have to hear of it. */
static void unwound(struct engine *e)
{
    engine_throttle_off(e);
    engine_enter_step(e, VFMIG_STEP_END);
    if (e->file)
        vfmig_save_abandon(e->file);
    engine_state(e, unwound_state(e));
    e->tell_until_ns = vfmig_now_ns() + e->options.reconnect_ns;
    e->give_up_at_ns = e->linked ? vfmig_now_ns() + REPORT_NS : e->tell_until_ns;
}

static void completed(struct engine *e)
{
    engine_count_bytes(e);
    engine_downtime(e);
    engine_measure_judge(e);
    engine_enter_step(e, VFMIG_STEP_END);
    pthread_mutex_lock(&e->status_lock);
    memset(&e->progress.error, 0, sizeof(e->progress.error)); /* it came through after all */
    pthread_mutex_unlock(&e->status_lock);
    engine_state(e, VFMIG_MIGRATE_COMPLETED);
    e->give_up_at_ns = vfmig_now_ns() + REPORT_NS;
    e->finished = !engine_trace_awaited(e);
}

static void flow_ended(struct engine *e)
{
    if (e->handover.state != VFMIG_HO_SRC_RELEASED) {
        unwound(e);
        return;
    }
    pthread_mutex_lock(&e->inbox_lock);
    bool told = e->report.valid;
    pthread_mutex_unlock(&e->inbox_lock);
    if (told)
        completed(e);
    else
        e->give_up_at_ns = vfmig_now_ns() + REPORT_NS;
}

static void on_action(struct engine *e, const struct vfmig_flow_action *action)
{
    switch (action->kind) {
    case VFMIG_FLOW_ACT_ASK:
        decide(e);
        break;
    case VFMIG_FLOW_ACT_CHECK:
        check(e);
        break;
    case VFMIG_FLOW_ACT_SENT:
        engine_stamp(e, &e->stamps.sent);
        engine_handover(e, VFMIG_HO_EVENT_STOPPED);
        break;
    case VFMIG_FLOW_ACT_FAILED:
        engine_throttle_off(e); /* before anything else: its failure is no reason to keep it slow */
        engine_handover(e, VFMIG_HO_EVENT_ABORT);
        break;
    case VFMIG_FLOW_ACT_ENDED:
        flow_ended(e);
        break;
    default:
        break;
    }
}

static void note_outcome(struct engine *e, uint8_t outcome)
{
    struct vfmig_error error = {0};

    if (outcome == VFMIG_HO_OUTCOME_DIED_AT_DESTINATION)
        vfmig_error_set(&error, -EOWNERDEAD, VFMIG_ORIGIN_PEER, 0,
                        "the guest ran at the destination and died there");
    else if (outcome == VFMIG_HO_OUTCOME_CONFLICT)
        vfmig_error_set(&error, -EEXIST, VFMIG_ORIGIN_PEER, 0,
                        "the destination runs a guest that was taken back: stop one of them");
    else if (outcome == VFMIG_HO_OUTCOME_SAVED && e->handover.record == VFMIG_HO_RECORD_SAVED)
        source_file_saved(e);
    engine_note(e, &error);
    if (outcome == VFMIG_HO_OUTCOME_DIED_AT_DESTINATION && e->handover.state == VFMIG_HO_SRC_GRANTED)
        engine_state(e, VFMIG_MIGRATE_UNDECIDED);
}

static void on_handover(struct engine *e, const struct vfmig_ho_actions *actions)
{
    if (actions->flags & VFMIG_HO_ACT_RELEASE) {
        if (e->vm.ops->released)
            e->vm.ops->released(e->vm.opaque);
        engine_flow_kind(e, VFMIG_FLOW_EVENT_RELEASE);
    }
    if (actions->flags & VFMIG_HO_ACT_RESUME) {
        if (e->flow_active)
            engine_flow_kind(e, VFMIG_FLOW_EVENT_UNWIND);
        else if (e->progress.state == VFMIG_MIGRATE_ACTIVE)
            unwound(e);
    }
    if (actions->flags & VFMIG_HO_ACT_REPORT)
        note_outcome(e, actions->outcome);
}

/* --- events --- */

static void link_lost(struct engine *e, const struct engine_event *event)
{
    struct vfmig_error error = event->error;

    if (!e->linked || event->generation != e->generation)
        return;
    e->linked = false;
    pthread_mutex_lock(&e->inbox_lock);
    e->report_lost = true;
    pthread_cond_broadcast(&e->inbox_wake);
    pthread_mutex_unlock(&e->inbox_lock);
    engine_count_bytes(e);
    if (!error.code)
        vfmig_error_set(&error, -ECONNRESET, VFMIG_ORIGIN_PEER, 0,
                        "the destination closed the connection");
    engine_trace(e, LINK_LOST, VFMIG_I(error.code), VFMIG_S(error.text));
    if (e->handover.state != VFMIG_HO_SRC_RELEASED && e->progress.state == VFMIG_MIGRATE_ACTIVE)
        engine_note(e, &error);
    engine_handover(e, VFMIG_HO_EVENT_LINK_LOST);
    if (vfmig_handover_waits(&e->handover)) {
        e->reconnect_at_ns = vfmig_now_ns() + FIRST_TRY_NS;
        if (e->progress.state == VFMIG_MIGRATE_ACTIVE && !e->flow_active)
            e->give_up_at_ns = vfmig_now_ns() + e->options.reconnect_ns;
        else if (e->handover.state == VFMIG_HO_SRC_GRANTED)
            e->give_up_at_ns = vfmig_now_ns() + e->options.reconnect_ns;
        else if (e->progress.state != VFMIG_MIGRATE_ACTIVE)
            e->give_up_at_ns = e->tell_until_ns; /* unwound before the loss was seen */
    }
}

static void refused(struct engine *e)
{
    struct vfmig_error error = {0};

    pthread_mutex_lock(&e->inbox_lock);
    vfmig_error_set(&error, -EREMOTEIO, VFMIG_ORIGIN_PEER, 0, "the destination refused%s%s",
                    e->peer_reason[0] ? ": " : "", e->peer_reason);
    bool why = e->peer_reason[0];
    pthread_mutex_unlock(&e->inbox_lock);
    /* What it says is the cause; that connections broke is a consequence. */
    if (why && e->failure.origin == VFMIG_ORIGIN_PEER)
        memset(&e->failure, 0, sizeof(e->failure));
    engine_note(e, &error);
}

static void message(struct engine *e, const struct engine_event *event)
{
    if (event->msg.kind == VFMIG_HO_MSG_READY && !e->stamps.ready)
        e->stamps.ready = event->at_ns;
    if (event->msg.kind == VFMIG_HO_MSG_REFUSED && e->progress.state == VFMIG_MIGRATE_ACTIVE)
        refused(e);
    engine_handover_msg(e, &event->msg);
}

static void cancel(struct engine *e)
{
    struct vfmig_error error = {0};

    if (e->progress.state != VFMIG_MIGRATE_ACTIVE && e->progress.state != VFMIG_MIGRATE_UNDECIDED)
        return;
    if (!e->failure.code)
        e->cancelled = true;
    vfmig_error_set(&error, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0, "the migration was cancelled");
    engine_note(e, &error);
    if (!source_file_abort(e))
        engine_handover(e, VFMIG_HO_EVENT_ABORT);
}

static void handle(struct engine *e, const struct engine_event *event)
{
    switch (event->kind) {
    case ENGINE_EVENT_FLOW:
        if (event->flow.err && !atomic_load(&e->abort) && e->flow.row < VFMIG_ROW_S6_ENTER)
            engine_note(e, &event->error);
        engine_flow(e, &event->flow);
        break;
    case ENGINE_EVENT_MESSAGE:
        message(e, event);
        break;
    case ENGINE_EVENT_LINK_LOST:
        link_lost(e, event);
        break;
    case ENGINE_EVENT_REPORT:
        if (!e->flow_active && e->handover.state == VFMIG_HO_SRC_RELEASED &&
            e->progress.state != VFMIG_MIGRATE_COMPLETED)
            completed(e);
        else if (e->progress.state == VFMIG_MIGRATE_COMPLETED)
            e->finished |= !engine_trace_awaited(e);
        break;
    case ENGINE_EVENT_RESOLVE:
        engine_resolve_asked(e);
        break;
    case ENGINE_EVENT_FILE:
        source_file_ended(e, &event->error);
        break;
    case ENGINE_EVENT_CANCEL:
        cancel(e);
        break;
    case ENGINE_EVENT_QUIT:
        e->quit = true;
        cancel(e);
        break;
    default:
        break;
    }
}

/* --- time --- */

static void try_again(struct engine *e)
{
    struct vfmig_error error = {0};
    bool idle = !e->flow_active || (e->flow.row >= VFMIG_ROW_WAIT && !e->flow.running);

    if (e->linked || !vfmig_handover_waits(&e->handover))
        return;
    /* What the old link still carries must have ended before it is taken away. */
    if (idle) {
        engine_link_free(e, /* bye= */ false);
        if (source_reconnect((struct vfmig_source *)e, &error) == 0) {
            engine_trace(e, LINK_UP);
            engine_handover(e, VFMIG_HO_EVENT_LINK_UP);
            return;
        }
    }
    e->reconnect_at_ns = vfmig_now_ns() + RECONNECT_NS;
}

static void gave_up(struct engine *e)
{
    bool open = e->progress.state == VFMIG_MIGRATE_ACTIVE || e->progress.state == VFMIG_MIGRATE_UNDECIDED;

    if (open && e->handover.state == VFMIG_HO_SRC_RELEASED && e->flow_active)
        return; /* what is left of its devices is being stopped: flow_ended() waits for a report again */
    if (open && e->handover.state == VFMIG_HO_SRC_RELEASED)
        completed(e); /* without the destination's times */
    else if (e->progress.state == VFMIG_MIGRATE_ACTIVE)
        engine_state(e, VFMIG_MIGRATE_UNDECIDED);
    else if (e->progress.state != VFMIG_MIGRATE_UNDECIDED)
        e->finished = true;
}

/* The guest stands still, and a destination that is there does not answer. Before the grant that is
 * a failure like any other; after it nobody may act on silence, so it is only told. */
static void check_answer(struct engine *e, uint64_t now)
{
    struct vfmig_error error = {0};
    uint8_t state = e->handover.state;
    bool waits = (state == VFMIG_HO_SRC_STOPPED || state == VFMIG_HO_SRC_GRANTED) && e->linked &&
                 !e->file && e->progress.state == VFMIG_MIGRATE_ACTIVE;

    if (!waits || state != e->answer_state)
        e->answer_at_ns = 0;
    e->answer_state = state;
    if (!waits)
        return;
    if (!e->answer_at_ns)
        e->answer_at_ns = now + engine_patience(e);
    if (!engine_due(&e->answer_at_ns, now))
        return;
    vfmig_error_set(&error, -ETIMEDOUT, VFMIG_ORIGIN_PEER, 0,
                    state == VFMIG_HO_SRC_STOPPED
                        ? "the destination has everything and does not say that it is ready"
                        : "the grant was sent and the destination, which is there, does not answer");
    engine_note(e, &error);
    if (state == VFMIG_HO_SRC_STOPPED)
        engine_handover(e, VFMIG_HO_EVENT_ABORT);
    else
        engine_state(e, VFMIG_MIGRATE_UNDECIDED);
}

/* Whoever is to blame (a device whose data has no end, a link that crawls): a guest that was to stand
 * still for a moment is not kept waiting for ever. With FORCE any downtime was agreed to. */
static void check_standstill(struct engine *e, uint64_t now)
{
    struct vfmig_error error = {0};
    uint64_t patience = STANDSTILL_TIMES * e->options.downtime_limit_ns + e->options.device_timeout_ns;

    if (e->flow.row < VFMIG_ROW_S4_TRIAL)
        e->stood_ns = 0;
    if (e->options.on_deadline == VFMIG_ON_DEADLINE_FORCE || !e->flow_active || e->failure.code ||
        e->flow.row < VFMIG_ROW_S4_TRIAL || e->flow.row >= VFMIG_ROW_HAND_OVER)
        return;
    pthread_mutex_lock(&e->status_lock);
    uint64_t since_ns = e->stamps.stop_asked;
    pthread_mutex_unlock(&e->status_lock);
    if (!since_ns || now < since_ns + patience + e->stood_ns) /* 0: on its way back already */
        return;
    vfmig_error_set(&error, -ETIME, VFMIG_ORIGIN_LOCAL, 0,
                    "the guest has stood still for %u times the limit of its downtime and one device "
                    "timeout", STANDSTILL_TIMES);
    engine_note(e, &error);
    engine_handover(e, VFMIG_HO_EVENT_ABORT);
}

/* A round that is under way when the deadline passes is not worth its end. With FORCE the switchover
 * needs all of memory sent once, so there the end of the round decides. */
static void check_deadline(struct engine *e, uint64_t now)
{
    struct vfmig_error error = {0};

    if (!e->options.deadline_ns || e->options.on_deadline == VFMIG_ON_DEADLINE_FORCE ||
        now < engine_deadline(e) || !engine_still_running(e) || e->failure.code)
        return;
    deadline_error(e, &error);
    engine_note(e, &error);
    engine_handover(e, VFMIG_HO_EVENT_ABORT);
}

static void on_time(struct engine *e)
{
    uint64_t now = vfmig_now_ns();

    engine_look(e, now);
    check_deadline(e, now);
    if (engine_due(&e->again_at_ns, now) && e->flow_active && e->flow.row == VFMIG_ROW_ASK)
        engine_flow_kind(e, VFMIG_FLOW_EVENT_AGAIN);
    check_answer(e, now);
    check_standstill(e, now);
    engine_tick(e, now);
    if (engine_due(&e->shutdown_at_ns, now) && e->flow_active && e->flow.running)
        engine_link_shutdown(e);
    if (engine_due(&e->retry_at_ns, now) && e->linked)
        engine_handover(e, VFMIG_HO_EVENT_RETRY);
    if (!e->retry_at_ns && vfmig_handover_waits(&e->handover) && !e->flow_active)
        e->retry_at_ns = now + RETRY_NS;
    if (!e->retry_at_ns && e->handover.state >= VFMIG_HO_SRC_STOPPED &&
        vfmig_handover_waits(&e->handover))
        e->retry_at_ns = now + RETRY_NS;
    if (engine_due(&e->reconnect_at_ns, now))
        try_again(e);
    if (engine_due(&e->give_up_at_ns, now))
        gave_up(e);
    engine_beat(e, now);
    /* Once the guest is back and the destination has nothing left to hear, it is over. */
    if (e->progress.state == VFMIG_MIGRATE_FAILED || e->progress.state == VFMIG_MIGRATE_CANCELLED)
        e->finished |= !vfmig_handover_waits(&e->handover) && !engine_trace_awaited(e);
    if (e->quit && !e->flow_active)
        e->finished = true;
    /* Nothing here may decide it: the journal stands. */
    if (e->quit && (e->handover.state == VFMIG_HO_SRC_GRANTED ||
                    e->handover.state == VFMIG_HO_SRC_SAVED || e->handover.state == VFMIG_HO_SRC_ABORTING))
        e->finished = true;
}

/* --- the attempt --- */

static int prepare(struct vfmig_source *source, struct vfmig_error *reterr)
{
    struct engine *e = &source->e;
    int ret = engine_vm_check(&e->vm, NULL, reterr);

    if (ret == 0)
        ret = source_connect(source, reterr);
    if (ret == 0)
        ret = engine_maps_init(e, reterr);
    if (ret == 0)
        ret = vfmig_mover_new(e->channels, e->channel_count, &e->map.memory, &e->mover, reterr);
    if (ret == 0)
        ret = engine_workers_start(e, reterr);
    if (ret)
        return ret;
    vfmig_mover_set_bandwidth(e->mover, e->options.max_bandwidth);
    ret = engine_flow_init(e);
    e->flow.quiet_log = engine_log_wants_quiet(e);
    return ret;
}

static void begin(struct engine *e)
{
    struct vfmig_error error = {0};

    vfmig_handover_init(&e->handover, VFMIG_HO_SOURCE, e->options.migration_id, e->epoch,
                        VFMIG_HO_RECORD_NONE, /* memory= */ true);
    e->handover_active = true;
    engine_handover(e, VFMIG_HO_EVENT_START);
    if (e->handover.state != VFMIG_HO_SRC_OFFERED)
        return;
    if (source_send_external(e, VMSTATE_EXTERNAL_FIRST, &error)) {
        engine_note(e, &error);
        engine_handover(e, VFMIG_HO_EVENT_ABORT);
        return;
    }
    e->flow_active = true;
    engine_flow_kind(e, VFMIG_FLOW_EVENT_START);
    engine_measure_journal(e);
}

static void *source_main(void *arg)
{
    struct vfmig_source *source = arg;
    struct engine *e = &source->e;
    struct vfmig_error error = {0};
    struct engine_event event;

    engine_enter_step(e, VFMIG_STEP_CONNECT);
    if (prepare(source, &error)) {
        e->cancelled = atomic_load(&source->cancel);
        if (e->cancelled)
            vfmig_error_set(&error, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0, "the migration was cancelled");
        engine_note(e, &error);
        engine_enter_step(e, VFMIG_STEP_END);
        engine_workers_stop(e);
        engine_link_free(e, /* bye= */ !e->file);
        engine_workers_free(e);
        engine_maps_done(e);
        engine_file_done(e);
        engine_state(e, unwound_state(e));
        engine_trace(e, END);
        return NULL;
    }
    begin(e);
    while (!e->finished) {
        if (engine_next(e, engine_wakeup(e), &event))
            handle(e, &event);
        on_time(e);
    }
    if (e->progress.state == VFMIG_MIGRATE_ACTIVE)
        engine_state(e, VFMIG_MIGRATE_UNDECIDED);
    engine_workers_stop(e);
    engine_count_bytes(e);
    engine_link_free(e, /* bye= */ !e->file);
    engine_workers_free(e);
    engine_maps_done(e);
    engine_file_done(e);
    engine_trace(e, END);
    return NULL;
}

/* --- public --- */

static int open_journal(struct engine *e, struct vfmig_error *reterr)
{
    static const uint8_t zero[VFMIG_MIGRATION_ID_BYTES];
    uint8_t *id = e->options.migration_id;

    if (memcmp(id, zero, sizeof(zero)) == 0 &&
        getrandom(id, VFMIG_MIGRATION_ID_BYTES, 0) != VFMIG_MIGRATION_ID_BYTES)
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_KERNEL, 0, "no random migration id");
    int ret = vfmig_journal_open(e->journal_dir, id, VFMIG_HO_SOURCE, /* memory= */ true,
                                 e->control_path, &e->journal, reterr);
    if (ret)
        return ret;
    const struct vfmig_journal_entry *last = vfmig_journal_last(e->journal);
    if (last->record != VFMIG_HO_RECORD_NONE && last->record != VFMIG_HO_RECORD_RESUMED)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "an earlier attempt with this id ended with %s: see vfmig status",
                               vfmig_ho_record_name(last->record));
    e->epoch = last->epoch + 1;
    memcpy(e->progress.migration_id, id, VFMIG_MIGRATION_ID_BYTES);
    e->progress.epoch = e->epoch;
    return 0;
}

int vfmig_source_new(const struct vfmig_vm *vm, const struct vfmig_migrate_options *options,
                     struct vfmig_source **ret_source, struct vfmig_error *reterr)
{
    struct vfmig_source *source = calloc(1, sizeof(*source));
    int ret;

    if (!source)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a source");
    ret = engine_init(&source->e, VFMIG_FLOW_SOURCE, vm, options, reterr);
    if (ret) {
        free(source);
        return ret;
    }
    source->e.do_work = source_do_work;
    source->e.do_data = source_do_data;
    source->e.on_action = on_action;
    source->e.on_handover = on_handover;
    ret = open_journal(&source->e, reterr);
    if (ret) {
        engine_done(&source->e);
        free(source);
        return ret;
    }
    *ret_source = source;
    return 0;
}

int vfmig_source_start(struct vfmig_source *source, const char *uri, struct vfmig_error *reterr)
{
    struct engine *e = &source->e;
    int ret;

    if (source->started)
        return vfmig_error_set(reterr, -EALREADY, VFMIG_ORIGIN_LOCAL, 0,
                               "this migration was started before");
    if (strlen(uri) >= sizeof(e->uri))
        return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0, "the address is too long");
    ret = e->options.local ? engine_local_check(&e->vm, uri, reterr) : 0;
    if (ret)
        return ret;
    strcpy(e->uri, uri);
    engine_secure_name(&e->options.security, uri, e->tls_name, sizeof(e->tls_name));
    engine_trace_begin(e, e->options.migration_id, e->epoch);
    engine_state(e, VFMIG_MIGRATE_ACTIVE);
    ret = -pthread_create(&e->control, NULL, source_main, source);
    if (ret) {
        engine_state(e, VFMIG_MIGRATE_FAILED);
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
    }
    source->started = true;
    return 0;
}

void vfmig_source_cancel(struct vfmig_source *source)
{
    struct engine *e = &source->e;

    atomic_store(&source->cancel, true);
    engine_post(e, &(struct engine_event){.kind = ENGINE_EVENT_CANCEL});
    /* While identity is exchanged nobody looks at events: cut it. */
    pthread_mutex_lock(&e->link_lock);
    for (uint32_t i = 0; i < e->channel_count && !e->receiver && !e->file; i++)
        vfmig_channel_shutdown(e->channels[i]);
    pthread_mutex_unlock(&e->link_lock);
}

void vfmig_source_status(struct vfmig_source *source, struct vfmig_progress *ret_progress)
{
    engine_snapshot(&source->e, ret_progress);
}

int vfmig_source_wait(struct vfmig_source *source, uint64_t timeout_ns, struct vfmig_error *reterr)
{
    return engine_wait_state(&source->e, timeout_ns, reterr);
}

int vfmig_source_resolve(struct vfmig_source *source, const struct vfmig_resolve_request *request,
                         struct vfmig_error *reterr)
{
    return engine_resolve(&source->e, request, reterr);
}

void vfmig_source_quit(struct vfmig_source *source)
{
    vfmig_source_cancel(source);
    engine_post(&source->e, &(struct engine_event){.kind = ENGINE_EVENT_QUIT});
}

void vfmig_source_free(struct vfmig_source *source)
{
    if (!source)
        return;
    if (source->started) {
        vfmig_source_quit(source);
        pthread_join(source->e.control, NULL);
    }
    engine_done(&source->e);
    free(source);
}
