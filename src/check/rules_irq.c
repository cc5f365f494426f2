/* SPDX-License-Identifier: BSD-3-Clause */
/* Interrupts: none without R, and none that gets lost by N, a stop, or a move. The RFC is silent
 * about interrupts under N, so nothing is said of when they come. */
#include "check/rule.h"
#include "check/rules.h"

#define IOVA  0x10000000ull
#define ROOM  0x100000ull
#define PIECE 4096u

static bool ready(struct check *c)
{
    return check_need(c, c->workload->set_up(c), "making the device ready") &&
           check_need(c, check_map(c, IOVA, ROOM, 0, false), "MAP") &&
           check_need(c, check_irqs(c, 1), "SET_IRQS");
}

static void ring(struct check *c, unsigned count)
{
    for (unsigned i = 0; i < count && !check_gone(c); i++)
        c->workload->dma_start_irq(c, IOVA + i * PIECE, PIECE, 1 + i, 0);
}

static void arrives(struct check *c, const char *when)
{
    uint64_t begin = 0;
    bool seen = check_irq_seen(c, 0);

    while (!seen && check_wait(c, &begin))
        seen = check_irq_seen(c, 0);
    check_that(c, seen, "the interrupt of work that was done", "none comes %s", when);
}

void check_irq_arrives(struct check *c)
{
    check_doing(c, "DMA with an interrupt in RUNNING");
    if (!ready(c))
        return;
    ring(c, 1);
    arrives(c, "in RUNNING");
}

void check_irq_after_ndma(struct check *c)
{
    check_doing(c, "DMA with interrupts under way, RUNNING_NDMA, more doorbells, RUNNING");
    if (!ready(c) || !check_need(c, check_go(c, VFMIG_STATE_RUNNING_NDMA), "NDMA"))
        return;
    ring(c, 2);
    if (check_need(c, check_go(c, VFMIG_STATE_RUNNING), "RUNNING"))
        arrives(c, "after N is cleared");
}

void check_irq_without_r(struct check *c)
{
    static const uint8_t stopped[] = {VFMIG_STATE_STOP, VFMIG_STATE_STOP_COPY};

    for (size_t i = 0; i < sizeof(stopped) && !check_over(c); i++) {
        enum vfmig_state s = (enum vfmig_state)stopped[i];
        check_doing(c, "DMA with interrupts under way, then %s", check_state_name(s));
        check_reset(c);
        check_unmap(c, IOVA, ROOM);
        check_unmap(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE);
        if (!ready(c))
            return;
        ring(c, 40);
        if (!check_need(c, check_go(c, s), "the request"))
            return;
        check_irq_seen(c, 0); /* those of before */
        check_serve(c, 3);
        check_that(c, !check_irq_seen(c, 0), "no interrupt", "one, after the request was answered");
    }
}

/* A save, a reset, a load of it: the interrupt comes then. */
static void arrives_elsewhere(struct check *c)
{
    struct check_blob image = {0};

    if (check_need(c, check_go(c, VFMIG_STATE_STOP_COPY), "STOP_COPY") &&
        check_need(c, check_save_all(c, &image), "reading the stream") &&
        check_need(c, check_reset(c), "RESET") && check_need(c, check_irqs(c, 1), "SET_IRQS") &&
        check_need(c, check_go(c, VFMIG_STATE_RESUMING), "RESUMING") &&
        check_need(c, check_load_all(c, &image), "loading the image") &&
        check_need(c, check_go(c, VFMIG_STATE_RUNNING), "RUNNING"))
        arrives(c, "where the image was loaded");
    check_blob_free(&image);
}

/* Work that waits under N is saved; where it is loaded it is done, and says so. */
void check_irq_travels(struct check *c)
{
    check_doing(c, "DMA with an interrupt waits under N, a save, reset, a load, RUNNING");
    if (!ready(c) || !check_need(c, check_go(c, VFMIG_STATE_RUNNING_NDMA), "NDMA"))
        return;
    ring(c, 2);
    arrives_elsewhere(c);
}

/* One that was raised and not taken: the vector had no eventfd, or N held it back. */
void check_irq_pending_travels(struct check *c)
{
    uint64_t done = 0, before = 0, begin = 0;

    check_doing(
        c, "an interrupt is raised that nobody takes, a save, reset, SET_IRQS, a load, RUNNING");
    if (!ready(c) || !check_need(c, check_irqs(c, 0), "SET_IRQS"))
        return;
    c->workload->dma_done(c, &before);
    ring(c, 1);
    while (c->workload->dma_done(c, &done) == 0 && done == before && check_wait(c, &begin))
        ;
    arrives_elsewhere(c);
}
