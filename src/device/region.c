/* SPDX-License-Identifier: BSD-3-Clause */
/* The v1 migration region: its registers are the window's and the machine's, its bytes come from
 * and go to the device stream. */
#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "device/internal.h"

struct shared *region_section(struct client *c)
{
    struct vfmig_device *dev = c->dev;
    bool is_owner = c == &dev->owner;
    struct shared *s = is_owner ? &dev->owner_section : &dev->session_section;

    if (!is_owner && !dev->session.open)
        return NULL;
    if (s->fd < 0 && shared_make(s, DATA_OFFSET, vfmig_window_region_size(&dev->window) -
                                                     DATA_OFFSET) < 0)
        return NULL;
    return s;
}

int region_hand_over(struct vfmig_device *dev)
{
    if (dev->window.mode == VFMIG_WINDOW_CLOSED || dev->owner_section.fd < 0)
        return 0;
    struct shared *to = region_section(&dev->control);
    if (!to)
        return -ENOMEM;
    memcpy(to->map, dev->owner_section.map, to->size);
    park_move_section(dev, &dev->owner_section, to);
    return 0;
}

void region_drop_section(struct vfmig_device *dev, struct shared *section)
{
    park_drop_section(dev, section);
    shared_drop(section);
    if (dev->owner_section.fd < 0 && dev->session_section.fd < 0)
        vfmig_window_set_mapped(&dev->window, false);
}

int region_reply(struct client *c, const struct vfmig_user_header *request,
                    const struct vfmig_user_region_access *access, const void *data)
{
    return server_reply(c, request, access, sizeof(*access), data, data ? access->count : 0, NULL,
                        0);
}

/* data_offset: makes a portion available before it returns. */
int region_v1_prepare(struct vfmig_device *dev, const struct shared *section, uint64_t *ret_offset)
{
    uint32_t room = dev->config.window_bytes - dev->window_at;
    int r = vfmig_window_read_offset(&dev->window, ret_offset);

    if (r != -EAGAIN)
        return r;
    uint8_t *at = section->map + vfmig_window_at(&dev->window) + dev->window_at;
    ssize_t n = stream_read(dev, at, room, /* shared= */ true);
    dev->window_at += n > 0 ? (uint32_t)n : 0;
    if (park_is_short(dev, n, room))
        return -EINPROGRESS;
    if (n < 0 && !dev->window_at)
        return (int)n;
    if (dev->window_at)
        COUNT(dev, windows_filled);
    r = vfmig_window_prepared(&dev->window, dev->window_at);
    dev->window_at = 0;
    return r < 0 ? r : vfmig_window_read_offset(&dev->window, ret_offset);
}

int region_v1_read(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_region_access access;
    enum vfmig_window_field field;
    struct shared *section = NULL;
    uint64_t value = 0, at;

    memcpy(&access, msg->payload, sizeof(access));
    int r = vfmig_window_decode(&dev->window, access.offset, access.count, false, &field);
    if (r == 0 && (field == VFMIG_WINDOW_DATA_OFFSET || field == VFMIG_WINDOW_DATA) &&
        !(section = region_section(c)))
        r = -ENOMEM;
    if (r < 0)
        return r;
    if (field != VFMIG_WINDOW_DEVICE_STATE && field != VFMIG_WINDOW_RESERVED &&
        (r = park_check(dev)) < 0)
        return r;
    switch (field) {
    case VFMIG_WINDOW_DEVICE_STATE:
        value = vfmig_dev_bits(&dev->mig);
        if (dev->log.mode == LOG_ON && vfmig_sabotage("log-in-device-state"))
            value |= 16;
        break;
    case VFMIG_WINDOW_RESERVED: /* X8 */
        value = vfmig_sabotage("reserved-reads-ones") ? UINT64_MAX : 0;
        break;
    case VFMIG_WINDOW_PENDING_BYTES:
        value = dev->window.mode == VFMIG_WINDOW_SAVE ? stream_left(dev) : 0;
        value = vfmig_window_read_pending(&dev->window, value);
        if (dev->window.mode == VFMIG_WINDOW_SAVE && vfmig_sabotage("pending-is-stale"))
            value += !value && !vfmig_dev_precopying(&dev->mig);
        break;
    case VFMIG_WINDOW_DATA_OFFSET:
        r = region_v1_prepare(dev, section, &value);
        if (r == -EINPROGRESS)
            return park_region(c, msg, PARK_OFFSET, section, 0);
        break;
    case VFMIG_WINDOW_DATA_SIZE:
        r = vfmig_window_read_size(&dev->window, &value);
        if (r == 0 && vfmig_sabotage("window-size-told-once") && dev->window.prepared++ > 1)
            value = 0;
        if (vfmig_dev_precopying(&dev->mig) && vfmig_sabotage("precopy-size-too-large"))
            value = vfmig_window_region_size(&dev->window);
        if (vfmig_dev_precopying(&dev->mig) && !vfmig_dev_dma_allowed(&dev->mig) &&
            vfmig_sabotage("ndma-size-too-large"))
            value = vfmig_window_region_size(&dev->window);
        break;
    case VFMIG_WINDOW_DATA:
        if (access.count < 8 && vfmig_sabotage("window-words-only"))
            return -EINVAL;
        r = vfmig_window_data_read(&dev->window, access.offset, access.count, &at);
        if (r < 0)
            return r;
        COUNT(dev, data_messages);
        return region_reply(c, &msg->header, &access, section->map + at);
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
static int write_size(struct vfmig_device *dev, const struct shared *section, uint64_t size,
                      uint64_t *ret_at)
{
    if (size > dev->config.window_bytes && vfmig_sabotage("window-size-cut"))
        size = 0;
    int r = vfmig_window_commit(&dev->window, size, ret_at);

    if (r < 0)
        return r;
    if (size)
        COUNT(dev, windows_loaded);
    r = stream_write(dev, section->map + *ret_at, (size_t)size, /* shared= */ true);
    return r == 0 && dev->stream.dec.have && vfmig_sabotage("split-portion-refused") ? -EINVAL : r;
}

int region_v1_write(struct client *c, struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_region_access access;
    enum vfmig_window_field field;
    struct shared *section = NULL;
    uint64_t value = 0, at;

    memcpy(&access, msg->payload, sizeof(access));
    int r = vfmig_window_decode(&dev->window, access.offset, access.count, true, &field);
    if (r < 0 && access.offset == 0 && vfmig_sabotage("window-refusal-acts"))
        migrate_event(dev, VFMIG_DEV_EVENT_WRITE_V1, 0, UINT64_MAX);
    if (r == 0 && (field == VFMIG_WINDOW_DATA_SIZE || field == VFMIG_WINDOW_DATA) &&
        !(section = region_section(c)))
        r = -ENOMEM;
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
        r = write_size(dev, section, value, &at);
        if (r == -EINPROGRESS)
            return park_region(c, msg, PARK_SIZE, section, at);
        break;
    case VFMIG_WINDOW_DATA:
        r = vfmig_window_data_write(&dev->window, access.offset, access.count, &at);
        if (r == 0) {
            COUNT(dev, data_messages);
            memcpy(section->map + at, data, access.count);
        }
        break;
    case VFMIG_WINDOW_PENDING_BYTES:
    case VFMIG_WINDOW_DATA_OFFSET:
        r = -EINVAL;
        if (dev->window.mode == VFMIG_WINDOW_SAVE && vfmig_sabotage("window-offset-written")) {
            dev->window.data_offset = value;
            r = 0;
        }
        break;
    }
    if (r < 0)
        return r;
    return region_reply(c, &msg->header, &access, NULL);
}
