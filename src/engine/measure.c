/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/measure.h"

#include <string.h>
#include <unistd.h>

#include "base/le.h"
#include "base/sabotage.h"
#include "engine/engine.h"
#include "io/sock.h"

#define SECOND_NS UINT64_C(1000000000)
/* A round, or a device's pass, of fewer bytes says little about a rate. */
#define MEASURED_BYTES        (UINT64_C(4) << 20)
/* Bytes per second, of a link on which nothing but such rounds was sent: 1 Gbit/s, until one tells more.
 * How long a few pages take says something about latency only. */
#define UNKNOWN_BANDWIDTH     (UINT64_C(119) << 20)
/* One page in so many was sent in a round, if that: it took the time to look at the others. */
#define MOSTLY_EMPTY          8u
#define MEASURED_DEVICE_BYTES (UINT64_C(256) << 10)
/* The journal is tried once in so long: often enough to forget that it was late once, and so seldom
 * that READY hardly ever waits for a trial. */
#define PROBE_EVERY_NS UINT64_C(50000000)
/* Between two processes of one host that send each other no memory: what a socket carries at least. */
#define LOCAL_BANDWIDTH (UINT64_C(1) << 30)
#define TAKEN_BYTES   80u
#define LOADED_BYTES  20u

void engine_measure_init(struct engine_measure *m)
{
    memset(m, 0, sizeof(*m));
    pthread_mutex_init(&m->lock, NULL);
}

void engine_measure_done(struct engine_measure *m)
{
    pthread_mutex_destroy(&m->lock);
}

/* Under the lock. Nothing takes no time at all: 0 would mean that it is not known. */
void engine_measure_sample(struct vfmig_samples *all, uint64_t took_ns, struct vfmig_samples *alone,
                           uint64_t alone_ns)
{
    vfmig_samples_add(all, took_ns);
    vfmig_samples_add(alone, alone_ns ? alone_ns : 1);
}

static uint64_t rate_of(uint64_t bytes, uint64_t ns)
{
    return ns ? (uint64_t)((double)bytes * (double)SECOND_NS / (double)ns) : 0;
}

/* --- source: what is measured --- */

void engine_measure_round(struct engine *e, uint64_t bytes, const struct vfmig_mover_progress *moved,
                          uint64_t process_ns)
{
    struct engine_measure *m = &e->measure;
    uint64_t busy_ns = moved->busy_ns;
    /* Of this process, what was not sending was the guest and those that serve it. */
    uint64_t guest_ns = process_ns > moved->use.cpu_ns ? process_ns - moved->use.cpu_ns : 0;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    pthread_mutex_lock(&m->lock);
    m->round = e->round;
    m->round_bytes = bytes;
    m->round_busy_ns = busy_ns;
    m->round_alone_ns = vfmig_converge_alone(busy_ns, guest_ns, moved->use.waited_ns,
                                             cpus > 0 ? (uint32_t)cpus : 1);
    m->round_sent_ns = vfmig_now_ns();
    if (e->options.local)
        m->rough_bandwidth = LOCAL_BANDWIDTH;
    else if (busy_ns && bytes >= MEASURED_BYTES)
        m->rough_bandwidth = rate_of(bytes, busy_ns);
    else if (!m->rough_bandwidth)
        m->rough_bandwidth = UNKNOWN_BANDWIDTH;
    if (bytes >= MEASURED_BYTES)
        m->mostly_empty = bytes < moved->pages_done * VFMIG_PAGE_SIZE / MOSTLY_EMPTY;
    pthread_mutex_unlock(&m->lock);
}

void engine_measure_log(struct engine *e, uint64_t pages, uint64_t since_ns, uint64_t took_ns)
{
    struct engine_measure *m = &e->measure;
    uint64_t seen = vfmig_dirty_map_count(&e->seen);

    pthread_mutex_lock(&m->lock);
    vfmig_samples_add(&m->samples.log, took_ns);
    m->readings[1] = m->samples.log.count > 1 ? m->readings[0] : (struct vfmig_log_reading){pages, took_ns};
    m->readings[0] = (struct vfmig_log_reading){pages, took_ns};
    if (since_ns)
        vfmig_samples_add(&m->samples.dirty_rate, vfmig_converge_momentary(pages, seen, since_ns));
    pthread_mutex_unlock(&m->lock);
}

/* Of the round that just arrived whole: how fast it went into memory, had all of it been warm. */
static void sample_round(struct engine *e, const struct engine_taken *taken, uint64_t now_ns)
{
    struct engine_measure *m = &e->measure;
    uint64_t cold_pages = taken->cold_pages - m->taken.cold_pages;
    uint64_t late_ns = now_ns > m->round_sent_ns ? now_ns - m->round_sent_ns : 0;

    /* Into cold memory, or of few bytes among empty pages, it is another rate: not a word about what
     * comes last. */
    if (m->round_bytes >= MEASURED_BYTES && !m->mostly_empty && cold_pages < m->round_bytes / VFMIG_PAGE_SIZE / 8) {
        vfmig_samples_add(&m->samples.bandwidth, rate_of(m->round_bytes, m->round_busy_ns));
        vfmig_samples_add(&m->samples.alone, rate_of(m->round_bytes, m->round_alone_ns));
    }
    vfmig_samples_add(&m->samples.drain,
                      late_ns > e->clock.rtt_ns / 2 ? late_ns - e->clock.rtt_ns / 2 : 0);
}

void engine_measure_taken(struct engine *e, const void *data, size_t size)
{
    struct engine_measure *m = &e->measure;
    uint64_t now_ns = vfmig_now_ns(), value[TAKEN_BYTES / 8];

    if (size != TAKEN_BYTES)
        return;
    for (unsigned i = 0; i < TAKEN_BYTES / 8; i++)
        value[i] = vfmig_le64_get((const uint8_t *)data + 8 * i);
    const struct engine_taken taken = {.round = value[0], .cold_pages = value[1],
                                       .cold_page_ns = value[2], .cold_page_high_ns = value[3],
                                       .change_ns = value[4], .change_high_ns = value[5],
                                       .load_ns = value[6], .journal_ns = value[7],
                                       .load_alone_ns = value[8], .journal_alone_ns = value[9]};
    pthread_mutex_lock(&m->lock);
    if (taken.round == m->round && taken.round > m->taken.round && e->channel_count)
        sample_round(e, &taken, now_ns);
    if (taken.journal_ns)
        engine_measure_sample(&m->samples.peer_journal, taken.journal_ns,
                              &m->samples.peer_journal_alone, taken.journal_alone_ns);
    if (taken.load_ns && !m->samples.vm_load.count) /* and the vCPUs' about as much */
        engine_measure_sample(&m->samples.vm_load, 2 * taken.load_ns, &m->samples.vm_load_alone,
                              2 * taken.load_alone_ns);
    m->taken = taken;
    m->taken_ns = now_ns;
    pthread_mutex_unlock(&m->lock);
    engine_trace(e, TAKEN, VFMIG_U(taken.round), VFMIG_U(taken.cold_pages),
                 VFMIG_U(taken.cold_page_ns), VFMIG_U(taken.journal_ns));
}

void engine_measure_loaded(struct engine *e, const void *data, size_t size)
{
    const uint8_t *in = data;
    uint32_t index = size == LOADED_BYTES ? vfmig_le32_get(in) : UINT32_MAX;

    if (index >= e->vm.device_count || !e->devices[index].made)
        return;
    struct device_worker *dev = &e->devices[index];
    pthread_mutex_lock(&dev->lock);
    dev->load_rate = rate_of(vfmig_le64_get(in + 4), vfmig_le64_get(in + 12));
    pthread_mutex_unlock(&dev->lock);
}

void engine_measure_journal(struct engine *e)
{
    struct engine_measure *m = &e->measure;
    uint64_t took_ns = 0;

    if (vfmig_now_ns() < m->probe_at_ns)
        return;
    /* A disk that fails is found out by the record that matters. */
    m->probe_at_ns = vfmig_now_ns() + PROBE_EVERY_NS;
    const struct vfmig_cpu_use begin = vfmig_cpu_use();
    if (!e->journal || vfmig_journal_probe(e->journal, &took_ns, NULL) < 0)
        return;
    uint64_t alone_ns = vfmig_cpu_alone(&begin, took_ns);
    pthread_mutex_lock(&m->lock);
    if (e->role == VFMIG_FLOW_SOURCE)
        engine_measure_sample(&m->samples.journal, took_ns, &m->samples.journal_alone, alone_ns);
    m->journal_ns = took_ns;
    m->journal_alone_ns = alone_ns;
    pthread_mutex_unlock(&m->lock);
}

/* --- destination --- */

void engine_measure_on_round(void *user, uint64_t round)
{
    struct engine *e = user;

    atomic_store(&e->measure.round_done, round);
    /* At most one waits: a peer that sends marks only must not fill the ring of events. */
    if (!atomic_exchange(&e->measure.round_posted, true))
        engine_post(e, &(struct engine_event){.kind = ENGINE_EVENT_ROUND});
}

static void tell_loads(struct engine *e)
{
    uint8_t out[LOADED_BYTES];

    for (uint32_t i = 0; i < e->vm.device_count; i++) {
        struct device_worker *dev = &e->devices[i];
        pthread_mutex_lock(&dev->lock);
        uint64_t bytes = dev->loaded_bytes, ns = dev->loaded_ns;
        bool news = bytes >= dev->loaded_told + MEASURED_DEVICE_BYTES;
        dev->loaded_told = news ? bytes : dev->loaded_told;
        pthread_mutex_unlock(&dev->lock);
        if (!news)
            continue;
        vfmig_le32_put(out, i);
        vfmig_le64_put(out + 4, bytes);
        vfmig_le64_put(out + 12, ns);
        (void)engine_send_progress(e, PROGRESS_LOADED, out, sizeof(out));
    }
}

/* With the guest stopped nobody has the CPUs that made most of them late. */
#define USUAL_CHANGE_PERCENT 25u

/* Of the slowest device: once late is not always late, but a slow device holds up all others. */
static uint64_t slowest_change(struct engine *e, uint32_t percent)
{
    uint64_t slowest = 0;

    for (uint32_t i = 0; i < e->vm.device_count; i++) {
        struct device_worker *dev = &e->devices[i];
        if (!dev->made)
            continue;
        pthread_mutex_lock(&dev->lock);
        uint64_t ns = vfmig_samples_quantile(&dev->changes, percent, 0);
        slowest = ns > slowest ? ns : slowest;
        pthread_mutex_unlock(&dev->lock);
    }
    return slowest;
}

static uint64_t page_ns(const struct vfmig_rates *rates, uint32_t percent)
{
    uint64_t rate = vfmig_rates_quantile(rates, percent);

    return rate ? VFMIG_PAGE_SIZE * SECOND_NS / rate : 0;
}

void engine_measure_tell(struct engine *e)
{
    struct engine_measure *m = &e->measure;
    struct vfmig_rates cold;
    uint64_t cold_pages;
    uint8_t out[TAKEN_BYTES];

    atomic_store(&m->round_posted, false);
    uint64_t round = atomic_load(&m->round_done);
    if (!e->linked || !e->flow_active)
        return;
    vfmig_receiver_cold(e->receiver, &cold, &cold_pages);
    pthread_mutex_lock(&m->lock);
    const uint64_t value[TAKEN_BYTES / 8] = {round, cold_pages, page_ns(&cold, 50), page_ns(&cold, VFMIG_CAREFUL_LOW),
                                             slowest_change(e, USUAL_CHANGE_PERCENT), slowest_change(e, 100),
                                             m->external_load_ns, m->journal_ns,
                                             m->external_load_alone_ns, m->journal_alone_ns};
    m->journal_ns = m->journal_alone_ns = 0;
    pthread_mutex_unlock(&m->lock);
    for (unsigned i = 0; i < TAKEN_BYTES / 8; i++)
        vfmig_le64_put(out + 8 * i, value[i]);
    (void)engine_send_progress(e, PROGRESS_TAKEN, out, sizeof(out));
    tell_loads(e);
    engine_measure_journal(e); /* told with the next one */
}

/* --- source: the decision --- */

/* A kick and the end of an exit, as it mostly is; the careful calculation has its own idea. */
#define USUAL_STOP_NS UINT64_C(300000)

/* A device nobody has seen saving: careful means as slow as slow ones are. */
#define UNKNOWN_DEVICE_RATE (UINT64_C(200) << 20)

static void measure_device(struct device_worker *dev, bool careful, uint64_t bandwidth,
                           struct vfmig_converge_input *input)
{
    pthread_mutex_lock(&dev->lock);
    uint64_t rate = dev->rate_bytes ? dev->rate_bytes : dev->load_rate;
    if (dev->load_rate && dev->load_rate < rate)
        rate = dev->load_rate;
    if (!rate)
        rate = careful && bandwidth > UNKNOWN_DEVICE_RATE ? UNKNOWN_DEVICE_RATE : bandwidth;
    uint64_t ns = rate ? (uint64_t)((double)dev->left_bytes * (double)SECOND_NS / (double)rate) : 0;
    input->device_bytes += dev->left_bytes;
    /* The link carried that already, whatever rounds of a few pages say. */
    if (!careful && dev->rate_bytes > input->bandwidth)
        input->bandwidth = dev->rate_bytes;
    if (ns > input->slowest_device_ns)
        input->slowest_device_ns = ns;
    pthread_mutex_unlock(&dev->lock);
}

void engine_measure_input(struct engine *e, bool careful, struct vfmig_converge_input *input)
{
    struct engine_measure *m = &e->measure;

    *input = (struct vfmig_converge_input){.dirty_pages = e->dirty_pages,
                                           .memory_pages = e->progress.memory_bytes / VFMIG_PAGE_SIZE,
                                           .cold_pages = e->cold_pages,
                                           .channels = e->channel_count,
                                           .devices = e->vm.device_count > 0,
                                           .vm_state_bytes = e->vm_state_bytes,
                                           .rtt_ns = e->clock.rtt_ns,
                                           .rounds = e->rounds};
    pthread_mutex_lock(&m->lock);
    input->bandwidth = m->rough_bandwidth;
    bool told = !m->mostly_empty && m->rough_bandwidth != UNKNOWN_BANDWIDTH;
    uint64_t unknown = e->channel_count && vfmig_channel_is_near(e->channels[0]) ? LOCAL_BANDWIDTH
                                                                                 : UNKNOWN_BANDWIDTH;
    if (!careful && !told && input->bandwidth < unknown)
        input->bandwidth = unknown;
    input->cold_page_ns = careful ? m->taken.cold_page_high_ns : m->taken.cold_page_ns;
    input->peer_change_ns = m->taken.change_ns;
    input->peer_load_ns = careful ? m->taken.change_high_ns : m->taken.change_ns;
    vfmig_measured_fill(&m->samples, careful, input);
    pthread_mutex_unlock(&m->lock);
    if (!careful) {
        input->dirty_pages_per_s = e->dirty_rate;
        input->stop_ns = input->stop_ns ? input->stop_ns : USUAL_STOP_NS;
        /* Saved and loaded once so far, when the guest had the CPUs: it is much the same work, and the one
         * that was late says nothing about it. */
        if (input->vm_state_ns && input->vm_state_ns < input->vm_load_ns)
            input->vm_load_ns = input->vm_state_ns;
        if (input->vm_load_ns && input->vm_load_ns < input->vm_state_ns)
            input->vm_state_ns = input->vm_load_ns;
        input->log_ns = vfmig_converge_log(&m->readings[0], &m->readings[1], 0);
    }
    input->change_ns = slowest_change(e, careful ? 100 : USUAL_CHANGE_PERCENT);
    if (!careful && input->change_ns && input->change_ns < input->peer_change_ns)
        input->peer_change_ns = input->peer_load_ns = input->change_ns; /* devices of one kind */
    for (uint32_t i = 0; i < e->vm.device_count; i++)
        measure_device(&e->devices[i], careful, input->bandwidth, input);
    /* The logs were read a moment ago; the devices go to N before the vCPUs stop. */
    uint64_t now_ns = vfmig_now_ns();
    input->until_stop_ns = now_ns - (e->last_sync_ns < now_ns ? e->last_sync_ns : now_ns) +
                           input->change_ns + input->stop_ns + (careful ? SECOND_NS / 500 : SECOND_NS / 2000);
}

static void note_decision(struct engine *e, enum vfmig_converge_verdict verdict,
                          const struct vfmig_prediction *prediction)
{
    pthread_mutex_lock(&e->status_lock);
    e->progress.predicted_downtime_ns = prediction->total_ns;
    e->progress.decided_downtime_ns = prediction->total_ns;
    e->progress.prediction = *prediction;
    e->progress.throttle_percent = e->measure.throttle.percent;
    e->progress.stuck_rounds = e->measure.throttle.stuck;
    e->progress.not_converging = verdict == VFMIG_CONVERGE_AGAIN &&
                                 vfmig_throttle_is_stuck(&e->measure.throttle);
    pthread_mutex_unlock(&e->status_lock);
    engine_trace(e, DECIDE,
                 VFMIG_S(verdict == VFMIG_CONVERGE_AGAIN ? "again"
                         : verdict == VFMIG_CONVERGE_GO  ? "go"
                                                         : "fail"),
                 VFMIG_U(prediction->total_ns), VFMIG_U(e->options.downtime_limit_ns),
                 VFMIG_U(e->dirty_pages), VFMIG_U(e->dirty_rate), VFMIG_U(prediction->bound_ns),
                 VFMIG_U(e->cold_pages), VFMIG_U(prediction->bandwidth));
}

static void slow_down(struct engine *e, uint64_t bound_ns)
{
    struct engine_measure *m = &e->measure;
    struct vfmig_error error = {0};

    if (!vfmig_throttle_round(&m->throttle, bound_ns))
        return;
    atomic_store(&m->throttled, true);
    int ret = e->vm.ops->throttle(e->vm.opaque, m->throttle.percent, &error);
    engine_trace(e, THROTTLE, VFMIG_U(m->throttle.percent), VFMIG_I(ret));
    /* A VMM that cannot any more: the guest is as it was, only slower to move. */
    if (ret)
        m->throttle.max_percent = m->throttle.percent = 0;
}

/* A round of a guest that is stuck for other reasons than its memory takes no time at all; without
 * a pause the trackers would be read thousands of times a second for nothing. */
#define PAUSE_NS UINT64_C(20000000)
/* So long a destination is waited for that is rounds behind. */
#define LAG_NS   UINT64_C(1000000000)

uint64_t engine_pause(const struct engine *e)
{
    const struct engine_measure *m = &e->measure;

    return (m->throttle.stuck >= VFMIG_STUCK_ROUNDS || m->lag_since_ns) && m->round_busy_ns < PAUSE_NS
               ? PAUSE_NS - m->round_busy_ns
               : 0;
}

/* Of a device's data that is sent and not loaded yet: more than this has the CPUs when the guest has stopped. */
#define LAG_BYTES (UINT64_C(64) << 10)

static bool loads_late(struct engine *e)
{
    for (uint32_t i = 0; e->window && i < e->vm.device_count; i++)
        if (e->devices[i].made && e->devices[i].bytes > atomic_load(&e->devices[i].credit_bytes) + LAG_BYTES)
            return true;
    return false;
}

/* A destination that has not even dealt with the round before the last, all of it empty pages perhaps, or
 * whose devices still load, is not ready for the end: that would be waited for in the downtime. Not for ever. */
static bool lags(struct engine *e)
{
    struct engine_measure *m = &e->measure;
    uint64_t now_ns = vfmig_now_ns();

    pthread_mutex_lock(&m->lock);
    bool behind = m->taken.round + 1 < e->round && !e->options.local;
    pthread_mutex_unlock(&m->lock);
    if (e->file || (!behind && !loads_late(e))) {
        m->lag_since_ns = 0;
        return false;
    }
    m->lag_since_ns = m->lag_since_ns ? m->lag_since_ns : now_ns;
    return now_ns - m->lag_since_ns < LAG_NS;
}

enum vfmig_converge_verdict engine_decide(struct engine *e)
{
    const struct vfmig_converge converge = {
        .limit_ns = e->options.downtime_limit_ns,
        .deadline_ns = engine_deadline(e),
        .force = e->options.on_deadline == VFMIG_ON_DEADLINE_FORCE,
        .extra_ns = e->measure.extra_ns};
    struct vfmig_converge_input expected, careful;
    struct vfmig_prediction prediction = {0};

    engine_measure_input(e, false, &expected);
    engine_measure_input(e, true, &careful);
    vfmig_converge_predict(&expected, &prediction);
    prediction.bandwidth = expected.bandwidth;
    prediction.bound_ns = vfmig_converge_bound(&careful);
    if (__builtin_add_overflow(prediction.bound_ns, e->measure.extra_ns, &prediction.bound_ns))
        prediction.bound_ns = UINT64_MAX; /* nothing is known of the link */
    e->measure.extra_ns /= 2; /* what was in the way may have gone */
    enum vfmig_converge_verdict verdict = vfmig_converge_decide(&converge, &careful, vfmig_now_ns());
    if (verdict == VFMIG_CONVERGE_AGAIN && careful.rounds >= VFMIG_CONVERGE_MIN_ROUNDS)
        slow_down(e, prediction.bound_ns);
    if (verdict == VFMIG_CONVERGE_GO && prediction.bound_ns <= converge.limit_ns && lags(e))
        verdict = VFMIG_CONVERGE_AGAIN;
    note_decision(e, verdict, &prediction);
    return verdict;
}

void engine_throttle_off(struct engine *e)
{
    if (!atomic_exchange(&e->measure.throttled, false) || vfmig_sabotage("throttle-stays"))
        return;
    int ret = e->vm.ops->throttle(e->vm.opaque, 0, NULL);
    engine_trace(e, THROTTLE, VFMIG_U(0), VFMIG_I(ret));
}

void engine_measure_judge(struct engine *e)
{
    pthread_mutex_lock(&e->status_lock);
    e->progress.prediction_error = vfmig_converge_error(e->progress.prediction.total_ns,
                                                        e->progress.downtime.total_ns);
    e->progress.decided_error = vfmig_converge_error(e->progress.decided_downtime_ns,
                                                     e->progress.downtime.total_ns);
    pthread_mutex_unlock(&e->status_lock);
}
