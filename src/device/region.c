/* SPDX-License-Identifier: BSD-3-Clause */
/* The v1 migration region: its registers are the window's and the machine's, its bytes come from
 * and go to the device stream. */
#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "device/internal.h"

int region_reply(struct client *c, const struct vfmig_user_header *request,
                    const struct vfmig_user_region_access *access, const void *data)
{
    return server_reply(c, request, access, sizeof(*access), data, data ? access->count : 0, NULL,
                        0);
}

/* data_offset: makes a portion available before it returns. */
int region_v1_prepare(struct vfmig_device *dev, uint64_t *ret_offset)
{
    uint32_t room = dev->config.window_bytes - dev->window_at;
    int r = vfmig_window_read_offset(&dev->window, ret_offset);

    if (r != -EAGAIN)
        return r;
    ssize_t n = stream_read(dev, dev->window_buf + dev->window_at, room);
    dev->window_at += n > 0 ? (uint32_t)n : 0;
    if (park_is_short(dev, n, room))
        return -EINPROGRESS;
    if (n < 0 && !dev->window_at)
        return (int)n;
    r = vfmig_window_prepared(&dev->window, dev->window_at);
    dev->window_at = 0;
    return r < 0 ? r : vfmig_window_read_offset(&dev->window, ret_offset);
}

int region_v1_read(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_region_access access;
    enum vfmig_window_field field;
    uint64_t value = 0, at;

    memcpy(&access, msg->payload, sizeof(access));
    int r = vfmig_window_decode(&dev->window, access.offset, access.count, false, &field);
    if (r < 0)
        return r;
    if (field != VFMIG_WINDOW_DEVICE_STATE && field != VFMIG_WINDOW_RESERVED &&
        (r = park_check(dev)) < 0)
        return r;
    switch (field) {
    case VFMIG_WINDOW_DEVICE_STATE:
        value = vfmig_dev_bits(&dev->mig);
        break;
    case VFMIG_WINDOW_RESERVED: /* X8 */
        value = vfmig_sabotage("reserved-reads-ones") ? UINT64_MAX : 0;
        break;
    case VFMIG_WINDOW_PENDING_BYTES:
        value = dev->window.mode == VFMIG_WINDOW_SAVE ? stream_left(dev) : 0;
        value = vfmig_window_read_pending(&dev->window, value);
        break;
    case VFMIG_WINDOW_DATA_OFFSET:
        r = region_v1_prepare(dev, &value);
        if (r == -EINPROGRESS)
            return park_window(c, msg, PARK_OFFSET);
        break;
    case VFMIG_WINDOW_DATA_SIZE:
        r = vfmig_window_read_size(&dev->window, &value);
        break;
    case VFMIG_WINDOW_DATA:
        if (access.count < 8 && vfmig_sabotage("window-words-only"))
            return -EINVAL;
        r = vfmig_window_data_read(&dev->window, access.offset, access.count, &at);
        return r < 0 ? r : region_reply(c, &msg->header, &access, dev->window_buf + at);
    }
    return r < 0 ? r : region_reply(c, &msg->header, &access, &value);
}

static int write_state(struct client *c, struct vfmig_user_msg *msg, uint32_t value)
{
    struct vfmig_device *dev = c->dev;
    uint64_t id;

    if (park_loads(dev) || !server_defer(c, &msg->header, msg->payload,
                                         sizeof(struct vfmig_user_region_access), &id))
        return -EBUSY;
    migrate_event(dev, VFMIG_DEV_EVENT_WRITE_V1, value, id);
    return 0;
}

/* data_size in Z: consumed before the write is answered. */
static int write_size(struct vfmig_device *dev, uint64_t size)
{
    int r = vfmig_window_commit(&dev->window, size);
    return r < 0 ? r : stream_write(dev, dev->window_buf, (size_t)size);
}

int region_v1_write(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_region_access access;
    enum vfmig_window_field field;
    uint64_t value = 0, at;

    memcpy(&access, msg->payload, sizeof(access));
    int r = vfmig_window_decode(&dev->window, access.offset, access.count, true, &field);
    if (r < 0)
        return r;
    if ((field == VFMIG_WINDOW_DATA_SIZE || field == VFMIG_WINDOW_DATA) &&
        (r = park_check(dev)) < 0)
        return r;
    const uint8_t *data = msg->payload + sizeof(access);
    if (access.count <= sizeof(value))
        memcpy(&value, data, access.count);
    switch (field) {
    case VFMIG_WINDOW_DEVICE_STATE:
        return write_state(c, msg, (uint32_t)value);
    case VFMIG_WINDOW_RESERVED:
        break;
    case VFMIG_WINDOW_DATA_SIZE:
        r = write_size(dev, value);
        if (r == -EINPROGRESS)
            return park_window(c, msg, PARK_SIZE);
        break;
    case VFMIG_WINDOW_DATA:
        r = vfmig_window_data_write(&dev->window, access.offset, access.count, &at);
        if (r == 0)
            memcpy(dev->window_buf + at, data, access.count);
        break;
    case VFMIG_WINDOW_PENDING_BYTES:
    case VFMIG_WINDOW_DATA_OFFSET:
        r = -EINVAL;
        break;
    }
    if (r < 0)
        return r;
    return region_reply(c, &msg->header, &access, NULL);
}
