/* SPDX-License-Identifier: BSD-3-Clause */
/* What others learn about a migration: its state, its steps, the downtime in parts, the trace. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/bitmap.h"
#include "engine/engine.h"
#include "io/sock.h"

static const char *const state_names[VFMIG_MIGRATE_STATE_COUNT] = {
    [VFMIG_MIGRATE_NONE] = "none",           [VFMIG_MIGRATE_ACTIVE] = "active",
    [VFMIG_MIGRATE_COMPLETED] = "completed", [VFMIG_MIGRATE_FAILED] = "failed",
    [VFMIG_MIGRATE_CANCELLED] = "cancelled", [VFMIG_MIGRATE_UNDECIDED] = "undecided",
    [VFMIG_MIGRATE_PAUSED] = "paused",
};

const char *vfmig_migrate_state_name(unsigned state)
{
    return state < VFMIG_MIGRATE_STATE_COUNT ? state_names[state] : "unknown";
}

/* A line that does not fit its row of the table is an error of this program. */
void engine_trace_event(struct engine *e, enum vfmig_trace_event event,
                        const struct vfmig_trace_value *values)
{
    char line[VFMIG_TRACE_LINE];

    if (!e->vm.ops->trace)
        return;
    /* The time is taken under the lock: lines of a side are in the order of their times. */
    pthread_mutex_lock(&e->trace_lock);
    if (event == VFMIG_TRACE_HEAD)
        e->trace_lines = 0;
    struct vfmig_trace_head head = {
        .t_ns = vfmig_now_ns(), .n = e->trace_lines++, .source = e->role == VFMIG_FLOW_SOURCE};
    int ret = vfmig_trace_format(line, &head, event, values);
    assert(ret == 0);
    if (ret == 0)
        e->vm.ops->trace(e->vm.opaque, line);
    pthread_mutex_unlock(&e->trace_lock);
}

static void trace_device(struct engine *e, uint32_t device)
{
    const struct vfmig_target_info *info = &e->vm.devices[device]->info;
    uint32_t has = info->features;
    char features[32];

    snprintf(
        features, sizeof(features), "%s%s%s", has & VFMIG_FEATURE_STOP_COPY ? " stop-copy" : "",
        has & VFMIG_FEATURE_NDMA ? " ndma" : "", has & VFMIG_FEATURE_PRE_COPY ? " pre-copy" : "");
    engine_trace(e, DEVICE, VFMIG_U(device), VFMIG_S(e->vm.device_ids[device]),
                 VFMIG_S(features[0] ? features + 1 : ""), VFMIG_B(info->dma_log));
}

/* id NULL: the destination listens. */
void engine_trace_begin(struct engine *e, const uint8_t *id, uint32_t epoch)
{
    char text[2 * VFMIG_MIGRATION_ID_BYTES + 1] = "";
    struct timespec wall;

    if (id)
        vfmig_ho_id_format(id, text);
    clock_gettime(CLOCK_REALTIME, &wall);
    engine_trace(e, HEAD, VFMIG_U(VFMIG_TRACE_VERSION), VFMIG_S(text), VFMIG_U(epoch),
                 VFMIG_U((uint64_t)wall.tv_sec * UINT64_C(1000000000) + (uint64_t)wall.tv_nsec),
                 VFMIG_U(e->vm.device_count), VFMIG_U(e->progress.memory_bytes),
                 VFMIG_U(e->options.downtime_limit_ns), VFMIG_U(e->options.channels));
    for (uint32_t i = 0; i < e->vm.device_count; i++)
        trace_device(e, i);
}

void engine_trace_vmstate(struct engine *e, uint32_t kind, uint64_t bytes, int ret)
{
    engine_trace(e, VMSTATE,
                 VFMIG_S(kind == VMSTATE_EXTERNAL_FIRST   ? "external-first"
                         : kind == VMSTATE_EXTERNAL_FINAL ? "external-final"
                                                          : "vcpus"),
                 VFMIG_U(bytes), VFMIG_I(ret));
}

int engine_vcpus_start(struct engine *e, struct vfmig_error *reterr)
{
    engine_trace(e, VCPUS_STARTING);
    int ret = e->vm.ops->vcpus_start(e->vm.opaque, reterr);
    engine_trace(e, VCPUS_RUNNING, VFMIG_I(ret));
    return ret;
}

void engine_stamp(struct engine *e, uint64_t *stamp)
{
    pthread_mutex_lock(&e->status_lock);
    if (!*stamp)
        *stamp = vfmig_now_ns();
    pthread_mutex_unlock(&e->status_lock);
}

static void sample(struct engine *e, struct vfmig_vm_sample *ret_sample)
{
    memset(ret_sample, 0, sizeof(*ret_sample));
    if (e->vm.ops->sample)
        e->vm.ops->sample(e->vm.opaque, ret_sample);
}

static bool vcpus_run_in(enum vfmig_step step)
{
    return step == VFMIG_STEP_CONNECT || step == VFMIG_STEP_S1 || step == VFMIG_STEP_S2 ||
           step == VFMIG_STEP_S3;
}

void engine_enter_step(struct engine *e, enum vfmig_step step)
{
    struct vfmig_vm_sample now;

    sample(e, &now);
    pthread_mutex_lock(&e->status_lock);
    struct vfmig_progress *progress = &e->progress;
    bool entered = progress->step != step;
    if (entered) {
        struct vfmig_step_report *last = &progress->steps[progress->step];
        struct vfmig_step_report *next = &progress->steps[step];

        if (last->start_ns) {
            last->end_ns = vfmig_now_ns();
            last->at_end = now;
        }
        next->start_ns = vfmig_now_ns();
        next->end_ns = 0;
        next->at_start = now;
        next->vcpus_ran = vcpus_run_in(step);
        progress->step = step;
        if (step == VFMIG_STEP_S3)
            progress->dma_in_flight = now.dma_in_flight;
        if (now.interrupts_latched > progress->interrupts_latched)
            progress->interrupts_latched = now.interrupts_latched;
    }
    pthread_mutex_unlock(&e->status_lock);
    if (entered)
        engine_trace(e, STEP, VFMIG_S(vfmig_step_name(step)), VFMIG_B(vcpus_run_in(step)),
                     VFMIG_U(now.guest_progress), VFMIG_U(now.dma_in_flight),
                     VFMIG_U(now.interrupts_latched));
}

void engine_state(struct engine *e, enum vfmig_migrate_state state)
{
    pthread_mutex_lock(&e->status_lock);
    if (state == VFMIG_MIGRATE_ACTIVE)
        e->progress.started_ns = vfmig_now_ns();
    else
        e->progress.ended_ns = vfmig_now_ns();
    e->progress.state = state;
    pthread_cond_broadcast(&e->status_changed);
    pthread_mutex_unlock(&e->status_lock);
    engine_trace(e, STATE, VFMIG_S(vfmig_migrate_state_name(state)));
}

static uint64_t all_bytes_sent(struct engine *e, uint64_t *ret_pages, uint64_t *ret_zero)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < e->channel_count; i++) {
        struct vfmig_channel_stats stats;
        vfmig_channel_stats(e->channels[i], &stats);
        bytes += stats.bytes_sent;
        *ret_pages += stats.pages_sent;
        *ret_zero += stats.zero_pages_sent;
    }
    return bytes;
}

/* Takes what the channels count while there are channels. */
void engine_count_bytes(struct engine *e)
{
    struct vfmig_mover_progress moved = {0};
    uint64_t pages = 0, zero = 0;

    pthread_mutex_lock(&e->link_lock);
    uint64_t bytes = all_bytes_sent(e, &pages, &zero);
    if (e->mover)
        vfmig_mover_progress(e->mover, &moved);
    bool any = e->mover != NULL;
    pthread_mutex_unlock(&e->link_lock);
    if (!any)
        return;
    pthread_mutex_lock(&e->status_lock);
    struct vfmig_progress *progress = &e->progress;
    progress->pages = pages;
    progress->zero_pages = zero;
    if (e->stamps.parked) {
        progress->sent_stopped_bytes = bytes - e->bytes_at_stop;
        progress->memory_stopped_bytes = (pages + zero - e->pages_at_stop) * VFMIG_PAGE_SIZE;
    } else {
        progress->sent_running_bytes = bytes;
        progress->memory_running_bytes = (pages + zero) * VFMIG_PAGE_SIZE;
    }
    if (moved.running && moved.pages_total >= moved.pages_done)
        progress->remaining_bytes = (moved.pages_total - moved.pages_done) * VFMIG_PAGE_SIZE;
    pthread_mutex_unlock(&e->status_lock);
}

void engine_snapshot(struct engine *e, struct vfmig_progress *ret_progress)
{
    engine_count_bytes(e);
    pthread_mutex_lock(&e->status_lock);
    *ret_progress = e->progress;
    pthread_mutex_unlock(&e->status_lock);
}

/* --- the downtime in parts --- */

static uint64_t between(uint64_t from, uint64_t to)
{
    return from && to > from ? to - from : 0;
}

/* A moment of the destination's clock on ours. */
static uint64_t converted(const struct engine *e, uint64_t theirs)
{
    return theirs ? (uint64_t)((int64_t)theirs - e->clock.offset_ns) : 0;
}

void engine_downtime(struct engine *e)
{
    const struct engine_stamps *at = &e->stamps;
    struct vfmig_downtime *down = &e->progress.downtime;

    pthread_mutex_lock(&e->inbox_lock);
    struct engine_report report = e->report;
    pthread_mutex_unlock(&e->inbox_lock);
    pthread_mutex_lock(&e->status_lock);
    *down = (struct vfmig_downtime){
        .vcpus_stop_ns = between(at->stop_asked, at->parked),
        .snapshot_ns = between(at->snapshot_begin, at->snapshot_end),
        .devices_stop_ns = between(at->devices_asked, at->devices_stopped),
        .vm_state_ns = between(at->state_begin, at->state_end),
        .final_log_ns = between(at->log_begin, at->log_end),
        .final_data_ns = between(at->log_end, at->sent),
        .ready_ns = between(at->sent, at->ready),
        .grant_journal_ns = between(at->grant_journal_begin, at->grant_journal_end),
        .journal_ns = at->journal_stopped_ns,
    };
    if (report.valid) {
        down->grant_ns = between(at->grant_sent, converted(e, report.grant_received));
        down->resume_ns = between(report.grant_received, report.running);
        down->total_ns = between(at->stop_asked, converted(e, report.running));
        down->journal_ns += report.journal_ns;
        down->device_load_ns = report.device_load_ns;
        down->state_load_ns = report.state_load_ns;
        down->clock_error_ns = e->clock.error_ns;
    }
    uint64_t parts = down->vcpus_stop_ns + down->snapshot_ns + down->devices_stop_ns +
                     down->vm_state_ns + down->final_log_ns + down->final_data_ns +
                     down->ready_ns + down->grant_journal_ns + down->grant_ns + down->resume_ns;
    down->unaccounted_ns = down->total_ns > parts ? down->total_ns - parts : 0;
    pthread_mutex_unlock(&e->status_lock);
    engine_trace(
        e, DOWNTIME, VFMIG_U(down->total_ns), VFMIG_U(down->vcpus_stop_ns),
        VFMIG_U(down->snapshot_ns), VFMIG_U(down->devices_stop_ns), VFMIG_U(down->vm_state_ns),
        VFMIG_U(down->final_log_ns), VFMIG_U(down->final_data_ns), VFMIG_U(down->ready_ns),
        VFMIG_U(down->grant_journal_ns), VFMIG_U(down->grant_ns), VFMIG_U(down->resume_ns),
        VFMIG_U(down->unaccounted_ns), VFMIG_U(down->journal_ns), VFMIG_U(down->device_load_ns),
        VFMIG_U(down->state_load_ns), VFMIG_U(down->clock_error_ns));
}

int engine_wait_state(struct engine *e, uint64_t timeout_ns, struct vfmig_error *reterr)
{
    uint64_t until_ns = vfmig_deadline_ns(timeout_ns);
    int ret = 0;

    pthread_mutex_lock(&e->status_lock);
    while (e->progress.state <= VFMIG_MIGRATE_ACTIVE &&
           (until_ns == UINT64_MAX || vfmig_now_ns() < until_ns))
        engine_sleep_until(&e->status_changed, &e->status_lock, until_ns);
    if (e->progress.state <= VFMIG_MIGRATE_ACTIVE)
        ret = vfmig_error_set(reterr, -ETIMEDOUT, VFMIG_ORIGIN_LOCAL, 0, "the migration goes on");
    else if (e->progress.state != VFMIG_MIGRATE_COMPLETED) {
        ret = e->progress.error.code ? e->progress.error.code : -EIO;
        if (reterr)
            *reterr = e->progress.error;
    }
    pthread_mutex_unlock(&e->status_lock);
    return ret;
}
