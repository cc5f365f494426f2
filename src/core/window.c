/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/window.h"

#include <errno.h>
#include <string.h>

#include "base/sabotage.h"

_Static_assert(sizeof(struct vfmig_window) == 32, "no padding");

/* struct vfio_device_migration_info of the v1 uAPI. */
static const struct field {
    uint8_t offset, size;
    uint8_t writable;
    uint8_t field;
} fields[] = {
    {0, 4, 1, VFMIG_WINDOW_DEVICE_STATE},
    {4, 4, 1, VFMIG_WINDOW_RESERVED}, /* writes are ignored, not refused (X8) */
    {8, 8, 0, VFMIG_WINDOW_PENDING_BYTES},
    {16, 8, 0, VFMIG_WINDOW_DATA_OFFSET},
    {24, 8, 1, VFMIG_WINDOW_DATA_SIZE},
};

int vfmig_window_init(struct vfmig_window *win, uint64_t data_offset, uint64_t capacity)
{
    if (data_offset < VFMIG_WINDOW_INFO_SIZE || capacity == 0 || data_offset > INT64_MAX ||
        capacity > INT64_MAX - data_offset)
        return -EINVAL;
    memset(win, 0, sizeof(*win));
    win->data_offset = data_offset;
    win->capacity = capacity;
    return 0;
}

void vfmig_window_open(struct vfmig_window *win, enum vfmig_window_mode mode)
{
    win->mode = mode;
    win->prepared = 0;
    win->size = 0;
}

uint64_t vfmig_window_region_size(const struct vfmig_window *win)
{
    return win->data_offset + win->capacity;
}

/* True when [offset, offset + size) lies in [start, start + length), nothing overflowing. */
static bool inside(uint64_t offset, uint64_t size, uint64_t start, uint64_t length)
{
    return offset >= start && offset - start <= length && size <= length - (offset - start);
}

int vfmig_window_decode(const struct vfmig_window *win, uint64_t offset, uint64_t size, bool write,
                        enum vfmig_window_field *ret_field)
{
    if (offset >= win->data_offset) {
        if (size == 0 || !inside(offset, size, win->data_offset, win->capacity))
            return -EINVAL;
        *ret_field = VFMIG_WINDOW_DATA;
        return 0;
    }
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        if (offset != fields[i].offset)
            continue;
        if (size != fields[i].size || (write && !fields[i].writable))
            return -EINVAL;
        if (offset == 4 && vfmig_sabotage("window-reserved-strict"))
            return -EINVAL;
        if (offset == 0 && vfmig_sabotage("window-no-state"))
            return -EINVAL;
        *ret_field = (enum vfmig_window_field)fields[i].field;
        return 0;
    }
    return -EINVAL;
}

uint64_t vfmig_window_read_pending(struct vfmig_window *win, uint64_t left)
{
    if (win->mode != VFMIG_WINDOW_SAVE)
        return 0;
    win->prepared = 0;
    win->size = 0;
    return left;
}

int vfmig_window_read_offset(const struct vfmig_window *win, uint64_t *ret_offset)
{
    if (win->mode == VFMIG_WINDOW_CLOSED)
        return -EINVAL;
    if (win->mode == VFMIG_WINDOW_SAVE && (!win->prepared || vfmig_sabotage("window-refill")))
        return -EAGAIN;
    *ret_offset = win->data_offset;
    return 0;
}

int vfmig_window_prepared(struct vfmig_window *win, uint64_t size)
{
    if (win->mode != VFMIG_WINDOW_SAVE || win->prepared || size > win->capacity)
        return -EINVAL;
    win->prepared = 1;
    win->size = size;
    return 0;
}

int vfmig_window_read_size(const struct vfmig_window *win, uint64_t *ret_size)
{
    if (win->mode != VFMIG_WINDOW_SAVE || !win->prepared)
        return -EINVAL;
    *ret_size = win->size;
    return 0;
}

int vfmig_window_data_read(const struct vfmig_window *win, uint64_t offset, uint64_t size,
                           uint64_t *ret_at)
{
    if (win->mode != VFMIG_WINDOW_SAVE || !inside(offset, size, win->data_offset, win->size))
        return -EINVAL;
    if (size != 8 && vfmig_sabotage("window-wide-only"))
        return -EINVAL;
    *ret_at = offset - win->data_offset;
    return 0;
}

int vfmig_window_data_write(struct vfmig_window *win, uint64_t offset, uint64_t size,
                            uint64_t *ret_at)
{
    if (win->mode != VFMIG_WINDOW_LOAD || !inside(offset, size, win->data_offset, win->capacity))
        return -EINVAL;
    *ret_at = offset - win->data_offset;
    if (win->size < *ret_at + size)
        win->size = *ret_at + size;
    return 0;
}

int vfmig_window_commit(struct vfmig_window *win, uint64_t size)
{
    if (win->mode != VFMIG_WINDOW_LOAD || size > win->size)
        return -EINVAL;
    win->size = vfmig_sabotage("window-stale-data") ? win->size : 0;
    return 0;
}
