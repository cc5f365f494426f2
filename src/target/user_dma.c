/* SPDX-License-Identifier: BSD-3-Clause */
/* The server's DMA by message: served from guest memory or by the VMM's callbacks. */
#include <errno.h>
#include <string.h>

#include "dirty/trackers.h"
#include "target/user_private.h"

static int memory_access(const struct vfmig_memory *memory, uint64_t gpa, void *read_to,
                         const void *write_from, uint32_t size)
{
    while (size) {
        uint64_t offset, left;
        int block = vfmig_memory_find(memory, gpa, &offset, &left);
        if (block < 0)
            return -EFAULT;
        uint32_t step = size < left ? size : (uint32_t)left;
        char *host = (char *)memory->blocks[block].host + offset;
        if (read_to) {
            memcpy(read_to, host, step);
            read_to = (char *)read_to + step;
        } else if (write_from) {
            memcpy(host, write_from, step);
            write_from = (const char *)write_from + step;
        }
        gpa += step;
        size -= step;
    }
    return 0;
}

/* A read of guest memory that lies in one block is answered from there: no copy of it is made.
 * NULL: it is not such a read. */
static const void *in_place(const struct user *u, const struct vfmig_user_dma_access *access)
{
    const struct vfmig_user_dma *dma = &u->opt.dma;
    uint64_t offset, left;

    if (dma->in_place)
        return dma->in_place(dma->opaque, access->address, (uint32_t)access->count);
    if (dma->read || !u->opt.memory)
        return NULL;
    int block = vfmig_memory_find(u->opt.memory, access->address, &offset, &left);
    if (block < 0 || access->count > left)
        return NULL;
    return (const char *)u->opt.memory->blocks[block].host + offset;
}

/* *ret_bytes: what a read found. */
static int dma_read(struct user *u, struct user_serving *serving, const void **ret_bytes)
{
    const struct vfmig_user_dma *dma = &u->opt.dma;
    const struct vfmig_user_dma_access *access = &serving->access;

    *ret_bytes = in_place(u, access);
    if (*ret_bytes)
        return 0;
    *ret_bytes = u->dma_buffer;
    if (!dma->read)
        return u->opt.memory ? memory_access(u->opt.memory, access->address, u->dma_buffer, NULL,
                                             (uint32_t)access->count)
                             : -EFAULT;
    u->late.serving = serving;
    int r = dma->read(dma->opaque, access->address, u->dma_buffer, (uint32_t)access->count);
    return user_late_settle(u, serving, r);
}

static int dma_write(struct user *u, struct user_serving *serving)
{
    const struct vfmig_user_dma *dma = &u->opt.dma;
    const struct vfmig_user_dma_access *access = &serving->access;
    int r = -EFAULT;

    if (dma->write) {
        u->late.serving = serving;
        r = dma->write(dma->opaque, access->address, serving->written, (uint32_t)access->count);
        r = user_late_settle(u, serving, r);
    } else if (u->opt.memory) {
        r = memory_access(u->opt.memory, access->address, NULL, serving->written,
                          (uint32_t)access->count);
    }
    /* Even a write that failed may have reached the pages before the bad one. The mark is there
     * before the reply is, and so before the device tells anybody of the bytes. */
    if (r != -EINPROGRESS)
        vfmig_own_mark(atomic_load(&u->own), access->address, access->count);
    return r;
}

int user_dma_reply(struct vfmig_conn *conn, const struct vfmig_user_header *request,
                   const struct vfmig_user_dma_access *access, const void *data, int r,
                   struct vfmig_error *reterr)
{
    struct vfmig_user_header reply;

    if (request->flags & VFMIG_USER_NO_REPLY)
        return 0;
    if (r < 0) {
        reply = vfmig_user_make_error(request, r);
        return vfmig_conn_reply(conn, &reply, NULL, 0, NULL, 0, reterr);
    }
    uint32_t bytes = request->command == VFMIG_USER_DMA_READ ? (uint32_t)access->count : 0;
    reply = vfmig_user_make_reply(request, (uint32_t)sizeof(*access) + bytes);
    return vfmig_conn_reply(conn, &reply, access, sizeof(*access), data, bytes, reterr);
}

static int serve(struct user *u, struct vfmig_conn *conn, struct vfmig_user_msg *msg,
                 struct vfmig_error *reterr)
{
    struct user_serving serving = {.conn = conn, .request = msg->header};
    const void *bytes = NULL;
    int r = vfmig_user_check_command(msg, true, u->max_data, NULL);

    if (r == 0) {
        memcpy(&serving.access, msg->payload, sizeof(serving.access));
        if (msg->header.command == VFMIG_USER_DMA_WRITE)
            serving.written = msg->payload + sizeof(serving.access);
        r = serving.written ? dma_write(u, &serving) : dma_read(u, &serving, &bytes);
    }
    if (r == -EINPROGRESS)
        return 0;
    return user_dma_reply(conn, &serving.request, &serving.access, bytes, r, reterr);
}

int user_main_serve(void *opaque, struct vfmig_user_msg *msg, struct vfmig_error *reterr)
{
    struct user *u = opaque;

    if (u->twin)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                               "the server sent %s beside its twin socket",
                               vfmig_user_command_name(msg->header.command));
    return serve(u, u->conn, msg, reterr);
}

static int twin_serve(void *opaque, struct vfmig_user_msg *msg, struct vfmig_error *reterr)
{
    struct user *u = opaque;

    return serve(u, u->twin, msg, reterr);
}

static void *twin_main(void *arg)
{
    struct user *u = arg;
    struct vfmig_error error;

    /* A device whose DMA nobody serves is of no use: whoever waits for it hears of it. */
    vfmig_conn_run(u->twin, &error);
    if (error.origin != VFMIG_ORIGIN_LOCAL)
        vfmig_conn_end(u->conn, &error);
    return NULL;
}

int user_twin_start(struct user *u, int fd, struct vfmig_error *reterr)
{
    int r = vfmig_conn_new(fd, u->max_data, twin_serve, u, &u->twin, reterr);

    if (r < 0)
        return r;
    int err = pthread_create(&u->twin_thread, NULL, twin_main, u);
    if (err == 0)
        return 0;
    vfmig_conn_free(u->twin);
    u->twin = NULL;
    return vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0, "thread: %s", strerror(err));
}

void user_twin_stop(struct user *u)
{
    if (!u->twin)
        return;
    vfmig_conn_end(u->twin, NULL);
    pthread_join(u->twin_thread, NULL);
    vfmig_conn_free(u->twin);
    u->twin = NULL;
}
