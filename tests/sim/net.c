/* SPDX-License-Identifier: BSD-3-Clause */
/* The network: ordered bytes in each direction of each channel, as TCP gives them, and what happens
 * to them on their way. */
#include "sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"

#define PATIENCE_NS (100 * MS) /* a link that is silent for so long is given up */

static void drop_chunks(struct pipe *p)
{
    while (p->head) {
        struct chunk *c = p->head;
        p->head = c->next;
        free(c);
    }
    p->tail = &p->head;
}

void link_forget(void)
{
    for (unsigned i = 0; i < 2; i++)
        for (unsigned c = 0; c < CHANNELS; c++) {
            drop_chunks(&sim.pipe[i][c]);
            free(sim.pipe[i][c].rx);
            sim.pipe[i][c].rx = NULL;
        }
}

void link_begin(void)
{
    sim.generation++;
    sim.link_up = true;
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned c = 0; c < CHANNELS; c++) {
            struct pipe *p = &sim.pipe[i][c];
            drop_chunks(p);
            p->sent = p->expected = 0;
            p->rx_size = 0;
            p->last_at = sim.now;
            if (!p->rx)
                p->rx = malloc(RX_BYTES);
            if (!p->rx)
                abort();
        }
    }
}

void link_reset(void)
{
    if (!sim.link_up)
        return;
    say("link is gone");
    sim.link_up = false;
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned c = 0; c < CHANNELS; c++)
            drop_chunks(&sim.pipe[i][c]);
        if (sim.side[i].alive)
            event_in(some(MS / 10, one_in(4) ? 40 * MS : MS), EVENT_NOTICE, i, 0, 0,
                     sim.generation);
    }
}

static void enqueue(unsigned side, unsigned channel, const uint8_t *data, uint32_t size)
{
    struct pipe *p = &sim.pipe[side][channel];
    struct chunk *c = malloc(sizeof(*c) + size);

    if (!c)
        abort();
    *c = (struct chunk){.size = size};
    memcpy(c->data, data, size);
    uint64_t at = sim.now + some(MS / 20, MS / 3);
    if (at < sim.partition_until)
        at = sim.partition_until;
    if (at < p->last_at)
        at = p->last_at;
    c->at = p->last_at = at;
    *p->tail = c;
    p->tail = &c->next;
    event_in(at - sim.now, EVENT_CHUNK, !side, channel, 0, sim.generation);
}

/* Written in parts, which arrive in parts. */
static void enqueue_short(unsigned side, unsigned channel, const uint8_t *data, uint32_t size)
{
    for (unsigned i = 0; i < 3 && size > 1; i++) {
        uint32_t part = 1 + (uint32_t)chance_below(&sim.chance, size - 1);
        enqueue(side, channel, data, part);
        data += part;
        size -= part;
        sim.pipe[side][channel].last_at += some(0, MS);
    }
    enqueue(side, channel, data, size);
}

static bool meets(unsigned side, enum fault_kind kind)
{
    if (!(sim.next_send[kind] & (1u << side)))
        return false;
    sim.next_send[kind] &= (uint8_t) ~(1u << side);
    fault_struck(kind, side);
    return true;
}

bool send_record(unsigned side, unsigned channel, enum vfmig_record_tag tag, const void *payload,
                 uint32_t size, uint32_t crc_size)
{
    static uint8_t out[VFMIG_RECORD_HEAD_BYTES + RX_BYTES];
    struct pipe *p = &sim.pipe[side][channel];
    uint32_t all = VFMIG_RECORD_HEAD_BYTES + size;

    if (!sim.link_up || sim.side[side].generation != sim.generation)
        return false;
    /* A message of the handover is lost whole; anything else leaves a gap. */
    if (tag == VFMIG_RECORD_HANDOVER && meets(side, FAULT_DROP))
        return true;
    vfmig_record_head_encode(out, tag, channel, p->sent++, size,
                             vfmig_crc32c(0, payload, crc_size));
    memcpy(out + VFMIG_RECORD_HEAD_BYTES, payload, size);
    if (meets(side, FAULT_RESET)) {
        link_reset();
        return false;
    }
    if (meets(side, FAULT_DROP))
        return true;
    if (meets(side, FAULT_DELAY))
        p->last_at = (p->last_at > sim.now ? p->last_at : sim.now) + some(5 * MS, 150 * MS);
    bool again = meets(side, FAULT_REPEAT);
    if (meets(side, FAULT_FLIP)) {
        uint64_t bit = chance_below(&sim.chance, (uint64_t)all * 8);
        out[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    if (meets(side, FAULT_SHORT_IO))
        enqueue_short(side, channel, out, all);
    else
        enqueue(side, channel, out, all);
    if (again)
        enqueue(side, channel, out, all);
    return true;
}

/* --- receiving --- */

static void refuse(unsigned side, const struct vfmig_error *error)
{
    say("%s refuses the stream: %s", side == SRC ? "source" : "destination", error->text);
    uint32_t generation = sim.generation;
    link_reset();
    side_link_lost(side, generation);
}

/* The first record of what was received; 0: it is not whole yet, negative: it is refused. */
static int64_t take_first(unsigned side, unsigned channel, struct pipe *p, uint32_t at)
{
    struct vfmig_record_expect expect = {.sender =
                                             side == DST ? VFMIG_SIDE_SOURCE : VFMIG_SIDE_DEST,
                                         .channel = channel,
                                         .sequence = p->expected};
    struct vfmig_record_head head;
    struct vfmig_error error = {0};
    const uint8_t *in = p->rx + at;
    uint32_t have = p->rx_size - at;

    if (have < VFMIG_RECORD_HEAD_BYTES)
        return 0;
    int ret = vfmig_record_head_decode(in, &expect, &head, &error);
    if (ret > 0 && head.length > RX_BYTES - VFMIG_RECORD_HEAD_BYTES)
        ret = vfmig_error_set(&error, -EMSGSIZE, VFMIG_ORIGIN_STREAM, head.tag, "too long");
    if (ret >= 0 && have - VFMIG_RECORD_HEAD_BYTES < head.length)
        return 0;
    p->expected++;
    in += VFMIG_RECORD_HEAD_BYTES;
    if (ret >= 0 && head.tag != VFMIG_RECORD_MEMORY && head.tag != VFMIG_RECORD_ZERO &&
        vfmig_record_payload_check(&head, vfmig_crc32c(0, in, head.length), &error))
        ret = -EBADMSG;
    if (ret > 0 && !take_record(side, channel, &head, in, &error))
        ret = -EPROTO;
    if (ret < 0) {
        refuse(side, &error);
        return -1;
    }
    return VFMIG_RECORD_HEAD_BYTES + (int64_t)head.length;
}

static void take_all(unsigned side, unsigned channel, struct pipe *p)
{
    uint32_t generation = sim.generation, at = 0;

    for (;;) {
        int64_t n = take_first(side, channel, p, at);
        if (n < 0 || generation != sim.generation || !sim.link_up)
            return;
        if (n == 0)
            break;
        at += (uint32_t)n;
    }
    p->rx_size -= at;
    memmove(p->rx, p->rx + at, p->rx_size);
}

void chunk_arrives(unsigned side, unsigned channel, uint32_t generation)
{
    struct pipe *p = &sim.pipe[!side][channel];
    struct chunk *c = p->head;

    if (generation != sim.generation || !sim.link_up || !c)
        return;
    if (sim.now < sim.partition_until) {
        event_in(sim.partition_until - sim.now, EVENT_CHUNK, side, channel, 0, generation);
        return;
    }
    if (c->size > RX_BYTES - p->rx_size)
        abort();
    memcpy(p->rx + p->rx_size, c->data, c->size);
    p->rx_size += c->size;
    p->head = c->next;
    if (!p->head)
        p->tail = &p->head;
    free(c);
    take_all(side, channel, p);
}

void link_partition(uint64_t length)
{
    sim.partition_until = sim.now + length;
    if (length > PATIENCE_NS && sim.link_up)
        event_in(PATIENCE_NS, EVENT_RESET_LINK, SRC, 0, 0, sim.generation);
}
