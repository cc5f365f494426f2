/* SPDX-License-Identifier: BSD-3-Clause */
/* The rows of tables/flow.def that ask devices for something, from the RFC's flows instead of the table: which devices,
 * for what, and what comes of one that fails there. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "core/flow.h"
#include "core/state.h"

#define DEVICES 2u /* one with NDMA and one without, both with pre-copy */
#define NOTHING 0xfeu
#define RESET   VFMIG_WANT_RESET
#define TO(state) VFMIG_STATE_##state

static const uint32_t features[DEVICES] = {VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY,
                                           VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_PRE_COPY};

enum consequence {
    FAILS,     /* the attempt, at once: the guest is on its way back, or is not here yet */
    TRIES,     /* again, then a reset, which is the end of the attempt: what was loaded is gone */
    GIVES_UP,  /* again, then a reset, then without it: the guest goes on */
    OVERLOOKS, /* the guest is elsewhere */
};

static const struct {
    uint32_t row;
    uint8_t want[DEVICES];
    enum consequence consequence;
} rules[] = {
    {VFMIG_ROW_S2_ENTER, {TO(PRE_COPY), TO(PRE_COPY)}, FAILS},
    {VFMIG_ROW_S2_QUIET, {TO(PRE_COPY_NDMA), NOTHING}, FAILS},
    {VFMIG_ROW_S2_AGAIN, {TO(PRE_COPY), NOTHING}, FAILS},
    {VFMIG_ROW_S3_ENTER, {TO(PRE_COPY_NDMA), NOTHING}, FAILS},
    {VFMIG_ROW_S4_BACK, {TO(PRE_COPY), NOTHING}, FAILS},
    {VFMIG_ROW_S5_ENTER, {TO(STOP_COPY), TO(STOP_COPY)}, FAILS},
    {VFMIG_ROW_S6_ENTER, {TO(STOP), TO(STOP)}, OVERLOOKS},
    {VFMIG_ROW_U_QUIET, {TO(RUNNING_NDMA), NOTHING}, GIVES_UP},
    {VFMIG_ROW_U_PLAIN, {NOTHING, TO(RUNNING)}, GIVES_UP},
    {VFMIG_ROW_U_RUN, {TO(RUNNING), NOTHING}, GIVES_UP},
    {VFMIG_ROW_R0_RESET, {RESET, RESET}, FAILS},
    {VFMIG_ROW_R1_HALT, {TO(STOP), TO(STOP)}, FAILS},
    {VFMIG_ROW_R2_ENTER, {TO(RESUMING), TO(RESUMING)}, FAILS},
    {VFMIG_ROW_R2_LOAD, {TO(STOP), TO(STOP)}, FAILS},
    {VFMIG_ROW_R3_ENTER, {TO(RUNNING_NDMA), NOTHING}, TRIES},
    {VFMIG_ROW_R4_PLAIN, {NOTHING, TO(RUNNING)}, TRIES},
    {VFMIG_ROW_R4_RUN, {TO(RUNNING), NOTHING}, TRIES},
    {VFMIG_ROW_D_RESET, {RESET, RESET}, GIVES_UP},
};
#define RULES (sizeof(rules) / sizeof(rules[0]))

static struct vfmig_flow_actions last;

static void feed(struct vfmig_flow *f, struct vfmig_flow_event event)
{
    assert_int_equal(vfmig_flow_step(f, &event, 0, &last), 0);
}

static void event(struct vfmig_flow *f, enum vfmig_flow_event_kind kind)
{
    feed(f, (struct vfmig_flow_event){.kind = kind});
}

static bool told(enum vfmig_flow_action_kind kind, uint32_t device)
{
    for (uint32_t i = 0; i < last.count; i++)
        if (last.list[i].kind == kind && (device == NOTHING || vfmig_devset_has(&last.list[i].devices, device)))
            return true;
    return false;
}

static void done(struct vfmig_flow *f, uint32_t device, int err)
{
    uint32_t want = f->want[device];

    feed(f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DEVICE_DONE, .device = device, .err = err,
                                      .state = err ? TO(ERROR) : want == RESET ? TO(RUNNING) : want});
}

static bool busy(const struct vfmig_flow *f, uint32_t device)
{
    return vfmig_devset_has(&f->busy, device);
}

/* Ends something that is under way. */
static void go_on(struct vfmig_flow *f, bool goes_back)
{
    for (uint32_t i = 0; i < DEVICES; i++) {
        if (busy(f, i)) {
            done(f, i, 0);
            return;
        }
        if (vfmig_devset_has(&f->streaming, i)) {
            feed(f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_DATA_DONE, .device = i});
            return;
        }
    }
    for (uint32_t work = 0; work < VFMIG_WORK_COUNT; work++) {
        if (f->running & 1u << work) {
            feed(f, (struct vfmig_flow_event){.kind = VFMIG_FLOW_EVENT_WORK_DONE, .work = work});
            return;
        }
    }
    switch (f->row) {
    case VFMIG_ROW_ASK:
        event(f, VFMIG_FLOW_EVENT_GO);
        return;
    case VFMIG_ROW_CHECK:
        event(f, goes_back ? VFMIG_FLOW_EVENT_AGAIN : VFMIG_FLOW_EVENT_GO);
        return;
    case VFMIG_ROW_WAIT:
        event(f, VFMIG_FLOW_EVENT_RELEASE);
        return;
    case VFMIG_ROW_LOADED:
        event(f, VFMIG_FLOW_EVENT_PREPARE);
        return;
    case VFMIG_ROW_PREPARED:
        event(f, VFMIG_FLOW_EVENT_RUN);
        return;
    default:
        fail_msg("nothing goes on in %s", vfmig_row_name(f->row));
    }
}

static void reach(struct vfmig_flow *f, uint32_t row)
{
    bool source = vfmig_row_step(row) < VFMIG_STEP_R0, back = vfmig_row_step(row) == VFMIG_STEP_UNWIND;
    bool drops = row == VFMIG_ROW_D_RESET;

    assert_int_equal(vfmig_flow_init(f, source ? VFMIG_FLOW_SOURCE : VFMIG_FLOW_DESTINATION, DEVICES, features, 0, 0), 0);
    f->quiet_log = row == VFMIG_ROW_S2_QUIET || row == VFMIG_ROW_S2_AGAIN;
    event(f, VFMIG_FLOW_EVENT_START);
    while (f->row != row) {
        if ((back && f->row == VFMIG_ROW_S5_STATE) || (drops && f->row == VFMIG_ROW_R1_EXTERNAL))
            event(f, VFMIG_FLOW_EVENT_UNWIND);
        else
            go_on(f, row == VFMIG_ROW_S4_BACK);
    }
}

static void each_row_asks_the_devices_that_it_is_for(void **state)
{
    for (size_t i = 0; i < RULES; i++) {
        struct vfmig_flow f;
        reach(&f, rules[i].row);
        for (uint32_t device = 0; device < DEVICES; device++) {
            bool asked = rules[i].want[device] != NOTHING;
            if (busy(&f, device) != asked || (asked && f.want[device] != rules[i].want[device]))
                fail_msg("%s: device %u is asked for %s", vfmig_row_name(rules[i].row), device,
                         busy(&f, device) ? vfmig_state_name(f.want[device]) : "nothing");
        }
    }
}

static void fail_once_more(struct vfmig_flow *f, uint32_t device, uint32_t want)
{
    done(f, device, -EIO);
    assert_true(told(VFMIG_FLOW_ACT_GO, device) && busy(f, device));
    assert_int_equal(f->want[device], want);
}

static void check_consequence(size_t i, uint32_t device)
{
    struct vfmig_flow f;
    bool resets = rules[i].want[device] == RESET;

    reach(&f, rules[i].row);
    if (rules[i].consequence == TRIES || rules[i].consequence == GIVES_UP) {
        if (!resets)
            fail_once_more(&f, device, rules[i].want[device]);
        fail_once_more(&f, device, RESET);
    }
    done(&f, device, rules[i].consequence == TRIES ? 0 : -EIO);
    assert_false(told(VFMIG_FLOW_ACT_GO, device) || busy(&f, device));
    bool ends = rules[i].consequence == FAILS || rules[i].consequence == TRIES;
    assert_int_equal(f.halted, ends);
    assert_int_equal(told(VFMIG_FLOW_ACT_FAILED, NOTHING), ends);
    assert_int_equal(f.cause, ends ? -EIO : 0);
    assert_int_equal(told(VFMIG_FLOW_ACT_LOST, device), rules[i].consequence == GIVES_UP);
    assert_int_equal(vfmig_devset_has(&f.lost, device), rules[i].consequence == GIVES_UP);
}

static void a_device_that_fails_has_the_consequence_of_its_row(void **state)
{
    for (size_t i = 0; i < RULES; i++)
        for (uint32_t device = 0; device < DEVICES; device++)
            if (rules[i].want[device] != NOTHING)
                check_consequence(i, device);
}

/* What it needed in one row is not held against it in the next. */
static void each_row_gives_a_device_its_tries(void **state)
{
    static const uint32_t rows[][2] = {{VFMIG_ROW_R3_ENTER, VFMIG_ROW_R4_RUN}, {VFMIG_ROW_U_QUIET, VFMIG_ROW_U_RUN}};

    for (size_t i = 0; i < 2; i++) {
        struct vfmig_flow f;
        reach(&f, rows[i][0]);
        fail_once_more(&f, 0, f.want[0]);
        while (f.row != rows[i][1])
            go_on(&f, false);
        fail_once_more(&f, 0, TO(RUNNING));
    }
}

/* Somebody else's failure, or a user's: on the way forward, and with a reason. */
static void a_failure_from_outside_needs_a_way_forward_and_a_reason(void **state)
{
    struct vfmig_flow f, before;
    struct vfmig_flow_event failure = {.kind = VFMIG_FLOW_EVENT_FAIL, .err = -ECANCELED}, none = failure;

    none.err = 0;
    reach(&f, VFMIG_ROW_S5_ENTER);
    before = f;
    assert_int_equal(vfmig_flow_step(&f, &none, 0, &last), -EINVAL);
    assert_memory_equal(&before, &f, sizeof(f));
    feed(&f, failure);
    assert_true(f.halted && told(VFMIG_FLOW_ACT_ABORT, NOTHING) && told(VFMIG_FLOW_ACT_FAILED, NOTHING));
    assert_int_equal(f.cause, -ECANCELED);
    before = f;
    assert_int_equal(vfmig_flow_step(&f, &failure, 0, &last), -EINVAL); /* once */
    assert_memory_equal(&before, &f, sizeof(f));
    static const uint32_t no_way_forward[] = {VFMIG_ROW_U_RUN, VFMIG_ROW_D_RESET, VFMIG_ROW_S6_ENTER};
    for (size_t i = 0; i < 3; i++) {
        reach(&f, no_way_forward[i]);
        before = f;
        assert_int_equal(vfmig_flow_step(&f, &failure, 0, &last), -EINVAL);
        assert_memory_equal(&before, &f, sizeof(f));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_row_asks_the_devices_that_it_is_for),
        cmocka_unit_test(a_device_that_fails_has_the_consequence_of_its_row),
        cmocka_unit_test(each_row_gives_a_device_its_tries),
        cmocka_unit_test(a_failure_from_outside_needs_a_way_forward_and_a_reason),
    };

    return cmocka_run_group_tests_name("flow-rows", tests, NULL, NULL);
}
