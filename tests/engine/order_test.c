/* SPDX-License-Identifier: BSD-3-Clause */
/* The RFC's orders, clause by clause, from the log of everything that the engine asked of devices,
 * vCPUs and trackers during a whole migration. Usage: order_test CLAUSE. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/sabotage.h"
#include "rig.h"

#define FULL    (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define PLAIN   (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_PRE_COPY)
#define QUIET   (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA)
#define DEVICES 3u

static struct rig rig;
static int memory_differs, devices_differ;
static uint64_t progress_at_stop, progress_at_start;
static _Atomic uint32_t external_changes, changed_in_states; /* bits of the device's states */
static _Atomic bool external_over;

/* The guest changes external state (MSI-X, config) whenever it may: until its vCPUs are stopped. */
static void change_external(struct rig_vm *source, const struct rig_entry *entry)
{
    if (entry->side == RIG_SOURCE && entry->op == RIG_VCPU_STOP)
        atomic_store(&external_over, true);
    if (entry->side != RIG_SOURCE || atomic_load(&external_over))
        return;
    for (uint32_t i = 0; i < source->vm.device_count; i++)
        __atomic_fetch_add(&source->devices[i].external[8 + entry->op], i + 1, __ATOMIC_RELAXED);
    atomic_fetch_or(&changed_in_states, 1u << source->devices[0].state);
    atomic_fetch_add(&external_changes, 1);
}

/* A slow device makes a missing barrier visible. Memory is compared when everything was loaded and
 * the destination's first device is about to leave {}: nothing writes anywhere. */
static void watch(struct rig *r, const struct rig_entry *entry)
{
    struct rig_vm *source = &r->side[RIG_SOURCE], *dest = &r->side[RIG_DEST];
    bool grace = entry->op == RIG_SET_STATE && (entry->arg == VFMIG_STATE_PRE_COPY_NDMA ||
                                                entry->arg == VFMIG_STATE_RUNNING_NDMA);

    change_external(source, entry);
    if (grace && entry->device == 1 && !entry->end)
        usleep(vfmig_sabotage("skip-barrier") ? 400000 : 30000); /* whoever runs ahead is seen to */
    if (entry->side == RIG_SOURCE && entry->op == RIG_VCPU_STOP && entry->end)
        progress_at_stop = atomic_load(&source->progress);
    if (entry->side != RIG_DEST || entry->op != RIG_SET_STATE || entry->device != 0 ||
        entry->arg != VFMIG_STATE_RUNNING_NDMA || entry->end)
        return;
    progress_at_start = atomic_load(&source->progress);
    memory_differs = devices_differ = 0;
    for (unsigned b = 0; b < 2; b++)
        memory_differs |= memcmp(source->blocks[b].host, dest->blocks[b].host, source->blocks[b].size);
    for (uint32_t i = 0; i < source->vm.device_count; i++)
        devices_differ |= memcmp(source->devices[i].content, dest->devices[i].content, RIG_STATE_BYTES);
}

static bool split_logs;

static void migrate(const uint32_t *features)
{
    memory_differs = devices_differ = -1;
    progress_at_stop = 0;
    external_changes = changed_in_states = 0;
    external_over = false;
    progress_at_start = UINT64_MAX;
    rig_open(&rig, DEVICES, features, false);
    rig.watch = watch;
    if (split_logs)
        rig_split_logs(&rig);
    rig.options.device_timeout_ns = 10000000000;
    rig.options.deadline_ns = 30000000000;
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 30000000000, NULL), 0);
}

/* --- questions to the log --- */

static uint32_t first(enum rig_side side, enum rig_op op, uint32_t device, uint32_t arg, bool end)
{
    return rig_find(&rig, 0, side, op, device, arg, end);
}

static uint32_t last(enum rig_side side, enum rig_op op, uint32_t device, uint32_t arg, bool end)
{
    uint32_t found = rig.log_count;

    for (uint32_t at = first(side, op, device, arg, end); at < rig.log_count;
         at = rig_find(&rig, at + 1, side, op, device, arg, end))
        found = at;
    return found;
}

static bool happened(uint32_t at)
{
    return at < rig.log_count;
}

static void assert_before(uint32_t a, uint32_t b)
{
    assert_true(happened(a));
    assert_true(happened(b));
    assert_true(a < b);
}

/* The last device enters one state before the first goes for the next. */
static void assert_barrier(enum rig_side side, uint32_t state, uint32_t next)
{
    assert_before(last(side, RIG_SET_STATE, RIG_ANY, state, true),
                  first(side, RIG_SET_STATE, RIG_ANY, next, false));
    for (uint32_t i = 0; i < DEVICES; i++)
        assert_true(happened(first(side, RIG_SET_STATE, i, state, true)));
}

#define S_STATE(state) first(RIG_SOURCE, RIG_SET_STATE, RIG_ANY, VFMIG_STATE_##state, false)
#define D_STATE(state) first(RIG_DEST, RIG_SET_STATE, RIG_ANY, VFMIG_STATE_##state, false)

static uint32_t stop_begin(void)
{
    return first(RIG_SOURCE, RIG_VCPU_STOP, RIG_ANY, RIG_ANY, false);
}

static uint32_t stop_end(void)
{
    return first(RIG_SOURCE, RIG_VCPU_STOP, RIG_ANY, RIG_ANY, true);
}

/* --- clauses --- */

static void c7(void)
{
    for (uint32_t i = 0; i <= DEVICES; i++)
        assert_before(first(RIG_SOURCE, RIG_TRACK_START, i, 0, true), S_STATE(PRE_COPY));
    assert_int_equal(memory_differs, 0);
}

static void c8(void)
{
    assert_before(last(RIG_SOURCE, RIG_SET_STATE, RIG_ANY, VFMIG_STATE_PRE_COPY, true),
                  first(RIG_SOURCE, RIG_SAVE, RIG_ANY, VFMIG_STATE_PRE_COPY, false));
    assert_before(last(RIG_SOURCE, RIG_SAVE, RIG_ANY, VFMIG_STATE_PRE_COPY, true), stop_begin());
}

static void c9(void)
{
    uint32_t sync = rig_find(&rig, S_STATE(PRE_COPY), RIG_SOURCE, RIG_TRACK_SYNC, 0, 0, true);

    assert_before(sync, S_STATE(PRE_COPY_NDMA));
}

static void c10(void)
{
    assert_before(first(RIG_SOURCE, RIG_VIOMMU_IDLE, 0, 0, true), stop_begin());
}

static void c11(void)
{
    uint32_t sync = rig_find(&rig, stop_end(), RIG_SOURCE, RIG_TRACK_SYNC, 0, 0, true);

    assert_before(sync, S_STATE(STOP_COPY));
    assert_before(last(RIG_SOURCE, RIG_SET_STATE, RIG_ANY, VFMIG_STATE_PRE_COPY_NDMA, true), sync);
}

static void c12(void)
{
    assert_int_equal(memory_differs, 0);
    assert_int_equal(devices_differ, 0);
}

static void c13(void)
{
    for (uint32_t i = 0; i < DEVICES; i++)
        assert_int_equal(rig.side[RIG_SOURCE].devices[i].state, VFMIG_STATE_STOP);
}

static void c14(void)
{
    for (uint32_t i = 0; i < DEVICES; i++)
        assert_before(first(RIG_DEST, RIG_RESET, i, 0, true), D_STATE(RESUMING));
}

static void c15(void)
{
    assert_barrier(RIG_DEST, VFMIG_STATE_STOP, VFMIG_STATE_RUNNING_NDMA);
    for (uint32_t i = 0; i < DEVICES; i++)
        assert_before(first(RIG_DEST, RIG_SET_STATE, i, VFMIG_STATE_STOP, true), D_STATE(RESUMING));
}

/* The rig's devices refuse whatever is not the whole sequence, in order. */
static void c16(void)
{
    assert_int_equal(devices_differ, 0);
}

static void c17(void)
{
    assert_before(D_STATE(RESUMING), D_STATE(RUNNING_NDMA));
    for (uint32_t i = 0; i < DEVICES; i++)
        assert_before(first(RIG_DEST, RIG_SET_STATE, i, VFMIG_STATE_RUNNING_NDMA, true),
                      first(RIG_DEST, RIG_SET_STATE, i, VFMIG_STATE_RUNNING, false));
}

static void c18(void)
{
    assert_before(last(RIG_DEST, RIG_SET_STATE, RIG_ANY, VFMIG_STATE_RUNNING, true),
                  first(RIG_DEST, RIG_VCPU_START, 0, 0, false));
    rig_assert_moved(&rig);
}

static void c19(void)
{
    assert_barrier(RIG_SOURCE, VFMIG_STATE_PRE_COPY_NDMA, VFMIG_STATE_STOP_COPY);
    assert_barrier(RIG_DEST, VFMIG_STATE_RUNNING_NDMA, VFMIG_STATE_RUNNING);
}

static void c29(void)
{
    for (uint32_t i = 0; i <= DEVICES; i++)
        assert_before(last(RIG_SOURCE, RIG_SET_STATE, RIG_ANY, VFMIG_STATE_STOP_COPY, true),
                      first(RIG_SOURCE, RIG_TRACK_STOP, i, 0, false));
}

static void c36(void)
{
    assert_false(happened(first(RIG_SOURCE, RIG_MMIO, RIG_ANY, RIG_ANY, false)));
    assert_false(happened(first(RIG_DEST, RIG_MMIO, RIG_ANY, RIG_ANY, false)));
}

static void c39(void)
{
    assert_int_equal(progress_at_stop, progress_at_start);
    assert_before(stop_end(), S_STATE(STOP_COPY));
}

/* Whatever it was when the first copy was taken, and in whatever state the devices were when it
 * changed: what the guest has at the destination is what it wrote last (C47, C48). */
static void c48(void)
{
    uint32_t first_load = first(RIG_DEST, RIG_EXTERNAL_LOAD, 0, 0, true);
    uint32_t states =
        1u << VFMIG_STATE_RUNNING | 1u << VFMIG_STATE_PRE_COPY | 1u << VFMIG_STATE_PRE_COPY_NDMA;

    assert_true(external_changes > 10);
    assert_int_equal(changed_in_states & states, states);
    assert_before(first_load, D_STATE(RESUMING));
    assert_before(stop_end(), last(RIG_SOURCE, RIG_EXTERNAL_SAVE, 0, 0, false));
    for (uint32_t i = 0; i < DEVICES; i++)
        assert_memory_equal(rig.side[RIG_DEST].devices[i].external,
                            rig.side[RIG_SOURCE].devices[i].external, 64);
}

/* No peer can still reach a device that is about to be stopped. */
static void c55(void)
{
    assert_barrier(RIG_SOURCE, VFMIG_STATE_PRE_COPY_NDMA, VFMIG_STATE_STOP_COPY);
    assert_false(happened(rig_find(&rig, S_STATE(STOP_COPY), RIG_SOURCE, RIG_DMA, RIG_ANY, RIG_ANY,
                                   false)));
}

/* Nobody moves data before every device can be reached again. */
static void c58(void)
{
    assert_barrier(RIG_DEST, VFMIG_STATE_RUNNING_NDMA, VFMIG_STATE_RUNNING);
    assert_before(last(RIG_DEST, RIG_SET_STATE, RIG_ANY, VFMIG_STATE_RUNNING, true),
                  first(RIG_DEST, RIG_VCPU_START, 0, 0, false));
}

static void c61(void)
{
    assert_before(first(RIG_SOURCE, RIG_VIOMMU_IDLE, 0, 0, true), S_STATE(STOP_COPY));
}

static void c62(void)
{
    uint32_t idle = first(RIG_SOURCE, RIG_VIOMMU_IDLE, 0, 0, false);

    assert_before(last(RIG_SOURCE, RIG_SET_STATE, RIG_ANY, VFMIG_STATE_PRE_COPY_NDMA, true), idle);
    assert_before(idle, stop_begin());
}

static void c69(void)
{
    for (uint32_t i = 0; i < 2; i++) {
        assert_false(happened(first((enum rig_side)i, RIG_SET_STATE, 1, VFMIG_STATE_PRE_COPY_NDMA, false)));
        assert_false(happened(first((enum rig_side)i, RIG_SET_STATE, 1, VFMIG_STATE_RUNNING_NDMA, false)));
    }
    assert_int_equal(devices_differ, 0);
    rig_assert_moved(&rig);
}

/* The state of a device when a call began. */
static uint32_t state_at(uint32_t device, uint32_t before)
{
    uint32_t state = VFMIG_STATE_RUNNING;

    for (uint32_t i = 0; i < before; i++)
        if (rig.log[i].side == RIG_SOURCE && rig.log[i].op == RIG_SET_STATE && rig.log[i].end &&
            rig.log[i].device == device && !rig.log[i].ret)
            state = rig.log[i].arg;
    return state;
}

/* Each log that is read and cleared in two steps: only with its device quiet. How often while the
 * vCPUs ran. */
static unsigned quiet_reads(void)
{
    unsigned reads = 0;

    for (uint32_t i = 0; i < DEVICES; i++)
        for (uint32_t at = first(RIG_SOURCE, RIG_TRACK_SYNC, i + 1, 0, false); happened(at);
             at = rig_find(&rig, at + 1, RIG_SOURCE, RIG_TRACK_SYNC, i + 1, 0, false)) {
            uint32_t state = state_at(i, at);
            assert_true(state != VFMIG_STATE_RUNNING && state != VFMIG_STATE_PRE_COPY);
            reads += at < stop_begin();
        }
    return reads;
}

static void c68(void)
{
    assert_int_equal(memory_differs, 0);
    assert_int_equal(devices_differ, 0);
    assert_true(quiet_reads() >= DEVICES);
    for (uint32_t i = 0; i < DEVICES; i++) {
        /* There and back: pre-copy goes on, and what it said is not asked for again (A19). */
        assert_before(first(RIG_SOURCE, RIG_SET_STATE, i, VFMIG_STATE_PRE_COPY_NDMA, true),
                      last(RIG_SOURCE, RIG_SET_STATE, i, VFMIG_STATE_PRE_COPY, true));
        assert_true(rig.side[RIG_SOURCE].trackers[i + 1].splits > 0);
    }
    rig_assert_moved(&rig);
}

/* With a device that cannot be quiet nobody's log is read before all are stopped. */
static void c68_mixed(void)
{
    assert_int_equal(memory_differs, 0);
    assert_int_equal(devices_differ, 0);
    assert_int_equal(quiet_reads(), 0);
    for (uint32_t i = 0; i < DEVICES; i++)
        assert_true(rig.side[RIG_SOURCE].trackers[i + 1].splits > 0);
    rig_assert_moved(&rig);
}

static const uint32_t same[DEVICES] = {FULL, FULL, FULL};
static const uint32_t mixed[DEVICES] = {FULL, PLAIN, QUIET};

static const struct clause {
    const char *name;
    void (*check)(void);
    const uint32_t *features;
    bool split_logs;
} clauses[] = {
    {"C7", c7, same},   {"C8", c8, same},    {"C9", c9, same},   {"C10", c10, same},
    {"C11", c11, same}, {"C12", c12, same},  {"C13", c13, same}, {"C14", c14, same},
    {"C15", c15, same}, {"C16", c16, same},  {"C17", c17, same}, {"C18", c18, same},
    {"C19", c19, same}, {"C29", c29, same},  {"C36", c36, same}, {"C39", c39, same},
    {"C48", c48, same}, {"C55", c55, same},  {"C58", c58, same}, {"C61", c61, same},
    {"C62", c62, same}, {"C68", c68, same, true}, {"C68", c68_mixed, mixed, true},
    {"C69", c69, mixed},
};

static const struct clause *chosen;

static void holds(void **state)
{
    split_logs = chosen->split_logs;
    migrate(chosen->features);
    rig_end_log(&rig);
    chosen->check();
    rig_close(&rig);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(holds)};
    int failed = 0;

    for (size_t i = 0; i < sizeof(clauses) / sizeof(clauses[0]); i++) {
        if (argc > 1 && strcmp(argv[1], clauses[i].name))
            continue;
        chosen = &clauses[i];
        failed |= cmocka_run_group_tests_name(chosen->name, tests, NULL, NULL);
    }
    return failed || !chosen;
}
