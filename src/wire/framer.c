/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <string.h>

#include "wire/wire.h"

#define HEADER sizeof(struct vfmig_user_header)

void vfmig_framer_init(struct vfmig_framer *f, void *buf, size_t capacity, uint32_t max_message)
{
    memset(f, 0, sizeof(*f));
    f->buf = buf;
    f->capacity = capacity;
    f->max_message = max_message;
}

int vfmig_framer_rebase(struct vfmig_framer *f, void *buf, size_t capacity, uint32_t max_message)
{
    size_t unread = f->end - f->start;

    if (unread > capacity)
        return -ENOSPC;
    if (unread)
        memcpy(buf, f->buf + f->start, unread);
    f->buf = buf;
    f->capacity = capacity;
    f->max_message = max_message;
    f->start = 0;
    f->end = unread;
    return 0;
}

void vfmig_framer_done(struct vfmig_framer *f)
{
    for (unsigned i = 0; i < 2; i++)
        vfmig_fds_close(&f->slot[i].fds);
    f->start = f->end = 0;
}

void *vfmig_framer_space(struct vfmig_framer *f, size_t *ret_space)
{
    if (f->start == f->end) {
        f->start = f->end = 0;
    } else if (f->start > 0 && f->capacity - f->start < f->max_message) {
        /* The message under way might not fit behind what was consumed. */
        memmove(f->buf, f->buf + f->start, f->end - f->start);
        f->end -= f->start;
        f->start = 0;
    }
    *ret_space = f->capacity - f->end;
    return f->buf + f->end;
}

/* Commands and replies that may carry descriptors. */
static bool carries_fds(const struct vfmig_user_header *h)
{
    switch (h->command) {
    case VFMIG_USER_DMA_MAP:
    case VFMIG_USER_SET_IRQS:
        return (h->flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_CMD;
    case VFMIG_USER_VERSION:
    case VFMIG_USER_GET_REGION_INFO:
    case VFMIG_USER_GET_REGION_IO_FDS:
        return (h->flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_REPLY;
    default:
        return false;
    }
}

/* Which message the descriptors that came with bytes [from, f->end) belong to: offset into buf,
 * or SIZE_MAX when every one of these bytes is in the middle of a body. */
static size_t fds_owner(const struct vfmig_framer *f, size_t from)
{
    size_t owner = SIZE_MAX;
    bool sure = false;

    for (size_t at = f->start; at < f->end;) {
        struct vfmig_user_header h;
        bool whole = f->end - at >= HEADER;

        if (whole)
            memcpy(&h, f->buf + at, HEADER);
        if (at + HEADER > from && (!sure || (whole && carries_fds(&h)))) {
            owner = at;
            sure = whole && carries_fds(&h);
        }
        if (!whole || h.size < HEADER || h.size > f->end - at)
            break;
        at += h.size;
    }
    return owner;
}

int vfmig_framer_fed(struct vfmig_framer *f, size_t size, struct vfmig_fds *fds)
{
    size_t from = f->end;

    f->end += size;
    if (!fds || fds->count == 0)
        return 0;
    size_t owner = fds_owner(f, from);
    if (owner != SIZE_MAX) {
        uint64_t at = f->position + (owner - f->start);
        /* All descriptors of one message come at once. */
        bool twice = (f->slot[0].fds.count && f->slot[0].at == at) ||
                     (f->slot[1].fds.count && f->slot[1].at == at);
        for (unsigned i = 0; i < 2 && !twice; i++) {
            if (f->slot[i].fds.count == 0) {
                f->slot[i].at = at;
                vfmig_fds_move(&f->slot[i].fds, fds);
                return 0;
            }
        }
    }
    vfmig_fds_close(fds);
    return -EPROTO;
}

int vfmig_framer_next(struct vfmig_framer *f, struct vfmig_user_msg *ret_msg)
{
    struct vfmig_user_header h;

    if (f->end - f->start < HEADER)
        return 0;
    memcpy(&h, f->buf + f->start, HEADER);
    if (h.size < HEADER)
        return -EPROTO;
    if (h.size > f->max_message)
        return -EMSGSIZE;
    if (h.size > f->end - f->start)
        return 0;

    ret_msg->header = h;
    ret_msg->payload = f->buf + f->start + HEADER;
    ret_msg->size = h.size - (uint32_t)HEADER;
    ret_msg->fds.count = 0;
    for (unsigned i = 0; i < 2; i++)
        if (f->slot[i].fds.count && f->slot[i].at == f->position)
            vfmig_fds_move(&ret_msg->fds, &f->slot[i].fds);
    f->start += h.size;
    f->position += h.size;
    return 1;
}

bool vfmig_framer_partial(const struct vfmig_framer *f, uint32_t fixed,
                          struct vfmig_user_msg *ret_msg, uint32_t *ret_have)
{
    struct vfmig_user_header h;

    if (f->end - f->start < HEADER + fixed)
        return false;
    memcpy(&h, f->buf + f->start, HEADER);
    if (h.size < HEADER + fixed || h.size > f->max_message)
        return false;
    for (unsigned i = 0; i < 2; i++)
        if (f->slot[i].fds.count)
            return false;
    *ret_msg = (struct vfmig_user_msg){.header = h,
                                       .payload = f->buf + f->start + HEADER,
                                       .size = h.size - (uint32_t)HEADER};
    *ret_have = (uint32_t)(f->end - f->start - HEADER);
    return *ret_have < ret_msg->size;
}

void vfmig_framer_skip(struct vfmig_framer *f)
{
    struct vfmig_user_header h;

    memcpy(&h, f->buf + f->start, HEADER);
    f->position += h.size;
    f->start = f->end = 0;
}

bool vfmig_framer_idle(const struct vfmig_framer *f)
{
    return f->start == f->end;
}
