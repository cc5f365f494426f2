/* SPDX-License-Identifier: BSD-3-Clause */
/* Payloads of the small records. */
#include <errno.h>
#include <string.h>

#include "base/le.h"
#include "base/sabotage.h"
#include "stream/record.h"

static int bad_payload(const char *name, size_t size, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                           "record %s of %zu bytes has fields that contradict each other", name,
                           size);
}

void vfmig_hello_encode(uint8_t out[VFMIG_HELLO_BYTES], const struct vfmig_hello *hello)
{
    vfmig_le32_put(out, hello->version_min);
    vfmig_le32_put(out + 4, hello->version_max);
    memcpy(out + 8, hello->migration_id, 16);
    memcpy(out + 24, hello->token, 16);
    vfmig_le32_put(out + 40, hello->channel);
    vfmig_le32_put(out + 44, hello->channel_count);
    vfmig_le32_put(out + 48, hello->page_size);
    vfmig_le32_put(out + 52, 0);
}

int vfmig_hello_decode(const uint8_t *in, size_t size, struct vfmig_hello *ret_hello,
                       struct vfmig_error *reterr)
{
    if (size != VFMIG_HELLO_BYTES)
        return bad_payload("HELLO", size, reterr);
    struct vfmig_hello hello = {
        .version_min = vfmig_le32_get(in),
        .version_max = vfmig_le32_get(in + 4),
        .channel = vfmig_le32_get(in + 40),
        .channel_count = vfmig_le32_get(in + 44),
        .page_size = vfmig_le32_get(in + 48),
        .reserved = vfmig_le32_get(in + 52),
    };
    memcpy(hello.migration_id, in + 8, 16);
    memcpy(hello.token, in + 24, 16);
    if (hello.channel_count == 0 || hello.channel_count > VFMIG_MAX_CHANNELS ||
        hello.channel >= hello.channel_count || hello.version_min > hello.version_max ||
        hello.reserved != 0)
        return bad_payload("HELLO", size, reterr);
    if (hello.version_min > VFMIG_STREAM_VERSION || hello.version_max < VFMIG_STREAM_VERSION)
        return vfmig_error_set(reterr, -EPROTONOSUPPORT, VFMIG_ORIGIN_STREAM, 0,
                               "the peer speaks stream versions %u to %u, this side speaks %u",
                               hello.version_min, hello.version_max, VFMIG_STREAM_VERSION);
    if (hello.page_size != VFMIG_PAGE_SIZE)
        return vfmig_error_set(reterr, -EPROTONOSUPPORT, VFMIG_ORIGIN_STREAM, 0,
                               "the peer sends pages of %u bytes, this side takes %u",
                               hello.page_size, VFMIG_PAGE_SIZE);
    *ret_hello = hello;
    return 0;
}

void vfmig_round_encode(uint8_t out[VFMIG_ROUND_BYTES], const struct vfmig_round *round)
{
    vfmig_le64_put(out, round->round);
    vfmig_le64_put(out + 8, round->pages);
    vfmig_le64_put(out + 16, round->zero_pages);
}

int vfmig_round_decode(const uint8_t *in, size_t size, struct vfmig_round *ret_round,
                       struct vfmig_error *reterr)
{
    if (size != VFMIG_ROUND_BYTES)
        return bad_payload("ROUND", size, reterr);
    *ret_round = (struct vfmig_round){
        .round = vfmig_le64_get(in),
        .pages = vfmig_le64_get(in + 8),
        .zero_pages = vfmig_le64_get(in + 16),
    };
    return 0;
}

void vfmig_packed_encode(uint8_t out[VFMIG_PACKED_BYTES], const struct vfmig_packed *packed)
{
    vfmig_le32_put(out, packed->tag);
    vfmig_le32_put(out + 4, packed->bytes);
}

int vfmig_packed_decode(const uint8_t *in, size_t size, struct vfmig_packed *ret_packed,
                        struct vfmig_error *reterr)
{
    if (size <= VFMIG_PACKED_BYTES)
        return bad_payload("PACKED", size, reterr);
    uint32_t tag = vfmig_le32_get(in), bytes = vfmig_le32_get(in + 4);
    const struct vfmig_record_info *info = vfmig_record_info(tag);
    if (tag != VFMIG_RECORD_MEMORY && tag != VFMIG_RECORD_DEVDATA)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, tag,
                               "record PACKED holds %s, which is never compressed",
                               info ? info->name : "what is not known here");
    if (bytes < info->min_bytes || (bytes > info->max_bytes && !vfmig_sabotage("unpack-as-claimed")))
        return vfmig_error_set(reterr, -EMSGSIZE, VFMIG_ORIGIN_STREAM, tag,
                               "record PACKED says that its %s has %u bytes, it must have %u to %u",
                               info->name, bytes, info->min_bytes, info->max_bytes);
    *ret_packed = (struct vfmig_packed){.tag = (enum vfmig_record_tag)tag, .bytes = bytes};
    return 0;
}

#define PIECE_MORE 0x1u

void vfmig_device_piece_encode(uint8_t out[VFMIG_DEVICE_PIECE_BYTES],
                               const struct vfmig_device_piece *piece)
{
    vfmig_le32_put(out, piece->device);
    vfmig_le32_put(out + 4, piece->more ? PIECE_MORE : 0);
    vfmig_le64_put(out + 8, piece->segment);
}

int vfmig_device_piece_decode(const uint8_t *in, size_t size, struct vfmig_device_piece *ret_piece,
                              struct vfmig_error *reterr)
{
    if (size <= VFMIG_DEVICE_PIECE_BYTES || vfmig_le32_get(in) >= VFMIG_MAX_DEVICES ||
        (vfmig_le32_get(in + 4) & ~PIECE_MORE))
        return bad_payload("DEVDATA", size, reterr);
    ret_piece->device = vfmig_le32_get(in);
    ret_piece->more = vfmig_le32_get(in + 4) & PIECE_MORE;
    ret_piece->segment = vfmig_le64_get(in + 8);
    return 0;
}

void vfmig_device_end_encode(uint8_t out[VFMIG_DEVICE_END_BYTES],
                             const struct vfmig_device_end *end)
{
    vfmig_le32_put(out, end->device);
    vfmig_le32_put(out + 4, 0);
    vfmig_le64_put(out + 8, end->segments);
    vfmig_le64_put(out + 16, end->bytes);
}

int vfmig_device_end_decode(const uint8_t *in, size_t size, struct vfmig_device_end *ret_end,
                            struct vfmig_error *reterr)
{
    if (size != VFMIG_DEVICE_END_BYTES || vfmig_le32_get(in) >= VFMIG_MAX_DEVICES ||
        vfmig_le32_get(in + 4) != 0)
        return bad_payload("DEVEND", size, reterr);
    ret_end->device = vfmig_le32_get(in);
    ret_end->segments = vfmig_le64_get(in + 8);
    ret_end->bytes = vfmig_le64_get(in + 16);
    return 0;
}

void vfmig_credit_encode(uint8_t out[VFMIG_CREDIT_BYTES], const struct vfmig_credit *credit)
{
    vfmig_le32_put(out, credit->device);
    vfmig_le32_put(out + 4, 0);
    vfmig_le64_put(out + 8, credit->bytes);
}

int vfmig_credit_decode(const uint8_t *in, size_t size, struct vfmig_credit *ret_credit,
                        struct vfmig_error *reterr)
{
    if (size != VFMIG_CREDIT_BYTES || vfmig_le32_get(in) >= VFMIG_MAX_DEVICES ||
        vfmig_le32_get(in + 4) != 0)
        return bad_payload("CREDIT", size, reterr);
    ret_credit->device = vfmig_le32_get(in);
    ret_credit->bytes = vfmig_le64_get(in + 8);
    return 0;
}

size_t vfmig_shared_encode(uint8_t out[VFMIG_SHARED_BYTES_MAX],
                           const struct vfmig_shared_block *blocks, uint32_t count)
{
    vfmig_le32_put(out, count);
    vfmig_le32_put(out + 4, 0);
    for (uint32_t i = 0; i < count; i++) {
        vfmig_le64_put(out + 8 + 24 * i, blocks[i].gpa);
        vfmig_le64_put(out + 16 + 24 * i, blocks[i].size);
        vfmig_le64_put(out + 24 + 24 * i, blocks[i].fd_offset);
    }
    return 8 + 24 * (size_t)count;
}

int vfmig_shared_decode(const uint8_t *in, size_t size, struct vfmig_shared_block *ret_blocks,
                        uint32_t *ret_count, struct vfmig_error *reterr)
{
    uint32_t count = size >= 8 ? vfmig_le32_get(in) : 0;

    if (!count || count > VFMIG_MAX_MSG_FDS || size != 8 + 24 * (size_t)count ||
        vfmig_le32_get(in + 4) != 0)
        return bad_payload("RAMFDS", size, reterr);
    for (uint32_t i = 0; i < count; i++) {
        struct vfmig_shared_block *block = &ret_blocks[i];
        block->gpa = vfmig_le64_get(in + 8 + 24 * i);
        block->size = vfmig_le64_get(in + 16 + 24 * i);
        block->fd_offset = vfmig_le64_get(in + 24 + 24 * i);
        if (!block->size || block->size > INT64_MAX || block->fd_offset > INT64_MAX - block->size ||
            (block->gpa | block->size | block->fd_offset) % VFMIG_PAGE_SIZE)
            return bad_payload("RAMFDS", size, reterr);
    }
    *ret_count = count;
    return 0;
}

uint64_t vfmig_device_window(uint32_t device_count)
{
    uint64_t share = device_count ? VFMIG_WINDOW_ALL / device_count : VFMIG_WINDOW_ALL;

    return share < VFMIG_WINDOW_MAX ? share : VFMIG_WINDOW_MAX;
}

/* Peer text: cut at the room, terminated, every control byte replaced. */
static void copy_text(char *out, size_t room, const uint8_t *in, size_t size)
{
    size_t length = 0;

    for (; length < size && length + 1 < room && in[length]; length++)
        out[length] = in[length] >= ' ' && in[length] != 0x7f ? (char)in[length] : ' ';
    out[length] = 0;
}

size_t vfmig_verdict_encode(uint8_t out[VFMIG_VERDICT_BYTES_MAX],
                            const struct vfmig_verdict *verdict)
{
    size_t length = strnlen(verdict->text, sizeof(verdict->text) - 1);

    vfmig_le32_put(out, verdict->accept);
    memcpy(out + 4, verdict->text, length);
    return 4 + length;
}

int vfmig_verdict_decode(const uint8_t *in, size_t size, struct vfmig_verdict *ret_verdict,
                         struct vfmig_error *reterr)
{
    if (size < 4 || vfmig_le32_get(in) > 1)
        return bad_payload("VERDICT", size, reterr);
    ret_verdict->accept = vfmig_le32_get(in) == 1;
    copy_text(ret_verdict->text, sizeof(ret_verdict->text), in + 4, size - 4);
    return 0;
}

size_t vfmig_stream_error_encode(uint8_t out[VFMIG_STREAM_ERROR_BYTES_MAX],
                                 const struct vfmig_error *error)
{
    size_t length = strnlen(error->text, sizeof(error->text) - 1);

    vfmig_le32_put(out, (uint32_t)-error->code);
    vfmig_le32_put(out + 4, error->origin);
    memcpy(out + 8, error->text, length);
    return 8 + length;
}

int vfmig_stream_error_decode(const uint8_t *in, size_t size, struct vfmig_error *ret_error,
                              struct vfmig_error *reterr)
{
    if (size < 8)
        return bad_payload("ERROR", size, reterr);
    uint32_t code = vfmig_le32_get(in), origin = vfmig_le32_get(in + 4);
    if (code == 0 || code > 4095 || origin == 0 || origin >= VFMIG_ORIGIN_COUNT)
        return bad_payload("ERROR", size, reterr);
    memset(ret_error, 0, sizeof(*ret_error));
    ret_error->code = -(int)code;
    ret_error->origin = (enum vfmig_origin)origin;
    copy_text(ret_error->text, sizeof(ret_error->text), in + 8, size - 8);
    return 0;
}

void vfmig_ping_encode(uint8_t out[VFMIG_PING_BYTES], const struct vfmig_ping *ping)
{
    vfmig_le64_put(out, ping->id);
    vfmig_le64_put(out + 8, ping->sent_ns);
}

int vfmig_ping_decode(const uint8_t *in, size_t size, struct vfmig_ping *ret_ping,
                      struct vfmig_error *reterr)
{
    if (size != VFMIG_PING_BYTES)
        return bad_payload("PING", size, reterr);
    ret_ping->id = vfmig_le64_get(in);
    ret_ping->sent_ns = vfmig_le64_get(in + 8);
    return 0;
}

void vfmig_pong_encode(uint8_t out[VFMIG_PONG_BYTES], const struct vfmig_pong *pong)
{
    vfmig_le64_put(out, pong->id);
    vfmig_le64_put(out + 8, pong->sent_ns);
    vfmig_le64_put(out + 16, pong->received_ns);
    vfmig_le64_put(out + 24, pong->answered_ns);
}

int vfmig_pong_decode(const uint8_t *in, size_t size, struct vfmig_pong *ret_pong,
                      struct vfmig_error *reterr)
{
    if (size != VFMIG_PONG_BYTES || vfmig_le64_get(in + 24) < vfmig_le64_get(in + 16))
        return bad_payload("PONG", size, reterr);
    ret_pong->id = vfmig_le64_get(in);
    ret_pong->sent_ns = vfmig_le64_get(in + 8);
    ret_pong->received_ns = vfmig_le64_get(in + 16);
    ret_pong->answered_ns = vfmig_le64_get(in + 24);
    return 0;
}

void vfmig_clock_offset_add(struct vfmig_clock_offset *clock, const struct vfmig_pong *pong,
                            uint64_t arrived_ns)
{
    uint64_t held_ns = pong->answered_ns - pong->received_ns;
    uint64_t whole_ns = arrived_ns - pong->sent_ns;

    clock->samples++;
    if (arrived_ns < pong->sent_ns || whole_ns < held_ns)
        return; /* nonsense from the peer's clock: no sample */
    if (clock->samples > 1 && clock->rtt_ns <= whole_ns - held_ns && clock->rtt_ns)
        return;
    clock->rtt_ns = whole_ns - held_ns;
    /* The request was under way for something between nothing and the whole round trip. */
    clock->error_ns = clock->rtt_ns / 2 + 1;
    clock->offset_ns = (int64_t)(pong->received_ns - pong->sent_ns - clock->rtt_ns / 2);
}
