/* SPDX-License-Identifier: BSD-3-Clause */
/* The decision to switch over. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "core/converge.h"

#define MS UINT64_C(1000000)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct vfmig_converge_input usual(void)
{
    return (struct vfmig_converge_input){
        .dirty_pages = 10000,
        .cold_pages = 1000,
        .memory_pages = UINT64_C(1) << 40,
        .dirty_pages_per_s = 51200, /* 200 MiB/s */
        .until_stop_ns = 5 * MS,
        .bandwidth = GIB,
        .cold_page_ns = 500,
        .channels = 1,
        .drain_ns = MS,
        .device_bytes = 65536,
        .devices = true,
        .change_ns = MS,
        .peer_load_ns = MS,
        .peer_change_ns = MS,
        .stop_ns = MS,
        .log_ns = MS,
        .vm_state_bytes = 20000,
        .vm_load_ns = 2 * MS,
        .journal_ns = 2 * MS,
        .peer_journal_ns = 2 * MS,
        .rtt_ns = MS / 10,
        .rounds = 3,
    };
}

static uint64_t total(const struct vfmig_converge_input *in)
{
    struct vfmig_prediction prediction = {0};

    vfmig_converge_predict(in, &prediction);
    assert_true(prediction.total_ns == UINT64_MAX ||
                prediction.total_ns == prediction.stop_ns + prediction.logs_ns + prediction.send_ns +
                                           prediction.ready_ns + prediction.grant_ns +
                                           prediction.resume_ns);
    return prediction.total_ns;
}

/* Every field alone, from nothing to everything: never less for more, and more at the end. */
static void grows_with_everything(void **state)
{
    struct vfmig_converge_input in = usual();
    uint64_t *fields[] = {&in.dirty_pages, &in.cold_pages, &in.dirty_pages_per_s, &in.until_stop_ns,
                          &in.cold_page_ns, &in.drain_ns, &in.device_bytes, &in.slowest_device_ns,
                          &in.change_ns, &in.peer_load_ns, &in.peer_change_ns, &in.stop_ns, &in.log_ns,
                          &in.vm_state_bytes, &in.vm_state_ns, &in.vm_load_ns, &in.journal_ns,
                          &in.peer_journal_ns, &in.rtt_ns};

    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        uint64_t old = *fields[i], last = 0;
        *fields[i] = 3 * MS; /* 0 is "not known", which is not little */
        uint64_t first = total(&in);
        for (unsigned shift = 22; shift < 64; shift++) {
            *fields[i] = UINT64_C(1) << shift;
            uint64_t now = total(&in);
            assert_true(now >= last);
            last = now;
        }
        assert_true(last > first);
        *fields[i] = old;
    }
    uint64_t last = UINT64_MAX;
    for (unsigned shift = 0; shift < 64; shift++) {
        in.bandwidth = UINT64_C(1) << shift;
        assert_true(total(&in) <= last);
        last = total(&in);
    }
}

static void what_is_not_known_is_reckoned_high(void **state)
{
    const struct vfmig_converge_input in = usual();
    struct vfmig_converge_input blind = in;

    blind.bandwidth = 0; /* not measured: never a reason to go */
    assert_int_equal(total(&blind), UINT64_MAX);
    blind = in;
    blind.change_ns = blind.peer_change_ns = blind.stop_ns = blind.vm_state_ns = 0;
    blind.journal_ns = blind.peer_journal_ns = 0;
    assert_true(total(&blind) > 4 * MS);
    struct vfmig_converge_input nothing = {.bandwidth = GIB, .rounds = 2};
    assert_in_range(total(&nothing), 4 * MS, 10 * MS);
}

static void nothing_overflows(void **state)
{
    struct vfmig_converge_input huge = {
        .dirty_pages = UINT64_MAX, .cold_pages = UINT64_MAX, .dirty_pages_per_s = UINT64_MAX,
        .until_stop_ns = UINT64_MAX, .bandwidth = 1, .cold_page_ns = UINT64_MAX,
        .drain_ns = UINT64_MAX, .device_bytes = UINT64_MAX, .slowest_device_ns = UINT64_MAX,
        .devices = true, .change_ns = UINT64_MAX, .peer_change_ns = UINT64_MAX,
        .stop_ns = UINT64_MAX, .log_ns = UINT64_MAX, .vm_state_bytes = UINT64_MAX,
        .vm_state_ns = UINT64_MAX, .vm_load_ns = UINT64_MAX, .journal_ns = UINT64_MAX,
        .peer_journal_ns = UINT64_MAX, .rtt_ns = UINT64_MAX, .rounds = 9};

    assert_int_equal(total(&huge), UINT64_MAX);
    assert_int_equal(vfmig_converge_bound(&huge), UINT64_MAX);
    /* 16 EiB/s, 1 PiB: a quotient that must not be lost. */
    struct vfmig_converge_input in = {.dirty_pages = UINT64_C(1) << 38, .bandwidth = UINT64_C(1) << 45};
    assert_in_range(total(&in), 32000 * MS, 33000 * MS);
}

static void prediction_covers_what_moves(void **state)
{
    struct vfmig_converge_input in = usual();
    struct vfmig_prediction p = {0};

    in.dirty_pages = 26214; /* 102 MiB at 1 GiB/s: 100 ms, and 1 ms of what is dirtied till then */
    in.cold_pages = 0;
    vfmig_converge_predict(&in, &p);
    assert_int_equal(p.pages, 26214 + 256);
    assert_in_range(p.send_ns, 101 * MS, 104 * MS);
    in.cold_pages = 26214; /* 500 ns each, on one channel and on four */
    vfmig_converge_predict(&in, &p);
    assert_int_equal(p.cold_pages, p.pages);
    assert_in_range(p.cold_ns, 13 * MS, 14 * MS);
    assert_in_range(p.send_ns, 114 * MS, 118 * MS);
    in.channels = 4;
    vfmig_converge_predict(&in, &p);
    assert_in_range(p.cold_ns, 3 * MS, 4 * MS);
    in.memory_pages = 26215; /* what is dirty already cannot become dirty */
    vfmig_converge_predict(&in, &p);
    assert_int_equal(p.pages, 26215);
}

static void the_slowest_of_what_goes_on_at_once_counts(void **state)
{
    struct vfmig_converge_input in = usual();
    struct vfmig_prediction p = {0};

    in.slowest_device_ns = 70 * MS; /* beside 40 ms of memory */
    vfmig_converge_predict(&in, &p);
    assert_in_range(p.send_ns, 71 * MS, 73 * MS);
    in.device_bytes = 64 * MIB; /* they share the channels with memory */
    vfmig_converge_predict(&in, &p);
    assert_in_range(p.send_ns, 100 * MS, 110 * MS);
    in.devices = false;
    in.device_bytes = in.slowest_device_ns = 0;
    uint64_t with = p.resume_ns;
    vfmig_converge_predict(&in, &p);
    assert_int_equal(p.resume_ns, with - 2 * MS);
}

static void goes_only_inside_the_limit(void **state)
{
    struct vfmig_converge_input in = usual();
    struct vfmig_converge converge = {.limit_ns = vfmig_converge_bound(&in)};

    assert_true(vfmig_converge_bound(&in) > total(&in));
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
    assert_int_equal(vfmig_converge_decide(&converge, &in, 99), VFMIG_CONVERGE_AGAIN);
    assert_int_equal(vfmig_converge_decide(&converge, &in, 100), VFMIG_CONVERGE_GO);
}

static void errors_are_thousandths_of_what_came(void **state)
{
    assert_int_equal(vfmig_converge_error(110, 100), 100);
    assert_int_equal(vfmig_converge_error(90, 100), -100);
    assert_int_equal(vfmig_converge_error(0, 100), -1000);
    assert_int_equal(vfmig_converge_error(100, 0), 0);
    assert_int_equal(vfmig_converge_error(UINT64_MAX, 1), INT32_MAX);
}

static void the_moment_is_wilder_than_the_mean(void **state)
{
    assert_int_equal(vfmig_converge_momentary(0, 1000, 1000), 0);
    assert_int_equal(vfmig_converge_momentary(1000, 1000000, 1000000000), 1030);
    assert_int_equal(vfmig_converge_momentary(500, 1000, 1000000000), 500 * 139 / 100);
    assert_int_equal(vfmig_converge_momentary(1000, 1000, 1000000000), 3000);
    assert_int_equal(vfmig_converge_momentary(1000, 10, 1000000000), 3000); /* more than was known */
    assert_true(vfmig_converge_momentary(UINT64_MAX, UINT64_MAX, 0) < UINT64_MAX);
    uint64_t last = 0;
    for (uint64_t pages = 1; pages <= 1000; pages++) {
        uint64_t now = vfmig_converge_momentary(pages, 1000, 1000000000);
        assert_true(now >= last && now >= pages && now <= 3 * pages + 3);
        last = now;
    }
}

static void careful_takes_the_bad_end(void **state)
{
    struct vfmig_measured m = {0};
    struct vfmig_converge_input expected = {.bandwidth = 5, .journal_ns = 6}, careful = expected;

    vfmig_measured_fill(&m, true, &careful);
    assert_memory_equal(&careful, &expected, sizeof(careful)); /* nothing measured, nothing changed */
    struct vfmig_samples *all[] = {&m.bandwidth, &m.dirty_rate, &m.until_stop, &m.drain, &m.stop,
                                   &m.log, &m.vm_state, &m.vm_load, &m.journal, &m.peer_journal};
    struct vfmig_samples *alone[] = {&m.vm_state_alone, &m.vm_load_alone, &m.journal_alone, &m.peer_journal_alone};
    for (uint64_t value = 1; value <= 10; value++) {
        for (unsigned i = 0; i < COUNT(all); i++)
            vfmig_samples_add(all[i], value * 100);
        for (unsigned i = 0; i < COUNT(alone); i++)
            vfmig_samples_add(alone[i], value * 10);
    }
    vfmig_measured_fill(&m, false, &expected);
    vfmig_measured_fill(&m, true, &careful);
    const uint64_t *middle[] = {&expected.bandwidth, &expected.dirty_pages_per_s,
                                &expected.until_stop_ns, &expected.drain_ns, &expected.stop_ns,
                                &expected.log_ns, &expected.vm_state_ns, &expected.vm_load_ns,
                                &expected.journal_ns, &expected.peer_journal_ns};
    const uint64_t *bad[] = {&careful.bandwidth, &careful.dirty_pages_per_s, &careful.until_stop_ns,
                             &careful.drain_ns, &careful.stop_ns, &careful.log_ns,
                             &careful.vm_state_ns, &careful.vm_load_ns, &careful.journal_ns,
                             &careful.peer_journal_ns};
    for (unsigned i = 0; i < sizeof(middle) / sizeof(middle[0]); i++) {
        /* A drain is mostly seen late, and so are journals. Of four it is known without the guest beside them. */
        assert_int_equal(*middle[i], i == 3 ? 100 : i >= 8 ? 30 : i >= 6 ? 50 : 500);
        assert_int_equal(*bad[i], i == 0 ? 100 : i == 9 ? 700 : 900);
    }
}

static void what_is_usual_has_no_floor(void **state)
{
    struct vfmig_converge_input in = usual();
    struct vfmig_prediction p = {0}, most = {0};

    in.journal_ns = in.peer_journal_ns = in.change_ns = in.peer_change_ns = in.peer_load_ns = MS / 10;
    in.drain_ns = 50 * MS;
    vfmig_converge_predict(&in, &most);
    in.usual = true;
    vfmig_converge_predict(&in, &p);
    assert_int_equal(p.grant_ns, MS / 10 + MS / 20 + MS / 10); /* and a wake-up that is half as long */
    assert_in_range(p.resume_ns, 4 * MS / 10, 6 * MS / 10); /* two journals, two changes, a wake-up */
    assert_in_range(most.ready_ns - p.ready_ns, 46 * MS, 47 * MS); /* no buffer holds so much */
    assert_true(p.total_ns < most.total_ns);
}

static void a_trial_is_a_small_part(void **state)
{
    const struct {
        uint64_t dirty, rtt_ns, limit_ns, pages;
    } rows[] = {
        {0, 0, 300 * MS, 0},
        {3 * VFMIG_TRIAL_MIN - 1, 0, 300 * MS, 0},
        {3 * VFMIG_TRIAL_MIN, 0, 300 * MS, VFMIG_TRIAL_MIN},
        {12000, 0, 300 * MS, 12000 / VFMIG_TRIAL_PART},
        {UINT64_MAX, 0, 300 * MS, VFMIG_TRIAL_MAX},
        {12000, 9 * MS, 300 * MS, 12000 / VFMIG_TRIAL_PART},
        {12000, 10 * MS, 300 * MS, 0}, /* waiting for its answer would cost more than it tells */
        {12000, 1, 1, 0},
    };

    for (unsigned i = 0; i < COUNT(rows); i++)
        assert_int_equal(vfmig_converge_trial(rows[i].dirty, rows[i].rtt_ns, rows[i].limit_ns), rows[i].pages);
}

static void with_the_vcpus_parked_the_rest_is_known(void **state)
{
    struct vfmig_converge_input in = usual();
    struct vfmig_converge_parked parked = {.stop_ns = 3 * MS, .snapshot_ns = 2 * MS, .since_ns = 11 * MS,
                                           .trial = {10 * MIB, 10 * MS, 1}};
    struct vfmig_prediction p = {0};

    in.dirty_pages = 26214; /* 102 MiB at 1000 MiB/s */
    in.dirty_pages_per_s = UINT64_C(1) << 40; /* nobody writes any more */
    in.cold_pages = 26214; /* those of the trial were as cold */
    in.cold_page_ns = 100000;
    in.drain_ns = 90 * MS;
    vfmig_converge_predict_parked(&in, &parked, &p);
    assert_int_equal(p.pages, 26214);
    assert_int_equal(p.stop_ns, 3 * MS);
    assert_int_equal(p.logs_ns, 4 * MS);
    assert_in_range(p.send_ns, 113 * MS, 116 * MS);
    assert_true(p.ready_ns < 10 * MS);
    assert_int_equal(p.bandwidth, 1000 * MIB);
    assert_int_equal(p.total_ns, p.stop_ns + p.logs_ns + p.send_ns + p.ready_ns + p.grant_ns + p.resume_ns);
    /* What is over needs no margin. */
    uint64_t bound = vfmig_converge_bound_parked(&in, &parked);
    assert_int_equal(bound, p.total_ns + (p.total_ns - 16 * MS) / VFMIG_CAREFUL_MARGIN);
    parked.since_ns += 500 * MS;
    assert_int_equal(vfmig_converge_bound_parked(&in, &parked), bound + 500 * MS);
    /* Expected is half as much again of the last reading, beside those who send, and two more wake-ups. */
    struct vfmig_converge_input expected = in;
    struct vfmig_prediction usual_parts = {0};
    expected.usual = true;
    vfmig_converge_predict_parked(&expected, &parked, &usual_parts);
    assert_int_equal(usual_parts.logs_ns, 5 * MS);
    parked.snapshot_alone_ns = MS; /* the other one waited for a CPU, which the last need not */
    vfmig_converge_predict_parked(&expected, &parked, &usual_parts);
    assert_int_equal(usual_parts.logs_ns, 3 * MS + MS / 2);
    assert_int_equal(vfmig_converge_bound_parked(&in, &parked), bound + 500 * MS); /* but may */
    parked.snapshot_alone_ns = 0;
    uint64_t with_ns = usual_parts.send_ns;
    parked.since_ns -= MS;
    vfmig_converge_predict_parked(&expected, &parked, &usual_parts);
    assert_int_equal(usual_parts.send_ns, with_ns - MS);
    parked.since_ns += MS;
    /* Without a trial it is as before, and colder. */
    parked.trial.bytes = 0;
    vfmig_converge_predict_parked(&in, &parked, &p);
    assert_int_equal(p.bandwidth, GIB);
    assert_true(p.cold_ns > 2000 * MS && p.ready_ns > 90 * MS);
    parked = (struct vfmig_converge_parked){UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX,
                                            {UINT64_MAX, 1, 1}};
    assert_int_equal(vfmig_converge_bound_parked(&in, &parked), UINT64_MAX);
}

static void assert_trial(const struct vfmig_trial *first, const struct vfmig_trial *second, uint64_t bytes,
                         uint64_t ns, uint32_t parts)
{
    const struct vfmig_trial got = vfmig_converge_trials(first, second);

    assert_int_equal(got.bytes, bytes);
    assert_int_equal(got.ns, ns);
    assert_int_equal(got.parts, parts);
}

static void a_trial_that_was_held_up_is_not_the_last_word(void **state)
{
    const struct vfmig_trial slow = {30 * MIB, 40 * MS, 1}, fast = {20 * MIB, 10 * MS, 1}, none = {0};
    const struct vfmig_trial hardly = {30 * MIB, 33 * MS, 1}, never = {UINT64_MAX, UINT64_MAX, 1};

    assert_false(vfmig_converge_doubts(&slow, 1000 * MIB));
    assert_true(vfmig_converge_doubts(&slow, 1001 * MIB));
    assert_false(vfmig_converge_doubts(&none, UINT64_MAX)); /* nothing was tried */
    assert_trial(&slow, &fast, 20 * MIB, 10 * MS, 1);
    assert_trial(&fast, &slow, 50 * MIB, 50 * MS, 2);
    assert_trial(&slow, &hardly, 60 * MIB, 73 * MS, 2);
    assert_trial(&slow, &none, 30 * MIB, 40 * MS, 1);
    assert_trial(&none, &none, 0, 0, 0);
    assert_trial(&never, &never, UINT64_MAX, UINT64_MAX, 2);
}

static void the_check_sends_back_so_often(void **state)
{
    struct vfmig_converge converge = {.limit_ns = 100};

    assert_int_equal(vfmig_converge_recheck(&converge, 100, VFMIG_MAX_RETURNS, 5), VFMIG_CONVERGE_GO);
    assert_int_equal(vfmig_converge_recheck(&converge, 101, 0, 5), VFMIG_CONVERGE_AGAIN);
    assert_int_equal(vfmig_converge_recheck(&converge, 101, VFMIG_MAX_RETURNS - 1, 5), VFMIG_CONVERGE_AGAIN);
    assert_int_equal(vfmig_converge_recheck(&converge, 101, VFMIG_MAX_RETURNS, 5), VFMIG_CONVERGE_GIVE_UP);
    converge.deadline_ns = 10;
    assert_int_equal(vfmig_converge_recheck(&converge, 101, 0, 9), VFMIG_CONVERGE_AGAIN);
    assert_int_equal(vfmig_converge_recheck(&converge, 101, 0, 10), VFMIG_CONVERGE_GIVE_UP);
    assert_int_equal(vfmig_converge_recheck(&converge, 100, 0, 10), VFMIG_CONVERGE_GO);
    converge.force = true;
    assert_int_equal(vfmig_converge_recheck(&converge, 101, 0, 10), VFMIG_CONVERGE_GO);
    assert_int_equal(vfmig_converge_recheck(&converge, 101, VFMIG_MAX_RETURNS, 9), VFMIG_CONVERGE_GO);
    assert_int_equal(vfmig_converge_recheck(&converge, 101, 0, 9), VFMIG_CONVERGE_AGAIN);
    /* And what it found is not forgotten at once. */
    struct vfmig_converge_input in = usual();
    converge = (struct vfmig_converge){.limit_ns = vfmig_converge_bound(&in) + 10, .extra_ns = 10};
    assert_int_equal(vfmig_converge_decide(&converge, &in, 5), VFMIG_CONVERGE_GO);
    converge.extra_ns = 11;
    assert_int_equal(vfmig_converge_decide(&converge, &in, 5), VFMIG_CONVERGE_AGAIN);
}

static void a_log_with_few_pages_is_read_faster(void **state)
{
    const struct {
        struct vfmig_log_reading a, b;
        uint64_t pages, ns;
    } rows[] = {
        {{1000, 5000}, {3000, 9000}, 0, 3000}, /* 3000 and 2 a page */
        {{3000, 9000}, {1000, 5000}, 500, 4000},
        {{3000, 9000}, {1000, 5000}, 1000, 5000},
        {{3000, 9000}, {1000, 5000}, 9999, 5000}, /* nothing is told beyond what was seen */
        {{1000, 5000}, {1001, 9000}, 0, 5000},    /* too much alike to say anything */
        {{1000, 9000}, {3000, 5000}, 0, 5000},    /* it was something else */
        {{1000, 100}, {2000, 9000}, 0, 0},
        {{7, 70}, {7, 70}, 0, 70},
        {{7, 90}, {7, 70}, 0, 70}, /* nor are two with as many pages */
        {{0, 0}, {0, 0}, 0, 0},
        {{UINT64_MAX, UINT64_MAX}, {UINT64_MAX / 2, UINT64_MAX / 2}, 0, 0},
    };

    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        assert_int_equal(vfmig_converge_log(&rows[i].a, &rows[i].b, rows[i].pages), rows[i].ns);
}

static void the_guest_gives_its_cpus_back(void **state)
{
    assert_int_equal(vfmig_converge_alone(1000, 0, 500, 2), 1000);
    assert_int_equal(vfmig_converge_alone(1000, 600, 500, 2), 700);
    assert_int_equal(vfmig_converge_alone(1000, 600, 100, 2), 900); /* nobody waited for more */
    assert_int_equal(vfmig_converge_alone(1000, 600, 0, 2), 1000);  /* there was room for both */
    assert_int_equal(vfmig_converge_alone(1000, UINT64_MAX, UINT64_MAX, 0), 500); /* not too good */
}

/* --- a guest and a link, simulated round by round --- */

struct world {
    uint64_t guest_rate, link_rate; /* bytes per second */
    uint64_t working_set, memory;   /* bytes */
    uint64_t limit_ns;
    uint64_t device_left, device_rate, device_change_ns;
    uint32_t noise; /* percent that a rate or a time is off, either way */
    uint64_t seed;
};

struct course {
    struct vfmig_measured measured;
    struct vfmig_converge_input expected, careful;
    struct vfmig_prediction prediction;
    double dirty; /* pages */
    uint32_t rounds;
    uint64_t actual_ns; /* of the downtime; 0: never switched over */
};

static double noisy(struct world *w, double value)
{
    w->seed ^= w->seed << 13;
    w->seed ^= w->seed >> 7;
    w->seed ^= w->seed << 17;
    return value * (1.0 + w->noise / 100.0 * ((double)(w->seed % 20001) / 10000.0 - 1.0));
}

/* Distinct pages dirtied in so many seconds, where dirty ones count already. */
static double dirtied(struct world *w, double dirty, double seconds)
{
    double set = (double)(w->working_set / 4096), now = dirty;
    double written = noisy(w, (double)w->guest_rate) / 4096 * seconds;

    for (unsigned i = 0; i < 64; i++)
        now += (set - now > 0 ? set - now : 0) * (1.0 - 1.0 / (1.0 + written / 64 / set));
    return now - dirty;
}

static double send_seconds(struct world *w, double pages)
{
    return pages * (4096 + 20) / noisy(w, (double)w->link_rate);
}

/* One round, and what the engine measures of it. */
static void simulate_round(struct world *w, struct course *c)
{
    struct vfmig_measured *m = &c->measured;
    double seconds = send_seconds(w, c->dirty) + 0.0005;
    double fresh = dirtied(w, 0, seconds);

    if (c->dirty * 4096 >= 4 << 20 || !c->rounds)
        vfmig_samples_add(&m->bandwidth, (uint64_t)(c->dirty * (4096 + 20) / (seconds - 0.0005)));
    c->dirty = fresh;
    c->rounds++;
    vfmig_samples_add(&m->dirty_rate,
                      vfmig_converge_momentary((uint64_t)fresh, w->working_set / 4096,
                                               (uint64_t)(seconds * 1e9)));
    vfmig_samples_add(&m->log, (uint64_t)noisy(w, 1e6));
    uint64_t journal = (uint64_t)noisy(w, 1e6), peer = (uint64_t)noisy(w, 1e6);
    vfmig_samples_add(&m->journal, journal);
    vfmig_samples_add(&m->journal_alone, journal);
    vfmig_samples_add(&m->peer_journal, peer);
    vfmig_samples_add(&m->peer_journal_alone, peer);
    vfmig_samples_add(&m->drain, (uint64_t)noisy(w, 5e5));
    struct vfmig_converge_input in = {
        .dirty_pages = (uint64_t)fresh, .memory_pages = w->memory / 4096, .channels = 2,
        .devices = w->device_rate, .device_bytes = w->device_left, .rtt_ns = MS / 5,
        .slowest_device_ns = w->device_rate ? w->device_left * 1000 / (w->device_rate / MS) : 0,
        .change_ns = w->device_change_ns, .peer_change_ns = w->device_change_ns,
        .until_stop_ns = w->device_change_ns + 3 * MS, .vm_state_bytes = 50000, .rounds = c->rounds};
    c->expected = c->careful = in;
    vfmig_measured_fill(m, false, &c->expected);
    vfmig_measured_fill(m, true, &c->careful);
}

/* What the switchover costs in truth. */
static uint64_t switch_over(struct world *w, struct course *c)
{
    double change = noisy(w, (double)w->device_change_ns), pages;
    double device = w->device_rate ? (double)w->device_left / noisy(w, (double)w->device_rate) * 1e9 : 0;

    pages = c->dirty + dirtied(w, c->dirty, (change + noisy(w, 2e6)) / 1e9);
    double memory = send_seconds(w, pages + (double)w->device_left / 4096) * 1e9;
    double send = memory > device + change ? memory : device + change;
    double fixed = noisy(w, 1.5e6) + 2 * noisy(w, 1e6) + 3 * noisy(w, 1e6) + noisy(w, 5e5) +
                   3 * change + noisy(w, 1.5e6);
    return (uint64_t)(send + fixed);
}

static void simulate(struct world *w, struct course *c, uint32_t max_rounds)
{
    const struct vfmig_converge converge = {.limit_ns = w->limit_ns};

    *c = (struct course){.dirty = (double)(w->memory / 4096)};
    while (c->rounds < max_rounds) {
        simulate_round(w, c);
        if (vfmig_converge_decide(&converge, &c->careful, 1) != VFMIG_CONVERGE_GO)
            continue;
        vfmig_converge_predict(&c->expected, &c->prediction);
        c->actual_ns = switch_over(w, c);
        return;
    }
}

static const uint64_t guest_rates[] = {0, 50 * MIB, 200 * MIB, 800 * MIB, 1600 * MIB, 6000 * MIB};
static const uint64_t link_rates[] = {20 * MIB, 117 * MIB, 1100 * MIB, 4000 * MIB};
static const uint64_t working_sets[] = {1 * MIB, 64 * MIB, 512 * MIB, 3072 * MIB};
static const uint64_t limits[] = {20 * MS, 100 * MS, 300 * MS, 2000 * MS};
static const struct {
    uint64_t left, rate, change_ns;
} device_sets[] = {{0, 0, 0}, {4 * MIB, 400 * MIB, 2 * MS}, {64 * MIB, 300 * MIB, 10 * MS}};

/* Everything against everything, with and without noise: whenever it goes, the limit is kept. */
static void the_limit_is_kept_in_the_model(void **state)
{
    unsigned cases = 0, went = 0, kept_close = 0;

    for (unsigned at = 0; at < COUNT(guest_rates) * COUNT(link_rates) * COUNT(working_sets) *
                                   COUNT(limits) * COUNT(device_sets) * 3; at++) {
        unsigned i = at;
        struct world w = {.memory = 4096 * MIB, .seed = 88172645463325252u + at};
        w.guest_rate = guest_rates[i % COUNT(guest_rates)];
        i /= COUNT(guest_rates);
        w.link_rate = link_rates[i % COUNT(link_rates)];
        i /= COUNT(link_rates);
        w.working_set = working_sets[i % COUNT(working_sets)];
        i /= COUNT(working_sets);
        w.limit_ns = limits[i % COUNT(limits)];
        i /= COUNT(limits);
        w.device_left = device_sets[i % COUNT(device_sets)].left;
        w.device_rate = device_sets[i % COUNT(device_sets)].rate;
        w.device_change_ns = device_sets[i % COUNT(device_sets)].change_ns;
        w.noise = i / COUNT(device_sets) * 5; /* 0, 5, 10 */
        struct course c;
        simulate(&w, &c, 60);
        cases++;
        if (!c.actual_ns)
            continue;
        went++;
        kept_close += (uint32_t)abs(vfmig_converge_error(c.prediction.total_ns, c.actual_ns)) < 200;
        if (c.actual_ns > w.limit_ns)
            print_error("guest %llu link %llu set %llu limit %llu device %llu noise %u: %llu\n",
                        (unsigned long long)(w.guest_rate / MIB),
                        (unsigned long long)(w.link_rate / MIB),
                        (unsigned long long)(w.working_set / MIB),
                        (unsigned long long)(w.limit_ns / MS),
                        (unsigned long long)(w.device_left / MIB), w.noise,
                        (unsigned long long)(c.actual_ns / MS));
        assert_true(c.actual_ns <= w.limit_ns);
    }
    assert_true(cases == 3456 && went > cases / 3 && went < cases);
    assert_true(kept_close > went * 9 / 10); /* and what was expected came, within a fifth */
}

/* It goes when it can: not only never too early. */
static void converges_when_it_can(void **state)
{
    struct world w = {.memory = 4096 * MIB, .working_set = 256 * MIB, .guest_rate = 200 * MIB,
                      .link_rate = GIB, .limit_ns = 100 * MS, .noise = 5, .seed = 7};
    struct course c;

    simulate(&w, &c, 60);
    assert_in_range(c.rounds, 2, 6);
    w.guest_rate = 2000 * MIB; /* the working set alone takes 250 ms */
    simulate(&w, &c, 60);
    assert_int_equal(c.actual_ns, 0);
    w.limit_ns = 400 * MS;
    simulate(&w, &c, 60);
    assert_in_range(c.rounds, 2, 6);
    w.limit_ns = 3 * MS; /* less than the journals take: never, whatever the guest does */
    w.guest_rate = 0;
    simulate(&w, &c, 60);
    assert_int_equal(c.actual_ns, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grows_with_everything),
        cmocka_unit_test(what_is_not_known_is_reckoned_high),
        cmocka_unit_test(nothing_overflows),
        cmocka_unit_test(prediction_covers_what_moves),
        cmocka_unit_test(the_slowest_of_what_goes_on_at_once_counts),
        cmocka_unit_test(goes_only_inside_the_limit),
        cmocka_unit_test(deadline_ends_it),
        cmocka_unit_test(errors_are_thousandths_of_what_came),
        cmocka_unit_test(the_moment_is_wilder_than_the_mean),
        cmocka_unit_test(a_log_with_few_pages_is_read_faster),
        cmocka_unit_test(the_guest_gives_its_cpus_back),
        cmocka_unit_test(careful_takes_the_bad_end),
        cmocka_unit_test(what_is_usual_has_no_floor),
        cmocka_unit_test(a_trial_is_a_small_part),
        cmocka_unit_test(with_the_vcpus_parked_the_rest_is_known),
        cmocka_unit_test(a_trial_that_was_held_up_is_not_the_last_word),
        cmocka_unit_test(the_check_sends_back_so_often),
        cmocka_unit_test(the_limit_is_kept_in_the_model),
        cmocka_unit_test(converges_when_it_can),
    };
    return cmocka_run_group_tests_name("converge", tests, NULL, NULL);
}
