/* SPDX-License-Identifier: BSD-3-Clause */
/* Connections: who is on the other side, its messages one by one, replies now and later. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "device/internal.h"

/* ---- replies --------------------------------------------------------------------------------- */

static int send_client(struct client *c, const struct iovec *iov, unsigned count, const int *fds,
                       unsigned fd_count)
{
    int r = socket_send(&c->socket, iov, count, fds, fd_count, &c->dev->stopping);

    if (r < 0)
        c->lost = true;
    return 0; /* the command itself is answered, as far as anybody listens */
}

int server_reply(struct client *c, const struct vfmig_user_header *request, const void *fixed,
                 uint32_t fixed_size, const void *data, uint32_t size, const int *fds,
                 unsigned fd_count)
{
    struct vfmig_user_header h = vfmig_user_make_reply(request, fixed_size + size);
    struct iovec iov[3] = {
        {&h, sizeof(h)}, {(void *)(uintptr_t)fixed, fixed_size}, {(void *)(uintptr_t)data, size}};

    if (request->flags & VFMIG_USER_NO_REPLY)
        return 0;
    return send_client(c, iov, size ? 3 : fixed_size ? 2 : 1, fds, fd_count);
}

int server_error(struct client *c, const struct vfmig_user_header *request, int err)
{
    struct vfmig_user_header h = vfmig_user_make_error(request, err);
    struct iovec iov = {&h, sizeof(h)};

    if ((request->flags & VFMIG_USER_NO_REPLY) && !vfmig_sabotage("error-to-no-reply"))
        return 0;
    return send_client(c, &iov, 1, NULL, 0);
}

struct pending *server_defer(struct client *c, const struct vfmig_user_header *request,
                             const void *echo, uint32_t size, uint64_t *ret_id)
{
    for (unsigned i = 0; i < VFMIG_MAX_PENDING; i++) {
        struct pending *p = &c->dev->pending[i];
        if (p->client)
            continue;
        *p = (struct pending){.client = c, .serial = c->dev->pending_serial++,
                              .header = *request, .echo_size = size};
        if (size)
            memcpy(p->echo, echo, size);
        *ret_id = (uint64_t)p->serial * VFMIG_MAX_PENDING + i;
        return p;
    }
    return NULL;
}

void server_answer(struct vfmig_device *dev, uint64_t id, int err)
{
    struct pending *at = &dev->pending[id % VFMIG_MAX_PENDING];

    if (!at->client || at->serial != id / VFMIG_MAX_PENDING)
        return; /* nobody waits for it any more */
    struct pending p = *at;
    *at = (struct pending){0};
    dev->pending_unmaps -= p.unmap;
    if (err < 0)
        server_error(p.client, &p.header, err);
    else
        server_reply(p.client, &p.header, p.echo, p.echo_size, p.data, p.data_size, NULL, 0);
    free(p.data);
}

void server_cancel(struct client *c)
{
    struct vfmig_device *dev = c->dev;

    for (unsigned i = 0; i < VFMIG_MAX_PENDING; i++)
        if (dev->pending[i].client == c)
            server_answer(dev, (uint64_t)dev->pending[i].serial * VFMIG_MAX_PENDING + i, -ECANCELED);
}

/* What c still waits for: nobody is left to hear it. */
static void forget_pending(struct client *c)
{
    struct vfmig_device *dev = c->dev;

    for (unsigned i = 0; i < VFMIG_MAX_PENDING; i++) {
        if (dev->pending[i].client != c)
            continue;
        dev->pending_unmaps -= dev->pending[i].unmap;
        free(dev->pending[i].data);
        dev->pending[i] = (struct pending){0};
    }
    for (unsigned i = 0; i < VFMIG_DEVICE_LATER_ACCESSES; i++)
        if (dev->later.access[i].client == c)
            dev->later.access[i].client = NULL;
    park_forget(c);
}

/* ---- coming and going ------------------------------------------------------------------------ */

void client_init(struct client *c, struct vfmig_device *dev)
{
    c->dev = dev;
    socket_init(&c->socket);
    shared_init(&c->window);
}

int client_open(struct client *c, int fd, enum source source)
{
    struct vfmig_device *dev = c->dev;
    int r = socket_open(&c->socket, fd, vfmig_user_message_max(dev->config.max_data_xfer_bytes));

    if (r < 0) {
        close(fd);
        return r;
    }
    r = server_watch(dev, fd, source);
    if (r < 0) {
        socket_close(&c->socket);
        return r;
    }
    c->negotiated = c->lost = false;
    c->max_data = VFMIG_USER_DATA_MIN;
    c->client_max_data = VFMIG_MAX_DATA_XFER;
    c->client_max_fds = 1;
    COUNT(dev, clients);
    return 0;
}

void client_close(struct client *c)
{
    socket_close(&c->socket);
    if (c->dev)
        forget_pending(c);
    free(c->reply);
    c->reply = NULL;
    c->reply_room = 0;
    shared_drop(&c->window);
    c->negotiated = c->lost = false;
}

/* C45: the next client finds a fresh device. The machine resets the device; the rest was the
 * client's and goes with it. */
static void drop_owner(struct vfmig_device *dev)
{
    if (!vfmig_framer_idle(&dev->owner.socket.framer) && vfmig_sabotage("cut-message-kills"))
        _exit(1);
    client_close(&dev->owner);
    socket_close(&dev->twin);
    dev->held_count = 0;
    dev->keep_pci = false;
    /* The map first: what the device or one of its threads begins from here on finds no memory,
     * instead of a message that nobody will answer. */
    dma_map_clear(dev);
    handle_unmap_all(dev);
    message_abort(dev, -ECANCELED);
    message_forget(dev);
    if (!vfmig_sabotage("next-client-finds-old-state")) {
        dev->releasing = !vfmig_sabotage("next-client-before-reset"); /* until the machine says RELEASED */
        migrate_event(dev, VFMIG_DEV_EVENT_OWNER_GONE, 0, 0);
    } else {
        server_listen_again(dev, &dev->owner);
    }
    control_owner_gone(dev);
    region_drop_section(dev, &dev->owner_section);
    if (!vfmig_sabotage("log-survives-client")) {
        log_done(&dev->log);
        log_init(&dev->log);
    }
    irq_detach_all(dev);
    doorbell_close(dev);
}

void client_drop(struct client *c)
{
    struct vfmig_device *dev = c->dev;

    if (c == &dev->owner) {
        drop_owner(dev);
        return;
    }
    client_close(c);
    control_gone(dev);
    server_listen_again(dev, c);
}

int vfmig_device_attach_fd(struct vfmig_device *dev, int fd, struct vfmig_error *reterr)
{
    int r = -EBUSY;

    if (dev->owner.socket.fd < 0 && !dev->releasing)
        r = client_open(&dev->owner, fd, SOURCE_OWNER);
    else
        close(fd);
    if (r < 0)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_LOCAL, 0, "%s: cannot serve this socket: %s",
                               dev->name, strerror(-r));
    return 0;
}

/* ---- messages -------------------------------------------------------------------------------- */

static int handle(struct client *c, struct vfmig_user_msg *msg)
{
    if ((msg->header.flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_REPLY) {
        if (c == &c->dev->owner)
            message_reply(c->dev, msg);
        return 0;
    }
    int r = c->negotiated ? command_handle(c, msg) : version_handle(c, msg);
    if (r < 0)
        server_error(c, &msg->header, r);
    return c->negotiated ? 0 : -EPROTO; /* a client that cannot agree is let go */
}

/* Reads once and handles all that is whole. */
bool client_readable(struct client *c)
{
    struct vfmig_user_msg msg;
    ssize_t n = socket_receive(&c->socket, SIZE_MAX);

    if (n == -EAGAIN)
        return false;
    int r = n > 0 ? 0 : -EPROTO;
    while (r == 0 && !c->lost && (r = vfmig_framer_next(&c->socket.framer, &msg)) == 1) {
        r = handle(c, &msg);
        vfmig_fds_close(&msg.fds);
    }
    if (r == 0 && !vfmig_framer_idle(&c->socket.framer) &&
        c->socket.framer.end - c->socket.framer.start < sizeof(struct vfmig_user_header) &&
        vfmig_sabotage("pieces-drop-connection"))
        r = -EPROTO;
    if (n > 0 && r < 0 && vfmig_sabotage("bad-size-kills"))
        _exit(1);
    if (r < 0 || c->lost)
        client_drop(c);
    return true;
}

/* ---- the twin socket ------------------------------------------------------------------------- */

void twin_readable(struct vfmig_device *dev)
{
    struct vfmig_user_msg msg;

    if (message_receive_direct(dev))
        return;
    ssize_t n = socket_receive(&dev->twin, message_receive_max(dev));
    if (n == -EAGAIN)
        return;
    int r = n > 0 ? 0 : -EPROTO;
    while (r == 0 && (r = vfmig_framer_next(&dev->twin.framer, &msg)) == 1) {
        if ((msg.header.flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_REPLY)
            message_reply(dev, &msg);
        vfmig_fds_close(&msg.fds);
        r = 0;
    }
    if (r < 0)
        dev->owner.lost = true;
    else
        message_receive_direct(dev);
}

int server_add_twin(struct vfmig_device *dev, int *ret_client_end)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    int r = socket_open(&dev->twin, pair[0], vfmig_user_message_max(dev->config.max_data_xfer_bytes));
    if (r < 0) {
        close(pair[0]);
    } else if ((r = server_watch(dev, pair[0], SOURCE_TWIN)) < 0) {
        socket_close(&dev->twin);
    }
    if (r < 0) {
        close(pair[1]);
        return r;
    }
    *ret_client_end = pair[1];
    return 0;
}
