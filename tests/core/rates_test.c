/* SPDX-License-Identifier: BSD-3-Clause */
/* Rates of many pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/rates.h"

#define SECOND UINT64_C(1000000000)

static void assert_near(uint64_t rate, uint64_t wanted)
{
    assert_in_range(rate, wanted - wanted / 20, wanted + wanted / 20);
}

static void nothing_has_no_rate(void **state)
{
    struct vfmig_rates rates = {0};

    assert_int_equal(vfmig_rates_quantile(&rates, 50), 0);
}

static void every_rate_is_kept_within_a_step(void **state)
{
    for (uint64_t rate = 70000; rate < UINT64_C(1) << 41; rate += rate / 7 + 1) {
        struct vfmig_rates rates = {0};
        vfmig_rates_add(&rates, rate, SECOND);
        assert_near(vfmig_rates_quantile(&rates, 50), rate);
        assert_int_equal(vfmig_rates_quantile(&rates, 0), vfmig_rates_quantile(&rates, 100));
    }
}

/* Nine of ten bytes go fast; the one that waits does not pull them down, as it does with a mean. */
static void some_that_wait_do_not_hide_the_rest(void **state)
{
    struct vfmig_rates fast = {0}, slow = {0};

    for (unsigned i = 0; i < 90; i++)
        vfmig_rates_add(&fast, 1000000, 1000000);
    for (unsigned i = 0; i < 10; i++)
        vfmig_rates_add(&slow, 1000000, 100000000);
    vfmig_rates_merge(&slow, &fast);
    assert_int_equal(slow.total, 100000000);
    assert_near(vfmig_rates_quantile(&slow, 50), 1000000000);
    assert_near(vfmig_rates_quantile(&slow, 11), 1000000000);
    assert_near(vfmig_rates_quantile(&slow, 10), 10000000);
    assert_near(vfmig_rates_quantile(&slow, 0), 10000000);
}

static void extremes_fall_into_the_last_steps(void **state)
{
    struct vfmig_rates rates = {0};

    vfmig_rates_add(&rates, 1, UINT64_MAX);
    assert_near(vfmig_rates_quantile(&rates, 100), 68400);
    vfmig_rates_add(&rates, UINT64_MAX / 2, 0);
    assert_true(vfmig_rates_quantile(&rates, 100) > UINT64_C(1) << 41);
}

/* Where a step ends the next one begins: a rate of just that is of the upper one. */
static void steps_begin_at_their_edges(void **state)
{
    const uint64_t edges[] = {65536, 71468, 77936, 84990, 92682, 101070, 110218, 120194};

    for (unsigned octave = 0; octave < VFMIG_RATES_STEPS / VFMIG_RATES_OCTAVE; octave++)
        for (unsigned i = 0; i < VFMIG_RATES_OCTAVE; i++) {
            struct vfmig_rates rates = {0};
            vfmig_rates_add(&rates, edges[i] << octave, SECOND);
            assert_int_equal(rates.bytes[octave * VFMIG_RATES_OCTAVE + i], edges[i] << octave);
        }
    /* The first rate beyond the last step is of that step. */
    struct vfmig_rates rates = {0};
    uint64_t beyond = UINT64_C(65536) << VFMIG_RATES_STEPS / VFMIG_RATES_OCTAVE;
    vfmig_rates_add(&rates, beyond, SECOND);
    assert_int_equal(rates.bytes[VFMIG_RATES_STEPS - 1], beyond);
    assert_int_equal(rates.total, beyond);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_has_no_rate),
        cmocka_unit_test(every_rate_is_kept_within_a_step),
        cmocka_unit_test(some_that_wait_do_not_hide_the_rest),
        cmocka_unit_test(steps_begin_at_their_edges),
        cmocka_unit_test(extremes_fall_into_the_last_steps),
    };
    return cmocka_run_group_tests_name("rates", tests, NULL, NULL);
}
