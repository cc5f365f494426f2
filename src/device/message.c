/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA to memory that came without a descriptor: the client is asked, over the twin socket where
 * it offered one. Replies are taken on the serving thread; only it sends what is queued, starts
 * and ends asynchronous accesses, and aborts. */
#include <errno.h>
#include <string.h>

#include "device/internal.h"

/* Small pieces and few bytes under way: neither side ever fills a socket in both directions, so
 * neither waits for room while the other does. */
#define PIECE_MAX  (32u << 10)
#define ASKED_MAX  (96u << 10)

static struct socket *message_socket(struct vfmig_device *dev)
{
    return dev->twin.fd >= 0 ? &dev->twin : &dev->owner.socket;
}

static int send_message(struct vfmig_device *dev, struct dma_message *m)
{
    uint16_t command = m->write ? VFMIG_USER_DMA_WRITE : VFMIG_USER_DMA_READ;
    struct vfmig_user_dma_access access = {m->iova, m->asked};
    uint32_t data = m->write ? m->asked : 0;
    struct vfmig_user_header h =
        vfmig_user_make_command(m->id, command, (uint32_t)sizeof(access) + data, false);
    struct iovec iov[3] = {{&h, sizeof(h)}, {&access, sizeof(access)}, {m->buf, data}};

    return socket_send(message_socket(dev), iov, data ? 3 : 2, NULL, 0, &dev->stopping);
}

/* Does what needs no message. True when a message is next; m->asked is its size. */
static bool prepare(struct vfmig_device *dev, struct dma_message *m)
{
    uint64_t piece = 0;
    int r = dma_access(dev, m->dma.generation, m->write, &m->iova, &m->buf, &m->left, &piece);

    m->err = r < 0 ? r : 0;
    if (r <= 0)
        return false;
    piece = piece < PIECE_MAX ? piece : PIECE_MAX;
    m->asked = (uint32_t)(piece < dev->owner.client_max_data ? piece : dev->owner.client_max_data);
    return true;
}

/* With the lock held: may m be sent now? Then it counts as sent. */
static bool admit(struct vfmig_device *dev, struct dma_message *m)
{
    if (dev->messages_asked && dev->messages_asked + m->asked > ASKED_MAX) {
        m->state = MESSAGE_QUEUED;
        return false;
    }
    dev->messages_asked += m->asked;
    m->id = dev->next_id++;
    m->state = MESSAGE_SENT;
    return true;
}

static struct dma_message *take_slot(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < DMA_MESSAGES; i++)
        if (dev->messages[i].state == MESSAGE_FREE)
            return &dev->messages[i];
    return NULL;
}

static int start(struct vfmig_dma *dma, bool waiting, bool write, uint64_t iova, uint8_t *buf,
                 uint64_t size, void (*done)(void *, int), void *user,
                 struct dma_message **ret_message)
{
    struct vfmig_device *dev = dma->dev;
    int r = -EINPROGRESS;

    pthread_mutex_lock(&dev->message_lock);
    struct dma_message *m = take_slot(dev);
    if (!m) {
        pthread_mutex_unlock(&dev->message_lock);
        return -EAGAIN;
    }
    *m = (struct dma_message){.waiting = waiting, .write = write, .iova = iova, .left = size,
                              .buf = buf, .dma = *dma, .done = done, .user = user};
    bool send = false;
    if (prepare(dev, m))
        send = admit(dev, m);
    else
        r = m->err;
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
    while (m->state != MESSAGE_DONE)
        pthread_cond_wait(&dev->message_cond, &dev->message_lock);
    r = m->err;
    m->state = MESSAGE_FREE;
    pthread_mutex_unlock(&dev->message_lock);
    return r;
}

/* Ends m with err and tells whoever waits. Lock held; dropped around the device's callback. */
static void finish(struct vfmig_device *dev, struct dma_message *m, int err)
{
    m->err = err;
    if (m->waiting) {
        m->state = MESSAGE_DONE;
        pthread_cond_broadcast(&dev->message_cond);
        return;
    }
    void (*done)(void *, int) = m->done;
    void *user = m->user;
    m->state = MESSAGE_FREE;
    if (err == -ECANCELED)
        return; /* a reset: the device has forgotten it */
    pthread_mutex_unlock(&dev->message_lock);
    done(user, err);
    pthread_mutex_lock(&dev->message_lock);
}

/* Lock held. Sends queued messages while they fit. */
static void kick(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < DMA_MESSAGES; i++) {
        struct dma_message *m = &dev->messages[i];
        if (m->state != MESSAGE_QUEUED)
            continue;
        if (!admit(dev, m))
            return;
        pthread_mutex_unlock(&dev->message_lock);
        if (send_message(dev, m) < 0)
            dev->owner.lost = true;
        pthread_mutex_lock(&dev->message_lock);
    }
}

/* The piece that was asked for is there, or refused. Lock held. */
static void piece_done(struct vfmig_device *dev, struct dma_message *m,
                       const struct vfmig_user_msg *msg)
{
    uint16_t command = m->write ? VFMIG_USER_DMA_WRITE : VFMIG_USER_DMA_READ;
    struct vfmig_user_dma_access asked = {m->iova, m->asked};
    int r = vfmig_user_check_reply(msg, command, &asked, sizeof(asked), NULL);

    if (r < 0) {
        COUNT(dev, dma_faults);
        finish(dev, m, r == -EPROTO ? -EIO : r);
        return;
    }
    if (!m->write)
        memcpy(m->buf, msg->payload + sizeof(asked), m->asked);
    m->iova += m->asked;
    m->buf += m->asked;
    m->left -= m->asked;
    if (prepare(dev, m))
        m->state = MESSAGE_QUEUED;
    else
        finish(dev, m, m->err);
}

void message_reply(struct vfmig_device *dev, const struct vfmig_user_msg *msg)
{
    pthread_mutex_lock(&dev->message_lock);
    for (unsigned i = 0; i < DMA_MESSAGES; i++) {
        struct dma_message *m = &dev->messages[i];
        if (m->state == MESSAGE_SENT && m->id == msg->header.id) {
            dev->messages_asked -= m->asked;
            piece_done(dev, m, msg);
            kick(dev);
            break; /* a reply to nobody belongs to a message that was aborted */
        }
    }
    pthread_mutex_unlock(&dev->message_lock);
}

void message_abort(struct vfmig_device *dev, int err)
{
    pthread_mutex_lock(&dev->message_lock);
    for (unsigned i = 0; i < DMA_MESSAGES; i++) {
        struct dma_message *m = &dev->messages[i];
        if (m->state == MESSAGE_SENT)
            dev->messages_asked -= m->asked;
        if (m->state == MESSAGE_SENT || m->state == MESSAGE_QUEUED)
            finish(dev, m, err);
    }
    pthread_mutex_unlock(&dev->message_lock);
}

bool message_touches(struct vfmig_device *dev, uint64_t iova, uint64_t size)
{
    bool touches = false;

    pthread_mutex_lock(&dev->message_lock);
    for (unsigned i = 0; i < DMA_MESSAGES && !touches; i++) {
        const struct dma_message *m = &dev->messages[i];
        if (m->state == MESSAGE_SENT && (size == 0 || (m->iova <= iova + (size - 1) &&
                                                       iova <= m->iova + (m->asked - 1))))
            touches = true;
    }
    pthread_mutex_unlock(&dev->message_lock);
    return touches;
}
