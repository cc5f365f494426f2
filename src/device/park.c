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

/* Of a window read or write: what it is answered with. */
static void keep_message(struct park *p, const struct vfmig_user_msg *msg)
{
    if (msg->header.command == VFMIG_USER_FEATURE)
        memcpy(&p->window, msg->payload, sizeof(p->window));
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
    keep_message(p, msg);
    p->buf = rest;
    p->size = (uint32_t)unread;
    return 0;
}

int park_window_read(struct client *c, const struct vfmig_user_msg *msg, ssize_t n, uint32_t size)
{
    struct park *p = park(c, msg, PARK_READ);

    keep_message(p, msg);
    p->at = n > 0 ? (uint32_t)n : 0;
    p->size = size;
    return 0;
}

int park_region(struct client *c, const struct vfmig_user_msg *msg, enum park_kind kind,
                struct shared *section, uint64_t base)
{
    struct park *p = park(c, msg, kind);
    uint64_t size = 0;

    p->section = section;
    p->base = base;

    memcpy(&p->access, msg->payload, sizeof(p->access));
    if (kind != PARK_SIZE)
        return 0;
    memcpy(&size, msg->payload + sizeof(p->access), sizeof(size));
    p->size = (uint32_t)size; /* inside the window: it was committed */
    p->at = p->size - (uint32_t)c->dev->stream.unread;
    return 0;
}

/* In the shared window. */
static void reply_window(const struct park *p)
{
    struct vfmig_user_window_message message = p->window;

    if (p->kind == PARK_READ) {
        message.head.argsz = sizeof(message);
        message.place.size = p->at;
        COUNT(p->client->dev, windows_filled);
    }
    server_reply(p->client, &p->header, &message, sizeof(message), NULL, 0, NULL, 0);
}

static void reply(const struct park *p, int err, uint64_t offset)
{
    struct vfmig_user_mig_data data = {(uint32_t)sizeof(data) + p->at, p->at};

    if (!p->client)
        return;
    if (err < 0)
        server_error(p->client, &p->header, err);
    else if (p->window.head.flags)
        reply_window(p);
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
    bool shared = p->window.head.flags;
    uint8_t *to = shared ? p->client->window.map + p->window.place.offset : p->buf;
    ssize_t n = stream_read(dev, to + p->at, p->size - p->at, shared);
    bool is_short = park_is_short(dev, n, p->size - p->at);

    p->at += n > 0 ? (uint32_t)n : 0;
    if (!is_short)
        unpark(dev, n < 0 && !p->at ? (int)n : 0, 0);
}

static void continue_write(struct vfmig_device *dev)
{
    struct park *p = &dev->park;
    bool shared = p->kind == PARK_SIZE;
    const uint8_t *from = shared ? p->section->map + p->base : p->buf;
    int r = stream_write(dev, from + p->at, p->size - p->at, shared);

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
        r = region_v1_prepare(dev, dev->park.section, &offset);
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

void park_drop_section(struct vfmig_device *dev, const struct shared *section)
{
    if (dev->park.kind != PARK_NONE && dev->park.section == section)
        park_cancel(dev);
}

void park_move_section(struct vfmig_device *dev, const struct shared *from, struct shared *to)
{
    if (dev->park.section == from)
        dev->park.section = to;
}

/* The shared window goes with its client, and what was read into it with both, as a reply would
 * be lost. */
void park_forget(struct client *c)
{
    struct park *p = &c->dev->park;

    if (p->client != c)
        return;
    p->client = NULL;
    if (p->kind == PARK_READ && p->window.head.flags)
        *p = (struct park){0};
}
