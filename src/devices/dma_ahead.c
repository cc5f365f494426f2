/* SPDX-License-Identifier: BSD-3-Clause */
/* The dma device looks ahead: descriptors behind the one in flight, and what they read, are fetched
 * before their turn and forgotten again. A page that is missing is thus asked for early, and
 * several DMAs are open at once; what a descriptor does is still done in its turn, with what is
 * there then. */
#include <errno.h>

#include "devices/dma_priv.h"

#define READ_MAX sizeof(((struct dma_ahead *)NULL)->bytes)

static void end(struct dma_ahead *a)
{
    vfmig_dma_end(&a->dma);
    a->busy = false;
}

static bool reads_memory(const struct dma_descriptor *desc)
{
    return desc->op == DMA_OP_COPY || desc->op == DMA_OP_CRC || desc->op == DMA_OP_SRAM_LOAD;
}

static void done(void *user, int err)
{
    struct dma_ahead *a = user;
    const struct dma_regs *regs = &a->device->regs;
    bool turn_is_over = a->index - regs->head >= regs->tail - regs->head;
    int r = err;

    /* The descriptor is there: on to what it reads. */
    if (r == 0 && !a->data && !turn_is_over && reads_memory(&a->desc) && a->desc.length) {
        a->data = true;
        r = vfmig_dma_read_async(&a->dma, dma_iova(a->device, a->desc.src), a->bytes,
                                 a->desc.length < READ_MAX ? a->desc.length : READ_MAX, done, a);
        if (r == -EINPROGRESS)
            return;
    }
    end(a);
    if (r != -EINTR) /* else N waits: the gate's opening goes on */
        dma_ahead_kick(a->device);
}

static bool start(struct dma_device *d, uint32_t index)
{
    struct dma_ahead *a = NULL;

    for (uint32_t i = 0; !a && i < d->knobs.look_ahead; i++)
        if (!d->ahead[i].busy)
            a = &d->ahead[i];
    if (!a || vfmig_device_dma_begin(d->dev, &a->dma) < 0)
        return false;
    a->device = d;
    a->busy = true;
    a->data = false;
    a->index = index;
    uint64_t iova =
        dma_iova(d, d->regs.ring + (uint64_t)(index & (d->regs.entries - 1)) * sizeof(a->desc));
    int r = vfmig_dma_read_async(&a->dma, iova, &a->desc, sizeof(a->desc), done, a);
    /* Memory that can be reached at once is not worth a look. */
    if (r != -EINPROGRESS)
        end(a);
    return true;
}

void dma_ahead_kick(struct dma_device *d)
{
    const struct dma_regs *r = &d->regs;

    if (!d->knobs.look_ahead || !(r->ctrl & DMA_CTRL_ENABLE) || !r->entries)
        return;
    if (d->ahead_next - r->head - 1 > r->tail - r->head)
        d->ahead_next = r->head + 1; /* the head has come by, or the ring is another one */
    while (d->ahead_next != r->tail && d->ahead_next - r->head <= d->knobs.look_ahead &&
           r->head != r->tail && start(d, d->ahead_next))
        d->ahead_next++;
}

void dma_ahead_reset(struct dma_device *d)
{
    for (uint32_t i = 0; i < DMA_AHEAD_MAX; i++)
        d->ahead[i].busy = false;
    d->ahead_next = 0;
}
