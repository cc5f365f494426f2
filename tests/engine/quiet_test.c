/* SPDX-License-Identifier: BSD-3-Clause */
/* Who still writes memory after the snapshot in the grace state: a device whose N stops nothing but
 * DMA to peers, one without N until it stops, and the VMM itself for a DMA by message. Their writes
 * are made right after that snapshot was read; the second one must find them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "rig.h"

#define FULL  (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define QUIET (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA)
#define PLAIN (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_PRE_COPY)
#define MARK  UINT64_C(0x7666696d69670000)

/* Devices 0: quiet, 1 and 2: only to peers, with and without pre-copy, 3: no NDMA. */
enum { DEVICES = 4, OWN = DEVICES, WRITERS };
static const uint32_t features[DEVICES] = {FULL, FULL, QUIET, PLAIN};
static struct rig rig;

static bool in_grace; /* the next reading of the log is the first snapshot */
static bool written[WRITERS];       /* between the two */
static bool written_before[WRITERS]; /* after N was reached, before the first */
static uint64_t arrived[WRITERS], arrived_before[WRITERS];

static void write_all(bool *did, uint64_t page)
{
    struct rig_vm *source = &rig.side[RIG_SOURCE];

    for (uint32_t i = 0; i < DEVICES; i++)
        did[i] = rig_dma(&source->devices[i], page + i, MARK + page + i);
    rig_write(source, 0, page + OWN, MARK + page + OWN);
    did[OWN] = true;
}

static void watch(struct rig *r, const struct rig_entry *entry)
{
    uint32_t last_tracker = DEVICES;

    /* All are in N by now, and the guest's faults are dealt with. */
    if (entry->side == RIG_SOURCE && entry->op == RIG_VIOMMU_IDLE && entry->end) {
        write_all(written_before, RIG_FREE_PAGE);
        in_grace = true;
    }
    if (entry->side == RIG_SOURCE && entry->op == RIG_TRACK_SYNC && entry->end && in_grace &&
        entry->device == last_tracker) {
        in_grace = false;
        write_all(written, RIG_FREE_PAGE + WRITERS);
    }
    /* Nothing has written at the destination yet. */
    if (entry->side != RIG_DEST || entry->op != RIG_STATE_LOAD || entry->end)
        return;
    for (uint32_t i = 0; i < WRITERS; i++) {
        arrived_before[i] = rig_read(&r->side[RIG_DEST], RIG_FREE_PAGE + i);
        arrived[i] = rig_read(&r->side[RIG_DEST], RIG_FREE_PAGE + WRITERS + i);
    }
}

static void no_page_is_lost(void **state)
{
    in_grace = false;
    memset(written, 0, sizeof(written));
    memset(arrived, 0, sizeof(arrived));
    rig_open(&rig, DEVICES, features, false);
    for (unsigned side = 0; side < 2; side++)
        for (uint32_t i = 1; i <= 2; i++)
            rig.side[side].devices[i].base.info.quiet = VFMIG_QUIET_P2P;
    rig.watch = watch;
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    /* N of the first one is whole; all the others did write, both times. */
    for (uint32_t i = 0; i < WRITERS; i++) {
        assert_int_equal(written_before[i], i > 0);
        assert_true(arrived_before[i] == (i ? MARK + RIG_FREE_PAGE + i : 0));
        assert_int_equal(written[i], i > 0);
        assert_true(arrived[i] == (i ? MARK + RIG_FREE_PAGE + WRITERS + i : 0));
    }
    rig_assert_moved(&rig);
    rig_close(&rig);
}

/* C68: where one device has no N, a log that is read and cleared in two steps waits until all are stopped. */
static void a_split_log_is_not_read_beside_one_that_is_never_quiet(void **state)
{
    static const uint32_t mixed[] = {FULL, PLAIN};

    rig_open(&rig, 2, mixed, false);
    rig_split_logs(&rig);
    rig_start(&rig);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    rig_end_log(&rig);
    uint32_t stopped = rig_find(&rig, 0, RIG_SOURCE, RIG_VCPU_STOP, RIG_ANY, RIG_ANY, true);
    for (uint32_t i = 0; i < 2; i++)
        assert_true(rig_find(&rig, 0, RIG_SOURCE, RIG_TRACK_SYNC, i + 1, RIG_ANY, false) > stopped);
    rig_assert_moved(&rig);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_page_is_lost),
        cmocka_unit_test(a_split_log_is_not_read_beside_one_that_is_never_quiet),
    };

    return cmocka_run_group_tests_name("quiet", tests, NULL, NULL);
}
