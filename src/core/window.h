/* SPDX-License-Identifier: BSD-3-Clause */
/* The v1 data window: registers behind device_state and one portion of data at a time. Pure; the
 * bytes themselves are in a buffer of the server's, the data section, which the client may have
 * mapped. It holds `count` windows of `capacity` bytes that are used in turn, so data_offset
 * changes from portion to portion.
 *
 * Saving: pending_bytes starts an iteration and acknowledges the portion before it; data_offset
 * makes a portion available; data_size tells its size; both are stable until it is acknowledged
 * (X1). What was acknowledged stays readable until its window is filled again, so a client may
 * acknowledge first and take the bytes while the next portion is made.
 * SR to S does not touch the window: an open portion is carried over (A14).
 * Loading: data_offset tells where to write, data_size commits what was written. A portion that
 * is larger than a window may run on into those behind it, as far as the section goes: clients
 * look at the end of the region only. */
#ifndef VFMIG_CORE_WINDOW_H
#define VFMIG_CORE_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bounds.h"

#define VFMIG_WINDOW_INFO_SIZE 32u /* struct vfio_device_migration_info */

enum vfmig_window_field {
    VFMIG_WINDOW_DEVICE_STATE = 1, /* the dev machine's */
    VFMIG_WINDOW_RESERVED,         /* reads 0, writes ignored (X8) */
    VFMIG_WINDOW_PENDING_BYTES,
    VFMIG_WINDOW_DATA_OFFSET,
    VFMIG_WINDOW_DATA_SIZE,
    VFMIG_WINDOW_DATA, /* the data section */
};

enum vfmig_window_mode {
    VFMIG_WINDOW_CLOSED = 0,
    VFMIG_WINDOW_SAVE,
    VFMIG_WINDOW_LOAD,
};

struct vfmig_window {
    uint64_t data_offset; /* of the data section in the region, at least VFMIG_WINDOW_INFO_SIZE */
    uint64_t capacity;    /* bytes of one window */
    uint32_t count;       /* windows in the data section */
    uint32_t current;     /* whose turn it is */
    uint32_t mode;        /* enum vfmig_window_mode */
    uint32_t prepared;    /* saving: a portion is there that was not acknowledged */
    uint64_t mapped;      /* the client can write without our seeing it */
    /* Saving: bytes of the portion that each holds. Loading, the current one: end of what was
     * written by message. */
    uint64_t size[VFMIG_MAX_WINDOWS];
};

/* -EINVAL: no room for the registers, no capacity, no window or too many, or the end does not fit
 * in 63 bits. */
int vfmig_window_init(struct vfmig_window *win, uint64_t data_offset, uint64_t capacity,
                      uint32_t count);

/* Drops whatever is there and begins (STREAM_SAVE, STREAM_LOAD) or closes (STREAM_DROP). */
void vfmig_window_open(struct vfmig_window *win, enum vfmig_window_mode mode);

/* Size of the region: registers, gap, data section. */
uint64_t vfmig_window_region_size(const struct vfmig_window *win);

/* A client was given the data section to map, or nobody has it any more. While it is mapped, what
 * was written is known to the client alone. */
void vfmig_window_set_mapped(struct vfmig_window *win, bool mapped);

/* What an access of size bytes at offset of the region touches. -EINVAL: outside, in the gap, not
 * a field's own width and place, a data access across the end, or a write to a read-only field. */
int vfmig_window_decode(const struct vfmig_window *win, uint64_t offset, uint64_t size, bool write,
                        enum vfmig_window_field *ret_field);

/* pending_bytes: left is the device's estimate of what is not yet in a portion. Acknowledges the
 * portion that is there: the next one goes into the next window. 0 unless saving. */
uint64_t vfmig_window_read_pending(struct vfmig_window *win, uint64_t left);

/* data_offset. -EAGAIN (saving): fill the window at vfmig_window_at(), whose old portion is gone
 * now, tell vfmig_window_prepared(), read again. -EINVAL: neither saving nor loading. */
int vfmig_window_read_offset(struct vfmig_window *win, uint64_t *ret_offset);

/* Place of the current window in the data section. */
uint64_t vfmig_window_at(const struct vfmig_window *win);

/* A portion of size bytes is in the window; 0: nothing now (X6). -EINVAL: not saving, one is
 * there already, or larger than the window. */
int vfmig_window_prepared(struct vfmig_window *win, uint64_t size);

/* data_size when saving. -EINVAL: no portion was made available. */
int vfmig_window_read_size(const struct vfmig_window *win, uint64_t *ret_size);

/* Access to the data section; *ret_at is the place in it. Reads stay inside one portion, the
 * current one or one that is kept; writes go to the current window and what is behind it; 1, 2, 4,
 * 8 or any number of bytes in any order (X5). -EINVAL if not. */
int vfmig_window_data_read(const struct vfmig_window *win, uint64_t offset, uint64_t size,
                           uint64_t *ret_at);
int vfmig_window_data_write(struct vfmig_window *win, uint64_t offset, uint64_t size,
                            uint64_t *ret_at);

/* data_size when loading: size bytes at *ret_at of the data section are to be consumed before the
 * write is answered; the next window follows. -EINVAL: not loading, or more than was written or,
 * when it is mapped, than can have been. */
int vfmig_window_commit(struct vfmig_window *win, uint64_t size, uint64_t *ret_at);

#endif
