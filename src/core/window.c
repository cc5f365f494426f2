/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/window.h"

#include <errno.h>
#include <string.h>

#include "base/sabotage.h"

_Static_assert(sizeof(struct vfmig_window) == 40 + 8 * VFMIG_MAX_WINDOWS, "no padding");

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

int vfmig_window_init(struct vfmig_window *win, uint64_t data_offset, uint64_t capacity,
                      uint32_t count)
{
    if (data_offset < VFMIG_WINDOW_INFO_SIZE || capacity == 0 || data_offset > INT64_MAX ||
        count == 0 || count > VFMIG_MAX_WINDOWS || capacity > (INT64_MAX - data_offset) / count)
        return -EINVAL;
    memset(win, 0, sizeof(*win));
    win->data_offset = data_offset;
    win->capacity = capacity;
    win->count = count;
    return 0;
}

void vfmig_window_open(struct vfmig_window *win, enum vfmig_window_mode mode)
{
    win->mode = mode;
    win->prepared = 0;
    win->current = 0;
    memset(win->size, 0, sizeof(win->size));
}

uint64_t vfmig_window_region_size(const struct vfmig_window *win)
{
    return win->data_offset + win->capacity * win->count;
}

void vfmig_window_set_mapped(struct vfmig_window *win, bool mapped)
{
    win->mapped = mapped;
}

uint64_t vfmig_window_at(const struct vfmig_window *win)
{
    return win->capacity * win->current;
}

/* From the current window to the end of the section: what a portion that is loaded may take. */
static uint64_t room(const struct vfmig_window *win)
{
    return win->capacity * (win->count - win->current);
}

static void turn(struct vfmig_window *win)
{
    if (!vfmig_sabotage("window-not-kept"))
        win->current = (win->current + 1) % win->count;
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
        if (size == 0 || !inside(offset, size, win->data_offset, win->capacity * win->count))
            return -EINVAL;
        *ret_field = VFMIG_WINDOW_DATA;
        return 0;
    }
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        if (offset != fields[i].offset)
            continue;
        if (size != fields[i].size && size <= 8 && vfmig_sabotage("window-any-width"))
            size = fields[i].size;
        if (offset == 16 && vfmig_sabotage("window-offset-written"))
            write = false;
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
    if (win->prepared && win->size[win->current])
        turn(win);
    win->prepared = 0;
    return left;
}

int vfmig_window_read_offset(struct vfmig_window *win, uint64_t *ret_offset)
{
    if (win->mode == VFMIG_WINDOW_CLOSED)
        return -EINVAL;
    if (win->mode == VFMIG_WINDOW_SAVE && (!win->prepared || vfmig_sabotage("window-refill"))) {
        win->size[win->current] = 0;
        return -EAGAIN;
    }
    *ret_offset = win->data_offset + vfmig_window_at(win);
    return 0;
}

int vfmig_window_prepared(struct vfmig_window *win, uint64_t size)
{
    if (win->mode != VFMIG_WINDOW_SAVE || win->prepared || size > win->capacity)
        return -EINVAL;
    win->prepared = 1;
    win->size[win->current] = size;
    return 0;
}

int vfmig_window_read_size(const struct vfmig_window *win, uint64_t *ret_size)
{
    if (win->mode != VFMIG_WINDOW_SAVE || !win->prepared)
        return -EINVAL;
    *ret_size = win->size[win->current];
    return 0;
}

int vfmig_window_data_read(const struct vfmig_window *win, uint64_t offset, uint64_t size,
                           uint64_t *ret_at)
{
    if (win->mode != VFMIG_WINDOW_SAVE || offset < win->data_offset)
        return -EINVAL;
    uint64_t at = offset - win->data_offset, index = at / win->capacity;
    if (index >= win->count ||
        !inside(at, size, win->capacity * index, win->size[index]))
        return -EINVAL;
    if (size != 8 && vfmig_sabotage("window-wide-only"))
        return -EINVAL;
    *ret_at = at;
    return 0;
}

int vfmig_window_data_write(struct vfmig_window *win, uint64_t offset, uint64_t size,
                            uint64_t *ret_at)
{
    uint64_t begin = win->data_offset + vfmig_window_at(win);

    if (win->mode != VFMIG_WINDOW_LOAD || !inside(offset, size, begin, room(win)))
        return -EINVAL;
    uint64_t end = offset - begin + size;
    *ret_at = offset - win->data_offset;
    if (win->size[win->current] < end)
        win->size[win->current] = end;
    return 0;
}

int vfmig_window_commit(struct vfmig_window *win, uint64_t size, uint64_t *ret_at)
{
    if (win->mode != VFMIG_WINDOW_LOAD ||
        size > (win->mapped ? room(win) : win->size[win->current]))
        return -EINVAL;
    *ret_at = vfmig_window_at(win);
    win->size[win->current] = vfmig_sabotage("window-stale-data") ? win->size[win->current] : 0;
    if (size)
        turn(win);
    return 0;
}
