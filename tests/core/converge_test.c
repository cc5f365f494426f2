/* SPDX-License-Identifier: BSD-3-Clause */
/* The decision to switch over. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/converge.h"

#define MS UINT64_C(1000000)
#define GIB (UINT64_C(1) << 30)

static struct vfmig_converge_input usual(void)
{
    return (struct vfmig_converge_input){
        .dirty_pages = 1000,
        .dirty_pages_per_s = 51200, /* 200 MiB/s */
        .bandwidth = GIB,
        .device_bytes = 65536,
        .device_change_ns = MS,
        .log_ns = MS,
        .vm_state_bytes = 20000,
        .journal_ns = 2 * MS,
        .rtt_ns = MS / 10,
        .rounds = 3,
    };
}

static void grows_with_everything(void **state)
{
    struct vfmig_converge_input base = usual();
    uint64_t at = vfmig_converge_predict(&base);
    uint64_t *fields[] = {&base.dirty_pages, &base.dirty_pages_per_s, &base.device_bytes,
                          &base.slowest_device_ns, &base.device_change_ns, &base.log_ns,
                          &base.journal_ns, &base.rtt_ns};

    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        uint64_t old = *fields[i];
        *fields[i] = old * 100 + 1000 * MS;
        assert_true(vfmig_converge_predict(&base) > at);
        *fields[i] = old;
    }
    base.bandwidth /= 100;
    assert_true(vfmig_converge_predict(&base) > at);
}

static void nothing_overflows(void **state)
{
    struct vfmig_converge_input huge = {
        .dirty_pages = UINT64_MAX, .dirty_pages_per_s = UINT64_MAX, .bandwidth = 1,
        .device_bytes = UINT64_MAX, .slowest_device_ns = UINT64_MAX,
        .device_change_ns = UINT64_MAX, .log_ns = UINT64_MAX, .vm_state_bytes = UINT64_MAX,
        .journal_ns = UINT64_MAX, .rtt_ns = UINT64_MAX, .rounds = 9};
    struct vfmig_converge_input blind = usual();

    assert_int_equal(vfmig_converge_predict(&huge), UINT64_MAX);
    blind.bandwidth = 0; /* not measured: never a reason to go */
    assert_int_equal(vfmig_converge_predict(&blind), UINT64_MAX);
}

static void prediction_covers_what_moves(void **state)
{
    struct vfmig_converge_input in = usual();

    in.dirty_pages = 26214; /* 102 MiB at 1 GiB/s: 100 ms and the fixed part */
    assert_true(vfmig_converge_predict(&in) > 100 * MS);
    assert_true(vfmig_converge_predict(&in) < 140 * MS);
}

static void goes_only_inside_the_limit(void **state)
{
    struct vfmig_converge_input in = usual();
    struct vfmig_converge converge = {.limit_ns = vfmig_converge_predict(&in)};

    assert_int_equal(vfmig_converge_decide(&converge, &in, 5), VFMIG_CONVERGE_GO);
    converge.limit_ns--;
    assert_int_equal(vfmig_converge_decide(&converge, &in, 5), VFMIG_CONVERGE_AGAIN);
    converge.limit_ns = UINT64_MAX;
    in.rounds = 1;
    assert_int_equal(vfmig_converge_decide(&converge, &in, 5), VFMIG_CONVERGE_AGAIN);
}

static void deadline_ends_it(void **state)
{
    struct vfmig_converge_input in = usual();
    struct vfmig_converge converge = {.limit_ns = 1, .deadline_ns = 100};

    assert_int_equal(vfmig_converge_decide(&converge, &in, 99), VFMIG_CONVERGE_AGAIN);
    assert_int_equal(vfmig_converge_decide(&converge, &in, 100), VFMIG_CONVERGE_GIVE_UP);
    converge.force = true;
    assert_int_equal(vfmig_converge_decide(&converge, &in, 100), VFMIG_CONVERGE_GO);
}

/* A guest that dirties a working set of 65536 pages in random order, simulated round by round. */
static uint32_t rounds_until_go(uint64_t rate_pages, uint64_t bandwidth, uint64_t limit_ns)
{
    struct vfmig_converge converge = {.limit_ns = limit_ns};
    struct vfmig_converge_input in = usual();
    double dirty = 131072;

    in.bandwidth = bandwidth;
    for (uint32_t round = 1; round < 50; round++) {
        double seconds = dirty * 4112 / (double)bandwidth;
        double written = (double)rate_pages * seconds;
        dirty = written > 65536 ? 65536 : written;
        in.rounds = round;
        in.dirty_pages = (uint64_t)dirty;
        in.dirty_pages_per_s = rate_pages;
        if (vfmig_converge_decide(&converge, &in, 1) == VFMIG_CONVERGE_GO)
            return round;
    }
    return 0;
}

static void converges_when_it_can(void **state)
{
    assert_in_range(rounds_until_go(51200, GIB, 100 * MS), 2, 6);
    assert_int_equal(rounds_until_go(51200, 100u << 20, 100 * MS), 0); /* slower than the guest */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grows_with_everything),
        cmocka_unit_test(nothing_overflows),
        cmocka_unit_test(prediction_covers_what_moves),
        cmocka_unit_test(goes_only_inside_the_limit),
        cmocka_unit_test(deadline_ends_it),
        cmocka_unit_test(converges_when_it_can),
    };
    return cmocka_run_group_tests_name("converge", tests, NULL, NULL);
}
