/* SPDX-License-Identifier: BSD-3-Clause */
/* Doorbells: writes that a client lets the kernel turn into a signal, so that no vCPU waits for
 * them. What was signalled before a state write takes effect before it (design section 4). */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "device/internal.h"

#define DATAMATCH 1u /* KVM_IOEVENTFD_FLAG_DATAMATCH */

static bool overlaps(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

static int check(const struct vfmig_device *dev, uint32_t bar, uint64_t offset, uint32_t size)
{
    const struct vfmig_device_config *c = &dev->config;
    uint64_t table = (uint64_t)c->msix_vectors * 16, pba = (c->msix_vectors + 63) / 64 * 8;

    if (bar >= VFMIG_DEVICE_BARS || size == 0 || size > 8 || (size & (size - 1)) ||
        offset % size || offset >= c->bars[bar].size || size > c->bars[bar].size - offset)
        return -EINVAL;
    if (c->msix_vectors && bar == c->msix_bar &&
        (overlaps(offset, size, c->msix_table, table) || overlaps(offset, size, c->msix_pba, pba)))
        return -EINVAL;
    return 0;
}

int vfmig_device_doorbell(struct vfmig_device *dev, uint32_t bar, uint64_t offset, uint32_t size,
                          const uint64_t *datamatch)
{
    struct doorbell bell = {.bar = bar, .offset = offset, .size = size, .fd = -1};
    unsigned same_bar = 0;
    int r = check(dev, bar, offset, size);

    if (r < 0)
        return r;
    if (datamatch && size < 8 && *datamatch >> (8 * size))
        return -EINVAL;
    if (dev->owner.socket.fd >= 0)
        return -EBUSY;
    bell.match = datamatch != NULL;
    bell.value = datamatch ? *datamatch : 0;
    for (unsigned i = 0; i < dev->doorbell_count; i++) {
        const struct doorbell *other = &dev->doorbells[i];
        same_bar += other->bar == bar;
        if (other->bar == bar && other->offset == offset &&
            (!bell.match || !other->match || other->value == bell.value))
            return -EEXIST;
    }
    if (same_bar == VFMIG_DEVICE_DOORBELLS)
        return -ENOSPC;
    dev->doorbells[dev->doorbell_count++] = bell;
    return 0;
}

/* ---- handing out ----------------------------------------------------------------------------- */

static int open_bell(struct vfmig_device *dev, unsigned i)
{
    struct doorbell *bell = &dev->doorbells[i];

    if (bell->fd >= 0)
        return 0;
    bell->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (bell->fd < 0)
        return -errno;
    int r = server_watch(dev, bell->fd, SOURCE_DOORBELL + i);
    if (r < 0) {
        close(bell->fd);
        bell->fd = -1;
    }
    return r;
}

/* Those that fit max_msg_fds; the others are reached by messages. argsz and count tell what the
 * whole list takes, the message has the entries that fit the client's argsz. */
int doorbell_hand_out(struct client *c, const struct vfmig_user_msg *msg)
{
    struct vfmig_device *dev = c->dev;
    struct vfmig_user_region_io_fds req;
    struct vfmig_user_ioeventfd entries[VFMIG_DEVICE_DOORBELLS];
    int fds[VFMIG_DEVICE_DOORBELLS];
    uint32_t count = 0, sent = 0;

    memcpy(&req, msg->payload, sizeof(req));
    uint32_t room = (req.argsz - (uint32_t)sizeof(req)) / (uint32_t)sizeof(entries[0]);
    for (unsigned i = 0; i < dev->doorbell_count && count < c->client_max_fds; i++) {
        const struct doorbell *bell = &dev->doorbells[i];
        if (bell->bar != req.index)
            continue;
        count++;
        if (sent == room)
            continue;
        int r = open_bell(dev, i);
        if (r < 0)
            return r;
        entries[sent] = (struct vfmig_user_ioeventfd){
            .offset = bell->offset, .size = bell->size, .fd_index = sent,
            .type = VFMIG_USER_IO_FD_IOEVENTFD, .flags = bell->match ? DATAMATCH : 0,
            .datamatch = bell->value};
        fds[sent++] = bell->fd;
    }
    req = (struct vfmig_user_region_io_fds){
        .argsz = (uint32_t)(sizeof(req) + count * sizeof(entries[0])), .index = req.index,
        .count = count};
    return server_reply(c, &msg->header, &req, sizeof(req), entries,
                        sent * (uint32_t)sizeof(entries[0]), fds, sent);
}

/* ---- ringing --------------------------------------------------------------------------------- */

/* Was it signalled? Never waits: the client shares the descriptor and may have changed its flags. */
static bool consume(const struct doorbell *bell)
{
    uint64_t signals;
    struct iovec iov = {&signals, sizeof(signals)};

    return bell->fd >= 0 && preadv2(bell->fd, &iov, 1, -1, RWF_NOWAIT) == sizeof(signals);
}

static void deliver(struct vfmig_device *dev, struct doorbell *bell)
{
    struct vfmig_user_region_access access = {bell->offset, bell->bar,
                                              bell->match ? bell->size : 0};
    struct vfmig_user_header none = {0};

    bell->held = dev->session.hold || later_is_full(dev);
    if (bell->held)
        return;
    COUNT(dev, doorbells);
    if (mmio_reaches(dev))
        later_access(NULL, dev, &none, &access, &bell->value, true);
    else
        COUNT(dev, mmio_stopped_writes); /* C51 */
}

void doorbell_rung(struct vfmig_device *dev, unsigned i)
{
    if (consume(&dev->doorbells[i]))
        deliver(dev, &dev->doorbells[i]);
}

void doorbell_flush(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < dev->doorbell_count; i++)
        doorbell_rung(dev, i);
}

void doorbell_release(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < dev->doorbell_count; i++)
        if (dev->doorbells[i].held)
            deliver(dev, &dev->doorbells[i]);
}

void doorbell_drop(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < dev->doorbell_count; i++) {
        consume(&dev->doorbells[i]);
        dev->doorbells[i].held = false;
    }
}

void doorbell_close(struct vfmig_device *dev)
{
    doorbell_drop(dev);
    for (unsigned i = 0; i < dev->doorbell_count; i++) {
        struct doorbell *bell = &dev->doorbells[i];
        if (bell->fd < 0 || vfmig_sabotage("doorbells-kept"))
            continue;
        /* Closing alone leaves it watched as long as the client has it open. */
        epoll_ctl(dev->epoll, EPOLL_CTL_DEL, bell->fd, NULL);
        close(bell->fd);
        bell->fd = -1;
    }
}
