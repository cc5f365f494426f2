/* SPDX-License-Identifier: BSD-3-Clause */
/* What the engine does in threads beside its control thread (engine/workers.c, source_works.c,
 * destination_works.c): one job of a device at a time, works piece by piece. */
#include "sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/sabotage.h"
#include "core/state.h"

#define IDLE_NS (100 * MS)

/* --- devices --- */

static void next_job(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    if (d->working || !d->job_count)
        return;
    d->working = 1;
    event_in(some(MS / 20, MS / 5), EVENT_JOB, side, device, 0, 0);
}

void job_add(unsigned side, unsigned device, enum job_kind kind, unsigned arg)
{
    struct device *d = &sim.side[side].dev[device];

    if (d->job_count == JOBS_MAX) {
        broke("dead-end", "device %u is asked again and again", device);
        return;
    }
    d->jobs[d->job_count++] = (struct job){(uint8_t)kind, (uint8_t)arg};
    next_job(side, device);
}

static void job_ends(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    memmove(d->jobs, d->jobs + 1, --d->job_count * sizeof(d->jobs[0]));
    d->working = 0;
    next_job(side, device);
}

static void data_ends(unsigned side, unsigned device, int err)
{
    job_ends(side, device);
    flow_event(side, &(struct vfmig_flow_event){
                         .kind = VFMIG_FLOW_EVENT_DATA_DONE, .device = device, .err = err});
}

static void change_ends(unsigned side, unsigned device, int err)
{
    struct device *d = &sim.side[side].dev[device];
    uint8_t want = d->jobs[0].arg;
    enum vfmig_state real = d->m.failed ? VFMIG_STATE_ERROR : vfmig_dev_state(&d->m);
    struct vfmig_flow_event event = {
        .kind = VFMIG_FLOW_EVENT_DEVICE_DONE, .device = device, .err = err, .state = real};

    if (!err && want != VFMIG_WANT_RESET && real != want && !vfmig_sabotage("believe-state"))
        event.err = -EPROTO;
    job_ends(side, device);
    flow_event(side, &event);
}

void device_answered(unsigned side, unsigned device, int err)
{
    struct device *d = &sim.side[side].dev[device];

    if (!d->working || !d->job_count)
        return;
    if (d->jobs[0].kind == JOB_GO) {
        change_ends(side, device, err);
        return;
    }
    /* JOB_RECOVER: first it is brought back, then reset. */
    if (err && d->jobs[0].arg == VFMIG_STATE_RUNNING) {
        d->jobs[0].arg = VFMIG_WANT_RESET;
        event_in(MS, EVENT_JOB, side, device, 0, 0);
        return;
    }
    job_ends(side, device);
}

static void change(unsigned side, unsigned device, uint8_t want)
{
    struct device *d = &sim.side[side].dev[device];
    struct vfmig_dev_event event = {.type = VFMIG_DEV_EVENT_SET_V2, .value = want, .id = 1};

    if (want == VFMIG_WANT_RESET)
        d->reset_done = 1;
    if (sim.side[side].out_of_memory && d->jobs[0].kind == JOB_GO) {
        sim.side[side].out_of_memory--;
        fault_struck(FAULT_MEMORY, side);
        change_ends(side, device, -ENOMEM);
        return;
    }
    if (d->fails_old && d->jobs[0].kind == JOB_GO) {
        d->fails_old = 0;
        fault_struck(FAULT_STAYS, side);
        change_ends(side, device, -EIO);
        return;
    }
    if (want == VFMIG_WANT_RESET) {
        event = (struct vfmig_dev_event){.type = VFMIG_DEV_EVENT_RESET, .id = 2};
    } else if (device % 2) { /* every other one speaks the region dialect */
        event.type = VFMIG_DEV_EVENT_WRITE_V1;
        vfmig_state_to_bits(want, &event.value);
    }
    device_event(side, device, event);
}

static void stream_out(unsigned side, unsigned device, bool final)
{
    struct side *s = &sim.side[side];
    struct device *d = &s->dev[device];
    uint8_t out[VFMIG_DEVICE_PIECE_BYTES + SEGMENT_BYTES];
    struct vfmig_device_piece piece = {.device = device, .segment = d->segments};
    int n = s->abort ? -ECANCELED : device_save(side, device, final);

    if (n > 0) {
        vfmig_device_piece_encode(out, &piece);
        memcpy(out + VFMIG_DEVICE_PIECE_BYTES, d->frame, (size_t)n);
        d->segments++;
        d->bytes += (uint64_t)n;
        uint32_t size = VFMIG_DEVICE_PIECE_BYTES + (uint32_t)n;
        if (!send_record(side, device % CHANNELS, VFMIG_RECORD_DEVDATA, out, size, size))
            n = -EPIPE;
    } else if (n == 0 && final) {
        struct vfmig_device_end end = {
            .device = device, .segments = d->segments, .bytes = d->bytes};
        vfmig_device_end_encode(out, &end);
        if (!send_record(side, device % CHANNELS, VFMIG_RECORD_DEVEND, out, VFMIG_DEVICE_END_BYTES,
                         VFMIG_DEVICE_END_BYTES))
            n = -EPIPE;
    }
    if (n > 0)
        event_in(some(MS / 10, MS / 2), EVENT_JOB, side, device, 0, 0);
    else
        data_ends(side, device, n);
}

static void load(unsigned side, unsigned device)
{
    struct side *s = &sim.side[side];
    struct device *d = &s->dev[device];
    int err = 0;

    if (s->abort) {
        data_ends(side, device, -ECANCELED);
        return;
    }
    if (!d->in_count && s->cut) { /* no more of it comes */
        data_ends(side, device, -EBADMSG);
        return;
    }
    if (!d->in_count) {
        event_in(MS, EVENT_JOB, side, device, 0, 0);
        return;
    }
    struct segment *first = d->in[0];
    memmove(d->in, d->in + 1, --d->in_count * sizeof(d->in[0]));
    bool end = first->size == 0;
    if (!end)
        err = device_load(side, device, first->data, first->size);
    free(first);
    if (err || end)
        data_ends(side, device, err);
    else
        event_in(some(MS / 10, MS / 3), EVENT_JOB, side, device, 0, 0);
}

void job_runs(unsigned side, unsigned device)
{
    struct device *d = &sim.side[side].dev[device];

    if (!d->job_count)
        return;
    fault_point(side);
    if (d->jobs[0].kind != JOB_DATA)
        change(side, device, d->jobs[0].arg);
    else if (side == SRC)
        stream_out(side, device, d->jobs[0].arg == VFMIG_WORK_LAST_DATA);
    else
        load(side, device);
}

/* --- works --- */

static void work_ends(unsigned side, unsigned work, int err)
{
    struct side *s = &sim.side[side];

    s->works &= ~(1u << work);
    flow_event(side, &(struct vfmig_flow_event){
                         .kind = VFMIG_FLOW_EVENT_WORK_DONE, .work = work, .err = err});
}

static void read_log(struct side *s)
{
    for (unsigned i = 0; i < PAGE_WORDS; i++)
        s->known[i] |= s->written[i];
    memset(s->written, 0, sizeof(s->written));
}

/* The next pages of one channel: their table, CRCs and bytes. 0: none are left there. */
static int send_pages(unsigned side, unsigned channel)
{
    static uint8_t out[VFMIG_RUNS_PREFIX_BYTES +
                       RECORD_PAGES * (VFMIG_RUN_BYTES + VFMIG_PAGE_CRC_BYTES + VFMIG_PAGE_SIZE)];
    static uint8_t table[VFMIG_MAX_RUNS_BYTES];
    struct side *s = &sim.side[side];
    struct vfmig_page_run runs[RECORD_PAGES], zeros[PAGES];
    uint32_t crcs[RECORD_PAGES], count = 0, zero_count = 0;

    for (unsigned page = channel; page < PAGES && count < RECORD_PAGES; page += CHANNELS) {
        uint64_t bit = UINT64_C(1) << (page % 64);
        if (!(s->sending[page / 64] & bit))
            continue;
        s->sending[page / 64] &= ~bit;
        struct vfmig_page_run run = {.page_count = 1, .first_page = page};
        if (!page_writer(memory_of[side][page])) {
            zeros[zero_count++] = run;
            continue;
        }
        crcs[count] = vfmig_crc32c(0, memory_of[side][page], VFMIG_PAGE_SIZE);
        runs[count++] = run;
    }
    s->zero_sent[channel] += zero_count;
    s->pages_sent[channel] += count;
    if (zero_count) {
        uint32_t size = (uint32_t)vfmig_runs_encode(table, zeros, zero_count, NULL);
        if (!send_record(side, channel, VFMIG_RECORD_ZERO, table, size, size))
            return -EPIPE;
    }
    if (!count)
        return 0;
    uint32_t size = (uint32_t)vfmig_runs_encode(table, runs, count, crcs);
    memcpy(out, table, size);
    for (uint32_t i = 0; i < count; i++)
        memcpy(out + size + i * VFMIG_PAGE_SIZE, memory_of[side][runs[i].first_page],
               VFMIG_PAGE_SIZE);
    return send_record(side, channel, VFMIG_RECORD_MEMORY, out, size + count * VFMIG_PAGE_SIZE,
                       size)
               ? (int)count
               : -EPIPE;
}

static uint32_t round_of(const struct side *s, unsigned work)
{
    return work == VFMIG_WORK_ROUND ? s->round
                                    : s->stop_round + (work == VFMIG_WORK_MEMORY ? 1 : 2);
}

static int send_marks(unsigned side, uint32_t round)
{
    const struct side *s = &sim.side[side];
    uint8_t out[VFMIG_ROUND_BYTES];

    for (unsigned c = 0; c < CHANNELS; c++) {
        struct vfmig_round mark = {
            .round = round, .pages = s->pages_sent[c], .zero_pages = s->zero_sent[c]};
        vfmig_round_encode(out, &mark);
        if (!send_record(side, c, VFMIG_RECORD_ROUND, out, sizeof(out), sizeof(out)))
            return -EPIPE;
    }
    return 0;
}

static void round_goes_on(unsigned side, unsigned work)
{
    struct side *s = &sim.side[side];
    int sent = s->abort ? -ECANCELED : 0;

    for (unsigned c = 0; c < CHANNELS && sent >= 0; c++) {
        int n = send_pages(side, c);
        sent = n < 0 ? n : sent + n;
    }
    if (sent > 0) {
        event_in(some(MS / 4, MS), EVENT_WORK, side, work, 0, 0);
        return;
    }
    for (unsigned c = 0; c < CHANNELS && sent == 0; c++) {
        uint8_t out[VFMIG_ROUND_BYTES];
        struct vfmig_round mark = {
            .round = round_of(s, work), .pages = s->pages_sent[c], .zero_pages = s->zero_sent[c]};
        vfmig_round_encode(out, &mark);
        if (!send_record(side, c, VFMIG_RECORD_ROUND, out, sizeof(out), sizeof(out)))
            sent = -EPIPE;
    }
    if (sent == 0 && work == VFMIG_WORK_ROUND)
        read_log(s);
    work_ends(side, work, sent);
}

/* A part of what is left, to see how fast it goes now (engine/recheck.c); half of the time there is
 * no need to. */
static int trial(struct side *s)
{
    int sent = 0;

    if (s->abort || one_in(2))
        return s->abort ? -ECANCELED : 0;
    for (unsigned i = 0; i < PAGE_WORDS; i++)
        s->sending[i] |= s->known[i];
    memset(s->known, 0, sizeof(s->known));
    s->stop_round++;
    for (unsigned c = 0; c < CHANNELS && sent >= 0; c++)
        sent = send_pages(SRC, c);
    for (unsigned i = 0; i < PAGE_WORDS; i++)
        s->known[i] |= s->sending[i];
    memset(s->sending, 0, sizeof(s->sending));
    return sent < 0 ? sent : send_marks(SRC, s->stop_round);
}

static bool send_vm(unsigned side, uint32_t kind, uint64_t round)
{
    uint8_t out[16 + sizeof(struct vm_state)] = {0};

    memcpy(out, &kind, sizeof(kind));
    memcpy(out + 8, &round, sizeof(round));
    memcpy(out + 16, &sim.side[side].vm, sizeof(struct vm_state));
    return send_record(side, 0, VFMIG_RECORD_VMSTATE, out, sizeof(out), sizeof(out));
}

bool source_sends_first(void)
{
    return send_vm(SRC, 1, 0);
}

static void source_work(unsigned work)
{
    struct side *s = &sim.side[SRC];
    int err = 0;

    switch (work) {
    case VFMIG_WORK_TRACK_START:
        s->tracking = true;
        memset(s->written, 0, sizeof(s->written));
        memset(s->known, 0xff, sizeof(s->known));
        break;
    case VFMIG_WORK_TRACK_STOP:
        s->tracking = false;
        break;
    case VFMIG_WORK_VIOMMU_IDLE:
        if (requests_open(s) && sim.now < s->work_at[work] * MS + IDLE_NS && !s->abort) {
            event_in(2 * MS, EVENT_WORK, SRC, work, 0, 0);
            return;
        }
        err = requests_open(s) ? -ETIMEDOUT : 0;
        break;
    case VFMIG_WORK_VCPU_STOP:
        s->vcpus = false;
        s->stop_round = s->round;
        break;
    case VFMIG_WORK_VCPU_START:
        vcpus_start(SRC);
        break;
    case VFMIG_WORK_QUIET_LOG:
    case VFMIG_WORK_SNAPSHOT:
        read_log(s);
        break;
    case VFMIG_WORK_TRIAL:
        err = trial(s);
        break;
    case VFMIG_WORK_FINAL_LOG:
        if (!vfmig_sabotage("rely-on-snapshot"))
            read_log(s);
        break;
    case VFMIG_WORK_VM_STATE:
        if (!send_vm(SRC, 2, 0) || !send_vm(SRC, 3, s->stop_round + 2))
            err = -EPIPE;
        break;
    default:
        round_goes_on(SRC, work);
        return;
    }
    work_ends(SRC, work, err);
}

static bool rounds_complete(const struct side *s)
{
    for (unsigned c = 0; c < CHANNELS; c++)
        if (s->round_seen[c] < s->final_round)
            return false;
    return s->inbox_full[3];
}

static int doubts(const struct side *s)
{
    for (unsigned i = 0; i < PAGE_WORDS; i++)
        if (s->doubt[i])
            return -EBADMSG;
    return 0;
}

static void destination_work(unsigned work)
{
    struct side *s = &sim.side[DST];
    bool waits = (work == VFMIG_WORK_EXTERNAL && !s->inbox_full[1]) ||
                 (work == VFMIG_WORK_RECEIVE && !rounds_complete(s));
    int err = 0;

    if (waits && !s->abort && !s->cut) {
        event_in(MS, EVENT_WORK, DST, work, 0, 0);
        return;
    }
    if (waits)
        err = -ECANCELED;
    else if (work == VFMIG_WORK_RECEIVE)
        err = doubts(s);
    else if (work == VFMIG_WORK_STATE_LOAD && !s->inbox_full[2])
        err = -ECANCELED;
    else if (work == VFMIG_WORK_STATE_LOAD) {
        s->vm = s->inbox[3];
        memcpy(s->vm.serial, s->inbox[2].serial, sizeof(s->vm.serial));
        memcpy(s->vm.pending, s->inbox[2].pending, sizeof(s->vm.pending));
    } else if (work == VFMIG_WORK_VCPU_START) {
        oracle_takes_over(DST);
        vcpus_start(DST);
    }
    work_ends(DST, work, err);
}

static bool may_fail(unsigned work)
{
    return work != VFMIG_WORK_VCPU_START && work != VFMIG_WORK_TRACK_STOP &&
           work != VFMIG_WORK_VCPU_STOP;
}

void work_begins(unsigned side, unsigned work)
{
    struct side *s = &sim.side[side];
    bool memory =
        work == VFMIG_WORK_ROUND || work == VFMIG_WORK_MEMORY || work == VFMIG_WORK_LAST_MEMORY;

    s->works |= 1u << work;
    s->work_at[work] = (uint32_t)(sim.now / MS);
    s->round += work == VFMIG_WORK_ROUND;
    if (memory) {
        for (unsigned i = 0; i < PAGE_WORDS; i++)
            s->sending[i] |= s->known[i];
        memset(s->known, 0, sizeof(s->known));
    }
    event_in(some(MS / 10, MS), EVENT_WORK, side, work, 0, 0);
}

void work_goes_on(unsigned side, unsigned work)
{
    struct side *s = &sim.side[side];

    if (!(s->works & (1u << work)))
        return;
    fault_point(side);
    if (s->out_of_memory && may_fail(work)) {
        s->out_of_memory--;
        fault_struck(FAULT_MEMORY, side);
        work_ends(side, work, -ENOMEM);
        return;
    }
    if (side == SRC)
        source_work(work);
    else
        destination_work(work);
}
