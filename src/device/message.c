/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA to memory that came without a descriptor: the client is asked, over the twin socket where
 * it offered one. Replies are taken on the serving thread; only it sends what is queued, starts
 * and ends asynchronous accesses, and aborts. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/sabotage.h"
#include "device/internal.h"

/* On one socket for both directions small pieces and few bytes are under way: neither side ever fills
 * the socket in both directions, so neither waits for room while the other does. A twin socket has one
 * large piece at a time besides: of any size when it is read, and one that the socket holds when it is
 * written, because a client may look at the twin socket only after the reply to its own command. */
#define PIECE_MAX       (32u << 10)
#define READ_MAX_ALONE  (1u << 20)
#define ASKED_MAX       (96u << 10)

/* Replies with so many bytes are received where they belong, if they come by the twin socket. To
 * that end only the first bytes are read at first, which say what it is. */
#define LARGE_BYTES (8u << 10)
#define LARGE_HEAD  (sizeof(struct vfmig_user_header) + sizeof(struct vfmig_user_dma_access))

static struct socket *message_socket(struct vfmig_device *dev)
{
    return dev->twin.fd >= 0 ? &dev->twin : &dev->owner.socket;
}

static int send_message(struct vfmig_device *dev, struct dma_message *m)
{
    uint16_t command = m->write ? VFMIG_USER_DMA_WRITE : VFMIG_USER_DMA_READ;
    struct vfmig_user_dma_access access = {m->iova, m->asked};
    uint32_t data = m->write ? m->asked : 0;
    uint16_t id = (uint16_t)(m - dev->messages);
    struct vfmig_user_header h =
        vfmig_user_make_command(id, command, (uint32_t)sizeof(access) + data, false);
    struct iovec iov[3] = {{&h, sizeof(h)}, {&access, sizeof(access)}, {m->buf, data}};

    return socket_send(message_socket(dev), iov, data ? 3 : 2, NULL, 0, &dev->stopping);
}

/* Most bytes that the next message may ask for. */
static uint64_t piece_max(const struct vfmig_device *dev, bool write)
{
    bool alone = dev->twin.fd >= 0 && !dev->messages_asked;
    uint64_t most = !alone ? PIECE_MAX : write ? ASKED_MAX : READ_MAX_ALONE;

    return most < dev->owner.client_max_data ? most : dev->owner.client_max_data;
}

/* The client may write the bytes any time after the message is sent and until its reply is here,
 * whatever that says. So a write is logged before it is sent, and again when it has ended: a report
 * in between takes the first mark before the bytes are there. */
static void mark(struct vfmig_device *dev, const struct dma_message *m)
{
    if (m->write && !vfmig_sabotage("message-write-unlogged"))
        log_mark(dev, m->iova, m->asked);
}

/* Lock held. Does what needs no message, against the map as it is now. True when a message is next;
 * m->asked is its size. */
static bool prepare(struct vfmig_device *dev, struct dma_message *m)
{
    uint64_t piece = 0, most = piece_max(dev, m->write);
    int r = dma_access(dev, m->dma.generation, m->write, &m->iova, &m->buf, &m->left, &piece);

    m->err = r < 0 ? r : 0;
    m->asked = (uint32_t)(piece < most ? piece : most);
    if (r > 0)
        mark(dev, m);
    return r > 0;
}

/* Lock held: is there room for another piece? */
static bool has_room(const struct vfmig_device *dev)
{
    return !dev->messages_asked || dev->messages_asked + PIECE_MAX <= ASKED_MAX;
}

static void set_queued(struct vfmig_device *dev, struct dma_message *m)
{
    m->state = MESSAGE_QUEUED;
    m->turn = dev->message_turn++;
    dev->messages_queued++;
}

static bool is_large(const struct vfmig_device *dev, const struct dma_message *m)
{
    return !m->write && m->asked >= LARGE_BYTES && dev->twin.fd >= 0;
}

static void set_sent(struct vfmig_device *dev, struct dma_message *m)
{
    m->large = is_large(dev, m);
    m->state = MESSAGE_SENT;
    dev->messages_asked += m->asked;
    dev->messages_large += m->large;
}

/* m is no longer under way: answered or given up. */
static void unset_sent(struct vfmig_device *dev, const struct dma_message *m)
{
    dev->messages_asked -= m->asked;
    dev->messages_large -= m->large;
}

static struct dma_message *take_slot(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < VFMIG_MAX_OPEN_DMA; i++)
        if (dev->messages[i].state == MESSAGE_FREE)
            return &dev->messages[i];
    return NULL;
}

static int start(struct vfmig_dma *dma, bool waiting, bool write, uint64_t iova, uint8_t *buf,
                 uint64_t size, void (*done)(void *, int), void *user,
                 struct dma_message **ret_message)
{
    struct vfmig_device *dev = dma->dev;
    bool send = false;
    int r = -EINPROGRESS;

    pthread_mutex_lock(&dev->message_lock);
    struct dma_message *m = take_slot(dev);
    if (!m) {
        pthread_mutex_unlock(&dev->message_lock);
        return -EAGAIN;
    }
    *m = (struct dma_message){.waiting = waiting, .write = write, .iova = iova, .left = size,
                              .buf = buf, .dma = *dma, .done = done, .user = user};
    if (dev->messages_queued || !has_room(dev)) {
        set_queued(dev, m);
    } else if (prepare(dev, m)) {
        set_sent(dev, m);
        send = true;
    } else {
        r = m->err;
    }
    pthread_mutex_unlock(&dev->message_lock);
    /* A send that fails means a lost connection, which ends every message. */
    if (send && send_message(dev, m) < 0)
        server_wake(dev);
    *ret_message = m;
    return r;
}

int message_start(struct vfmig_dma *dma, bool write, uint64_t iova, uint8_t *buf, uint64_t size,
                  void (*done)(void *, int), void *user)
{
    struct dma_message *m;
    return start(dma, false, write, iova, buf, size, done, user, &m);
}

int message_wait(struct vfmig_dma *dma, bool write, uint64_t iova, uint8_t *buf, uint64_t size)
{
    struct vfmig_device *dev = dma->dev;
    struct dma_message *m;
    int r = start(dma, true, write, iova, buf, size, NULL, NULL, &m);

    if (r != -EINPROGRESS)
        return r;
    pthread_mutex_lock(&dev->message_lock);
    while (m->state != MESSAGE_DONE && m->state != MESSAGE_ABANDONED)
        pthread_cond_wait(&dev->message_cond, &dev->message_lock);
    r = m->err;
    if (m->state == MESSAGE_DONE)
        m->state = MESSAGE_FREE;
    m->waiting = false;
    pthread_mutex_unlock(&dev->message_lock);
    return r;
}

/* Ends m with err and tells whoever waits. Lock held; dropped around the device's callback. */
static void finish(struct vfmig_device *dev, struct dma_message *m, int err)
{
    bool late = m->state == MESSAGE_SENT && m->asked && /* its reply is still to come */
                !vfmig_sabotage("message-id-reused");

    dev->messages_queued -= m->state == MESSAGE_QUEUED;
    m->err = err;
    if (m->waiting) {
        m->state = late ? MESSAGE_ABANDONED : MESSAGE_DONE;
        pthread_cond_broadcast(&dev->message_cond);
        return;
    }
    void (*done)(void *, int) = m->done;
    void *user = m->user;
    m->state = late ? MESSAGE_ABANDONED : MESSAGE_FREE;
    if (err == -ECANCELED)
        return; /* a reset: the device has forgotten it */
    pthread_mutex_unlock(&dev->message_lock);
    done(user, err);
    pthread_mutex_lock(&dev->message_lock);
}

static struct dma_message *next_queued(struct vfmig_device *dev)
{
    struct dma_message *next = NULL;

    for (unsigned i = 0; dev->messages_queued && i < VFMIG_MAX_OPEN_DMA; i++) {
        struct dma_message *m = &dev->messages[i];
        if (m->state == MESSAGE_QUEUED && (!next || m->turn < next->turn))
            next = m;
    }
    return next;
}

/* Lock held. Sends queued messages while there is room, first come first served. */
static void kick(struct vfmig_device *dev)
{
    struct dma_message *m;

    while (has_room(dev) && (m = next_queued(dev))) {
        if (!prepare(dev, m)) {
            finish(dev, m, m->err);
            continue;
        }
        dev->messages_queued--;
        set_sent(dev, m);
        pthread_mutex_unlock(&dev->message_lock);
        if (send_message(dev, m) < 0)
            dev->owner.lost = true;
        pthread_mutex_lock(&dev->message_lock);
    }
}

/* The client's errno may not be taken for one with which the server ends an access itself, or asks
 * for patience: nobody would finish the operation then. */
static int refusal(int err)
{
    bool ours = err == -ECANCELED || err == -EINTR || err == -EINPROGRESS || err == -EAGAIN ||
                err == -EPROTO;
    return ours ? -EIO : err;
}

/* The piece that was asked for is there, or refused. direct: its bytes are in place. Lock held. */
static void piece_done(struct vfmig_device *dev, struct dma_message *m,
                       const struct vfmig_user_msg *msg, bool direct)
{
    uint16_t command = m->write ? VFMIG_USER_DMA_WRITE : VFMIG_USER_DMA_READ;
    struct vfmig_user_dma_access asked = {m->iova, m->asked};
    int r = vfmig_user_check_reply(msg, command, &asked, sizeof(asked), NULL);

    mark(dev, m);
    m->asked = 0; /* answered */
    if (r < 0) {
        COUNT(dev, dma_faults);
        finish(dev, m, refusal(r));
        return;
    }
    if (!m->write && !direct)
        memcpy(m->buf, msg->payload + sizeof(asked), asked.count);
    m->iova += asked.count;
    m->buf += asked.count;
    m->left -= asked.count;
    if (m->left == 0)
        finish(dev, m, 0);
    else
        set_queued(dev, m);
}

static void answered(struct vfmig_device *dev, const struct vfmig_user_msg *msg, bool direct)
{
    pthread_mutex_lock(&dev->message_lock);
    struct dma_message *m =
        msg->header.id < VFMIG_MAX_OPEN_DMA ? &dev->messages[msg->header.id] : NULL;
    if (m && m->state == MESSAGE_ABANDONED) {
        mark(dev, m);
        m->state = m->waiting ? MESSAGE_DONE : MESSAGE_FREE;
    } else if (m && m->state == MESSAGE_SENT) {
        unset_sent(dev, m);
        piece_done(dev, m, msg, direct);
        kick(dev);
    } /* else a reply that nobody asked for */
    pthread_mutex_unlock(&dev->message_lock);
}

void message_reply(struct vfmig_device *dev, const struct vfmig_user_msg *msg)
{
    answered(dev, msg, /* direct= */ false);
}

size_t message_receive_max(struct vfmig_device *dev)
{
    pthread_mutex_lock(&dev->message_lock);
    bool limit = dev->messages_large && vfmig_framer_idle(&dev->twin.framer);
    pthread_mutex_unlock(&dev->message_lock);
    return limit ? LARGE_HEAD : SIZE_MAX;
}

/* The read that the reply in the framer answers, when that is a large one and right so far. */
static struct dma_message *find_direct(struct vfmig_device *dev, const struct vfmig_user_msg *msg)
{
    struct dma_message *m =
        msg->header.id < VFMIG_MAX_OPEN_DMA ? &dev->messages[msg->header.id] : NULL;

    pthread_mutex_lock(&dev->message_lock);
    bool good = m && m->state == MESSAGE_SENT && m->large;
    if (good) {
        struct vfmig_user_dma_access asked = {m->iova, m->asked};
        good = vfmig_user_check_reply(msg, VFMIG_USER_DMA_READ, &asked, sizeof(asked), NULL) == 0 &&
               msg->size == sizeof(asked) + m->asked;
    }
    pthread_mutex_unlock(&dev->message_lock);
    return good ? m : NULL;
}

/* Only this thread gives up messages, so m->buf is ours until recv returns. The bytes of one that
 * was given up meanwhile go to the framer's free space, and no further. */
static ssize_t receive_rest(struct vfmig_device *dev, const struct vfmig_user_msg *msg)
{
    const uint32_t fixed = sizeof(struct vfmig_user_dma_access);
    struct dma_message *m = dev->direct;
    size_t space, left = msg->size - dev->direct_at;

    pthread_mutex_lock(&dev->message_lock);
    bool wanted = m->state == MESSAGE_SENT || vfmig_sabotage("message-direct-after-abort");
    uint8_t *to = m->buf + (dev->direct_at - fixed);
    pthread_mutex_unlock(&dev->message_lock);
    if (!wanted) {
        to = vfmig_framer_space(&dev->twin.framer, &space);
        left = left < space ? left : space;
    }
    return recv(dev->twin.fd, to, left, MSG_DONTWAIT);
}

bool message_receive_direct(struct vfmig_device *dev)
{
    const uint32_t fixed = sizeof(struct vfmig_user_dma_access);
    struct vfmig_user_msg msg;
    uint32_t have;

    if (!vfmig_framer_partial(&dev->twin.framer, fixed, &msg, &have))
        return false;
    if (!dev->direct) {
        dev->direct = find_direct(dev, &msg);
        if (!dev->direct)
            return false;
        memcpy(dev->direct->buf, msg.payload + fixed, have - fixed);
        dev->direct_at = have;
    }
    ssize_t n = receive_rest(dev, &msg);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (n <= 0) {
        dev->owner.lost = true;
        return true;
    }
    dev->direct_at += (uint32_t)n;
    if (dev->direct_at == msg.size) {
        dev->direct = NULL;
        vfmig_framer_skip(&dev->twin.framer);
        answered(dev, &msg, /* direct= */ true);
    }
    return true;
}

void message_abort(struct vfmig_device *dev, int err)
{
    pthread_mutex_lock(&dev->message_lock);
    for (unsigned i = 0; i < VFMIG_MAX_OPEN_DMA; i++) {
        struct dma_message *m = &dev->messages[i];
        if (m->state == MESSAGE_SENT) {
            unset_sent(dev, m);
            mark(dev, m); /* and once more when its reply comes */
        }
        if (m->state == MESSAGE_SENT || m->state == MESSAGE_QUEUED)
            finish(dev, m, err);
    }
    pthread_mutex_unlock(&dev->message_lock);
}

void message_forget(struct vfmig_device *dev)
{
    dev->direct = NULL;
    pthread_mutex_lock(&dev->message_lock);
    for (unsigned i = 0; i < VFMIG_MAX_OPEN_DMA; i++)
        if (dev->messages[i].state == MESSAGE_ABANDONED)
            dev->messages[i].state = dev->messages[i].waiting ? MESSAGE_DONE : MESSAGE_FREE;
    pthread_mutex_unlock(&dev->message_lock);
}

bool message_touches(struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    bool touches = false;

    pthread_mutex_lock(&dev->message_lock);
    for (unsigned i = 0; i < VFMIG_MAX_OPEN_DMA && !touches; i++) {
        const struct dma_message *m = &dev->messages[i];
        if (m->state == MESSAGE_SENT && (size == 0 || (m->iova <= iova + (size - 1) &&
                                                       iova <= m->iova + (m->asked - 1))))
            touches = true;
    }
    pthread_mutex_unlock(&dev->message_lock);
    return touches;
}

/* Those that were abandoned too: the client may not have written yet. */
void message_mark(struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    pthread_mutex_lock(&dev->message_lock);
    for (unsigned i = 0; i < VFMIG_MAX_OPEN_DMA; i++) {
        const struct dma_message *m = &dev->messages[i];
        if ((m->state == MESSAGE_SENT || m->state == MESSAGE_ABANDONED) && m->asked &&
            m->iova <= iova + (size - 1) && iova <= m->iova + (m->asked - 1))
            mark(dev, m);
    }
    pthread_mutex_unlock(&dev->message_lock);
}
