/* SPDX-License-Identifier: BSD-3-Clause */
/* What each side does with the records of the other, as engine/link.c, engine/receiver.c and
 * engine/destination_works.c do it. */
#include "sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "base/sabotage.h"

enum { HO_MSG_BYTES = VFMIG_HO_ID_BYTES + 8, VMSTATE_HEAD = 16, VMSTATE_KINDS = 3 };

bool send_message(unsigned side, const struct vfmig_ho_msg *msg)
{
    uint8_t out[HO_MSG_BYTES];

    memcpy(out, msg->id, VFMIG_HO_ID_BYTES);
    vfmig_le32_put(out + VFMIG_HO_ID_BYTES, msg->epoch);
    out[VFMIG_HO_ID_BYTES + 4] = msg->kind;
    out[VFMIG_HO_ID_BYTES + 5] = msg->record;
    out[VFMIG_HO_ID_BYTES + 6] = msg->memory;
    out[VFMIG_HO_ID_BYTES + 7] = msg->reserved;
    if (sim.next_send[FAULT_DUPLICATE] & (1u << side) && sim.copy_count < 16) {
        sim.next_send[FAULT_DUPLICATE] &= (uint8_t) ~(1u << side);
        sim.copies[sim.copy_count] = (struct copy){.msg = *msg, .side = (uint8_t)!side};
        event_in(some(MS, one_in(2) ? 20 * MS : 400 * MS), EVENT_COPY, !side, sim.copy_count++, 0,
                 0);
        fault_struck(FAULT_DUPLICATE, side);
    }
    return send_record(side, 0, VFMIG_RECORD_HANDOVER, out, sizeof(out), sizeof(out));
}

static int refused(struct vfmig_error *error, const char *why)
{
    return vfmig_error_set(error, -EBADMSG, VFMIG_ORIGIN_STREAM, 0, "%s", why);
}

static int handover(unsigned side, const struct vfmig_record_head *head, const uint8_t *in,
                    struct vfmig_error *error)
{
    struct vfmig_ho_msg msg;

    if (head->length != HO_MSG_BYTES)
        return refused(error, "a handover message of a wrong size");
    memcpy(msg.id, in, VFMIG_HO_ID_BYTES);
    msg.epoch = vfmig_le32_get(in + VFMIG_HO_ID_BYTES);
    msg.kind = in[VFMIG_HO_ID_BYTES + 4];
    msg.record = in[VFMIG_HO_ID_BYTES + 5];
    msg.memory = in[VFMIG_HO_ID_BYTES + 6];
    msg.reserved = in[VFMIG_HO_ID_BYTES + 7];
    if (side == DST)
        destination_heard(&msg);
    else
        handover_msg(side, &msg);
    return 0;
}

/* --- memory --- */

static void take_page(struct side *s, unsigned side, uint64_t page, const uint8_t *data,
                      uint32_t crc)
{
    uint64_t bit = UINT64_C(1) << (page % 64);

    memcpy(memory_of[side][page], data, VFMIG_PAGE_SIZE);
    /* It may have been written on its way; then it comes again. */
    if (vfmig_crc32c(0, data, VFMIG_PAGE_SIZE) != crc && !vfmig_sabotage("page-no-crc"))
        s->doubt[page / 64] |= bit;
    else
        s->doubt[page / 64] &= ~bit;
}

static int memory(unsigned side, unsigned channel, const struct vfmig_record_head *head,
                  const uint8_t *in, struct vfmig_error *error)
{
    static const struct vfmig_ram_block block = {.size = PAGES * VFMIG_PAGE_SIZE, .fd = -1};
    static struct vfmig_page_run runs[VFMIG_MAX_MEMORY_RUNS];
    const struct vfmig_memory map = {.blocks = &block, .block_count = 1};
    struct side *s = &sim.side[side];
    bool with_bytes = head->tag == VFMIG_RECORD_MEMORY;
    const uint8_t *crcs, *data;
    uint32_t count;
    size_t bytes;

    int ret = vfmig_runs_prefix_decode(in, head, &bytes, error);
    if (ret == 0)
        ret = vfmig_runs_decode(in, bytes, head, &map, runs, &count, &crcs, error);
    if (ret)
        return ret;
    data = in + bytes;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t k = 0; k < runs[i].page_count; k++) {
            uint64_t page = runs[i].first_page + k;
            if (with_bytes) {
                take_page(s, side, page, data, vfmig_le32_get(crcs));
                data += VFMIG_PAGE_SIZE;
                crcs += VFMIG_PAGE_CRC_BYTES;
            } else {
                memset(memory_of[side][page], 0, VFMIG_PAGE_SIZE);
                s->doubt[page / 64] &= ~(UINT64_C(1) << (page % 64));
            }
            s->pages_got[channel] += with_bytes;
            s->zero_got[channel] += !with_bytes;
        }
    }
    return 0;
}

static int round_mark(unsigned side, unsigned channel, const struct vfmig_record_head *head,
                      const uint8_t *in, struct vfmig_error *error)
{
    struct side *s = &sim.side[side];
    struct vfmig_round mark;
    int ret = vfmig_round_decode(in, head->length, &mark, error);

    if (ret)
        return ret;
    if (mark.pages != s->pages_got[channel] || mark.zero_pages != s->zero_got[channel])
        return refused(error, "pages are missing");
    s->round_seen[channel] = mark.round;
    return 0;
}

/* --- devices and the VM --- */

static int push(struct side *s, unsigned device, const uint8_t *data, size_t size)
{
    struct device *d = &s->dev[device];
    struct segment *segment;

    if (s->abort)
        return 0; /* nobody loads it any more */
    if (s->out_of_memory) {
        s->out_of_memory--;
        fault_struck(FAULT_MEMORY, DST);
        return -ENOMEM;
    }
    if (d->in_count == SEGMENTS_MAX || size > SEGMENT_BYTES)
        return -ENOBUFS;
    segment = malloc(sizeof(*segment));
    if (!segment)
        abort();
    segment->size = (uint16_t)size;
    if (size)
        memcpy(segment->data, data, size);
    d->in[d->in_count++] = segment;
    return 0;
}

static int device_data(struct side *s, const struct vfmig_record_head *head, const uint8_t *in,
                       struct vfmig_error *error)
{
    struct vfmig_device_piece piece;
    int ret = vfmig_device_piece_decode(in, head->length, &piece, error);

    if (ret)
        return ret;
    if (piece.device >= DEVICES || s->dev[piece.device].ended || piece.more ||
        piece.segment != s->dev[piece.device].segments)
        return refused(error, "data of a device that is not what is due");
    struct device *d = &s->dev[piece.device];
    d->segments++;
    d->bytes += head->length - VFMIG_DEVICE_PIECE_BYTES;
    if (vfmig_sabotage("drop-pre-copy-data") && d->segments == 1)
        return 0;
    ret = push(s, piece.device, in + VFMIG_DEVICE_PIECE_BYTES,
               head->length - VFMIG_DEVICE_PIECE_BYTES);
    return ret ? refused(error, "no room for a device's data") : 0;
}

static int device_end(struct side *s, const struct vfmig_record_head *head, const uint8_t *in,
                      struct vfmig_error *error)
{
    struct vfmig_device_end end;
    int ret = vfmig_device_end_decode(in, head->length, &end, error);

    if (ret)
        return ret;
    if (end.device >= DEVICES || s->dev[end.device].ended ||
        end.segments != s->dev[end.device].segments || end.bytes != s->dev[end.device].bytes)
        return refused(error, "the end of a device's data where it is not due");
    s->dev[end.device].ended = 1;
    return push(s, end.device, NULL, 0) ? refused(error, "no room for a device's data") : 0;
}

static int vm_state(struct side *s, const struct vfmig_record_head *head, const uint8_t *in,
                    struct vfmig_error *error)
{
    uint32_t kind = head->length >= VMSTATE_HEAD ? vfmig_le32_get(in) : 0;

    if (kind < 1 || kind > VMSTATE_KINDS || s->inbox_full[kind] ||
        head->length != VMSTATE_HEAD + sizeof(s->inbox[kind]))
        return refused(error, "VM state of an unknown kind, or twice");
    memcpy(&s->inbox[kind], in + VMSTATE_HEAD, sizeof(s->inbox[kind]));
    s->inbox_full[kind] = 1;
    if (kind == VMSTATE_KINDS)
        s->final_round = vfmig_le64_get(in + 8);
    return 0;
}

static int answer(const uint8_t *in, uint32_t size, struct vfmig_error *error)
{
    struct vfmig_verdict verdict;
    int ret = vfmig_verdict_decode(in, size, &verdict, error);

    if (ret == 0 && verdict.accept)
        source_begins();
    return ret ? ret : verdict.accept ? 0 : refused(error, "the destination refuses");
}

bool take_record(unsigned side, unsigned channel, const struct vfmig_record_head *head,
                 const uint8_t *in, struct vfmig_error *error)
{
    struct side *s = &sim.side[side];
    struct vfmig_hello hello;
    int ret = 0;

    switch (head->tag) {
    case VFMIG_RECORD_HELLO:
        ret = vfmig_hello_decode(in, head->length, &hello, error);
        if (ret == 0 && (hello.channel != channel || hello.channel_count != CHANNELS))
            ret = refused(error, "crossed connections");
        break;
    case VFMIG_RECORD_IDENTITY:
        destination_asked();
        break;
    case VFMIG_RECORD_VERDICT:
        ret = answer(in, head->length, error);
        break;
    case VFMIG_RECORD_HANDOVER:
        ret = handover(side, head, in, error);
        break;
    case VFMIG_RECORD_MEMORY:
    case VFMIG_RECORD_ZERO:
        ret = s->flow_active ? memory(side, channel, head, in, error) : 0;
        break;
    case VFMIG_RECORD_ROUND:
        ret = s->flow_active ? round_mark(side, channel, head, in, error) : 0;
        break;
    case VFMIG_RECORD_DEVDATA:
        ret = s->flow_active ? device_data(s, head, in, error) : 0;
        break;
    case VFMIG_RECORD_DEVEND:
        ret = s->flow_active ? device_end(s, head, in, error) : 0;
        break;
    case VFMIG_RECORD_VMSTATE:
        ret = s->flow_active ? vm_state(s, head, in, error) : 0;
        break;
    default:
        break;
    }
    return ret == 0;
}
