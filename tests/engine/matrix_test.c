/* SPDX-License-Identifier: BSD-3-Clause */
/* Devices that fail, hang, lie and die, at every step of either side, alone and in pairs: the guest
 * runs on at the source with all its devices, or is at the destination (running, or paused there
 * after the grant); never anything else, never at both.
 *
 *     matrix_test [single | pairs] [NUMBER]   one part, one run of it
 *     matrix_test pairs FIRST/STRIDE          the pairs FIRST, FIRST + STRIDE, ...
 *
 * All pairs are some thousand runs: every STRIDEth is done unless told otherwise; `make matrix` does all. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "rig.h"

#include "base/sabotage.h"

#define FULL     (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define PLAIN    (VFMIG_FEATURE_STOP_COPY)
#define DEVICES  3u
#define LIMIT_NS UINT64_C(60000000) /* of a device, where one hangs or never ends */
#define STRIDE   41u
#define ALWAYS   99u
#define PATIENCE 10000u /* naps until what must happen has not happened */

static const uint32_t features[DEVICES] = {FULL, FULL, PLAIN};
static struct rig rig;

/* --- the table --- */

/* How: name, errno (0: hang), into ERROR, lie. */
struct how {
    const char *name;
    int err;
    bool into_error;
    enum rig_lie lie;
};

static const struct how
    stays = {"fails", -EIO, false, RIG_TRUTH}, breaks = {"goes to ERROR", -EIO, true, RIG_TRUTH},
    hangs = {"hangs", 0, false, RIG_TRUTH}, pretends = {"pretends", -EIO, false, RIG_SAYS_YES},
    dies = {"dies", -EIO, false, RIG_DIES}, ends = {"ends early", -EIO, false, RIG_SAYS_END},
    goes_on = {"never ends", -EIO, false, RIG_SAYS_MORE};

struct cell {
    enum rig_side side;
    enum rig_op op;
    uint32_t arg;
    uint32_t times;
    const struct how *how;
};

#define CHANGE(side, state, times)                                                                 \
    {side, RIG_SET_STATE, VFMIG_STATE_##state, times, &stays},                                     \
    {side, RIG_SET_STATE, VFMIG_STATE_##state, times, &breaks},                                    \
    {side, RIG_SET_STATE, VFMIG_STATE_##state, 1, &hangs},                                         \
    {side, RIG_SET_STATE, VFMIG_STATE_##state, times, &pretends},                                  \
    {side, RIG_SET_STATE, VFMIG_STATE_##state, 1, &dies}

static const struct cell cells[] = {
    CHANGE(RIG_SOURCE, PRE_COPY, 1),
    CHANGE(RIG_SOURCE, PRE_COPY_NDMA, 1),
    CHANGE(RIG_SOURCE, STOP_COPY, 1),
    CHANGE(RIG_SOURCE, STOP, 1),
    {RIG_SOURCE, RIG_SAVE, VFMIG_STATE_PRE_COPY, 1, &stays},
    {RIG_SOURCE, RIG_SAVE, VFMIG_STATE_PRE_COPY, 1, &hangs},
    {RIG_SOURCE, RIG_SAVE, VFMIG_STATE_PRE_COPY, 1, &dies},
    {RIG_SOURCE, RIG_SAVE, VFMIG_STATE_STOP_COPY, 1, &stays},
    {RIG_SOURCE, RIG_SAVE, VFMIG_STATE_STOP_COPY, 1, &hangs},
    {RIG_SOURCE, RIG_SAVE, VFMIG_STATE_STOP_COPY, 1, &dies},
    {RIG_SOURCE, RIG_SAVE, VFMIG_STATE_STOP_COPY, 1, &ends},
    {RIG_SOURCE, RIG_SAVE, VFMIG_STATE_STOP_COPY, 1, &goes_on},
    {RIG_DEST, RIG_RESET, RIG_ANY, 1, &stays},
    {RIG_DEST, RIG_RESET, RIG_ANY, 1, &hangs},
    {RIG_DEST, RIG_RESET, RIG_ANY, 1, &dies},
    CHANGE(RIG_DEST, STOP, 1),
    CHANGE(RIG_DEST, RESUMING, 1),
    {RIG_DEST, RIG_LOAD, RIG_ANY, 1, &stays},
    {RIG_DEST, RIG_LOAD, RIG_ANY, 1, &hangs},
    {RIG_DEST, RIG_LOAD, RIG_ANY, 1, &dies},
    CHANGE(RIG_DEST, RUNNING_NDMA, 1),
    CHANGE(RIG_DEST, RUNNING_NDMA, ALWAYS),
    CHANGE(RIG_DEST, RUNNING, 1),
    CHANGE(RIG_DEST, RUNNING, ALWAYS),
    /* Only on the way back, so only beside another one. */
    CHANGE(RIG_SOURCE, RUNNING_NDMA, ALWAYS),
    CHANGE(RIG_SOURCE, RUNNING, ALWAYS),
    {RIG_SOURCE, RIG_RESET, RIG_ANY, ALWAYS, &stays},
    {RIG_SOURCE, RIG_RESET, RIG_ANY, 1, &hangs},
    {RIG_SOURCE, RIG_RESET, RIG_ANY, 1, &dies},
};
#define CELLS (sizeof(cells) / sizeof(cells[0]))

static const char *op_name(enum rig_op op)
{
    return op == RIG_SET_STATE ? "set_state" : op == RIG_RESET ? "reset" : op == RIG_SAVE ? "save" : "load";
}

static const char *side_name(enum rig_side side)
{
    return side == RIG_SOURCE ? "source" : "destination";
}

static struct rig_fault fault_of(const struct cell *cell, uint32_t device)
{
    return (struct rig_fault){.side = cell->side, .op = cell->op, .arg = cell->arg,
                              .times = cell->times, .err = cell->how->err,
                              .into_error = cell->how->into_error, .only = device + 1,
                              .lie = cell->how->lie};
}

/* --- one run --- */

static bool endless(const struct rig_fault *fault)
{
    return fault->lie == RIG_SAYS_MORE;
}

static bool impatient(const struct rig_fault *fault)
{
    return (fault->op && !fault->err) || endless(fault);
}

static enum vfmig_migrate_state destination_state(void)
{
    struct vfmig_progress progress;

    vfmig_destination_status(rig.destination, &progress);
    return progress.state;
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* Whatever is open until the two have talked again. */
static enum vfmig_migrate_state settled(void)
{
    enum vfmig_migrate_state state = rig_wait(&rig);

    while (state == VFMIG_MIGRATE_UNDECIDED && destination_state() != VFMIG_MIGRATE_PAUSED) {
        nap();
        state = rig_wait(&rig);
    }
    return state;
}

static atomic_uint resets; /* that a device of the source has done */

/* A device that neither goes back nor can be reset, and one whose process is gone. */
static bool beyond_help(uint32_t device)
{
    const struct rig_fault *faults[] = {&rig.fault, &rig.second};
    bool helpless = rig.side[RIG_SOURCE].devices[device].dead;

    for (unsigned i = 0; i < 2; i++)
        helpless |= faults[i]->side == RIG_SOURCE && faults[i]->op == RIG_RESET &&
                    faults[i]->only == device + 1;
    return helpless;
}

static bool in_running(struct rig_device *dev)
{
    pthread_mutex_lock(&dev->lock);
    bool running = dev->state == VFMIG_STATE_RUNNING && !dev->dead;
    pthread_mutex_unlock(&dev->lock);
    return running;
}

static uint32_t not_running(struct rig_vm *vm, bool *ret_all_help_given)
{
    uint32_t count = 0;

    *ret_all_help_given = true;
    for (uint32_t i = 0; i < DEVICES; i++) {
        bool running = in_running(&vm->devices[i]);
        count += !running;
        *ret_all_help_given &= running || beyond_help(i);
    }
    return count;
}

/* The guest runs at the source. What hung answers now; then every device that can be is in R. */
static void check_back(void)
{
    struct rig_vm *source = &rig.side[RIG_SOURCE], *dest = &rig.side[RIG_DEST];
    struct vfmig_progress progress;
    uint32_t helpless;
    bool given;

    /* Starting vCPUs has the devices' limit, too, which is short here. */
    for (unsigned i = 0; i < PATIENCE && !rig_progresses(source); i++)
        nap();
    assert_true(rig_progresses(source));
    assert_false(rig_progresses(dest));
    rig_release(&rig);
    for (unsigned i = 0;; i++, nap()) {
        helpless = not_running(source, &given);
        vfmig_source_status(rig.source, &progress);
        /* Even one that is beyond help may be tried once more when its hanging reset has ended. */
        bool logs = false; /* they go off when the guest runs */
        for (uint32_t t = 0; t < source->vm.tracker_count; t++)
            logs |= atomic_load(&source->trackers[t].on);
        if ((given && progress.devices_lost == helpless && !logs &&
             progress.devices_reset == atomic_load(&resets)) || i == PATIENCE)
            break;
    }
    assert_true(given);
    for (uint32_t i = 0; i < DEVICES; i++)
        if (in_running(&source->devices[i]))
            assert_int_equal(source->devices[i].external[0], i + 1); /* after a reset, too */
    assert_int_equal(progress.devices_lost, helpless);
    assert_int_equal(progress.devices_reset, atomic_load(&resets));
    for (uint32_t i = 0; i < source->vm.tracker_count; i++)
        assert_false(atomic_load(&source->trackers[i].on));
    assert_int_not_equal(progress.error.code, 0);
    assert_true(progress.error.text[0]);
}

static int content_differs;

static void watch(struct rig *r, const struct rig_entry *entry)
{
    struct rig_vm *source = &r->side[RIG_SOURCE], *dest = &r->side[RIG_DEST];

    if (entry->side == RIG_SOURCE && entry->op == RIG_RESET && entry->end && entry->ret == 0)
        atomic_fetch_add(&resets, 1);
    if (entry->side != RIG_DEST || entry->op != RIG_VCPU_START || entry->end)
        return;
    content_differs = 0;
    for (uint32_t i = 0; i < DEVICES; i++)
        content_differs |= memcmp(source->devices[i].content, dest->devices[i].content, RIG_STATE_BYTES);
}

/* The guest is at the destination, whose devices are what was sent. */
static void check_moved(void)
{
    if (destination_state() == VFMIG_MIGRATE_COMPLETED) {
        assert_true(rig_progresses(&rig.side[RIG_DEST]));
        assert_int_equal(content_differs, 0);
        for (uint32_t i = 0; i < DEVICES; i++)
            assert_int_equal(rig.side[RIG_DEST].devices[i].state, VFMIG_STATE_RUNNING);
    } else {
        assert_int_equal(destination_state(), VFMIG_MIGRATE_PAUSED);
        assert_false(rig_progresses(&rig.side[RIG_DEST]));
    }
    assert_false(rig_progresses(&rig.side[RIG_SOURCE]));
}

static unsigned outcomes[VFMIG_MIGRATE_STATE_COUNT], paused, both, runs;

static void one(const struct rig_fault *first, const struct rig_fault *second)
{
    bool hurry = impatient(first) || impatient(second);

    rig_open(&rig, DEVICES, features, false);
    rig.watch = watch;
    content_differs = -1;
    atomic_store(&resets, 0);
    rig.fault = *first;
    rig.second = *second;
    rig.options.downtime_limit_ns = endless(first) || endless(second) ? LIMIT_NS : 5000000000;
    rig.options.deadline_ns = 2000000000;
    rig.options.device_timeout_ns = hurry ? LIMIT_NS : 2000000000;
    rig_start(&rig);
    enum vfmig_migrate_state state = settled();
    outcomes[state]++;
    runs++;
    if (state == VFMIG_MIGRATE_COMPLETED || state == VFMIG_MIGRATE_UNDECIDED) {
        (void)vfmig_destination_wait(rig.destination, 10000000000, NULL);
        paused += destination_state() == VFMIG_MIGRATE_PAUSED;
        check_moved();
    } else {
        assert_int_equal(state, VFMIG_MIGRATE_FAILED);
        check_back();
    }
    assert_int_equal(rig.both_running, 0);
    both += rig.calls && rig.second_calls;
    rig_close(&rig);
}

/* --- the parts --- */

static int chosen = -1;
static unsigned from, stride = STRIDE; /* of pairs */
static char under_way[256];            /* what a failure is the failure of */

static void tell(unsigned number, const struct cell *a, const struct cell *b, uint32_t device)
{
    int used = snprintf(under_way, sizeof(under_way), "%u: %s %s of device 1 to %u %s", number,
                        side_name(a->side), op_name(a->op), a->arg, a->how->name);

    if (b)
        snprintf(under_way + used, sizeof(under_way) - (size_t)used, "; %s %s of device %u to %u %s",
                 side_name(b->side), op_name(b->op), device, b->arg, b->how->name);
    if (getenv("RIG_TRACE") || chosen >= 0)
        print_error("%s\n", under_way);
}

/* For a person, and for scripts/matrix.py, which adds up. */
static int sum_up(void **state)
{
    unsigned back = outcomes[VFMIG_MIGRATE_FAILED];
    unsigned moved = outcomes[VFMIG_MIGRATE_COMPLETED] + outcomes[VFMIG_MIGRATE_UNDECIDED];

    printf("%u runs: %u back, %u moved, %u paused\n", runs, back, moved - paused, paused);
    if (under_way[0])
        print_error("failed at %s\n", under_way);
    return 0;
}

static void alone(void **state)
{
    static const struct rig_fault none;

    for (unsigned i = 0; i < CELLS; i++) {
        if (chosen >= 0 && (unsigned)chosen != i)
            continue;
        tell(i, &cells[i], NULL, 0);
        struct rig_fault fault = fault_of(&cells[i], 1);
        one(&fault, &none);
        under_way[0] = '\0';
    }
    if (chosen >= 0)
        return;
    assert_true(outcomes[VFMIG_MIGRATE_FAILED] > CELLS / 3 && outcomes[VFMIG_MIGRATE_COMPLETED] > 5);
    assert_true(paused > 0);
}

/* The second is another device's, or the same one's. */
static void in_pairs(void **state)
{
    for (unsigned n = chosen >= 0 ? (unsigned)chosen : from; n < CELLS * CELLS; n += stride) {
        unsigned i = n / CELLS, k = n % CELLS;
        uint32_t device = (i + k) % DEVICES;
        if (i == k)
            continue;
        tell(n, &cells[i], &cells[k], device);
        struct rig_fault first = fault_of(&cells[i], 1), second = fault_of(&cells[k], device);
        one(&first, &second);
        under_way[0] = '\0';
        if (chosen >= 0)
            return;
    }
    assert_true(runs < 40 || both > 3);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest single[] = {cmocka_unit_test(alone)};
    const struct CMUnitTest pairs[] = {cmocka_unit_test(in_pairs)};
    int failed = 0;

    if (argc > 2 && sscanf(argv[2], "%u/%u", &from, &stride) != 2)
        chosen = atoi(argv[2]);
    if (!stride)
        return 2;
    if (argc < 2 || strcmp(argv[1], "single") == 0)
        failed |= cmocka_run_group_tests_name("alone", single, NULL, sum_up);
    if (argc < 2 || strcmp(argv[1], "pairs") == 0)
        failed |= cmocka_run_group_tests_name("in pairs", pairs, NULL, sum_up);
    return failed;
}
