/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/buffer.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int vfmig_buffer_reserve(struct vfmig_buffer *buf, size_t size)
{
    size_t most = buf->limit ? buf->limit : SIZE_MAX / 4;
    if (size > most || buf->size > most - size)
        return -ENOBUFS;
    size_t need = buf->size + size + 1; /* one more, so that text is terminated */
    if (need <= buf->capacity)
        return 0;
    size_t capacity = buf->capacity ? buf->capacity : 256;
    while (capacity < need)
        capacity *= 2;
    uint8_t *data = realloc(buf->data, capacity);
    if (!data)
        return -ENOMEM;
    buf->data = data;
    buf->capacity = capacity;
    return 0;
}

int vfmig_buffer_append(struct vfmig_buffer *buf, const void *data, size_t size)
{
    int ret = vfmig_buffer_reserve(buf, size);
    if (ret < 0)
        return ret;
    if (data && size)
        memcpy(buf->data + buf->size, data, size);
    else
        memset(buf->data + buf->size, 0, size);
    buf->size += size;
    buf->data[buf->size] = 0;
    return 0;
}

int vfmig_buffer_printf(struct vfmig_buffer *buf, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int size = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (size < 0)
        return -EINVAL;
    int ret = vfmig_buffer_reserve(buf, (size_t)size);
    if (ret < 0)
        return ret;
    va_start(args, format);
    vsnprintf((char *)buf->data + buf->size, (size_t)size + 1, format, args);
    va_end(args);
    buf->size += (size_t)size;
    return 0;
}

void vfmig_buffer_free(struct vfmig_buffer *buf)
{
    free(buf->data);
    buf->data = NULL;
    buf->size = buf->capacity = 0;
}
