/* SPDX-License-Identifier: BSD-3-Clause */
/* The smallest VMM on the migration engine: guest memory, a "vCPU" that is a thread, one device.
 *
 *     vmm_loop SOCKET-A SOCKET-B URI FOLDER
 *
 * Two in one process: a guest moves from the device behind SOCKET-A to the one behind SOCKET-B (two
 * of null_device) over URI (unix:PATH). Journals are in FOLDER. Ends with 0 when all arrived. */
#define _GNU_SOURCE 1
#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vfmig/migrate.h>
#include <vfmig/target.h>
#include <vfmig/tracker.h>

#define MEMORY (16u << 20)

struct vm {
    struct vfmig_ram_block block;
    struct vfmig_vm vm;
    struct vfmig_target *device;
    struct vfmig_tracker *trackers[3];
    pthread_t vcpu;
    sem_t turn; /* whoever has it, guest or engine, may touch the guest */
    bool running;
    uint64_t steps; /* all the state of the vCPU */
};

static _Thread_local struct vfmig_error error;

static void check(int ret)
{
    if (ret < 0)
        errx(1, "%s", error.text);
}

/* The guest writes memory all over, and then a register of its device. */
static void *vcpu_main(void *arg)
{
    struct vm *vm = arg;

    while (usleep(1000) == 0 && sem_wait(&vm->turn) == 0) {
        for (unsigned i = 0; i < 1000; i++, vm->steps++)
            ((uint64_t *)vm->block.host)[vm->steps * 7919 % (MEMORY / 8)] = vm->steps;
        check(vfmig_target_write(vm->device, 0, 0, &vm->steps, 8, /* posted= */ false, &error));
        sem_post(&vm->turn);
    }
    return NULL;
}

static int vcpus_stop(void *opaque, struct vfmig_error *reterr)
{
    struct vm *vm = opaque;

    if (vm->running)
        sem_wait(&vm->turn);
    vm->running = false;
    return 0;
}

static int vcpus_start(void *opaque, struct vfmig_error *reterr)
{
    ((struct vm *)opaque)->running = true;
    return sem_post(&((struct vm *)opaque)->turn);
}

static uint64_t sum(const struct vm *vm) /* of all memory: this is to be seen */
{
    uint64_t sum = 0;

    for (size_t i = 0; i < MEMORY / 8; i++)
        sum = sum * 31 + ((const uint64_t *)vm->block.host)[i];
    return sum;
}

static int state_save(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    uint64_t state[2] = {((struct vm *)opaque)->steps, sum(opaque)};

    return vfmig_buffer_append(out, state, sizeof(state));
}

static int state_load(void *opaque, const void *data, size_t size, struct vfmig_error *reterr)
{
    const uint64_t *saved = data;

    if (size != 2 * sizeof(*saved) || sum(opaque) != saved[1])
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_STREAM, 0, "memory is not what it was");
    ((struct vm *)opaque)->steps = saved[0];
    return 0;
}

static const struct vfmig_vm_ops ops = {sizeof(ops), VFMIG_VM_OPS_VERSION, .vcpus_stop = vcpus_stop,
    .vcpus_start = vcpus_start, .state_save = state_save, .state_load = state_load};

static void open_vm(struct vm *vm, const char *path)
{
    static const char *const ids[] = {"register"}; /* the same on both sides */
    vm->block = (struct vfmig_ram_block){.size = MEMORY, .fd = memfd_create("guest", 0)};
    if (ftruncate(vm->block.fd, MEMORY))
        err(1, "memory");
    vm->block.host = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, vm->block.fd, 0);
    vm->vm = (struct vfmig_vm){
        .ops = &ops, .opaque = vm, .memory = {&vm->block, 1}, .devices = &vm->device,
        .device_ids = ids, .device_count = 1, .trackers = vm->trackers, .tracker_count = 3};
    /* Whoever writes guest memory: the vCPU; this process for a device that asks; the device. */
    check(vfmig_tracker_open_process(&vm->trackers[0], &error));
    check(vfmig_tracker_open_vmm(&vm->trackers[1], &error));
    struct vfmig_target_options opt = {sizeof(opt), .memory = &vm->vm.memory, .own = vm->trackers[1]};
    check(vfmig_target_open(path, &opt, &vm->device, &error));
    check(vfmig_target_map_memory(vm->device, &vm->vm.memory, &error));
    check(vfmig_tracker_open_device(vm->device, &vm->trackers[2], &error));
    sem_init(&vm->turn, 0, 0);
    pthread_create(&vm->vcpu, NULL, vcpu_main, vm);
}

int main(int argc, char **argv)
{
    static struct vm here, there;
    struct vfmig_migrate_options options = {.journal_dir = argv[argc - 1]};
    struct vfmig_progress progress;
    struct vfmig_destination *destination;
    struct vfmig_source *source;
    uint64_t value = 0;

    if (argc != 5)
        return 2;
    open_vm(&here, argv[1]);
    open_vm(&there, argv[2]);
    vcpus_start(&here, &error);
    check(vfmig_destination_new(&there.vm, &options, &destination, &error));
    check(vfmig_destination_listen(destination, argv[3], &error));
    check(vfmig_source_new(&here.vm, &options, &source, &error));
    check(vfmig_source_start(source, argv[3], &error));
    check(vfmig_source_wait(source, UINT64_MAX, &error));
    check(vfmig_destination_wait(destination, UINT64_MAX, &error));
    while (value <= here.steps) /* until the guest has gone on, and its device knows */
        check(vfmig_target_read(there.device, 0, 0, &value, 8, &error));
    vfmig_source_status(source, &progress);
    printf("moved, downtime %.1f ms\n", (double)progress.downtime.total_ns / 1e6);
    vfmig_source_free(source);
    vfmig_destination_free(destination);
    return 0;
}
