/* SPDX-License-Identifier: BSD-3-Clause */
/* Both sides of a migration in one process: a guest that is a thread, devices that are structs,
 * trackers that are bitmaps; every call from the engine goes into one log, and any call can be told
 * to fail or to hang. */
#ifndef TESTS_ENGINE_RIG_H
#define TESTS_ENGINE_RIG_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dirty/tracker.h"
#include "order_rules.h"
#include "target/target.h"
#include "vfmig/migrate.h"

#define RIG_MAX_DEVICES 96u
#define RIG_MAX_LOG     65536u
#define RIG_STATE_BYTES 5000u

enum rig_side { RIG_SOURCE = 0, RIG_DEST = 1 };

enum rig_op {
    RIG_NONE = 0,
    RIG_SET_STATE, /* arg: enum vfmig_state */
    RIG_RESET,
    RIG_SAVE, /* arg: state it is in */
    RIG_LOAD,
    RIG_TRACK_START, /* arg: tracker */
    RIG_TRACK_SYNC,
    RIG_TRACK_STOP,
    RIG_VCPU_STOP,
    RIG_VCPU_START,
    RIG_VIOMMU_IDLE,
    RIG_STATE_SAVE,
    RIG_STATE_LOAD,
    RIG_EXTERNAL_SAVE,
    RIG_EXTERNAL_LOAD,
    RIG_IDENTITY,
    RIG_DMA,  /* a device wrote memory */
    RIG_MMIO, /* a vCPU touched a device; arg: state it was in */
    RIG_THROTTLE, /* arg: percent */
    RIG_OP_COUNT
};

/* Two entries a call: begin and end (ret is valid). */
struct rig_entry {
    enum rig_side side;
    enum rig_op op;
    uint32_t device;
    uint32_t arg;
    bool end;
    int ret;
};

struct rig;
struct rig_vm;

struct rig_device {
    struct vfmig_target base;
    struct rig_vm *vm;
    uint32_t index;
    pthread_mutex_t lock; /* state against its DMA */
    enum vfmig_state state;
    uint8_t content[RIG_STATE_BYTES]; /* internal state */
    uint8_t external[64];
    /* Saving: pre-copy pieces sent, then the content. */
    uint32_t sequence, pre_left;
    size_t at;
    /* Loading. */
    uint8_t loading[RIG_STATE_BYTES];
    size_t loaded;
    bool last_seen;
    uint64_t dma_count;
    /* What is wrong with it for good; under lock. */
    bool dead;    /* its process is gone */
    bool endless; /* its data has no end */
    /* Pieces of logged changes that it still has when it is stopped, and their size; 0: none. */
    uint32_t bulk_pieces, bulk_bytes, bulk_left;
    /* Called when it has entered a state. */
    void (*on_state)(struct rig_device *dev, enum vfmig_state state);
};

struct rig_tracker {
    struct vfmig_tracker base;
    struct rig_vm *vm;
    uint32_t index;
    atomic_bool on;
    struct vfmig_dirty_map map;
    bool map_made;
    uint32_t splits; /* reads that were apart from their clear, with pages in between */
};

struct rig_vm {
    struct rig *rig;
    enum rig_side side;
    struct vfmig_ram_block blocks[2];
    struct vfmig_vm vm;
    struct rig_device devices[RIG_MAX_DEVICES];
    struct vfmig_target *targets[RIG_MAX_DEVICES];
    const char *ids[RIG_MAX_DEVICES];
    struct rig_tracker trackers[RIG_MAX_DEVICES + 1]; /* the vCPUs' and each device's */
    struct vfmig_tracker *tracker_list[RIG_MAX_DEVICES + 1];
    pthread_t guest;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool run, parked, quit;
    _Atomic uint64_t progress; /* writes of the guest */
    uint64_t random;
    const char *identity;
    struct order_rules rules; /* over the trace of this side; the engine writes one line at a time */
};

enum rig_lie {
    RIG_TRUTH = 0,
    RIG_SAYS_YES,   /* set_state, reset: 0, and nothing was done */
    RIG_SAYS_END,   /* save: the end, too early */
    RIG_SAYS_MORE,  /* save: there is no end */
    RIG_DIES,       /* the device's process is gone from here on */
};

struct rig_fault {
    enum rig_side side;
    enum rig_op op;
    uint32_t arg;   /* of SET_STATE and SAVE; UINT32_MAX: any */
    uint32_t after; /* so many calls go well before */
    uint32_t times; /* so many fail */
    int err;        /* 0: hang until rig_release */
    bool into_error; /* the device goes to ERROR, too */
    uint32_t only;  /* 1 + device; 0: any */
    enum rig_lie lie;
};

struct rig {
    struct rig_vm side[2];
    char dir[64];
    char uri[128];
    struct vfmig_migrate_options options;
    struct vfmig_source *source;
    struct vfmig_destination *destination;

    pthread_mutex_t lock;
    pthread_mutex_t source_lock; /* rig_source.h */
    pthread_cond_t released;
    struct rig_entry log[RIG_MAX_LOG];
    uint32_t log_count;
    bool log_ended;
    struct rig_fault fault, second;
    uint32_t calls, second_calls; /* that matched the fault */
    bool hung, release;
    /* Called with each entry, outside the lock. */
    void (*watch)(struct rig *rig, const struct rig_entry *entry);
    void *watch_data;
    /* Called for each line of a side's trace, by the thread that writes it. */
    void (*listen)(struct rig *rig, enum rig_side side, const char *json);
    uint32_t both_running; /* times that vCPUs ran on both sides */
};

/* features of each device; tcp: over loopback instead of a unix socket. The guest runs. */
void rig_open(struct rig *rig, uint32_t device_count, const uint32_t *features, bool tcp);
/* Before rig_start: the source's logs of DMA are read in one step and cleared in another; a device
 * that may do DMA does so in between. */
void rig_split_logs(struct rig *rig);
/* Destination listens, source starts. */
void rig_start(struct rig *rig);
/* Waits for the source's end: its state. */
enum vfmig_migrate_state rig_wait(struct rig *rig);
void rig_release(struct rig *rig);
void rig_close(struct rig *rig);

/* The source's guest goes on, its devices are in R, its trackers off; nothing runs at the other. */
void rig_assert_source_runs(struct rig *rig);
/* The destination's guest runs on, with the source's memory and devices; the source is halted. */
void rig_assert_moved(struct rig *rig);
/* The guest makes progress right now. */
bool rig_progresses(struct rig_vm *vm);

/* A page of block 0 that the guest leaves alone (from RIG_FREE_PAGE on): written and logged by one of the
 * trackers (0: the VMM's own, as DMA by message is); by a device, if its state lets it. */
#define RIG_FREE_PAGE 700u
void rig_write(struct rig_vm *vm, uint32_t tracker, uint64_t page, uint64_t value);
bool rig_dma(struct rig_device *dev, uint64_t page, uint64_t value);
uint64_t rig_read(const struct rig_vm *vm, uint64_t page);

/* Nothing more is logged: devices at the destination go on working while the log is searched. */
void rig_end_log(struct rig *rig);

/* First entry at or after `from` that fits; log_count when there is none. */
uint32_t rig_find(const struct rig *rig, uint32_t from, enum rig_side side, enum rig_op op,
                  uint32_t device, uint32_t arg, bool end);
#define RIG_ANY UINT32_MAX

#endif
