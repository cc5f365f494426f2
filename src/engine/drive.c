/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs the two machines of a side: events in, actions carried out. Control thread only. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/sabotage.h"
#include "core/state.h"
#include "engine/engine.h"
#include "io/sock.h"

/* How long an aborted attempt may go on sending before its connections are cut. */
#define ABORT_GRACE_NS UINT64_C(300000000)

void engine_note(struct engine *e, const struct vfmig_error *error)
{
    if (!error->code || e->failure.code)
        return;
    e->failure = *error;
    engine_link_cause(e, &e->failure);
    pthread_mutex_lock(&e->status_lock);
    e->progress.error = e->failure;
    pthread_mutex_unlock(&e->status_lock);
    engine_trace(e, FAILURE, VFMIG_I(e->failure.code),
                 VFMIG_S(vfmig_origin_name(e->failure.origin)), VFMIG_S(e->failure.text));
}

/* --- flow --- */

static void stamp_row(struct engine *e, uint32_t row)
{
    struct engine_stamps *stamps = &e->stamps;

    if (row == VFMIG_ROW_S5_ENTER)
        engine_stamp(e, &stamps->devices_asked);
    else if (row == VFMIG_ROW_S5_STATE)
        engine_stamp(e, &stamps->devices_stopped);
    else if (row == VFMIG_ROW_R2_LOAD)
        engine_stamp(e, &stamps->load_begin);
}

static void enter_row(struct engine *e, uint32_t row)
{
    vfmig_sabotage_point("enter", vfmig_row_name(row));
    stamp_row(e, row);
    engine_enter_step(e, vfmig_row_step(row));
    engine_trace(e, ROW, VFMIG_S(vfmig_row_name(row)),
                 VFMIG_S(vfmig_step_name(vfmig_row_step(row))));
}

static void abort_works(struct engine *e)
{
    atomic_store(&e->abort, true);
    if (e->mover)
        vfmig_mover_cancel(e->mover);
    pthread_mutex_lock(&e->inbox_lock);
    pthread_cond_broadcast(&e->inbox_wake);
    pthread_mutex_unlock(&e->inbox_lock);
    for (uint32_t i = 0; i < e->vm.device_count; i++) {
        pthread_mutex_lock(&e->devices[i].lock);
        pthread_cond_broadcast(&e->devices[i].wake);
        pthread_mutex_unlock(&e->devices[i].lock);
    }
    e->shutdown_at_ns = vfmig_now_ns() + ABORT_GRACE_NS;
}

/* One that never answered is dealt with when it does, by the thread that waits for it: it runs again
 * only where the guest does. */
static void device_lost(struct engine *e, uint32_t device, bool answered)
{
    bool here = e->role == VFMIG_FLOW_SOURCE && e->handover.state != VFMIG_HO_SRC_RELEASED;

    pthread_mutex_lock(&e->status_lock);
    e->progress.devices_lost++;
    pthread_mutex_unlock(&e->status_lock);
    if (!answered)
        engine_device_job(&e->devices[device], DEVICE_RECOVER,
                          here ? (uint32_t)VFMIG_STATE_RUNNING : VFMIG_WANT_RESET);
    engine_trace(e, DEVICE_LOST, VFMIG_U(device), VFMIG_S(e->devices[device].id));
}

static void each_device(struct engine *e, const struct vfmig_flow_action *action)
{
    for (uint32_t i = 0; i < e->vm.device_count; i++) {
        if (!vfmig_devset_has(&action->devices, i))
            continue;
        if (action->kind == VFMIG_FLOW_ACT_GO)
            engine_device_job(&e->devices[i], DEVICE_GO, e->flow.want[i]);
        else if (action->kind == VFMIG_FLOW_ACT_DATA)
            engine_device_job(&e->devices[i], DEVICE_DATA, action->arg);
        else
            device_lost(e, i, /* answered= */ !action->arg);
    }
}

/* Works that take too long: which, and of whom they are waiting for an answer. */
static void works_error(struct engine *e, struct vfmig_error *error)
{
    const char *step = vfmig_step_name(vfmig_flow_current(&e->flow));
    const struct vfmig_tracker *tracker = atomic_load(&e->asked_tracker);
    uint32_t work = 0;

    while (work < VFMIG_WORK_COUNT && !(e->flow.running & (1u << work)))
        work++;
    if (tracker)
        vfmig_error_set(error, -ETIMEDOUT, tracker->of ? VFMIG_ORIGIN_DEVICE : VFMIG_ORIGIN_LOCAL, 0,
                        "tracker %s%s%s did not answer in step %s", tracker->ops->name,
                        tracker->of ? " of " : "", tracker->of ? tracker->of : "", step);
    else
        vfmig_error_set(error, -ETIMEDOUT, VFMIG_ORIGIN_LOCAL, 0, "step %s took too long: %s did not end",
                        step, vfmig_work_name(work));
}

static void note_timeout(struct engine *e)
{
    struct vfmig_error error = {0};
    uint32_t first = e->vm.device_count, count = 0;
    char others[48] = "";

    for (uint32_t i = e->vm.device_count; i-- > 0;) {
        if (!vfmig_devset_has(&e->flow.late, i))
            continue;
        first = i;
        count++;
    }
    if (count > 1)
        snprintf(others, sizeof(others), " and %u more", count - 1);
    if (count)
        vfmig_error_set(&error, -ETIMEDOUT, VFMIG_ORIGIN_DEVICE, e->flow.state[first],
                        "device %s%s did not answer in step %s", e->devices[first].id, others,
                        vfmig_step_name(vfmig_flow_current(&e->flow)));
    else
        works_error(e, &error);
    engine_note(e, &error);
}

static void trace_point(struct engine *e, enum vfmig_flow_action_kind kind)
{
    const char *point = kind == VFMIG_FLOW_ACT_ASK      ? "ASK"
                        : kind == VFMIG_FLOW_ACT_CHECK  ? "CHECK"
                        : kind == VFMIG_FLOW_ACT_SENT   ? "SENT"
                        : kind == VFMIG_FLOW_ACT_LOADED ? "LOADED"
                                                        : "PREPARED";

    engine_trace(e, POINT, VFMIG_S(point));
}

static void carry_out(struct engine *e, const struct vfmig_flow_action *action)
{
    switch (action->kind) {
    case VFMIG_FLOW_ACT_ENTER:
        enter_row(e, action->arg);
        break;
    case VFMIG_FLOW_ACT_GO:
    case VFMIG_FLOW_ACT_DATA:
    case VFMIG_FLOW_ACT_LOST:
        each_device(e, action);
        break;
    case VFMIG_FLOW_ACT_WORK:
        engine_work_job(e, action->arg);
        break;
    case VFMIG_FLOW_ACT_ABORT:
        abort_works(e);
        break;
    case VFMIG_FLOW_ACT_FAILED:
        if (action->arg == ETIMEDOUT)
            note_timeout(e);
        e->on_action(e, action);
        break;
    case VFMIG_FLOW_ACT_ENDED:
        e->flow_active = false;
        e->on_action(e, action);
        break;
    default:
        trace_point(e, action->kind);
        e->on_action(e, action);
    }
}

int engine_flow(struct engine *e, const struct vfmig_flow_event *event)
{
    struct vfmig_flow_actions actions;
    int ret;

    if (!e->flow_active)
        return -EINVAL;
    ret = vfmig_flow_step(&e->flow, event, vfmig_now_ns(), &actions);
    if (ret == 0 && event->kind == VFMIG_FLOW_EVENT_DEVICE_DONE) {
        pthread_mutex_lock(&e->status_lock);
        if (event->device < VFMIG_PROGRESS_DEVICES)
            e->progress.device_state[event->device] = (uint8_t)event->state;
        pthread_mutex_unlock(&e->status_lock);
    }
    /* Points and failures come last in the list, so their own steps cannot overtake it. */
    for (uint32_t i = 0; ret == 0 && i < actions.count; i++)
        carry_out(e, &actions.list[i]);
    return ret;
}

int engine_flow_kind(struct engine *e, enum vfmig_flow_event_kind kind)
{
    return engine_flow(e, &(struct vfmig_flow_event){.kind = kind});
}

/* --- handover --- */

static int write_journal(struct engine *e, uint32_t record)
{
    struct vfmig_error error = {0};
    uint64_t sync_ns = 0;
    int ret;

    if (record == VFMIG_HO_RECORD_GRANT_SENT)
        engine_stamp(e, &e->stamps.grant_journal_begin);
    const bool foretells = e->role == VFMIG_FLOW_SOURCE && !e->stamps.parked;
    const struct vfmig_cpu_use use = foretells ? vfmig_cpu_use() : (struct vfmig_cpu_use){0};
    ret = vfmig_journal_append(e->journal, e->handover.epoch, record,
                               record == VFMIG_HO_RECORD_SAVED ? vfmig_save_path(e->file)
                                                               : e->failure.text,
                               &sync_ns, &error);
    if (record == VFMIG_HO_RECORD_GRANT_SENT)
        engine_stamp(e, &e->stamps.grant_journal_end);
    engine_trace(e, JOURNAL, VFMIG_S(vfmig_ho_record_name(record)), VFMIG_I(ret), VFMIG_U(sync_ns));
    pthread_mutex_lock(&e->status_lock);
    e->progress.journal_total_ns += sync_ns;
    e->progress.journal_writes++;
    pthread_mutex_unlock(&e->status_lock);
    if (foretells) {
        pthread_mutex_lock(&e->measure.lock);
        engine_measure_sample(&e->measure.samples.journal, sync_ns, &e->measure.samples.journal_alone,
                              vfmig_cpu_alone(&use, sync_ns));
        pthread_mutex_unlock(&e->measure.lock);
    }
    if (e->flow.parked && !e->stamps.running)
        e->stamps.journal_stopped_ns += sync_ns;
    if (ret)
        engine_note(e, &error);
    return ret;
}

static void send_message(struct engine *e, const struct vfmig_ho_msg *msg)
{
    struct vfmig_error error = {0};
    int ret;

    if (vfmig_sabotage_on("lose", vfmig_ho_msg_name(msg->kind)) || e->mute)
        return;
    if (msg->kind == VFMIG_HO_MSG_REFUSED && e->failure.code)
        (void)engine_send_progress(e, PROGRESS_REASON, e->failure.text, strlen(e->failure.text));
    vfmig_sabotage_point("before-send", vfmig_ho_msg_name(msg->kind));
    ret = engine_send_msg(e, msg, &error);
    vfmig_sabotage_point("after-send", vfmig_ho_msg_name(msg->kind));

    if (msg->kind == VFMIG_HO_MSG_GRANT)
        engine_stamp(e, &e->stamps.grant_sent);
    engine_trace(e, SEND, VFMIG_S(vfmig_ho_msg_name(msg->kind)), VFMIG_I(ret));
}

static int handover_step(struct engine *e, const struct vfmig_ho_event *event)
{
    struct vfmig_ho_actions actions;
    int ret;

    if (!e->handover_active)
        return -EINVAL;
    ret = vfmig_handover_step(&e->handover, event, &actions);
    while (ret == 0 && actions.journal) {
        struct vfmig_ho_event written = {.kind = VFMIG_HO_EVENT_JOURNAL_DONE};

        if (write_journal(e, actions.journal))
            written.kind = VFMIG_HO_EVENT_JOURNAL_FAILED;
        ret = vfmig_handover_step(&e->handover, &written, &actions);
    }
    if (ret)
        return ret;
    if (actions.flags & VFMIG_HO_ACT_REPORT)
        engine_trace(e, OUTCOME, VFMIG_S(vfmig_ho_outcome_name(actions.outcome)));
    /* The message does not wait for what the flags begin: it says what is on record, and RUN goes
     * on in other threads. */
    if (actions.flags)
        e->on_handover(e, &actions);
    if (actions.send.kind)
        send_message(e, &actions.send);
    return 0;
}

int engine_handover(struct engine *e, enum vfmig_ho_event_kind kind)
{
    return handover_step(e, &(struct vfmig_ho_event){.kind = (uint8_t)kind});
}

int engine_handover_msg(struct engine *e, const struct vfmig_ho_msg *msg)
{
    vfmig_sabotage_point("on-receipt", vfmig_ho_msg_name(msg->kind));
    engine_trace(e, RECEIVE, VFMIG_S(vfmig_ho_msg_name(msg->kind)),
                 VFMIG_S(vfmig_ho_record_name(msg->record)));
    return handover_step(e, &(struct vfmig_ho_event){.kind = VFMIG_HO_EVENT_MESSAGE, .msg = *msg});
}

/* --- time --- */

bool engine_due(uint64_t *at_ns, uint64_t now_ns)
{
    if (!*at_ns || now_ns < *at_ns)
        return false;
    *at_ns = 0;
    return true;
}

/* Data that waits for the peer or the link is not late: only a device that was asked can be. */
void engine_tick(struct engine *e, uint64_t now_ns)
{
    if (!e->flow_active || !e->flow.deadline_ns || now_ns < e->flow.deadline_ns)
        return;
    for (uint32_t i = 0; i < e->vm.device_count; i++) {
        struct device_worker *dev = &e->devices[i];
        uint64_t since_ns = atomic_load(&dev->call_ns);

        if (vfmig_devset_has(&e->flow.streaming, i) &&
            (!since_ns || now_ns < since_ns + dev->timeout_ns))
            engine_flow(e, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DATA_MOVES,
                                                      .device = i});
    }
    engine_flow_kind(e, VFMIG_FLOW_EVENT_TICK);
}

int engine_flow_init(struct engine *e)
{
    uint32_t features[VFMIG_MAX_DEVICES];
    int ret;

    for (uint32_t i = 0; i < e->vm.device_count; i++)
        features[i] = e->vm.devices[i]->info.features;
    ret = vfmig_flow_init(&e->flow, e->role, e->vm.device_count, features,
                          e->options.device_timeout_ns, e->options.viommu_timeout_ns);
    for (uint32_t i = 0; ret == 0 && i < e->vm.device_count; i++)
        vfmig_flow_set_limit(&e->flow, i, e->devices[i].timeout_ns);
    return ret;
}

/* A sign of life, so that the peer's stall limit means what it says. Memory is one, too, but not while it
 * waits for its share of the bandwidth, or goes on other channels. */
void engine_beat(struct engine *e, uint64_t now_ns)
{
    struct vfmig_mover_progress moved = {0};

    if (e->beat_at_ns && now_ns < e->beat_at_ns)
        return;
    if (e->mover)
        vfmig_mover_progress(e->mover, &moved);
    /* Before the offer the source measures the clocks and expects nothing else. */
    bool memory = vfmig_sabotage("round-is-life") ? moved.running : moved.sends;
    if (e->linked && !memory && e->handover.state != VFMIG_HO_DST_LISTEN)
        (void)engine_send_progress(e, PROGRESS_ALIVE, NULL, 0);
    e->beat_at_ns = now_ns + e->options.stall_ns / 4;
}
