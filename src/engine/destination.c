/* SPDX-License-Identifier: BSD-3-Clause */
/* The destination: its control thread and its public face. */
#include "engine/destination.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "io/sock.h"

#define RETRY_NS UINT64_C(1000000000)
#define CLOSE_NS UINT64_C(2000000000) /* how long a refused source may take to hang up */
#define LEAVE_NS UINT64_C(2000000000) /* how long one may take to take its guest back */
#define HURRY_NS UINT64_C(100000000)  /* how long an answer to who only asks may find no room */

static struct vfmig_destination *of(struct engine *e)
{
    return (struct vfmig_destination *)e;
}

/* What a waiter waits for has come: the guest is here for good, or nobody wants it any more. */
static void end_wait(struct engine *e, enum vfmig_migrate_state state)
{
    engine_state(e, state);
    pthread_mutex_lock(&e->status_lock);
    of(e)->ended = true;
    pthread_cond_broadcast(&e->status_changed);
    pthread_mutex_unlock(&e->status_lock);
}

/* --- an attempt begins and ends --- */

static void forget_attempt(struct engine *e)
{
    for (unsigned i = 0; i < 4; i++) {
        vfmig_buffer_free(&e->inbox[i]);
        e->inbox[i].limit = VFMIG_MAX_VMSTATE;
        e->inbox_full[i] = false;
    }
    pthread_mutex_lock(&e->status_lock);
    memset(&e->stamps, 0, sizeof(e->stamps));
    memset(&e->failure, 0, sizeof(e->failure));
    memset(&e->progress.error, 0, sizeof(e->progress.error));
    memset(e->progress.steps, 0, sizeof(e->progress.steps));
    e->progress.devices_lost = 0;
    pthread_mutex_unlock(&e->status_lock);
    e->inbox_cut = false;
    engine_local_forget(e);
    atomic_store(&e->abort, false);
    e->shutdown_at_ns = 0;
    e->run_early = false;
    e->measure.probe_at_ns = 0;
}

static void close_attempt(struct engine *e)
{
    e->closing = false;
    e->give_up_at_ns = 0;
    engine_workers_stop(e);
    engine_link_free(e, /* bye= */ true);
    engine_workers_free(e);
}

/* The devices are fresh again and the next source may come. The link is the source's to close: it
 * may still be sending, and would take a closed link for the cause. */
static void attempt_over(struct engine *e)
{
    struct vfmig_error error = {0};

    engine_enter_step(e, VFMIG_STEP_END);
    /* The source's guest goes on in that memory: who cannot let go of it takes no other guest. */
    if (engine_local_return(e, &error)) {
        engine_note(e, &error);
        e->cancelled = true;
    }
    e->retry_at_ns = 0;
    if (e->file)
        destination_unclaim(e);
    bool open = e->progress.state == VFMIG_MIGRATE_ACTIVE ||
                e->progress.state == VFMIG_MIGRATE_UNDECIDED;
    if (open && !e->file)
        engine_state(e, VFMIG_MIGRATE_FAILED);
    engine_trace_send(e);
    if (e->linked && !e->file) {
        e->closing = true;
        e->give_up_at_ns = vfmig_now_ns() + CLOSE_NS;
    } else {
        close_attempt(e);
    }
    if (open && e->file)
        end_wait(e, e->cancelled ? VFMIG_MIGRATE_CANCELLED : VFMIG_MIGRATE_FAILED);
}

static int open_journal(struct engine *e, const uint8_t *id, bool memory, struct vfmig_error *reterr)
{
    struct vfmig_journal *journal;
    int ret;

    vfmig_journal_close(e->journal);
    e->journal = NULL;
    ret = vfmig_journal_open(e->journal_dir, id, VFMIG_HO_DESTINATION, memory, e->control_path,
                             &journal, reterr);
    if (ret)
        return ret;
    e->journal = journal;
    const struct vfmig_journal_entry *last = vfmig_journal_last(journal);
    bool known = last->record != VFMIG_HO_RECORD_NONE;
    return vfmig_handover_init(&e->handover, VFMIG_HO_DESTINATION, known ? id : NULL,
                               known ? last->epoch : 0, last->record, /* memory= */ false);
}

/* Nothing of an earlier attempt is under way, and no guest is here. Somebody may have asked for an outcome that is
 * none, and not have hung up: anybody can do that. */
static bool idle(struct engine *e)
{
    uint8_t state = e->handover.state;
    bool asked = of(e)->asked && !vfmig_sabotage("question-stays");

    return !e->flow_active && (!e->linked || asked) &&
           (!e->handover_active || state == VFMIG_HO_DST_LISTEN || state == VFMIG_HO_DST_REFUSED) &&
           e->progress.state != VFMIG_MIGRATE_COMPLETED && e->progress.state != VFMIG_MIGRATE_PAUSED;
}

/* Somebody else comes: whoever only asked has been answered. */
static void hang_up(struct engine *e)
{
    if (!e->linked && !e->channel_count)
        return;
    e->linked = false;
    engine_link_free(e, /* bye= */ false);
}

static int judge(struct engine *e, const struct arrival *arrival, struct vfmig_error *reterr)
{
    struct vfmig_buffer ours = {.limit = VFMIG_MAX_IDENTITY + 1};
    int ret;

    if (e->cancelled)
        return vfmig_error_set(reterr, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0,
                               "the destination was cancelled");
    if (!idle(e))
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "another migration is under way or done");
    if (e->file && engine_local_asked((const char *)arrival->text.data))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_STREAM, 0,
                               "a file cannot pass memory on by its descriptor");
    ret = engine_vm_check_incoming(&e->vm, NULL, reterr);
    if (ret == 0)
        ret = engine_identity(&e->vm, &ours, reterr);
    if (ret == 0 && vfmig_buffer_append(&ours, NULL, 1))
        ret = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for the identity");
    if (ret == 0)
        ret = engine_identity_compare((const char *)ours.data, (const char *)arrival->text.data,
                                      /* all= */ NULL, reterr);
    vfmig_buffer_free(&ours);
    return ret;
}

static int begin(struct engine *e, struct arrival *arrival, struct vfmig_error *reterr)
{
    int ret = engine_workers_start(e, reterr);

    if (ret)
        return ret;
    ret = engine_flow_init(e);
    if (ret == 0) {
        uint32_t count = arrival->count;
        arrival->count = 0; /* the link's from here on */
        ret = engine_link_new(e, arrival->channels, count, count, e->local ? NULL : &e->vm.memory,
                              destination_on_record, reterr);
        if (ret == 0)
            vfmig_receiver_on_round(e->receiver, engine_measure_on_round);
    }
    if (ret) {
        engine_workers_stop(e);
        engine_workers_free(e);
        return ret;
    }
    of(e)->asked = false;
    memcpy(e->progress.migration_id, arrival->id, VFMIG_MIGRATION_ID_BYTES);
    engine_state(e, VFMIG_MIGRATE_ACTIVE);
    /* What the attempt before has on record is said when it is asked for. */
    e->mute = !vfmig_sabotage("refused-unasked");
    engine_handover(e, VFMIG_HO_EVENT_START);
    e->mute = false;
    e->flow_active = true;
    engine_flow_kind(e, VFMIG_FLOW_EVENT_START);
    engine_measure_journal(e);
    return 0;
}

/* The verdict goes out before anything else does: the source sends nothing until it has it. */
static void new_migration(struct engine *e, struct arrival *arrival)
{
    struct vfmig_error error = {0};
    struct vfmig_verdict verdict = {0};
    uint8_t out[VFMIG_VERDICT_BYTES_MAX];
    int ret;

    if (e->closing)
        close_attempt(e);
    if (idle(e)) {
        engine_trace_wished(e, (const char *)arrival->text.data);
        engine_trace_begin(e, arrival->id, 0);
    }
    ret = judge(e, arrival, &error);
    if (ret == 0) {
        hang_up(e);
        forget_attempt(e);
        e->local = engine_local_asked((const char *)arrival->text.data);
        if (e->local)
            vfmig_channel_expect_fds(arrival->channels[0]);
        ret = open_journal(e, arrival->id, /* memory= */ true, &error);
        if (ret == 0 && e->file)
            ret = destination_claim(e, &error);
        e->handover_active = ret == 0;
    }
    verdict.accept = ret == 0;
    memcpy(verdict.text, error.text, sizeof(verdict.text));
    engine_trace(e, VERDICT, VFMIG_B(ret == 0), VFMIG_S(ret ? error.text : ""));
    ret = vfmig_channel_send(arrival->channels[0], VFMIG_RECORD_VERDICT, out,
                             vfmig_verdict_encode(out, &verdict), ret ? NULL : &error);
    if (ret == 0 && verdict.accept)
        ret = begin(e, arrival, &error);
    if (error.code && e->progress.state != VFMIG_MIGRATE_COMPLETED) {
        pthread_mutex_lock(&e->status_lock);
        e->progress.error = error;
        pthread_mutex_unlock(&e->status_lock);
        if (e->file && !e->flow_active) {
            destination_unclaim(e);
            end_wait(e, VFMIG_MIGRATE_FAILED);
        }
    }
}

/* Whether the flow still takes what came over a link, be it gone. */
static bool receives(const struct engine *e)
{
    enum vfmig_step step = vfmig_flow_current(&e->flow);

    return e->flow.running || (!e->flow.halted && !vfmig_sabotage("asked-while-it-receives") &&
                               (step == VFMIG_STEP_R0 || step == VFMIG_STEP_R1 || step == VFMIG_STEP_R2));
}

/* A source that lost its link, or came back from a crash, asks. */
static void asked_again(struct engine *e, struct arrival *arrival)
{
    struct vfmig_error error = {0};
    bool ours = e->handover_active && memcmp(e->handover.id, arrival->id, sizeof(arrival->id)) == 0;
    uint32_t count = arrival->count;

    if (!ours) {
        if (!idle(e))
            return;
        hang_up(e);
        forget_attempt(e);
        engine_trace_begin(e, arrival->id, 0);
        if (open_journal(e, arrival->id, /* memory= */ false, &error))
            return;
        e->handover_active = true;
        engine_handover(e, VFMIG_HO_EVENT_START);
    }
    if (e->linked || e->channel_count) {
        /* The source says that the old link is gone; what hangs on it learns it now. Before that it ends with what
         * came over that link, which a new one would take away: the source asks again. */
        if (e->flow_active && receives(e))
            return;
        hang_up(e);
        engine_handover(e, VFMIG_HO_EVENT_LINK_LOST);
    }
    of(e)->asked = true;
    if (!ours)
        (void)vfmig_channel_hurry(arrival->channels[0], HURRY_NS, NULL);
    arrival->count = 0;
    if (engine_link_new(e, arrival->channels, count, count, NULL, destination_on_question, &error))
        return;
    engine_trace(e, LINK_UP);
    if (e->progress.state == VFMIG_MIGRATE_UNDECIDED)
        engine_state(e, VFMIG_MIGRATE_ACTIVE);
    engine_handover(e, VFMIG_HO_EVENT_LINK_UP);
    engine_handover_msg(e, &arrival->msg);
}

static void connection(struct engine *e)
{
    struct arrival *arrival = destination_let_in(of(e));

    if (!arrival)
        return;
    if (arrival->identity && engine_is_dry_run((const char *)arrival->text.data)) {
        vfmig_sock_send_room(vfmig_channel_fd(arrival->channels[0]));
        (void)vfmig_channel_hurry(arrival->channels[0], HURRY_NS, NULL);
        engine_answer_dry_run(e, (const char *)arrival->text.data,
                              e->cancelled ? "the destination was cancelled"
                              : !idle(e)   ? "another migration is under way or done"
                                           : NULL,
                              arrival->channels[0]);
    } else if (arrival->identity) {
        new_migration(e, arrival);
    } else {
        asked_again(e, arrival);
    }
    arrival_free(arrival);
}

/* --- what the machines ask for --- */

/* Whether it runs or not: the source waits for nothing else. */
static void tell_times(struct engine *e)
{
    struct engine_report report = {.valid = true,
                                   .grant_received = e->stamps.grant_received,
                                   .running = e->stamps.running,
                                   .journal_ns = e->stamps.journal_stopped_ns,
                                   .device_load_ns = e->stamps.load_end - e->stamps.load_begin,
                                   .state_load_ns = e->stamps.state_load_end -
                                                    e->stamps.state_load_begin};

    (void)engine_send_report(e, &report);
}

/* An attempt is being received that the handover knows nothing of yet: it has no state, or that of the
 * attempt before, which is on record as REFUSED. */
static bool unoffered(const struct engine *e)
{
    return e->handover.state == VFMIG_HO_DST_LISTEN ||
           (e->handover.state == VFMIG_HO_DST_REFUSED && e->flow_active &&
            vfmig_flow_current(&e->flow) != VFMIG_STEP_DROP);
}

static void failed(struct engine *e)
{
    switch (vfmig_flow_current(&e->flow)) {
    case VFMIG_STEP_R3:
        engine_handover(e, VFMIG_HO_EVENT_PREPARE_FAILED);
        break;
    case VFMIG_STEP_R4:
        e->flow_active = false;
        engine_handover(e, VFMIG_HO_EVENT_RUN_FAILED);
        destination_standing(e, true);
        tell_times(e);
        end_wait(e, VFMIG_MIGRATE_PAUSED);
        break;
    default:
        /* What is not offered yet cannot be refused: it will be when the offer comes. */
        if (unoffered(e))
            break;
        engine_handover(e, VFMIG_HO_EVENT_LOAD_FAILED);
    }
}

static void flow_ended(struct engine *e)
{
    if (e->flow.row == VFMIG_ROW_END && e->flow.parked) {
        attempt_over(e);
        return;
    }
    engine_handover(e, VFMIG_HO_EVENT_RUN_DONE);
    tell_times(e);
    engine_enter_step(e, VFMIG_STEP_END);
    end_wait(e, VFMIG_MIGRATE_COMPLETED);
    engine_trace_send(e);
}

static void on_action(struct engine *e, const struct vfmig_flow_action *action)
{
    switch (action->kind) {
    case VFMIG_FLOW_ACT_LOADED:
        engine_stamp(e, &e->stamps.load_end);
        engine_handover(e, VFMIG_HO_EVENT_LOADED);
        break;
    case VFMIG_FLOW_ACT_PREPARED:
        if (e->run_early)
            engine_flow_kind(e, VFMIG_FLOW_EVENT_RUN);
        else
            engine_handover(e, VFMIG_HO_EVENT_PREPARED);
        break;
    case VFMIG_FLOW_ACT_FAILED:
        failed(e);
        break;
    case VFMIG_FLOW_ACT_ENDED:
        flow_ended(e);
        break;
    default:
        break;
    }
}

/* What comes out of a file and does not run goes back into it: that is said when it has (attempt_over). */
static void note_outcome(struct engine *e, uint8_t outcome)
{
    if (e->file && e->flow_active)
        return;
    if (outcome == VFMIG_HO_OUTCOME_UNDECIDED || outcome == VFMIG_HO_OUTCOME_ONLY_AT_DESTINATION ||
        outcome == VFMIG_HO_OUTCOME_PAUSED_AT_DESTINATION)
        engine_state(e, VFMIG_MIGRATE_UNDECIDED);
}

/* RUN without a wait for PREPARED is the fault "run-before-grant" of the handover machine; the
 * guest then runs before this side may let it, and the grant finds it running. */
static void run(struct engine *e)
{
    if (!e->flow_active && !e->flow.parked)
        engine_handover(e, VFMIG_HO_EVENT_RUN_DONE);
    else if (e->flow.row == VFMIG_ROW_PREPARED)
        engine_flow_kind(e, VFMIG_FLOW_EVENT_RUN);
    else
        e->run_early = true;
}

static void on_handover(struct engine *e, const struct vfmig_ho_actions *actions)
{
    if (actions->flags & (VFMIG_HO_ACT_RELEASE | VFMIG_HO_ACT_DROP_LOAD))
        engine_flow_kind(e, VFMIG_FLOW_EVENT_UNWIND);
    if (actions->flags & VFMIG_HO_ACT_PREPARE) {
        if (e->flow.row == VFMIG_ROW_LOADED)
            engine_flow_kind(e, VFMIG_FLOW_EVENT_PREPARE);
        else
            engine_handover(e, VFMIG_HO_EVENT_PREPARED);
    }
    if (actions->flags & VFMIG_HO_ACT_RUN)
        run(e);
    if (actions->flags & VFMIG_HO_ACT_REPORT)
        note_outcome(e, actions->outcome);
}

/* --- events --- */

/* It has been read to its end, or to where it is damaged; it goes on answering. */
static void file_ended(struct engine *e, struct vfmig_error *error)
{
    if (!error->code && e->flow_active)
        (void)destination_file_complete(e, error);
    if (!error->code)
        return;
    engine_note(e, error);
    if (e->handover.state == VFMIG_HO_DST_LISTEN)
        engine_flow_kind(e, VFMIG_FLOW_EVENT_UNWIND);
    else if (e->handover.state == VFMIG_HO_DST_LOADING)
        engine_flow(e, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_FAIL, .err = error->code});
}

static void link_lost(struct engine *e, const struct engine_event *event)
{
    struct vfmig_error error = event->error;

    if (!e->linked || event->generation != e->generation)
        return;
    if (e->file) {
        file_ended(e, &error);
        return;
    }
    e->linked = false;
    if (!error.code)
        vfmig_error_set(&error, -ECONNRESET, VFMIG_ORIGIN_PEER, 0,
                        "the source closed the connection");
    engine_trace(e, LINK_LOST, VFMIG_I(error.code), VFMIG_S(error.text));
    if (e->flow_active && e->flow.row < VFMIG_ROW_COUNT && e->flow.row < VFMIG_ROW_R3_ENTER)
        engine_note(e, &error);
    engine_handover(e, VFMIG_HO_EVENT_LINK_LOST);
    if (e->flow_active)
        destination_cut_data(e);
    /* The offer never came: the handover knows of nothing that it could refuse. */
    if (e->flow_active && unoffered(e))
        engine_flow_kind(e, VFMIG_FLOW_EVENT_UNWIND);
    if (e->closing)
        close_attempt(e);
    else if (!e->flow_active)
        engine_link_free(e, /* bye= */ false);
}

static void cancel(struct engine *e)
{
    struct vfmig_error error = {0};

    if (of(e)->ended || (e->handover.state == VFMIG_HO_DST_RUNNING && e->handover.memory))
        return;
    vfmig_error_set(&error, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0, "the destination was cancelled");
    engine_note(e, &error);
    if (e->handover_active)
        engine_handover(e, VFMIG_HO_EVENT_ABORT);
    if (e->flow_active && unoffered(e))
        engine_flow_kind(e, VFMIG_FLOW_EVENT_UNWIND);
    e->cancelled = true;
}

/* Before the offer an attempt that fails or is cancelled cannot be refused: the offer is, later. */
static bool loads(const struct engine *e)
{
    return e->flow_active && !e->flow.halted && vfmig_flow_current(&e->flow) != VFMIG_STEP_DROP;
}

static void message(struct engine *e, const struct engine_event *event)
{
    bool loading = e->handover.state == VFMIG_HO_DST_LOADING;

    /* The grant is often faster than the guest that must not run without it; the source repeats it. */
    if (event->msg.kind == VFMIG_HO_MSG_GRANT && e->flow_active && vfmig_sabotage("run-before-grant"))
        return;
    if (event->msg.kind == VFMIG_HO_MSG_GRANT && !e->stamps.grant_received)
        e->stamps.grant_received = event->at_ns;
    engine_handover_msg(e, &event->msg);
    if (!loading && e->handover.state == VFMIG_HO_DST_LOADING && !loads(e))
        engine_handover(e, VFMIG_HO_EVENT_LOAD_FAILED);
}

/* The guest or its only copy may be here: no unwinding changes that. A process that came back after
 * a crash has neither. */
static bool undecided(const struct engine *e)
{
    uint8_t state = e->handover.state;

    return e->handover.memory && (state == VFMIG_HO_DST_GRANTED || state == VFMIG_HO_DST_FENCED ||
                                  state == VFMIG_HO_DST_RUNNING);
}

/* What may still be handed back: a source that is there answers soon. */
static bool may_be_taken_back(const struct engine *e)
{
    return e->handover.state == VFMIG_HO_DST_GRANTED && e->handover.memory && e->linked;
}

static void quit(struct engine *e)
{
    e->quit = true;
    cancel(e);
    if (may_be_taken_back(e))
        e->give_up_at_ns = vfmig_now_ns() + LEAVE_NS;
}

static void handle(struct engine *e, const struct engine_event *event)
{
    switch (event->kind) {
    case ENGINE_EVENT_FLOW:
        if (event->flow.err && !atomic_load(&e->abort))
            engine_note(e, &event->error);
        engine_flow(e, &event->flow);
        break;
    case ENGINE_EVENT_MESSAGE:
        message(e, event);
        break;
    case ENGINE_EVENT_LINK_LOST:
        link_lost(e, event);
        break;
    case ENGINE_EVENT_ROUND:
        engine_measure_tell(e);
        break;
    case ENGINE_EVENT_CONNECTION:
        connection(e);
        break;
    case ENGINE_EVENT_RESOLVE:
        engine_resolve_asked(e);
        break;
    case ENGINE_EVENT_CANCEL:
        cancel(e);
        break;
    case ENGINE_EVENT_STARTED:
        destination_standing(e, false);
        break;
    case ENGINE_EVENT_QUIT:
        quit(e);
        break;
    default:
        break;
    }
}

static void on_time(struct engine *e)
{
    uint64_t now = vfmig_now_ns();

    engine_look(e, now);
    engine_tick(e, now);
    if (engine_due(&e->shutdown_at_ns, now) && e->flow_active && e->flow.running)
        engine_link_shutdown(e);
    if (engine_due(&e->retry_at_ns, now))
        engine_handover(e, VFMIG_HO_EVENT_RETRY);
    if (!e->retry_at_ns && e->handover_active && vfmig_handover_waits(&e->handover))
        e->retry_at_ns = now + RETRY_NS;
    bool gave_up = engine_due(&e->give_up_at_ns, now);
    if (gave_up && e->closing)
        close_attempt(e);
    engine_beat(e, now);
    if (e->cancelled && !of(e)->ended && !e->flow_active && !undecided(e))
        end_wait(e, VFMIG_MIGRATE_CANCELLED);
    if (e->quit && (!e->flow_active || (undecided(e) && (gave_up || !may_be_taken_back(e)))))
        e->finished = true;
}

void *destination_main(void *arg)
{
    struct vfmig_destination *destination = arg;
    struct engine *e = &destination->e;
    struct engine_event event;

    while (!e->finished) {
        if (engine_next(e, engine_wakeup(e), &event))
            handle(e, &event);
        on_time(e);
    }
    if (!destination->ended)
        end_wait(e, undecided(e) ? VFMIG_MIGRATE_UNDECIDED : VFMIG_MIGRATE_CANCELLED);
    atomic_store(&e->abort, true);
    pthread_mutex_lock(&e->inbox_lock);
    pthread_cond_broadcast(&e->inbox_wake);
    pthread_mutex_unlock(&e->inbox_lock);
    if (e->flow_active)
        engine_link_shutdown(e);
    close_attempt(e);
    return NULL;
}

/* --- public --- */

int vfmig_destination_new(const struct vfmig_vm *vm, const struct vfmig_migrate_options *options,
                          struct vfmig_destination **ret_destination, struct vfmig_error *reterr)
{
    struct vfmig_destination *destination = calloc(1, sizeof(*destination));
    int ret;

    if (!destination)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a destination");
    destination->listener = destination->wake = -1;
    ret = engine_init(&destination->e, VFMIG_FLOW_DESTINATION, vm, options, reterr);
    if (ret) {
        free(destination);
        return ret;
    }
    destination->e.flow.parked = 1;
    destination->e.do_work = destination_do_work;
    destination->e.do_data = destination_do_data;
    destination->e.on_action = on_action;
    destination->e.on_handover = on_handover;
    pthread_mutex_init(&destination->arrival_lock, NULL);
    *ret_destination = destination;
    return 0;
}

static uint16_t bound_port(int fd)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof(address);

    if (getsockname(fd, (struct sockaddr *)&address, &size))
        return 0;
    if (address.ss_family == AF_INET)
        return ntohs(((struct sockaddr_in *)&address)->sin_port);
    if (address.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)&address)->sin6_port);
    return 0;
}

int vfmig_destination_listen(struct vfmig_destination *destination, const char *uri,
                             struct vfmig_error *reterr)
{
    struct engine *e = &destination->e;
    int ret;

    if (destination->listening)
        return vfmig_error_set(reterr, -EALREADY, VFMIG_ORIGIN_LOCAL, 0, "it listens already");
    destination->tls = engine_secure_uri(uri) ? e->tls : NULL;
    ret = engine_secure_listen(&e->options.security, uri, &destination->listener, reterr);
    if (ret) {
        destination->listener = -1;
        return ret;
    }
    destination->port = bound_port(destination->listener);
    destination->wake = eventfd(0, EFD_CLOEXEC);
    if (destination->wake < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "no eventfd: %s",
                               strerror(errno));
    ret = door_new(&(struct door_rules){.listener = destination->listener,
                                        .bell = destination->wake,
                                        .stall_ns = e->options.stall_ns,
                                        .tls = destination->tls,
                                        .on_refused = destination_refused,
                                        .user = destination},
                   &destination->door, reterr);
    if (ret)
        return ret;
    engine_trace_begin(e, NULL, 0);
    ret = -pthread_create(&e->control, NULL, destination_main, destination);
    if (ret)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
    ret = -pthread_create(&destination->acceptor, NULL, destination_acceptor, destination);
    if (ret) {
        engine_post(e, &(struct engine_event){.kind = ENGINE_EVENT_QUIT});
        pthread_join(e->control, NULL);
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
    }
    destination->listening = destination->accepting = true;
    return 0;
}

void vfmig_destination_status(struct vfmig_destination *destination,
                              struct vfmig_progress *ret_progress)
{
    engine_snapshot(&destination->e, ret_progress);
}

int vfmig_destination_wait(struct vfmig_destination *destination, uint64_t timeout_ns,
                           struct vfmig_error *reterr)
{
    struct engine *e = &destination->e;
    uint64_t until_ns = vfmig_deadline_ns(timeout_ns);
    int ret = 0;

    pthread_mutex_lock(&e->status_lock);
    while (!destination->ended && (until_ns == UINT64_MAX || vfmig_now_ns() < until_ns))
        engine_sleep_until(&e->status_changed, &e->status_lock, until_ns);
    if (!destination->ended) {
        ret = vfmig_error_set(reterr, -ETIMEDOUT, VFMIG_ORIGIN_LOCAL, 0, "no guest has arrived");
    } else if (e->progress.state == VFMIG_MIGRATE_PAUSED || e->progress.state == VFMIG_MIGRATE_FAILED) {
        ret = e->progress.error.code ? e->progress.error.code : -EIO;
        if (reterr)
            *reterr = e->progress.error;
    } else if (e->progress.state != VFMIG_MIGRATE_COMPLETED) {
        ret = vfmig_error_set(reterr, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0,
                              "the destination was cancelled");
    }
    pthread_mutex_unlock(&e->status_lock);
    return ret;
}

void vfmig_destination_cancel(struct vfmig_destination *destination)
{
    engine_post(&destination->e, &(struct engine_event){.kind = ENGINE_EVENT_CANCEL});
}

void vfmig_destination_quit(struct vfmig_destination *destination)
{
    engine_post(&destination->e, &(struct engine_event){.kind = ENGINE_EVENT_QUIT});
}

uint16_t vfmig_destination_port(const struct vfmig_destination *destination)
{
    return destination->port;
}

int vfmig_destination_resolve(struct vfmig_destination *destination,
                              const struct vfmig_resolve_request *request,
                              struct vfmig_error *reterr)
{
    return engine_resolve(&destination->e, request, reterr);
}

void vfmig_destination_free(struct vfmig_destination *destination)
{
    if (!destination)
        return;
    if (destination->listening) {
        atomic_store(&destination->quit, true);
        if (destination->accepting) {
            (void)eventfd_write(destination->wake, 1);
            pthread_join(destination->acceptor, NULL);
        }
        vfmig_destination_quit(destination);
        pthread_join(destination->e.control, NULL);
    }
    arrival_free(destination->arrival);
    door_free(destination->door);
    if (destination->listener >= 0)
        close(destination->listener);
    if (destination->wake >= 0)
        close(destination->wake);
    engine_done(&destination->e);
    pthread_mutex_destroy(&destination->arrival_lock);
    free(destination);
}
