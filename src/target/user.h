/* SPDX-License-Identifier: BSD-3-Clause */
/* A device over vfio-user: the client, in both dialects. */
#ifndef VFMIG_TARGET_USER_H
#define VFMIG_TARGET_USER_H

#include "dirty/tracker.h"
#include "target/target.h"
#include "vfmig/memory.h"

/* DMA by message (DMA_READ, DMA_WRITE): the server's access to what was mapped without a
 * descriptor. Called from one thread of the target's own when there is a twin socket, else from
 * whichever thread waits for a reply. It may block on anything but a command to this target; what
 * takes longer it answers later, because the server's other accesses wait for it.
 * 0 or a negative errno for the reply; -EINPROGRESS: vfmig_user_later() was called. */
struct vfmig_user_dma {
    void *opaque;
    int (*read)(void *opaque, uint64_t iova, void *data, uint32_t size);
    int (*write)(void *opaque, uint64_t iova, const void *data, uint32_t size);
    /* NULL, or asked before read: where all of it lies in memory that stays, so that no copy is
     * made; NULL: read is to be called. */
    const void *(*in_place)(void *opaque, uint64_t iova, uint32_t size);
};

/* An access that is answered later. A value, nothing is allocated for it. */
struct vfmig_user_later {
    struct vfmig_target *target; /* NULL: none */
    uint64_t id;
};

/* In a callback read or write, which then returns -EINPROGRESS: from now on everything else is
 * served, and the access is answered by vfmig_user_answer(). *ret_data: its bytes, what is written
 * or room for what is read; good until the answer. -ENOSPC: VFMIG_MAX_LATE_DMA of this target are
 * open, or VFMIG_MAX_LATE_DMA_BYTES of them; -EINVAL: not in a callback, or called already. */
int vfmig_user_later(struct vfmig_target *target, struct vfmig_user_later *ret_later,
                     void **ret_data);

/* 0 or a negative errno for the reply. Any thread, any order, before the callback has returned too;
 * not after the target was closed. A handle that was answered already is stale: nothing happens. When
 * the connection has ended meanwhile nobody is told. */
void vfmig_user_answer(struct vfmig_user_later later, int result);

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
    bool incoming;          /* state will be loaded into it, and it is fresh: what is needed for that
                               is tried out, which leaves it reset or as it was */
    bool late_load;         /* with incoming: a device that cannot be halted once its state is loaded
                               may migrate, though a bad state is only found out when it must run */
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

/* DMA by message comes over a socket of its own and is served at any time. Without it, only while
 * somebody waits for the reply to a command. */
bool vfmig_user_has_twin(const struct vfmig_target *target);

/* Replaces the tracker that DMA_WRITEs are marked in (NULL: none). Any thread. */
void vfmig_user_set_own(struct vfmig_target *target, struct vfmig_tracker *own);

#endif
