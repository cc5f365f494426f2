/* SPDX-License-Identifier: BSD-3-Clause */
/* A data command whose device is not ready: MIG_DATA_READ, MIG_DATA_WRITE, and in the region
 * dialect a read of data_offset or a write of data_size. It waits here, one at a time, and every
 * other message is served meanwhile (X11). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/sabotage.h"
#include "device/internal.h"

int park_check(const struct vfmig_device *dev)
{
    bool looked_at = dev->call != VFMIG_DEV_CALL_NONE && vfmig_dev_loading(&dev->mig);

    return dev->park.kind != PARK_NONE || looked_at ? -EBUSY : 0;
}

bool park_loads(const struct vfmig_device *dev)
{
    return dev->park.kind == PARK_WRITE || dev->park.kind == PARK_SIZE;
}

bool park_is_short(const struct vfmig_device *dev, ssize_t n, size_t size)
{
    return dev->stream.asked && (n == -EINPROGRESS || (n >= 0 && (size_t)n < size));
}

static struct park *park(struct client *c, const struct vfmig_user_msg *msg, enum park_kind kind)
{
    struct park *p = &c->dev->park;

    *p = (struct park){.kind = kind, .client = c, .header = msg->header};
    COUNT(c->dev, answered_later);
    return p;
}

int park_read(struct client *c, const struct vfmig_user_msg *msg, ssize_t n, uint32_t size)
{
    uint8_t *next = malloc(c->reply_room); /* what other replies are built in meanwhile */

    if (!next)
        return -ENOMEM;
    struct park *p = park(c, msg, PARK_READ);
    p->buf = c->reply;
    p->at = n > 0 ? (uint32_t)n : 0;
    p->size = size;
    c->reply = next;
    return 0;
}

int park_write(struct client *c, const struct vfmig_user_msg *msg, const uint8_t *data,
               uint32_t size)
{
    size_t unread = c->dev->stream.unread;
    uint8_t *rest = malloc(unread + 1);

    if (!rest) {
        c->dev->stream.load_err = -ENOMEM; /* a part of it was taken */
        return -ENOMEM;
    }
    memcpy(rest, data + size - unread, unread);
    struct park *p = park(c, msg, PARK_WRITE);
    p->buf = rest;
    p->size = (uint32_t)unread;
    return 0;
}

int park_window(struct client *c, const struct vfmig_user_msg *msg, enum park_kind kind)
{
    struct park *p = park(c, msg, kind);
    uint64_t size = 0;

    memcpy(&p->access, msg->payload, sizeof(p->access));
    if (kind != PARK_SIZE)
        return 0;
    memcpy(&size, msg->payload + sizeof(p->access), sizeof(size));
    p->size = (uint32_t)size; /* inside the window: it was committed */
    p->at = p->size - (uint32_t)c->dev->stream.unread;
    return 0;
}

static void reply(const struct park *p, int err, uint64_t offset)
{
    struct vfmig_user_mig_data data = {(uint32_t)sizeof(data) + p->at, p->at};

    if (!p->client)
        return;
    if (err < 0)
        server_error(p->client, &p->header, err);
    else if (p->kind == PARK_READ)
        server_reply(p->client, &p->header, &data, sizeof(data), p->buf, p->at, NULL, 0);
    else if (p->kind == PARK_WRITE)
        server_reply(p->client, &p->header, NULL, 0, NULL, 0, NULL, 0);
    else
        region_reply(p->client, &p->header, &p->access,
                        p->kind == PARK_OFFSET ? &offset : NULL);
}

static void unpark(struct vfmig_device *dev, int err, uint64_t offset)
{
    struct park p = dev->park;

    dev->park = (struct park){0};
    reply(&p, err, offset);
    free(p.buf);
}

static void continue_read(struct vfmig_device *dev)
{
    struct park *p = &dev->park;
    ssize_t n = stream_read(dev, p->buf + p->at, p->size - p->at);
    bool is_short = park_is_short(dev, n, p->size - p->at);

    p->at += n > 0 ? (uint32_t)n : 0;
    if (!is_short)
        unpark(dev, n < 0 && !p->at ? (int)n : 0, 0);
}

static void continue_write(struct vfmig_device *dev)
{
    struct park *p = &dev->park;
    const uint8_t *from = p->kind == PARK_WRITE ? p->buf : dev->window_buf;
    int r = stream_write(dev, from + p->at, p->size - p->at);

    p->at = p->size - (uint32_t)dev->stream.unread;
    if (r != -EINPROGRESS)
        unpark(dev, r, 0);
}

void park_continue(struct vfmig_device *dev)
{
    uint64_t offset = 0;
    int r;

    switch (dev->park.kind) {
    case PARK_NONE: /* the device was asked for an estimate only */
        break;
    case PARK_READ:
        continue_read(dev);
        break;
    case PARK_WRITE:
    case PARK_SIZE:
        continue_write(dev);
        break;
    case PARK_OFFSET:
        r = region_v1_prepare(dev, &offset);
        if (r != -EINPROGRESS)
            unpark(dev, r, offset);
        break;
    }
}

void park_cancel(struct vfmig_device *dev)
{
    if (dev->park.kind != PARK_NONE)
        unpark(dev, -ECANCELED, 0);
}

void park_forget(struct client *c)
{
    if (c->dev->park.client == c)
        c->dev->park.client = NULL;
}
