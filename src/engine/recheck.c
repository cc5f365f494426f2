/* SPDX-License-Identifier: BSD-3-Clause */
/* The look back in S4: the vCPUs are parked, what is left is known, and no device is stopped yet.
 * How fast memory goes without the guest beside it is tried with a part of it. */
#include <string.h>

#include "engine/engine.h"
#include "io/sock.h"

/* A destination that says nothing for so long is not waited for: there is no figure then. */
#define ANSWER_NS UINT64_C(50000000)

/* Until the destination has all of the round, or until_ns; when it told. */
static uint64_t await_taken(struct engine *e, uint64_t round, uint64_t until_ns)
{
    uint64_t taken_ns = 0;

    pthread_mutex_lock(&e->inbox_lock);
    for (;;) {
        pthread_mutex_lock(&e->measure.lock);
        taken_ns = e->measure.taken.round >= round ? e->measure.taken_ns : 0;
        pthread_mutex_unlock(&e->measure.lock);
        if (taken_ns || e->report_lost || atomic_load(&e->abort) || vfmig_now_ns() >= until_ns)
            break;
        engine_sleep_until(&e->inbox_wake, &e->inbox_lock, until_ns);
    }
    pthread_mutex_unlock(&e->inbox_lock);
    return taken_ns;
}

static int try_part(struct engine *e, struct vfmig_trial *ret, struct vfmig_error *reterr)
{
    struct vfmig_mover_progress before, after;
    uint64_t pages =
        vfmig_converge_trial(e->dirty_pages, e->clock.rtt_ns, e->options.downtime_limit_ns);

    if (!pages)
        return 0;
    uint64_t round = ++e->stop_round;
    uint64_t begin_ns = vfmig_now_ns();
    vfmig_mover_progress(e->mover, &before);
    vfmig_mover_set_part(e->mover, pages);
    int rc = engine_send_round(e, VFMIG_WORK_TRIAL, round, reterr);
    vfmig_mover_set_part(e->mover, 0);
    if (rc)
        return rc;
    vfmig_mover_progress(e->mover, &after);
    e->dirty_pages -= after.pages_done < e->dirty_pages ? after.pages_done : e->dirty_pages;
    e->cold_pages = vfmig_mover_count_new(e->mover, &e->map);
    uint64_t sent_ns = vfmig_now_ns();
    uint64_t taken_ns = await_taken(e, round, sent_ns + ANSWER_NS + (sent_ns - begin_ns));
    if (taken_ns > begin_ns + e->clock.rtt_ns / 2)
        *ret = (struct vfmig_trial){.bytes = after.bytes_sent - before.bytes_sent,
                                    .ns = taken_ns - begin_ns - e->clock.rtt_ns / 2,
                                    .parts = 1};
    return 0;
}

int engine_trial(struct engine *e, struct vfmig_error *reterr)
{
    struct vfmig_trial first = {0}, second = {0};
    struct vfmig_converge_input expected;
    int ret = 0;

    engine_measure_input(e, false, &expected);
    if (!e->file && !e->options.local)
        ret = try_part(e, &first, reterr);
    if (ret == 0 && vfmig_converge_doubts(&first, expected.bandwidth))
        ret = try_part(e, &second, reterr);
    e->measure.trial = vfmig_converge_trials(&first, &second);
    return ret;
}

static struct vfmig_converge_parked parked(struct engine *e)
{
    struct vfmig_converge_parked parked = {.trial = e->measure.trial,
                                           .snapshot_alone_ns = e->measure.snapshot_alone_ns};

    pthread_mutex_lock(&e->status_lock);
    parked.stop_ns = e->stamps.parked - e->stamps.stop_asked;
    parked.snapshot_ns = e->stamps.snapshot_end - e->stamps.snapshot_begin;
    parked.since_ns = vfmig_now_ns() - e->stamps.snapshot_end;
    pthread_mutex_unlock(&e->status_lock);
    return parked;
}

/* The guest runs again, as if it had not been stopped. */
static void take_back(struct engine *e, uint64_t found_ns, uint64_t known_ns)
{
    struct engine_measure *m = &e->measure;

    /* Of one bad figure no more than a limit, halved with each round, stands in the way. */
    m->extra_ns = found_ns > known_ns ? found_ns - known_ns : 0;
    if (m->extra_ns > e->options.downtime_limit_ns)
        m->extra_ns = e->options.downtime_limit_ns;
    e->round = e->stop_round; /* a trial was one, too */
    vfmig_mover_set_bandwidth(e->mover, e->options.max_bandwidth);
    vfmig_mover_set_seated(e->mover, false);
    pthread_mutex_lock(&e->status_lock);
    e->stamps.stop_asked = e->stamps.parked = e->stamps.journal_stopped_ns = 0;
    e->stamps.snapshot_begin = e->stamps.snapshot_end = 0;
    e->progress.sent_stopped_bytes = e->progress.memory_stopped_bytes = 0;
    e->progress.returns++;
    pthread_mutex_unlock(&e->status_lock);
    if (!m->throttle.percent)
        return;
    atomic_store(&m->throttled, true);
    int ret = e->vm.ops->throttle(e->vm.opaque, m->throttle.percent, NULL);
    engine_trace(e, THROTTLE, VFMIG_U(m->throttle.percent), VFMIG_I(ret));
}

enum vfmig_converge_verdict engine_recheck(struct engine *e)
{
    const struct vfmig_converge converge = {.limit_ns = e->options.downtime_limit_ns,
                                            .deadline_ns = engine_deadline(e),
                                            .force =
                                                e->options.on_deadline == VFMIG_ON_DEADLINE_FORCE};
    const struct vfmig_converge_parked now = parked(e);
    struct vfmig_converge_input expected, careful;
    struct vfmig_prediction prediction = {0};

    engine_measure_input(e, false, &expected);
    engine_measure_input(e, true, &careful);
    vfmig_converge_predict_parked(&expected, &now, &prediction);
    prediction.bound_ns = vfmig_converge_bound_parked(&careful, &now);
    uint64_t known_ns = e->progress.prediction.bound_ns;
    /* Else it was forced, or goes into a file: no way back. */
    bool wanted = known_ns <= converge.limit_ns && !e->file;
    enum vfmig_converge_verdict verdict =
        wanted ? vfmig_converge_recheck(&converge, prediction.bound_ns, e->progress.returns,
                                        vfmig_now_ns())
               : VFMIG_CONVERGE_GO;

    engine_trace(e, CHECK,
                 VFMIG_S(verdict == VFMIG_CONVERGE_AGAIN ? "back"
                         : verdict == VFMIG_CONVERGE_GO  ? "go"
                                                         : "fail"),
                 VFMIG_U(prediction.total_ns), VFMIG_U(prediction.bound_ns),
                 VFMIG_U(now.stop_ns + now.snapshot_ns + now.since_ns), VFMIG_U(e->dirty_pages),
                 VFMIG_U(now.trial.bytes), VFMIG_U(now.trial.ns));
    pthread_mutex_lock(&e->status_lock);
    e->progress.predicted_downtime_ns = prediction.total_ns;
    e->progress.prediction = prediction;
    pthread_mutex_unlock(&e->status_lock);
    if (verdict == VFMIG_CONVERGE_AGAIN)
        take_back(e, prediction.bound_ns, known_ns);
    return verdict;
}
