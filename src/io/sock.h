/* SPDX-License-Identifier: BSD-3-Clause */
/* Stream sockets, unix and TCP, with descriptors: the one place that connects, listens, sends and
 * receives. Addresses are "unix:PATH" and "tcp:HOST:PORT" ("tcp:[::1]:PORT" for IPv6); text
 * without a prefix is a unix path when it contains a slash.
 *
 * Deadlines are CLOCK_MONOTONIC nanoseconds, VFMIG_NEVER for none; past it -ETIMEDOUT. Every
 * descriptor is close-on-exec and every send spares the process SIGPIPE. */
#ifndef VFMIG_IO_SOCK_H
#define VFMIG_IO_SOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/fds.h"
#include "vfmig/error.h"

#define VFMIG_NEVER UINT64_MAX

/* A limit of silence is waited out in so many parts, of which SO_RCVTIMEO and SO_SNDTIMEO are one each. Parts are
 * counted, not measured: one that took longer because this process stood still itself (SIGSTOP, a paused host) is
 * one part like the others, and a peer that stood still with it has the rest to be heard. */
#define VFMIG_STALL_PARTS 8u

/* One of them has passed in silence, *parts before it: whether there is another one. */
bool vfmig_sock_go_on(unsigned *parts);

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t vfmig_now_ns(void);

/* now + timeout; VFMIG_NEVER when that does not fit or timeout is VFMIG_NEVER. From a second on it
 * may be off by the few milliseconds of the kernel's coarse clock. */
uint64_t vfmig_deadline_ns(uint64_t timeout_ns);

/* A listening socket, at which VFMIG_MAX_KNOCKS connections may wait to be accepted. A stale unix path (nobody
 * answers there) is replaced. Port 0 picks one. */
int vfmig_sock_listen(const char *address, int *ret_fd, struct vfmig_error *reterr);

/* The same where nobody can come from another host, else -EREMOTE: a name may lead elsewhere when it is asked for
 * again, so it is asked for once. */
int vfmig_sock_listen_near(const char *address, int *ret_fd, struct vfmig_error *reterr);

/* The listener's own address, with the port that was picked. -ENOSPC when it does not fit. */
int vfmig_sock_address(int fd, char *buf, size_t size, struct vfmig_error *reterr);

/* Whether what is sent to this address can leave this host: TCP that is not loopback. The second looks at a
 * connection's other end. */
int vfmig_sock_is_far(const char *address, bool *ret_far, struct vfmig_error *reterr);
bool vfmig_sock_peer_is_far(int fd);

/* Whose connection it is, as a number: the same for all of one host (of IPv6: of one /64), and over a unix socket
 * for all of one user. */
uint64_t vfmig_sock_whose(int fd);

/* Connected sockets are in blocking mode; TCP ones have TCP_NODELAY. */
int vfmig_sock_connect(const char *address, uint64_t deadline_ns, int *ret_fd,
                       struct vfmig_error *reterr);
int vfmig_sock_accept(int listener, uint64_t deadline_ns, int *ret_fd, struct vfmig_error *reterr);
int vfmig_sock_pair(int ret_fds[2], struct vfmig_error *reterr);

/* Makes room for what is sent and not yet read, so that sender and receiver of a large message work
 * side by side instead of waiting for each other; as far as the system allows. */
void vfmig_sock_send_room(int fd);

/* Waits for POLLIN or POLLOUT: 0, -ETIMEDOUT. A hang-up counts as ready. */
int vfmig_sock_wait(int fd, short events, uint64_t deadline_ns, struct vfmig_error *reterr);

/* Keeps the deadlines of one reader with a timer that is rarely set: it rings at or before the
 * earliest deadline that was waited for, and whoever waits then sets it anew. A wait thus costs no
 * timer of its own. For one thread at a time. */
struct vfmig_alarm {
    int fd;
    uint64_t due_ns;     /* VFMIG_NEVER: not set */
    uint64_t receive_ns; /* the socket's own limit of a receive that blocks; 0: none */
};

int vfmig_alarm_init(struct vfmig_alarm *alarm, struct vfmig_error *reterr);
void vfmig_alarm_done(struct vfmig_alarm *alarm);

/* Sends everything, with fds (may be NULL; they stay the caller's) on the first byte. One system
 * call unless the socket takes less. iov is used up. *ret_sent (may be NULL) tells how much went out: a
 * failure in the middle of a message leaves the stream broken. Origin PEER when the other end is
 * gone (-ECONNRESET or -EPIPE) or does not read (-ETIMEDOUT). */
int vfmig_sock_send(int fd, struct iovec *iov, int iov_count, const struct vfmig_fds *fds,
                    uint64_t deadline_ns, size_t *ret_sent, struct vfmig_error *reterr);

/* Receives what is there, at least one byte: the count, or 0 at the end of the stream, or a
 * negative errno. ret_fds must be empty; more descriptors than it holds are -EPROTO. NULL: none
 * are expected, and the kernel closes those that come. alarm (may be NULL) keeps the deadline.
 *
 * Waits in poll, although that is one more system call than a receive that blocks: on a unix
 * socket such a receive is also woken when the peer has *read* what this side sent, once for
 * every message, and that costs more. */
ssize_t vfmig_sock_recv(int fd, void *buf, size_t size, struct vfmig_fds *ret_fds,
                        struct vfmig_alarm *alarm, uint64_t deadline_ns,
                        struct vfmig_error *reterr);

/* Its two halves. Waits until there is something, or the end: 0, -ETIMEDOUT. Takes what is there: as above, and
 * -EAGAIN (without an error) when there was nothing after all. */
int vfmig_sock_wait_input(int fd, struct vfmig_alarm *alarm, uint64_t deadline_ns,
                          struct vfmig_error *reterr);
ssize_t vfmig_sock_take(int fd, void *buf, size_t size, struct vfmig_fds *ret_fds,
                        struct vfmig_error *reterr);

/* The same into several places, without descriptors, and waiting in the receive: for the reply that
 * comes next and is large. Whoever sends it wakes a receive that blocks in a fraction of the time
 * that waking a poll takes, which is worth more than being woken once for nothing. alarm as above. */
ssize_t vfmig_sock_recv_large(int fd, struct iovec *iov, int iov_count, struct vfmig_alarm *alarm,
                              uint64_t deadline_ns, struct vfmig_error *reterr);

/* Waits until the other end has received what was sent, or until the deadline. Unix sockets. */
void vfmig_sock_let_read(int fd, uint64_t deadline_ns);

/* Exactly size bytes; an earlier end is -ECONNRESET, origin PEER. */
int vfmig_sock_recv_all(int fd, void *buf, size_t size, uint64_t deadline_ns,
                        struct vfmig_error *reterr);

#endif
