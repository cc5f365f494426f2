/* SPDX-License-Identifier: BSD-3-Clause */
/* The limit of bytes per second, by a clock that the test turns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/pace.h"

#define SECOND UINT64_C(1000000000)
#define START  (UINT64_C(77) * SECOND)

static uint64_t random_of(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void without_limit_nothing_waits(void **state)
{
    struct vfmig_pace pace = {0};

    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(vfmig_pace_take(&pace, UINT64_MAX, START + i), START + i);
}

/* A sender that never sleeps too long: after n seconds exactly n times the rate, whatever the rate
 * divides into. */
static void the_long_run_is_exact(void **state)
{
    const uint64_t rates[] = {1, 3, 7, 4097, 1000003, 48u << 20, UINT64_C(40000000000)};

    for (unsigned i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
        struct vfmig_pace pace = {0};
        uint64_t piece = rates[i] / 997 + 1, sent = 0, now = START;
        vfmig_pace_set(&pace, rates[i]);
        pace.next_ns = START; /* no credit yet */
        while (sent < rates[i] * 10) {
            now = vfmig_pace_take(&pace, piece, now);
            sent += piece;
        }
        /* What was let through has had its time: sent bytes take sent / rate seconds. */
        assert_int_equal(pace.next_ns - START, (unsigned __int128)sent * SECOND / rates[i]);
        assert_true(now < pace.next_ns && now >= START + 10 * SECOND - 2 * (pace.next_ns - now));
    }
}

/* Two senders that sleep too long, send for a while and take pieces of any size: never more than
 * the promise in any span, and what lateness within the credit costs is made up for. */
static void lateness(uint64_t rate, uint64_t late_ns, uint64_t seed)
{
    enum { PIECES = 2000 };
    static uint64_t at[PIECES], bytes[PIECES];
    struct vfmig_pace pace = {0};
    uint64_t now = START, sum = 0;

    vfmig_pace_set(&pace, rate);
    pace.next_ns = START;
    for (unsigned i = 0; i < PIECES; i++) {
        bytes[i] = random_of(&seed) % (2 << 20) + (128 << 10);
        at[i] = vfmig_pace_take(&pace, bytes[i], now);
        assert_true(at[i] >= now);
        now = at[i] + random_of(&seed) % (late_ns + 1);
        sum += bytes[i];
    }
    for (unsigned from = 0; from < PIECES; from += 37) {
        unsigned __int128 let = 0;
        for (unsigned to = from; to < PIECES; to++) {
            /* Without the piece that begins last. */
            uint64_t span = at[to] - at[from] + VFMIG_PACE_CREDIT_NS;
            assert_true(let * SECOND <= (unsigned __int128)rate * span + rate);
            let += bytes[to];
        }
    }
    /* The shortest piece takes longer than the longest delay: the rate is reached. */
    if (rate / 1000 * late_ns / 1000000 < 128 << 10)
        assert_in_range(pace.next_ns - START, (unsigned __int128)sum * SECOND / rate - 1,
                        (unsigned __int128)sum * SECOND / rate + 1);
}

static void never_more_than_promised(void **state)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        lateness(10 << 20, 0, seed);
        lateness(10 << 20, 9000000, seed);
        lateness(300 << 20, 5000000, seed);
        lateness(300 << 20, 9999999, seed);
        lateness(300 << 20, 80000000, seed);
        lateness(UINT64_C(5) << 30, 3000000, seed);
    }
}

static void a_pause_is_no_reason_for_a_burst(void **state)
{
    struct vfmig_pace pace = {0};
    uint64_t rate = 100000000;

    vfmig_pace_set(&pace, rate);
    vfmig_pace_take(&pace, rate / 10, START);
    uint64_t later = START + 100 * SECOND, sent = 0;
    while (vfmig_pace_take(&pace, 1000, later) == later)
        sent += 1000;
    assert_in_range(sent, rate / 100, rate / 100 + 1000); /* the credit: 10 ms */
}

static void a_new_rate_holds_from_then_on(void **state)
{
    struct vfmig_pace pace = {0};

    vfmig_pace_set(&pace, 1000);
    pace.next_ns = START;
    assert_int_equal(vfmig_pace_take(&pace, 1000, START), START);
    vfmig_pace_set(&pace, 500);
    assert_int_equal(vfmig_pace_take(&pace, 500, START), START + SECOND);
    assert_int_equal(vfmig_pace_take(&pace, 1, START), START + 2 * SECOND);
    vfmig_pace_set(&pace, 0);
    assert_int_equal(vfmig_pace_take(&pace, 1, START), START);
    /* Parts of a nanosecond are of their rate, and of the time that is made up for. */
    vfmig_pace_set(&pace, 7);
    vfmig_pace_take(&pace, 1, START);
    assert_int_equal(pace.rest, SECOND % 7);
    vfmig_pace_set(&pace, 3);
    assert_int_equal(pace.rest, 0);
    vfmig_pace_take(&pace, 1, START + 100 * SECOND);
    assert_int_equal(pace.rest, SECOND % 3);
    vfmig_pace_take(&pace, 1, START + 200 * SECOND);
    assert_int_equal(pace.rest, SECOND % 3);
}

static void nothing_overflows(void **state)
{
    struct vfmig_pace pace = {0};

    vfmig_pace_set(&pace, 1);
    vfmig_pace_take(&pace, UINT64_MAX, START);
    assert_int_equal(vfmig_pace_take(&pace, UINT64_MAX, START), UINT64_MAX);
    assert_int_equal(vfmig_pace_take(&pace, 1, START), UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_limit_nothing_waits),
        cmocka_unit_test(the_long_run_is_exact),
        cmocka_unit_test(never_more_than_promised),
        cmocka_unit_test(a_pause_is_no_reason_for_a_burst),
        cmocka_unit_test(a_new_rate_holds_from_then_on),
        cmocka_unit_test(nothing_overflows),
    };
    return cmocka_run_group_tests_name("pace", tests, NULL, NULL);
}
