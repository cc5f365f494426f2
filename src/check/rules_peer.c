/* SPDX-License-Identifier: BSD-3-Clause */
/* Two devices: the first one's DMA goes to a BAR of the second, as a VMM forwards it. The second is
 * a device of the same workload. */
#include "check/rule.h"
#include "check/rules.h"

#define IOVA  0x20000000ull
#define PIECE 256u
#define AT    4096u /* in the range that a peer may write */

/* The first device is ready, and the window to the second is mapped. */
static bool ready(struct check *c)
{
    const struct check_workload *w = c->workload;
    struct check_step map = {
        .kind = CHECK_STEP_MAP,
        .arg = {IOVA, w->peer_size, w->peer_offset, CHECK_MAP_PEER + w->peer_region}};

    if (w->peer_size < 2 * AT) {
        check_skip(c, "the workload knows nothing that a peer may write");
        return false;
    }
    return check_peer_begin(c) && check_need(c, w->set_up(c), "making the device ready") &&
           check_need(c, check_do(c, &map), "MAP");
}

/* What lies in the second device where the first one writes. */
static uint64_t seen(struct check *c)
{
    uint64_t word = 0;

    check_peer_read(c, c->workload->peer_region, c->workload->peer_offset + AT, &word,
                    sizeof(word));
    return word;
}

void check_peer_arrives(struct check *c)
{
    check_doing(c, "DMA to the BAR of a peer, both in RUNNING");
    if (ready(c) && check_ok(c, c->workload->dma_write(c, IOVA + AT, PIECE, 77), "DMA"))
        check_that(c, seen(c) == 77, "the peer has what was written", "%llu, not 77",
                   (unsigned long long)seen(c));
}

void check_peer_quiet(struct check *c)
{
    check_doing(c, "RUNNING_NDMA, then doorbells for DMA to the BAR of a peer");
    if (!ready(c) || !check_need(c, c->workload->dma_write(c, IOVA + AT, PIECE, 1), "DMA") ||
        !check_ok(c, check_go(c, VFMIG_STATE_RUNNING_NDMA), "NDMA"))
        return;
    uint64_t before = c->port->dma.peer_hits;
    for (unsigned i = 0; i < 3; i++)
        c->workload->dma_start(c, IOVA + AT, PIECE, 2 + i);
    check_serve(c, 3);
    check_that(c, c->port->dma.peer_hits == before && seen(c) == 1, "no access to the peer",
               "%llu accesses", (unsigned long long)(c->port->dma.peer_hits - before));
}

void check_peer_answers(struct check *c)
{
    check_doing(c, "a peer in RUNNING_NDMA, DMA to its BAR");
    if (ready(c) && check_need(c, check_peer_go(c, VFMIG_STATE_RUNNING_NDMA), "NDMA of the peer") &&
        check_ok(c, c->workload->dma_write(c, IOVA + AT, PIECE, 99), "DMA"))
        check_that(c, seen(c) == 99, "the peer has what was written", "%llu, not 99",
                   (unsigned long long)seen(c));
}

void check_peer_attacks(struct check *c)
{
    static const uint8_t stopped[] = {VFMIG_STATE_STOP, VFMIG_STATE_STOP_COPY};

    for (size_t i = 0; i < sizeof(stopped) && !check_over(c); i++) {
        check_doing(c, "a peer in %s, DMA to its BAR", check_state_name(stopped[i]));
        check_reset(c);
        check_unmap(c, IOVA, c->workload->peer_size);
        check_unmap(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE);
        if (!ready(c) || !check_need(c, c->workload->dma_write(c, IOVA + AT, PIECE, 5), "DMA") ||
            !check_need(c, check_peer_go(c, (enum vfmig_state)stopped[i]), "stopping the peer"))
            return;
        c->workload->dma_write(c, IOVA + AT, PIECE, 6); /* may be refused */
        if (check_need(c, check_peer_go(c, VFMIG_STATE_RUNNING), "starting the peer"))
            check_that(c, seen(c) == 5, "the peer is what it was", "%llu, not 5",
                       (unsigned long long)seen(c));
    }
}
