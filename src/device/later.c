/* SPDX-License-Identifier: BSD-3-Clause */
/* Callbacks that answer later: the device takes a handle, returns -EINPROGRESS, and ends the handle
 * from any thread. What follows from it happens on the serving thread. A handle names a place and
 * a serial, so one that a reset has made stale ends nothing. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/sabotage.h"
#include "device/internal.h"

void later_init(struct vfmig_device *dev)
{
    pthread_mutex_init(&dev->later.lock, NULL);
    dev->later.calling = LATER_PLACES;
}

void later_done(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < VFMIG_DEVICE_LATER_ACCESSES; i++)
        free(dev->later.access[i].large);
    free(dev->park.buf);
}

void later_begin(struct vfmig_device *dev, unsigned place)
{
    later_forget(dev, place);
    dev->later.calling = place;
}

ssize_t later_end(struct vfmig_device *dev, unsigned place, ssize_t result)
{
    dev->later.calling = LATER_PLACES;
    if (result == -EINPROGRESS)
        return later_taken(dev, place) ? result : -EIO; /* nobody could ever end it */
    later_forget(dev, place);
    return result;
}

bool later_taken(struct vfmig_device *dev, unsigned place)
{
    pthread_mutex_lock(&dev->later.lock);
    bool taken = dev->later.places[place].taken;
    pthread_mutex_unlock(&dev->later.lock);
    return taken;
}

void later_forget(struct vfmig_device *dev, unsigned place)
{
    struct later *p = &dev->later.places[place];

    pthread_mutex_lock(&dev->later.lock);
    p->serial += !vfmig_sabotage("stale-answer-counts");
    p->taken = p->done = false;
    pthread_mutex_unlock(&dev->later.lock);
}

struct vfmig_later vfmig_device_later(struct vfmig_device *dev)
{
    struct laters *l = &dev->later;
    struct vfmig_later later = {0};

    if (l->calling == LATER_PLACES)
        return later;
    pthread_mutex_lock(&l->lock);
    l->places[l->calling].taken = true;
    later.dev = dev;
    later.id = l->places[l->calling].serial * LATER_PLACES + l->calling;
    pthread_mutex_unlock(&l->lock);
    return later;
}

void vfmig_later_done(struct vfmig_later later, int result)
{
    struct vfmig_device *dev = later.dev;

    if (!dev)
        return;
    struct later *p = &dev->later.places[later.id % LATER_PLACES];
    pthread_mutex_lock(&dev->later.lock);
    bool ours = p->taken && !p->done && p->serial == later.id / LATER_PLACES;
    if (ours) {
        p->done = true;
        p->result = result == -EINPROGRESS ? -EIO : result;
        atomic_store(&dev->later.ready, true);
        server_wake(dev); /* before the lock is let go: after it the device may be freed */
    }
    pthread_mutex_unlock(&dev->later.lock);
}

/* True when place was ended since. */
static bool take(struct vfmig_device *dev, unsigned place, ssize_t *ret_result)
{
    struct later *p = &dev->later.places[place];

    pthread_mutex_lock(&dev->later.lock);
    bool done = p->taken && p->done;
    *ret_result = p->result;
    if (done)
        p->taken = p->done = false;
    pthread_mutex_unlock(&dev->later.lock);
    return done;
}

/* ---- accesses -------------------------------------------------------------------------------- */

/* Buffers that no access uses are only kept while there is room. */
static void free_idle(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < VFMIG_DEVICE_LATER_ACCESSES; i++) {
        struct later_access *a = &dev->later.access[i];
        if (later_taken(dev, LATER_ACCESS + i))
            continue;
        dev->later.bytes -= a->room;
        free(a->large);
        a->large = NULL;
        a->room = 0;
    }
}

static uint8_t *make_room(struct vfmig_device *dev, struct later_access *a, uint32_t size)
{
    struct laters *l = &dev->later;

    if (size <= sizeof(a->small))
        return a->small;
    if (size <= a->room)
        return a->large;
    free_idle(dev);
    if (l->bytes + size > VFMIG_MAX_LATER_BYTES)
        return NULL;
    a->large = malloc(size);
    if (!a->large)
        return NULL;
    a->room = size;
    l->bytes += size;
    return a->large;
}

static int call(struct vfmig_device *dev, const struct vfmig_user_region_access *access,
                uint8_t *data, bool write)
{
    if (write)
        return dev->ops.region_write ? dev->ops.region_write(dev->user, access->region,
                                                             access->offset, data, access->count)
                                     : 0;
    if (dev->ops.region_read)
        return dev->ops.region_read(dev->user, access->region, access->offset, data,
                                    access->count);
    memset(data, 0, access->count);
    return 0;
}

/* The device has answered. 0 when the client was told. */
static int answer(struct vfmig_device *dev, struct later_access *a, struct client *c,
                  ssize_t result)
{
    uint8_t *data = a->access.count <= sizeof(a->small) ? a->small : a->large;

    if (result < 0 || !c)
        return result < 0 ? (int)result : 0;
    if (!a->write) /* a long read may run over table and PBA */
        msix_access(dev, a->access.region, a->access.offset, data, a->access.count, false);
    return region_reply(c, &a->header, &a->access, a->write ? NULL : data);
}

static unsigned free_place(struct vfmig_device *dev)
{
    unsigned i = 0;

    while (i < VFMIG_DEVICE_LATER_ACCESSES && later_taken(dev, LATER_ACCESS + i))
        i++;
    return i;
}

bool later_is_full(struct vfmig_device *dev)
{
    return free_place(dev) == VFMIG_DEVICE_LATER_ACCESSES;
}

int later_access(struct client *c, struct vfmig_device *dev, const struct vfmig_user_header *header,
                 const struct vfmig_user_region_access *access, const void *data, bool write)
{
    unsigned i = free_place(dev);

    if (i == VFMIG_DEVICE_LATER_ACCESSES)
        return -EBUSY;
    struct later_access *a = &dev->later.access[i];
    uint8_t *buf = make_room(dev, a, access->count);
    if (!buf)
        return -EBUSY;
    if (write && access->count)
        memcpy(buf, data, access->count);
    a->client = NULL;
    a->header = *header;
    a->access = *access;
    a->write = write;
    later_begin(dev, LATER_ACCESS + i);
    ssize_t r = later_end(dev, LATER_ACCESS + i, call(dev, access, buf, write));
    if (r == -EINPROGRESS) {
        a->client = c;
        COUNT(dev, answered_later);
        return 0;
    }
    return answer(dev, a, c, r);
}

static void access_done(struct vfmig_device *dev, struct later_access *a, ssize_t result)
{
    struct client *c = a->client;
    int r = answer(dev, a, c, result);

    a->client = NULL;
    if (c && r < 0)
        server_error(c, &a->header, r);
}

void later_cancel_accesses(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < VFMIG_DEVICE_LATER_ACCESSES; i++) {
        struct later_access *a = &dev->later.access[i];
        if (a->client)
            server_error(a->client, &a->header, -ECANCELED);
        a->client = NULL;
    }
}

void later_poll(struct vfmig_device *dev)
{
    ssize_t result;

    while (atomic_exchange(&dev->later.ready, false)) {
        for (unsigned i = 0; i < VFMIG_DEVICE_LATER_ACCESSES; i++)
            if (take(dev, LATER_ACCESS + i, &result))
                access_done(dev, &dev->later.access[i], result);
        if (take(dev, LATER_STREAM, &result)) {
            dev->stream.asked = false;
            dev->stream.asked_err = result < 0 ? (int)result : 0;
            park_continue(dev);
        }
        if (take(dev, LATER_CALL, &result))
            migrate_call_done(dev, result);
        doorbell_release(dev);
    }
}
