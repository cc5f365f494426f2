/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/flow.h"

#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "core/state.h"

#define W(work)   (1u << VFMIG_WORK_##work)
#define ALL_WORKS ((1u << VFMIG_WORK_COUNT) - 1)
#define RESET     VFMIG_WANT_RESET

enum select { SELECT_NONE, SELECT_ALL, SELECT_NDMA, SELECT_PLAIN, SELECT_STOPPED_NDMA };
enum limit { LIMIT_NONE, LIMIT_DEVICE, LIMIT_VIOMMU };
enum on_error { ON_ERROR_FAIL, ON_ERROR_RETRY, ON_ERROR_RESTORE, ON_ERROR_NOTE };

struct row {
    const char *name;
    const char *skip; /* name of the sabotage that leaves the row out */
    uint32_t begin, finish;
    uint8_t step, devices, to, limit, on_error, next;
};

/* `to` in the table is a state's name or RESET. */
#define TO(state)              TO_##state
#define TO_RESET               VFMIG_WANT_RESET
#define TO_STOP                VFMIG_STATE_STOP
#define TO_RUNNING             VFMIG_STATE_RUNNING
#define TO_STOP_COPY           VFMIG_STATE_STOP_COPY
#define TO_RESUMING            VFMIG_STATE_RESUMING
#define TO_RUNNING_NDMA        VFMIG_STATE_RUNNING_NDMA
#define TO_PRE_COPY            VFMIG_STATE_PRE_COPY
#define TO_PRE_COPY_NDMA       VFMIG_STATE_PRE_COPY_NDMA

#undef RESET
static const struct row rows[VFMIG_ROW_COUNT] = {
#define FLOW(name_, step_, devices_, to_, begin_, finish_, limit_, on_error_, next_)               \
    [VFMIG_ROW_##name_] = {.name = #name_,                                                         \
                           .skip = "skip-" #name_,                                                 \
                           .begin = begin_,                                                        \
                           .finish = finish_,                                                      \
                           .step = VFMIG_STEP_##step_,                                             \
                           .devices = SELECT_##devices_,                                           \
                           .to = TO(to_),                                                          \
                           .limit = LIMIT_##limit_,                                                \
                           .on_error = ON_ERROR_##on_error_,                                       \
                           .next = VFMIG_ROW_##next_},
#include "../tables/flow.def"
};

static const char *const step_names[VFMIG_STEP_COUNT] = {
    [VFMIG_STEP_IDLE] = "idle",         [VFMIG_STEP_CONNECT] = "connect",
    [VFMIG_STEP_S1] = "S1",             [VFMIG_STEP_S2] = "S2",
    [VFMIG_STEP_S3] = "S3",             [VFMIG_STEP_S4] = "S4",
    [VFMIG_STEP_S5] = "S5",             [VFMIG_STEP_HANDOVER] = "handover",
    [VFMIG_STEP_S6] = "S6",             [VFMIG_STEP_UNWIND] = "unwind",
    [VFMIG_STEP_R0] = "R0",             [VFMIG_STEP_R1] = "R1",
    [VFMIG_STEP_R2] = "R2",             [VFMIG_STEP_LOADED] = "loaded",
    [VFMIG_STEP_R3] = "R3",             [VFMIG_STEP_R4] = "R4",
    [VFMIG_STEP_DROP] = "drop",         [VFMIG_STEP_END] = "end",
};

static const char *const work_names[VFMIG_WORK_COUNT] = {
    [VFMIG_WORK_TRACK_START] = "track-start",   [VFMIG_WORK_ROUND] = "round",
    [VFMIG_WORK_DATA] = "data",                 [VFMIG_WORK_VIOMMU_IDLE] = "viommu-idle",
    [VFMIG_WORK_VCPU_STOP] = "vcpu-stop",       [VFMIG_WORK_SNAPSHOT] = "snapshot",
    [VFMIG_WORK_MEMORY] = "memory",             [VFMIG_WORK_LAST_DATA] = "last-data",
    [VFMIG_WORK_VM_STATE] = "vm-state",         [VFMIG_WORK_FINAL_LOG] = "final-log",
    [VFMIG_WORK_LAST_MEMORY] = "last-memory",   [VFMIG_WORK_TRACK_STOP] = "track-stop",
    [VFMIG_WORK_VCPU_START] = "vcpu-start",     [VFMIG_WORK_EXTERNAL] = "external",
    [VFMIG_WORK_RECEIVE] = "receive",           [VFMIG_WORK_STATE_LOAD] = "state-load",
    [VFMIG_WORK_QUIET_LOG] = "quiet-log",     [VFMIG_WORK_TRIAL] = "trial",
};

const char *vfmig_step_name(unsigned step)
{
    return step < VFMIG_STEP_COUNT ? step_names[step] : "unknown";
}

const char *vfmig_work_name(uint32_t work)
{
    return work < VFMIG_WORK_COUNT ? work_names[work] : "unknown";
}

const char *vfmig_row_name(uint32_t row)
{
    return row > 0 && row < VFMIG_ROW_COUNT ? rows[row].name : "none";
}

enum vfmig_step vfmig_row_step(uint32_t row)
{
    switch (row) {
    case VFMIG_ROW_ASK:
        return VFMIG_STEP_S2;
    case VFMIG_ROW_CHECK:
        return VFMIG_STEP_S4;
    case VFMIG_ROW_SENT:
    case VFMIG_ROW_WAIT:
        return VFMIG_STEP_HANDOVER;
    case VFMIG_ROW_LOADED:
        return VFMIG_STEP_LOADED;
    case VFMIG_ROW_PREPARED:
        return VFMIG_STEP_R3;
    case VFMIG_ROW_END:
        return VFMIG_STEP_END;
    default:
        return row < VFMIG_ROW_COUNT ? (enum vfmig_step)rows[row].step : VFMIG_STEP_IDLE;
    }
}

enum vfmig_step vfmig_flow_current(const struct vfmig_flow *f)
{
    return vfmig_row_step(f->row);
}

/* --- sets --- */

static void add(struct vfmig_devset *set, uint32_t device)
{
    set->word[device / 64] |= UINT64_C(1) << (device % 64);
}

static void del(struct vfmig_devset *set, uint32_t device)
{
    set->word[device / 64] &= ~(UINT64_C(1) << (device % 64));
}

static bool empty(const struct vfmig_devset *set)
{
    uint64_t all = 0;

    for (unsigned i = 0; i < VFMIG_MAX_DEVICES / 64; i++)
        all |= set->word[i];
    return all == 0;
}

/* --- actions --- */

static struct vfmig_flow_action *act(struct vfmig_flow_actions *out,
                                     enum vfmig_flow_action_kind kind, uint32_t arg)
{
    /* A chain of rows that have nothing to do is far shorter than the list. */
    struct vfmig_flow_action *action = &out->list[out->count];

    if (out->count + 1 < VFMIG_FLOW_MAX_ACTIONS)
        out->count++;
    *action = (struct vfmig_flow_action){.kind = kind, .arg = arg};
    return action;
}

static void act_device(struct vfmig_flow_actions *out, enum vfmig_flow_action_kind kind,
                       uint32_t arg, uint32_t device)
{
    add(&act(out, kind, arg)->devices, device);
}

uint8_t vfmig_flow_nearest(uint32_t features, uint32_t current, uint32_t to)
{
    bool ndma = features & VFMIG_FEATURE_NDMA || vfmig_sabotage("ndma-for-all");
    bool pre = features & VFMIG_FEATURE_PRE_COPY;

    if (to == VFMIG_STATE_PRE_COPY)
        return pre ? VFMIG_STATE_PRE_COPY : VFMIG_STATE_RUNNING;
    if (to == VFMIG_STATE_PRE_COPY_NDMA) {
        if (!ndma)
            return (uint8_t)current;
        return pre ? VFMIG_STATE_PRE_COPY_NDMA : VFMIG_STATE_RUNNING_NDMA;
    }
    return (uint8_t)to;
}

static bool selected(const struct vfmig_flow *f, const struct row *row, uint32_t device)
{
    bool ndma = f->features[device] & VFMIG_FEATURE_NDMA || vfmig_sabotage("ndma-for-all");
    uint32_t bits = 0;

    if (vfmig_devset_has(&f->lost, device))
        return false;
    if (row->step == VFMIG_STEP_UNWIND && device + 1 == f->device_count &&
        vfmig_sabotage("unwind-forgets-one"))
        return false;
    switch (row->devices) {
    case SELECT_ALL:
        return true;
    case SELECT_NDMA:
        return ndma && !vfmig_sabotage("skip-barrier");
    case SELECT_PLAIN:
        return !ndma;
    case SELECT_STOPPED_NDMA:
        vfmig_state_to_bits(f->state[device], &bits);
        return ndma && !(bits & VFMIG_V1_RUNNING);
    default:
        return false;
    }
}

static uint64_t limit_of(const struct vfmig_flow *f, const struct row *row)
{
    return row->limit == LIMIT_DEVICE ? f->device_timeout_ns
         : row->limit == LIMIT_VIOMMU ? f->viommu_timeout_ns
                                      : 0;
}

/* A quarter on top: the operation itself has the limit, and its answer is the better one. */
static uint64_t due_at(uint64_t limit_ns, uint64_t now_ns)
{
    return limit_ns ? now_ns + limit_ns + limit_ns / 4 : 0;
}

static void arm_device(struct vfmig_flow *f, uint32_t device, uint64_t now_ns)
{
    f->due_ns[device] = due_at(f->limit_ns[device], now_ns);
}

static bool at_work(const struct vfmig_flow *f, uint32_t device)
{
    return vfmig_devset_has(&f->busy, device) || vfmig_devset_has(&f->streaming, device);
}

/* When TICK is wanted next. */
static uint64_t earliest_due(const struct vfmig_flow *f)
{
    uint64_t earliest = f->works_due_ns;

    if (f->halted || f->ended)
        return 0;
    for (uint32_t i = 0; i < f->device_count; i++)
        if (at_work(f, i) && f->due_ns[i] && (!earliest || f->due_ns[i] < earliest))
            earliest = f->due_ns[i];
    return earliest;
}

static void begin_data(struct vfmig_flow *f, uint32_t work, uint64_t now_ns,
                       struct vfmig_flow_actions *out)
{
    struct vfmig_devset now = {0};

    for (uint32_t i = 0; i < f->device_count; i++) {
        if (vfmig_devset_has(&f->lost, i) ||
            (work == VFMIG_WORK_DATA && !(f->features[i] & VFMIG_FEATURE_PRE_COPY)))
            continue;
        if (vfmig_devset_has(&f->busy, i)) {
            add(&f->to_stream, i);
        } else {
            add(&now, i);
            add(&f->streaming, i);
            arm_device(f, i, now_ns);
        }
    }
    if (!empty(&now))
        act(out, VFMIG_FLOW_ACT_DATA, work)->devices = now;
    if (empty(&f->streaming) && empty(&f->to_stream))
        f->running &= ~(1u << work);
}

static void begin_works(struct vfmig_flow *f, uint32_t works, uint64_t now_ns,
                        struct vfmig_flow_actions *out)
{
    for (uint32_t work = 0; work < VFMIG_WORK_COUNT; work++) {
        if (!(works & (1u << work)))
            continue;
        if (work == VFMIG_WORK_TRACK_STOP && !f->tracking)
            continue;
        if (work == VFMIG_WORK_VCPU_START && !f->parked)
            continue;
        if (work == VFMIG_WORK_TRACK_START)
            f->tracking = 1;
        if (work == VFMIG_WORK_VCPU_STOP)
            f->parked = 1;
        f->running |= 1u << work;
        if (work == VFMIG_WORK_DATA || work == VFMIG_WORK_LAST_DATA)
            begin_data(f, work, now_ns, out);
        else
            act(out, VFMIG_FLOW_ACT_WORK, work);
    }
}

static void enter(struct vfmig_flow *f, uint32_t next, uint64_t now_ns,
                  struct vfmig_flow_actions *out)
{
    const struct row *row = &rows[next];
    struct vfmig_devset go = {0};

    f->row = next;
    act(out, VFMIG_FLOW_ACT_ENTER, next);
    if (next == VFMIG_ROW_S2_ENTER && vfmig_sabotage("log-off-early"))
        begin_works(f, W(TRACK_STOP), now_ns, out);
    if (vfmig_sabotage(row->skip))
        return;
    for (uint32_t i = 0; i < f->device_count; i++) {
        uint8_t to = vfmig_flow_nearest(f->features[i], f->state[i], row->to);

        if (!selected(f, row, i) || to == f->state[i])
            continue;
        f->want[i] = to;
        f->tries[i] = 0;
        add(&f->busy, i);
        add(&go, i);
        arm_device(f, i, now_ns);
    }
    if (!empty(&go))
        act(out, VFMIG_FLOW_ACT_GO, 0)->devices = go;
    begin_works(f, row->begin, now_ns, out);
    f->works_due_ns = row->finish ? due_at(limit_of(f, row), now_ns) : 0;
}

static bool row_is_done(const struct vfmig_flow *f)
{
    const struct row *row = &rows[f->row];
    uint32_t beside = vfmig_sabotage("data-not-awaited") ? W(DATA) | W(LAST_DATA) : 0;

    if (f->running & row->finish & ~beside)
        return false;
    return empty(&f->busy) || vfmig_sabotage("skip-barrier");
}

/* Goes on as far as nothing is waited for. */
static void advance(struct vfmig_flow *f, uint64_t now_ns, struct vfmig_flow_actions *out)
{
    while (!f->halted && !f->ended && f->row < VFMIG_ROW_COUNT && f->row && row_is_done(f)) {
        uint32_t next = rows[f->row].next;

        f->works_due_ns = 0;
        if (next == VFMIG_ROW_S2_QUIET && !f->quiet_log)
            next = VFMIG_ROW_ASK;
        switch (next) {
        case VFMIG_ROW_SENT:
            act(out, VFMIG_FLOW_ACT_SENT, 0);
            enter(f, VFMIG_ROW_HAND_OVER, now_ns, out);
            continue;
        case VFMIG_ROW_ASK:
            act(out, VFMIG_FLOW_ACT_ASK, 0);
            break;
        case VFMIG_ROW_CHECK:
            act(out, VFMIG_FLOW_ACT_CHECK, 0);
            break;
        case VFMIG_ROW_LOADED:
            act(out, VFMIG_FLOW_ACT_LOADED, 0);
            break;
        case VFMIG_ROW_PREPARED:
            act(out, VFMIG_FLOW_ACT_PREPARED, 0);
            break;
        case VFMIG_ROW_END:
            f->ended = 1;
            act(out, VFMIG_FLOW_ACT_ENDED, 0);
            break;
        case VFMIG_ROW_WAIT:
            break;
        default:
            enter(f, next, now_ns, out);
            continue;
        }
        f->row = next;
        return;
    }
}

static void fail(struct vfmig_flow *f, int err, struct vfmig_flow_actions *out)
{
    f->halted = 1;
    f->cause = err;
    f->works_due_ns = 0;
    memset(&f->to_stream, 0, sizeof(f->to_stream));
    if (empty(&f->streaming))
        f->running &= ~(W(DATA) | W(LAST_DATA));
    act(out, VFMIG_FLOW_ACT_ABORT, 0);
    act(out, VFMIG_FLOW_ACT_FAILED, (uint32_t)-err);
}

static bool forward(const struct vfmig_flow *f)
{
    return f->row && !f->halted && !f->ended &&
           vfmig_flow_current(f) != VFMIG_STEP_UNWIND && vfmig_flow_current(f) != VFMIG_STEP_DROP &&
           vfmig_flow_current(f) != VFMIG_STEP_S6;
}

/* --- events --- */

static void start_stream(struct vfmig_flow *f, uint32_t device, uint64_t now_ns,
                         struct vfmig_flow_actions *out)
{
    uint32_t work = f->running & W(LAST_DATA) ? VFMIG_WORK_LAST_DATA : VFMIG_WORK_DATA;

    if (!vfmig_devset_has(&f->to_stream, device))
        return;
    del(&f->to_stream, device);
    add(&f->streaming, device);
    arm_device(f, device, now_ns);
    act_device(out, VFMIG_FLOW_ACT_DATA, work, device);
}

static void lose(struct vfmig_flow *f, uint32_t device, bool answered,
                 struct vfmig_flow_actions *out)
{
    add(&f->lost, device);
    del(&f->busy, device);
    del(&f->streaming, device);
    act_device(out, VFMIG_FLOW_ACT_LOST, !answered, device);
}

/* What still hangs is left behind; its data ends with it. */
static void lose_late(struct vfmig_flow *f, const struct vfmig_devset *late,
                      struct vfmig_flow_actions *out)
{
    if (vfmig_sabotage("unwind-waits-for-all"))
        return;
    for (uint32_t i = 0; i < f->device_count; i++)
        if (vfmig_devset_has(late, i) && at_work(f, i))
            lose(f, i, /* answered= */ false, out);
    if (empty(&f->streaming))
        f->running &= ~(W(DATA) | W(LAST_DATA));
}

/* The ladder of a device that did not get where it should: again, reset, give up. */
static void climb(struct vfmig_flow *f, uint32_t device, int err, uint64_t now_ns,
                  struct vfmig_flow_actions *out)
{
    const struct row *row = &rows[f->row];
    unsigned step = ++f->tries[device];

    if (step == 1 && f->want[device] == VFMIG_WANT_RESET)
        step = f->tries[device] = 2;
    if (step <= (vfmig_sabotage("no-reset") ? 1u : 2u)) {
        f->want[device] = step == 1 ? f->want[device] : VFMIG_WANT_RESET;
        arm_device(f, device, now_ns);
        act_device(out, VFMIG_FLOW_ACT_GO, 0, device);
        return;
    }
    if (row->on_error == ON_ERROR_RESTORE) {
        lose(f, device, /* answered= */ true, out);
        return;
    }
    del(&f->busy, device);
    fail(f, err, out);
}

static int device_done(struct vfmig_flow *f, const struct vfmig_flow_event *event, uint64_t now_ns,
                       struct vfmig_flow_actions *out)
{
    uint32_t device = event->device;
    uint8_t on_error;
    bool reset_ends_it;

    if (device >= f->device_count || !vfmig_state_info(event->state))
        return -EINVAL;
    f->state[device] = (uint8_t)event->state;
    if (!vfmig_devset_has(&f->busy, device))
        return 0; /* given up long ago */
    on_error = f->row < VFMIG_ROW_COUNT ? rows[f->row].on_error : ON_ERROR_NOTE;
    reset_ends_it = on_error == ON_ERROR_RETRY && f->want[device] == VFMIG_WANT_RESET;
    if (event->err == 0 && !reset_ends_it) {
        del(&f->busy, device);
        if (!f->halted)
            start_stream(f, device, now_ns, out);
    } else if (f->halted || on_error == ON_ERROR_NOTE) {
        del(&f->busy, device);
    } else if (on_error == ON_ERROR_FAIL) {
        del(&f->busy, device);
        fail(f, event->err, out);
    } else if (reset_ends_it) {
        del(&f->busy, device);
        fail(f, event->err ? event->err : -EIO, out);
    } else {
        climb(f, device, event->err, now_ns, out);
    }
    return 0;
}

static int data_done(struct vfmig_flow *f, const struct vfmig_flow_event *event,
                     struct vfmig_flow_actions *out)
{
    if (event->device >= f->device_count)
        return -EINVAL;
    if (!vfmig_devset_has(&f->streaming, event->device))
        return 0;
    del(&f->streaming, event->device);
    if (empty(&f->streaming) && empty(&f->to_stream))
        f->running &= ~(W(DATA) | W(LAST_DATA));
    if (event->err && forward(f))
        fail(f, event->err, out);
    return 0;
}

static int work_done(struct vfmig_flow *f, const struct vfmig_flow_event *event,
                     struct vfmig_flow_actions *out)
{
    if (event->work >= VFMIG_WORK_COUNT)
        return -EINVAL;
    if (!(f->running & (1u << event->work)))
        return 0; /* given up long ago */
    f->running &= ~(1u << event->work);
    if (event->work == VFMIG_WORK_TRACK_STOP)
        f->tracking = 0;
    if (event->work == VFMIG_WORK_VCPU_START && !event->err)
        f->parked = 0;
    /* A log that cannot be switched off costs time, not data: never a reason to fail. */
    if (event->err && forward(f) && event->work != VFMIG_WORK_TRACK_STOP)
        fail(f, event->err, out);
    else if (event->err && !f->cause)
        f->cause = event->err;
    return 0;
}

static void tick(struct vfmig_flow *f, uint64_t now_ns, struct vfmig_flow_actions *out)
{
    struct vfmig_devset late = {0};
    bool works_late = f->works_due_ns && now_ns >= f->works_due_ns;

    if (f->halted || f->ended)
        return;
    for (uint32_t i = 0; i < f->device_count; i++)
        if (at_work(f, i) && f->due_ns[i] && now_ns >= f->due_ns[i])
            add(&late, i);
    if (!works_late && empty(&late))
        return;
    if (forward(f)) {
        f->late = late;
        fail(f, -ETIMEDOUT, out);
        return;
    }
    /* On the way back nothing may hold the others up. */
    lose_late(f, &late, out);
    if (works_late) {
        f->works_due_ns = 0;
        f->running &= empty(&f->streaming) ? 0 : W(DATA) | W(LAST_DATA);
    }
}

static int unwind(struct vfmig_flow *f, uint64_t now_ns, struct vfmig_flow_actions *out)
{
    bool source = f->role == VFMIG_FLOW_SOURCE;

    /* From R4 on the guest is the destination's: it stays there, paused if need be. */
    if ((!f->halted && !forward(f)) || vfmig_flow_current(f) == VFMIG_STEP_R4)
        return -EINVAL;
    if (!f->halted)
        act(out, VFMIG_FLOW_ACT_ABORT, 0);
    f->halted = 0;
    memset(&f->to_stream, 0, sizeof(f->to_stream));
    if (empty(&f->streaming))
        f->running &= ~(W(DATA) | W(LAST_DATA));
    /* They have had their time, and the guest waits. */
    lose_late(f, &f->late, out);
    enter(f, source ? VFMIG_ROW_U0 : VFMIG_ROW_D0, now_ns, out);
    return 0;
}

/* The answer to a point: from it, and only from it, the row is entered. */
static int answer(struct vfmig_flow *f, uint32_t point, uint32_t row, uint64_t now_ns,
                  struct vfmig_flow_actions *out)
{
    if (f->row != point || f->halted)
        return -EINVAL;
    enter(f, row, now_ns, out);
    return 0;
}

static int dispatch(struct vfmig_flow *f, const struct vfmig_flow_event *event, uint64_t now_ns,
                    struct vfmig_flow_actions *out)
{
    switch (event->kind) {
    case VFMIG_FLOW_EVENT_START:
        return answer(f, VFMIG_ROW_NONE,
                      f->role == VFMIG_FLOW_SOURCE ? VFMIG_ROW_S1_LOG : VFMIG_ROW_R0_RESET, now_ns,
                      out);
    case VFMIG_FLOW_EVENT_DEVICE_DONE:
        return device_done(f, event, now_ns, out);
    case VFMIG_FLOW_EVENT_DATA_DONE:
        return data_done(f, event, out);
    case VFMIG_FLOW_EVENT_DATA_MOVES:
        if (event->device >= f->device_count)
            return -EINVAL;
        if (vfmig_devset_has(&f->streaming, event->device))
            arm_device(f, event->device, now_ns);
        return 0;
    case VFMIG_FLOW_EVENT_WORK_DONE:
        return work_done(f, event, out);
    case VFMIG_FLOW_EVENT_AGAIN:
        return f->row == VFMIG_ROW_CHECK
                   ? answer(f, VFMIG_ROW_CHECK, VFMIG_ROW_S4_BACK, now_ns, out)
                   : answer(f, VFMIG_ROW_ASK, VFMIG_ROW_S2_LOOP, now_ns, out);
    case VFMIG_FLOW_EVENT_GO:
        return f->row == VFMIG_ROW_CHECK
                   ? answer(f, VFMIG_ROW_CHECK, VFMIG_ROW_S5_ENTER, now_ns, out)
                   : answer(f, VFMIG_ROW_ASK, VFMIG_ROW_S3_ENTER, now_ns, out);
    case VFMIG_FLOW_EVENT_RELEASE:
        return answer(f, f->row == VFMIG_ROW_HAND_OVER ? VFMIG_ROW_HAND_OVER : VFMIG_ROW_WAIT,
                      VFMIG_ROW_S6_ENTER, now_ns, out);
    case VFMIG_FLOW_EVENT_PREPARE:
        return answer(f, VFMIG_ROW_LOADED, VFMIG_ROW_R3_ENTER, now_ns, out);
    case VFMIG_FLOW_EVENT_RUN:
        return answer(f, VFMIG_ROW_PREPARED, VFMIG_ROW_R4_PLAIN, now_ns, out);
    case VFMIG_FLOW_EVENT_FAIL:
        if (!forward(f) || event->err >= 0)
            return -EINVAL;
        fail(f, event->err, out);
        return 0;
    case VFMIG_FLOW_EVENT_UNWIND:
        return unwind(f, now_ns, out);
    case VFMIG_FLOW_EVENT_TICK:
        tick(f, now_ns, out);
        return 0;
    default:
        return -EINVAL;
    }
}

int vfmig_flow_init(struct vfmig_flow *f, enum vfmig_flow_role role, uint32_t device_count,
                    const uint32_t *features, uint64_t device_timeout_ns,
                    uint64_t viommu_timeout_ns)
{
    if (device_count > VFMIG_MAX_DEVICES ||
        (role != VFMIG_FLOW_SOURCE && role != VFMIG_FLOW_DESTINATION))
        return -EINVAL;
    memset(f, 0, sizeof(*f));
    f->role = role;
    f->device_count = device_count;
    f->device_timeout_ns = device_timeout_ns;
    f->viommu_timeout_ns = viommu_timeout_ns;
    f->parked = role == VFMIG_FLOW_DESTINATION;
    for (uint32_t i = 0; i < device_count; i++) {
        f->features[i] = (uint8_t)features[i];
        f->state[i] = VFMIG_STATE_RUNNING;
        f->limit_ns[i] = device_timeout_ns;
    }
    return 0;
}

void vfmig_flow_set_limit(struct vfmig_flow *f, uint32_t device, uint64_t limit_ns)
{
    if (device < f->device_count)
        f->limit_ns[device] = limit_ns;
}

/* No limit becomes longer than one that is armed now: it may have been armed while others stood still. */
static void excuse(uint64_t *due_ns, uint64_t limit_ns, uint64_t stood_ns, uint64_t now_ns, uint64_t least_ns)
{
    uint64_t due = *due_ns + stood_ns, most = due_at(limit_ns, now_ns);

    due = due < now_ns + least_ns ? now_ns + least_ns : due;
    due = due > most ? most : due;
    if (*due_ns && due > *due_ns)
        *due_ns = due;
}

void vfmig_flow_excuse(struct vfmig_flow *f, uint64_t stood_ns, uint64_t now_ns, uint64_t least_ns)
{
    for (uint32_t i = 0; i < f->device_count; i++)
        excuse(&f->due_ns[i], f->limit_ns[i], stood_ns, now_ns, least_ns);
    if (f->works_due_ns)
        excuse(&f->works_due_ns, limit_of(f, &rows[f->row]), stood_ns, now_ns, least_ns);
    f->deadline_ns = earliest_due(f);
}

int vfmig_flow_step(struct vfmig_flow *f, const struct vfmig_flow_event *event, uint64_t now_ns,
                    struct vfmig_flow_actions *ret_actions)
{
    int ret;

    ret_actions->count = 0;
    ret = dispatch(f, event, now_ns, ret_actions);
    if (ret == 0) {
        advance(f, now_ns, ret_actions);
        f->deadline_ns = earliest_due(f);
    }
    return ret;
}
