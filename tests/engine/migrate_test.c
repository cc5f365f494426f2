/* SPDX-License-Identifier: BSD-3-Clause */
/* Whole migrations between two sides in one process. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "rig.h"

#define FULL  (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define PLAIN (VFMIG_FEATURE_STOP_COPY)
#define QUIET (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA)

static const uint32_t features[RIG_MAX_DEVICES] = {FULL, FULL, QUIET, PLAIN};
static struct rig rig;

/* Compares at the one moment when neither side runs: right before the destination's vCPUs start. */
static int memory_differs, devices_differ;

static void compare(struct rig *r, const struct rig_entry *entry)
{
    struct rig_vm *source = &r->side[RIG_SOURCE], *dest = &r->side[RIG_DEST];

    if (entry->side != RIG_DEST || entry->op != RIG_VCPU_START || entry->end)
        return;
    memory_differs = devices_differ = 0;
    for (unsigned b = 0; b < 2; b++)
        memory_differs |= memcmp(source->blocks[b].host, dest->blocks[b].host, source->blocks[b].size);
    for (uint32_t i = 0; i < source->vm.device_count; i++)
        devices_differ |= memcmp(source->devices[i].content, dest->devices[i].content,
                                 RIG_STATE_BYTES) ||
                          memcmp(source->devices[i].external, dest->devices[i].external, 64);
}

static void moves(uint32_t device_count, bool tcp, uint32_t channels)
{
    struct vfmig_progress progress;

    rig_open(&rig, device_count, features, tcp);
    rig.watch = compare;
    memory_differs = devices_differ = -1;
    rig.options.channels = channels;
    rig_start(&rig);
    enum vfmig_migrate_state state = rig_wait(&rig);
    vfmig_source_status(rig.source, &progress);
    if (state != VFMIG_MIGRATE_COMPLETED)
        print_error("%s: %s\n", vfmig_migrate_state_name(state), progress.error.text);
    assert_int_equal(state, VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    assert_int_equal(devices_differ, 0);
    /* DMA of a device without N goes on at the destination once it is in R. */
    assert_true(memory_differs == 0 || device_count > 0);
    rig_assert_moved(&rig);
    assert_true(progress.rounds >= 2);
    assert_true(progress.downtime.total_ns > 0);
    assert_true(progress.working_set_pages > 0);
    assert_true(progress.memory_running_bytes >= progress.memory_bytes);
    assert_true(progress.steps[VFMIG_STEP_S3].end_ns >= progress.steps[VFMIG_STEP_S3].start_ns);
    assert_int_equal(progress.error.code, 0);
    rig_close(&rig);
}

static void a_guest_without_devices(void **state)
{
    moves(0, false, 1);
    assert_int_equal(memory_differs, 0);
}

static void a_guest_with_devices(void **state)
{
    moves(1, true, 2);
    moves(4, true, 2);
    moves(3, false, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_guest_without_devices),
        cmocka_unit_test(a_guest_with_devices),
    };
    return cmocka_run_group_tests_name("migrate", tests, NULL, NULL);
}
