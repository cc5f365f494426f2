/* SPDX-License-Identifier: BSD-3-Clause */
/* KVM's logs, by bitmap and by ring, against a guest in real mode that counts up in every page of its first MiB. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "dirty/trackers.h"

#define PAGES      200u /* of the first block that the guest writes, after its code */
#define BLOCK_SIZE (1u << 20)
#define ROUNDS     20u
#define RING_ENTRIES 4096u
#define RING_PASSES  8u /* that surely fit into it */

/* Each pass adds 1 to the first word of PAGES pages from 0x1000 on, then asks whether to go on. */
static const uint8_t code[] = {
    0xb8, 0x00, 0x01,             /* again: mov ax, 0x100 */
    0xb9, PAGES, 0x00,            /*        mov cx, PAGES */
    0x8e, 0xd8,                   /* page:  mov ds, ax */
    0xff, 0x06, 0x00, 0x00,       /*        inc word [0] */
    0x05, 0x00, 0x01,             /*        add ax, 0x100 */
    0xe2, 0xf5,                   /*        loop page */
    0xe6, 0x10,                   /*        out 0x10, al */
    0xeb, 0xeb,                   /*        jmp again */
};

struct vm {
    int kvm, vm, vcpu;
    struct kvm_run *run;
    struct vfmig_tracker *ring; /* the tracker by ring, told when it is full */
    size_t run_size;
    struct vfmig_ram_block blocks[2];
    struct vfmig_memory memory;
    uint8_t *copy;
    struct vfmig_dirty_map map;
    atomic_bool stop;
    atomic_uint passes;
    atomic_int failure; /* of the vCPU */
    unsigned overruns;
};

static void *map_memory(size_t size)
{
    void *host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(host, MAP_FAILED);
    return host;
}

/* False when this host has no usable KVM. */
static bool vm_open(struct vm *vm, uint32_t ring_entries, bool *ret_backup)
{
    memset(vm, 0, sizeof(*vm));
    vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vm->kvm < 0)
        return false;
    vm->vm = ioctl(vm->kvm, KVM_CREATE_VM, 0);
    if (vm->vm < 0) {
        close(vm->kvm);
        return false;
    }
    if (ring_entries)
        assert_int_equal(vfmig_tracker_kvm_ring_enable(vm->vm, ring_entries, ret_backup, NULL), 0);
    ioctl(vm->vm, KVM_SET_TSS_ADDR, 0xfffbd000);
    for (unsigned i = 0; i < 2; i++) {
        vm->blocks[i] = (struct vfmig_ram_block){i * 0x10000000u, BLOCK_SIZE >> i,
                                                 map_memory(BLOCK_SIZE >> i), -1, 0};
        struct kvm_userspace_memory_region region = {
            .slot = i,
            .guest_phys_addr = vm->blocks[i].gpa,
            .memory_size = vm->blocks[i].size,
            .userspace_addr = (uintptr_t)vm->blocks[i].host,
        };
        assert_int_equal(ioctl(vm->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
    }
    vm->memory = (struct vfmig_memory){vm->blocks, 2};
    assert_int_equal(vfmig_dirty_map_init(&vm->map, &vm->memory, NULL), 0);
    vm->copy = calloc(1, BLOCK_SIZE);
    assert_non_null(vm->copy);
    memcpy(vm->blocks[0].host, code, sizeof(code));

    vm->vcpu = ioctl(vm->vm, KVM_CREATE_VCPU, 0);
    assert_true(vm->vcpu >= 0);
    vm->run_size = (size_t)ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    vm->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
    assert_ptr_not_equal(vm->run, MAP_FAILED);
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = 0, .rflags = 2};
    assert_int_equal(ioctl(vm->vcpu, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = sregs.cs.selector = 0;
    assert_int_equal(ioctl(vm->vcpu, KVM_SET_SREGS, &sregs), 0);
    assert_int_equal(ioctl(vm->vcpu, KVM_SET_REGS, &regs), 0);
    return true;
}

static void vm_close(struct vm *vm)
{
    munmap(vm->run, vm->run_size);
    close(vm->vcpu);
    close(vm->vm);
    close(vm->kvm);
    for (unsigned i = 0; i < 2; i++)
        munmap(vm->blocks[i].host, vm->blocks[i].size);
    vfmig_dirty_map_done(&vm->map);
    free(vm->copy);
}

static void *vcpu_main(void *arg)
{
    struct vm *vm = arg;

    while (!vm->stop && !vm->failure) {
        if (ioctl(vm->vcpu, KVM_RUN, 0) < 0 && errno != EINTR)
            vm->failure = errno;
        else if (vm->run->exit_reason == KVM_EXIT_IO)
            vm->passes++;
        else if (vm->ring && vm->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL)
            vfmig_tracker_kvm_ring_full(vm->ring, 0);
        else
            vm->failure = 1000 + (int)vm->run->exit_reason;
        if (vm->ring && vm->passes % RING_PASSES == 0)
            vfmig_tracker_kvm_ring_full(vm->ring, 0);
    }
    return NULL;
}

static void copy_dirty(struct vm *vm)
{
    memset(vm->map.bitmaps[1], 0, BLOCK_SIZE / 2 / VFMIG_PAGE_SIZE / 8); /* nobody writes there */
    for (uint64_t p = 0; p < BLOCK_SIZE / VFMIG_PAGE_SIZE; p++)
        if (vfmig_bitmap_test(vm->map.bitmaps[0], p)) {
            vfmig_bitmap_clear(vm->map.bitmaps[0], p);
            memcpy(vm->copy + p * VFMIG_PAGE_SIZE,
                   (uint8_t *)vm->blocks[0].host + p * VFMIG_PAGE_SIZE, VFMIG_PAGE_SIZE);
        }
}

/* A ring that overran says so, and then all pages count as dirty. */
static void sync_or_all(struct vm *vm, struct vfmig_tracker *t)
{
    int r = t->ops->sync(t, &vm->map, NULL);

    if (vm->ring && r == -EPROTO) {
        vfmig_dirty_map_fill(&vm->map);
        r = 0;
        vm->overruns++;
    }
    assert_int_equal(r, 0);
}

static void follow(struct vm *vm, struct vfmig_tracker *t)
{
    struct vfmig_error err;
    pthread_t thread;

    vm->stop = false;
    pthread_create(&thread, NULL, vcpu_main, vm);
    while (vm->passes < 2 && !vm->failure)
        sched_yield();
    vm->stop = true;
    pthread_join(thread, NULL);
    assert_int_equal(vm->failure, 0);
    /* Pages written before the start are not in the log (C27). */
    assert_int_equal(t->ops->start(t, &vm->memory, &err), 0);
    assert_int_equal(t->ops->sync(t, &vm->map, &err), 0);
    assert_int_equal(vfmig_dirty_map_count(&vm->map), 0);

    vfmig_dirty_map_fill(&vm->map);
    copy_dirty(vm);
    vm->stop = false;
    pthread_create(&thread, NULL, vcpu_main, vm);
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned goal = vm->passes + 1;
        while (vm->passes < goal && !vm->failure)
            sched_yield();
        sync_or_all(vm, t);
        copy_dirty(vm);
    }
    vm->stop = true;
    pthread_join(thread, NULL);
    assert_int_equal(vm->failure, 0);
    sync_or_all(vm, t);
    copy_dirty(vm);
    assert_memory_equal(vm->copy, vm->blocks[0].host, BLOCK_SIZE);
    assert_true(*(uint16_t *)(vm->copy + VFMIG_PAGE_SIZE * PAGES) > ROUNDS);
    assert_int_equal(t->ops->sync(t, &vm->map, &err), 0);
    assert_int_equal(vfmig_bitmap_count(vm->map.bitmaps[0], BLOCK_SIZE / VFMIG_PAGE_SIZE), 0);
    assert_int_equal(t->ops->stop(t, &err), 0);
    assert_int_equal(t->ops->sync(t, &vm->map, &err), -EINVAL);
}

static void follows_a_vcpu(void **state)
{
    static const uint32_t slots[] = {0, 1};
    struct vfmig_tracker *t;
    struct vm vm;

    if (!vm_open(&vm, 0, NULL))
        skip();
    assert_int_equal(vfmig_tracker_kvm_probe(vm.vm, NULL), 0);
    assert_int_equal(vfmig_tracker_kvm_new(vm.vm, slots, 2, &t, NULL), 0);
    follow(&vm, t);
    follow(&vm, t); /* a second migration */
    t->ops->free(t);
    vm_close(&vm);
}

/* Emptied by the sync and by the vCPU's thread, which does not wait until it is full: in real mode,
 * which some hosts emulate, KVM does not stop in time, and the ring overruns (ring_test has that). On a
 * busy host it may come to that all the same. */
static void follows_a_vcpu_by_ring(void **state)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    uint32_t offered = kvm < 0 ? 0 : vfmig_tracker_kvm_ring_probe(kvm);
    bool backup;
    struct vm vm;

    close(kvm);
    print_message("KVM offers dirty rings of %u entries\n", offered);
    if (!offered || !vm_open(&vm, RING_ENTRIES, &backup))
        skip();
    struct vfmig_kvm_ring_config config = {.vm_fd = vm.vm,
                                           .vcpu_fds = &vm.vcpu,
                                           .vcpu_count = 1,
                                           .entries = RING_ENTRIES,
                                           .backup = backup};
    assert_int_equal(vfmig_tracker_kvm_ring_new(&config, &vm.ring, NULL), 0);
    follow(&vm, vm.ring);
    follow(&vm, vm.ring); /* a second migration */
    assert_true(vfmig_tracker_kvm_ring_full_count(vm.ring) > 0);
    assert_true(vm.overruns < ROUNDS);
    vm.ring->ops->free(vm.ring);
    vm_close(&vm);
}

static void refusals(void **state)
{
    static const uint32_t slots[] = {0, 1, 2};
    struct vfmig_tracker *t;
    struct vfmig_error err;
    struct vm vm;
    int file = open("/dev/null", O_RDWR | O_CLOEXEC);

    assert_int_equal(vfmig_tracker_kvm_probe(file, NULL), -ENOTSUP);
    assert_int_equal(vfmig_tracker_kvm_new(file, NULL, 0, &t, &err), -ENOTSUP);
    assert_int_equal(err.origin, VFMIG_ORIGIN_KERNEL);
    close(file);
    if (!vm_open(&vm, 0, NULL))
        skip();
    assert_int_equal(vfmig_tracker_kvm_new(vm.vm, slots, 3, &t, &err), 0);
    assert_int_equal(t->ops->start(t, &vm.memory, &err), -EINVAL);
    t->ops->free(t);
    vm_close(&vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(follows_a_vcpu),
        cmocka_unit_test(follows_a_vcpu_by_ring),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
