/* SPDX-License-Identifier: BSD-3-Clause */
/* Heads of records, and the tables of MEMORY and ZERO. */
#include "stream/record.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "base/sabotage.h"

#define SOURCE  VFMIG_SIDE_SOURCE
#define DEST    VFMIG_SIDE_DEST
#define BOTH    VFMIG_SIDE_BOTH
#define CONTROL false
#define ANY     true

static const struct vfmig_record_info infos[VFMIG_RECORD_COUNT] = {
#define STREAM_RECORD(name, tag, min, max, required, senders, channels, text)                      \
    [VFMIG_RECORD_##name] = {#name, (min), (max), (required), (senders), (channels), (text)},
#include "../tables/stream.def"
#undef STREAM_RECORD
};

#define STREAM_RECORD(name, tag, min, max, required, senders, channels, text)                      \
    _Static_assert(sizeof(#name) - 1 <= VFMIG_RECORD_NAME_BYTES, "the name travels in the head");  \
    _Static_assert((min) <= (max), #name);                                                         \
    _Static_assert((tag) == VFMIG_RECORD_MEMORY || (tag) == VFMIG_RECORD_PACKED ||                 \
                       (max) <= VFMIG_MAX_CHANNEL_BUFFER,                                          \
                   #name);
#include "../tables/stream.def"
#undef STREAM_RECORD
_Static_assert(VFMIG_MAX_SKIPPED <= VFMIG_MAX_CHANNEL_BUFFER, "skipped records are read whole");

#undef SOURCE
#undef DEST
#undef BOTH
#undef CONTROL
#undef ANY

const struct vfmig_record_info *vfmig_record_info(uint32_t tag)
{
    return tag < VFMIG_RECORD_COUNT && infos[tag].name ? &infos[tag] : NULL;
}

void vfmig_record_head_encode(uint8_t out[VFMIG_RECORD_HEAD_BYTES], enum vfmig_record_tag tag,
                              uint32_t channel, uint64_t sequence, uint32_t length,
                              uint32_t payload_crc)
{
    const struct vfmig_record_info *info = &infos[tag];

    vfmig_le32_put(out, VFMIG_RECORD_MAGIC);
    vfmig_le16_put(out + 4, (uint16_t)tag);
    vfmig_le16_put(out + 6, info->required ? VFMIG_RECORD_REQUIRED : 0);
    memset(out + 8, 0, VFMIG_RECORD_NAME_BYTES);
    memcpy(out + 8, info->name, strlen(info->name));
    vfmig_le64_put(out + 16, sequence);
    vfmig_le32_put(out + 24, length);
    vfmig_le32_put(out + 28, payload_crc);
    vfmig_le32_put(out + 32, channel);
    vfmig_le32_put(out + 36, vfmig_crc32c(0, out, 36));
}

static void decode_fields(const uint8_t *in, struct vfmig_record_head *head)
{
    memset(head, 0, sizeof(*head));
    head->tag = vfmig_le16_get(in + 4);
    head->flags = vfmig_le16_get(in + 6);
    for (size_t i = 0; i < VFMIG_RECORD_NAME_BYTES && in[8 + i]; i++)
        head->name[i] = in[8 + i] > ' ' && in[8 + i] < 0x7f ? (char)in[8 + i] : '?';
    head->sequence = vfmig_le64_get(in + 16);
    head->length = vfmig_le32_get(in + 24);
    head->payload_crc = vfmig_le32_get(in + 28);
    head->channel = vfmig_le32_get(in + 32);
}

/* A record whose tag is not in the table: only its flags and its size can be judged. */
static int judge_unknown(const struct vfmig_record_head *head, struct vfmig_error *reterr)
{
    if (head->flags & VFMIG_RECORD_REQUIRED)
        return vfmig_error_set(reterr, -EPROTONOSUPPORT, VFMIG_ORIGIN_STREAM, head->tag,
                               "required record %s (tag %u) is not known to this version",
                               head->name, head->tag);
    if (head->length > VFMIG_MAX_SKIPPED)
        return vfmig_error_set(reterr, -EMSGSIZE, VFMIG_ORIGIN_STREAM, head->tag,
                               "unknown record %s of %u bytes is too long to be skipped",
                               head->name, head->length);
    return 0;
}

static int judge_known(const struct vfmig_record_head *head, const struct vfmig_record_info *info,
                       const struct vfmig_record_expect *expect, struct vfmig_error *reterr)
{
    uint16_t flags = info->required ? VFMIG_RECORD_REQUIRED : 0;

    if (strcmp(head->name, info->name) != 0 || head->flags != flags)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, head->tag,
                               "record %s has the tag of %s with other flags or name", head->name,
                               info->name);
    if (!(info->senders & expect->sender))
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, head->tag,
                               "record %s is never sent by the %s", head->name,
                               expect->sender == VFMIG_SIDE_SOURCE ? "source" : "destination");
    if (!info->any_channel && expect->channel != VFMIG_RECORD_CONTROL)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, head->tag,
                               "record %s arrived on channel %u, it belongs on channel 0",
                               head->name, expect->channel);
    if (head->length < info->min_bytes ||
        (head->length > info->max_bytes && !vfmig_sabotage("length-unchecked")))
        return vfmig_error_set(reterr, -EMSGSIZE, VFMIG_ORIGIN_STREAM, head->tag,
                               "record %s has %u bytes, it must have %u to %u", head->name,
                               head->length, info->min_bytes, info->max_bytes);
    return 1;
}

int vfmig_record_head_decode(const uint8_t in[VFMIG_RECORD_HEAD_BYTES],
                             const struct vfmig_record_expect *expect,
                             struct vfmig_record_head *ret_head, struct vfmig_error *reterr)
{
    struct vfmig_record_head head;
    decode_fields(in, &head);

    if (vfmig_le32_get(in) != VFMIG_RECORD_MAGIC)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "record %" PRIu64 " of channel %u does not begin with the magic",
                               expect->sequence, expect->channel);
    if (vfmig_le32_get(in + 36) != vfmig_crc32c(0, in, 36))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "record %" PRIu64 " of channel %u: the head was altered on its way",
                               expect->sequence, expect->channel);
    if (head.sequence != expect->sequence || head.channel != expect->channel)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, head.tag,
                               "record %" PRIu64 " of channel %u arrived where %" PRIu64
                               " of channel %u was due",
                               head.sequence, head.channel, expect->sequence, expect->channel);
    if (head.flags & ~VFMIG_RECORD_KNOWN_FLAGS)
        return vfmig_error_set(reterr, -EPROTONOSUPPORT, VFMIG_ORIGIN_STREAM, head.tag,
                               "record %s has unknown flags 0x%x", head.name, head.flags);
    const struct vfmig_record_info *info = vfmig_record_info(head.tag);
    int rc = info ? judge_known(&head, info, expect, reterr) : judge_unknown(&head, reterr);
    if (rc >= 0)
        *ret_head = head;
    return rc;
}

int vfmig_record_payload_check(const struct vfmig_record_head *head, uint32_t payload_crc,
                               struct vfmig_error *reterr)
{
    if (payload_crc == head->payload_crc || vfmig_sabotage("record-no-crc"))
        return 0;
    return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, head->tag,
                           "record %" PRIu64 " (%s) of channel %u was altered on its way",
                           head->sequence, head->name, head->channel);
}

size_t vfmig_runs_encode(uint8_t out[VFMIG_MAX_RUNS_BYTES], const struct vfmig_page_run *runs,
                         uint32_t run_count, const uint32_t *page_crcs)
{
    uint8_t *at = out + VFMIG_RUNS_PREFIX_BYTES;
    uint32_t pages = 0;

    for (uint32_t i = 0; i < run_count; i++, at += VFMIG_RUN_BYTES) {
        vfmig_le32_put(at, runs[i].block);
        vfmig_le32_put(at + 4, runs[i].page_count);
        vfmig_le64_put(at + 8, runs[i].first_page);
        pages += runs[i].page_count;
    }
    vfmig_le32_put(out, run_count);
    vfmig_le32_put(out + 4, pages);
    for (uint32_t i = 0; page_crcs && i < pages; i++, at += VFMIG_PAGE_CRC_BYTES)
        vfmig_le32_put(at, page_crcs[i]);
    return (size_t)(at - out);
}

int vfmig_runs_prefix_decode(const uint8_t in[VFMIG_RUNS_PREFIX_BYTES],
                             const struct vfmig_record_head *head, size_t *ret_bytes,
                             struct vfmig_error *reterr)
{
    uint32_t runs = vfmig_le32_get(in), pages = vfmig_le32_get(in + 4);
    bool with_bytes = head->tag == VFMIG_RECORD_MEMORY;

    if (runs == 0 || runs > VFMIG_MAX_MEMORY_RUNS || pages < runs ||
        (with_bytes && pages > VFMIG_MAX_MEMORY_PAGES))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, head->tag,
                               "record %s announces %u runs of %u pages", head->name, runs, pages);
    size_t bytes = VFMIG_RUNS_PREFIX_BYTES + (size_t)VFMIG_RUN_BYTES * runs;
    if (with_bytes)
        bytes += (size_t)VFMIG_PAGE_CRC_BYTES * pages;
    if (bytes + (with_bytes ? (size_t)VFMIG_PAGE_SIZE * pages : 0) != head->length)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, head->tag,
                               "record %s of %u bytes announces %u runs of %u pages", head->name,
                               head->length, runs, pages);
    *ret_bytes = bytes;
    return 0;
}

static bool run_fits(const struct vfmig_page_run *run, const struct vfmig_memory *memory)
{
    if (run->block >= memory->block_count || run->page_count == 0)
        return false;
    uint64_t pages = memory->blocks[run->block].size / VFMIG_PAGE_SIZE;
    return run->first_page < pages && run->page_count <= pages - run->first_page;
}

int vfmig_runs_decode(const uint8_t *in, size_t size, const struct vfmig_record_head *head,
                      const struct vfmig_memory *memory, struct vfmig_page_run *ret_runs,
                      uint32_t *ret_run_count, const uint8_t **ret_page_crcs,
                      struct vfmig_error *reterr)
{
    const uint8_t *at = in + VFMIG_RUNS_PREFIX_BYTES;
    uint32_t run_count = vfmig_le32_get(in);
    uint64_t left = vfmig_le32_get(in + 4);
    int rc = vfmig_record_payload_check(head, vfmig_crc32c(0, in, size), reterr);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < run_count; i++, at += VFMIG_RUN_BYTES) {
        ret_runs[i].block = vfmig_le32_get(at);
        ret_runs[i].page_count = vfmig_le32_get(at + 4);
        ret_runs[i].first_page = vfmig_le64_get(at + 8);
        if (!run_fits(&ret_runs[i], memory) || ret_runs[i].page_count > left)
            return vfmig_error_set(reterr, -ERANGE, VFMIG_ORIGIN_STREAM, head->tag,
                                   "record %s: %u pages from page %" PRIu64
                                   " of block %u are outside the memory map",
                                   head->name, ret_runs[i].page_count, ret_runs[i].first_page,
                                   ret_runs[i].block);
        left -= ret_runs[i].page_count;
    }
    if (left)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, head->tag,
                               "record %s has %" PRIu64 " pages fewer than announced", head->name,
                               left);
    *ret_run_count = run_count;
    *ret_page_crcs = at;
    return 0;
}
