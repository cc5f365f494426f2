/* SPDX-License-Identifier: BSD-3-Clause */
/* One command at a time over vfio-user, with a deadline, whatever the other end does. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check/link.h"
#include "io/sock.h"

#define MS 1000000ull

enum { MAIN = 0, TWIN = 1 };

int check_link_init(struct check_link *link, struct check_port *port)
{
    uint32_t room = vfmig_user_message_max(CHECK_MAX_DATA);

    memset(link, 0, sizeof(*link));
    link->port = port;
    link->fd[MAIN] = link->fd[TWIN] = -1;
    link->max_data = CHECK_MAX_DATA;
    link->maps = calloc(CHECK_MAX_MAPS, sizeof(*link->maps));
    link->buffer[MAIN] = malloc(room);
    link->buffer[TWIN] = malloc(room);
    for (int i = 0; i < 2 && link->buffer[i]; i++)
        vfmig_framer_init(&link->framer[i], link->buffer[i], room, room);
    return link->maps && link->buffer[MAIN] && link->buffer[TWIN] ? 0 : -ENOMEM;
}

void check_link_close(struct check_link *link)
{
    for (int i = 0; i < 2; i++) {
        if (link->fd[i] < 0)
            continue;
        close(link->fd[i]);
        link->fd[i] = -1;
        vfmig_framer_done(&link->framer[i]);
        vfmig_framer_init(&link->framer[i], link->buffer[i], vfmig_user_message_max(CHECK_MAX_DATA),
                          vfmig_user_message_max(CHECK_MAX_DATA));
    }
    link->map_count = 0;
    link->held_count = 0;
    link->hold_ms = 0;
    link->asked_open = false;
}

void check_link_done(struct check_link *link)
{
    check_link_close(link);
    free(link->maps);
    free(link->buffer[MAIN]);
    free(link->buffer[TWIN]);
}

int check_link_connect(struct check_link *link, const char *path, struct vfmig_error *reterr)
{
    char address[140];

    check_link_close(link);
    snprintf(address, sizeof(address), "unix:%s", path);
    return vfmig_sock_connect(address, vfmig_deadline_ns(link->port->deadline_ms * MS),
                              &link->fd[MAIN], reterr);
}

void check_link_take_twin(struct check_link *link, int fd)
{
    link->fd[TWIN] = fd;
}

static int broken(struct check_link *link, const char *what)
{
    check_port_trouble(link->port, CHECK_BROKEN, "%s", what);
    return -ENOTCONN;
}

int check_link_map(struct check_link *link, uint64_t iova, uint64_t size, uint64_t offset,
                   uint32_t how)
{
    if (link->map_count == CHECK_MAX_MAPS)
        return -ENOSPC;
    link->maps[link->map_count++] = (struct check_map){iova, size, offset, how};
    return 0;
}

void check_link_unmap(struct check_link *link, uint64_t iova, uint64_t size)
{
    for (uint32_t i = 0; i < link->map_count; i++)
        if (link->maps[i].iova == iova && link->maps[i].size == size)
            link->maps[i--] = link->maps[--link->map_count];
}

/* The mapping that all of [iova, iova + size) is in, or NULL. */
static const struct check_map *map_at(const struct check_link *link, uint64_t iova, uint64_t size)
{
    for (uint32_t i = 0; i < link->map_count; i++) {
        const struct check_map *m = &link->maps[i];
        if (iova >= m->iova && size <= m->size && iova - m->iova <= m->size - size)
            return m;
    }
    return NULL;
}

/* Where it lies in our memory, or NULL. */
static uint8_t *memory_at(const struct check_link *link, uint64_t iova, uint64_t size)
{
    const struct check_map *m = map_at(link, iova, size);

    return m && m->how < CHECK_MAP_PEER ? link->port->memory + m->offset + (iova - m->iova) : NULL;
}

/* Peer to peer: a DMA of the device is an access to a BAR of the other one, as a VMM forwards it.
 */
static int to_peer(struct check_link *link, const struct check_map *m, uint64_t offset,
                   uint64_t size, const void *write_from, void *read_to)
{
    struct check_port *peer = link->port->peer;
    struct check_step step = {
        .kind = write_from ? CHECK_STEP_REGION_WRITE : CHECK_STEP_REGION_READ,
        .arg = {m->how - CHECK_MAP_PEER, m->offset + offset, size},
        .data = write_from,
        .room = read_to,
        .room_size = (uint32_t)size,
    };

    if (!peer || peer->trouble)
        return -EFAULT;
    link->port->dma.peer_hits++;
    peer->ops->run(peer, &step);
    return step.result < 0 ? -EFAULT : 0;
}

static int send_reply(struct check_link *link, const struct check_held *held, int error,
                      const void *data, uint32_t size)
{
    struct vfmig_user_header header =
        error ? vfmig_user_make_error(&held->header, error)
              : vfmig_user_make_reply(&held->header, (uint32_t)sizeof(held->access) + size);
    struct vfmig_user_dma_access access = held->access;
    struct iovec iov[3] = {{&header, sizeof(header)},
                           {&access, error ? 0 : sizeof(access)},
                           {(void *)(uintptr_t)data, error ? 0 : size}};
    struct vfmig_error err = {0};

    if (held->header.flags & VFMIG_USER_NO_REPLY)
        return 0;
    int r = vfmig_sock_send(link->fd[held->on_twin ? TWIN : MAIN], iov, 3, NULL,
                            vfmig_deadline_ns(link->port->deadline_ms * MS), NULL, &err);
    if (r < 0)
        check_port_trouble(link->port, r == -ETIMEDOUT ? CHECK_HUNG : CHECK_DIED,
                           "the reply to its DMA could not be sent: %s", err.text);
    return r < 0 ? -ENOTCONN : 0;
}

/* A DMA of the device: done now, answered now or later. */
static int serve_dma(struct check_link *link, struct vfmig_user_msg *msg, bool on_twin)
{
    struct check_dma *dma = &link->port->dma;
    struct check_held held = {.on_twin = on_twin, .header = msg->header};
    struct vfmig_error err = {0};

    if (++link->dmas > CHECK_MAX_DMA) {
        check_port_trouble(link->port, CHECK_FLOOD, "more than %u DMA commands during one command",
                           CHECK_MAX_DMA);
        return -ENOTCONN;
    }
    if (vfmig_user_check_command(msg, true, CHECK_MAX_DATA, &err) < 0)
        return broken(link, err.text);
    memcpy(&held.access, msg->payload, sizeof(held.access));
    bool write = msg->header.command == VFMIG_USER_DMA_WRITE;
    uint8_t *at = memory_at(link, held.access.address, held.access.count);
    const struct check_map *m = map_at(link, held.access.address, held.access.count);
    if (write) {
        dma->log[dma->writes % CHECK_DMA_LOG] = (struct check_dma_write){
            held.access.address, held.access.count, link->port->step_number};
        dma->writes++;
    } else {
        dma->reads++;
    }
    if (m && !at) {
        uint64_t offset = held.access.address - m->iova, size = held.access.count;
        void *room = write ? NULL : calloc(1, size + 1);
        int r = !write && !room ? -ENOMEM
                                : to_peer(link, m, offset, size,
                                          write ? msg->payload + sizeof(held.access) : NULL, room);
        r = send_reply(link, &held, r, room, write ? 0 : (uint32_t)size);
        free(room);
        return r;
    }
    if (!at) {
        dma->refused++;
        return send_reply(link, &held, -EFAULT, NULL, 0);
    }
    if (write)
        memcpy(at, msg->payload + sizeof(held.access), held.access.count);
    if (link->hold_ms && link->held_count < CHECK_MAX_HELD) {
        held.came_ns = vfmig_now_ns();
        link->held[link->held_count++] = held;
        return 0;
    }
    return send_reply(link, &held, 0, at, write ? 0 : (uint32_t)held.access.count);
}

/* A DMA stays open until a command has waited for its answer for hold_ms, however long that takes
 * to come about: what a device does while DMA is open does not depend on who is faster. */
static uint64_t due_ns(const struct check_link *link, const struct check_held *held)
{
    uint64_t since = held->came_ns > link->call_ns ? held->came_ns : link->call_ns;

    return link->call_ns ? since + link->hold_ms * MS : UINT64_MAX;
}

/* Answers what has been held long enough; all: everything. */
static int release_held(struct check_link *link, bool all)
{
    uint64_t now = vfmig_now_ns();

    for (uint32_t i = 0; i < link->held_count; i++) {
        struct check_held held = link->held[i];
        if (!all && due_ns(link, &held) > now)
            continue;
        link->held[i--] = link->held[--link->held_count];
        bool write = held.header.command == VFMIG_USER_DMA_WRITE;
        uint8_t *at = memory_at(link, held.access.address, held.access.count);
        int r =
            send_reply(link, &held, at ? 0 : -EFAULT, at, write ? 0 : (uint32_t)held.access.count);
        if (r < 0)
            return r;
    }
    link->port->dma.open = link->held_count;
    return 0;
}

/* Takes what socket i has. 0, or -ENOTCONN and trouble. */
static int take_bytes(struct check_link *link, int i, uint64_t deadline_ns)
{
    struct vfmig_fds fds = {.count = 0};
    struct vfmig_error err = {0};
    size_t room;
    void *space = vfmig_framer_space(&link->framer[i], &room);
    ssize_t n = vfmig_sock_recv(link->fd[i], space, room, &fds, NULL, deadline_ns, &err);

    if (n == -ETIMEDOUT)
        return 0;
    if (n <= 0) {
        vfmig_fds_close(&fds);
        check_port_trouble(link->port, CHECK_DIED, "the %s socket: %s", i == TWIN ? "twin" : "main",
                           n < 0 ? err.text : "the device closed it");
        return -ENOTCONN;
    }
    if (vfmig_framer_fed(&link->framer[i], (size_t)n, &fds) < 0)
        return broken(link, "descriptors where no message takes them");
    return 0;
}

/* Messages of socket i: DMA is served. 1 and *ret_msg: a reply. */
static int next_message(struct check_link *link, int i, struct vfmig_user_msg *ret_msg)
{
    for (;;) {
        int r = vfmig_framer_next(&link->framer[i], ret_msg);
        if (r == 0)
            return 0;
        if (r < 0)
            return broken(link, r == -EMSGSIZE ? "a message above what was negotiated"
                                               : "a message smaller than its header");
        if ((ret_msg->header.flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_REPLY)
            return 1;
        r = serve_dma(link, ret_msg, i == TWIN);
        vfmig_fds_close(&ret_msg->fds);
        if (r < 0)
            return r;
    }
}

/* Waits for bytes of either socket, and answers held DMA in time. */
static int wait_bytes(struct check_link *link, uint64_t deadline_ns)
{
    struct pollfd polls[2] = {{link->fd[MAIN], POLLIN, 0}, {link->fd[TWIN], POLLIN, 0}};
    uint64_t now = vfmig_now_ns(), until = deadline_ns;

    for (uint32_t i = 0; i < link->held_count; i++)
        if (due_ns(link, &link->held[i]) < until)
            until = due_ns(link, &link->held[i]);
    int ms = until <= now ? 0 : (int)((until - now) / MS + 1);
    if (poll(polls, link->fd[TWIN] >= 0 ? 2 : 1, ms) < 0 && errno != EINTR)
        return broken(link, "poll failed");
    for (int i = 0; i < 2; i++)
        if (polls[i].fd >= 0 && polls[i].revents) {
            int r = take_bytes(link, i, deadline_ns);
            if (r < 0)
                return r;
        }
    return release_held(link, false);
}

static int late(struct check_link *link, uint16_t command)
{
    struct vfmig_framer *f = &link->framer[MAIN];

    check_port_trouble(link->port, CHECK_HUNG,
                       "no complete answer to %s in time (%zu bytes of it came)",
                       vfmig_user_command_name(command), f->end - f->start);
    return -ENOTCONN;
}

/* A stream socket has no messages: how bytes are cut is nobody's business. */
static int send_pieces(struct check_link *link, const struct vfmig_user_header *header,
                       const uint8_t *payload, uint32_t size, uint64_t deadline_ns)
{
    struct vfmig_error err = {0};
    uint32_t total = (uint32_t)sizeof(*header) + size;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < total; i++) {
        const uint8_t *byte =
            i < sizeof(*header) ? (const uint8_t *)header + i : payload + i - sizeof(*header);
        struct iovec iov = {(void *)(uintptr_t)byte, 1};
        r = vfmig_sock_send(link->fd[MAIN], &iov, 1, NULL, deadline_ns, NULL, &err);
        if (r == 0 && i + 1 < total)
            vfmig_sock_let_read(link->fd[MAIN], deadline_ns); /* the next is a piece of its own */
    }
    if (r < 0)
        check_port_trouble(link->port, r == -ETIMEDOUT ? CHECK_HUNG : CHECK_DIED,
                           "a message in pieces could not be sent: %s", err.text);
    return r < 0 ? -ENOTCONN : 0;
}

static int send_command(struct check_link *link, const struct check_call *call, uint16_t id,
                        uint64_t deadline_ns)
{
    struct vfmig_user_header header =
        vfmig_user_make_command(id, call->command, call->fixed_size + call->data_size, false);
    struct iovec iov[3] = {{&header, sizeof(header)},
                           {(void *)(uintptr_t)call->fixed, call->fixed_size},
                           {(void *)(uintptr_t)call->data, call->data_size}};
    struct vfmig_fds fds = {.count = call->fd_count};
    struct vfmig_error err = {0};

    header.flags |= call->flags;
    if (call->pieces)
        return send_pieces(link, &header, call->fixed, call->fixed_size, deadline_ns);
    memcpy(fds.fd, call->fds, sizeof(fds.fd));
    int r = vfmig_sock_send(link->fd[MAIN], iov, 3, call->fd_count ? &fds : NULL, deadline_ns, NULL,
                            &err);
    if (r == 0)
        return 0;
    check_port_trouble(link->port, r == -ETIMEDOUT ? CHECK_HUNG : CHECK_DIED,
                       "%s could not be sent: %s", vfmig_user_command_name(call->command),
                       err.text);
    return -ENOTCONN;
}

static int take_reply(struct check_link *link, struct check_call *call, struct vfmig_user_msg *msg)
{
    struct vfmig_error err = {0};
    int r = 0;

    if (msg->header.flags & VFMIG_USER_ERROR) {
        if (msg->header.command != call->command)
            return broken(link, "an error reply to another command");
        r = msg->header.error ? -(int)msg->header.error : -EIO;
        return r < 0 && r >= -4095 ? r : broken(link, "an error reply with no errno in it");
    }
    if (!call->any_reply)
        r = vfmig_user_check_reply(msg, call->command, call->fixed, call->fixed_size, &err);
    if (r < 0)
        return broken(link, err.text);
    if (msg->size > call->reply_room)
        return broken(link, "a reply longer than argsz");
    if (msg->size)
        memcpy(call->reply, msg->payload, msg->size);
    call->ret_size = msg->size;
    if (call->ret_fds)
        vfmig_fds_move(call->ret_fds, &msg->fds);
    return 0;
}

/* The answer to what was asked earlier. */
static bool take_asked(struct check_link *link, struct vfmig_user_msg *msg)
{
    const struct vfmig_user_header *header = &msg->header;

    if (!link->asked_open || header->id != link->asked_id)
        return false;
    link->asked_open = false;
    link->asked_result = header->flags & VFMIG_USER_ERROR ? -(int)header->error : 0;
    vfmig_fds_close(&msg->fds);
    return true;
}

static int await_reply(struct check_link *link, struct check_call *call, uint16_t id,
                       uint64_t deadline)
{
    for (int r = 0;;) {
        struct vfmig_user_msg msg;
        /* DMA that came before the reply is seen before it. */
        if (link->fd[TWIN] >= 0)
            r = next_message(link, TWIN, &msg);
        if (r > 0) {
            vfmig_fds_close(&msg.fds);
            r = broken(link, "a reply on the twin socket");
        }
        if (r == 0)
            r = next_message(link, MAIN, &msg);
        if (r < 0)
            return r;
        if (r == 1 && take_asked(link, &msg)) {
            r = 0;
            continue;
        }
        if (r == 1) {
            r = msg.header.id == id ? take_reply(link, call, &msg)
                                    : broken(link, "a reply that nobody asked for");
            vfmig_fds_close(&msg.fds);
            return r;
        }
        if (vfmig_now_ns() >= deadline)
            return late(link, call->command);
        r = wait_bytes(link, deadline);
        if (r < 0)
            return r;
    }
}

int check_link_call(struct check_link *link, struct check_call *call)
{
    uint16_t id = ++link->next_id;
    uint64_t deadline = vfmig_deadline_ns(call->deadline_ms * MS);

    link->dmas = 0;
    if (link->fd[MAIN] < 0 || link->port->trouble)
        return -ENOTCONN;
    int r = send_command(link, call, id, deadline);
    if (r < 0 || (call->flags & VFMIG_USER_NO_REPLY))
        return r;
    if (link->asking) {
        link->asked_id = id;
        link->asked_open = true;
        return 0;
    }
    link->call_ns = vfmig_now_ns();
    r = await_reply(link, call, id, deadline);
    link->call_ns = 0;
    return r;
}

int check_link_serve(struct check_link *link, uint32_t ms)
{
    uint64_t deadline = vfmig_deadline_ns(ms * MS);

    link->dmas = 0;
    if (link->fd[MAIN] < 0 || link->port->trouble)
        return -ENOTCONN;
    do {
        for (int i = 0; i < 2; i++) {
            struct vfmig_user_msg msg;
            int r;
            do
                r = link->fd[i] >= 0 ? next_message(link, i, &msg) : 0;
            while (r > 0 && take_asked(link, &msg));
            if (r > 0) {
                vfmig_fds_close(&msg.fds);
                r = broken(link, "a reply that nobody asked for");
            }
            if (r < 0)
                return r;
        }
        int r = wait_bytes(link, deadline);
        if (r < 0)
            return r;
    } while (vfmig_now_ns() < deadline);
    return release_held(link, !link->hold_ms);
}

int check_link_answer(struct check_link *link, uint32_t deadline_ms)
{
    uint64_t deadline = vfmig_deadline_ns(deadline_ms * MS);
    int r = link->port->trouble ? -ENOTCONN : 0;

    link->call_ns = vfmig_now_ns();
    while (r == 0 && link->asked_open && vfmig_now_ns() < deadline)
        r = check_link_serve(link, 1);
    link->call_ns = 0;
    if (r == 0 && link->asked_open) {
        check_port_trouble(link->port, CHECK_HUNG, "a request for a state was never answered");
        r = -ENOTCONN;
    }
    return r < 0 ? r : link->asked_result;
}

int check_link_send_part(struct check_link *link, uint16_t command, uint32_t size, const void *data,
                         uint32_t bytes)
{
    struct vfmig_user_header header = vfmig_user_make_command(++link->next_id, command, 0, false);
    struct iovec iov[2] = {{&header, sizeof(header)}, {(void *)(uintptr_t)data, bytes}};
    struct vfmig_error err = {0};

    header.size = size;
    if (link->fd[MAIN] < 0 || link->port->trouble)
        return -ENOTCONN;
    return vfmig_sock_send(link->fd[MAIN], iov, 2, NULL,
                           vfmig_deadline_ns(link->port->deadline_ms * MS), NULL, &err);
}
