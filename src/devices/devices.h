/* SPDX-License-Identifier: BSD-3-Clause */
/* The devices of `vfmig device NAME`, on the public device interface only. */
#ifndef VFMIG_DEVICES_DEVICES_H
#define VFMIG_DEVICES_DEVICES_H

#include <stdbool.h>
#include <stdint.h>

#include "vfmig/device.h"

/* Calls of a device that a knob can make fail. */
enum vfmig_device_step {
    VFMIG_DEVICE_STEP_NONE = 0,
    VFMIG_DEVICE_STEP_STOP,
    VFMIG_DEVICE_STEP_START,
    VFMIG_DEVICE_STEP_SAVE_BEGIN,
    VFMIG_DEVICE_STEP_SAVE_PRECOPY,
    VFMIG_DEVICE_STEP_SAVE,
    VFMIG_DEVICE_STEP_LOAD,
    VFMIG_DEVICE_STEP_LOAD_END,
    VFMIG_DEVICE_STEP_COUNT
};

/* "stop", "load_end"...; NULL for anything else. */
const char *vfmig_device_step_name(enum vfmig_device_step step);

/* Arcs between states that a knob can make take longer. */
enum vfmig_device_arc {
    VFMIG_DEVICE_ARC_QUIESCE = 0, /* until all DMA has ended: N set, or R cleared without N */
    VFMIG_DEVICE_ARC_STOP,        /* R cleared */
    VFMIG_DEVICE_ARC_START,       /* R set */
    VFMIG_DEVICE_ARC_PRECOPY,     /* S set with R */
    VFMIG_DEVICE_ARC_SAVE,        /* S set without R, or R cleared under S: capture */
    VFMIG_DEVICE_ARC_LOAD,        /* Z cleared */
    VFMIG_DEVICE_ARC_RESET,       /* client reset, client gone, Z set */
    VFMIG_DEVICE_ARC_COUNT
};

/* "quiesce", "stop"...; NULL for anything else. */
const char *vfmig_device_arc_name(enum vfmig_device_arc arc);

/* Knobs; all 0 is the plain device. vfmig_device_knobs_check() says which ones a kind has. */
struct vfmig_device_knobs {
    uint64_t state_bytes;      /* 0: the kind's own size */
    uint64_t dirty_rate;       /* bytes of it that change each second by themselves */
    uint64_t save_rate;        /* bytes per second at most; 0: without limit */
    uint64_t load_rate;
    uint64_t arc_ns[VFMIG_DEVICE_ARC_COUNT]; /* each arc takes so much longer */
    uint64_t latency_ns;       /* each descriptor stays in flight for this long */
    uint64_t quiesce_ns;       /* the one in flight when N is asked for ends after this long */
    uint32_t look_ahead;       /* descriptors that are fetched before their turn; 0 to 32 */
    uint64_t drain_timeout_ns; /* 0: the library's default */
    uint32_t max_data_xfer_bytes; /* 0: the library's default */
    bool no_ndma;
    bool no_precopy;
    bool no_dma_log;
    enum vfmig_device_step fail_step; /* fails ... */
    int fail_errno;                   /* ... with this (0: EIO) ... */
    uint32_t fail_at;                 /* ... the fail_at-th time (from 1; 0: every time) ... */
    uint64_t fail_byte;               /* ... or when this byte of a save or load (from 1) is due */
};

struct vfmig_device_kind {
    const char *name;
    const char *help; /* one line */
    int (*make)(const struct vfmig_device_knobs *knobs, struct vfmig_device **ret_dev,
                struct vfmig_error *reterr);
    uint32_t bit; /* in the table of knobs */
};

/* Ends with a row whose name is NULL. */
extern const struct vfmig_device_kind vfmig_device_kinds[];

/* The kind called name, or NULL. */
const struct vfmig_device_kind *vfmig_device_kind_find(const char *name);

/* -EINVAL: a knob is turned that this kind does not have, or that makes no sense as it is; the
 * sentence names it. */
int vfmig_device_knobs_check(const struct vfmig_device_kind *kind,
                             const struct vfmig_device_knobs *knobs, struct vfmig_error *reterr);

/* knobs.c: vfmig_device_new() of a device behind its knobs: NDMA, pre-copy, log and limits go into
 * the config, latencies, rates and failures around the ops. */
int vfmig_device_new_with_knobs(const struct vfmig_device_knobs *knobs,
                                const struct vfmig_device_config *config,
                                const struct vfmig_device_ops *ops, void *user,
                                struct vfmig_device **ret_dev, struct vfmig_error *reterr);

/* A device without state, registers or DMA: what a migration costs when the device costs
 * nothing. */
int vfmig_null_device_new(const struct vfmig_device_knobs *knobs, struct vfmig_device **ret_dev,
                          struct vfmig_error *reterr);

/* The device of dma_regs.h: a descriptor ring in guest memory, SRAM as internal state with a log
 * of its changes for pre-copy, MSI-X. */
int vfmig_dma_device_new(const struct vfmig_device_knobs *knobs, struct vfmig_device **ret_dev,
                         struct vfmig_error *reterr);

/* The device of bulk_regs.h: up to VFMIG_BULK_STATE_MAX bytes of internal state that changes by
 * itself, with a log of the changes for pre-copy. Takes memory for blocks that were written or
 * loaded only. */
#define VFMIG_BULK_STATE_DEFAULT (UINT64_C(64) << 20)
#define VFMIG_BULK_STATE_MAX     (UINT64_C(64) << 30)
int vfmig_bulk_device_new(const struct vfmig_device_knobs *knobs, struct vfmig_device **ret_dev,
                          struct vfmig_error *reterr);

#endif
