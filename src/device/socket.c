/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "device/internal.h"
#include "io/rights.h"
#include "io/sock.h"

#define SEND_POLL_MS 100
#define SMALL        128u

void socket_init(struct socket *s)
{
    memset(s, 0, sizeof(*s));
    s->fd = -1;
    pthread_mutex_init(&s->send_lock, NULL);
}

int socket_open(struct socket *s, int fd, uint32_t max_message)
{
    s->buf = malloc(max_message);
    if (!s->buf)
        return -ENOMEM;
    vfmig_framer_init(&s->framer, s->buf, max_message, max_message);
    vfmig_sock_send_room(fd);
    s->fd = fd;
    return 0;
}

void socket_close(struct socket *s)
{
    pthread_mutex_lock(&s->send_lock);
    if (s->fd >= 0) {
        vfmig_framer_done(&s->framer);
        close(s->fd);
    }
    s->fd = -1;
    free(s->buf);
    s->buf = NULL;
    pthread_mutex_unlock(&s->send_lock);
}

ssize_t socket_receive(struct socket *s, size_t most)
{
    struct vfmig_rights control;
    struct iovec iov;
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    struct vfmig_fds fds = {.count = 0};
    ssize_t n;
    int r;

    iov.iov_base = vfmig_framer_space(&s->framer, &iov.iov_len);
    iov.iov_len = iov.iov_len < most ? iov.iov_len : most;
    vfmig_rights_expect(&msg, &control);
    n = recvmsg(s->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return errno == EWOULDBLOCK || errno == EINTR ? -EAGAIN : -errno;
    if (msg.msg_controllen == 0) {
        vfmig_framer_fed(&s->framer, (size_t)n, NULL);
        return n;
    }
    r = vfmig_rights_take(&msg, &fds);
    if (r < 0)
        vfmig_fds_close(&fds);
    else
        r = vfmig_framer_fed(&s->framer, (size_t)n, &fds);
    return r < 0 ? r : n;
}

/* Drops the first n bytes of what is to be sent. */
static void advance(struct msghdr *msg, size_t n)
{
    while (msg->msg_iovlen && n >= msg->msg_iov->iov_len) {
        n -= msg->msg_iov->iov_len;
        msg->msg_iov++;
        msg->msg_iovlen--;
    }
    if (msg->msg_iovlen) {
        msg->msg_iov->iov_base = (char *)msg->msg_iov->iov_base + n;
        msg->msg_iov->iov_len -= n;
    }
    msg->msg_control = NULL; /* descriptors went with the first byte */
    msg->msg_controllen = 0;
}

static int send_all(struct socket *s, struct msghdr *msg, atomic_bool *give_up)
{
    while (msg->msg_iovlen) {
        const struct iovec *first = msg->msg_iov;
        ssize_t n = msg->msg_iovlen == 1 && !msg->msg_controllen /* the cheaper call */
                        ? send(s->fd, first->iov_base, first->iov_len, MSG_DONTWAIT | MSG_NOSIGNAL)
                        : sendmsg(s->fd, msg, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0) {
            advance(msg, (size_t)n);
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return -errno;
        if (atomic_load(give_up))
            return -ECANCELED;
        struct pollfd p = {.fd = s->fd, .events = POLLOUT};
        poll(&p, 1, SEND_POLL_MS);
    }
    return 0;
}

/* A short message in one piece: the kernel copies one piece faster than three. */
static void gather(struct msghdr *msg, uint8_t *small)
{
    size_t size = 0;

    for (size_t i = 0; i < msg->msg_iovlen; i++)
        if (msg->msg_iov[i].iov_len > SMALL - size)
            return;
        else
            size += msg->msg_iov[i].iov_len;
    size = 0;
    for (size_t i = 0; i < msg->msg_iovlen; i++) {
        memcpy(small + size, msg->msg_iov[i].iov_base, msg->msg_iov[i].iov_len);
        size += msg->msg_iov[i].iov_len;
    }
    msg->msg_iov[0] = (struct iovec){small, size};
    msg->msg_iovlen = 1;
}

int socket_send(struct socket *s, const struct iovec *iov, unsigned count, const int *fds,
                unsigned fd_count, atomic_bool *give_up)
{
    struct vfmig_fds passed = {.count = fd_count};
    struct vfmig_rights control;
    uint8_t small[SMALL];
    struct iovec copy[4];
    struct msghdr msg = {.msg_iov = copy, .msg_iovlen = count};

    memcpy(copy, iov, count * sizeof(*iov));
    gather(&msg, small);
    if (fd_count) {
        memcpy(passed.fd, fds, fd_count * sizeof(int));
        vfmig_rights_put(&msg, &control, &passed);
    }
    pthread_mutex_lock(&s->send_lock);
    int r = s->fd < 0 ? -ENOTCONN : send_all(s, &msg, give_up);
    pthread_mutex_unlock(&s->send_lock);
    return r;
}
