/* SPDX-License-Identifier: BSD-3-Clause */
/* Guests that do not converge. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/throttle.h"

#define MS UINT64_C(1000000)

static void progress_is_left_alone(void **state)
{
    struct vfmig_throttle t = {.max_percent = 99};

    for (uint64_t bound = 100000 * MS; bound > MS; bound = bound * 7 / 8 - 1) {
        assert_false(vfmig_throttle_round(&t, bound));
        assert_false(vfmig_throttle_is_stuck(&t));
    }
    assert_int_equal(t.percent, 0);
}

/* QEMU's users know these steps: 20, 30, 40 ... */
static void a_stuck_guest_is_slowed_down_step_by_step(void **state)
{
    struct vfmig_throttle t = {.max_percent = 55};
    const uint32_t percents[] = {0, 0, 0, 20, 20, 30, 30, 40, 40, 50, 50, 55, 55, 55};

    for (unsigned i = 0; i < sizeof(percents) / sizeof(percents[0]); i++) {
        uint32_t before = t.percent;
        bool changed = vfmig_throttle_round(&t, 1000 * MS - i * MS);
        assert_int_equal(t.percent, percents[i]);
        assert_int_equal(changed, t.percent != before);
        assert_int_equal(vfmig_throttle_is_stuck(&t), t.percent == 55);
    }
    /* It helped at last: no longer stuck, and not let loose again. */
    assert_false(vfmig_throttle_round(&t, 500 * MS));
    assert_int_equal(t.percent, 55);
    assert_false(vfmig_throttle_is_stuck(&t));
}

static void what_may_not_be_throttled_is_told(void **state)
{
    struct vfmig_throttle t = {0};

    for (unsigned i = 0; i <= VFMIG_STUCK_ROUNDS; i++) {
        assert_false(vfmig_throttle_is_stuck(&t));
        assert_false(vfmig_throttle_round(&t, 1000 * MS));
    }
    assert_true(vfmig_throttle_is_stuck(&t));
    assert_int_equal(t.percent, 0);
}

static void noise_is_no_progress(void **state)
{
    struct vfmig_throttle t = {.max_percent = 99};

    vfmig_throttle_round(&t, 800 * MS);
    vfmig_throttle_round(&t, 700 * MS); /* an eighth: not yet */
    assert_int_equal(t.stuck, 1);
    vfmig_throttle_round(&t, 700 * MS - 1);
    assert_int_equal(t.stuck, 0);
    t = (struct vfmig_throttle){.max_percent = 99};

    for (unsigned i = 0; i < 40; i++)
        vfmig_throttle_round(&t, 1000 * MS + (i % 5) * 20 * MS - (i % 3) * 30 * MS);
    assert_int_equal(t.percent, 99);
    assert_true(vfmig_throttle_is_stuck(&t));
}

static void extremes(void **state)
{
    struct vfmig_throttle t = {.max_percent = 99, .stuck = UINT32_MAX - 1};

    for (unsigned i = 0; i < 5; i++)
        vfmig_throttle_round(&t, i ? UINT64_MAX : 0);
    assert_true(t.stuck >= 3);
    t = (struct vfmig_throttle){.max_percent = 5};
    for (unsigned i = 0; i < 5; i++)
        vfmig_throttle_round(&t, UINT64_MAX);
    assert_int_equal(t.percent, 5); /* less than a step */
    t = (struct vfmig_throttle){.max_percent = 5, .percent = 5, .stuck = UINT32_MAX, .least_ns = 1};
    vfmig_throttle_round(&t, UINT64_MAX);
    assert_true(vfmig_throttle_is_stuck(&t)); /* for ever */
    /* Whoever may be slowed down more from now on is, at once. */
    t.max_percent = 50;
    assert_true(vfmig_throttle_round(&t, UINT64_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(progress_is_left_alone),
        cmocka_unit_test(a_stuck_guest_is_slowed_down_step_by_step),
        cmocka_unit_test(what_may_not_be_throttled_is_told),
        cmocka_unit_test(noise_is_no_progress),
        cmocka_unit_test(extremes),
    };
    return cmocka_run_group_tests_name("throttle", tests, NULL, NULL);
}
