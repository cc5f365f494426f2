/* SPDX-License-Identifier: BSD-3-Clause */
/* The device machine: what a state write, a reset or a lost owner makes a device do, in which
 * order, and what is undone when a step fails (design section 4). Pure: an event goes in, actions
 * come out, time is an argument; the server carries the actions out.
 *
 * A state write becomes, each item only if the new value needs it (A18):
 *
 *   consume posted writes - shut the DMA gate and drain - set N - clear S - clear R - clear Z
 *   (load) - set Z (self-reset) - set S without R (capture) - set R - set S with R (pre-copy) -
 *   clear N - open the DMA gate
 *
 * The gate is shut before anything that cannot be undone, so a drain that misses its deadline
 * always leaves the old state (A21); it opens last, and never on the way between two quiet states
 * (X9). Clear S, clear Z and set Z cannot be undone: a failure of one of them or after one of them
 * ends in ERROR. The feature dialect walks the arcs of the state table with the same sub-steps and
 * keeps the last state that it reached. */
#ifndef VFMIG_CORE_DEV_H
#define VFMIG_CORE_DEV_H

#include <stdbool.h>
#include <stdint.h>

#include "core/state.h"

#define VFMIG_DEV_MAX_RESETS  4u /* resets waiting for one reset of the device */
#define VFMIG_DEV_MAX_ACTIONS 12u

enum vfmig_dev_event_type {
    VFMIG_DEV_EVENT_INVALID = 0,
    VFMIG_DEV_EVENT_WRITE_V1,   /* value: the register value written */
    VFMIG_DEV_EVENT_SET_V2,     /* value: the enum vfmig_state asked for */
    VFMIG_DEV_EVENT_STEP_DONE,  /* token, err: the awaited action ended; a stale token is ignored */
    VFMIG_DEV_EVENT_RESET,      /* client reset */
    VFMIG_DEV_EVENT_OWNER_GONE, /* the connection is closed: nobody is answered any more */
    VFMIG_DEV_EVENT_TICK,       /* time has come: see vfmig_dev_deadline */
    VFMIG_DEV_EVENT_COUNT
};

struct vfmig_dev_event {
    enum vfmig_dev_event_type type;
    uint32_t value;
    uint64_t id;    /* the shell's name of the request, comes back in its REPLY */
    uint32_t token; /* of the action that ended */
    int32_t err;    /* 0 or negative errno */
};

/* What the device itself is asked to do; the last argument of a CALL. */
enum vfmig_dev_call {
    VFMIG_DEV_CALL_NONE = 0,
    VFMIG_DEV_CALL_END_STREAM,    /* clear S: forget the saved stream, stop logging changes */
    VFMIG_DEV_CALL_STOP,          /* clear R: freeze internal state (C33) */
    VFMIG_DEV_CALL_LOAD,          /* clear Z: validate and take over all that was written (C25) */
    VFMIG_DEV_CALL_SELF_RESET,    /* set Z: reset internal state (C26), be ready for data */
    VFMIG_DEV_CALL_CAPTURE,       /* set S without R: capture; continues a pre-copy (C23, C65) */
    VFMIG_DEV_CALL_START,         /* set R: run, the gate is still shut */
    VFMIG_DEV_CALL_PRECOPY_START, /* set S with R: log changes, stream what is logged (C21) */
    VFMIG_DEV_CALL_RESET,         /* client reset or owner gone: everything, to running; ends any
                                     call under way, whose STEP_DONE may or may not still come */
    VFMIG_DEV_CALL_COUNT
};

enum vfmig_dev_action_type {
    VFMIG_DEV_ACT_INVALID = 0,
    /* Consume every owner message already queued and every doorbell, now, without waiting. */
    VFMIG_DEV_ACT_FLUSH,
    /* No new DMA from now on. AWAITED: STEP_DONE(token) when none is in flight (at once if so). */
    VFMIG_DEV_ACT_GATE_SHUT,
    /* Half of the drain deadline is over: abort the DMA that waits for page faults, keep its
     * request as internal state, issue it again when the gate opens (A7). The drain goes on. */
    VFMIG_DEV_ACT_DRAIN_ABORT,
    /* No new DMA, and nothing that is in flight is waited for or delivered to the device. */
    VFMIG_DEV_ACT_GATE_CUT,
    VFMIG_DEV_ACT_GATE_OPEN,
    /* Interrupts that the device raises are kept as pending causes from now on (A6). */
    VFMIG_DEV_ACT_IRQ_LATCH,
    /* Deliver pending causes, and new ones at once. Comes after GATE_OPEN. */
    VFMIG_DEV_ACT_IRQ_DELIVER,
    /* A reset forgets pending causes. */
    VFMIG_DEV_ACT_IRQ_DROP,
    /* call. AWAITED: STEP_DONE(token, err). */
    VFMIG_DEV_ACT_CALL,
    /* The data stream: begin a new saved one; begin a new loaded one; drop whichever is open with
     * its window. SR to S has none of them: the stream and an open portion go on (A14). */
    VFMIG_DEV_ACT_STREAM_SAVE,
    VFMIG_DEV_ACT_STREAM_LOAD,
    VFMIG_DEV_ACT_STREAM_DROP,
    /* Answer request id with err. */
    VFMIG_DEV_ACT_REPLY,
    /* After OWNER_GONE: the device is fresh, the next client may come in (C45). */
    VFMIG_DEV_ACT_RELEASED,
    VFMIG_DEV_ACT_COUNT
};

/* At most one AWAITED action is under way, and it is the last one of its list. Its STEP_DONE is
 * passed to vfmig_dev_step() after the whole list was carried out, even if it is known at once. */
struct vfmig_dev_action {
    enum vfmig_dev_action_type type;
    enum vfmig_dev_call call; /* CALL */
    uint32_t token;           /* AWAITED actions: to be returned in STEP_DONE */
    int32_t err;              /* REPLY */
    uint64_t id;              /* REPLY */
};

struct vfmig_dev_actions {
    uint32_t count;
    struct vfmig_dev_action list[VFMIG_DEV_MAX_ACTIONS];
};

/* Flat: no pointers, no padding; may be copied, compared and hashed. Fields are the machine's. */
struct vfmig_dev {
    uint64_t drain_timeout_ns; /* 0: no limit */
    uint64_t half_ns;          /* when DRAIN_ABORT is due, UINT64_MAX: not */
    uint64_t deadline_ns;      /* when the drain fails, UINT64_MAX: never */
    uint64_t write_id;
    uint64_t reset_ids[VFMIG_DEV_MAX_RESETS];
    uint32_t reset_count;
    uint32_t features;  /* VFMIG_FEATURE_* */
    uint32_t token;     /* of the awaited action */
    int32_t err;        /* why the steps are being undone */
    uint16_t done;      /* sub-steps of this plan that are done, bit per enum vfmig_dev_substep */
    uint8_t bits;       /* what is true now */
    uint8_t shown;      /* what a read of device_state gives: the old value while a write is open */
    uint8_t from;       /* bits where the plan started */
    uint8_t to;         /* bits where the plan ends */
    uint8_t final;      /* state that a v2 write asked for */
    uint8_t substep;    /* the one under way */
    uint8_t phase;      /* enum vfmig_dev_phase */
    uint8_t v2;         /* the open write is of the feature dialect */
    uint8_t gate;       /* enum vfmig_dev_gate */
    uint8_t running;    /* the device itself runs: MMIO reaches it; never in ERROR */
    uint8_t stream;     /* enum vfmig_dev_stream */
    uint8_t failed;     /* ERROR */
    uint8_t write_open; /* write_id waits for an answer */
    uint8_t owner_gone; /* nobody is to be answered */
};

enum vfmig_dev_gate {
    VFMIG_DEV_GATE_OPEN = 1,
    VFMIG_DEV_GATE_DRAINING,
    VFMIG_DEV_GATE_SHUT,
};

enum vfmig_dev_stream {
    VFMIG_DEV_STREAM_NONE = 0,
    VFMIG_DEV_STREAM_SAVE,
    VFMIG_DEV_STREAM_LOAD,
};

/* The device runs (C45), gate open, no stream. -EINVAL: not a valid feature set. */
int vfmig_dev_init(struct vfmig_dev *dev, uint32_t features, uint64_t drain_timeout_ns);

/* Takes one event. 0, or -EINVAL for an event that does not exist (nothing changed). A refused
 * write is not an error here: it is answered by a REPLY. */
int vfmig_dev_step(struct vfmig_dev *dev, const struct vfmig_dev_event *event, uint64_t now_ns,
                   struct vfmig_dev_actions *ret_actions);

/* When the next TICK is due, absolute; UINT64_MAX: none. */
uint64_t vfmig_dev_deadline(const struct vfmig_dev *dev);

/* The v1 register as a read gives it: N beside !R as written, ERROR as 6. */
static inline uint32_t vfmig_dev_bits(const struct vfmig_dev *dev)
{
    return dev->shown;
}

/* The same as a state of the feature dialect. SR on a device without pre-copy, which only the
 * region dialect can ask for, is RUNNING there. */
enum vfmig_state vfmig_dev_state(const struct vfmig_dev *dev);

/* A write, reset or lost owner is being worked on. */
bool vfmig_dev_busy(const struct vfmig_dev *dev);

/* May the device start a DMA now? */
static inline bool vfmig_dev_dma_allowed(const struct vfmig_dev *dev)
{
    return dev->gate == VFMIG_DEV_GATE_OPEN;
}

/* No DMA can start and none is in flight. */
static inline bool vfmig_dev_is_quiet(const struct vfmig_dev *dev)
{
    return dev->gate == VFMIG_DEV_GATE_SHUT;
}

/* Does MMIO reach the device? Otherwise reads give all ones and writes are dropped (A8). */
static inline bool vfmig_dev_mmio_allowed(const struct vfmig_dev *dev)
{
    return dev->running;
}

/* Are interrupts kept as pending causes (A6)? */
static inline bool vfmig_dev_irq_latched(const struct vfmig_dev *dev)
{
    return dev->gate != VFMIG_DEV_GATE_OPEN;
}

/* A saved stream can be read (SR, SNR, S); while a write is open data still flows. */
static inline bool vfmig_dev_saving(const struct vfmig_dev *dev)
{
    return dev->stream == VFMIG_DEV_STREAM_SAVE;
}

/* Data can be written (Z). */
static inline bool vfmig_dev_loading(const struct vfmig_dev *dev)
{
    return dev->stream == VFMIG_DEV_STREAM_LOAD;
}

/* Saving with R: an empty stream means "nothing now"; without R it means the end (A16). Until a
 * write to S is answered, the stream may still grow. */
static inline bool vfmig_dev_precopying(const struct vfmig_dev *dev)
{
    return dev->stream == VFMIG_DEV_STREAM_SAVE && (dev->shown & VFMIG_V1_RUNNING);
}

#endif
