/* SPDX-License-Identifier: BSD-3-Clause */
/* C71 at the destination: what a device's handles stand for here is asked of the VMM when its data is
 * loaded and before Z is left, and a handle without an answer keeps the guest where it is. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "rig.h"

#define FULL (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)

/* Device 0 uses none. */
enum { DEVICES = 3, USERS = DEVICES - 1, HANDLES = 2 };
static struct rig rig;
static struct vfmig_target_ops target_ops;
static struct vfmig_vm_ops vm_ops;

static struct vfmig_handle handles[DEVICES][HANDLES];
static unsigned gets[DEVICES], sets[DEVICES], left_z[DEVICES];
static int get_error;

static uint64_t host_value(uint32_t device, uint32_t kind, uint32_t number)
{
    return device * 1000 + kind * 100 + number;
}

static int get_handles(struct vfmig_target *t, struct vfmig_handle *ret_handles, uint32_t room,
                       uint32_t *ret_count, struct vfmig_error *reterr)
{
    struct rig_device *dev = (struct rig_device *)t;

    assert_true(dev->vm->side == RIG_DEST && room >= HANDLES);
    assert_true(dev->state == VFMIG_STATE_RESUMING && dev->last_seen); /* all of it is loaded */
    gets[dev->index]++;
    if (get_error && dev->index == DEVICES - 1)
        return vfmig_error_set(reterr, get_error, VFMIG_ORIGIN_PEER, 0, "it does not say");
    *ret_count = dev->index ? HANDLES : 0;
    memcpy(ret_handles, handles[dev->index], *ret_count * sizeof(handles[0][0]));
    return 0;
}

static int set_handles(struct vfmig_target *t, const struct vfmig_handle *new, uint32_t count,
                       struct vfmig_error *reterr)
{
    struct rig_device *dev = (struct rig_device *)t;

    assert_int_equal(dev->state, VFMIG_STATE_RESUMING);
    assert_int_equal(count, HANDLES);
    sets[dev->index]++;
    memcpy(handles[dev->index], new, count * sizeof(*new));
    return 0;
}

static void on_state(struct rig_device *dev, enum vfmig_state state)
{
    left_z[dev->index] += gets[dev->index] && state == VFMIG_STATE_STOP;
}

static int translate(void *opaque, uint32_t device, uint32_t kind, uint32_t number,
                     uint64_t *ret_value, struct vfmig_error *reterr)
{
    *ret_value = host_value(device, kind, number);
    return 0;
}

static int translate_some(void *opaque, uint32_t device, uint32_t kind, uint32_t number,
                          uint64_t *ret_value, struct vfmig_error *reterr)
{
    if (device == DEVICES - 1 && kind == VFMIG_HANDLE_IMS)
        return vfmig_error_set(reterr, -ENOSPC, VFMIG_ORIGIN_LOCAL, 0, "no interrupt is left");
    return translate(opaque, device, kind, number, ret_value, reterr);
}

static void start(int (*callback)(void *, uint32_t, uint32_t, uint32_t, uint64_t *,
                                  struct vfmig_error *),
                  uint64_t value)
{
    static const uint32_t features[DEVICES] = {FULL, FULL, FULL};

    memset(gets, 0, sizeof(gets));
    memset(sets, 0, sizeof(sets));
    memset(left_z, 0, sizeof(left_z));
    rig_open(&rig, DEVICES, features, false);
    target_ops = *rig.side[RIG_DEST].devices[0].base.ops;
    target_ops.get_handles = get_handles;
    target_ops.set_handles = set_handles;
    vm_ops = *rig.side[RIG_DEST].vm.ops;
    vm_ops.translate_handle = callback;
    rig.side[RIG_DEST].vm.ops = &vm_ops;
    for (uint32_t i = 0; i < DEVICES; i++) {
        rig.side[RIG_DEST].devices[i].base.ops = &target_ops;
        rig.side[RIG_DEST].devices[i].on_state = on_state;
        handles[i][0] = (struct vfmig_handle){VFMIG_HANDLE_PASID, 5, value};
        handles[i][1] = (struct vfmig_handle){VFMIG_HANDLE_IMS, 9, value};
    }
    rig_start(&rig);
}

static void each_is_asked_for_before_z_is_left(void **state)
{
    start(translate, VFMIG_HANDLE_UNMAPPED);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    for (uint32_t i = 0; i < DEVICES; i++) {
        assert_int_equal(gets[i], 1);
        assert_int_equal(sets[i], i > 0);
        assert_int_equal(left_z[i], 1);
        for (uint32_t k = 0; i && k < HANDLES; k++)
            assert_int_equal(handles[i][k].value,
                             host_value(i, handles[i][k].kind, handles[i][k].number));
    }
    rig_assert_moved(&rig);
    rig_close(&rig);
}

/* The guest is where it was; no device left Z, the last one was told nothing. */
static void assert_refused(const char *why)
{
    struct vfmig_progress progress;

    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_FAILED);
    vfmig_source_status(rig.source, &progress);
    if (!strstr(progress.error.text, why))
        fail_msg("%s", progress.error.text);
    assert_int_equal(sets[DEVICES - 1], 0);
    for (uint32_t i = 0; i < DEVICES; i++)
        assert_int_equal(left_z[i], 0);
    rig_assert_source_runs(&rig);
    rig_close(&rig);
}

static void one_that_nobody_knows_is_refused(void **state)
{
    start(NULL, VFMIG_HANDLE_UNMAPPED);
    assert_refused("PASID handle 5, which stands for nothing on this host");
}

static void the_vmm_may_refuse(void **state)
{
    start(translate_some, VFMIG_HANDLE_UNMAPPED);
    assert_refused("dev2: it uses IMS handle 9, which this VMM refuses: no interrupt is left");
}

static void a_device_that_does_not_say_is_refused(void **state)
{
    get_error = -EIO;
    start(translate, VFMIG_HANDLE_UNMAPPED);
    assert_refused("it does not say");
    get_error = 0;
}

static void values_given_beforehand_are_good(void **state)
{
    start(NULL, 77);
    assert_int_equal(rig_wait(&rig), VFMIG_MIGRATE_COMPLETED);
    assert_int_equal(vfmig_destination_wait(rig.destination, 10000000000, NULL), 0);
    assert_int_equal(handles[1][0].value, 77);
    rig_assert_moved(&rig);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_is_asked_for_before_z_is_left),
        cmocka_unit_test(one_that_nobody_knows_is_refused),
        cmocka_unit_test(the_vmm_may_refuse),
        cmocka_unit_test(a_device_that_does_not_say_is_refused),
        cmocka_unit_test(values_given_beforehand_are_good),
    };

    return cmocka_run_group_tests_name("handles", tests, NULL, NULL);
}
