/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest's peer to peer DMA against two models of the device that reach each other: it is driven,
 * and a write that is lost, torn, doubled or late is noticed. Argument: kvm or none. */
#include "dma_model.h"

#include <errno.h>

#define BAR_STEP 0x100000u

static enum vfmig_accel accel;

struct pair {
    struct model model[2];
};

/* The two reach into each other without a lock. Whoever looks beside the writer takes the first word
 * only, which is never seen in half. */
static void pair_mmio(void *opaque, uint32_t vcpu, uint64_t gpa, bool is_write, void *data,
                      uint32_t size)
{
    struct pair *pair = opaque;
    model_mmio(&pair->model[gpa >= MODEL_BAR + BAR_STEP], vcpu, gpa, is_write, data, size);
}

static void pair_open(struct pair *pair, struct rig_vm *vm)
{
    rig_open(vm, accel, pair_mmio, pair);
    for (uint32_t i = 0; i < 2; i++) {
        struct model *d = &pair->model[i];
        model_open(d, vm);
        pthread_mutex_lock(&d->lock);
        d->bar = MODEL_BAR + i * BAR_STEP;
        d->first_gsi = i * GUEST_VECTORS;
        d->peer = &pair->model[1 - i];
        pthread_mutex_unlock(&d->lock);
    }
    struct vfmig_guest_config guest = {.working_set_bytes = 4u << 20,
                                       .rate_mib_s = 20,
                                       .irq_timeout_ms = 60000,
                                       .timer_hz = GUEST_TIMER_OFF,
                                       .dma_bytes = 1024,
                                       .device_count = 2,
                                       .device_bar = {MODEL_BAR, MODEL_BAR + BAR_STEP},
                                       .device_peer = {2, 1}};
    RIG_OK(vfmig_machine_load_guest(vm->machine, &guest, &rig_error));
    RIG_OK(vfmig_machine_start(vm->machine, &rig_error));
}

static void pair_close(struct pair *pair, struct rig_vm *vm)
{
    RIG_OK(vfmig_machine_stop(vm->machine, &rig_error));
    for (uint32_t i = 0; i < 2; i++)
        model_close(&pair->model[i]);
    rig_close(vm);
}

static void test_drives(void **state)
{
    struct rig_vm vm;
    struct pair pair;
    (void)state;
    pair_open(&pair, &vm);
    for (int i = 0; i < 2; i++) {
        const struct guest_device_score *score = &rig_score(&vm)->device[i];
        rig_progress(&vm, &score->p2p_done, 200);
        rig_progress(&vm, &score->p2p_checked, 200);
        rig_progress(&vm, &score->p2p_looks, 100);
        rig_progress(&vm, &score->irqs[i], 2);
    }
    rig_no_errors(&vm);
    pair_close(&pair, &vm);
}

static void assert_noticed(enum model_fault fault)
{
    struct rig_vm vm;
    struct pair pair;
    pair_open(&pair, &vm);
    /* Every block has been written, so that there is an older write to be found. */
    rig_progress(&vm, &rig_score(&vm)->device[1].p2p_done, 2 * GUEST_PEER_BLOCKS);
    model_set_fault(&pair.model[1], fault);
    for (uint32_t ms = 0; !__atomic_load_n(&rig_score(&vm)->first_error, __ATOMIC_ACQUIRE); ms++) {
        assert_true(ms < RIG_WAIT_MS);
        usleep(1000);
    }
    assert_int_equal(rig_score(&vm)->first_error, GUEST_ERROR_P2P);
    pair_close(&pair, &vm);
}

static void test_notices_a_lost_write(void **state)
{
    (void)state;
    assert_noticed(MODEL_LOSE_P2P);
}

static void test_notices_a_torn_write(void **state)
{
    (void)state;
    assert_noticed(MODEL_TEAR_P2P);
}

static void test_notices_a_doubled_write(void **state)
{
    (void)state;
    assert_noticed(MODEL_TWICE_P2P);
}

static void test_notices_a_late_write(void **state)
{
    (void)state;
    assert_noticed(MODEL_LATE_P2P);
}

static void test_a_peer_must_be_another_device(void **state)
{
    (void)state;
    for (uint32_t peer = 1; peer < 4; peer += 2) {
        struct rig_vm vm;
        struct pair pair;
        rig_open(&vm, accel, pair_mmio, &pair);
        struct vfmig_guest_config guest = {.working_set_bytes = 4u << 20,
                                           .device_count = 2,
                                           .device_bar = {MODEL_BAR, MODEL_BAR + BAR_STEP},
                                           .device_peer = {peer}};
        assert_int_equal(vfmig_machine_load_guest(vm.machine, &guest, &rig_error), -EINVAL);
        rig_close(&vm);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2 || vfmig_accel_parse(argv[1], &accel) < 0)
        return 2;
    if (accel == VFMIG_ACCEL_KVM && access("/dev/kvm", R_OK | W_OK) < 0) {
        printf("SKIPPED: /dev/kvm cannot be used here, nothing of the kvm accelerator was tested\n");
        return RIG_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drives),
        cmocka_unit_test(test_notices_a_lost_write),
        cmocka_unit_test(test_notices_a_torn_write),
        cmocka_unit_test(test_notices_a_doubled_write),
        cmocka_unit_test(test_notices_a_late_write),
        cmocka_unit_test(test_a_peer_must_be_another_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
