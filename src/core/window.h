/* SPDX-License-Identifier: BSD-3-Clause */
/* The v1 data window: registers behind device_state and one portion of data at a time. Pure; the
 * bytes themselves are in a buffer of the server's, `capacity` bytes that begin at data_offset.
 *
 * Saving: pending_bytes starts an iteration and acknowledges the portion before it; data_offset
 * makes a portion available; data_size tells its size; both are stable until it is acknowledged
 * (X1). SR to S does not touch the window: an open portion is carried over (A14).
 * Loading: data_offset tells where to write, data_size commits what was written. */
#ifndef VFMIG_CORE_WINDOW_H
#define VFMIG_CORE_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

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
    uint64_t data_offset; /* in the region, at least VFMIG_WINDOW_INFO_SIZE */
    uint64_t capacity;    /* bytes of the data section */
    uint64_t size;        /* saving: bytes of the portion; loading: end of what was written */
    uint32_t mode;        /* enum vfmig_window_mode */
    uint32_t prepared;    /* saving: a portion is there */
};

/* -EINVAL: no room for the registers, no capacity, or the end does not fit in 63 bits. */
int vfmig_window_init(struct vfmig_window *win, uint64_t data_offset, uint64_t capacity);

/* Drops whatever is there and begins (STREAM_SAVE, STREAM_LOAD) or closes (STREAM_DROP). */
void vfmig_window_open(struct vfmig_window *win, enum vfmig_window_mode mode);

/* Size of the region: registers, gap, data section. */
uint64_t vfmig_window_region_size(const struct vfmig_window *win);

/* What an access of size bytes at offset of the region touches. -EINVAL: outside, in the gap, not
 * a field's own width and place, a data access across the end, or a write to a read-only field. */
int vfmig_window_decode(const struct vfmig_window *win, uint64_t offset, uint64_t size, bool write,
                        enum vfmig_window_field *ret_field);

/* pending_bytes: left is the device's estimate of what is not yet in a portion. Acknowledges the
 * portion that is there: the buffer may be reused. 0 unless saving. */
uint64_t vfmig_window_read_pending(struct vfmig_window *win, uint64_t left);

/* data_offset. -EAGAIN (saving): fill the buffer, tell vfmig_window_prepared(), read again.
 * -EINVAL: neither saving nor loading. */
int vfmig_window_read_offset(const struct vfmig_window *win, uint64_t *ret_offset);

/* A portion of size bytes is in the buffer; 0: nothing now (X6). -EINVAL: not saving, one is
 * there already, or larger than the window. */
int vfmig_window_prepared(struct vfmig_window *win, uint64_t size);

/* data_size when saving. -EINVAL: no portion was made available. */
int vfmig_window_read_size(const struct vfmig_window *win, uint64_t *ret_size);

/* Access to the data section; *ret_at is the place in the buffer. Reads stay inside the portion,
 * writes inside the window, 1, 2, 4, 8 or any number of bytes in any order (X5). -EINVAL if not. */
int vfmig_window_data_read(const struct vfmig_window *win, uint64_t offset, uint64_t size,
                           uint64_t *ret_at);
int vfmig_window_data_write(struct vfmig_window *win, uint64_t offset, uint64_t size,
                            uint64_t *ret_at);

/* data_size when loading: the first size bytes of the buffer are to be consumed before the write
 * is answered. -EINVAL: not loading, or more than was written. */
int vfmig_window_commit(struct vfmig_window *win, uint64_t size);

#endif
