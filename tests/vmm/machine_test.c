/* SPDX-License-Identifier: BSD-3-Clause */
/* The machine with its guest, by either accelerator (argument: kvm or none): it works, it stops
 * wherever it is, it moves. */
#include "machine_rig.h"

#include <errno.h>
#include <sys/eventfd.h>

#include "vmm/machine_internal.h"

static enum vfmig_accel accel;

static const struct vfmig_guest_config small_guest = {
    .working_set_bytes = 16u << 20, .rate_mib_s = 200, .irq_timeout_ms = 60000};

static uint64_t monotonic_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void test_guest_works(void **state)
{
    (void)state;
    struct rig_vm vm;
    rig_open(&vm, accel, NULL, NULL);
    RIG_OK(vfmig_machine_load_guest(vm.machine, &small_guest, &rig_error));
    assert_false(vfmig_machine_running(vm.machine));
    assert_int_equal(vfmig_machine_run_since(vm.machine), 0);
    uint64_t begin_ns = monotonic_ns();
    RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    assert_true(vfmig_machine_running(vm.machine));
    const struct guest_scoreboard *score = rig_score(&vm);
    for (int i = 0; i < 2; i++) {
        rig_progress(&vm, &score->cpu[i].cycles, 2);
        assert_true(score->cpu[i].pages_verified >= 2 * 2048);
        assert_true(score->cpu[i].sleeps > 0);
    }
    assert_in_range(vfmig_machine_run_since(vm.machine), begin_ns, monotonic_ns());
    if (accel == VFMIG_ACCEL_KVM) {
        rig_progress(&vm, &score->cpu[1].ticks, 2);
        rig_progress(&vm, &score->cpu[1].register_checks, 2);
    }
    RIG_OK(vfmig_machine_stop(vm.machine, &rig_error));
    struct guest_scoreboard before = *score;
    RIG_OK(vfmig_machine_stop(vm.machine, &rig_error)); /* again is fine */
    assert_int_equal(vfmig_machine_run_since(vm.machine), 0);
    struct timespec wait = {.tv_nsec = 30000000};
    nanosleep(&wait, NULL); /* time enough for a vCPU that were still running to show it */
    assert_memory_equal(score, &before, sizeof(before));
    rig_close(&vm);
}

static void test_stale_page_is_noticed(void **state)
{
    (void)state;
    struct rig_vm vm;
    rig_open(&vm, accel, NULL, NULL);
    RIG_OK(vfmig_machine_load_guest(vm.machine, &small_guest, &rig_error));
    const struct guest_params *params =
        (const void *)((const uint8_t *)vm.block.host + GUEST_PARAMS);
    uint8_t *page = (uint8_t *)vm.block.host + params->working_gpa + 77 * 4096;
    uint8_t old[4096];
    const struct guest_scoreboard *score = rig_score(&vm);
    RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    rig_progress(&vm, &score->cpu[0].cycles, 1);
    RIG_OK(vfmig_machine_stop(vm.machine, &rig_error));
    memcpy(old, page, sizeof(old));
    RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    rig_progress(&vm, &score->cpu[0].cycles, 1);
    RIG_OK(vfmig_machine_stop(vm.machine, &rig_error));
    memcpy(page, old, sizeof(old)); /* what a migration that lost this page would leave */
    uint64_t cycles = score->cpu[0].cycles;
    RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    while (__atomic_load_n(&score->cpu[0].cycles, __ATOMIC_RELAXED) < cycles + 2 &&
           !__atomic_load_n(&score->first_error, __ATOMIC_ACQUIRE))
        usleep(1000);
    assert_int_equal(score->first_error, GUEST_ERROR_PAGE);
    assert_int_equal(score->first_detail[0], 77);
    rig_close(&vm);
}

/* 30 ms in nobody's hands: each vCPU sees them, less the sleep in which the stop may have fallen. */
static void test_guest_sees_the_pause(void **state)
{
    (void)state;
    struct rig_vm vm[2];
    rig_open(&vm[0], accel, NULL, NULL);
    rig_open(&vm[1], accel, NULL, NULL);
    RIG_OK(vfmig_machine_load_guest(vm[0].machine, &small_guest, &rig_error));
    RIG_OK(vfmig_machine_start(vm[0].machine, &rig_error));
    rig_progress(&vm[0], &rig_score(&vm[0])->cpu[1].heartbeats, 10);
    rig_move(&vm[0], &vm[1]);
    struct timespec pause = {.tv_nsec = 30000000};
    nanosleep(&pause, NULL);
    RIG_OK(vfmig_machine_start(vm[1].machine, &rig_error));
    for (int i = 0; i < 2; i++) {
        const struct guest_cpu_score *score = &rig_score(&vm[1])->cpu[i];
        rig_progress(&vm[1], &score->heartbeats, 2);
        assert_int_equal(score->moves, 1);
        assert_true(score->pause_move_ns >= 29000000);
        assert_true(score->pause_max_ns >= score->pause_move_ns);
    }
    vfmig_machine_reset_pause(vm[1].machine);
    for (int i = 0; i < 2; i++) {
        const struct guest_cpu_score *score = &rig_score(&vm[1])->cpu[i];
        while (__atomic_load_n(&score->resets, __ATOMIC_ACQUIRE) != 1)
            usleep(1000);
    }
    rig_close(&vm[0]);
    rig_close(&vm[1]);
}

static void move_often(uint32_t idle)
{
    struct rig_vm vm[2];
    rig_open(&vm[0], accel, NULL, NULL);
    rig_open(&vm[1], accel, NULL, NULL);
    struct vfmig_guest_config guest = small_guest;
    guest.idle = idle;
    RIG_OK(vfmig_machine_load_guest(vm[0].machine, &guest, &rig_error));
    RIG_OK(vfmig_machine_start(vm[0].machine, &rig_error));
    for (int i = 0; i < 20; i++) {
        struct rig_vm *from = &vm[i % 2], *to = &vm[1 - i % 2];
        for (int cpu = 0; cpu < 2; cpu++)
            rig_progress(from, &rig_score(from)->cpu[cpu].pages_verified, 300);
        rig_move(from, to);
        RIG_OK(vfmig_machine_start(to->machine, &rig_error));
    }
    for (int cpu = 0; cpu < 2; cpu++)
        rig_progress(&vm[0], &rig_score(&vm[0])->cpu[cpu].cycles, 2);
    rig_no_errors(&vm[0]);
    rig_close(&vm[0]);
    rig_close(&vm[1]);
}

static void test_move_sleeping(void **state)
{
    (void)state;
    move_often(GUEST_IDLE_SLEEP);
}

static void test_move_reading(void **state)
{
    (void)state;
    move_often(GUEST_IDLE_READ);
}

static void test_move_spinning(void **state)
{
    (void)state;
    move_often(GUEST_IDLE_SPIN);
}

static void test_move_halted(void **state)
{
    (void)state;
    if (accel == VFMIG_ACCEL_KVM)
        move_often(GUEST_IDLE_HALT);
}

static void test_blob_is_checked(void **state)
{
    (void)state;
    struct rig_vm vm;
    struct vfmig_buffer blob = {0};
    rig_open(&vm, accel, NULL, NULL);
    RIG_OK(vfmig_machine_load_guest(vm.machine, &small_guest, &rig_error));
    RIG_OK(vfmig_machine_save(vm.machine, &blob, &rig_error));
    RIG_OK(vfmig_machine_load(vm.machine, blob.data, blob.size, &rig_error));
    size_t step = blob.size / 97 + 1;
    for (size_t i = 0; i < blob.size; i += step) {
        blob.data[i] ^= 0x10;
        assert_true(vfmig_machine_load(vm.machine, blob.data, blob.size, &rig_error) < 0);
        blob.data[i] ^= 0x10;
        assert_int_equal(vfmig_machine_load(vm.machine, blob.data, i, &rig_error), -EBADMSG);
    }
    RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    assert_int_equal(vfmig_machine_save(vm.machine, &blob, &rig_error), -EBUSY);
    assert_int_equal(vfmig_machine_load(vm.machine, blob.data, blob.size, &rig_error), -EBUSY);
    vfmig_buffer_free(&blob);
    rig_close(&vm);
}

static void test_identity(void **state)
{
    (void)state;
    struct rig_vm vm[2];
    struct vfmig_buffer text[2] = {{0}, {0}};
    for (int i = 0; i < 2; i++) {
        rig_open(&vm[i], accel, NULL, NULL);
        RIG_OK(vfmig_machine_identity(vm[i].machine, &text[i], &rig_error));
    }
    assert_string_equal((char *)text[0].data, (char *)text[1].data);
    assert_non_null(strstr((char *)text[0].data, "vcpus=2\n"));
    for (int i = 0; i < 2; i++) {
        vfmig_buffer_free(&text[i]);
        rig_close(&vm[i]);
    }
}

/* The guest's sleeps go to an eventfd instead of the machine: nobody sleeps, each is counted. */
static void test_ioeventfd(void **state)
{
    (void)state;
    struct rig_vm vm;
    rig_open(&vm, accel, NULL, NULL);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    uint64_t gpa = GUEST_CONTROL + GUEST_CTL_SLEEP, count = 0;
    int ret = vfmig_machine_ioeventfd(vm.machine, gpa, 4, fd, true, &rig_error);
    if (accel == VFMIG_ACCEL_NONE) {
        assert_int_equal(ret, -ENOTSUP);
    } else {
        RIG_OK(ret);
        RIG_OK(vfmig_machine_load_guest(vm.machine, &small_guest, &rig_error));
        RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
        rig_progress(&vm, &rig_score(&vm)->cpu[0].sleeps, 20);
        RIG_OK(vfmig_machine_stop(vm.machine, &rig_error));
        RIG_OK(vfmig_machine_ioeventfd(vm.machine, gpa, 4, fd, false, &rig_error));
        assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
        uint64_t sleeps = rig_score(&vm)->cpu[0].sleeps + rig_score(&vm)->cpu[1].sleeps;
        assert_true(count >= sleeps && count <= sleeps + 2); /* two may be under way */
    }
    close(fd);
    rig_close(&vm);
}

/* A destination that got nothing, or rubbish, refuses to start. */
static void test_no_guest(void **state)
{
    (void)state;
    struct rig_vm vm;
    rig_open(&vm, accel, NULL, NULL);
    assert_int_equal(vfmig_machine_start(vm.machine, &rig_error), -EINVAL);
    RIG_OK(vfmig_machine_load_guest(vm.machine, &small_guest, &rig_error));
    struct guest_params *params = (void *)((uint8_t *)vm.block.host + GUEST_PARAMS);
    params->vcpu_count = 3;
    assert_int_equal(vfmig_machine_start(vm.machine, &rig_error), -EINVAL);
    params->vcpu_count = 2;
    params->dma_bytes = UINT32_MAX;
    assert_int_equal(vfmig_machine_start(vm.machine, &rig_error), -EINVAL);
    params->dma_bytes = 4096;
    if (accel == VFMIG_ACCEL_NONE) { /* addresses that are not the guest's */
        params->working_gpa = UINT64_C(1) << 40;
        RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
        while (vfmig_machine_failed(vm.machine, &rig_error) == 0)
            usleep(1000);
        assert_non_null(strstr(rig_error.text, "outside"));
    }
    rig_close(&vm);
}

static uint64_t seventh_second(void)
{
    return UINT64_C(7000000000);
}

/* On another host the guest's clock goes on from where it was, the time on the way included. */
static void test_clock_on_another_host(void **state)
{
    (void)state;
    struct machine_tsc tsc;
    machine_tsc_fill(&tsc, seventh_second, 5000, 1000000);
    assert_int_equal(tsc.tsc, UINT64_C(7000005000));
    assert_int_equal(machine_tsc_offset(&tsc, seventh_second), 5000); /* the same host: exact */
    tsc.boot_id[0] ^= 1;
    tsc.realtime_ns -= UINT64_C(2000000000);
    uint64_t now = machine_tsc_offset(&tsc, seventh_second) + seventh_second();
    assert_true(now >= tsc.tsc + UINT64_C(2000000000));
    tsc.realtime_ns += UINT64_C(1000000000000); /* a clock that is behind: never back */
    now = machine_tsc_offset(&tsc, seventh_second) + seventh_second();
    assert_int_equal(now, tsc.tsc);
}

static void test_bad_configs(void **state)
{
    (void)state;
    struct rig_vm vm;
    rig_open(&vm, accel, NULL, NULL);
    struct vfmig_guest_config guest = {.working_set_bytes = 1u << 30};
    assert_int_equal(vfmig_machine_load_guest(vm.machine, &guest, &rig_error), -ENOSPC);
    guest = (struct vfmig_guest_config){.device_count = GUEST_MAX_DEVICES + 1};
    assert_int_equal(vfmig_machine_load_guest(vm.machine, &guest, &rig_error), -EINVAL);
    guest = (struct vfmig_guest_config){.dma_bytes = 100};
    assert_int_equal(vfmig_machine_load_guest(vm.machine, &guest, &rig_error), -EINVAL);
    struct vfmig_machine_config config = {
        .accel = accel, .vcpu_count = 0, .memory = {.blocks = &vm.block, .block_count = 1}};
    struct vfmig_machine *machine;
    assert_int_equal(vfmig_machine_create(&config, &machine, &rig_error), -EINVAL);
    config.vcpu_count = 1;
    vm.block.gpa = 4096;
    assert_int_equal(vfmig_machine_create(&config, &machine, &rig_error), -EINVAL);
    vm.block.gpa = 0;
    rig_close(&vm);
}

static uint64_t clock_of(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* vCPU 0, which always has something to do, while it sleeps for so many periods: its share of the
 * time. A busy host makes the share smaller, never larger. */
static uint64_t share_percent(struct rig_vm *vm, uint64_t turns)
{
    struct machine_vcpu *v = &vm->machine->vcpus[0];
    clockid_t clock;

    assert_int_equal(pthread_getcpuclockid(v->thread, &clock), 0);
    rig_progress(vm, &v->turn, 2);
    uint64_t wall = clock_of(CLOCK_MONOTONIC), cpu = clock_of(clock);
    rig_progress(vm, &v->turn, turns);
    return (clock_of(clock) - cpu) * 100 / (clock_of(CLOCK_MONOTONIC) - wall);
}

static void test_throttle(void **state)
{
    (void)state;
    struct rig_vm vm;
    struct vfmig_guest_config busy = small_guest;
    busy.rate_mib_s = GUEST_RATE_UNLIMITED;
    rig_open(&vm, accel, NULL, NULL);
    RIG_OK(vfmig_machine_load_guest(vm.machine, &busy, &rig_error));
    assert_int_equal(vfmig_machine_throttle(vm.machine, VFMIG_MACHINE_MAX_THROTTLE + 1, &rig_error),
                     -EINVAL);
    RIG_OK(vfmig_machine_throttle(vm.machine, 20, &rig_error)); /* parked ones stay parked */
    RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    const struct guest_scoreboard *score = rig_score(&vm);
    rig_progress(&vm, &score->cpu[0].heartbeats, 2);
    RIG_OK(vfmig_machine_throttle(vm.machine, 80, &rig_error));
    assert_in_range(share_percent(&vm, 10), 0, 40);
    /* A stop does not wait for a sleep to end, nor for anything to begin again. */
    RIG_OK(vfmig_machine_throttle(vm.machine, VFMIG_MACHINE_MAX_THROTTLE, &rig_error));
    for (unsigned i = 0; i < 20; i++) {
        RIG_OK(vfmig_machine_stop(vm.machine, &rig_error));
        RIG_OK(vfmig_machine_start(vm.machine, &rig_error));
    }
    rig_progress(&vm, &score->cpu[0].heartbeats, 1); /* slow is not dead */
    RIG_OK(vfmig_machine_throttle(vm.machine, 0, &rig_error));
    uint64_t turn = vm.machine->throttle_turn;
    rig_progress(&vm, &score->cpu[0].cycles, 1);
    assert_int_equal(vm.machine->throttle_turn, turn);
    RIG_OK(vfmig_machine_throttle(vm.machine, 50, &rig_error)); /* and freed like that */
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
        cmocka_unit_test(test_guest_works),     cmocka_unit_test(test_stale_page_is_noticed),
        cmocka_unit_test(test_move_sleeping),   cmocka_unit_test(test_move_reading),
        cmocka_unit_test(test_move_spinning),   cmocka_unit_test(test_move_halted),
        cmocka_unit_test(test_blob_is_checked), cmocka_unit_test(test_identity),
        cmocka_unit_test(test_bad_configs),     cmocka_unit_test(test_guest_sees_the_pause),
        cmocka_unit_test(test_clock_on_another_host),
        cmocka_unit_test(test_throttle),
        cmocka_unit_test(test_ioeventfd),       cmocka_unit_test(test_no_guest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
