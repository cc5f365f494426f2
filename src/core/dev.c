/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/dev.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/sabotage.h"

#define R VFMIG_V1_RUNNING
#define S VFMIG_V1_SAVING
#define Z VFMIG_V1_RESUMING
#define N VFMIG_V1_NDMA

_Static_assert(sizeof(struct vfmig_dev) == 96, "no padding: a dev may be compared and hashed");

enum vfmig_dev_phase {
    PHASE_IDLE = 0,
    PHASE_DRAIN, /* GATE_SHUT is awaited */
    PHASE_STEP,  /* the call of a sub-step is awaited */
    PHASE_UNDO,  /* the call that undoes a sub-step is awaited */
    PHASE_RESET,
};

/* The order of A18. */
enum vfmig_dev_substep {
    SUB_SET_N = 0,
    SUB_CLEAR_S,
    SUB_CLEAR_R,
    SUB_CLEAR_Z,
    SUB_SET_Z,
    SUB_CAPTURE,
    SUB_SET_R,
    SUB_PRECOPY,
    SUB_CLEAR_N,
    SUB_COUNT
};

/* What a sub-step does to the bits, what it asks of the device and how that is taken back. */
static const struct substep {
    uint8_t set, clear;
    uint8_t call, undo;
    uint8_t no_way_back;
    const char *skip; /* sabotage: the device is not asked */
} substeps[SUB_COUNT] = {
    [SUB_SET_N] = {N, 0, VFMIG_DEV_CALL_NONE, VFMIG_DEV_CALL_NONE, 0, ""},
    [SUB_CLEAR_S] = {0, S, VFMIG_DEV_CALL_END_STREAM, VFMIG_DEV_CALL_NONE, 1, "dev-skip-end"},
    [SUB_CLEAR_R] = {0, R, VFMIG_DEV_CALL_STOP, VFMIG_DEV_CALL_START, 0, "dev-skip-stop"},
    [SUB_CLEAR_Z] = {0, Z, VFMIG_DEV_CALL_LOAD, VFMIG_DEV_CALL_NONE, 1, "dev-skip-load"},
    [SUB_SET_Z] = {Z, 0, VFMIG_DEV_CALL_SELF_RESET, VFMIG_DEV_CALL_NONE, 1, "dev-skip-self-reset"},
    [SUB_CAPTURE] = {S, 0, VFMIG_DEV_CALL_CAPTURE, VFMIG_DEV_CALL_NONE, 0, "dev-skip-capture"},
    [SUB_SET_R] = {R, 0, VFMIG_DEV_CALL_START, VFMIG_DEV_CALL_STOP, 0, "dev-skip-start"},
    [SUB_PRECOPY] = {S, 0, VFMIG_DEV_CALL_PRECOPY_START, VFMIG_DEV_CALL_NONE, 0,
                     "dev-skip-precopy"},
    [SUB_CLEAR_N] = {0, N, VFMIG_DEV_CALL_NONE, VFMIG_DEV_CALL_NONE, 0, ""},
};

static bool needed(const struct vfmig_dev *dev, unsigned sub)
{
    unsigned from = dev->from, to = dev->to;
    unsigned rising = to & ~from, falling = from & ~to;

    switch (sub) {
    case SUB_CAPTURE:
        return (to & (S | R)) == S && (from & (S | R)) != S;
    case SUB_PRECOPY:
        return (to & R) && (rising & S);
    default:
        return (rising & substeps[sub].set) || (falling & substeps[sub].clear);
    }
}

/* A device without pre-copy has nothing to do with SR: its stream is empty (C22). */
static enum vfmig_dev_call call_of(const struct vfmig_dev *dev, unsigned sub)
{
    bool logs = dev->features & VFMIG_FEATURE_PRE_COPY;

    if (!logs && (sub == SUB_PRECOPY || (sub == SUB_CLEAR_S && (dev->bits & R))))
        return VFMIG_DEV_CALL_NONE;
    if (vfmig_sabotage(substeps[sub].skip))
        return VFMIG_DEV_CALL_NONE;
    return (enum vfmig_dev_call)substeps[sub].call;
}

static struct vfmig_dev_action *add(struct vfmig_dev_actions *out, enum vfmig_dev_action_type type)
{
    struct vfmig_dev_action *action = &out->list[out->count++];

    *action = (struct vfmig_dev_action){.type = type};
    return action;
}

static void await(struct vfmig_dev *dev, struct vfmig_dev_actions *out,
                  enum vfmig_dev_action_type type, enum vfmig_dev_call call)
{
    struct vfmig_dev_action *action = add(out, type);

    action->call = call;
    action->token = ++dev->token;
}

static void reply(struct vfmig_dev_actions *out, uint64_t id, int err)
{
    struct vfmig_dev_action *action = add(out, VFMIG_DEV_ACT_REPLY);

    action->id = id;
    action->err = err;
}

static void forget_drain(struct vfmig_dev *dev)
{
    dev->half_ns = UINT64_MAX;
    dev->deadline_ns = UINT64_MAX;
}

static void open_gate(struct vfmig_dev *dev, struct vfmig_dev_actions *out)
{
    dev->gate = VFMIG_DEV_GATE_OPEN;
    add(out, VFMIG_DEV_ACT_GATE_OPEN);
    add(out, VFMIG_DEV_ACT_IRQ_DELIVER);
}

/* Shuts the gate without waiting: ERROR and reset. */
static void cut_gate(struct vfmig_dev *dev, struct vfmig_dev_actions *out)
{
    if (dev->gate == VFMIG_DEV_GATE_SHUT)
        return;
    if (dev->gate == VFMIG_DEV_GATE_OPEN)
        add(out, VFMIG_DEV_ACT_IRQ_LATCH);
    add(out, VFMIG_DEV_ACT_GATE_CUT);
    dev->gate = VFMIG_DEV_GATE_SHUT;
}

static void set_stream(struct vfmig_dev *dev, struct vfmig_dev_actions *out,
                       enum vfmig_dev_stream stream)
{
    static const uint8_t actions[] = {
        [VFMIG_DEV_STREAM_NONE] = VFMIG_DEV_ACT_STREAM_DROP,
        [VFMIG_DEV_STREAM_SAVE] = VFMIG_DEV_ACT_STREAM_SAVE,
        [VFMIG_DEV_STREAM_LOAD] = VFMIG_DEV_ACT_STREAM_LOAD,
    };

    if (dev->stream == stream && !vfmig_sabotage("dev-restart-stream"))
        return; /* SR to S is one stream (A14) */
    if (stream == VFMIG_DEV_STREAM_NONE && vfmig_sabotage("dev-keep-stream"))
        return;
    dev->stream = stream;
    add(out, (enum vfmig_dev_action_type)actions[stream]);
}

/* The open write is over; the gate follows the state that was really reached. */
static void finish(struct vfmig_dev *dev, struct vfmig_dev_actions *out, int err)
{
    dev->phase = PHASE_IDLE;
    dev->shown = dev->bits;
    forget_drain(dev);
    if (!vfmig_bits_quiet(dev->bits) && dev->gate != VFMIG_DEV_GATE_OPEN)
        open_gate(dev, out);
    reply(out, dev->write_id, err);
    dev->write_open = 0;
}

static void enter_error(struct vfmig_dev *dev, struct vfmig_dev_actions *out)
{
    cut_gate(dev, out);
    set_stream(dev, out, VFMIG_DEV_STREAM_NONE);
    dev->failed = 1;
    dev->running = 0;
    dev->bits = VFMIG_V1_ERROR;
    dev->shown = dev->bits;
    if (vfmig_sabotage("dev-failure-runs") ||
        (dev->err == -EDOM && vfmig_sabotage("load-failure-runs"))) {
        dev->failed = 0;
        dev->bits = R;
    }
}

static void fail_write(struct vfmig_dev *dev, struct vfmig_dev_actions *out, int err)
{
    enter_error(dev, out);
    finish(dev, out, err);
}

/* Asks the device for a call; a device that is being stopped must see no more MMIO. */
static void issue(struct vfmig_dev *dev, struct vfmig_dev_actions *out, enum vfmig_dev_call call,
                  enum vfmig_dev_phase phase)
{
    if (call == VFMIG_DEV_CALL_STOP && !vfmig_sabotage("dev-mmio-while-stopped"))
        dev->running = 0;
    dev->phase = (uint8_t)phase;
    await(dev, out, VFMIG_DEV_ACT_CALL, call);
}

static void substep_done(struct vfmig_dev *dev, struct vfmig_dev_actions *out)
{
    unsigned sub = dev->substep;

    dev->bits = (uint8_t)((dev->bits | substeps[sub].set) & ~substeps[sub].clear);
    dev->done |= (uint16_t)(1u << sub);
    dev->substep++;
    if (sub == SUB_SET_R)
        dev->running = 1;
    if (sub == SUB_SET_R && vfmig_sabotage("dev-open-gate-early"))
        open_gate(dev, out);
    if (sub == SUB_SET_N && vfmig_sabotage("dev-n-stops-mmio"))
        dev->running = 0;
    if (sub == SUB_CLEAR_S || sub == SUB_CLEAR_Z)
        set_stream(dev, out, VFMIG_DEV_STREAM_NONE);
    if (sub == SUB_SET_Z && !vfmig_sabotage("dev-no-window-in-z"))
        set_stream(dev, out, VFMIG_DEV_STREAM_LOAD);
    if (sub == SUB_CAPTURE || (sub == SUB_PRECOPY && !vfmig_sabotage("dev-no-stream-in-sr")))
        set_stream(dev, out, VFMIG_DEV_STREAM_SAVE);
}

static void plan(struct vfmig_dev *dev, unsigned to)
{
    dev->from = dev->bits;
    dev->to = (uint8_t)to;
    dev->done = 0;
    dev->substep = 0;
}

/* v2: plans the next arc. False when the state asked for is reached. */
static bool plan_hop(struct vfmig_dev *dev)
{
    enum vfmig_state next, cur;
    uint32_t bits = dev->bits;

    vfmig_state_from_bits(bits, &cur);
    if (!vfmig_state_supported(dev->features, cur)) /* SR without pre-copy, from the v1 side */
        cur = (bits & N) ? VFMIG_STATE_RUNNING_NDMA : VFMIG_STATE_RUNNING;
    if (cur == dev->final || vfmig_state_next(dev->features, cur, dev->final, &next) != 0)
        return false;
    vfmig_state_to_bits(next, &bits);
    plan(dev, bits);
    return true;
}

/* Runs sub-steps until one must be waited for or the write is done. */
static void run(struct vfmig_dev *dev, struct vfmig_dev_actions *out)
{
    do {
        while (dev->substep < SUB_COUNT) {
            if (!needed(dev, dev->substep)) {
                dev->substep++;
                continue;
            }
            enum vfmig_dev_call call = call_of(dev, dev->substep);
            if (call != VFMIG_DEV_CALL_NONE) {
                issue(dev, out, call, PHASE_STEP);
                return;
            }
            substep_done(dev, out);
        }
    } while (dev->v2 && plan_hop(dev));
    finish(dev, out, 0);
}

/* Takes back, last first, what was done since the plan began. */
static void undo(struct vfmig_dev *dev, struct vfmig_dev_actions *out)
{
    while (dev->substep-- > 0) {
        const struct substep *step = &substeps[dev->substep];
        if (!(dev->done & (1u << dev->substep)))
            continue;
        if (step->undo != VFMIG_DEV_CALL_NONE) {
            issue(dev, out, (enum vfmig_dev_call)step->undo, PHASE_UNDO);
            return;
        }
        dev->bits = (uint8_t)((dev->bits & ~step->set) | step->clear);
    }
    finish(dev, out, dev->err);
}

static void undo_done(struct vfmig_dev *dev, struct vfmig_dev_actions *out)
{
    const struct substep *step = &substeps[dev->substep];

    dev->bits = (uint8_t)((dev->bits & ~step->set) | step->clear);
    if (step->undo == VFMIG_DEV_CALL_START)
        dev->running = 1;
    undo(dev, out);
}

static void substep_failed(struct vfmig_dev *dev, struct vfmig_dev_actions *out, int err)
{
    unsigned tried = dev->done | 1u << dev->substep;

    dev->err = err;
    for (unsigned sub = 0; sub < SUB_COUNT; sub++) {
        if ((tried & (1u << sub)) && substeps[sub].no_way_back) {
            fail_write(dev, out, err);
            return;
        }
    }
    if (vfmig_sabotage("dev-no-undo"))
        dev->substep = 0;
    if (dev->substep == SUB_CLEAR_R)
        dev->running = 1; /* a device that could not be stopped runs on */
    undo(dev, out);
}

static uint64_t later(uint64_t now_ns, uint64_t delay_ns)
{
    return delay_ns < UINT64_MAX - now_ns ? now_ns + delay_ns : UINT64_MAX - 1;
}

/* The DMA gate comes first: R falling implies N (C34), and nothing is lost yet if the drain fails
 * (A21). Posted writes come before it, they may start DMA. */
static void begin_write(struct vfmig_dev *dev, struct vfmig_dev_actions *out, uint32_t target,
                        uint64_t now_ns)
{
    bool quiet = vfmig_bits_quiet(target);

    if (vfmig_sabotage("dev-stop-keeps-dma"))
        quiet = target & N;
    if (dev->bits == (S | N | R) && quiet && vfmig_sabotage("dev-multi-bit-opens"))
        open_gate(dev, out);
    if (quiet && vfmig_sabotage("dev-skip-drain"))
        dev->gate = VFMIG_DEV_GATE_SHUT;
    if ((dev->bits & R) && (!(target & R) || (quiet && !vfmig_bits_quiet(dev->bits))))
        add(out, VFMIG_DEV_ACT_FLUSH);
    if (!quiet || dev->gate == VFMIG_DEV_GATE_SHUT || vfmig_sabotage("dev-skip-gate")) {
        run(dev, out);
        return;
    }
    dev->phase = PHASE_DRAIN;
    dev->gate = VFMIG_DEV_GATE_DRAINING;
    if (dev->drain_timeout_ns) {
        dev->half_ns = later(now_ns, dev->drain_timeout_ns / 2);
        dev->deadline_ns = later(now_ns, dev->drain_timeout_ns);
    }
    add(out, VFMIG_DEV_ACT_IRQ_LATCH);
    await(dev, out, VFMIG_DEV_ACT_GATE_SHUT, VFMIG_DEV_CALL_NONE);
}

static int check_v1(const struct vfmig_dev *dev, uint32_t value)
{
    int err = vfmig_state_check_bits(dev->features, value);

    if (err)
        return err;
    if ((dev->bits & (S | R)) == S && (value & (S | R)) == (S | R))
        return -EINVAL; /* S to SR would lose the data of S (A15) */
    if (value == (S | R) && !(dev->features & VFMIG_FEATURE_PRE_COPY) &&
        vfmig_sabotage("dev-sr-needs-precopy"))
        return -EINVAL;
    if (value == R && (dev->bits & S) && vfmig_sabotage("dev-no-abort"))
        return -EINVAL;
    if (value == Z && dev->bits == 0 && vfmig_sabotage("dev-z-only-from-r"))
        return -EINVAL;
    if (value == dev->bits && vfmig_sabotage("dev-same-state-refused"))
        return -EINVAL;
    if (dev->bits == (S | R) && value == S && vfmig_sabotage("dev-no-final-phase"))
        return -EINVAL;
    if (dev->bits == (S | R) && value == R && vfmig_sabotage("dev-no-precopy-abort"))
        return -EINVAL;
    if (dev->bits == Z && value == (N | R) && vfmig_sabotage("dev-no-resume-to-ndma"))
        return -EINVAL;
    if ((dev->bits & Z) && !(value & Z) && vfmig_sabotage("dev-stuck-in-resuming"))
        return -EINVAL;
    return 0;
}

static void write_v1(struct vfmig_dev *dev, struct vfmig_dev_actions *out, uint32_t value,
                     uint64_t now_ns)
{
    int err = check_v1(dev, value);

    if (value == dev->bits && dev->stream && vfmig_sabotage("dev-same-state-restarts"))
        add(out, VFMIG_DEV_ACT_STREAM_SAVE);
    if (dev->bits == S && value == (N | R) && vfmig_sabotage("dev-hollow-success"))
        value = S;
    if (err || value == dev->bits) { /* the same state again has no effect (X2) */
        finish(dev, out, err);
        return;
    }
    dev->v2 = 0;
    plan(dev, value);
    begin_write(dev, out, value, now_ns);
}

static void set_v2(struct vfmig_dev *dev, struct vfmig_dev_actions *out, uint32_t value,
                   uint64_t now_ns)
{
    enum vfmig_state next;
    uint32_t target = 0;
    int err = vfmig_state_next(dev->features, vfmig_dev_state(dev), value, &next);

    if (value == vfmig_dev_state(dev) && dev->stream && vfmig_sabotage("dev-same-state-restarts"))
        add(out, VFMIG_DEV_ACT_STREAM_SAVE);
    if (value == vfmig_dev_state(dev) && vfmig_sabotage("dev-same-state-refused"))
        err = -EINVAL;
    if ((dev->bits & Z) && value != VFMIG_STATE_RESUMING && vfmig_sabotage("dev-stuck-in-resuming"))
        err = -EINVAL;
    if (dev->bits == S && value == VFMIG_STATE_PRE_COPY) {
        err = vfmig_sabotage("dev-save-goes-back") ? 0 : err;
        while (vfmig_sabotage("dev-save-goes-back-for-ever"))
            ;
    }
    if (err || value == vfmig_dev_state(dev)) {
        finish(dev, out, err);
        return;
    }
    dev->v2 = 1;
    dev->final = (uint8_t)value;
    plan_hop(dev);
    vfmig_state_to_bits(value, &target);
    begin_write(dev, out, target, now_ns);
}

static void state_write(struct vfmig_dev *dev, const struct vfmig_dev_event *event, uint64_t now_ns,
                        struct vfmig_dev_actions *out)
{
    if (vfmig_dev_busy(dev)) {
        if (dev->phase == PHASE_DRAIN && vfmig_sabotage("dev-busy-forgets"))
            finish(dev, out, -ECANCELED);
        reply(out, event->id, -EBUSY);
        return;
    }
    if (dev->failed &&
        !vfmig_sabotage("dev-write-leaves-error")) { /* only a reset leads out (C41) */
        reply(out, event->id, -EINVAL);
        return;
    }
    dev->write_id = event->id;
    dev->write_open = 1;
    if (event->type == VFMIG_DEV_EVENT_WRITE_V1)
        write_v1(dev, out, event->value, now_ns);
    else
        set_v2(dev, out, event->value, now_ns);
}

/* Deliberate faults. */
static bool stream_survives(const struct vfmig_dev *dev)
{
    if (dev->owner_gone && dev->stream == VFMIG_DEV_STREAM_SAVE)
        return vfmig_sabotage("dev-owner-gone-keeps-save");
    if (dev->owner_gone && dev->stream == VFMIG_DEV_STREAM_LOAD)
        return vfmig_sabotage("dev-owner-gone-keeps-load");
    return vfmig_sabotage("dev-reset-keeps-stream");
}

/* Whatever is under way ends here: its token is stale from now on. */
static void begin_reset(struct vfmig_dev *dev, struct vfmig_dev_actions *out)
{
    forget_drain(dev);
    cut_gate(dev, out);
    if (!stream_survives(dev))
        set_stream(dev, out, VFMIG_DEV_STREAM_NONE);
    dev->running = 0;
    issue(dev, out, VFMIG_DEV_CALL_RESET, PHASE_RESET);
}

static void reset_done(struct vfmig_dev *dev, struct vfmig_dev_actions *out, int err)
{
    dev->phase = PHASE_IDLE;
    if (err) {
        enter_error(dev, out);
    } else {
        dev->failed = 0;
        dev->running = 1;
        dev->bits = vfmig_sabotage("dev-reset-keeps-state") ? dev->shown : R;
        if (dev->owner_gone && dev->err == -EDOM && vfmig_sabotage("dev-drain-outlives-owner"))
            dev->bits = dev->to;
        if (!vfmig_sabotage("dev-reset-shows-late"))
            dev->shown = dev->bits; /* before any answer: the first read says so (X10) */
        add(out, VFMIG_DEV_ACT_IRQ_DROP);
        open_gate(dev, out);
    }
    for (uint32_t i = 0; i < dev->reset_count; i++)
        reply(out, dev->reset_ids[i], err);
    dev->reset_count = 0;
    if (dev->write_open && !vfmig_sabotage("dev-reset-forgets-write"))
        reply(out, dev->write_id, -ECANCELED);
    dev->write_open = 0;
    if (dev->owner_gone)
        add(out, VFMIG_DEV_ACT_RELEASED);
    dev->owner_gone = 0;
}

static void client_reset(struct vfmig_dev *dev, uint64_t id, struct vfmig_dev_actions *out)
{
    if (dev->owner_gone || dev->reset_count == VFMIG_DEV_MAX_RESETS ||
        (dev->failed && vfmig_sabotage("dev-error-refuses-reset")) ||
        (dev->phase == PHASE_DRAIN && vfmig_sabotage("dev-drain-refuses-reset"))) {
        reply(out, id, -EBUSY);
        return;
    }
    dev->reset_ids[dev->reset_count++] = id;
    if (dev->phase != PHASE_RESET)
        begin_reset(dev, out);
}

static void lose_owner(struct vfmig_dev *dev, struct vfmig_dev_actions *out)
{
    if (vfmig_sabotage("dev-owner-gone-keeps-state"))
        return;
    dev->owner_gone = 1;
    if (dev->phase == PHASE_DRAIN && vfmig_sabotage("dev-drain-outlives-owner"))
        dev->err = -EDOM;
    dev->write_open = 0;
    dev->reset_count = 0;
    if (dev->phase != PHASE_RESET)
        begin_reset(dev, out);
}

static void step_done(struct vfmig_dev *dev, const struct vfmig_dev_event *event,
                      struct vfmig_dev_actions *out)
{
    int err = event->err > 0 ? -EIO : event->err;

    if (dev->phase == PHASE_IDLE || event->token != dev->token)
        return; /* of a step that a reset or a deadline has ended */
    switch (dev->phase) {
    case PHASE_DRAIN:
        if (err) {
            finish(dev, out, err);
            return;
        }
        forget_drain(dev);
        dev->gate = VFMIG_DEV_GATE_SHUT;
        run(dev, out);
        return;
    case PHASE_STEP:
        if (err) {
            substep_failed(dev, out, err);
            return;
        }
        substep_done(dev, out);
        run(dev, out);
        return;
    case PHASE_UNDO:
        if (err)
            fail_write(dev, out, dev->err);
        else
            undo_done(dev, out);
        return;
    default:
        reset_done(dev, out, err);
        return;
    }
}

static void tick(struct vfmig_dev *dev, uint64_t now_ns, struct vfmig_dev_actions *out)
{
    if (dev->phase != PHASE_DRAIN)
        return;
    /* A tick that comes late still gives the DMA that is aborted now half the time to end in. */
    if (now_ns >= dev->half_ns && !vfmig_sabotage("dev-drain-waits-for-faults")) {
        uint64_t end_ns = later(now_ns, dev->drain_timeout_ns - dev->drain_timeout_ns / 2);
        dev->half_ns = UINT64_MAX;
        dev->deadline_ns = dev->deadline_ns < end_ns ? end_ns : dev->deadline_ns;
        add(out, VFMIG_DEV_ACT_DRAIN_ABORT);
        return;
    }
    if (now_ns >= dev->deadline_ns && !vfmig_sabotage("dev-drain-no-deadline"))
        finish(dev, out, -ETIMEDOUT);
}

int vfmig_dev_init(struct vfmig_dev *dev, uint32_t features, uint64_t drain_timeout_ns)
{
    if (!vfmig_features_valid(features))
        return -EINVAL;
    memset(dev, 0, sizeof(*dev));
    dev->features = features;
    dev->drain_timeout_ns = drain_timeout_ns;
    dev->bits = R;
    dev->shown = R;
    dev->running = 1;
    dev->gate = VFMIG_DEV_GATE_OPEN;
    if (vfmig_sabotage("dev-starts-stopped"))
        dev->bits = dev->shown = dev->running = 0;
    forget_drain(dev);
    return 0;
}

int vfmig_dev_step(struct vfmig_dev *dev, const struct vfmig_dev_event *event, uint64_t now_ns,
                   struct vfmig_dev_actions *ret_actions)
{
    ret_actions->count = 0;
    switch (event->type) {
    case VFMIG_DEV_EVENT_WRITE_V1:
    case VFMIG_DEV_EVENT_SET_V2:
        state_write(dev, event, now_ns, ret_actions);
        return 0;
    case VFMIG_DEV_EVENT_STEP_DONE:
        step_done(dev, event, ret_actions);
        return 0;
    case VFMIG_DEV_EVENT_RESET:
        client_reset(dev, event->id, ret_actions);
        return 0;
    case VFMIG_DEV_EVENT_OWNER_GONE:
        lose_owner(dev, ret_actions);
        return 0;
    case VFMIG_DEV_EVENT_TICK:
        tick(dev, now_ns, ret_actions);
        return 0;
    case VFMIG_DEV_EVENT_INVALID:
    case VFMIG_DEV_EVENT_COUNT:
        break;
    }
    return -EINVAL;
}

uint64_t vfmig_dev_deadline(const struct vfmig_dev *dev)
{
    return dev->half_ns < dev->deadline_ns ? dev->half_ns : dev->deadline_ns;
}

enum vfmig_state vfmig_dev_state(const struct vfmig_dev *dev)
{
    enum vfmig_state state = VFMIG_STATE_ERROR;

    vfmig_state_from_bits(dev->shown, &state);
    if (state == VFMIG_STATE_ERROR || vfmig_state_supported(dev->features, state))
        return state;
    return (dev->shown & N) ? VFMIG_STATE_RUNNING_NDMA : VFMIG_STATE_RUNNING;
}

bool vfmig_dev_busy(const struct vfmig_dev *dev)
{
    return dev->phase != PHASE_IDLE;
}
