/* SPDX-License-Identifier: BSD-3-Clause */
/* The machine that runs the flows of tables/flow.def, one side of one attempt: an event goes in,
 * actions come out, time is an argument; no I/O, no memory. All devices go through a row in
 * parallel and the row ends when the last one is there (C19).
 *
 * The shell carries actions out in their order and reports each GO with DEVICE_DONE, each DATA with
 * DATA_DONE (per device), each WORK with WORK_DONE. One device is asked one thing at a time.
 *
 * Each device has a deadline of its own, so that it is known which one is late; for data it runs
 * from the last DATA_MOVES, which the shell gives before a TICK for every device that it is not
 * waiting for right then (the peer, or the link, may be what is slow). */
#ifndef VFMIG_CORE_FLOW_H
#define VFMIG_CORE_FLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bounds.h"
#include "vfmig/migrate.h"
#include "vfmig/state.h"

enum vfmig_flow_role { VFMIG_FLOW_SOURCE = 1, VFMIG_FLOW_DESTINATION = 2 };

enum vfmig_row {
    VFMIG_ROW_NONE = 0,
#define FLOW(name, step, devices, to, begin, finish, limit, on_error, next) VFMIG_ROW_##name,
#include "../tables/flow.def"
    VFMIG_ROW_COUNT,
    /* Points behind a row: the machine asks or waits. */
    VFMIG_ROW_ASK,      /* source: AGAIN or GO */
    VFMIG_ROW_CHECK,    /* source, vCPUs parked: AGAIN or GO */
    VFMIG_ROW_SENT,     /* source: everything was sent; goes on with HAND_OVER */
    VFMIG_ROW_WAIT,     /* source: RELEASE, or UNWIND */
    VFMIG_ROW_LOADED,   /* destination: PREPARE, or UNWIND */
    VFMIG_ROW_PREPARED, /* destination: RUN, or UNWIND */
    VFMIG_ROW_END,
};

/* What is done beside the devices' own changes; bits in this order. */
enum vfmig_work {
    VFMIG_WORK_TRACK_START = 0, /* every tracker: clear the log and start it */
    VFMIG_WORK_ROUND,       /* send what is known dirty (at first: all); then read and clear the log */
    VFMIG_WORK_QUIET_LOG,   /* read, then clear, the logs that cannot do it in one step */
    VFMIG_WORK_DATA,        /* per device: pre-copy data until there is none for now */
    VFMIG_WORK_VIOMMU_IDLE,
    VFMIG_WORK_VCPU_STOP,
    VFMIG_WORK_SNAPSHOT,    /* read the log in SNR */
    VFMIG_WORK_TRIAL,       /* send a part of what is known dirty, to see how fast it goes now */
    VFMIG_WORK_MEMORY,      /* send what is known dirty */
    VFMIG_WORK_LAST_DATA,   /* per device: final data to its end (source), load all (destination) */
    VFMIG_WORK_VM_STATE,    /* save and send vCPU and external state */
    VFMIG_WORK_FINAL_LOG,   /* read the log for the last time */
    VFMIG_WORK_LAST_MEMORY, /* send what it said */
    VFMIG_WORK_TRACK_STOP,
    VFMIG_WORK_VCPU_START,
    VFMIG_WORK_EXTERNAL,    /* destination: put the first copy of the external state in */
    VFMIG_WORK_RECEIVE,     /* destination: memory and VM state are complete */
    VFMIG_WORK_STATE_LOAD,  /* destination: final external state, then vCPU state */
    VFMIG_WORK_COUNT
};

/* A device's `want` beside the states: a reset, which ends in R. */
#define VFMIG_WANT_RESET 0xffu

struct vfmig_devset {
    uint64_t word[VFMIG_MAX_DEVICES / 64];
};

static inline bool vfmig_devset_has(const struct vfmig_devset *set, uint32_t device)
{
    return (set->word[device / 64] >> (device % 64)) & 1;
}

enum vfmig_flow_event_kind {
    VFMIG_FLOW_EVENT_NONE = 0,
    VFMIG_FLOW_EVENT_START,
    VFMIG_FLOW_EVENT_DEVICE_DONE, /* device, err, state: where it really is now */
    VFMIG_FLOW_EVENT_DATA_DONE,   /* device, err */
    VFMIG_FLOW_EVENT_DATA_MOVES,  /* device: its data is under way and it is not what is waited for */
    VFMIG_FLOW_EVENT_WORK_DONE,   /* work, err */
    VFMIG_FLOW_EVENT_AGAIN,       /* at ASK: another round; at CHECK: back to one */
    VFMIG_FLOW_EVENT_GO,          /* at ASK: switch over; at CHECK: go on with it */
    VFMIG_FLOW_EVENT_RELEASE,     /* source: the guest is the destination's */
    VFMIG_FLOW_EVENT_PREPARE,     /* destination, at LOADED */
    VFMIG_FLOW_EVENT_RUN,         /* destination, at PREPARED */
    VFMIG_FLOW_EVENT_FAIL,        /* err: something outside failed, or the user cancels */
    VFMIG_FLOW_EVENT_UNWIND,      /* back to S0; destination: drop what was received */
    VFMIG_FLOW_EVENT_TICK,        /* time has passed */
    VFMIG_FLOW_EVENT_COUNT
};

struct vfmig_flow_event {
    enum vfmig_flow_event_kind kind;
    uint32_t device;
    uint32_t work; /* enum vfmig_work */
    uint32_t state; /* enum vfmig_state */
    int32_t err;
};

enum vfmig_flow_action_kind {
    VFMIG_FLOW_ACT_ENTER = 1, /* arg: the row that is entered, for the trace */
    VFMIG_FLOW_ACT_GO,        /* devices: bring each to want[] of the machine */
    VFMIG_FLOW_ACT_DATA,      /* devices; arg: WORK_DATA or WORK_LAST_DATA */
    VFMIG_FLOW_ACT_WORK,      /* arg: enum vfmig_work */
    VFMIG_FLOW_ACT_ABORT,     /* what runs is of no use any more: make it end soon */
    VFMIG_FLOW_ACT_ASK,
    VFMIG_FLOW_ACT_CHECK,
    VFMIG_FLOW_ACT_SENT,
    VFMIG_FLOW_ACT_LOADED,
    VFMIG_FLOW_ACT_PREPARED,
    VFMIG_FLOW_ACT_FAILED, /* arg: errno; the machine stands still until UNWIND */
    VFMIG_FLOW_ACT_LOST,   /* devices: not even a reset brought them back; arg 1: never answered */
    VFMIG_FLOW_ACT_ENDED,
};

struct vfmig_flow_action {
    enum vfmig_flow_action_kind kind;
    uint32_t arg;
    struct vfmig_devset devices;
};

#define VFMIG_FLOW_MAX_ACTIONS 32u
struct vfmig_flow_actions {
    uint32_t count;
    struct vfmig_flow_action list[VFMIG_FLOW_MAX_ACTIONS];
};

/* Flat, no pointers: may be copied and compared. Read it freely. */
struct vfmig_flow {
    uint64_t device_timeout_ns, viommu_timeout_ns;
    uint64_t deadline_ns; /* the earliest of all, when TICK has something to do; 0: none */
    uint64_t works_due_ns; /* of the works that the row waits for; 0: none */
    struct vfmig_devset busy;      /* asked for a change, not there yet */
    struct vfmig_devset streaming; /* its data is under way */
    struct vfmig_devset to_stream; /* its data begins when it is there */
    struct vfmig_devset lost;
    struct vfmig_devset late; /* missed their deadline on the way forward */
    uint32_t role;
    uint32_t row;     /* enum vfmig_row */
    uint32_t running; /* works under way, bits of enum vfmig_work */
    uint32_t device_count;
    int32_t cause; /* errno of the failure that ended the attempt */
    uint8_t halted;   /* FAILED was told, UNWIND is awaited */
    uint8_t tracking; /* trackers are on */
    uint8_t parked;   /* vCPUs are parked, or about to be */
    uint8_t ended;
    uint8_t quiet_log; /* set after init: rounds have S2_QUIET to S2_AGAIN */
    uint8_t reserved[7];
    uint64_t limit_ns[VFMIG_MAX_DEVICES]; /* each device's own, for one change or one piece of data */
    uint64_t due_ns[VFMIG_MAX_DEVICES];   /* while busy or streaming; 0: no limit */
    uint8_t features[VFMIG_MAX_DEVICES];
    uint8_t state[VFMIG_MAX_DEVICES];
    uint8_t want[VFMIG_MAX_DEVICES];
    uint8_t tries[VFMIG_MAX_DEVICES];
};
_Static_assert(sizeof(struct vfmig_flow) ==
                   32 + 5 * sizeof(struct vfmig_devset) + 32 + 20 * VFMIG_MAX_DEVICES,
               "no padding");

/* Devices start in R. -EINVAL: too many devices. */
int vfmig_flow_init(struct vfmig_flow *f, enum vfmig_flow_role role, uint32_t device_count,
                    const uint32_t *features, uint64_t device_timeout_ns,
                    uint64_t viommu_timeout_ns);
/* This device's own limit, in the place of device_timeout_ns. Before START. */
void vfmig_flow_set_limit(struct vfmig_flow *f, uint32_t device, uint64_t limit_ns);

/* Nobody was looked at for so long, because this process stood still itself: every limit that is running is that
 * much longer, and leaves least_ns, in which what came meanwhile is taken. */
void vfmig_flow_excuse(struct vfmig_flow *f, uint64_t stood_ns, uint64_t now_ns, uint64_t least_ns);

/* One step. -EINVAL: the event makes no sense now; nothing changed, no actions. */
int vfmig_flow_step(struct vfmig_flow *f, const struct vfmig_flow_event *event, uint64_t now_ns,
                    struct vfmig_flow_actions *ret_actions);

/* The step that the current row belongs to; and of any row. */
enum vfmig_step vfmig_flow_current(const struct vfmig_flow *f);
enum vfmig_step vfmig_row_step(uint32_t row);
const char *vfmig_row_name(uint32_t row);
const char *vfmig_work_name(uint32_t work);

/* The state that a row's `to` means for a device with these features. */
uint8_t vfmig_flow_nearest(uint32_t features, uint32_t current, uint32_t to);

#endif
