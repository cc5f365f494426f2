/* SPDX-License-Identifier: BSD-3-Clause */
/* The compressed records of a channel, both ways. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/crc32c.h"
#include "base/le.h"
#include "base/sabotage.h"
#include "engine/channel_private.h"
#include "engine/pack.h"

/* --- sending; under pack_lock, so that one room serves memory and devices --- */

/* The first size bytes of the room as PACKED, or, when that is not shorter, as what they are; plain_crc
 * is the payload CRC of the latter. */
static int send_room(struct vfmig_channel *channel, enum vfmig_record_tag tag, size_t size,
                     uint32_t plain_crc, struct vfmig_error *reterr)
{
    uint8_t prefix[VFMIG_PACKED_BYTES];
    struct iovec iov[3] = {{0}, {vfmig_pack_room(channel->pack), size}};
    const void *frame;
    size_t frame_size;

    if (!vfmig_pack(channel->pack, size, &frame, &frame_size))
        return vfmig_channel_send_record(channel, tag, iov, 2, (uint32_t)size, plain_crc, reterr);
    vfmig_packed_encode(prefix, &(struct vfmig_packed){.tag = tag, .bytes = (uint32_t)size});
    iov[1] = (struct iovec){prefix, sizeof(prefix)};
    iov[2] = (struct iovec){(void *)(uintptr_t)frame, frame_size};
    uint32_t crc = vfmig_crc32c(vfmig_crc32c(0, prefix, sizeof(prefix)), frame, frame_size);
    return vfmig_channel_send_record(channel, VFMIG_RECORD_PACKED, iov, 3,
                                     (uint32_t)(sizeof(prefix) + frame_size), crc, reterr);
}

int vfmig_channel_pack_pages(struct vfmig_channel *channel, const struct vfmig_memory *memory,
                             const struct vfmig_page_run *runs, uint32_t run_count, uint64_t pages,
                             struct vfmig_error *reterr)
{
    uint32_t crcs[VFMIG_MAX_MEMORY_PAGES];
    size_t table = VFMIG_RUNS_PREFIX_BYTES + (size_t)run_count * VFMIG_RUN_BYTES +
                   (size_t)pages * VFMIG_PAGE_CRC_BYTES;
    uint64_t n = 0;

    pthread_mutex_lock(&channel->pack_lock);
    uint8_t *room = vfmig_pack_room(channel->pack), *to = room + table;
    for (uint32_t i = 0; i < run_count; i++) {
        size_t size = (size_t)runs[i].page_count * VFMIG_PAGE_SIZE;
        memcpy(to, vfmig_page_address(memory, &runs[i]), size);
        for (uint32_t page = 0; page < runs[i].page_count; page++, to += VFMIG_PAGE_SIZE)
            crcs[n++] = vfmig_crc32c(0, to, VFMIG_PAGE_SIZE);
    }
    vfmig_runs_encode(room, runs, run_count, crcs);
    int ret = send_room(channel, VFMIG_RECORD_MEMORY, table + (size_t)pages * VFMIG_PAGE_SIZE,
                        vfmig_crc32c(0, room, table), reterr);
    pthread_mutex_unlock(&channel->pack_lock);
    return ret;
}

int vfmig_channel_pack_parts(struct vfmig_channel *channel, enum vfmig_record_tag tag,
                             const struct iovec *parts, int part_count, struct vfmig_error *reterr)
{
    size_t size = 0;

    pthread_mutex_lock(&channel->pack_lock);
    uint8_t *room = vfmig_pack_room(channel->pack);
    for (int i = 0; i < part_count; size += parts[i++].iov_len)
        memcpy(room + size, parts[i].iov_base, parts[i].iov_len);
    int ret = send_room(channel, tag, size, vfmig_crc32c(0, room, size), reterr);
    pthread_mutex_unlock(&channel->pack_lock);
    return ret;
}

int vfmig_channel_set_pack(struct vfmig_channel *channel, unsigned level, struct vfmig_error *reterr)
{
    return vfmig_pack_new(level, VFMIG_MAX_MEMORY_RECORD, &channel->pack, reterr);
}

/* --- receiving --- */

static int unpack_pages(struct vfmig_channel *channel, uint32_t size, struct vfmig_error *reterr)
{
    struct vfmig_record_head head = {.tag = VFMIG_RECORD_MEMORY, .length = size, .name = "MEMORY",
                                     .channel = channel->index};
    const uint8_t *crcs, *from = channel->unpacked;
    uint32_t run_count = 0;
    uint64_t pages = 0;
    size_t table = 0;
    int ret = vfmig_runs_prefix_decode(from, &head, &table, reterr);

    if (ret == 0) {
        /* The record's CRC has vouched for the frame, and the frame for this. */
        head.payload_crc = vfmig_crc32c(0, from, table);
        ret = vfmig_channel_check_runs(channel, from, table, &head, &run_count, &crcs, reterr);
    }
    from += table;
    for (uint32_t i = 0; ret == 0 && i < run_count; i++) {
        const struct vfmig_page_run *run = &channel->runs[i];
        uint8_t *to = vfmig_page_address(channel->memory, run);
        for (uint32_t page = 0; ret == 0 && page < run->page_count; page++, pages++) {
            memcpy(to, from, VFMIG_PAGE_SIZE);
            ret = vfmig_channel_check_page(channel, &head, run->block, run->first_page + page, to,
                                           vfmig_le32_get(crcs), reterr);
            to += VFMIG_PAGE_SIZE;
            from += VFMIG_PAGE_SIZE;
            crcs += VFMIG_PAGE_CRC_BYTES;
        }
    }
    if (ret == 0)
        atomic_fetch_add_explicit(&channel->pages_received, pages, memory_order_relaxed);
    return ret;
}

int vfmig_channel_unpack(struct vfmig_channel *channel, const uint8_t *payload, uint32_t length,
                         struct vfmig_record *ret_record, struct vfmig_error *reterr)
{
    struct vfmig_packed packed;
    int ret = vfmig_packed_decode(payload, length, &packed, reterr);

    if (ret)
        return ret;
    if (vfmig_sabotage("unpack-as-claimed"))
        channel->unpacked = realloc(channel->unpacked, packed.bytes);
    else if (!channel->unpacked)
        channel->unpacked = malloc(VFMIG_MAX_MEMORY_RECORD);
    if (!channel->unpacked)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for compressed data");
    ret = vfmig_unpack(payload + VFMIG_PACKED_BYTES, length - VFMIG_PACKED_BYTES, channel->unpacked,
                       packed.bytes, reterr);
    if (ret == 0 && packed.tag == VFMIG_RECORD_MEMORY)
        return unpack_pages(channel, packed.bytes, reterr);
    if (ret)
        return ret;
    *ret_record = (struct vfmig_record){.tag = packed.tag,
                                        .channel = channel->index,
                                        .length = packed.bytes,
                                        .payload = channel->unpacked,
                                        .received_ns = channel->head_ns};
    return 1;
}
