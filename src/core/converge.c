/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/converge.h"

#include "base/sabotage.h"
#include "vfmig/memory.h"

#define SECOND_NS UINT64_C(1000000000)
/* Where nobody has measured: on the high side of what was seen on slow machines. */
#define STOP_VCPUS_NS   UINT64_C(2000000) /* kick, finish the exit, park */
#define START_VCPUS_NS  UINT64_C(500000)
#define CHANGE_NS       UINT64_C(500000) /* of a device's state, and the least that is reckoned */
#define JOURNAL_NS      UINT64_C(500000) /* the same of a durable record */
#define VM_STATE_NS     UINT64_C(500000)
#define ROWS_NS         UINT64_C(300000) /* threads that wake each other, on each side */
/* The same as it mostly is, in the place of what nobody has measured. */
#define USUAL_CHANGE_NS UINT64_C(200000)
#define USUAL_WAKE_NS   UINT64_C(200000)
#define DRAIN_BYTES     (UINT64_C(4) << 20) /* what the buffers of sockets hold */
#define PAGE_WIRE_BYTES (VFMIG_PAGE_SIZE + 20u) /* its CRC, its share of a head, a run of its own */

static uint64_t add(uint64_t a, uint64_t b)
{
    uint64_t sum;

    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

/* a * b / c, rounded up; UINT64_MAX when it does not fit or c is 0 and the rest is not. */
static uint64_t scale(uint64_t a, uint64_t b, uint64_t c)
{
    unsigned __int128 product = (unsigned __int128)a * b;

    if (c == 0)
        return product ? UINT64_MAX : 0;
    product = product / c + (product % c != 0);
    return product > UINT64_MAX ? UINT64_MAX : (uint64_t)product;
}

static uint64_t max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t known(uint64_t value, uint64_t otherwise)
{
    return value ? value : otherwise;
}

/* Pages to send once the vCPUs are parked: dirty now, and dirtied while the devices go to N and
 * until then. */
static uint64_t pages_at_stop(const struct vfmig_converge_input *in, uint64_t change)
{
    uint64_t until_stop = max(in->until_stop_ns, add(known(in->stop_ns, STOP_VCPUS_NS), change));
    uint64_t late = scale(in->dirty_pages_per_s, until_stop, SECOND_NS);
    uint64_t all = add(in->dirty_pages, vfmig_sabotage("converge-no-late") ? 0 : late);

    return in->memory_pages ? min(all, max(in->memory_pages, in->dirty_pages)) : all;
}

/* Of a part that cannot well take less than floor: what is reckoned with, or what it mostly takes. */
static uint64_t at_least(const struct vfmig_converge_input *in, uint64_t value, uint64_t floor,
                         uint64_t usual)
{
    return in->usual ? known(value, usual) : max(value, floor);
}

static void sum_up(struct vfmig_prediction *p)
{
    p->total_ns = add(add(add(p->stop_ns, p->logs_ns), add(p->send_ns, p->ready_ns)),
                      add(p->grant_ns, p->resume_ns));
}

void vfmig_converge_predict(const struct vfmig_converge_input *in, struct vfmig_prediction *ret)
{
    uint64_t change = in->devices ? at_least(in, in->change_ns, CHANGE_NS, USUAL_CHANGE_NS) : 0;
    uint64_t peer_change = in->devices ? at_least(in, in->peer_change_ns, CHANGE_NS, USUAL_CHANGE_NS) : 0;
    uint64_t peer_load = in->devices ? max(in->peer_load_ns, peer_change) : 0;
    uint64_t journal = at_least(in, in->journal_ns, JOURNAL_NS, JOURNAL_NS);
    uint64_t peer_journal = at_least(in, in->peer_journal_ns, JOURNAL_NS, JOURNAL_NS);
    uint64_t state = known(in->vm_state_ns, VM_STATE_NS);
    uint64_t rows = in->usual ? USUAL_WAKE_NS : ROWS_NS;
    uint64_t pages = pages_at_stop(in, change);
    /* What comes on top is as cold as what is known. */
    uint64_t cold = in->dirty_pages ? scale(in->cold_pages, pages, in->dirty_pages) : 0;
    uint64_t bytes = add(add(scale(pages, PAGE_WIRE_BYTES, 1), in->device_bytes), in->vm_state_bytes);
    uint64_t sending = scale(bytes, SECOND_NS, in->bandwidth);

    ret->pages = pages;
    ret->cold_pages = cold;
    ret->cold_ns = vfmig_sabotage("converge-no-cold")
                       ? 0
                       : scale(cold, in->cold_page_ns, max(in->channels, 1));
    ret->stop_ns = known(in->stop_ns, STOP_VCPUS_NS);
    ret->logs_ns = add(in->log_ns, in->log_ns);
    ret->devices_ns = vfmig_sabotage("converge-no-devices") ? 0 : add(change, in->slowest_device_ns);
    /* All at the same time over the same channels; the VM's state follows the devices' change. */
    ret->send_ns = add(max(max(add(sending, ret->cold_ns), ret->devices_ns), add(change, state)), rows);
    uint64_t drain = in->drain_ns;
    if (in->usual) /* seen late where the guest had the CPUs */
        drain = min(drain, scale(min(DRAIN_BYTES, bytes / 4), SECOND_NS, in->bandwidth));
    ret->ready_ns = add(add(drain, max(peer_load, known(in->vm_load_ns, VM_STATE_NS))),
                        add(add(peer_journal, in->rtt_ns / 2), rows));
    if (in->usual && in->devices) /* that have loaded all say so to each other, too */
        ret->ready_ns = add(ret->ready_ns, USUAL_WAKE_NS);
    ret->grant_ns = add(journal, add(in->rtt_ns / 2, in->usual ? USUAL_WAKE_NS / 2 : 0));
    /* GRANTED and RUNNING; that both come late is not reckoned with. */
    ret->resume_ns = add(add(in->usual ? add(peer_journal, peer_journal) : peer_journal,
                             add(peer_change, peer_change)),
                         in->usual ? USUAL_WAKE_NS : START_VCPUS_NS);
    sum_up(ret);
}

void vfmig_measured_fill(const struct vfmig_measured *m, bool careful,
                         struct vfmig_converge_input *in)
{
    bool wary = careful && !vfmig_sabotage("converge-careless");
    uint32_t low = wary ? VFMIG_CAREFUL_LOW : 50, high = wary ? VFMIG_CAREFUL_HIGH : 50;

    /* A guest that has the CPUs makes others late: without it the faster ones are usual. */
    uint32_t synced = careful ? high : VFMIG_USUAL_SYNC, other = careful ? 50 : VFMIG_USUAL_SYNC;

    in->usual = !careful;
    in->bandwidth = vfmig_samples_quantile(&m->bandwidth, low, in->bandwidth);
    if (!careful)
        in->bandwidth = vfmig_samples_quantile(&m->alone, 50, in->bandwidth);
    in->dirty_pages_per_s = vfmig_samples_quantile(&m->dirty_rate, high, in->dirty_pages_per_s);
    in->until_stop_ns = vfmig_samples_quantile(&m->until_stop, high, in->until_stop_ns);
    in->drain_ns = vfmig_samples_quantile(&m->drain, wary ? high : 0, in->drain_ns);
    in->stop_ns = vfmig_samples_quantile(&m->stop, high, in->stop_ns);
    in->log_ns = vfmig_samples_quantile(&m->log, high, in->log_ns);
    in->vm_state_ns = vfmig_samples_quantile(careful ? &m->vm_state : &m->vm_state_alone, high,
                                             in->vm_state_ns);
    in->vm_load_ns = vfmig_samples_quantile(careful ? &m->vm_load : &m->vm_load_alone, high,
                                            in->vm_load_ns);
    const struct vfmig_samples *journal = careful ? &m->journal : &m->journal_alone;
    const struct vfmig_samples *peer = careful ? &m->peer_journal : &m->peer_journal_alone;
    in->journal_ns = vfmig_samples_quantile(journal, synced, in->journal_ns);
    /* Two of them: that both come late is not reckoned with. */
    in->peer_journal_ns = add(vfmig_samples_quantile(peer, synced, in->peer_journal_ns),
                              vfmig_samples_quantile(peer, other, in->peer_journal_ns)) / 2;
}

uint64_t vfmig_converge_bound(const struct vfmig_converge_input *careful)
{
    struct vfmig_prediction worst = {0};

    vfmig_converge_predict(careful, &worst);
    return vfmig_sabotage("converge-no-margin")
               ? worst.total_ns
               : add(worst.total_ns, worst.total_ns / VFMIG_CAREFUL_MARGIN);
}

uint64_t vfmig_converge_trial(uint64_t dirty_pages, uint64_t rtt_ns, uint64_t limit_ns)
{
    uint64_t pages = min(max(dirty_pages / VFMIG_TRIAL_PART, VFMIG_TRIAL_MIN), VFMIG_TRIAL_MAX);

    return pages > dirty_pages / 3 || rtt_ns > limit_ns / 32 ? 0 : pages;
}

bool vfmig_converge_doubts(const struct vfmig_trial *trial, uint64_t bandwidth)
{
    return trial->ns && scale(trial->bytes, SECOND_NS, trial->ns) < bandwidth - bandwidth / 4;
}

struct vfmig_trial vfmig_converge_trials(const struct vfmig_trial *first, const struct vfmig_trial *second)
{
    const struct vfmig_trial both = {add(first->bytes, second->bytes), add(first->ns, second->ns),
                                     first->parts + second->parts};
    uint64_t rate = scale(first->bytes, SECOND_NS, first->ns);

    if (!first->ns || !second->ns)
        return both;
    return scale(second->bytes, SECOND_NS, second->ns) > add(rate, rate / 4) ? *second : both;
}

void vfmig_converge_predict_parked(const struct vfmig_converge_input *input,
                                   const struct vfmig_converge_parked *parked,
                                   struct vfmig_prediction *ret)
{
    struct vfmig_converge_input in = *input;

    in.dirty_pages_per_s = in.until_stop_ns = 0;
    in.stop_ns = parked->stop_ns;
    const struct vfmig_trial *trial = &parked->trial;
    if (trial->bytes && trial->ns) {
        /* Cold pages, the drain and all: the rest is of the same kind. */
        uint64_t woken_ns = min(3 * USUAL_WAKE_NS * trial->parts, trial->ns / 4); /* and the answers */
        in.bandwidth = scale(trial->bytes, SECOND_NS, trial->ns - (in.usual ? woken_ns : 0));
        in.cold_page_ns = in.drain_ns = 0;
    }
    vfmig_converge_predict(&in, ret);
    ret->bandwidth = in.bandwidth;
    /* The last reading finds hardly more than the snapshot did, which found hardly any, but shares the
     * CPUs with those who send. */
    ret->stop_ns = parked->stop_ns;
    uint64_t last = in.usual ? known(parked->snapshot_alone_ns, parked->snapshot_ns) : parked->snapshot_ns;
    ret->logs_ns = add(parked->snapshot_ns, last);
    if (in.usual && trial->bytes)
        ret->logs_ns = add(ret->logs_ns, last / 2);
    ret->send_ns = add(ret->send_ns, add(parked->since_ns, in.usual ? 2 * USUAL_WAKE_NS : 0));
    sum_up(ret);
}

uint64_t vfmig_converge_bound_parked(const struct vfmig_converge_input *careful,
                                     const struct vfmig_converge_parked *parked)
{
    uint64_t over_ns = add(add(parked->stop_ns, parked->snapshot_ns), parked->since_ns);
    struct vfmig_prediction worst = {0};

    vfmig_converge_predict_parked(careful, parked, &worst);
    return add(worst.total_ns, (worst.total_ns - min(over_ns, worst.total_ns)) / VFMIG_CAREFUL_MARGIN);
}

enum vfmig_converge_verdict vfmig_converge_recheck(const struct vfmig_converge *converge,
                                                   uint64_t bound_ns, uint32_t returns,
                                                   uint64_t now_ns)
{
    bool over = converge->deadline_ns && now_ns >= converge->deadline_ns;

    if (bound_ns <= converge->limit_ns || vfmig_sabotage("converge-no-recheck"))
        return VFMIG_CONVERGE_GO;
    if (over || returns >= VFMIG_MAX_RETURNS)
        return converge->force ? VFMIG_CONVERGE_GO : VFMIG_CONVERGE_GIVE_UP;
    return VFMIG_CONVERGE_AGAIN;
}

enum vfmig_converge_verdict vfmig_converge_decide(const struct vfmig_converge *converge,
                                                  const struct vfmig_converge_input *careful,
                                                  uint64_t now_ns)
{
    if (converge->deadline_ns && now_ns >= converge->deadline_ns)
        return converge->force ? VFMIG_CONVERGE_GO : VFMIG_CONVERGE_GIVE_UP;
    if (careful->rounds < VFMIG_CONVERGE_MIN_ROUNDS)
        return VFMIG_CONVERGE_AGAIN;
    return add(vfmig_converge_bound(careful), converge->extra_ns) <= converge->limit_ns ? VFMIG_CONVERGE_GO
                                                               : VFMIG_CONVERGE_AGAIN;
}

int32_t vfmig_converge_error(uint64_t predicted_ns, uint64_t measured_ns)
{
    bool less = predicted_ns < measured_ns;
    uint64_t difference = less ? measured_ns - predicted_ns : predicted_ns - measured_ns;
    uint64_t error = measured_ns ? min(scale(difference, 1000, measured_ns), INT32_MAX) : 0;

    return less ? -(int32_t)error : (int32_t)error;
}

/* Of a working set written all over in random order the share 1 - exp(-x) is seen where x times its
 * size was written; x over that share, in hundredths, for shares of 0, 1/16 ... 15/16. Above that
 * it is as good as all of it, and 3 is what is reckoned. */
static const uint16_t unseen[16] = {100, 103, 107, 111, 115, 120, 125, 132,
                                    139, 147, 157, 169, 185, 206, 238, 296};

uint64_t vfmig_converge_momentary(uint64_t pages, uint64_t working_set_pages, uint64_t time_ns)
{
    uint64_t share = scale(pages, 16, max(working_set_pages, max(pages, 1)));
    uint64_t rate = pages ? scale(pages, SECOND_NS, max(time_ns, 1)) : 0;

    return min(scale(rate, share < 16 ? unseen[share] : 300, 100), UINT64_MAX - 1);
}

uint64_t vfmig_converge_log(const struct vfmig_log_reading *a, const struct vfmig_log_reading *b,
                            uint64_t pages)
{
    const struct vfmig_log_reading *more = a->pages > b->pages ? a : b;
    const struct vfmig_log_reading *less = more == a ? b : a;

    if (less->pages <= pages || more->pages - less->pages < max(more->pages / 8, 1) || more->ns <= less->ns)
        return min(a->ns, b->ns);
    uint64_t saved = scale(less->pages - pages, more->ns - less->ns, more->pages - less->pages);
    return saved < less->ns ? less->ns - saved : 0;
}

uint64_t vfmig_converge_alone(uint64_t busy_ns, uint64_t vcpu_ns, uint64_t waited_ns, uint32_t cpus)
{
    uint64_t back = min(vcpu_ns / (cpus ? cpus : 1), waited_ns);

    return busy_ns - min(back, busy_ns / 2);
}
