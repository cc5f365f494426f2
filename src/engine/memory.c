/* SPDX-License-Identifier: BSD-3-Clause */
/* The source's memory: what the trackers say, and rounds of sending it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/bitmap.h"
#include "base/sabotage.h"
#include "engine/engine.h"
#include "io/sock.h"

#define SECOND_NS  UINT64_C(1000000000)
#define LOG_OFF_NS UINT64_C(500000000) /* how long the guest is waited for before the logs go off */

int engine_maps_init(struct engine *e, struct vfmig_error *reterr)
{
    struct vfmig_dirty_map *maps[] = {&e->map, &e->fresh, &e->seen};
    /* What is passed on is not looked at: rounds are marks alone, however much it is. A map has one page
     * at least, whose bit nobody sets. */
    struct vfmig_ram_block page = e->vm.memory.blocks[0];
    page.size = VFMIG_PAGE_SIZE;
    const struct vfmig_memory least = {.blocks = &page, .block_count = 1};
    const struct vfmig_memory *memory = e->options.local ? &least : &e->vm.memory;

    for (size_t i = 0; i < 3; i++) {
        int ret = vfmig_dirty_map_init(maps[i], memory, reterr);
        if (ret) {
            while (i-- > 0)
                vfmig_dirty_map_done(maps[i]);
            return ret;
        }
    }
    if (!e->options.local)
        vfmig_dirty_map_fill(&e->map); /* the first round is everything */
    e->maps_made = true;
    return 0;
}

void engine_maps_done(struct engine *e)
{
    if (!e->maps_made)
        return;
    vfmig_dirty_map_done(&e->map);
    vfmig_dirty_map_done(&e->fresh);
    vfmig_dirty_map_done(&e->seen);
    e->maps_made = false;
}

static void trace_tracker(struct engine *e, uint32_t number, const char *op, int ret,
                          uint64_t begin_ns)
{
    engine_trace(e, TRACKER, VFMIG_U(number), VFMIG_S(e->vm.trackers[number]->ops->name),
                 VFMIG_S(op), VFMIG_I(ret), VFMIG_U(vfmig_now_ns() - begin_ns));
}

int engine_trackers_start(struct engine *e, struct vfmig_error *reterr)
{
    if (e->options.local) /* what is written is there already */
        return 0;
    for (uint32_t i = 0; i < e->vm.tracker_count; i++) {
        struct vfmig_tracker *tracker = e->vm.trackers[i];
        uint64_t begin = vfmig_now_ns();
        int ret = tracker->ops->start(tracker, &e->vm.memory, reterr);

        trace_tracker(e, i, "start", ret, begin);
        if (ret) {
            vfmig_error_prefix(reterr, "tracker %s", tracker->ops->name);
            while (i-- > 0)
                (void)e->vm.trackers[i]->ops->stop(e->vm.trackers[i], NULL);
            e->trackers_on = false;
            return ret;
        }
    }
    e->trackers_on = true;
    e->last_sync_ns = e->last_quiet_ns = vfmig_now_ns();
    return 0;
}

/* The guest is on its way to the other side, perhaps on this very host: what goes over all of memory
 * would take a CPU from it. Ends when it runs there, and when it turns back or nobody tells. */
static void let_guest_go_first(struct engine *e)
{
    uint64_t device_ns = e->options.device_timeout_ns;
    uint64_t until_ns = vfmig_now_ns() + (device_ns < LOG_OFF_NS ? device_ns : LOG_OFF_NS);

    pthread_mutex_lock(&e->inbox_lock);
    while (!e->report.valid && !e->report_lost && !atomic_load(&e->abort) && vfmig_now_ns() < until_ns)
        engine_sleep_until(&e->inbox_wake, &e->inbox_lock, until_ns);
    pthread_mutex_unlock(&e->inbox_lock);
}

static int stop_trackers(struct engine *e, bool slow, struct vfmig_error *reterr)
{
    int first = 0;

    for (uint32_t i = 0; i < e->vm.tracker_count; i++) {
        struct vfmig_tracker *tracker = e->vm.trackers[i];
        if (tracker->slow_stop != slow)
            continue;
        uint64_t begin = vfmig_now_ns();
        int ret = tracker->ops->stop(tracker, first ? NULL : reterr);

        trace_tracker(e, i, "stop", ret, begin);
        if (ret && !first) {
            vfmig_error_prefix(reterr, "tracker %s", tracker->ops->name);
            first = ret;
        }
    }
    return first;
}

int engine_trackers_stop(struct engine *e, struct vfmig_error *reterr)
{
    if (!e->trackers_on)
        return 0;
    int ret = stop_trackers(e, /* slow= */ false, reterr);
    if (e->stamps.sent && !e->file)
        let_guest_go_first(e);
    int slow_ret = stop_trackers(e, /* slow= */ true, ret ? NULL : reterr);
    e->trackers_on = false;
    return ret ? ret : slow_ret;
}

static void take_all(struct engine *e)
{
    for (uint32_t b = 0; b < e->vm.memory.block_count; b++)
        vfmig_bitmap_set_range_atomic(e->map.bitmaps[b], 0,
                                      e->vm.memory.blocks[b].size >> VFMIG_PAGE_SHIFT);
}

/* C68: without an atomic read-and-clear the devices that a tracker watches have to be quiet
 * meanwhile. Where one of them has no NDMA that is so only when all are stopped. */
bool engine_log_wants_quiet(const struct engine *e)
{
    if (e->options.local)
        return false;
    for (uint32_t i = 0; i < e->vm.device_count; i++)
        if (!(e->vm.devices[i]->info.features & VFMIG_FEATURE_NDMA))
            return false;
    for (uint32_t i = 0; i < e->vm.tracker_count; i++)
        if (!e->vm.trackers[i]->atomic)
            return true;
    return false;
}

static bool readable(const struct vfmig_tracker *tracker, enum engine_log log)
{
    if (log == ENGINE_LOG_RUNNING)
        return tracker->atomic || vfmig_sabotage("split-log-read-running");
    return log == ENGINE_LOG_STOPPED || !tracker->atomic;
}

static void note_sync(struct engine *e, uint32_t i, int ret, uint64_t took_ns)
{
    const struct vfmig_tracker *tracker = e->vm.trackers[i];

    if (i >= VFMIG_PROGRESS_TRACKERS)
        return;
    struct vfmig_tracker_report *report = &e->progress.trackers[i];
    pthread_mutex_lock(&e->status_lock);
    snprintf(report->name, sizeof(report->name), "%s", tracker->ops->name);
    report->page_bytes = tracker->page_bytes ? tracker->page_bytes : VFMIG_PAGE_SIZE;
    report->syncs++;
    report->failures += ret != 0;
    report->full = tracker->full;
    report->sync_ns += took_ns;
    if (took_ns > report->longest_ns)
        report->longest_ns = took_ns;
    e->progress.tracker_count = e->vm.tracker_count;
    pthread_mutex_unlock(&e->status_lock);
}

/* What both kinds of trackers say in one round adds up. With the vCPUs parked it is no rate any more
 * that could be told. Since when pages were gathered. */
static uint64_t tell_dirty_rate(struct engine *e, enum engine_log log, uint64_t pages, uint64_t now)
{
    bool quiet = log == ENGINE_LOG_QUIET;
    uint64_t *last_ns = quiet ? &e->last_quiet_ns : &e->last_sync_ns;
    uint64_t since = now > *last_ns ? now - *last_ns : 0;

    if (since && !e->stamps.parked)
        e->dirty_rate = (quiet ? e->dirty_rate : 0) +
                        (uint64_t)((double)pages * (double)SECOND_NS / (double)since);
    *last_ns = now;
    return since;
}

/* Reads and clears the logs that can be now. A tracker that fails has lost what it knew: everything
 * is dirty. */
void engine_trackers_sync(struct engine *e, enum engine_log log, uint64_t *ret_pages)
{
    uint64_t begin = vfmig_now_ns();
    uint64_t pages;

    *ret_pages = 0;
    e->last_sync_ns = e->options.local ? begin : e->last_sync_ns;
    if (e->options.local)
        return;
    for (uint32_t i = 0; i < e->vm.tracker_count; i++) {
        struct vfmig_tracker *tracker = e->vm.trackers[i];
        struct vfmig_error error = {0};
        if (!readable(tracker, log))
            continue;
        uint64_t asked = vfmig_now_ns();
        atomic_store(&e->asked_tracker, tracker);
        int ret = tracker->ops->sync(tracker, &e->fresh, &error);

        atomic_store(&e->asked_tracker, NULL);
        note_sync(e, i, ret, vfmig_now_ns() - asked);
        trace_tracker(e, i, "sync", ret, asked);
        if (ret)
            take_all(e);
    }
    /* What they said goes into what is to be sent (a round may be taking bits from there) and into
     * what was ever seen. */
    struct vfmig_dirty_counts counts;
    vfmig_dirty_map_gather(&e->fresh, &e->map, &e->seen, /* alone= */ log != ENGINE_LOG_STOPPED,
                           &counts);
    pages = counts.fresh;
    uint64_t now = vfmig_now_ns();
    uint64_t since = tell_dirty_rate(e, log, pages, now);
    e->dirty_pages = counts.map;
    if (!e->stamps.parked) {
        e->cold_pages = vfmig_mover_count_new(e->mover, &e->map);
        engine_measure_log(e, pages, since, now - begin);
    }
    engine_trace(e, LOG, VFMIG_U(pages), VFMIG_U(e->dirty_pages), VFMIG_U(e->dirty_rate),
                 VFMIG_U(now - begin));
    pthread_mutex_lock(&e->status_lock);
    e->progress.working_set_pages = counts.seen;
    e->progress.dirty_bytes = e->dirty_rate * VFMIG_PAGE_SIZE;
    e->progress.remaining_bytes = e->dirty_pages * VFMIG_PAGE_SIZE;
    pthread_mutex_unlock(&e->status_lock);
    *ret_pages = pages;
}

/* Without waits, the rate is what the channels take; with them, what people see. */
static void tell_rate(struct engine *e, uint64_t bytes, uint64_t took_ns)
{
    uint64_t rate = took_ns ? (uint64_t)((double)bytes * (double)SECOND_NS / (double)took_ns) : 0;

    pthread_mutex_lock(&e->status_lock);
    e->progress.rounds = e->rounds;
    e->progress.rate_bytes = rate;
    pthread_mutex_unlock(&e->status_lock);
}

/* What a device without pre-copy will have to say: nobody asks it while it runs. */
static void ask_devices(struct engine *e)
{
    for (uint32_t i = 0; i < e->vm.device_count; i++) {
        struct device_worker *dev = &e->devices[i];
        uint64_t left = 0;

        if (dev->target->info.features & VFMIG_FEATURE_PRE_COPY ||
            dev->target->info.dialect == VFMIG_DIALECT_REGION ||
            dev->target->ops->left(dev->target, &left, NULL) || left == UINT64_MAX)
            continue;
        pthread_mutex_lock(&dev->lock);
        dev->left_bytes = left;
        pthread_mutex_unlock(&dev->lock);
    }
}

static uint64_t process_cpu_ns(void)
{
    struct timespec used = {0};

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * SECOND_NS + (uint64_t)used.tv_nsec;
}

/* Sends what is known dirty. */
int engine_send_round(struct engine *e, uint32_t work, uint64_t round, struct vfmig_error *reterr)
{
    struct vfmig_mover_progress before, after;
    uint64_t begin = vfmig_now_ns(), cpu_ns = process_cpu_ns();

    vfmig_mover_progress(e->mover, &before);
    engine_trace(e, ROUND_BEGIN, VFMIG_U(round), VFMIG_S(vfmig_work_name(work)));
    int ret = vfmig_mover_send(e->mover, &e->map, round, reterr);
    uint64_t took = vfmig_now_ns() - begin;
    vfmig_mover_progress(e->mover, &after);
    uint64_t bytes = after.bytes_sent - before.bytes_sent;
    if (ret == 0 && work == VFMIG_WORK_ROUND) {
        e->rounds++;
        tell_rate(e, bytes, took);
        engine_measure_round(e, bytes, &after, process_cpu_ns() - cpu_ns);
    }
    engine_trace(e, ROUND_END, VFMIG_U(round), VFMIG_S(vfmig_work_name(work)), VFMIG_I(ret),
                 VFMIG_U(after.pages_done), VFMIG_U(bytes), VFMIG_U(took),
                 VFMIG_U(took ? (double)bytes * (double)SECOND_NS / (double)took : 0));
    return ret;
}

/* And then asks the trackers what was dirtied meanwhile. */
int engine_round(struct engine *e, struct vfmig_error *reterr)
{
    uint64_t pages;

    engine_tell_stopped(e, false); /* it had been, in vain */
    int ret = engine_send_round(e, VFMIG_WORK_ROUND, ++e->round, reterr);
    atomic_store(&e->round_over, true);
    if (ret == 0)
        ask_devices(e);
    if (ret == 0 && !vfmig_sabotage("skip-sync"))
        engine_trackers_sync(e, ENGINE_LOG_RUNNING, &pages);
    return ret;
}
