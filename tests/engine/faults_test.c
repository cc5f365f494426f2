/* SPDX-License-Identifier: BSD-3-Clause */
/* Everything that can go wrong, at every step: the guest runs on at the source, or is at the
 * destination; never at both, never lost. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>

#include "rig.h"
#include "rig_source.h"

#include "engine/source.h"

#define FULL  (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define PLAIN (VFMIG_FEATURE_STOP_COPY)

static const uint32_t features[] = {FULL, FULL, PLAIN};
static struct rig rig;

static void print_end(const char *what, unsigned number)
{
    struct vfmig_progress progress;

    vfmig_source_status(rig.source, &progress);
    if (getenv("RIG_TRACE"))
        print_message("%s %u: source %s, %s\n", what, number, vfmig_migrate_state_name(progress.state),
                      progress.error.text);
}

static enum vfmig_migrate_state destination_state(void)
{
    struct vfmig_progress progress;

    vfmig_destination_status(rig.destination, &progress);
    return progress.state;
}

/* One of the two ends that are allowed. */
static enum vfmig_migrate_state settle(void)
{
    enum vfmig_migrate_state state = rig_wait(&rig);

    /* Undecided only until the two have talked. */
    for (unsigned i = 0; state == VFMIG_MIGRATE_UNDECIDED && i < 2000; i++) {
        usleep(5000);
        state = rig_wait(&rig);
    }
    if (state == VFMIG_MIGRATE_COMPLETED) {
        (void)vfmig_destination_wait(rig.destination, 10000000000, NULL);
        if (destination_state() == VFMIG_MIGRATE_COMPLETED)
            rig_assert_moved(&rig);
        else
            assert_int_equal(destination_state(), VFMIG_MIGRATE_PAUSED);
    } else {
        assert_true(state == VFMIG_MIGRATE_FAILED || state == VFMIG_MIGRATE_CANCELLED);
        rig_assert_source_runs(&rig);
    }
    assert_int_equal(rig.both_running, 0);
    return state;
}

/* --- an operation fails --- */

enum expect { SURVIVES, UNWINDS, PAUSES };

struct row {
    struct rig_fault fault;
    enum expect expect;
};

#define ALWAYS_FAILS 99
#define SRC(op, arg, after, expect) {{RIG_SOURCE, op, arg, after, 1, -EIO, false}, expect}
#define DST(op, arg, after, expect) {{RIG_DEST, op, arg, after, 1, -EIO, false}, expect}
#define DST_ALWAYS(op, arg, expect) {{RIG_DEST, op, arg, 0, ALWAYS_FAILS, -EIO, false}, expect}

static const struct row rows[] = {
    SRC(RIG_IDENTITY, 0, 0, UNWINDS),
    SRC(RIG_EXTERNAL_SAVE, 0, 0, UNWINDS),
    SRC(RIG_TRACK_START, 0, 0, UNWINDS),
    SRC(RIG_TRACK_START, 0, 1, UNWINDS),
    SRC(RIG_TRACK_SYNC, 0, 0, SURVIVES),
    SRC(RIG_TRACK_SYNC, 0, 9, SURVIVES),
    SRC(RIG_SET_STATE, VFMIG_STATE_PRE_COPY, 0, UNWINDS),
    SRC(RIG_SET_STATE, VFMIG_STATE_PRE_COPY, 1, UNWINDS),
    SRC(RIG_SAVE, VFMIG_STATE_PRE_COPY, 1, UNWINDS),
    SRC(RIG_SET_STATE, VFMIG_STATE_PRE_COPY_NDMA, 0, UNWINDS),
    SRC(RIG_SET_STATE, VFMIG_STATE_PRE_COPY_NDMA, 1, UNWINDS),
    SRC(RIG_VIOMMU_IDLE, 0, 0, UNWINDS),
    SRC(RIG_VCPU_STOP, 0, 0, UNWINDS),
    SRC(RIG_SET_STATE, VFMIG_STATE_STOP_COPY, 0, UNWINDS),
    SRC(RIG_SET_STATE, VFMIG_STATE_STOP_COPY, 2, UNWINDS),
    SRC(RIG_SAVE, VFMIG_STATE_STOP_COPY, 3, UNWINDS),
    SRC(RIG_EXTERNAL_SAVE, 0, 1, UNWINDS),
    SRC(RIG_STATE_SAVE, 0, 0, UNWINDS),
    SRC(RIG_TRACK_STOP, 0, 0, SURVIVES),
    {{RIG_SOURCE, RIG_SET_STATE, VFMIG_STATE_STOP_COPY, 1, 1, -EIO, /* into_error= */ true}, UNWINDS},
    {{RIG_SOURCE, RIG_SET_STATE, VFMIG_STATE_PRE_COPY, 1, 1, -EIO, /* into_error= */ true}, UNWINDS},
    DST(RIG_IDENTITY, 0, 0, UNWINDS),
    DST(RIG_RESET, 0, 1, UNWINDS),
    DST(RIG_SET_STATE, VFMIG_STATE_STOP, 0, UNWINDS),
    DST(RIG_EXTERNAL_LOAD, 0, 0, UNWINDS),
    DST(RIG_SET_STATE, VFMIG_STATE_RESUMING, 2, UNWINDS),
    DST(RIG_LOAD, RIG_ANY, 0, UNWINDS),
    DST(RIG_LOAD, RIG_ANY, 9, UNWINDS),
    DST(RIG_SET_STATE, VFMIG_STATE_STOP, 4, UNWINDS),
    DST(RIG_EXTERNAL_LOAD, 0, 1, UNWINDS),
    DST(RIG_STATE_LOAD, 0, 0, UNWINDS),
    DST(RIG_SET_STATE, VFMIG_STATE_RUNNING_NDMA, 0, SURVIVES),
    DST_ALWAYS(RIG_SET_STATE, VFMIG_STATE_RUNNING_NDMA, UNWINDS),
    DST(RIG_SET_STATE, VFMIG_STATE_RUNNING, 1, SURVIVES),
    DST_ALWAYS(RIG_SET_STATE, VFMIG_STATE_RUNNING, PAUSES),
    DST(RIG_VCPU_START, 0, 0, PAUSES),
};

static void any_operation_fails(void **state)
{
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        rig_open(&rig, 3, features, false);
        rig.fault = rows[i].fault;
        rig_start(&rig);
        enum vfmig_migrate_state end = settle();
        print_end("row", i);
        if (rig.calls <= rig.fault.after)
            print_error("row %u: the fault did not happen\n", i);
        assert_true(rig.calls > rig.fault.after);
        assert_int_equal(end, rows[i].expect == UNWINDS ? VFMIG_MIGRATE_FAILED
                                                        : VFMIG_MIGRATE_COMPLETED);
        if (end == VFMIG_MIGRATE_COMPLETED)
            assert_int_equal(destination_state(), rows[i].expect == PAUSES ? VFMIG_MIGRATE_PAUSED
                                                                           : VFMIG_MIGRATE_COMPLETED);
        rig_close(&rig);
    }
}

/* --- something happens at the nth call --- */

static atomic_uint countdown;
static void (*happens)(void);

static void count_down(struct rig *r, const struct rig_entry *entry)
{
    if (entry->op == RIG_DMA || entry->op == RIG_MMIO)
        return;
    if (atomic_fetch_sub(&countdown, 1) == 1)
        happens();
}

/* Runs migrations with the event at call 0, 1, ... until one ends before it happens. */
static void at_every_call(void (*event)(void), const char *name, unsigned stride)
{
    unsigned ends[VFMIG_MIGRATE_STATE_COUNT] = {0};

    happens = event;
    for (unsigned n = 1; n < 400; n += stride) {
        rig_open(&rig, 2, features, false);
        rig.watch = count_down;
        atomic_store(&countdown, n);
        rig_start(&rig);
        ends[settle()]++;
        print_end(name, n);
        bool happened = (int)atomic_load(&countdown) <= 0;
        rig_close(&rig);
        if (!happened)
            break;
    }
    assert_true(ends[VFMIG_MIGRATE_COMPLETED] > 0);
    assert_true(ends[VFMIG_MIGRATE_FAILED] + ends[VFMIG_MIGRATE_CANCELLED] > 0);
}

static void cancel_source(void)
{
    rig_cancel_source(&rig);
}

static void cancel_destination(void)
{
    vfmig_destination_cancel(rig.destination);
}

static void cut_link(void)
{
    rig_cut_link(&rig);
}

static void cancelled_at_any_call(void **state)
{
    at_every_call(cancel_source, "cancel", 3);
}

static void destination_cancelled_at_any_call(void **state)
{
    at_every_call(cancel_destination, "cancel-destination", 5);
}

static void link_cut_at_any_call(void **state)
{
    at_every_call(cut_link, "cut", 4);
}

/* --- hangs --- */

static void a_hanging_device_is_left_behind(void **state)
{
    static const struct rig_fault hangs[] = {
        {RIG_SOURCE, RIG_SET_STATE, VFMIG_STATE_PRE_COPY, 0, 1, 0, false},
        {RIG_SOURCE, RIG_SET_STATE, VFMIG_STATE_STOP_COPY, 1, 1, 0, false},
    };
    struct vfmig_progress progress;

    for (unsigned i = 0; i < sizeof(hangs) / sizeof(hangs[0]); i++) {
        rig_open(&rig, 2, features, false);
        rig.fault = hangs[i];
        rig.options.device_timeout_ns = 500000000;
        rig_start(&rig);
        assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
        vfmig_source_status(rig.source, &progress);
        assert_int_equal(progress.devices_lost, 1);
        assert_int_equal(progress.error.code, -ETIMEDOUT);
        assert_true(rig_progresses(&rig.side[RIG_SOURCE]));
        assert_int_equal(rig.both_running, 0);
        rig_close(&rig);
    }
}

/* --- the journal --- */

static void no_space(void)
{
    struct rlimit limit = {.rlim_cur = 0, .rlim_max = RLIM_INFINITY};

    setrlimit(RLIMIT_FSIZE, &limit);
}

static void space_again(void)
{
    struct rlimit limit = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};

    setrlimit(RLIMIT_FSIZE, &limit);
}

/* From some call on nothing can be written; a while later it can again. */
static void the_journal_fills_up_at_any_call(void **state)
{
    signal(SIGXFSZ, SIG_IGN);
    happens = no_space;
    for (unsigned n = 1; n < 120; n += 7) {
        rig_open(&rig, 2, features, false);
        rig.watch = count_down;
        atomic_store(&countdown, n);
        rig_start(&rig);
        (void)vfmig_source_wait(rig.source, 300000000, NULL);
        atomic_store(&countdown, 0); /* what has not happened by now does not */
        space_again();
        settle();
        print_end("journal", n);
        rig_close(&rig);
        space_again(); /* it was just about to */
    }
}

static void a_journal_that_cannot_be_opened(void **state)
{
    struct vfmig_error error = {0};
    struct vfmig_source *source = NULL;

    rig_open(&rig, 0, NULL, false);
    rig.options.journal_dir = "/proc/self/nowhere/journal";
    assert_true(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &source, &error) < 0);
    assert_non_null(strstr(error.text, "nowhere"));
    rig_close(&rig);
}

/* --- the beginning --- */

static void mismatches_are_named_on_both_sides(void **state)
{
    struct vfmig_progress source, dest;

    rig_open(&rig, 1, features, true);
    rig.side[RIG_DEST].identity = "vcpus=4";
    rig_start(&rig);
    assert_int_equal(settle(), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &source);
    vfmig_destination_status(rig.destination, &dest);
    assert_non_null(strstr(source.error.text, "vcpus is 1 at the source and 4 at the destination"));
    assert_non_null(strstr(dest.error.text, "vcpus is 1 at the source and 4 at the destination"));
    assert_int_equal(source.sent_running_bytes, 0);
    rig_end_log(&rig);
    assert_int_equal(rig_find(&rig, 0, RIG_SOURCE, RIG_TRACK_START, RIG_ANY, RIG_ANY, false),
                     rig.log_count);
    rig_close(&rig);

    rig_open(&rig, 1, features, false);
    rig.side[RIG_DEST].devices[0].base.info.pci_device = 0x99;
    rig_start(&rig);
    assert_int_equal(settle(), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &source);
    assert_non_null(strstr(source.error.text, "device.0.pci"));
    rig_close(&rig);

    rig_open(&rig, 0, features, false);
    rig.side[RIG_DEST].blocks[1].size -= VFMIG_PAGE_SIZE;
    rig_start(&rig);
    assert_int_equal(settle(), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &source);
    assert_non_null(strstr(source.error.text, "memory.1"));
    rig.side[RIG_DEST].blocks[1].size += VFMIG_PAGE_SIZE;
    rig_close(&rig);
}

static void what_needs_ndma_is_refused_without(void **state)
{
    static const uint32_t mixed[] = {FULL, PLAIN}, both[] = {FULL, FULL};
    struct vfmig_progress progress;

    rig_open(&rig, 2, mixed, false);
    rig.side[RIG_SOURCE].vm.peer_mappings = true;
    rig_start(&rig);
    assert_int_equal(settle(), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &progress);
    assert_non_null(strstr(progress.error.text, "dev1 has no NDMA"));
    rig_close(&rig);

    rig_open(&rig, 2, mixed, false);
    rig.side[RIG_SOURCE].vm.page_faults = true;
    rig_start(&rig);
    assert_int_equal(settle(), VFMIG_MIGRATE_FAILED);
    rig_close(&rig);

    rig_open(&rig, 2, both, false); /* N stops peer to peer DMA alone: that will do for the peers */
    rig.side[RIG_SOURCE].vm.peer_mappings = true;
    rig.side[RIG_SOURCE].devices[1].base.info.quiet = VFMIG_QUIET_P2P;
    rig_start(&rig);
    assert_int_equal(settle(), VFMIG_MIGRATE_COMPLETED);
    rig_close(&rig);

    rig_open(&rig, 2, both, false); /* ... and not for page faults */
    rig.side[RIG_SOURCE].vm.page_faults = true;
    rig.side[RIG_SOURCE].devices[1].base.info.quiet = VFMIG_QUIET_P2P;
    rig_start(&rig);
    assert_int_equal(settle(), VFMIG_MIGRATE_FAILED);
    rig_close(&rig);
}

static void nobody_listens(void **state)
{
    struct vfmig_error error = {0};

    rig_open(&rig, 0, NULL, false);
    assert_int_equal(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error), 0);
    assert_int_equal(vfmig_source_start(rig.source, rig.uri, &error), 0);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    rig_assert_source_runs(&rig);
    rig_close(&rig);
}

static void a_cancelled_destination_takes_nobody(void **state)
{
    struct vfmig_progress progress;
    struct vfmig_error error = {0};

    rig_open(&rig, 1, features, false);
    assert_int_equal(vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination,
                                           &error), 0);
    assert_int_equal(vfmig_destination_listen(rig.destination, rig.uri, &error), 0);
    vfmig_destination_cancel(rig.destination);
    assert_int_equal(vfmig_destination_wait(rig.destination, UINT64_MAX, &error), -ECANCELED);
    assert_int_equal(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error), 0);
    assert_int_equal(vfmig_source_start(rig.source, rig.uri, &error), 0);
    assert_int_equal(settle(), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &progress);
    assert_non_null(strstr(progress.error.text, "the destination was cancelled"));
    assert_int_equal(destination_state(), VFMIG_MIGRATE_CANCELLED);
    rig_close(&rig);
}

#ifdef VFMIG_SABOTAGE
/* The destination stays connected, gives signs of life, and one message never comes. */
static void start_with(const char *fault)
{
    setenv("VFMIG_SABOTAGE", fault, 1);
    rig_open(&rig, 1, features, false);
    rig.options.device_timeout_ns = 1000000000;
    rig.options.reconnect_ns = 100000000;
    rig_start(&rig);
}

static void without_ready_the_source_unwinds(void **state)
{
    struct vfmig_progress progress;

    start_with("lose-ready");
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &progress);
    assert_int_equal(progress.error.code, -ETIMEDOUT);
    assert_non_null(strstr(progress.error.text, "does not say that it is ready"));
    rig_assert_source_runs(&rig);
    assert_int_equal(rig.both_running, 0);
    rig_close(&rig);
    unsetenv("VFMIG_SABOTAGE");
}

static void an_unanswered_grant_is_in_doubt_until_it_is_answered(void **state)
{
    struct vfmig_progress progress;

    start_with("lose-running");
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_UNDECIDED);
    vfmig_source_status(rig.source, &progress);
    assert_int_equal(progress.error.code, -ETIMEDOUT);
    assert_non_null(strstr(progress.error.text, "does not answer"));
    assert_false(rig_progresses(&rig.side[RIG_SOURCE]));
    unsetenv("VFMIG_SABOTAGE");
    /* It is said again, and heard. */
    while (progress.state != VFMIG_MIGRATE_COMPLETED) {
        usleep(10000);
        vfmig_source_status(rig.source, &progress);
    }
    assert_int_equal(progress.error.code, 0);
    rig_assert_moved(&rig);
    assert_int_equal(rig.both_running, 0);
    rig_close(&rig);
}

static void wait_in_vain(void)
{
    usleep((useconds_t)(3 * rig.options.reconnect_ns / 1000));
}

static void cut_at_the_start(struct rig *r, const struct rig_entry *entry)
{
    if (entry->side == RIG_DEST && entry->op == RIG_VCPU_START && !entry->end) {
        cut_link();
        unsetenv("VFMIG_SABOTAGE");
    }
    if (entry->side == RIG_SOURCE && entry->op == RIG_SET_STATE && entry->arg == VFMIG_STATE_STOP && !entry->end)
        wait_in_vain();
}

/* Until nobody waits for the new connection any more. */
static void released_late(void *opaque)
{
    wait_in_vain();
}

/* The grant is answered over a new connection, late: it is not over before the devices have stopped. */
static void devices_are_stopped_however_late_it_is(void **state)
{
    struct vfmig_vm_ops ops;

    setenv("VFMIG_SABOTAGE", "lose-running", 1); /* until the link is cut */
    rig_open(&rig, 2, features, false);
    ops = *rig.side[RIG_SOURCE].vm.ops;
    ops.released = released_late;
    rig.side[RIG_SOURCE].vm.ops = &ops;
    rig.watch = cut_at_the_start;
    rig_start(&rig);
    assert_int_equal(settle(), VFMIG_MIGRATE_COMPLETED);
    rig_close(&rig);
}
#endif

static void after_a_failure_the_next_one_succeeds(void **state)
{
    struct vfmig_error error = {0};

    rig_open(&rig, 2, features, false);
    rig.fault = (struct rig_fault){RIG_DEST, RIG_STATE_LOAD, 0, 0, 1, -EIO, false};
    rig_start(&rig);
    assert_int_equal(settle(), VFMIG_MIGRATE_FAILED);
    vfmig_source_free(rig.source);
    assert_int_equal(vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error), 0);
    /* The destination may still be busy with the end of the last one. */
    for (unsigned i = 0; destination_state() == VFMIG_MIGRATE_ACTIVE && i < 100; i++)
        usleep(10000);
    assert_int_equal(vfmig_source_start(rig.source, rig.uri, &error), 0);
    assert_int_equal(settle(), VFMIG_MIGRATE_COMPLETED);
    rig_close(&rig);
}

static void a_guest_that_does_not_converge_ends_at_the_deadline(void **state)
{
    struct vfmig_progress progress = {0};

    /* How many rounds a deadline leaves room for depends on the machine: more time, until it is some. */
    for (uint64_t deadline_ns = 100000000; progress.rounds <= 2 && deadline_ns < 30000000000; deadline_ns *= 4) {
        rig_open(&rig, 1, features, false);
        rig.options.downtime_limit_ns = 1;
        rig.options.deadline_ns = deadline_ns;
        rig_start(&rig);
        assert_int_equal(settle(), VFMIG_MIGRATE_FAILED);
        vfmig_source_status(rig.source, &progress);
        assert_int_equal(progress.error.code, -ETIME);
        rig_close(&rig);
    }
    assert_true(progress.rounds > 2);

    rig_open(&rig, 1, features, false);
    rig.options.downtime_limit_ns = 1;
    rig.options.deadline_ns = 100000000;
    rig.options.on_deadline = VFMIG_ON_DEADLINE_FORCE;
    rig_start(&rig);
    assert_int_equal(settle(), VFMIG_MIGRATE_COMPLETED);
    rig_close(&rig);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest ops[] = {
        cmocka_unit_test(any_operation_fails),
        cmocka_unit_test(a_hanging_device_is_left_behind),
        cmocka_unit_test(mismatches_are_named_on_both_sides),
        cmocka_unit_test(what_needs_ndma_is_refused_without),
        cmocka_unit_test(nobody_listens),
        cmocka_unit_test(a_cancelled_destination_takes_nobody),
#ifdef VFMIG_SABOTAGE
        cmocka_unit_test(without_ready_the_source_unwinds),
        cmocka_unit_test(an_unanswered_grant_is_in_doubt_until_it_is_answered),
        cmocka_unit_test(devices_are_stopped_however_late_it_is),
#endif
        cmocka_unit_test(after_a_failure_the_next_one_succeeds),
        cmocka_unit_test(a_guest_that_does_not_converge_ends_at_the_deadline),
        cmocka_unit_test(a_journal_that_cannot_be_opened),
    };
    const struct CMUnitTest calls[] = {
        cmocka_unit_test(cancelled_at_any_call),
        cmocka_unit_test(destination_cancelled_at_any_call),
        cmocka_unit_test(link_cut_at_any_call),
    };
    const struct CMUnitTest journal[] = {
        cmocka_unit_test(the_journal_fills_up_at_any_call),
    };

    if (argc > 2)
        cmocka_set_test_filter(argv[2]);
    if (argc > 1 && strcmp(argv[1], "calls") == 0)
        return cmocka_run_group_tests_name("faults at every call", calls, NULL, NULL);
    if (argc > 1 && strcmp(argv[1], "journal") == 0)
        return cmocka_run_group_tests_name("faults of the journal", journal, NULL, NULL);
    return cmocka_run_group_tests_name("faults of operations", ops, NULL, NULL);
}
