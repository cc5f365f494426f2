/* SPDX-License-Identifier: BSD-3-Clause */
/* Guests that cannot be moved within the limit, and what is said beforehand of those that can. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "core/converge.h"
#include "core/throttle.h"
#include "engine/channel.h"
#include "engine/destination.h"
#include "engine/source.h"
#include "rig.h"

#define FULL  (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define PLAIN (VFMIG_FEATURE_STOP_COPY)

static const uint32_t features[RIG_MAX_DEVICES] = {FULL, PLAIN, FULL, FULL};
static struct rig rig;

/* A migration that no downtime can be short enough for. */
static void begin_stuck(uint32_t throttle_max)
{
    rig_open(&rig, 1, features, /* tcp= */ false);
    rig.options.downtime_limit_ns = 1;
    rig.options.throttle_max = throttle_max;
    rig_start(&rig);
}

/* Until it is told that nothing helps. */
static struct vfmig_progress wait_told(void)
{
    struct vfmig_progress progress = {0};

    while (!progress.not_converging) {
        vfmig_source_status(rig.source, &progress);
        assert_int_equal(progress.state, VFMIG_MIGRATE_ACTIVE);
        assert_true(progress.rounds < 100); /* the last step is reached long before */
        usleep(1000);
    }
    return progress;
}

/* Percentages asked for, in order. */
static uint32_t throttles(uint32_t *ret_percent, uint32_t room)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < rig.log_count; i++)
        if (rig.log[i].op == RIG_THROTTLE && !rig.log[i].end && count < room)
            ret_percent[count++] = rig.log[i].arg;
    return count;
}

static void assert_throttles(const uint32_t *wanted, uint32_t count)
{
    uint32_t got[16];

    assert_int_equal(throttles(got, 16), count);
    assert_memory_equal(got, wanted, count * sizeof(*wanted));
}

static void a_stuck_guest_is_slowed_down_and_let_go(void **state)
{
    const uint32_t wanted[] = {20, 30, 35, 0};

    begin_stuck(35);
    struct vfmig_progress told = wait_told();
    assert_int_equal(told.throttle_percent, 35);
    vfmig_source_cancel(rig.source);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_CANCELLED);
    assert_throttles(wanted, 4);
    rig_assert_source_runs(&rig);
    rig_close(&rig);
}

static void without_a_throttle_it_is_told_and_goes_on(void **state)
{
    struct vfmig_progress progress;

    begin_stuck(0);
    struct vfmig_progress told = wait_told();
    assert_true(told.stuck_rounds >= VFMIG_STUCK_ROUNDS);
    assert_int_equal(told.throttle_percent, 0);
    do {
        usleep(1000);
        vfmig_source_status(rig.source, &progress);
        assert_int_equal(progress.state, VFMIG_MIGRATE_ACTIVE);
    } while (progress.rounds < told.rounds + 2);
    vfmig_source_cancel(rig.source);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_CANCELLED);
    assert_throttles(NULL, 0);
    rig_assert_source_runs(&rig);
    rig_close(&rig);
}

static void a_throttle_that_fails_is_done_without(void **state)
{
    const uint32_t wanted[] = {20, 0}; /* it may have worked all the same */

    rig_open(&rig, 1, features, /* tcp= */ false);
    rig.options.downtime_limit_ns = 1;
    rig.options.throttle_max = 99;
    rig.fault = (struct rig_fault){.side = RIG_SOURCE, .op = RIG_THROTTLE, .arg = 20, .times = 1,
                                   .err = -EIO};
    rig_start(&rig);
    struct vfmig_progress told = wait_told();
    assert_int_equal(told.throttle_percent, 0);
    vfmig_source_cancel(rig.source);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_CANCELLED);
    assert_throttles(wanted, 2);
    rig_close(&rig);
}

/* 0 when it has given the source up. */
static uint64_t heard_of_source(void)
{
    struct vfmig_channel_stats stats = {0};
    struct engine *e = &rig.destination->e;

    pthread_mutex_lock(&e->link_lock);
    if (e->channel_count)
        vfmig_channel_stats(e->channels[0], &stats);
    pthread_mutex_unlock(&e->link_lock);
    return stats.bytes_received;
}

/* A record of memory may wait for its share for longer than a peer is silent that has died. */
static void a_source_that_may_send_little_is_not_taken_for_dead(void **state)
{
    struct vfmig_progress progress;

    rig_open(&rig, 1, features, /* tcp= */ false);
    rig.options.max_bandwidth = 1;
    rig.options.stall_ns = UINT64_C(2000000000);
    rig_start(&rig);
    do {
        usleep(1000);
        vfmig_source_status(rig.source, &progress);
        assert_int_equal(progress.state, VFMIG_MIGRATE_ACTIVE);
    } while (progress.step < VFMIG_STEP_S1);
    uint64_t heard = heard_of_source();
    for (unsigned times = 0; times < 3;) { /* the first may come before the round does */
        usleep(1000);
        vfmig_source_status(rig.source, &progress);
        assert_int_equal(progress.state, VFMIG_MIGRATE_ACTIVE);
        assert_int_equal(progress.rounds, 0);
        uint64_t now = heard_of_source();
        times += now == heard + VFMIG_RECORD_HEAD_BYTES + 1; /* it says nothing but that it lives */
        heard = now;
    }
    vfmig_source_cancel(rig.source);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_CANCELLED);
    rig_assert_source_runs(&rig);
    rig_close(&rig);
}

/* The guest gets its time back before it runs anywhere again. */
static void forced_at_the_deadline_it_is_let_go_with_the_stop(void **state)
{
    const uint32_t wanted[] = {20, 0};
    struct vfmig_progress progress;
    uint32_t got[16], count = 0;

    /* Whether it comes to the throttle before the deadline depends on the machine: more time, until it does. */
    for (uint64_t deadline_ns = 500000000; count == 0 && deadline_ns < 30000000000; deadline_ns *= 4) {
        if (deadline_ns > 500000000)
            rig_close(&rig);
        rig_open(&rig, 1, features, /* tcp= */ false);
        rig.options.downtime_limit_ns = 1;
        rig.options.throttle_max = 20;
        rig.options.deadline_ns = deadline_ns;
        rig.options.on_deadline = VFMIG_ON_DEADLINE_FORCE;
        rig_start(&rig);
        assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
        assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
        count = throttles(got, 16);
    }
    assert_throttles(wanted, 2);
    uint32_t stopped = rig_find(&rig, 0, RIG_SOURCE, RIG_VCPU_STOP, RIG_ANY, RIG_ANY, true);
    uint32_t off = rig_find(&rig, 0, RIG_SOURCE, RIG_THROTTLE, RIG_ANY, 0, false);
    uint32_t runs = rig_find(&rig, 0, RIG_DEST, RIG_VCPU_START, RIG_ANY, RIG_ANY, false);
    assert_true(stopped < off && off < runs && runs < rig.log_count);
    vfmig_source_status(rig.source, &progress);
    assert_false(progress.not_converging); /* it went, after all */
    assert_int_equal(progress.throttle_percent, 20);
    rig_assert_moved(&rig);
    rig_close(&rig);
}

static void what_cannot_be_done_is_refused_at_once(void **state)
{
    struct vfmig_error error = {0};
    struct vfmig_source *source;
    struct vfmig_vm_ops ops;

    rig_open(&rig, 1, features, /* tcp= */ false);
    struct vfmig_vm vm = rig.side[RIG_SOURCE].vm;
    rig.options.throttle_max = VFMIG_THROTTLE_LIMIT + 1;
    assert_int_equal(vfmig_source_new(&vm, &rig.options, &source, &error), -EINVAL);
    ops = *vm.ops;
    ops.throttle = NULL;
    vm.ops = &ops;
    rig.options.throttle_max = 20;
    assert_int_equal(vfmig_source_new(&vm, &rig.options, &source, &error), -ENOTSUP);
    rig.options.throttle_max = 0;
    rig_close(&rig);
}

static void a_missed_deadline_says_what_was_missing(void **state)
{
    struct vfmig_progress progress = {0};

    /* Whether all of memory is sent before the deadline depends on the machine: more time, until it is. */
    for (uint64_t deadline_ns = 200000000; !progress.prediction.bound_ns; deadline_ns *= 4) {
        assert_true(deadline_ns < 30000000000);
        rig_open(&rig, 1, features, /* tcp= */ false);
        rig.options.downtime_limit_ns = 1;
        rig.options.deadline_ns = deadline_ns;
        rig_start(&rig);
        assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
        vfmig_source_status(rig.source, &progress);
        assert_int_equal(progress.error.code, -ETIME);
        assert_non_null(strstr(progress.error.text, progress.prediction.bound_ns
                                                        ? "the deadline passed: the downtime would be up to"
                                                        : "the deadline passed before the guest's memory"));
        rig_assert_source_runs(&rig);
        rig_close(&rig);
    }
    /* For ever is no reason for an overflow. */
    rig_open(&rig, 1, features, /* tcp= */ false);
    rig.options.deadline_ns = UINT64_MAX;
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    rig_close(&rig);
}

static void the_prediction_is_reported_with_its_parts(void **state)
{
    struct vfmig_progress progress;

    rig_open(&rig, 2, features, /* tcp= */ true);
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    vfmig_source_status(rig.source, &progress);
    const struct vfmig_prediction *p = &progress.prediction;
    assert_int_equal(p->total_ns, progress.predicted_downtime_ns);
    assert_int_equal(p->total_ns, p->stop_ns + p->logs_ns + p->send_ns + p->ready_ns + p->grant_ns +
                                      p->resume_ns);
    assert_true(p->bound_ns > 0 && p->bound_ns <= progress.downtime_limit_ns);
    assert_true(p->bandwidth > 0);
    /* A device without pre-copy was asked what it has, too. */
    assert_true(p->devices_ns > 0);
    assert_int_equal(progress.prediction_error,
                     vfmig_converge_error(p->total_ns, progress.downtime.total_ns));
    rig_close(&rig);
}

/* --- the check, with the vCPUs parked --- */

#define LIMIT_NS UINT64_C(150000000)

static atomic_uint slow_stops;

/* It takes its time to stop the vCPUs, so often. */
static void stop_slowly(struct rig *at, const struct rig_entry *entry)
{
    if (entry->side != RIG_SOURCE || entry->op != RIG_VCPU_STOP || entry->end || !atomic_load(&slow_stops))
        return;
    atomic_fetch_sub(&slow_stops, 1);
    usleep(LIMIT_NS / 1000 + 1);
}

static void begin_slow_stops(unsigned count)
{
    rig_open(&rig, 4, features, /* tcp= */ false);
    atomic_store(&slow_stops, count);
    rig.watch = stop_slowly;
    rig.options.downtime_limit_ns = LIMIT_NS;
    rig_start(&rig);
}

static unsigned count_of(enum rig_side side, enum rig_op op)
{
    unsigned count = 0;

    for (uint32_t i = 0; i < rig.log_count; i++)
        count += rig.log[i].side == side && rig.log[i].op == op && rig.log[i].end;
    return count;
}

/* Devices with and without NDMA; the order rules look at all of it. */
static void a_stop_in_vain_is_taken_back(void **state)
{
    struct vfmig_progress progress;

    begin_slow_stops(1);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    vfmig_source_status(rig.source, &progress);
    assert_true(progress.returns >= 1);
    assert_int_equal(rig.side[RIG_SOURCE].rules.returns, progress.returns);
    assert_int_equal(count_of(RIG_SOURCE, RIG_VCPU_STOP), progress.returns + 1);
    assert_int_equal(count_of(RIG_SOURCE, RIG_VCPU_START), progress.returns);
    assert_true(progress.prediction.bound_ns <= LIMIT_NS);
    rig_assert_moved(&rig);
    rig_close(&rig);
}

static uint64_t limit_stopped, limit_again; /* of the bandwidth, as it was */

static void stop_slowly_and_look(struct rig *at, const struct rig_entry *entry)
{
    struct vfmig_mover_progress progress;

    stop_slowly(at, entry);
    if (entry->side != RIG_SOURCE || entry->end)
        return;
    if (entry->op != RIG_STATE_SAVE && entry->op != RIG_VCPU_START)
        return;
    vfmig_mover_progress(at->source->e.mover, &progress);
    *(entry->op == RIG_STATE_SAVE ? &limit_stopped : &limit_again) = progress.bandwidth;
}

static void the_bandwidth_is_limited_while_the_guest_runs(void **state)
{
    limit_stopped = limit_again = 1;
    rig_open(&rig, 4, features, /* tcp= */ false);
    atomic_store(&slow_stops, 1);
    rig.watch = stop_slowly_and_look;
    rig.options.downtime_limit_ns = LIMIT_NS;
    rig.options.max_bandwidth = UINT64_C(1) << 40;
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    assert_int_equal(limit_again, rig.options.max_bandwidth);
    assert_int_equal(limit_stopped, 0);
    rig_close(&rig);
}

static atomic_uint words, missing; /* of the source: how often it was heard, or not */

/* Sooner or later it is there, for it was said before. */
static void await_word(struct rig *at, bool stopped, unsigned counts)
{
    for (unsigned i = 0; i < 20000 && atomic_load(&at->destination->e.peer_stopped) != stopped && !missing; i++)
        usleep(1000);
    if (atomic_load(&at->destination->e.peer_stopped) == stopped)
        atomic_fetch_add(&words, counts);
    else
        atomic_fetch_add(&missing, 1);
}

static void hear_of_the_stop(struct rig *at, const struct rig_entry *entry)
{
    stop_slowly(at, entry);
    if (entry->side != RIG_SOURCE || entry->op != RIG_VCPU_STOP || entry->end)
        return;
    await_word(at, true, 1);
}

static void hear_of_the_rounds(struct rig *at, enum rig_side side, const char *json)
{
    if (side != RIG_SOURCE || !strstr(json, "\"round-end\"") || !strstr(json, "\"work\":\"round\""))
        return;
    await_word(at, false, 16);
}

/* Its receivers want the CPUs as long as the guest does not. */
static void the_destination_is_told_who_has_the_cpus(void **state)
{
    rig_open(&rig, 4, features, /* tcp= */ false);
    atomic_store(&slow_stops, 1);
    atomic_store(&words, 0);
    atomic_store(&missing, 0);
    rig.watch = hear_of_the_stop;
    rig.listen = hear_of_the_rounds;
    rig.options.downtime_limit_ns = LIMIT_NS;
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    assert_int_equal(missing, 0);
    assert_true(words % 16 >= 2); /* stopped in vain, and for good */
    assert_true(words / 16 >= 3); /* two rounds before, and one in between */
    rig_close(&rig);
}

static void stopped_in_vain_too_often_it_stays(void **state)
{
    struct vfmig_progress progress;

    begin_slow_stops(VFMIG_MAX_RETURNS + 1);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &progress);
    assert_int_equal(progress.error.code, -ETIME);
    assert_non_null(strstr(progress.error.text, "stopped 4 times in vain"));
    assert_int_equal(progress.returns, VFMIG_MAX_RETURNS);
    rig_assert_source_runs(&rig);
    rig_close(&rig);
}

/* From the stop on the next reading of the log fails: all is dirty, and a part of it is tried. */
static void lose_a_log(struct rig *at, const struct rig_entry *entry)
{
    if (entry->side != RIG_SOURCE || entry->op != RIG_VCPU_STOP || !entry->end)
        return;
    pthread_mutex_lock(&at->lock);
    at->fault = (struct rig_fault){.side = RIG_SOURCE, .op = RIG_TRACK_SYNC, .arg = RIG_ANY, .times = 1,
                                   .err = -EIO};
    pthread_mutex_unlock(&at->lock);
}

static void much_to_send_is_tried_with_a_part(void **state)
{
    rig_open(&rig, 1, features, /* tcp= */ true);
    rig.watch = lose_a_log;
    rig.options.downtime_limit_ns = UINT64_C(10000000000);
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    /* Channels end with a stripe. */
    const struct order_rules *rules = &rig.side[RIG_SOURCE].rules;
    assert_in_range(rules->trials, 1, 2);
    assert_in_range(rules->trial_pages, VFMIG_TRIAL_MIN, rules->trials * (VFMIG_TRIAL_MIN + 2048));
    rig_assert_moved(&rig);
    rig_close(&rig);
}

/* The first of them begins late, as if something else had the CPUs. */
static void hold_up_a_trial(struct rig *at, enum rig_side side, const char *json)
{
    const struct timespec late = {.tv_nsec = 100000000};

    if (side == RIG_SOURCE && strstr(json, "\"round-begin\"") && strstr(json, "\"trial\"") &&
        !at->side[side].rules.trials)
        nanosleep(&late, NULL);
}

static void a_trial_that_was_held_up_is_made_again(void **state)
{
    rig_open(&rig, 1, features, /* tcp= */ true);
    rig.watch = lose_a_log;
    rig.listen = hold_up_a_trial;
    rig.options.channels = 1; /* one ends its stripe, and enough is left; of two each does */
    rig.options.downtime_limit_ns = UINT64_C(10000000000);
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    assert_int_equal(rig.side[RIG_SOURCE].rules.trials, 2);
    rig_assert_moved(&rig);
    rig_close(&rig);
}

/* Usage: converge_test [NAME], of one test: after one that fails its threads are in the way of the next. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stuck_guest_is_slowed_down_and_let_go),
        cmocka_unit_test(without_a_throttle_it_is_told_and_goes_on),
        cmocka_unit_test(a_throttle_that_fails_is_done_without),
        cmocka_unit_test(a_source_that_may_send_little_is_not_taken_for_dead),
        cmocka_unit_test(forced_at_the_deadline_it_is_let_go_with_the_stop),
        cmocka_unit_test(what_cannot_be_done_is_refused_at_once),
        cmocka_unit_test(a_missed_deadline_says_what_was_missing),
        cmocka_unit_test(the_prediction_is_reported_with_its_parts),
        cmocka_unit_test(a_stop_in_vain_is_taken_back),
        cmocka_unit_test(the_bandwidth_is_limited_while_the_guest_runs),
        cmocka_unit_test(the_destination_is_told_who_has_the_cpus),
        cmocka_unit_test(stopped_in_vain_too_often_it_stays),
        cmocka_unit_test(much_to_send_is_tried_with_a_part),
        cmocka_unit_test(a_trial_that_was_held_up_is_made_again),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("engine-converge", tests, NULL, NULL);
}
