/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest's dma driver against a model of the device: it drives it, moves with it, and notices
 * every fault the model can make. Argument: kvm or none. */
#include "dma_model.h"

#include <errno.h>

static enum vfmig_accel accel;

static struct vfmig_guest_config guest_config(void)
{
    return (struct vfmig_guest_config){.working_set_bytes = 4u << 20,
                                       .rate_mib_s = 20,
                                       .irq_timeout_ms = 60000,
                                       .dma_bytes = 1024,
                                       .device_count = 1,
                                       .device_bar = {MODEL_BAR}};
}

static void test_drives(void **state)
{
    (void)state;
    struct rig_vm vm;
    struct model model;
    rig_open(&vm, accel, model_mmio, &model);
    model_open(&model, &vm);
    struct vfmig_guest_config guest = guest_config();
    RIG_OK(vfmig_machine_load_guest(vm.machine, &guest, &rig_error));
    RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    const struct guest_device_score *score = &rig_score(&vm)->device[0];
    rig_progress(&vm, &score->checked, 1500);
    for (int v = 0; v < 4; v++)
        rig_progress(&vm, &score->irqs[v], 10);
    rig_progress(&vm, &score->sram_checks, 20);
    rig_progress(&vm, &score->irq_remaps, 13); /* every pair, and once more */
    assert_true(score->targets_rechecked > 500);
    RIG_OK(vfmig_machine_stop(vm.machine, &rig_error));
    model_close(&model);
    rig_no_errors(&vm);
    rig_close(&vm);
}

static void test_moves(void **state)
{
    (void)state;
    struct rig_vm vm[2];
    struct model model;
    rig_open(&vm[0], accel, model_mmio, &model);
    rig_open(&vm[1], accel, model_mmio, &model);
    model_open(&model, &vm[0]);
    struct vfmig_guest_config guest = guest_config();
    RIG_OK(vfmig_machine_load_guest(vm[0].machine, &guest, &rig_error));
    RIG_OK(vfmig_machine_start(vm[0].machine, &rig_error));
    for (int i = 0; i < 20; i++) {
        struct rig_vm *from = &vm[i % 2], *to = &vm[1 - i % 2];
        rig_progress(from, &rig_score(from)->device[0].checked, 50);
        rig_progress(from, &rig_score(from)->device[0].irqs[i % 4], 1);
        if (i % 4 >= 2) /* the device still works, and interrupts, while the vCPUs are parked */
            RIG_OK(vfmig_machine_stop(from->machine, &rig_error));
        model_set_quiet(&model, true);
        rig_move(from, to);
        model_move(&model, to);
        RIG_OK(vfmig_machine_start(to->machine, &rig_error));
        model_set_quiet(&model, false);
    }
    rig_progress(&vm[0], &rig_score(&vm[0])->device[0].targets_rechecked, 300);
    for (int v = 0; v < 4; v++)
        rig_progress(&vm[0], &rig_score(&vm[0])->device[0].irqs[v], 2);
    rig_no_errors(&vm[0]);
    model_close(&model);
    rig_close(&vm[0]);
    rig_close(&vm[1]);
}

/* The access at which a vCPU is held until the machine is told to stop. */
static struct {
    bool is_write, armed, held;
} hold;

static void holding_mmio(void *opaque, uint32_t vcpu, uint64_t gpa, bool is_write, void *data,
                         uint32_t size)
{
    struct model *d = opaque;
    if (is_write == hold.is_write && __atomic_exchange_n(&hold.armed, false, __ATOMIC_ACQ_REL)) {
        struct vfmig_machine *machine = d->vm->machine;
        __atomic_store_n(&hold.held, true, __ATOMIC_RELEASE);
        while (vfmig_machine_running(machine))
            usleep(100);
    }
    model_mmio(opaque, vcpu, gpa, is_write, data, size);
}

/* The stop always finds an exit that is not finished; a read that were lost or done twice would
 * show in what the guest finds in the device, a lost doorbell in a ring that stands still. */
static void stop_in(bool is_write)
{
    struct rig_vm vm[2];
    struct model model;
    rig_open(&vm[0], accel, holding_mmio, &model);
    rig_open(&vm[1], accel, holding_mmio, &model);
    model_open(&model, &vm[0]);
    struct vfmig_guest_config guest = guest_config();
    RIG_OK(vfmig_machine_load_guest(vm[0].machine, &guest, &rig_error));
    RIG_OK(vfmig_machine_start(vm[0].machine, &rig_error));
    hold.is_write = is_write;
    for (int i = 0; i < 6; i++) {
        struct rig_vm *from = &vm[i % 2], *to = &vm[1 - i % 2];
        rig_progress(from, &rig_score(from)->device[0].checked, 20);
        __atomic_store_n(&hold.held, false, __ATOMIC_RELEASE);
        __atomic_store_n(&hold.armed, true, __ATOMIC_RELEASE);
        while (!__atomic_load_n(&hold.held, __ATOMIC_ACQUIRE))
            usleep(100);
        RIG_OK(vfmig_machine_stop(from->machine, &rig_error));
        model_set_quiet(&model, true);
        rig_move(from, to);
        model_move(&model, to);
        RIG_OK(vfmig_machine_start(to->machine, &rig_error));
        model_set_quiet(&model, false);
    }
    rig_progress(&vm[0], &rig_score(&vm[0])->device[0].checked, 100);
    rig_progress(&vm[0], &rig_score(&vm[0])->device[0].sram_checks, 16);
    rig_no_errors(&vm[0]);
    RIG_OK(vfmig_machine_stop(vm[0].machine, &rig_error));
    model_close(&model); /* before the memory that it does DMA in */
    rig_close(&vm[1]);
    rig_close(&vm[0]);
}

static void test_stops_in_a_read(void **state)
{
    (void)state;
    stop_in(false);
}

static void test_stops_in_a_write(void **state)
{
    (void)state;
    stop_in(true);
}

/* An interrupt that is in nobody's hands when the vCPUs are parked: flush finds it. */
static void test_flush_finds_interrupts(void **state)
{
    (void)state;
    struct rig_vm vm[2];
    struct model model;
    rig_open(&vm[0], accel, model_mmio, &model);
    rig_open(&vm[1], accel, model_mmio, &model);
    model_open(&model, &vm[0]);
    struct vfmig_guest_config guest = guest_config();
    RIG_OK(vfmig_machine_load_guest(vm[0].machine, &guest, &rig_error));
    RIG_OK(vfmig_machine_start(vm[0].machine, &rig_error));
    rig_progress(&vm[0], &rig_score(&vm[0])->device[0].checked, 50);
    RIG_OK(vfmig_machine_stop(vm[0].machine, &rig_error));
    /* The device goes on with stopped vCPUs until its queue is empty, interrupts included. */
    for (bool idle = false; !idle;) {
        pthread_mutex_lock(&model.lock);
        idle = model.head == model.tail;
        pthread_mutex_unlock(&model.lock);
    }
    model_set_quiet(&model, true);
    RIG_OK(vfmig_machine_flush_irqs(vm[0].machine, NULL, &rig_error));
    eventfd_write(model.irq_fd[0], 1); /* one more, of a vector that may have none outstanding */
    uint32_t unread = 0;
    RIG_OK(vfmig_machine_flush_irqs(vm[0].machine, &unread, &rig_error));
    assert_true(unread <= 1);
    if (accel == VFMIG_ACCEL_KVM)
        assert_int_equal(unread, 1);
    rig_close(&vm[1]);
    model_close(&model);
    rig_close(&vm[0]);
}

static uint32_t error_after(enum model_fault fault, uint32_t irq_timeout_ms)
{
    struct rig_vm vm;
    struct model model;
    rig_open(&vm, accel, model_mmio, &model);
    model_open(&model, &vm);
    struct vfmig_guest_config guest = guest_config();
    guest.irq_timeout_ms = irq_timeout_ms;
    guest.timer_hz = GUEST_TIMER_OFF;
    RIG_OK(vfmig_machine_load_guest(vm.machine, &guest, &rig_error));
    RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    rig_progress(&vm, &rig_score(&vm)->device[0].checked, 100);
    model_set_fault(&model, fault);
    uint32_t ms = 0;
    while (!__atomic_load_n(&rig_score(&vm)->first_error, __ATOMIC_ACQUIRE) && ms++ < RIG_WAIT_MS)
        usleep(1000);
    RIG_OK(vfmig_machine_stop(vm.machine, &rig_error));
    uint32_t error = rig_score(&vm)->first_error;
    model_close(&model);
    rig_close(&vm);
    return error;
}

static void test_notices_faults(void **state)
{
    (void)state;
    assert_int_equal(error_after(MODEL_EXTRA_IRQ, 60000), GUEST_ERROR_IRQ_TWICE);
    assert_int_equal(error_after(MODEL_SKIP_SERIAL, 60000), GUEST_ERROR_SERIAL);
    assert_int_equal(error_after(MODEL_WRONG_DATA, 60000), GUEST_ERROR_RESULT);
    assert_int_equal(error_after(MODEL_WRONG_CRC, 60000), GUEST_ERROR_RESULT);
    assert_int_equal(error_after(MODEL_FAIL, 60000), GUEST_ERROR_STATUS);
    assert_int_equal(error_after(MODEL_LOSE_SRAM, 60000), GUEST_ERROR_SRAM);
    assert_int_equal(error_after(MODEL_LOSE_REGISTERS, 60000), GUEST_ERROR_DEVICE);
}

/* 500 ms of the guest's own running time: an interrupt of the good model takes microseconds. */
static void test_notices_lost_interrupt(void **state)
{
    (void)state;
    assert_int_equal(error_after(MODEL_DROP_IRQ, 500), GUEST_ERROR_IRQ_LOST);
}

static void test_notices_stale_target(void **state)
{
    (void)state;
    struct rig_vm vm;
    struct model model;
    rig_open(&vm, accel, model_mmio, &model);
    model_open(&model, &vm);
    struct vfmig_guest_config guest = guest_config();
    RIG_OK(vfmig_machine_load_guest(vm.machine, &guest, &rig_error));
    RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    rig_progress(&vm, &rig_score(&vm)->device[0].targets_rechecked, 300);
    model_set_quiet(&model, true);
    RIG_OK(vfmig_machine_stop(vm.machine, &rig_error));
    /* Every target page goes back to what it was at the start. */
    const struct guest_params *params = model_at(&model, GUEST_PARAMS, sizeof(*params));
    uint64_t heap = params->devices[0].heap_gpa, end = params->table_gpa;
    memset(model_at(&model, end - 256 * 4096, 256 * 4096), 0, 256 * 4096);
    assert_true(heap < end - 256 * 4096);
    RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    uint32_t ms = 0;
    while (!__atomic_load_n(&rig_score(&vm)->first_error, __ATOMIC_ACQUIRE) && ms++ < RIG_WAIT_MS) {
        model_set_quiet(&model, false);
        usleep(1000);
    }
    RIG_OK(vfmig_machine_stop(vm.machine, &rig_error));
    uint32_t error = rig_score(&vm)->first_error;
    assert_true(error == GUEST_ERROR_STALE_DMA || error == GUEST_ERROR_RESULT);
    model_close(&model);
    rig_close(&vm);
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
        cmocka_unit_test(test_moves),
        cmocka_unit_test(test_stops_in_a_read),
        cmocka_unit_test(test_stops_in_a_write),
        cmocka_unit_test(test_flush_finds_interrupts),
        cmocka_unit_test(test_notices_faults),
        cmocka_unit_test(test_notices_lost_interrupt),
        cmocka_unit_test(test_notices_stale_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
