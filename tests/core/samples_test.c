/* SPDX-License-Identifier: BSD-3-Clause */
/* Quantiles of the last measurements. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/samples.h"

static void nothing_measured_is_said_so(void **state)
{
    struct vfmig_samples s = {0};

    assert_int_equal(vfmig_samples_quantile(&s, 50, 7), 7);
    vfmig_samples_add(&s, 0);
    assert_int_equal(vfmig_samples_quantile(&s, 50, 7), 0);
}

static void quantiles_of_few(void **state)
{
    struct vfmig_samples s = {0};
    const uint64_t values[] = {40, 10, 50, 20, 30};

    for (unsigned i = 0; i < 5; i++)
        vfmig_samples_add(&s, values[i]);
    const struct {
        uint32_t percent;
        uint64_t value;
    } rows[] = {{0, 10}, {1, 10}, {20, 10}, {21, 20}, {50, 30}, {80, 40}, {81, 50}, {90, 50},
                {100, 50}, {1000, 50}};
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        assert_int_equal(vfmig_samples_quantile(&s, rows[i].percent, 0), rows[i].value);
}

static void one_late_answer_does_not_move_the_median(void **state)
{
    struct vfmig_samples s = {0};

    for (unsigned i = 0; i < 9; i++)
        vfmig_samples_add(&s, i == 4 ? UINT64_MAX : 100);
    assert_int_equal(vfmig_samples_quantile(&s, 50, 0), 100);
    assert_int_equal(vfmig_samples_quantile(&s, 80, 0), 100);
    assert_int_equal(vfmig_samples_quantile(&s, 90, 0), UINT64_MAX);
}

static void old_ones_are_forgotten(void **state)
{
    struct vfmig_samples s = {0};

    for (uint64_t i = 0; i < 10 * VFMIG_SAMPLES + 3; i++) {
        vfmig_samples_add(&s, i);
        assert_int_equal(vfmig_samples_quantile(&s, 100, 0), i);
        assert_int_equal(vfmig_samples_quantile(&s, 0, 0),
                         i < VFMIG_SAMPLES ? 0 : i - VFMIG_SAMPLES + 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_measured_is_said_so),
        cmocka_unit_test(quantiles_of_few),
        cmocka_unit_test(one_late_answer_does_not_move_the_median),
        cmocka_unit_test(old_ones_are_forgotten),
    };
    return cmocka_run_group_tests_name("samples", tests, NULL, NULL);
}
