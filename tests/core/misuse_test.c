/* SPDX-License-Identifier: BSD-3-Clause */
/* Events that make no sense where they come, in walks of a fixed seed: what a machine refuses changes nothing, and what
 * it takes never brings it out of its table. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/bounds.h"
#include "core/flow.h"
#include "core/handover.h"
#include "core/state.h"

#define FULL (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)

static uint32_t random_state = 1;

static uint32_t pick(uint32_t below)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % below;
}

static struct vfmig_flow_event any_event(void)
{
    static const int errors[] = {0, 0, 0, -EIO, 5};

    return (struct vfmig_flow_event){
        .kind = (enum vfmig_flow_event_kind)pick(VFMIG_FLOW_EVENT_TICK + 3),
        .device = pick(8) ? pick(2) : 2 + pick(300),
        .work = pick(8) ? pick(VFMIG_WORK_COUNT) : VFMIG_WORK_COUNT + pick(9),
        .state = pick(8) ? pick(VFMIG_STATE_COUNT) : pick(256),
        .err = errors[pick(5)],
    };
}

static unsigned walk(enum vfmig_flow_role role, unsigned steps, uint32_t features)
{
    const uint32_t both[] = {features, FULL};
    unsigned refused = 0;
    struct vfmig_flow f;
    uint64_t now = 1;

    assert_int_equal(vfmig_flow_init(&f, role, 2, both, 100, 100), 0);
    vfmig_flow_set_limit(&f, 1, 50);
    vfmig_flow_set_limit(&f, 2, 50);
    for (unsigned i = 0; i < steps; i++) {
        struct vfmig_flow_event event = any_event();
        struct vfmig_flow before = f;
        struct vfmig_flow_actions actions;
        now += pick(20);
        int ret = vfmig_flow_step(&f, &event, now, &actions);
        assert_true(ret == 0 || ret == -EINVAL);
        if (ret) {
            assert_memory_equal(&before, &f, sizeof(f));
            refused++;
        }
        assert_true(f.row < VFMIG_ROW_COUNT || f.row == VFMIG_ROW_END);
        assert_string_not_equal(vfmig_row_name(f.row), "");
    }
    return refused;
}

static void what_a_flow_refuses_changes_nothing(void **state)
{
    unsigned refused = 0;

    for (unsigned i = 0; i < 1200; i++) {
        uint32_t features = i % 3 ? FULL : VFMIG_FEATURE_STOP_COPY;
        refused += walk(VFMIG_FLOW_SOURCE, 120, features) + walk(VFMIG_FLOW_DESTINATION, 120, features);
    }
    assert_true(refused > 4000);
}

static void what_is_no_flow(void **state)
{
    struct vfmig_flow f;

    assert_int_equal(vfmig_flow_init(&f, VFMIG_FLOW_SOURCE, VFMIG_MAX_DEVICES + 1, NULL, 1, 1), -EINVAL);
    assert_int_equal(vfmig_flow_init(&f, (enum vfmig_flow_role)0, 0, NULL, 1, 1), -EINVAL);
    assert_int_equal(vfmig_flow_init(&f, (enum vfmig_flow_role)3, 0, NULL, 1, 1), -EINVAL);
    assert_string_equal(vfmig_work_name(VFMIG_WORK_COUNT), "unknown");
    assert_string_equal(vfmig_row_name(0), "none");
    assert_string_equal(vfmig_row_name(VFMIG_ROW_COUNT), "none");
    assert_int_equal(vfmig_row_step(VFMIG_ROW_COUNT), VFMIG_STEP_IDLE);
}

static void what_a_handover_refuses_changes_nothing(void **state)
{
    unsigned refused = 0;

    for (unsigned i = 0; i < 20000; i++) {
        enum vfmig_ho_role role = i % 2 ? VFMIG_HO_SOURCE : VFMIG_HO_DESTINATION;
        const uint8_t id[VFMIG_HO_ID_BYTES] = {1};
        struct vfmig_handover h;
        if (vfmig_handover_init(&h, role, id, 1, (uint8_t)pick(VFMIG_HO_RECORD_COUNT + 2), pick(2)))
            continue;
        for (unsigned step = 0; step < 12; step++) {
            struct vfmig_ho_event event = {.kind = (enum vfmig_ho_event_kind)pick(VFMIG_HO_EVENT_COUNT + 2)};
            struct vfmig_handover before = h;
            struct vfmig_ho_actions actions;
            event.msg = (struct vfmig_ho_msg){.epoch = pick(3), .kind = (uint8_t)pick(VFMIG_HO_MSG_COUNT + 1),
                                              .record = (uint8_t)pick(VFMIG_HO_RECORD_COUNT + 1),
                                              .memory = (uint8_t)pick(8) / 3, .reserved = !pick(20)};
            event.msg.id[0] = (uint8_t)(pick(10) != 0);
            if (vfmig_handover_step(&h, &event, &actions) < 0) {
                assert_memory_equal(&before, &h, sizeof(h));
                refused++;
            }
            assert_string_not_equal(vfmig_ho_state_name(h.state), "unknown");
        }
    }
    assert_true(refused > 1000);
    struct vfmig_handover h;
    assert_true(vfmig_handover_init(&h, (enum vfmig_ho_role)7, NULL, 0, VFMIG_HO_RECORD_NONE, false) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_flow_refuses_changes_nothing),
        cmocka_unit_test(what_is_no_flow),
        cmocka_unit_test(what_a_handover_refuses_changes_nothing),
    };

    return cmocka_run_group_tests_name("misuse", tests, NULL, NULL);
}
