/* SPDX-License-Identifier: BSD-3-Clause */
/* The server's DMA by message that is answered later, from any thread: a page request, say, whose
 * page is not there yet. The reader of the socket goes on meanwhile. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dirty/trackers.h"
#include "target/user_private.h"

_Static_assert((VFMIG_MAX_LATE_DMA & (VFMIG_MAX_LATE_DMA - 1)) == 0, "ids are taken apart by it");

struct user_late_dma {
    uint64_t id;
    struct vfmig_conn *conn;
    struct vfmig_user_header request;
    struct vfmig_user_dma_access access;
    uint8_t data[];
};

/* lock held */
static int find_place(const struct user_late *late, uint64_t bytes)
{
    if (bytes > VFMIG_MAX_LATE_DMA_BYTES - late->bytes)
        return -ENOSPC;
    for (unsigned i = 0; i < VFMIG_MAX_LATE_DMA; i++)
        if (!late->open[i])
            return (int)i;
    return -ENOSPC;
}

int vfmig_user_later(struct vfmig_target *target, struct vfmig_user_later *ret_later,
                     void **ret_data)
{
    struct user *u = (struct user *)target;
    struct user_late *late = &u->late;
    struct user_serving *serving = late->serving;

    if (!serving || serving->taken)
        return -EINVAL;
    uint64_t bytes = serving->access.count;
    struct user_late_dma *dma = malloc(sizeof(*dma) + bytes);
    if (!dma)
        return -ENOMEM;
    *dma = (struct user_late_dma){
        .conn = serving->conn, .request = serving->request, .access = serving->access};
    if (serving->written)
        memcpy(dma->data, serving->written, bytes);
    else
        memset(dma->data, 0, bytes); /* nothing of this process leaves by mistake */
    pthread_mutex_lock(&late->lock);
    int place = find_place(late, bytes);
    if (place >= 0) {
        dma->id = ++late->turns * VFMIG_MAX_LATE_DMA + (unsigned)place;
        late->open[place] = dma;
        late->bytes += bytes;
        serving->id = dma->id;
        serving->taken = true;
    }
    pthread_mutex_unlock(&late->lock);
    if (place < 0) {
        free(dma);
        return place;
    }
    *ret_later = (struct vfmig_user_later){.target = target, .id = serving->id};
    *ret_data = dma->data;
    return 0;
}

/* Takes an open one out; NULL: the handle is stale. */
static struct user_late_dma *take(struct user_late *late, uint64_t id)
{
    pthread_mutex_lock(&late->lock);
    struct user_late_dma **place = &late->open[id % VFMIG_MAX_LATE_DMA], *dma = *place;
    if (dma && dma->id == id) {
        *place = NULL;
        late->bytes -= dma->access.count;
    } else {
        dma = NULL;
    }
    pthread_mutex_unlock(&late->lock);
    return dma;
}

void vfmig_user_answer(struct vfmig_user_later later, int result)
{
    struct user *u = (struct user *)later.target;
    struct user_late_dma *dma = u ? take(&u->late, later.id) : NULL;

    if (!dma)
        return;
    /* As for one that is answered at once: the mark before the reply. */
    if (dma->request.command == VFMIG_USER_DMA_WRITE)
        vfmig_own_mark(atomic_load(&u->own), dma->access.address, dma->access.count);
    /* A reply that cannot be sent ends the connection, and whoever waits there hears of it. */
    (void)user_dma_reply(dma->conn, &dma->request, &dma->access, dma->data, result, NULL);
    free(dma);
}

int user_late_settle(struct user *u, struct user_serving *serving, int r)
{
    u->late.serving = NULL;
    if (!serving->taken)
        return r == -EINPROGRESS ? -EIO : r;
    if (r == -EINPROGRESS)
        return r;
    /* It took a handle and then thought better of it: one answer is enough. */
    struct user_late_dma *dma = take(&u->late, serving->id);
    if (!dma)
        return -EINPROGRESS;
    free(dma);
    return r;
}

void user_late_forget(struct user *u)
{
    struct user_late *late = &u->late;

    pthread_mutex_lock(&late->lock);
    for (unsigned i = 0; i < VFMIG_MAX_LATE_DMA; i++) {
        free(late->open[i]);
        late->open[i] = NULL;
    }
    late->bytes = 0;
    pthread_mutex_unlock(&late->lock);
}
