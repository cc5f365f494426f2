/* SPDX-License-Identifier: BSD-3-Clause */
/* A machine with its own memory, for tests; and the move of a guest from one to another. */
#ifndef VFMIG_TESTS_MACHINE_RIG_H
#define VFMIG_TESTS_MACHINE_RIG_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vmm/machine.h"

#define RIG_MEMORY   (48u << 20)
#define RIG_SKIPPED  77
#define RIG_WAIT_MS  60000u /* a guest that makes no progress for so long is stuck */

struct rig_vm {
    struct vfmig_machine *machine;
    struct vfmig_ram_block block;
};

static struct vfmig_error rig_error;

#define RIG_OK(call)                                                                               \
    do {                                                                                           \
        if ((call) < 0)                                                                            \
            fail_msg("%s: %s", #call, rig_error.text);                                             \
    } while (0)

static inline void rig_open(struct rig_vm *vm, enum vfmig_accel accel,
                            void (*mmio)(void *, uint32_t, uint64_t, bool, void *, uint32_t),
                            void *opaque)
{
    int fd = memfd_create("guest", MFD_CLOEXEC);
    assert_true(fd >= 0 && ftruncate(fd, RIG_MEMORY) == 0);
    void *host = mmap(NULL, RIG_MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(host, MAP_FAILED);
    vm->block = (struct vfmig_ram_block){.size = RIG_MEMORY, .host = host, .fd = fd};
    struct vfmig_machine_config config = {.accel = accel,
                                          .vcpu_count = 2,
                                          .memory = {.blocks = &vm->block, .block_count = 1},
                                          .mmio = mmio,
                                          .opaque = opaque};
    RIG_OK(vfmig_machine_create(&config, &vm->machine, &rig_error));
}

static inline void rig_close(struct rig_vm *vm)
{
    vfmig_machine_free(vm->machine);
    munmap(vm->block.host, vm->block.size);
    close(vm->block.fd);
}

static inline const struct guest_scoreboard *rig_score(const struct rig_vm *vm)
{
    return vfmig_machine_scoreboard(vm->machine);
}

static inline void rig_no_errors(const struct rig_vm *vm)
{
    const struct guest_scoreboard *s = rig_score(vm);
    if (vfmig_machine_failed(vm->machine, &rig_error) < 0)
        fail_msg("%s", rig_error.text);
    if (s->errors)
        fail_msg("guest: %u errors, first %u on vCPU %u: %#lx %#lx %#lx %#lx", s->errors,
                 s->first_error, s->first_vcpu, s->first_detail[0], s->first_detail[1],
                 s->first_detail[2], s->first_detail[3]);
}

/* Waits until *counter has grown by so much from what it is now. */
static inline void rig_progress(const struct rig_vm *vm, const uint64_t *counter, uint64_t by)
{
    uint64_t start = __atomic_load_n(counter, __ATOMIC_RELAXED);
    for (uint32_t ms = 0; __atomic_load_n(counter, __ATOMIC_RELAXED) - start < by; ms++) {
        struct timespec wait = {.tv_nsec = 1000000};
        nanosleep(&wait, NULL);
        rig_no_errors(vm);
        if (ms > RIG_WAIT_MS)
            fail_msg("the guest makes no progress");
    }
}

/* Source stopped and flushed, memory and state to the destination; neither runs afterwards. */
static inline void rig_move(struct rig_vm *from, struct rig_vm *to)
{
    struct vfmig_buffer state = {0};
    RIG_OK(vfmig_machine_stop(from->machine, &rig_error));
    RIG_OK(vfmig_machine_flush_irqs(from->machine, NULL, &rig_error));
    RIG_OK(vfmig_machine_save(from->machine, &state, &rig_error));
    memcpy(to->block.host, from->block.host, RIG_MEMORY);
    RIG_OK(vfmig_machine_load(to->machine, state.data, state.size, &rig_error));
    vfmig_buffer_free(&state);
}

#endif
