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

/* Knobs; all 0 is the plain device. A device ignores those it has no use for. */
struct vfmig_device_knobs {
    uint64_t latency_ns;       /* each descriptor stays in flight for this long */
    uint64_t quiesce_ns;       /* the one in flight when N is asked for ends after this long */
    uint64_t pad_bytes;        /* added to the device's state */
    uint64_t drain_timeout_ns; /* 0: the library's default */
    uint32_t max_data_xfer_bytes; /* 0: the library's default */
    bool no_ndma;
    bool no_precopy;
    enum vfmig_device_step fail_step; /* fails with -EIO ... */
    uint32_t fail_at;                 /* ... the fail_at-th time (from 1; 0: every time) */
};

struct vfmig_device_kind {
    const char *name;
    const char *help; /* one line */
    int (*make)(const struct vfmig_device_knobs *knobs, struct vfmig_device **ret_dev,
                struct vfmig_error *reterr);
};

/* Ends with a row whose name is NULL. */
extern const struct vfmig_device_kind vfmig_device_kinds[];

/* The kind called name, or NULL. */
const struct vfmig_device_kind *vfmig_device_kind_find(const char *name);

/* A device without state, registers or DMA: what a migration costs when the device costs
 * nothing. */
int vfmig_null_device_new(const struct vfmig_device_knobs *knobs, struct vfmig_device **ret_dev,
                          struct vfmig_error *reterr);

/* The device of dma_regs.h: a descriptor ring in guest memory, SRAM as internal state with a log
 * of its changes for pre-copy, MSI-X. */
int vfmig_dma_device_new(const struct vfmig_device_knobs *knobs, struct vfmig_device **ret_dev,
                         struct vfmig_error *reterr);

#endif
