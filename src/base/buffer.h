/* SPDX-License-Identifier: BSD-3-Clause */
/* A byte buffer that grows up to a limit. All zero is an empty one without a limit. */
#ifndef VFMIG_BASE_BUFFER_H
#define VFMIG_BASE_BUFFER_H

#include <stddef.h>
#include <stdint.h>

struct vfmig_buffer {
    uint8_t *data;
    size_t size;
    size_t capacity;
    size_t limit; /* most bytes it may hold, 0 for no limit */
};

/* Makes room for size more bytes, so that appending them moves nothing. Errors as append. */
int vfmig_buffer_reserve(struct vfmig_buffer *buf, size_t size);

/* Appends; data NULL appends zeroes. -ENOMEM or, past the limit, -ENOBUFS; nothing changed then. */
int vfmig_buffer_append(struct vfmig_buffer *buf, const void *data, size_t size);

/* Appends formatted text without its terminator; the byte behind the text is always zero. */
int vfmig_buffer_printf(struct vfmig_buffer *buf, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

void vfmig_buffer_free(struct vfmig_buffer *buf);

#endif
