/* SPDX-License-Identifier: BSD-3-Clause */
#include "io/sock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* How long one blocking call may last before the deadline is looked at again. */
#define TICK_NS UINT64_C(50000000)

uint64_t vfmig_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t vfmig_deadline_ns(uint64_t timeout_ns)
{
    uint64_t deadline;

    if (timeout_ns == VFMIG_NEVER || __builtin_add_overflow(vfmig_now_ns(), timeout_ns, &deadline))
        return VFMIG_NEVER;
    return deadline;
}

static int timed_out(struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ETIMEDOUT, VFMIG_ORIGIN_PEER, 0,
                           "the peer did not answer in time");
}

/* Errors that mean the other end, and those that mean this host. */
static int sock_error(int err, const char *what, struct vfmig_error *reterr)
{
    if (err == ECONNRESET || err == EPIPE)
        return vfmig_error_set(reterr, -err, VFMIG_ORIGIN_PEER, 0, "the peer closed the connection");
    return vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0, "%s: %s", what, strerror(err));
}

int vfmig_sock_wait(int fd, short events, uint64_t deadline_ns, struct vfmig_error *reterr)
{
    struct pollfd pfd = {.fd = fd, .events = events};

    for (;;) {
        uint64_t now = vfmig_now_ns(), left = deadline_ns > now ? deadline_ns - now : 0;
        struct timespec ts = {.tv_sec = (time_t)(left / 1000000000u),
                              .tv_nsec = (long)(left % 1000000000u)};
        int n = ppoll(&pfd, 1, deadline_ns == VFMIG_NEVER ? NULL : &ts, NULL);

        if (n > 0)
            return 0;
        if (n == 0)
            return timed_out(reterr);
        if (errno != EINTR)
            return sock_error(errno, "poll", reterr);
    }
}

int vfmig_sock_set_tick(int fd, struct vfmig_error *reterr)
{
    struct timeval tick = {.tv_usec = TICK_NS / 1000};

    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof(tick)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tick, sizeof(tick)) < 0)
        return sock_error(errno, "setsockopt", reterr);
    return 0;
}

/* Before a call that may block for a tick: when less is left, wait here for exactly that. */
static int wait_last_tick(int fd, short events, uint64_t deadline_ns, struct vfmig_error *reterr)
{
    if (deadline_ns == VFMIG_NEVER)
        return 0;
    uint64_t now = vfmig_now_ns();
    if (deadline_ns > now && deadline_ns - now >= TICK_NS)
        return 0;
    return vfmig_sock_wait(fd, events, deadline_ns, reterr);
}

static void put_fds(struct msghdr *msg, void *control, const struct vfmig_fds *fds)
{
    size_t bytes = fds->count * sizeof(int);

    msg->msg_control = control;
    msg->msg_controllen = CMSG_SPACE(bytes);
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(cmsg), fds->fd, bytes);
}

int vfmig_sock_send(int fd, struct iovec *iov, int iov_count, const struct vfmig_fds *fds,
                    uint64_t deadline_ns, size_t *ret_sent, struct vfmig_error *reterr)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * VFMIG_MAX_MSG_FDS)];
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)iov_count};
    size_t sent = 0, *count = ret_sent ? ret_sent : &sent;

    if (fds && fds->count)
        put_fds(&msg, control, fds);
    *count = 0;
    for (;;) {
        while (msg.msg_iovlen && msg.msg_iov->iov_len == 0) {
            msg.msg_iov++;
            msg.msg_iovlen--;
        }
        if (msg.msg_iovlen == 0)
            return 0;
        int r = wait_last_tick(fd, POLLOUT, deadline_ns, reterr);
        if (r < 0)
            return r;
        ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            return sock_error(errno, "sendmsg", reterr);
        if (n <= 0)
            continue;
        *count += (size_t)n;
        msg.msg_control = NULL; /* they went with the first byte */
        msg.msg_controllen = 0;
        for (size_t left = (size_t)n; left;) {
            size_t step = left < msg.msg_iov->iov_len ? left : msg.msg_iov->iov_len;
            msg.msg_iov->iov_base = (char *)msg.msg_iov->iov_base + step;
            msg.msg_iov->iov_len -= step;
            left -= step;
            if (msg.msg_iov->iov_len == 0 && left) {
                msg.msg_iov++;
                msg.msg_iovlen--;
            }
        }
    }
}

/* Moves received descriptors into *ret_fds. Those that do not fit are closed: -EPROTO. */
static int take_fds(struct msghdr *msg, struct vfmig_fds *ret_fds)
{
    bool excess = msg->msg_flags & MSG_CTRUNC;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (ret_fds && ret_fds->count < VFMIG_MAX_MSG_FDS) {
                ret_fds->fd[ret_fds->count++] = fd;
            } else {
                close(fd);
                excess = true;
            }
        }
    }
    if (excess && ret_fds)
        vfmig_fds_close(ret_fds);
    return excess ? -EPROTO : 0;
}

ssize_t vfmig_sock_recv(int fd, void *buf, size_t size, struct vfmig_fds *ret_fds,
                        uint64_t deadline_ns, struct vfmig_error *reterr)
{
    /* Room for one too many, so that excess is seen and closed. */
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * (VFMIG_MAX_MSG_FDS + 1))];
    struct iovec iov = {buf, size};

    for (;;) {
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof(control)};
        int r = wait_last_tick(fd, POLLIN, deadline_ns, reterr);
        if (r < 0)
            return r;
        ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return sock_error(errno, "recvmsg", reterr);
        if (msg.msg_controllen && take_fds(&msg, ret_fds) < 0)
            return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                                   "the peer sent descriptors that were not asked for");
        return n;
    }
}

int vfmig_sock_recv_all(int fd, void *buf, size_t size, uint64_t deadline_ns,
                        struct vfmig_error *reterr)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = vfmig_sock_recv(fd, (char *)buf + got, size - got, NULL, deadline_ns, reterr);
        if (n < 0)
            return (int)n;
        if (n == 0)
            return sock_error(ECONNRESET, "recvmsg", reterr);
        got += (size_t)n;
    }
    return 0;
}
