/* SPDX-License-Identifier: BSD-3-Clause */
/* What the simulator and torture have found (docs/reliability.md), on the engine itself: each of these fails when
 * its mending is taken out. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/sabotage.h"
#include "relay.h"
#include "rig.h"
#include "stream/record.h"

#define FULL (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define LIMIT_NS UINT64_C(200000000)

static const uint32_t features[] = {FULL, FULL};
static struct rig rig;
static struct relay relay;

/* Polls; the end is only there for a test that has failed. */
#define WAIT_FOR(condition)                                                                        \
    do {                                                                                           \
        for (unsigned rounds = 0; !(condition) && rounds < 4000; rounds++)                         \
            usleep(5000);                                                                          \
        assert_true(condition);                                                                    \
    } while (0)

static uint32_t log_count(void)
{
    pthread_mutex_lock(&rig.lock);
    uint32_t count = rig.log_count;
    pthread_mutex_unlock(&rig.lock);
    return count;
}

/* Whether such a call has been answered since. */
static bool has_done(uint32_t from, enum rig_side side, enum rig_op op, uint32_t device, uint32_t arg)
{
    pthread_mutex_lock(&rig.lock);
    bool found = rig_find(&rig, from, side, op, device, arg, true) < rig.log_count;
    pthread_mutex_unlock(&rig.lock);
    return found;
}

static struct vfmig_progress destination(void)
{
    struct vfmig_progress progress;

    vfmig_destination_status(rig.destination, &progress);
    return progress;
}

static void start_source(const char *uri)
{
    struct vfmig_error error = {0};

    vfmig_source_free(rig.source);
    assert_int_equal(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error), 0);
    assert_int_equal(vfmig_source_start(rig.source, uri, &error), 0);
}

/* Another attempt at the destination, which may be busy with the end of the last one for a while. */
static enum vfmig_migrate_state try_once_more(void)
{
    struct vfmig_progress progress = {0};

    for (unsigned i = 0; i < 200; i++) {
        start_source(rig.uri);
        enum vfmig_migrate_state end = rig_wait(&rig);
        vfmig_source_status(rig.source, &progress);
        if (end != VFMIG_MIGRATE_FAILED || !strstr(progress.error.text, "another migration is under way"))
            return end;
        usleep(10000);
    }
    fail_msg("the destination stays busy: %s", progress.error.text);
    return VFMIG_MIGRATE_NONE;
}

/* --- a device that hangs when its guest has moved --- */

static void a_device_that_answers_after_the_guest_has_left_is_reset(void **state)
{
    rig_open(&rig, 2, features, false);
    rig.options.device_timeout_ns = LIMIT_NS;
    rig.fault = (struct rig_fault){RIG_SOURCE, RIG_SET_STATE, VFMIG_STATE_STOP, 0, 1, 0, .only = 2};
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_true(rig.hung);
    uint32_t from = log_count();
    rig_release(&rig);
    WAIT_FOR(has_done(from, RIG_SOURCE, RIG_RESET, 1, RIG_ANY) ||
             has_done(from, RIG_SOURCE, RIG_SET_STATE, 1, VFMIG_STATE_RUNNING));
    assert_false(has_done(from, RIG_SOURCE, RIG_SET_STATE, 1, VFMIG_STATE_RUNNING));
    rig_close(&rig);
}

static uint32_t devices_lost(void)
{
    struct vfmig_progress progress;

    vfmig_source_status(rig.source, &progress);
    return progress.devices_lost;
}

static void a_device_that_answers_and_does_not_run_is_reset(void **state)
{
    struct vfmig_progress progress;

    rig_open(&rig, 2, features, false);
    rig.options.device_timeout_ns = 5 * LIMIT_NS;
    rig.fault = (struct rig_fault){RIG_SOURCE, RIG_SET_STATE, VFMIG_STATE_STOP_COPY, 0, 1, 0, .only = 2};
    rig.second = (struct rig_fault){RIG_SOURCE, RIG_SET_STATE, VFMIG_STATE_RUNNING, 0, 9, -EIO, .only = 2};
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &progress);
    assert_int_equal(progress.devices_lost, 1);
    uint32_t from = log_count();
    rig_release(&rig);
    WAIT_FOR(has_done(from, RIG_SOURCE, RIG_RESET, 1, RIG_ANY));
    WAIT_FOR(!devices_lost());
    vfmig_source_status(rig.source, &progress);
    assert_int_equal(progress.devices_reset, 1);
    rig_close(&rig);
}

/* --- a log that hangs when the guest has stopped --- */

static void hang_a_log(struct rig *at, const struct rig_entry *entry)
{
    if (entry->side != RIG_SOURCE || entry->op != RIG_VCPU_STOP || !entry->end)
        return;
    pthread_mutex_lock(&at->lock);
    at->fault = (struct rig_fault){RIG_SOURCE, RIG_TRACK_SYNC, RIG_ANY, 0, 1, 0, .only = 3};
    pthread_mutex_unlock(&at->lock);
}

static void whose_log_does_not_answer_is_said(void **state)
{
    struct vfmig_progress progress;

    rig_open(&rig, 2, features, false);
    rig.watch = hang_a_log;
    rig.options.device_timeout_ns = 5 * LIMIT_NS;
    rig.side[RIG_SOURCE].trackers[2].base.of = "the second";
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &progress);
    assert_int_equal(progress.error.code, -ETIMEDOUT);
    assert_int_equal(progress.error.origin, VFMIG_ORIGIN_DEVICE);
    assert_non_null(strstr(progress.error.text, " of the second did not answer in step S4"));
    assert_true(rig_progresses(&rig.side[RIG_SOURCE]));
    rig_close(&rig);
}

/* --- a destination that has refused the attempt before, and has not heard the offer of this one --- */

/* The destination's VERDICT opens the attempt; from then on the source is not heard. */
static bool until_the_verdict(struct relay *r, bool to_destination, uint16_t tag, uint32_t channel)
{
    if (!to_destination && tag == VFMIG_RECORD_VERDICT)
        atomic_store(&r->seen, 1);
    return !to_destination || channel || !atomic_load(&r->seen);
}

static void begin_unoffered(void)
{
    rig_open(&rig, 2, features, false);
    memset(rig.options.migration_id, 0x5a, sizeof(rig.options.migration_id));
    rig.options.channels = 1;
    rig.fault = (struct rig_fault){RIG_DEST, RIG_STATE_LOAD, RIG_ANY, 0, 1, -EIO};
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    WAIT_FOR(destination().state != VFMIG_MIGRATE_ACTIVE);
    memset(&relay, 0, sizeof(relay));
    relay.pass = until_the_verdict;
    relay_start(&relay, rig.dir, rig.uri);
    uint32_t from = log_count();
    start_source(relay.uri);
    WAIT_FOR(has_done(from, RIG_DEST, RIG_RESET, 0, RIG_ANY) && atomic_load(&relay.seen));
}

static void a_link_that_breaks_before_the_offer_leaves_room_for_the_next(void **state)
{
    begin_unoffered();
    relay_cut(&relay);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    rig_assert_source_runs(&rig);
    assert_int_equal(try_once_more(), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, UINT64_C(10000000000), NULL), 0);
    rig_assert_moved(&rig);
    relay_end(&relay);
    rig_close(&rig);
}

static void an_offer_that_comes_after_the_cancel_is_refused(void **state)
{
    struct vfmig_progress progress;

    begin_unoffered();
    vfmig_destination_cancel(rig.destination);
    WAIT_FOR(destination().error.code == -ECANCELED);
    relay_open_up(&relay);
    relay.pass = NULL;
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &progress);
    assert_non_null(strstr(progress.error.text, "cancelled"));
    rig_assert_source_runs(&rig);
    assert_int_equal(vfmig_destination_wait(rig.destination, UINT64_C(10000000000), NULL), -ECANCELED);
    relay_end(&relay);
    rig_close(&rig);
}

/* --- SEAL on channel 0 is faster than data on another --- */

/* What ends a device's data stays behind. */
static bool but_the_end(struct relay *r, bool to_destination, uint16_t tag, uint32_t channel)
{
    return !to_destination || !channel || tag != VFMIG_RECORD_DEVEND;
}

/* OFFER is the first message of the source, SEAL the second. */
static bool until_the_seal(struct relay *r, bool to_destination, uint16_t tag, uint32_t channel)
{
    return to_destination && tag == VFMIG_RECORD_HANDOVER && atomic_fetch_add(&r->seen, 1) + 1 == 2;
}

/* The device is slower than the last reading of the log, so that all of memory is there before its data: nothing
 * else is missed when the link breaks. */
static void saves_late(struct rig *r, const struct rig_entry *entry)
{
    static atomic_bool began;
    static atomic_uint reads;

    if (entry->side != RIG_SOURCE)
        return;
    if (entry->op == RIG_SET_STATE && entry->arg == VFMIG_STATE_STOP_COPY && !entry->end)
        atomic_store(&reads, 0);
    if (entry->op == RIG_TRACK_SYNC && entry->end)
        atomic_fetch_add(&reads, 1);
    if (entry->op != RIG_SAVE || entry->device != 1 || entry->arg != VFMIG_STATE_STOP_COPY ||
        atomic_exchange(&began, true))
        return;
    for (unsigned rounds = 0; atomic_load(&reads) < r->side[RIG_SOURCE].vm.tracker_count && rounds < 400; rounds++)
        usleep(5000);
    usleep(100000); /* the last pages are few; if they take longer, less is tried */
}

static void a_seal_without_the_data_is_no_image(void **state)
{
    rig_open(&rig, 2, features, false);
    rig.watch = saves_late;
    rig.options.channels = 2;
    rig.options.reconnect_ns = UINT64_C(10000000000);
    memset(&relay, 0, sizeof(relay));
    relay.pass = but_the_end;
    relay.passed = until_the_seal;
    relay_start(&relay, rig.dir, rig.uri);
    struct vfmig_error error = {0};
    assert_int_equal(vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination, &error), 0);
    assert_int_equal(vfmig_destination_listen(rig.destination, rig.uri, &error), 0);
    start_source(relay.uri);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    assert_true(atomic_load(&relay.seen) >= 2);
    rig_assert_source_runs(&rig);
    /* It gives up what it waits for, so that the next one finds it idle. */
    assert_int_equal(try_once_more(), VFMIG_MIGRATE_COMPLETED);
    relay_end(&relay);
    rig_close(&rig);
}

/* --- a process that stands still itself --- */

#ifdef VFMIG_SABOTAGE
#define STOPPED_LIMIT_NS UINT64_C(1000000000)

/* Slow, and not too slow. */
static void slow_back(struct rig *r, const struct rig_entry *entry)
{
    if (entry->side == RIG_SOURCE && entry->op == RIG_SET_STATE && !entry->end &&
        entry->arg == VFMIG_STATE_RUNNING_NDMA)
        usleep(200000);
}

/* Each of these is done by a process of its own, all of which is stopped for longer than what it waits for may take. */
static void stop_at(const char *point)
{
    char faults[64];

    snprintf(faults, sizeof(faults), "%s%s", point, vfmig_sabotage("no-excuse") ? ",no-excuse" : "");
    setenv("VFMIG_SABOTAGE", faults, 1);
    rig_open(&rig, 2, features, false);
    rig.options.device_timeout_ns = STOPPED_LIMIT_NS;
}

/* The destination cannot load it; stopped as the source's devices are asked to go back. */
static void go_back_with_a_stop(void **state)
{
    struct vfmig_progress progress;

    stop_at("stop-enter-U_QUIET#1");
    rig.watch = slow_back;
    rig.fault = (struct rig_fault){RIG_DEST, RIG_STATE_LOAD, RIG_ANY, 0, 1, -EIO};
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &progress);
    assert_int_equal(progress.devices_lost, 0);
    rig_assert_source_runs(&rig);
    rig_end_log(&rig);
    uint32_t parked = rig_find(&rig, 0, RIG_SOURCE, RIG_VCPU_STOP, RIG_ANY, RIG_ANY, true);
    uint32_t start = rig_find(&rig, parked, RIG_SOURCE, RIG_VCPU_START, RIG_ANY, RIG_ANY, false);
    for (uint32_t i = 0; i < 2; i++) /* vCPUs run last: they touch devices */
        assert_true(rig_find(&rig, parked, RIG_SOURCE, RIG_SET_STATE, i, VFMIG_STATE_RUNNING, true) < start);
    rig_close(&rig);
}

static void arrive(void)
{
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, UINT64_C(10000000000), NULL), 0);
    rig_assert_moved(&rig);
    rig_close(&rig);
}

/* Stopped as the guest stands: for longer than it may. */
static void move_with_a_stop(void **state)
{
    stop_at("stop-enter-S5_ENTER#1");
    rig.options.downtime_limit_ns = STOPPED_LIMIT_NS / 10;
    rig.options.on_deadline = VFMIG_ON_DEADLINE_FAIL;
    arrive();
}

/* The destination loads, and its source, which has sent everything, waits for it to say so. */
static void stop_as_the_source_waits(struct rig *r, const struct rig_entry *entry)
{
    struct vfmig_progress progress = {0};

    if (entry->side != RIG_DEST || entry->op != RIG_STATE_LOAD || entry->end)
        return;
    for (unsigned rounds = 0; progress.step != VFMIG_STEP_HANDOVER && rounds < 4000; rounds++) {
        usleep(5000);
        vfmig_source_status(r->source, &progress);
    }
    usleep(20000); /* that it has looked at what it waits for; else less is tried */
    raise(SIGSTOP);
    usleep(100000); /* the answer takes its time, and is not too late */
}

static void answer_with_a_stop(void **state)
{
    stop_at("");
    rig.options.device_timeout_ns = STOPPED_LIMIT_NS * 9 / 10;
    rig.watch = stop_as_the_source_waits;
    arrive();
}

static pid_t begin(const char *name, CMUnitTestFunction attempt)
{
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (!pid) {
        const struct CMUnitTest tests[] = {{name, attempt, NULL, NULL, NULL}};
        cmocka_set_test_filter(NULL);
        _exit(cmocka_run_group_tests(tests, NULL, NULL));
    }
    return pid;
}

static void who_stood_still_gives_nobody_up_for_it(void **state)
{
    pid_t pids[] = {
        begin("going back", go_back_with_a_stop),
        begin("moving", move_with_a_stop),
        begin("answering", answer_with_a_stop),
    };
    int status = 0, failed = 0;

    for (unsigned i = 0; i < sizeof(pids) / sizeof(pids[0]); i++) {
        assert_int_equal(waitpid(pids[i], &status, WUNTRACED), pids[i]);
        assert_true(WIFSTOPPED(status));
    }
    usleep(STOPPED_LIMIT_NS * 2 / 1000); /* this is what is done, nothing is judged by it */
    for (unsigned i = 0; i < sizeof(pids) / sizeof(pids[0]); i++) {
        assert_int_equal(kill(pids[i], SIGCONT), 0);
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        failed += !WIFEXITED(status) || WEXITSTATUS(status);
    }
    assert_int_equal(failed, 0);
}
#endif

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_that_answers_and_does_not_run_is_reset),
        cmocka_unit_test(whose_log_does_not_answer_is_said),
        cmocka_unit_test(a_device_that_answers_after_the_guest_has_left_is_reset),
        cmocka_unit_test(a_link_that_breaks_before_the_offer_leaves_room_for_the_next),
        cmocka_unit_test(an_offer_that_comes_after_the_cancel_is_refused),
        cmocka_unit_test(a_seal_without_the_data_is_no_image),
#ifdef VFMIG_SABOTAGE
        cmocka_unit_test(who_stood_still_gives_nobody_up_for_it),
#endif
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
