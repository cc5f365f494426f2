/* SPDX-License-Identifier: BSD-3-Clause */
/* What others learn about a migration: its state, its steps, the downtime in parts, the trace. */
#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "engine/engine.h"
#include "io/sock.h"

static const char *const state_names[VFMIG_MIGRATE_STATE_COUNT] = {
    [VFMIG_MIGRATE_NONE] = "none",           [VFMIG_MIGRATE_ACTIVE] = "active",
    [VFMIG_MIGRATE_COMPLETED] = "completed", [VFMIG_MIGRATE_FAILED] = "failed",
    [VFMIG_MIGRATE_CANCELLED] = "cancelled", [VFMIG_MIGRATE_UNDECIDED] = "undecided",
    [VFMIG_MIGRATE_PAUSED] = "paused",       [VFMIG_MIGRATE_SAVED] = "saved",
};

const char *vfmig_migrate_state_name(unsigned state)
{
    return state < VFMIG_MIGRATE_STATE_COUNT ? state_names[state] : "unknown";
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
        if (step == VFMIG_STEP_S3) {
            progress->dma_in_flight = now.dma_in_flight;
            progress->page_faults_open = now.page_faults_open;
        }
        if (now.interrupts_latched > progress->interrupts_latched)
            progress->interrupts_latched = now.interrupts_latched;
    }
    pthread_mutex_unlock(&e->status_lock);
    if (entered)
        engine_trace(e, STEP, VFMIG_S(vfmig_step_name(step)), VFMIG_B(vcpus_run_in(step)),
                     VFMIG_U(now.guest_progress), VFMIG_U(now.dma_in_flight),
                     VFMIG_U(now.interrupts_latched), VFMIG_U(now.page_faults_open));
}

void engine_state(struct engine *e, enum vfmig_migrate_state state)
{
    /* Before others see it: who does finds the line, and what the VMM made of it. */
    engine_trace(e, STATE, VFMIG_S(vfmig_migrate_state_name(state)));
    pthread_mutex_lock(&e->status_lock);
    if (state == VFMIG_MIGRATE_ACTIVE)
        e->progress.started_ns = vfmig_now_ns();
    else
        e->progress.ended_ns = vfmig_now_ns();
    e->progress.state = state;
    pthread_cond_broadcast(&e->status_changed);
    pthread_mutex_unlock(&e->status_lock);
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
        .check_ns = between(at->snapshot_end, at->devices_asked),
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
    uint64_t parts = down->vcpus_stop_ns + down->snapshot_ns + down->check_ns + down->devices_stop_ns +
                     down->vm_state_ns + down->final_log_ns + down->final_data_ns +
                     down->ready_ns + down->grant_journal_ns + down->grant_ns + down->resume_ns;
    down->unaccounted_ns = down->total_ns > parts ? down->total_ns - parts : 0;
    pthread_mutex_unlock(&e->status_lock);
    engine_trace(
        e, DOWNTIME, VFMIG_U(down->total_ns), VFMIG_U(down->vcpus_stop_ns),
        VFMIG_U(down->snapshot_ns), VFMIG_U(down->check_ns), VFMIG_U(down->devices_stop_ns), VFMIG_U(down->vm_state_ns),
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
    else if (e->progress.state != VFMIG_MIGRATE_COMPLETED && e->progress.state != VFMIG_MIGRATE_SAVED) {
        ret = e->progress.error.code ? e->progress.error.code : -EIO;
        if (reterr)
            *reterr = e->progress.error;
    }
    pthread_mutex_unlock(&e->status_lock);
    return ret;
}
