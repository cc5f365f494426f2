/* SPDX-License-Identifier: BSD-3-Clause */
/* A device over vfio-user: the client, in both dialects. */
#ifndef VFMIG_TARGET_USER_H
#define VFMIG_TARGET_USER_H

#include "dirty/tracker.h"
#include "target/target.h"
#include "vfmig/memory.h"

/* DMA by message (DMA_READ, DMA_WRITE): the server's access to what was mapped without a
 * descriptor. Called from one thread of the target's own when there is a twin socket, else from
 * whichever thread waits for a reply. It may block on anything but a command to this target.
 * 0 or a negative errno for the reply. */
struct vfmig_user_dma {
    void *opaque;
    int (*read)(void *opaque, uint64_t iova, void *data, uint32_t size);
    int (*write)(void *opaque, uint64_t iova, const void *data, uint32_t size);
};

/* All zero is a good default. */
struct vfmig_user_options {
    enum vfmig_dialect dialect;
    /* Without callbacks and with memory, IOVA is GPA and memory is accessed directly; with neither
     * every DMA message gets EFAULT. Kept by reference. */
    struct vfmig_user_dma dma;
    const struct vfmig_memory *memory;
    /* Marked at address IOVA after each DMA_WRITE and before its reply; NULL when the callback does
     * it itself (because of a translation). */
    struct vfmig_tracker *own;
    uint64_t timeout_ns;    /* of each request but state and reset; 0: 5 s */
    uint64_t reset_ns;      /* of DEVICE_RESET; 0: 30 s */
    uint32_t max_data_xfer; /* bytes offered for one message; 0: VFMIG_MAX_DATA_XFER */
    bool no_twin;           /* DMA by message over the main socket */
    bool no_window;         /* device data by message only */
    uint32_t window;        /* bytes asked for in one shared window of the feature dialect; the
                               server may give less or none; 0: 16 MiB, most 64 MiB */
};

/* Connects to a vfio-user socket ("unix:PATH" or just the path), negotiates, and learns what the
 * device is. Requests carry at most 32 KiB of data, because some servers read a request with one
 * recv, unless the server is known to be this project's: both dialects on one device, feature 9
 * (MIG_DATA_SIZE) over vfio-user, or region capability 6. The last one also says that N stops all
 * DMA (VFMIG_QUIET_ALL).
 * -ENOTSUP when it cannot migrate in the dialect asked for; AUTO accepts that too, and
 * info.features is 0 then. Closed by its ops->close, once no operation is open. */
int vfmig_user_open(const char *path, const struct vfmig_user_options *opt,
                    struct vfmig_target **ret_target, struct vfmig_error *reterr);

/* Speaks to the device in another dialect from now on; the connection and its mappings stay. Only
 * in R and while no migration is under way: info.dialect, features and quiet may change. -ENOTSUP:
 * the device does not migrate in that dialect, nothing changed. */
int vfmig_user_set_dialect(struct vfmig_target *target, enum vfmig_dialect dialect,
                           struct vfmig_error *reterr);

/* Replaces the tracker that DMA_WRITEs are marked in (NULL: none). Any thread. */
void vfmig_user_set_own(struct vfmig_target *target, struct vfmig_tracker *own);

#endif
