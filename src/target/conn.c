/* SPDX-License-Identifier: BSD-3-Clause */
#include "target/conn.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/sabotage.h"

#define SEND_TIMEOUT_NS UINT64_C(30000000000) /* of replies: a peer that does not read them */

/* How often, and for how long, a call that is late looks whether its reply is here (await). */
#define LATE_LOOKS   100u
#define LATE_LOOK_NS UINT64_C(10000000)

/* From so many bytes on a reply is received where the caller wants it. */
#define LARGE_BYTES 16384u

/* A call that waits for its reply. */
struct waiter {
    struct waiter *next;
    struct vfmig_call *call;
    struct vfmig_error *err; /* the caller's or a spare one */
    uint16_t id;
    bool done;
    bool sleeping; /* cond is set up: somebody else reads */
    int result;
    pthread_cond_t cond;
};

struct vfmig_conn {
    int fd;
    struct vfmig_alarm alarm; /* the leader's */
    vfmig_conn_serve serve;
    void *opaque;

    pthread_mutex_t send_lock; /* one message at a time; never taken with lock held */

    pthread_mutex_t lock; /* everything below; the framer belongs to the leader, unlocked */
    struct waiter *waiters;
    bool led; /* somebody reads the socket */
    bool waiting; /* it waits for input: what has come is in the socket, and nowhere else */
    uint16_t next_id;
    uint16_t abandoned[VFMIG_CONN_ABANDONED];
    uint32_t abandoned_count;
    struct vfmig_error failed; /* code 0 while the connection is good */

    struct vfmig_framer framer;
    void *buffer;
};

int vfmig_conn_new(int fd, uint32_t max_data, vfmig_conn_serve serve, void *opaque,
                   struct vfmig_conn **ret_conn, struct vfmig_error *reterr)
{
    uint32_t max_message = vfmig_user_message_max(max_data);
    struct vfmig_conn *conn = calloc(1, sizeof(*conn));
    void *buffer = conn ? malloc(max_message) : NULL;
    int r = 0;

    if (!buffer)
        r = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a connection");
    else
        r = vfmig_alarm_init(&conn->alarm, reterr);
    if (r < 0) {
        free(buffer);
        free(conn);
        close(fd);
        return r;
    }
    conn->fd = fd;
    vfmig_sock_send_room(fd);
    conn->serve = serve;
    conn->opaque = opaque;
    conn->buffer = buffer;
    vfmig_framer_init(&conn->framer, buffer, max_message, max_message);
    pthread_mutex_init(&conn->lock, NULL);
    pthread_mutex_init(&conn->send_lock, NULL);
    *ret_conn = conn;
    return 0;
}

void vfmig_conn_free(struct vfmig_conn *conn)
{
    if (!conn)
        return;
    vfmig_framer_done(&conn->framer);
    vfmig_alarm_done(&conn->alarm);
    close(conn->fd);
    pthread_mutex_destroy(&conn->lock);
    pthread_mutex_destroy(&conn->send_lock);
    free(conn->buffer);
    free(conn);
}

/* ---- waiters; lock held ---- */

static struct waiter **find(struct vfmig_conn *conn, uint16_t id)
{
    struct waiter **at = &conn->waiters;

    while (*at && (*at)->id != id)
        at = &(*at)->next;
    return at;
}

static int find_abandoned(const struct vfmig_conn *conn, uint16_t id)
{
    for (uint32_t i = 0; i < conn->abandoned_count; i++)
        if (conn->abandoned[i] == id)
            return (int)i;
    return -1;
}

static void finish(struct waiter *w, int result)
{
    w->result = result;
    w->done = true;
    if (w->sleeping)
        pthread_cond_signal(&w->cond);
}

static int copy_error(const struct vfmig_error *from, struct vfmig_error *to)
{
    if (to)
        *to = *from;
    return from->code;
}

/* The connection is lost: everybody who waits hears why. */
static void fail(struct vfmig_conn *conn, const struct vfmig_error *error)
{
    if (conn->failed.code == 0)
        conn->failed = *error;
    while (conn->waiters) {
        struct waiter *w = conn->waiters;
        conn->waiters = w->next;
        finish(w, copy_error(&conn->failed, w->err));
    }
    shutdown(conn->fd, SHUT_RDWR);
}

void vfmig_conn_end(struct vfmig_conn *conn, const struct vfmig_error *error)
{
    struct vfmig_error closed = {.code = 0};

    vfmig_error_set(&closed, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0, "the connection was closed");
    pthread_mutex_lock(&conn->lock);
    fail(conn, error ? error : &closed);
    pthread_mutex_unlock(&conn->lock);
}

bool vfmig_conn_failed(struct vfmig_conn *conn)
{
    pthread_mutex_lock(&conn->lock);
    bool failed = conn->failed.code != 0;
    pthread_mutex_unlock(&conn->lock);
    return failed;
}

/* ---- receiving ---- */

static int deliver_payload(struct vfmig_call *call, struct vfmig_user_msg *msg,
                           struct vfmig_error *reterr)
{
    int r = vfmig_user_check_reply(msg, call->command, call->request, call->request_size, reterr);

    if (r < 0)
        return r;
    if (msg->size > call->reply_room && msg->size - call->reply_room > call->reply_data_room)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                               "reply to %s: %u bytes are too many",
                               vfmig_user_command_name(call->command), msg->size);
    if (msg->fds.count && !call->ret_fds)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                               "reply to %s: unexpected descriptors",
                               vfmig_user_command_name(call->command));
    uint32_t head = msg->size < call->reply_room ? msg->size : call->reply_room;
    if (head)
        memcpy(call->reply, msg->payload, head);
    if (msg->size > head)
        memcpy(call->reply_data, msg->payload + head, msg->size - head);
    call->ret_size = msg->size;
    if (call->ret_fds)
        vfmig_fds_move(call->ret_fds, &msg->fds);
    return 0;
}

/* lock held. < 0: the connection is lost. */
static int deliver(struct vfmig_conn *conn, struct vfmig_user_msg *msg, struct vfmig_error *reterr)
{
    struct waiter **at = find(conn, msg->header.id), *w = *at;
    struct vfmig_error error;

    if (!w) {
        int i = find_abandoned(conn, msg->header.id);
        if (i < 0)
            return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                                   "a reply (%s, id %u) that nobody asked for",
                                   vfmig_user_command_name(msg->header.command), msg->header.id);
        conn->abandoned[i] = conn->abandoned[--conn->abandoned_count];
        return 0;
    }
    const struct vfmig_user_header *h = &msg->header;
    bool refusal = (h->flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_REPLY &&
                   (h->flags & VFMIG_USER_ERROR) && h->command == w->call->command;
    int r = deliver_payload(w->call, msg, &error);
    /* A refusal is an answer; a reply that breaks the protocol is the end. */
    if (r < 0 && !refusal)
        return copy_error(&error, reterr);
    if (r < 0)
        copy_error(&error, w->err);
    *at = w->next;
    finish(w, r);
    return 0;
}

/* Every complete message of the framer. lock held, released while a command is served. */
static int dispatch(struct vfmig_conn *conn, struct vfmig_error *reterr)
{
    struct vfmig_user_msg msg;
    int r = 0;

    while (r == 0 && (r = vfmig_framer_next(&conn->framer, &msg)) == 1) {
        if ((msg.header.flags & VFMIG_USER_TYPE_MASK) != VFMIG_USER_TYPE_CMD) {
            r = deliver(conn, &msg, reterr);
        } else if (conn->serve) {
            pthread_mutex_unlock(&conn->lock);
            r = conn->serve(conn->opaque, &msg, reterr);
            pthread_mutex_lock(&conn->lock);
        } else {
            r = vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                                "the peer sent a command (%s) over this socket",
                                vfmig_user_command_name(msg.header.command));
        }
        vfmig_fds_close(&msg.fds);
        if (r < 0)
            return r;
    }
    if (r < 0)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_PEER, 0,
                               "the peer sent a message of an impossible size");
    return 0;
}

/* lock held. Some request is open whose reply may carry descriptors; nothing else from a server
 * does, and a receive that need not look for them is cheaper. */
static bool fds_expected(const struct vfmig_conn *conn)
{
    for (const struct waiter *w = conn->waiters; w; w = w->next)
        if (w->call->ret_fds)
            return true;
    return false;
}

/* The leader's own large reply goes from the socket to where the caller wants it. Only the leader's:
 * another caller may give up and take its buffer back at any time. True when the message under way
 * is such a reply, and right so far. lock held. */
static bool is_large_reply(struct vfmig_conn *conn, const struct waiter *w,
                           struct vfmig_user_msg *ret_msg, uint32_t *ret_have)
{
    const struct vfmig_call *call = w->call;

    if (!vfmig_framer_partial(&conn->framer, call->reply_room, ret_msg, ret_have))
        return false;
    const struct vfmig_user_header *h = &ret_msg->header;
    return h->id == w->id && h->command == call->command &&
           (h->flags & VFMIG_USER_FLAGS) == VFMIG_USER_TYPE_REPLY &&
           ret_msg->size - call->reply_room <= call->reply_data_room &&
           vfmig_user_check_reply(ret_msg, call->command, call->request, call->request_size,
                                  NULL) == 0;
}

static int closed(struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ECONNRESET, VFMIG_ORIGIN_PEER, 0,
                           "the peer closed the connection");
}

/* Receives the rest of it; in_place bytes behind those of msg are where they belong already. On
 * -ETIMEDOUT what came is put back, so that the framer sees the whole message: the connection stays
 * usable. lock held, released while it waits. */
static int receive_large(struct vfmig_conn *conn, struct waiter *w,
                         const struct vfmig_user_msg *msg, uint32_t have, uint32_t in_place,
                         uint64_t deadline_ns, struct vfmig_error *reterr)
{
    struct vfmig_call *call = w->call;
    uint32_t at = have - call->reply_room, size = msg->size - call->reply_room, first = at;
    uint8_t *to = call->reply_data;
    size_t space;
    int r = 0;

    memcpy(call->reply, msg->payload, call->reply_room);
    memcpy(to, msg->payload + call->reply_room, at);
    at += in_place;
    pthread_mutex_unlock(&conn->lock);
    while (r == 0 && at < size) {
        struct iovec iov = {to + at, size - at};
        ssize_t n = vfmig_sock_recv_large(conn->fd, &iov, 1, &conn->alarm, deadline_ns, reterr);
        if (n == 0)
            r = closed(reterr);
        else if (n < 0)
            r = (int)n;
        else
            at += (uint32_t)n;
    }
    pthread_mutex_lock(&conn->lock);
    if (r == -ETIMEDOUT) {
        memcpy(vfmig_framer_space(&conn->framer, &space), to + first, at - first);
        vfmig_framer_fed(&conn->framer, at - first, NULL);
    }
    if (r < 0)
        return r;
    vfmig_framer_skip(&conn->framer);
    call->ret_size = msg->size;
    struct waiter **link = find(conn, w->id);
    if (*link == w) { /* else the connection was ended meanwhile */
        *link = w->next;
        finish(w, 0);
    }
    return 0;
}

static int fed(struct vfmig_conn *conn, size_t size, struct vfmig_fds *fds,
               struct vfmig_error *reterr)
{
    int r = vfmig_framer_fed(&conn->framer, size, fds);

    if (r < 0)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_PEER, 0,
                               "the peer sent descriptors in the middle of a message");
    return 0;
}

/* The first receive of what should be w's large reply: its head to the framer, and the rest at once
 * to where it belongs. Whatever else it turns out to be goes through the framer; the caller's buffer
 * has had bytes of it then. */
static int receive_head(struct vfmig_conn *conn, struct waiter *w, uint8_t *at,
                        uint64_t deadline_ns, struct vfmig_error *reterr)
{
    struct vfmig_call *call = w->call;
    uint32_t head = (uint32_t)sizeof(struct vfmig_user_header) + call->reply_room, have;
    uint8_t *to = call->reply_data;
    struct iovec iov[2] = {{at, head}, {to, call->reply_data_room}};
    struct vfmig_fds none = {.count = 0};
    struct vfmig_user_msg msg;
    size_t space;

    pthread_mutex_unlock(&conn->lock);
    ssize_t n = vfmig_sock_recv_large(conn->fd, iov, 2, &conn->alarm, deadline_ns, reterr);
    pthread_mutex_lock(&conn->lock);
    if (n <= 0)
        return n < 0 ? (int)n : closed(reterr);
    uint32_t more = (size_t)n > head ? (uint32_t)n - head : 0;
    int r = fed(conn, (size_t)n - more, &none, reterr);
    if (r < 0 || !more)
        return r < 0 ? r : dispatch(conn, reterr);
    if (is_large_reply(conn, w, &msg, &have) && more <= msg.size - have)
        return receive_large(conn, w, &msg, have, more, deadline_ns, reterr);
    memcpy(vfmig_framer_space(&conn->framer, &space), to, more); /* there was room for all of it */
    r = fed(conn, more, &none, reterr);
    return r < 0 ? r : dispatch(conn, reterr);
}

/* One receive and what came with it; called by the leader, lock held, released while it waits.
 * -ETIMEDOUT alone leaves the connection usable. w: the leader's own call, or NULL. */
static int receive(struct vfmig_conn *conn, struct waiter *w, uint64_t deadline_ns,
                   struct vfmig_error *reterr)
{
    struct vfmig_fds fds;
    struct vfmig_user_msg msg;
    uint32_t have;
    size_t space;
    void *at = vfmig_framer_space(&conn->framer, &space);
    bool large = w && !fds_expected(conn) && w->call->reply_data_room >= LARGE_BYTES;

    if (large && is_large_reply(conn, w, &msg, &have))
        return receive_large(conn, w, &msg, have, 0, deadline_ns, reterr);
    if (large && vfmig_framer_idle(&conn->framer) &&
        space >= sizeof(msg.header) + w->call->reply_room + w->call->reply_data_room)
        return receive_head(conn, w, at, deadline_ns, reterr);
    fds.count = 0;
    conn->waiting = true;
    pthread_mutex_unlock(&conn->lock);
    int r = vfmig_sock_wait_input(conn->fd, &conn->alarm, deadline_ns, reterr);
    pthread_mutex_lock(&conn->lock);
    conn->waiting = false;
    if (r < 0)
        return r;
    ssize_t n = vfmig_sock_take(conn->fd, at, space, fds_expected(conn) ? &fds : NULL, reterr);
    if (n == -EAGAIN)
        return 0;
    if (n <= 0)
        return n < 0 ? (int)n : closed(reterr);
    r = fed(conn, (size_t)n, &fds, reterr);
    return r < 0 ? r : dispatch(conn, reterr);
}

/* ---- calling ---- */

static int send_message(struct vfmig_conn *conn, const struct vfmig_user_header *header,
                        const void *fixed, uint32_t fixed_size, const void *data,
                        uint32_t data_size, const struct vfmig_fds *fds, uint64_t deadline_ns,
                        struct vfmig_error *reterr)
{
    struct iovec iov[3] = {
        {(void *)(uintptr_t)header, sizeof(*header)},
        {(void *)(uintptr_t)fixed, fixed_size},
        {(void *)(uintptr_t)data, data_size},
    };
    struct vfmig_error spare = {.code = 0}, *err = reterr ? reterr : &spare;
    size_t sent;

    pthread_mutex_lock(&conn->send_lock);
    int r = vfmig_sock_send(conn->fd, iov, 3, fds, deadline_ns, &sent, err);
    pthread_mutex_unlock(&conn->send_lock);
    /* Nothing sent in time: the peer is slow. Half a message: nothing can follow it. */
    if (r < 0 && (r != -ETIMEDOUT || sent > 0))
        vfmig_conn_end(conn, err);
    return r;
}

/* lock held */
static int enlist(struct vfmig_conn *conn, struct waiter *w)
{
    if (conn->failed.code)
        return copy_error(&conn->failed, w->err);
    do
        w->id = conn->next_id++;
    while (*find(conn, w->id) || find_abandoned(conn, w->id) >= 0);
    w->next = conn->waiters;
    conn->waiters = w;
    return 0;
}

/* lock held; the reply, if it comes, will find the id on the list of those to throw away. */
static void give_up(struct vfmig_conn *conn, struct waiter *w, bool sent)
{
    struct waiter **at = find(conn, w->id);

    if (*at == w)
        *at = w->next;
    if (!sent)
        return;
    if (conn->abandoned_count < VFMIG_CONN_ABANDONED) {
        conn->abandoned[conn->abandoned_count++] = w->id;
        return;
    }
    struct vfmig_error error;
    vfmig_error_set(&error, -ETIMEDOUT, VFMIG_ORIGIN_PEER, 0,
                    "the peer left %u requests unanswered", VFMIG_CONN_ABANDONED);
    fail(conn, &error);
}

static void sleep_until(struct vfmig_conn *conn, struct waiter *w, uint64_t deadline_ns)
{
    if (!w->sleeping) {
        pthread_condattr_t attr;
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&w->cond, &attr);
        pthread_condattr_destroy(&attr);
        w->sleeping = true;
    }
    if (deadline_ns == VFMIG_NEVER) {
        pthread_cond_wait(&w->cond, &conn->lock);
        return;
    }
    struct timespec ts = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                          .tv_nsec = (long)(deadline_ns % 1000000000u)};
    pthread_cond_timedwait(&w->cond, &conn->lock, &ts);
}

/* lock held: somebody else must read now. */
static void hand_over(struct vfmig_conn *conn)
{
    conn->led = false;
    for (struct waiter *w = conn->waiters; w; w = w->next) {
        if (w->sleeping) {
            pthread_cond_signal(&w->cond);
            return;
        }
    }
}

/* lock held. Whether a reply may be here that whoever reads has not dealt with: in the socket, or in
 * that thread's hands. */
static bool may_be_here(const struct vfmig_conn *conn)
{
    int unread = 0;

    return !conn->waiting || (ioctl(conn->fd, FIONREAD, &unread) == 0 && unread > 0);
}

/* lock held. The deadline of a call has passed whose reply another thread reads: true while it is given
 * time for what is here. After this process stood still both wake up at once, and who only looks at
 * the clock would miss the reply. Looks are counted, so it ends, and another standstill is one of them. */
static bool look_first(struct vfmig_conn *conn, struct waiter *w, unsigned *looks)
{
    if (vfmig_sabotage("clock-first") || !may_be_here(conn) || ++*looks > LATE_LOOKS)
        return false;
    sleep_until(conn, w, vfmig_now_ns() + LATE_LOOK_NS);
    return true;
}

/* lock held. Until the reply came, the deadline passed, or the connection ended. */
static void await(struct vfmig_conn *conn, struct waiter *w, uint64_t deadline_ns)
{
    struct vfmig_error error = {.code = 0};
    bool leader = false;
    unsigned looks = 0;

    while (!w->done) {
        if (conn->led && !leader) {
            sleep_until(conn, w, deadline_ns);
            while (!w->done && conn->led && deadline_ns != VFMIG_NEVER &&
                   vfmig_now_ns() >= deadline_ns && look_first(conn, w, &looks))
                ;
            if (!w->done && conn->led && deadline_ns != VFMIG_NEVER &&
                vfmig_now_ns() >= deadline_ns) {
                vfmig_error_set(&error, -ETIMEDOUT, VFMIG_ORIGIN_PEER, 0,
                                "the peer did not answer in time");
                break;
            }
            continue;
        }
        conn->led = leader = true;
        int r = receive(conn, w, deadline_ns, &error);
        if (r == -ETIMEDOUT)
            break;
        if (r < 0)
            fail(conn, &error);
    }
    if (!w->done) {
        give_up(conn, w, true);
        w->result = copy_error(&error, w->err);
    }
    if (leader)
        hand_over(conn);
    if (w->sleeping)
        pthread_cond_destroy(&w->cond);
}

/* Sends w's request. Afterwards its reply is to be awaited, unless this fails. */
static int begin(struct vfmig_conn *conn, struct waiter *w, uint64_t deadline_ns)
{
    const struct vfmig_call *call = w->call;

    w->call->ret_size = 0;
    pthread_mutex_lock(&conn->lock);
    int r = enlist(conn, w);
    pthread_mutex_unlock(&conn->lock);
    if (r < 0)
        return r;
    struct vfmig_user_header header =
        vfmig_user_make_command(w->id, call->command, call->request_size + call->data_size, false);
    r = send_message(conn, &header, call->request, call->request_size, call->data, call->data_size,
                     call->fds, deadline_ns, w->err);
    if (r == 0)
        return 0;
    pthread_mutex_lock(&conn->lock);
    if (w->done) /* without being sent: the connection ended meanwhile */
        r = w->result;
    else
        give_up(conn, w, false);
    pthread_mutex_unlock(&conn->lock);
    return r;
}

static int finish_call(struct vfmig_conn *conn, struct waiter *w, uint64_t deadline_ns)
{
    pthread_mutex_lock(&conn->lock);
    await(conn, w, deadline_ns);
    pthread_mutex_unlock(&conn->lock);
    return w->result;
}

int vfmig_conn_call(struct vfmig_conn *conn, struct vfmig_call *call, uint64_t deadline_ns,
                    struct vfmig_error *reterr)
{
    struct waiter w = {.call = call, .err = reterr};

    if (call->no_reply) {
        uint32_t size = call->request_size + call->data_size;
        struct vfmig_user_header header = vfmig_user_make_command(0, call->command, size, true);
        call->ret_size = 0;
        return send_message(conn, &header, call->request, call->request_size, call->data,
                            call->data_size, call->fds, deadline_ns, reterr);
    }
    int r = begin(conn, &w, deadline_ns);
    return r < 0 ? r : finish_call(conn, &w, deadline_ns);
}

/* What waits for its reply while its caller goes on. */
struct vfmig_ticket {
    struct waiter waiter;
    struct vfmig_call call;
    struct vfmig_error error;
    uint64_t deadline_ns;
    uint8_t request[VFMIG_USER_FIXED_MAX]; /* its reply is checked against it */
    uint8_t reply[VFMIG_USER_FIXED_MAX];
};

int vfmig_conn_begin(struct vfmig_conn *conn, const struct vfmig_call *call, uint64_t deadline_ns,
                     struct vfmig_ticket **ret_ticket, struct vfmig_error *reterr)
{
    struct vfmig_ticket *ticket = calloc(1, sizeof(*ticket));

    if (!ticket || call->request_size > sizeof(ticket->request) ||
        call->reply_room > sizeof(ticket->reply)) {
        free(ticket);
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a request");
    }
    ticket->call = *call;
    memcpy(ticket->request, call->request, call->request_size);
    ticket->call.request = ticket->request;
    ticket->call.reply = ticket->reply;
    ticket->waiter = (struct waiter){.call = &ticket->call, .err = &ticket->error};
    ticket->deadline_ns = deadline_ns;
    int r = begin(conn, &ticket->waiter, deadline_ns);
    if (r < 0) {
        copy_error(&ticket->error, reterr);
        free(ticket);
        return r;
    }
    *ret_ticket = ticket;
    return 0;
}

int vfmig_conn_finish(struct vfmig_conn *conn, struct vfmig_ticket *ticket,
                      struct vfmig_error *reterr)
{
    int r = finish_call(conn, &ticket->waiter, ticket->deadline_ns);

    if (r < 0)
        copy_error(&ticket->error, reterr);
    free(ticket);
    return r;
}

int vfmig_conn_reply(struct vfmig_conn *conn, const struct vfmig_user_header *header,
                     const void *fixed, uint32_t fixed_size, const void *data, uint32_t data_size,
                     struct vfmig_error *reterr)
{
    return send_message(conn, header, fixed, fixed_size, data, data_size, NULL,
                        vfmig_deadline_ns(SEND_TIMEOUT_NS), reterr);
}

int vfmig_conn_run(struct vfmig_conn *conn, struct vfmig_error *reterr)
{
    struct vfmig_error error = {.code = 0};

    pthread_mutex_lock(&conn->lock);
    conn->led = true;
    while (conn->failed.code == 0)
        if (receive(conn, NULL, VFMIG_NEVER, &error) < 0)
            fail(conn, &error);
    conn->led = false;
    int r = copy_error(&conn->failed, reterr);
    pthread_mutex_unlock(&conn->lock);
    return r;
}
