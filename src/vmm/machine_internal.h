/* SPDX-License-Identifier: BSD-3-Clause */
/* What the machine's files share: the threads of the vCPUs, and the operations of an accelerator. */
#ifndef VFMIG_VMM_MACHINE_INTERNAL_H
#define VFMIG_VMM_MACHINE_INTERNAL_H

#include <pthread.h>
#include <signal.h>

#include "base/bounds.h"
#include "vmm/guest_asm.h"
#include "vmm/machine.h"

struct machine_vcpu {
    struct vfmig_machine *machine;
    uint32_t index;
    pthread_t thread;
    bool has_thread;
    bool parked;    /* under the lock */
    bool dead;      /* under the lock; parked for good */
    uint64_t run_ns; /* under the lock; when it left its park last */
    uint64_t reads; /* of GUEST_CTL_COUNT so far: part of the state */
    uint64_t turn;  /* of the throttle that it has slept for; written by its own thread */
};

/* An MSI vector of a device and the eventfd behind it. */
struct machine_msi {
    int fd; /* -1: not in use */
    bool attached;
    uint64_t address;
    uint32_t data;
};

struct machine_ops {
    enum vfmig_accel accel;
    int (*create)(struct vfmig_machine *m, struct vfmig_error *reterr);
    void (*destroy)(struct vfmig_machine *m);
    /* Puts a vCPU at the start of the guest program. */
    int (*boot)(struct vfmig_machine *m, uint32_t vcpu, struct vfmig_error *reterr);
    /* Runs a vCPU until m->stop is set and no exit is pending, or it dies. */
    void (*run)(struct vfmig_machine *m, uint32_t vcpu);
    /* Makes run look at m->stop soon. */
    void (*kick)(struct vfmig_machine *m, uint32_t vcpu);
    /* Around each stretch of running. */
    int (*resume)(struct vfmig_machine *m, struct vfmig_error *reterr);
    int (*flush_irqs)(struct vfmig_machine *m, uint32_t *ret_unread, struct vfmig_error *reterr);
    int (*save)(struct vfmig_machine *m, struct vfmig_buffer *out, struct vfmig_error *reterr);
    /* A record of the blob; the whole blob was checked before. */
    int (*load)(struct vfmig_machine *m, const void *data, size_t size, struct vfmig_error *reterr);
    int (*identity)(struct vfmig_machine *m, struct vfmig_buffer *out, struct vfmig_error *reterr);
    int (*msi)(struct vfmig_machine *m, uint32_t gsi, struct vfmig_error *reterr); /* under msi_lock */
    int (*ioeventfd)(struct vfmig_machine *m, uint64_t gpa, uint32_t size, int fd, bool add,
                     struct vfmig_error *reterr);
    uint64_t (*tsc_khz)(struct vfmig_machine *m);
    uint32_t (*guest_flags)(struct vfmig_machine *m); /* GUEST_FLAG_* */
};

struct vfmig_machine {
    const struct machine_ops *ops;
    struct vfmig_machine_config config;
    struct vfmig_ram_block blocks[VFMIG_MAX_RAM_BLOCKS];
    pthread_mutex_t lock;
    pthread_cond_t wake;   /* vCPUs: start, stop, quit */
    pthread_cond_t parked; /* the controlling thread: a vCPU parked */
    bool running;          /* under the lock */
    bool quit;             /* under the lock */
    bool moved;            /* a state was loaded since the last start */
    bool stop;             /* atomic; true whenever the vCPUs shall not run */
    struct vfmig_error failure; /* under the lock; code 0 while all is well */
    uint32_t throttle;          /* under the lock: percent of each period that vCPUs sleep */
    uint64_t throttle_turn;     /* atomic: periods so far */
    pthread_cond_t throttle_wake;
    pthread_mutex_t throttle_lock; /* of the two that follow; before the lock */
    pthread_t ticker;
    bool has_ticker;
    struct machine_vcpu vcpus[GUEST_MAX_VCPUS];
    pthread_mutex_t msi_lock;
    struct machine_msi msis[GUEST_MAX_GSIS];
    void *accel; /* the accelerator's own */
};

extern const struct machine_ops machine_kvm_ops;
extern const struct machine_ops machine_none_ops;

static inline bool machine_stopping(struct vfmig_machine *m)
{
    return __atomic_load_n(&m->stop, __ATOMIC_SEQ_CST);
}

/* An MMIO access of a vCPU, from its thread: the control page here, the rest to the VMM. */
void machine_mmio(struct vfmig_machine *m, uint32_t vcpu, uint64_t gpa, bool is_write, void *data,
                  uint32_t size);
/* From the vCPU's thread: it cannot go on. */
void machine_vcpu_died(struct vfmig_machine *m, uint32_t vcpu, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* From the vCPU's thread: it has not slept yet for the period that runs. A kick comes with it, maybe
 * later, which then makes run look once more for nothing. */
bool machine_throttle_due(struct vfmig_machine *m, uint32_t vcpu);
void machine_throttle_sleep(struct vfmig_machine *m, uint32_t vcpu);
/* Host memory behind [gpa, gpa + size), NULL when it is not all in one block. */
void *machine_memory(struct vfmig_machine *m, uint64_t gpa, uint64_t size);

/* Records of the blob: tag, vCPU, length, data. The accelerators use their own tags from 16 on. */
enum { MACHINE_TAG_READS = 1 };

struct machine_record {
    uint32_t tag;
    uint32_t vcpu;
    uint32_t size;
    const void *data;
};

int machine_put(struct vfmig_buffer *out, uint32_t tag, uint32_t vcpu, const void *data, size_t size);
/* Steps through records; *offset from 0. 1: *ret_record is the next, 0: end, -EBADMSG: cut off. */
int machine_get(const void *data, size_t size, size_t *offset, struct machine_record *ret_record);

/* What the guest's TSC is made of: the host's TSC, or nanoseconds. */
typedef uint64_t (*machine_counter)(void);

/* The clock of the guest's TSC as it travels: what the offset was and when. */
struct machine_tsc {
    uint8_t boot_id[16];
    uint64_t offset;      /* guest TSC less host TSC */
    uint64_t tsc;         /* the guest's, at realtime_ns */
    uint64_t realtime_ns;
    uint64_t khz;
};

void machine_tsc_fill(struct machine_tsc *tsc, machine_counter counter, uint64_t offset,
                      uint64_t khz);
/* The offset that lets the guest's TSC go on here, the time on the way included. */
uint64_t machine_tsc_offset(const struct machine_tsc *tsc, machine_counter counter);

#endif
