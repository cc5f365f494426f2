/* SPDX-License-Identifier: BSD-3-Clause */
/* The flow machine over all orders of completions, with every failure at every point, for up to
 * three devices. The rules are checked from the devices' side, without looking at the table. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "core/flow.h"
#include "core/state.h"

#define DEVICES 3u
#define FULL    (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define PLAIN   (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_PRE_COPY)
#define QUIET   (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA)
#define BIT(work) (1u << VFMIG_WORK_##work)

/* The machine and the world around it: what was asked and is not answered yet. */
struct world {
    struct vfmig_flow flow;
    uint32_t works;         /* under way */
    uint8_t go[DEVICES];    /* asked for a change */
    uint8_t data[DEVICES];  /* asked for data */
    uint8_t real[DEVICES];  /* the device's own state */
    uint8_t failures;       /* may still be injected */
    uint8_t again;          /* rounds still wanted */
    uint8_t vcpus_run, tracking, idle_seen, final_seen, sent;
    uint8_t failed, ended;
    uint8_t padding[2];
};

#define TABLE_SIZE (1u << 20)
static uint64_t visited[TABLE_SIZE];
static uint32_t visited_count, ends_good, ends_unwound;
static bool reset_fails;
static unsigned failures_given;

static bool seen_before(const struct world *w)
{
    const uint8_t *bytes = (const uint8_t *)w;
    uint64_t hash = UINT64_C(1469598103934665603);

    for (size_t i = 0; i < sizeof(*w); i++)
        hash = (hash ^ bytes[i]) * UINT64_C(1099511628211);
    hash |= 1;
    for (uint32_t slot = (uint32_t)(hash >> 40) % TABLE_SIZE;; slot = (slot + 1) % TABLE_SIZE) {
        if (visited[slot] == hash)
            return true;
        if (!visited[slot]) {
            visited[slot] = hash;
            assert_true(++visited_count < TABLE_SIZE / 2);
            return false;
        }
    }
}

static bool runs(uint8_t state)
{
    uint32_t bits = 0;

    assert_int_equal(vfmig_state_to_bits(state, &bits), 0);
    return bits & VFMIG_V1_RUNNING;
}

static bool quiet(uint8_t state)
{
    uint32_t bits = 0;

    assert_int_equal(vfmig_state_to_bits(state, &bits), 0);
    return vfmig_bits_quiet(bits);
}

static bool has_ndma(const struct world *w, uint32_t i)
{
    return w->flow.features[i] & VFMIG_FEATURE_NDMA;
}

/* What must be true when a device is asked to change (C19, C36, C55, C58). */
static void check_go(const struct world *w, uint32_t device)
{
    uint8_t want = w->flow.want[device];

    for (uint32_t i = 0; i < w->flow.device_count; i++) {
        if (vfmig_devset_has(&w->flow.lost, i))
            continue;
        if (want == VFMIG_STATE_STOP_COPY) { /* nobody can still reach this device by DMA */
            assert_true(!has_ndma(w, i) || quiet(w->real[i]));
            assert_false(w->vcpus_run);
        }
        /* N cleared: nobody is still in a state that forbids MMIO. */
        if (want == VFMIG_STATE_RUNNING && has_ndma(w, device) && !w->failed)
            assert_true(runs(w->real[i]) || w->real[i] == VFMIG_STATE_ERROR);
        if (want == VFMIG_STATE_RESUMING && !w->failed)
            assert_true(w->real[i] == VFMIG_STATE_STOP || w->real[i] == VFMIG_STATE_RESUMING);
    }
    assert_true(want != VFMIG_STATE_RUNNING_NDMA || has_ndma(w, device));
    assert_true(want != VFMIG_STATE_PRE_COPY_NDMA || has_ndma(w, device));
}

/* What must be true when a work begins. */
static void check_work(struct world *w, uint32_t work)
{
    for (uint32_t i = 0; i < w->flow.device_count; i++) {
        if (vfmig_devset_has(&w->flow.lost, i))
            continue;
        if (work == VFMIG_WORK_VCPU_STOP || work == VFMIG_WORK_VIOMMU_IDLE)
            assert_true(!has_ndma(w, i) || quiet(w->real[i])); /* C10, C62 */
        if (work == VFMIG_WORK_SNAPSHOT)
            assert_true(!has_ndma(w, i) || quiet(w->real[i])); /* C11 */
        if (work == VFMIG_WORK_FINAL_LOG || work == VFMIG_WORK_VM_STATE)
            assert_false(runs(w->real[i]));
        if (work == VFMIG_WORK_TRACK_STOP && !w->failed)
            assert_false(runs(w->real[i])); /* C29 */
        if (work == VFMIG_WORK_VCPU_START)
            assert_true(runs(w->real[i]) && !quiet(w->real[i]));
        if (work == VFMIG_WORK_EXTERNAL)
            assert_int_equal(w->real[i], VFMIG_STATE_STOP);
    }
    if (work == VFMIG_WORK_VCPU_STOP)
        assert_true(w->idle_seen); /* C61, C62 */
    if (work == VFMIG_WORK_ROUND)
        assert_true(w->vcpus_run && w->tracking); /* C7, C9 */
    if (work == VFMIG_WORK_SNAPSHOT || work == VFMIG_WORK_TRIAL || work == VFMIG_WORK_FINAL_LOG)
        assert_true(!w->vcpus_run && w->tracking);
    if (work == VFMIG_WORK_LAST_MEMORY)
        assert_true(w->final_seen);
}

static void step(struct world *w, const struct vfmig_flow_event *event, uint64_t now_ns);

static void send_event(struct world *w, enum vfmig_flow_event_kind kind, int err)
{
    step(w, &(struct vfmig_flow_event){.kind = kind, .err = err}, 1);
}

static void react(struct world *w, const struct vfmig_flow_action *action)
{
    for (uint32_t i = 0; i < w->flow.device_count; i++) {
        if (!vfmig_devset_has(&action->devices, i))
            continue;
        if (action->kind == VFMIG_FLOW_ACT_GO) {
            assert_false(w->go[i] || w->data[i]);
            check_go(w, i);
            w->go[i] = 1;
        } else if (action->kind == VFMIG_FLOW_ACT_DATA) {
            assert_false(w->go[i] || w->data[i]);
            assert_true(action->arg == VFMIG_WORK_DATA ? w->real[i] == VFMIG_STATE_PRE_COPY
                                                       : !runs(w->real[i]));
            w->data[i] = 1;
        }
    }
    switch (action->kind) {
    case VFMIG_FLOW_ACT_WORK:
        assert_false(w->works & (1u << action->arg));
        check_work(w, action->arg);
        w->works |= 1u << action->arg;
        if (action->arg == VFMIG_WORK_VCPU_STOP)
            w->vcpus_run = 0;
        if (action->arg == VFMIG_WORK_TRACK_START)
            w->tracking = 1;
        break;
    case VFMIG_FLOW_ACT_SENT:
        assert_true(w->final_seen && !w->sent);
        w->sent = 1;
        break;
    case VFMIG_FLOW_ACT_FAILED:
        w->failed = 1;
        break;
    case VFMIG_FLOW_ACT_ENDED:
        w->ended = 1;
        break;
    default:
        break;
    }
}

static void step(struct world *w, const struct vfmig_flow_event *event, uint64_t now_ns)
{
    struct vfmig_flow_actions actions;

    assert_int_equal(vfmig_flow_step(&w->flow, event, now_ns, &actions), 0);
    assert_true(actions.count + 1 < VFMIG_FLOW_MAX_ACTIONS);
    for (uint32_t i = 0; i < actions.count; i++)
        react(w, &actions.list[i]);
}

static void check_end(const struct world *w)
{
    bool source = w->flow.role == VFMIG_FLOW_SOURCE;

    assert_int_equal(w->works, 0);
    assert_false(w->tracking);
    for (uint32_t i = 0; i < w->flow.device_count; i++) {
        assert_false(w->go[i] || w->data[i]);
        if (vfmig_devset_has(&w->flow.lost, i))
            assert_true(reset_fails);
        else if (source && !w->failed)
            assert_true(w->real[i] == VFMIG_STATE_STOP || w->failures < failures_given);
        else
            assert_int_equal(w->real[i], VFMIG_STATE_RUNNING);
    }
    if (w->failed) {
        assert_int_equal(w->vcpus_run, source);
        ends_unwound++;
    } else {
        assert_int_equal(w->vcpus_run, !source);
        ends_good++;
    }
}

static void explore(const struct world *from);

static void complete_go(const struct world *from, uint32_t device, int err)
{
    struct world w = *from;
    uint8_t want = w.flow.want[device];

    w.go[device] = 0;
    if (err == 0)
        w.real[device] = want == VFMIG_WANT_RESET ? VFMIG_STATE_RUNNING : want;
    else
        w.failures--;
    if (err == -EIO)
        w.real[device] = VFMIG_STATE_ERROR;
    step(&w, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DEVICE_DONE,
                                        .device = device,
                                        .state = w.real[device],
                                        .err = err}, 1);
    explore(&w);
}

static void complete_work(const struct world *from, uint32_t work, int err)
{
    struct world w = *from;

    w.works &= ~(1u << work);
    if (err)
        w.failures--;
    if (work == VFMIG_WORK_VCPU_START && !err) {
        w.vcpus_run = 1;
        w.idle_seen = 0;
    }
    if (work == VFMIG_WORK_TRACK_STOP)
        w.tracking = 0;
    if (work == VFMIG_WORK_VIOMMU_IDLE && !err)
        w.idle_seen = 1;
    if (work == VFMIG_WORK_FINAL_LOG && !err)
        w.final_seen = 1;
    step(&w, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_WORK_DONE, .work = work, .err = err},
         1);
    explore(&w);
}

static void complete_data(const struct world *from, uint32_t device, int err)
{
    struct world w = *from;

    w.data[device] = 0;
    if (err)
        w.failures--;
    step(&w, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DATA_DONE,
                                        .device = device,
                                        .err = err}, 1);
    explore(&w);
}

/* The points where the machine waits for a decision, and the cancel that may come at any time. */
static void decide(const struct world *from)
{
    static const struct {
        uint32_t row;
        enum vfmig_flow_event_kind event;
    } answers[] = {
        {VFMIG_ROW_ASK, VFMIG_FLOW_EVENT_GO},
        {VFMIG_ROW_CHECK, VFMIG_FLOW_EVENT_GO},
        {VFMIG_ROW_WAIT, VFMIG_FLOW_EVENT_RELEASE},
        {VFMIG_ROW_HAND_OVER, VFMIG_FLOW_EVENT_RELEASE},
        {VFMIG_ROW_LOADED, VFMIG_FLOW_EVENT_PREPARE},
        {VFMIG_ROW_PREPARED, VFMIG_FLOW_EVENT_RUN},
    };
    struct world w = *from;

    if (vfmig_flow_current(&w.flow) == VFMIG_STEP_R4) {
        /* The guest is this side's now: there is no way back, it stays paused. */
        struct vfmig_flow_actions actions;
        struct vfmig_flow_event event = {.kind = VFMIG_FLOW_EVENT_UNWIND};

        assert_int_equal(vfmig_flow_step(&w.flow, &event, 1, &actions), -EINVAL);
        assert_false(w.flow.halted && w.vcpus_run);
        return;
    }
    if (w.failures && !w.failed && vfmig_flow_current(&w.flow) != VFMIG_STEP_S6) {
        w.failures--;
        w.failed = 1; /* from here on the rules of an unwinding hold */
        send_event(&w, VFMIG_FLOW_EVENT_UNWIND, 0);
        explore(&w);
        w = *from;
    }
    if (w.flow.halted) {
        send_event(&w, VFMIG_FLOW_EVENT_UNWIND, 0);
        explore(&w);
        return;
    }
    for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
        if (w.flow.row != answers[i].row)
            continue;
        send_event(&w, answers[i].event, 0);
        explore(&w);
        w = *from;
    }
    if ((w.flow.row == VFMIG_ROW_ASK || w.flow.row == VFMIG_ROW_CHECK) && w.again) {
        w.again--;
        send_event(&w, VFMIG_FLOW_EVENT_AGAIN, 0);
        explore(&w);
    }
}

static void explore(const struct world *from)
{
    if (seen_before(from))
        return;
    if (from->ended) {
        check_end(from);
        return;
    }
    assert_true(from->works || from->flow.halted || from->flow.row > VFMIG_ROW_COUNT ||
                memchr(from->go, 1, DEVICES) || memchr(from->data, 1, DEVICES));
    for (uint32_t i = 0; i < from->flow.device_count; i++) {
        if (from->go[i]) {
            complete_go(from, i, 0);
            if (from->failures && (from->flow.want[i] != VFMIG_WANT_RESET || reset_fails)) {
                complete_go(from, i, -EIO);    /* into ERROR */
                complete_go(from, i, -EBUSY);  /* still where it was */
            }
        }
        if (from->data[i]) {
            complete_data(from, i, 0);
            if (from->failures)
                complete_data(from, i, -EIO);
        }
    }
    for (uint32_t work = 0; work < VFMIG_WORK_COUNT; work++) {
        if (!(from->works & (1u << work)))
            continue;
        complete_work(from, work, 0);
        /* vCPUs that will not start again have no way back: the shell reports them. */
        if (from->failures && work != VFMIG_WORK_VCPU_START)
            complete_work(from, work, -EIO);
    }
    decide(from);
}

static void run(enum vfmig_flow_role role, uint32_t count, const uint32_t *features,
                unsigned failures, bool resets_may_fail)
{
    struct world w;

    memset(visited, 0, sizeof(visited));
    visited_count = ends_good = ends_unwound = 0;
    reset_fails = resets_may_fail;
    failures_given = failures;
    memset(&w, 0, sizeof(w));
    assert_int_equal(vfmig_flow_init(&w.flow, role, count, features, 1000, 1000), 0);
    for (uint32_t i = 0; i < count; i++)
        w.real[i] = VFMIG_STATE_RUNNING;
    w.vcpus_run = role == VFMIG_FLOW_SOURCE;
    w.failures = (uint8_t)failures;
    w.again = 1;
    w.flow.device_timeout_ns = w.flow.viommu_timeout_ns = 0; /* no deadlines here */
    for (uint32_t i = 0; i < count; i++)
        vfmig_flow_set_limit(&w.flow, i, 0);
    send_event(&w, VFMIG_FLOW_EVENT_START, 0);
    explore(&w);
    assert_true(ends_good > 0);
    assert_true(failures == 0 || ends_unwound > 0);
}

static const uint32_t sets[][DEVICES] = {
    {FULL, FULL, FULL},
    {FULL, PLAIN, QUIET},
    {PLAIN, VFMIG_FEATURE_STOP_COPY, PLAIN},
    {QUIET, FULL, VFMIG_FEATURE_STOP_COPY},
};
#define SETS (sizeof(sets) / sizeof(sets[0]))

static void all_orders(void **state)
{
    for (unsigned count = 0; count <= DEVICES; count++)
        for (size_t set = 0; set < SETS; set++) {
            run(VFMIG_FLOW_SOURCE, count, sets[set], 0, false);
            run(VFMIG_FLOW_DESTINATION, count, sets[set], 0, false);
        }
}

static void one_failure_anywhere_unwinds(void **state)
{
    for (unsigned count = 0; count <= 2; count++)
        for (size_t set = 0; set < SETS; set++) {
            run(VFMIG_FLOW_SOURCE, count, sets[set], 1, false);
            run(VFMIG_FLOW_DESTINATION, count, sets[set], 1, false);
        }
}

static void a_device_that_fails_again_and_again(void **state)
{
    for (size_t set = 0; set < SETS; set++) {
        run(VFMIG_FLOW_SOURCE, 1, sets[set], 5, true);
        run(VFMIG_FLOW_DESTINATION, 1, sets[set], 5, true);
    }
}

/* --- single facts --- */

static struct vfmig_flow_actions last;

static void feed(struct vfmig_flow *f, struct vfmig_flow_event event, uint64_t now_ns)
{
    assert_int_equal(vfmig_flow_step(f, &event, now_ns, &last), 0);
}

static bool told(enum vfmig_flow_action_kind kind)
{
    for (uint32_t i = 0; i < last.count; i++)
        if (last.list[i].kind == kind)
            return true;
    return false;
}

static void to_pre_copy(struct vfmig_flow *f)
{
    uint32_t features[2] = {FULL, FULL};

    assert_int_equal(vfmig_flow_init(f, VFMIG_FLOW_SOURCE, 2, features, 1000, 1000), 0);
    feed(f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_START}, 0);
    feed(f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_WORK_DONE,
                                      .work = VFMIG_WORK_TRACK_START}, 0);
    feed(f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_WORK_DONE,
                                      .work = VFMIG_WORK_ROUND}, 0);
    assert_true(told(VFMIG_FLOW_ACT_GO));
}

static void a_late_device_is_named(void **state)
{
    struct vfmig_flow f;

    to_pre_copy(&f);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DEVICE_DONE,
                                       .device = 0, .state = VFMIG_STATE_PRE_COPY}, 10);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_TICK}, 1249);
    assert_false(f.halted);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_TICK}, 1250);
    assert_true(f.halted && told(VFMIG_FLOW_ACT_FAILED) && told(VFMIG_FLOW_ACT_ABORT));
    assert_false(vfmig_devset_has(&f.late, 0));
    assert_true(vfmig_devset_has(&f.late, 1));
    assert_int_equal(f.cause, -ETIMEDOUT);
    /* It stands still until it is told to turn back: no more is late, and nobody is lost. */
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_TICK}, 99999);
    assert_int_equal(last.count, 0);
    assert_false(vfmig_devset_has(&f.lost, 1));
}

static struct vfmig_flow_event done(uint32_t device, uint32_t state, int err)
{
    return (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DEVICE_DONE,
                                     .device = device, .state = state, .err = err};
}

static const struct vfmig_flow_event tick = {.kind = VFMIG_FLOW_EVENT_TICK};

static void each_device_has_its_own_limit(void **state)
{
    uint32_t features[3] = {FULL, FULL, FULL};
    struct vfmig_flow f;

    assert_int_equal(vfmig_flow_init(&f, VFMIG_FLOW_DESTINATION, 3, features, 1000, 1000), 0);
    vfmig_flow_set_limit(&f, 1, 4000);
    vfmig_flow_set_limit(&f, 2, 0); /* none */
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_START}, 0);
    assert_int_equal(f.deadline_ns, 1250);
    feed(&f, done(0, VFMIG_STATE_RUNNING, 0), 1000);
    assert_int_equal(f.deadline_ns, 5000);
    feed(&f, tick, 4999);
    assert_false(f.halted);
    feed(&f, tick, 5000);
    assert_true(f.halted && told(VFMIG_FLOW_ACT_FAILED));
    assert_true(!vfmig_devset_has(&f.late, 0) && vfmig_devset_has(&f.late, 1));
    assert_false(vfmig_devset_has(&f.late, 2));
}

static void an_excuse_is_what_was_stood_still_and_no_more(void **state)
{
    uint32_t features[3] = {FULL, FULL, FULL};
    struct vfmig_flow f;

    assert_int_equal(vfmig_flow_init(&f, VFMIG_FLOW_DESTINATION, 3, features, 1000, 1000), 0);
    vfmig_flow_set_limit(&f, 1, 4000);
    vfmig_flow_set_limit(&f, 2, 0); /* none, and none comes of it */
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_START}, 0);
    vfmig_flow_excuse(&f, 400, 1300, 0);
    assert_int_equal(f.deadline_ns, 1650);
    vfmig_flow_excuse(&f, 0, 1700, 100);
    assert_int_equal(f.deadline_ns, 1800);
    /* Not more than a limit that begins now. */
    vfmig_flow_excuse(&f, 100000, 2000, 0);
    assert_int_equal(f.deadline_ns, 3250);
    vfmig_flow_excuse(&f, 0, 2000, 100000);
    assert_int_equal(f.deadline_ns, 3250);
    feed(&f, done(0, VFMIG_STATE_RUNNING, 0), 2000);
    assert_int_equal(f.deadline_ns, 7000);
    feed(&f, done(1, VFMIG_STATE_RUNNING, 0), 2000);
    vfmig_flow_excuse(&f, 100, 2000, 100);
    assert_int_equal(f.deadline_ns, 0);
}

static void an_excuse_is_for_works_too(void **state)
{
    struct vfmig_flow f;

    to_pre_copy(&f);
    assert_int_equal(f.works_due_ns, 0);
    vfmig_flow_excuse(&f, 700, 10, 0);
    assert_int_equal(f.works_due_ns, 0); /* none comes of it */
    f.row = VFMIG_ROW_S4_STOP;
    f.works_due_ns = 500;
    vfmig_flow_excuse(&f, 700, 600, 0);
    assert_int_equal(f.works_due_ns, 1200);
}

/* Source, two devices, in S2 with their data under way. */
static void to_data(struct vfmig_flow *f)
{
    to_pre_copy(f);
    feed(f, done(0, VFMIG_STATE_PRE_COPY, 0), 0);
    feed(f, done(1, VFMIG_STATE_PRE_COPY, 0), 0);
    assert_true(told(VFMIG_FLOW_ACT_DATA));
}

static void data_that_moves_is_not_late(void **state)
{
    struct vfmig_flow f;

    to_data(&f);
    assert_int_equal(f.deadline_ns, 1250);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DATA_MOVES, .device = 0}, 1250);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DATA_MOVES, .device = 1}, 1250);
    feed(&f, tick, 1250);
    assert_false(f.halted);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DATA_MOVES, .device = 0}, 2500);
    feed(&f, tick, 2500);
    assert_true(f.halted);
    assert_true(!vfmig_devset_has(&f.late, 0) && vfmig_devset_has(&f.late, 1));
    /* The other one ends its piece; the late one is left behind, and nobody waits for its data. */
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_UNWIND}, 2500);
    assert_int_equal(f.row, VFMIG_ROW_U0);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DATA_DONE, .device = 0, .err = -ECANCELED},
         2500);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_WORK_DONE,
                                       .work = VFMIG_WORK_ROUND, .err = -ECANCELED}, 2500);
    assert_int_equal(f.row, VFMIG_ROW_U_LOG);
    assert_true(vfmig_devset_has(&f.lost, 1) && !vfmig_devset_has(&f.lost, 0));
}

/* A second attempt with one device takes none of the time of another. */
static void a_ladder_does_not_extend_the_others(void **state)
{
    struct vfmig_flow f;

    to_pre_copy(&f);
    feed(&f, done(0, VFMIG_STATE_PRE_COPY, 0), 0);
    feed(&f, done(1, VFMIG_STATE_PRE_COPY, 0), 0);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_UNWIND}, 0);
    for (uint32_t i = 0; i < 2; i++)
        feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DATA_DONE, .device = i}, 0);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_WORK_DONE, .work = VFMIG_WORK_ROUND}, 0);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_WORK_DONE,
                                       .work = VFMIG_WORK_TRACK_STOP}, 0);
    assert_int_equal(f.row, VFMIG_ROW_U_RUN);
    feed(&f, done(0, VFMIG_STATE_PRE_COPY, -EIO), 1000);
    assert_int_equal(f.due_ns[0], 2250);
    assert_int_equal(f.deadline_ns, 1250);
    feed(&f, tick, 1250);
    assert_true(vfmig_devset_has(&f.lost, 1) && !vfmig_devset_has(&f.lost, 0));
    feed(&f, done(0, VFMIG_STATE_RUNNING, 0), 1300);
    assert_true(f.ended);
}

static void a_hanging_device_does_not_hold_the_guest(void **state)
{
    struct vfmig_flow f;

    to_pre_copy(&f);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DEVICE_DONE,
                                       .device = 0, .state = VFMIG_STATE_PRE_COPY}, 10);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_TICK}, 5000);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_UNWIND}, 5000);
    /* It has had its time: nobody waits for it once more. */
    assert_true(told(VFMIG_FLOW_ACT_LOST) && told(VFMIG_FLOW_ACT_WORK));
    assert_true(vfmig_devset_has(&f.lost, 1) && !vfmig_devset_has(&f.lost, 0));
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_WORK_DONE,
                                       .work = VFMIG_WORK_TRACK_STOP}, 10000);
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DEVICE_DONE,
                                       .device = 0, .state = VFMIG_STATE_RUNNING}, 10000);
    assert_true(f.ended);
    /* Its answer comes after all. */
    feed(&f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DEVICE_DONE,
                                       .device = 1, .state = VFMIG_STATE_PRE_COPY}, 20000);
    assert_int_equal(f.state[1], VFMIG_STATE_PRE_COPY);
}

static void senseless_events_change_nothing(void **state)
{
    static const enum vfmig_flow_event_kind kinds[] = {
        VFMIG_FLOW_EVENT_NONE, VFMIG_FLOW_EVENT_START, VFMIG_FLOW_EVENT_AGAIN,
        VFMIG_FLOW_EVENT_GO, VFMIG_FLOW_EVENT_RELEASE, VFMIG_FLOW_EVENT_PREPARE,
        VFMIG_FLOW_EVENT_RUN, VFMIG_FLOW_EVENT_COUNT,
    };
    struct vfmig_flow f, before;

    to_pre_copy(&f);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        before = f;
        struct vfmig_flow_event event = {.kind = kinds[i]};
        assert_int_equal(vfmig_flow_step(&f, &event, 0, &last), -EINVAL);
        assert_int_equal(last.count, 0);
        assert_memory_equal(&f, &before, sizeof(f));
    }
    struct vfmig_flow_event wrong = {.kind = VFMIG_FLOW_EVENT_DEVICE_DONE, .device = 2};
    assert_int_equal(vfmig_flow_step(&f, &wrong, 0, &last), -EINVAL);
    wrong = (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DEVICE_DONE, .state = 8};
    assert_int_equal(vfmig_flow_step(&f, &wrong, 0, &last), -EINVAL);
    wrong = (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_WORK_DONE, .work = VFMIG_WORK_COUNT};
    assert_int_equal(vfmig_flow_step(&f, &wrong, 0, &last), -EINVAL);
}

/* A late answer to something that was given up changes nothing, whatever it says. */
static void what_was_given_up_is_not_heard(void **state)
{
    const uint32_t features[] = {FULL};
    struct vfmig_flow f, before;

    assert_int_equal(vfmig_flow_init(&f, VFMIG_FLOW_SOURCE, 1, features, 100, 100), 0);
    assert_int_equal(f.state[0], VFMIG_STATE_RUNNING);
    assert_int_equal(
        vfmig_flow_step(&f, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_START}, 0, &last),
        0);
    before = f;
    for (uint32_t work = 0; work < VFMIG_WORK_COUNT; work++) {
        struct vfmig_flow_event event = {
            .kind = VFMIG_FLOW_EVENT_WORK_DONE, .work = work, .err = -EIO};
        if (work == VFMIG_WORK_TRACK_START)
            continue;
        assert_int_equal(vfmig_flow_step(&f, &event, 0, &last), 0);
        assert_int_equal(last.count, 0);
        assert_memory_equal(&f, &before, sizeof(f));
    }
    struct vfmig_flow_event data = {.kind = VFMIG_FLOW_EVENT_DATA_DONE, .err = -EIO};
    assert_int_equal(vfmig_flow_step(&f, &data, 0, &last), 0);
    assert_memory_equal(&f, &before, sizeof(f));
}

/* A reset that fails is tried once more, then the device is given up. */
static void a_reset_is_tried_twice(void **state)
{
    const uint32_t features[] = {FULL};
    struct vfmig_flow f;
    struct vfmig_flow_event fails = {
        .kind = VFMIG_FLOW_EVENT_DEVICE_DONE, .err = -EIO, .state = VFMIG_STATE_ERROR};

    assert_int_equal(vfmig_flow_init(&f, VFMIG_FLOW_DESTINATION, 1, features, 100, 100), 0);
    assert_int_equal(
        vfmig_flow_step(&f, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_START}, 0, &last),
        0);
    assert_int_equal(vfmig_flow_step(&f, &fails, 0, &last), 0);
    assert_int_equal(
        vfmig_flow_step(&f, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_UNWIND}, 0, &last),
        0);
    assert_int_equal(f.row, VFMIG_ROW_D_RESET);
    assert_int_equal(vfmig_flow_step(&f, &fails, 0, &last), 0);
    assert_int_equal(last.count, 1);
    assert_int_equal(last.list[0].kind, VFMIG_FLOW_ACT_GO);
    assert_int_equal(f.want[0], VFMIG_WANT_RESET);
    assert_int_equal(vfmig_flow_step(&f, &fails, 0, &last), 0);
    assert_int_equal(last.list[0].kind, VFMIG_FLOW_ACT_LOST);
    assert_true(f.ended);
}

/* What has an end of its own has no limit, the vIOMMU has its own, whatever else is waited for a
 * device's. */
static void each_row_has_its_limit(void **state)
{
    static const char *const endless[] = {"S1_ALL", "S2_LOOP", "S4_TRIAL",
                                          "S5_LOG", "S5_LAST", "HAND_OVER"};
    struct vfmig_flow f;
    unsigned rows = 0;

    assert_int_equal(vfmig_flow_init(&f, VFMIG_FLOW_SOURCE, 0, NULL, 400, 80), 0);
    f.quiet_log = 1;
    assert_int_equal(
        vfmig_flow_step(&f, &(struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_START}, 0, &last),
        0);
    while (f.row != VFMIG_ROW_WAIT) {
        struct vfmig_flow_event event = {.kind = VFMIG_FLOW_EVENT_GO};
        if (f.row != VFMIG_ROW_ASK && f.row != VFMIG_ROW_CHECK) {
            const char *name = vfmig_row_name(f.row);
            bool none = false;
            for (size_t i = 0; i < sizeof(endless) / sizeof(endless[0]); i++)
                none |= !strcmp(name, endless[i]);
            assert_int_equal(f.works_due_ns, none ? 0 : !strcmp(name, "S3_IDLE") ? 100 : 500);
            event.kind = VFMIG_FLOW_EVENT_WORK_DONE;
            while (!(f.running & 1u << event.work))
                event.work++;
            rows++;
        }
        assert_int_equal(vfmig_flow_step(&f, &event, 0, &last), 0);
    }
    assert_true(rows >= 11);
}

/* A row is named after the step that it belongs to. */
static void rows_are_of_their_steps(void **state)
{
    for (uint32_t row = 1; row < VFMIG_ROW_COUNT; row++) {
        const char *name = vfmig_row_name(row), *step = vfmig_step_name(vfmig_row_step(row));
        if (!strcmp(name, "HAND_OVER"))
            assert_string_equal(step, "handover");
        else if (!strcmp(name, "R2_LOAD"))
            assert_string_equal(step, "loaded");
        else if (name[0] == 'U')
            assert_string_equal(step, "unwind");
        else if (name[0] == 'D')
            assert_string_equal(step, "drop");
        else
            assert_memory_equal(step, name, 2);
    }
    /* Whoever waits is still in the step that it waits in. */
    assert_int_equal(vfmig_row_step(VFMIG_ROW_ASK), VFMIG_STEP_S2);
    assert_int_equal(vfmig_row_step(VFMIG_ROW_CHECK), VFMIG_STEP_S4);
    assert_int_equal(vfmig_row_step(VFMIG_ROW_SENT), VFMIG_STEP_HANDOVER);
    assert_int_equal(vfmig_row_step(VFMIG_ROW_WAIT), VFMIG_STEP_HANDOVER);
    assert_int_equal(vfmig_row_step(VFMIG_ROW_LOADED), VFMIG_STEP_LOADED);
    assert_int_equal(vfmig_row_step(VFMIG_ROW_PREPARED), VFMIG_STEP_R3);
    assert_int_equal(vfmig_row_step(VFMIG_ROW_END), VFMIG_STEP_END);
}

static void names(void **state)
{
    assert_string_equal(vfmig_step_name(VFMIG_STEP_S3), "S3");
    assert_string_equal(vfmig_step_name(VFMIG_STEP_COUNT), "unknown");
    for (unsigned i = 0; i < VFMIG_STEP_COUNT; i++)
        assert_non_null(vfmig_step_name(i));
    for (unsigned i = 0; i < VFMIG_WORK_COUNT; i++)
        assert_non_null(vfmig_work_name(i));
    for (unsigned i = 1; i < VFMIG_ROW_COUNT; i++)
        assert_non_null(vfmig_row_name(i));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_orders),
        cmocka_unit_test(one_failure_anywhere_unwinds),
        cmocka_unit_test(a_device_that_fails_again_and_again),
        cmocka_unit_test(a_late_device_is_named),
        cmocka_unit_test(an_excuse_is_for_works_too),
        cmocka_unit_test(each_device_has_its_own_limit),
        cmocka_unit_test(an_excuse_is_what_was_stood_still_and_no_more),
        cmocka_unit_test(data_that_moves_is_not_late),
        cmocka_unit_test(a_ladder_does_not_extend_the_others),
        cmocka_unit_test(a_hanging_device_does_not_hold_the_guest),
        cmocka_unit_test(senseless_events_change_nothing),
        cmocka_unit_test(what_was_given_up_is_not_heard),
        cmocka_unit_test(a_reset_is_tried_twice),
        cmocka_unit_test(each_row_has_its_limit),
        cmocka_unit_test(rows_are_of_their_steps),
        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests_name("flow", tests, NULL, NULL);
}
