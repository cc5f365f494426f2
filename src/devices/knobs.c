/* SPDX-License-Identifier: BSD-3-Clause */
/* Any device behind its knobs: the ops of a device are wrapped, and latencies, rates and failures
 * happen in the wrapper, so that the device knows nothing of them.
 *
 * Quiescing slowly holds an operation in flight open, so the drain waits for it as for DMA and the
 * server goes on serving. Pre-copy data faster than its rate is not there yet: "nothing now", with
 * something left (A16, X6). The other latencies and rates wait inside the callback, as any author's
 * callback that takes long does: meanwhile the serving thread serves nobody. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "devices/devices.h"

#define SECOND_NS   UINT64_C(1000000000)
#define TIMER       (VFMIG_DEVICE_TIMERS - 1) /* ours; devices here number theirs from 0 */
#define SAVE_MIN    4096u                     /* what save is promised */
#define BURST_SHARE 10u                       /* at most a tenth of a second's bytes at once */

struct knobbed {
    struct vfmig_device *dev;
    struct vfmig_device_knobs knobs;
    struct vfmig_device_ops ops;
    void *user;

    struct vfmig_dma hold; /* what a slow quiescing waits for */
    bool holding;
    uint64_t credit; /* bytes that may be saved now */
    uint64_t credit_at;
    uint32_t calls[VFMIG_DEVICE_STEP_COUNT];
    uint64_t bytes[VFMIG_DEVICE_STEP_COUNT]; /* since the save or load began */
};

static void wait_ns(uint64_t ns)
{
    struct timespec left = {(time_t)(ns / SECOND_NS), (long)(ns % SECOND_NS)};

    while (ns && nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

/* ---- failures -------------------------------------------------------------------------------- */

static int failure(const struct knobbed *k)
{
    return k->knobs.fail_errno ? -k->knobs.fail_errno : -EIO;
}

/* A call of the step: 0, or why it fails. */
static int call_step(struct knobbed *k, enum vfmig_device_step step)
{
    uint32_t calls = ++k->calls[step];

    if (k->knobs.fail_step != step || k->knobs.fail_byte)
        return 0;
    return k->knobs.fail_at == 0 || k->knobs.fail_at == calls ? failure(k) : 0;
}

/* Bytes of the step: 0, or why the one that is to fail is among them. */
static int move_bytes(struct knobbed *k, enum vfmig_device_step step, uint64_t bytes)
{
    k->bytes[step] += bytes;
    if (k->knobs.fail_step != step || !k->knobs.fail_byte || k->bytes[step] < k->knobs.fail_byte)
        return 0;
    return failure(k);
}

/* ---- running --------------------------------------------------------------------------------- */

static int region_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    struct knobbed *k = user;
    return k->ops.region_read(k->user, bar, offset, data, size);
}

static int region_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    struct knobbed *k = user;
    return k->ops.region_write(k->user, bar, offset, data, size);
}

/* While the gate is open one operation is in flight, so that the next drain has to wait for it. */
static void hold_gate(struct knobbed *k)
{
    if (!k->knobs.arc_ns[VFMIG_DEVICE_ARC_QUIESCE])
        return;
    vfmig_device_timer(k->dev, TIMER, UINT64_MAX);
    if (!k->holding)
        k->holding = vfmig_device_dma_begin(k->dev, &k->hold) == 0;
}

static void release_gate(struct knobbed *k)
{
    if (k->holding)
        vfmig_dma_end(&k->hold);
    k->holding = false;
}

static void gate(void *user, bool open)
{
    struct knobbed *k = user;

    if (k->ops.gate)
        k->ops.gate(k->user, open);
    if (open)
        hold_gate(k);
    else if (k->holding)
        vfmig_device_timer(k->dev, TIMER,
                           vfmig_device_now_ns() + k->knobs.arc_ns[VFMIG_DEVICE_ARC_QUIESCE]);
}

static void timer(void *user, uint32_t number)
{
    struct knobbed *k = user;

    if (number == TIMER)
        release_gate(k);
    else if (k->ops.timer)
        k->ops.timer(k->user, number);
}

static void reset(void *user)
{
    struct knobbed *k = user;

    k->holding = false; /* handles of before are dead */
    k->bytes[VFMIG_DEVICE_STEP_LOAD] = 0;
    wait_ns(k->knobs.arc_ns[VFMIG_DEVICE_ARC_RESET]);
    if (k->ops.reset)
        k->ops.reset(k->user);
}

static int stop(void *user)
{
    struct knobbed *k = user;
    int r = call_step(k, VFMIG_DEVICE_STEP_STOP);

    wait_ns(k->knobs.arc_ns[VFMIG_DEVICE_ARC_STOP]);
    return r < 0 || !k->ops.stop ? r : k->ops.stop(k->user);
}

static int start(void *user)
{
    struct knobbed *k = user;
    int r = call_step(k, VFMIG_DEVICE_STEP_START);

    wait_ns(k->knobs.arc_ns[VFMIG_DEVICE_ARC_START]);
    return r < 0 || !k->ops.start ? r : k->ops.start(k->user);
}

/* ---- saving ---------------------------------------------------------------------------------- */

static int save_begin(void *user, bool running)
{
    struct knobbed *k = user;
    int r = call_step(k, VFMIG_DEVICE_STEP_SAVE_BEGIN);

    wait_ns(k->knobs.arc_ns[running ? VFMIG_DEVICE_ARC_PRECOPY : VFMIG_DEVICE_ARC_SAVE]);
    k->bytes[running ? VFMIG_DEVICE_STEP_SAVE_PRECOPY : VFMIG_DEVICE_STEP_SAVE] = 0;
    k->credit_at = vfmig_device_now_ns();
    return r < 0 || !k->ops.save_begin ? r : k->ops.save_begin(k->user, running);
}

/* Bytes that the rate allows now. */
static uint64_t save_credit(struct knobbed *k)
{
    uint64_t rate = k->knobs.save_rate, now = vfmig_device_now_ns(), most = rate / BURST_SHARE;
    uint64_t elapsed = now - k->credit_at;

    most = most < SAVE_MIN ? SAVE_MIN : most;
    elapsed = elapsed < SECOND_NS ? elapsed : SECOND_NS;
    uint64_t earned = rate / 1000 * (elapsed / 1000) / 1000;
    if (earned) { /* what is not yet a byte stays in the clock */
        k->credit = k->credit + earned < most ? k->credit + earned : most;
        k->credit_at = now;
    }
    return k->credit;
}

static ssize_t save_some(struct knobbed *k, enum vfmig_device_step step, void *buf, size_t size)
{
    bool precopy = step == VFMIG_DEVICE_STEP_SAVE_PRECOPY;
    int r = call_step(k, step);

    if (r < 0)
        return r;
    if (k->knobs.save_rate) {
        uint64_t credit = save_credit(k);
        if (credit < SAVE_MIN && precopy)
            return 0;
        while (credit < SAVE_MIN) {
            wait_ns((SAVE_MIN - credit) * SECOND_NS / k->knobs.save_rate + 1);
            credit = save_credit(k);
        }
        size = credit < size ? (size_t)credit & ~(size_t)7 : size;
    }
    ssize_t n = (precopy ? k->ops.save_precopy : k->ops.save)(k->user, buf, size);
    if (n <= 0)
        return n;
    k->credit -= (uint64_t)n < k->credit ? (uint64_t)n : k->credit;
    r = move_bytes(k, step, (uint64_t)n);
    return r < 0 ? r : n;
}

static ssize_t save_precopy(void *user, void *buf, size_t size)
{
    return save_some(user, VFMIG_DEVICE_STEP_SAVE_PRECOPY, buf, size);
}

static ssize_t save(void *user, void *buf, size_t size)
{
    return save_some(user, VFMIG_DEVICE_STEP_SAVE, buf, size);
}

static void save_end(void *user)
{
    struct knobbed *k = user;

    if (k->ops.save_end)
        k->ops.save_end(k->user);
}

static void left(void *user, uint64_t *ret_precopy, uint64_t *ret_final)
{
    struct knobbed *k = user;

    k->ops.left(k->user, ret_precopy, ret_final);
}

/* ---- loading --------------------------------------------------------------------------------- */

static int load(void *user, const void *data, size_t size)
{
    struct knobbed *k = user;
    int r = call_step(k, VFMIG_DEVICE_STEP_LOAD);

    if (r == 0)
        r = move_bytes(k, VFMIG_DEVICE_STEP_LOAD, size);
    if (r < 0)
        return r;
    if (k->knobs.load_rate)
        wait_ns((uint64_t)size * SECOND_NS / k->knobs.load_rate);
    return k->ops.load(k->user, data, size);
}

static int load_end(void *user)
{
    struct knobbed *k = user;
    int r = call_step(k, VFMIG_DEVICE_STEP_LOAD_END);

    wait_ns(k->knobs.arc_ns[VFMIG_DEVICE_ARC_LOAD]);
    return r < 0 || !k->ops.load_end ? r : k->ops.load_end(k->user);
}

/* ---- life ------------------------------------------------------------------------------------ */

static void knobbed_free(void *user)
{
    struct knobbed *k = user;

    if (k->ops.free)
        k->ops.free(k->user);
    free(k);
}

/* What a device leaves out keeps the library's default, unless a knob needs the call. */
static void wrap(const struct vfmig_device_ops *inner, struct vfmig_device_ops *outer)
{
    outer->region_read = inner->region_read ? region_read : NULL;
    outer->region_write = inner->region_write ? region_write : NULL;
    outer->reset = reset;
    outer->stop = stop;
    outer->start = start;
    outer->gate = gate;
    outer->save_begin = save_begin;
    outer->save_precopy = inner->save_precopy ? save_precopy : NULL;
    outer->save = inner->save ? save : NULL;
    outer->save_end = save_end;
    outer->load = inner->load ? load : NULL;
    outer->load_end = load_end;
    outer->left = inner->left ? left : NULL;
    outer->timer = timer;
    outer->free = knobbed_free;
}

int vfmig_device_new_with_knobs(const struct vfmig_device_knobs *knobs,
                                const struct vfmig_device_config *config,
                                const struct vfmig_device_ops *ops, void *user,
                                struct vfmig_device **ret_dev, struct vfmig_error *reterr)
{
    struct vfmig_device_config knobbed_config = *config;
    struct vfmig_device_ops outer = VFMIG_DEVICE_OPS_INIT;
    struct knobbed *k = calloc(1, sizeof(*k));

    if (!k && ops->free)
        ops->free(user);
    if (!k)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_LOCAL, 0, "out of memory");
    k->knobs = *knobs;
    k->ops = *ops;
    k->user = user;
    knobbed_config.no_ndma |= knobs->no_ndma;
    knobbed_config.no_precopy |= knobs->no_precopy;
    knobbed_config.no_dma_log |= knobs->no_dma_log;
    if (knobs->drain_timeout_ns)
        knobbed_config.drain_timeout_ns = knobs->drain_timeout_ns;
    if (knobs->max_data_xfer_bytes)
        knobbed_config.max_data_xfer_bytes = knobs->max_data_xfer_bytes;
    wrap(ops, &outer);
    int r = vfmig_device_new(&knobbed_config, &outer, k, ret_dev, reterr);
    if (r < 0)
        return r;
    k->dev = *ret_dev;
    hold_gate(k);
    return 0;
}
