/* SPDX-License-Identifier: BSD-3-Clause */
#include "io/sock.h"

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "io/rights.h"

#define SECOND_NS UINT64_C(1000000000)
#define RECEIVE_STEP_NS UINT64_C(250000000) /* receive time-outs, from here on, are multiples of it */

/* Messages up to this size are put together before they are sent: copying them costs less than
 * handing the kernel a list. */
#define SMALL_BYTES 256u

static uint64_t read_clock(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * SECOND_NS + (uint64_t)ts.tv_nsec;
}

uint64_t vfmig_now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t vfmig_deadline_ns(uint64_t timeout_ns)
{
    uint64_t deadline;

    uint64_t now = timeout_ns < SECOND_NS ? vfmig_now_ns() : read_clock(CLOCK_MONOTONIC_COARSE);
    if (timeout_ns == VFMIG_NEVER || __builtin_add_overflow(now, timeout_ns, &deadline))
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

void vfmig_sock_send_room(int fd)
{
    int bytes = VFMIG_SEND_ROOM;

    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

bool vfmig_sock_go_on(unsigned *parts)
{
    return ++*parts < VFMIG_STALL_PARTS && !vfmig_sabotage("stall-in-one");
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

int vfmig_alarm_init(struct vfmig_alarm *alarm, struct vfmig_error *reterr)
{
    alarm->due_ns = VFMIG_NEVER;
    alarm->receive_ns = 0;
    alarm->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    return alarm->fd < 0 ? sock_error(errno, "timerfd_create", reterr) : 0;
}

void vfmig_alarm_done(struct vfmig_alarm *alarm)
{
    if (alarm->fd >= 0)
        close(alarm->fd);
    alarm->fd = -1;
}

/* Makes sure that the timer rings at deadline_ns or before. */
static void set_alarm(struct vfmig_alarm *alarm, uint64_t deadline_ns)
{
    struct itimerspec spec = {.it_value = {(time_t)(deadline_ns / SECOND_NS),
                                           (long)(deadline_ns % SECOND_NS)}};

    if (alarm->due_ns <= deadline_ns)
        return;
    if (deadline_ns == 0)
        spec.it_value.tv_nsec = 1; /* 0 would mean never */
    timerfd_settime(alarm->fd, TFD_TIMER_ABSTIME, &spec, NULL);
    alarm->due_ns = deadline_ns;
}

/* The timer is looked at only when there is no input: one that rang for an earlier call is set
 * again for this one. */
int vfmig_sock_wait_input(int fd, struct vfmig_alarm *alarm, uint64_t deadline_ns,
                          struct vfmig_error *reterr)
{
    struct pollfd pfds[2] = {{.fd = fd, .events = POLLIN}, {.events = POLLIN}};
    nfds_t count = 1;

    if (!alarm)
        return vfmig_sock_wait(fd, POLLIN, deadline_ns, reterr);
    for (;;) {
        if (deadline_ns != VFMIG_NEVER) {
            set_alarm(alarm, deadline_ns);
            pfds[1].fd = alarm->fd;
            count = 2;
        }
        int n = poll(pfds, count, -1);
        if (n < 0 && errno != EINTR)
            return sock_error(errno, "poll", reterr);
        if (n <= 0)
            continue;
        if (pfds[0].revents)
            return 0;
        uint64_t rings;
        ssize_t got = read(alarm->fd, &rings, sizeof(rings));
        (void)got;
        alarm->due_ns = VFMIG_NEVER;
        if (vfmig_now_ns() >= deadline_ns)
            return timed_out(reterr);
    }
}

/* Drops the first bytes of what is to be sent, and the descriptors that went with them. */
static void advance(struct msghdr *msg, size_t bytes)
{
    msg->msg_control = NULL;
    msg->msg_controllen = 0;
    while (msg->msg_iovlen && bytes >= msg->msg_iov->iov_len) {
        bytes -= msg->msg_iov->iov_len;
        msg->msg_iov++;
        msg->msg_iovlen--;
    }
    if (bytes) {
        msg->msg_iov->iov_base = (char *)msg->msg_iov->iov_base + bytes;
        msg->msg_iov->iov_len -= bytes;
    }
}

/* A small message without descriptors in one plain send; 0 when this is not one, or when there
 * was no room for it. */
static ssize_t send_small(int fd, const struct iovec *iov, int iov_count)
{
    char buf[SMALL_BYTES];
    size_t size = 0;

    for (int i = 0; i < iov_count; i++) {
        if (iov[i].iov_len > sizeof(buf) - size)
            return 0;
        if (iov[i].iov_len)
            memcpy(buf + size, iov[i].iov_base, iov[i].iov_len);
        size += iov[i].iov_len;
    }
    ssize_t n = send(fd, buf, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : n;
}

int vfmig_sock_send(int fd, struct iovec *iov, int iov_count, const struct vfmig_fds *fds,
                    uint64_t deadline_ns, size_t *ret_sent, struct vfmig_error *reterr)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)iov_count};
    struct vfmig_rights control;
    size_t sent = 0, *count = ret_sent ? ret_sent : &sent;
    ssize_t n = 0;

    *count = 0;
    if (fds && fds->count)
        vfmig_rights_put(&msg, &control, fds);
    else
        n = send_small(fd, iov, iov_count);
    for (;;) {
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            return sock_error(errno, "send", reterr);
        if (n > 0)
            *count += (size_t)n;
        if (n > 0)
            advance(&msg, (size_t)n);
        if (msg.msg_iovlen == 0)
            return 0;
        n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            int r = vfmig_sock_wait(fd, POLLOUT, deadline_ns, reterr);
            if (r < 0)
                return r;
        }
    }
}

ssize_t vfmig_sock_take(int fd, void *buf, size_t size, struct vfmig_fds *ret_fds,
                        struct vfmig_error *reterr)
{
    struct vfmig_rights control;
    struct iovec iov = {buf, size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    vfmig_rights_expect(&msg, &control);
    ssize_t n = ret_fds ? recvmsg(fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)
                        : recv(fd, buf, size, MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return -EAGAIN;
    if (n < 0)
        return sock_error(errno, "recvmsg", reterr);
    if (ret_fds && msg.msg_controllen && vfmig_rights_take(&msg, ret_fds) < 0) {
        vfmig_fds_close(ret_fds);
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                               "the peer sent descriptors that were not asked for");
    }
    return n;
}

ssize_t vfmig_sock_recv(int fd, void *buf, size_t size, struct vfmig_fds *ret_fds,
                        struct vfmig_alarm *alarm, uint64_t deadline_ns, struct vfmig_error *reterr)
{
    ssize_t n;

    do {
        int r = vfmig_sock_wait_input(fd, alarm, deadline_ns, reterr);
        if (r < 0)
            return r;
        n = vfmig_sock_take(fd, buf, size, ret_fds, reterr);
    } while (n == -EAGAIN);
    return n;
}

/* The limit is rounded, so that calls with the same time to wait rarely set it anew. */
static void limit_receive(int fd, struct vfmig_alarm *alarm, uint64_t deadline_ns)
{
    uint64_t now = vfmig_now_ns(), left = 0;

    if (deadline_ns != VFMIG_NEVER) {
        left = deadline_ns > now + 1000 ? deadline_ns - now : 1000; /* 0 us would mean for ever */
        if (left > RECEIVE_STEP_NS)
            left += RECEIVE_STEP_NS - 1 - (left - 1) % RECEIVE_STEP_NS;
    }
    if (left == alarm->receive_ns)
        return;
    struct timeval limit = {.tv_sec = (time_t)(left / SECOND_NS),
                            .tv_usec = (suseconds_t)(left % SECOND_NS / 1000)};
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0)
        alarm->receive_ns = left; /* else it is tried again by the next receive */
}

ssize_t vfmig_sock_recv_large(int fd, struct iovec *iov, int iov_count, struct vfmig_alarm *alarm,
                              uint64_t deadline_ns, struct vfmig_error *reterr)
{
    bool late = false;

    for (;;) {
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)iov_count};
        if (!late)
            limit_receive(fd, alarm, deadline_ns);
        ssize_t n = recvmsg(fd, &msg, late ? MSG_DONTWAIT : 0);
        if (n >= 0)
            return n;
        if (errno != EINTR && errno != EAGAIN)
            return sock_error(errno, "recvmsg", reterr);
        if (late && errno == EAGAIN)
            return timed_out(reterr);
        /* A process that stood still wakes up behind its deadline, and what it waits for is there. */
        late = deadline_ns != VFMIG_NEVER && vfmig_now_ns() >= deadline_ns;
    }
}

int vfmig_sock_recv_all(int fd, void *buf, size_t size, uint64_t deadline_ns,
                        struct vfmig_error *reterr)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = vfmig_sock_recv(fd, (char *)buf + got, size - got, NULL, /* alarm= */ NULL,
                                    deadline_ns, reterr);
        if (n < 0)
            return (int)n;
        if (n == 0)
            return sock_error(ECONNRESET, "recvmsg", reterr);
        got += (size_t)n;
    }
    return 0;
}

void vfmig_sock_let_read(int fd, uint64_t deadline_ns)
{
    const struct timespec moment = {0, 50000};
    int left = 1;

    while (ioctl(fd, SIOCOUTQ, &left) == 0 && left > 0 && vfmig_now_ns() < deadline_ns)
        nanosleep(&moment, NULL);
}
