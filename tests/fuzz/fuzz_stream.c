/* SPDX-License-Identifier: BSD-3-Clause */
/* The migration stream: records with right heads, checksums and order unless an operation says otherwise,
 * and any payload, to a channel that puts pages into memory, to every payload decoder, and to
 * `vfmig inspect`. kind: the record's tag; how: what is wrong with it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/crc32c.h"
#include "base/le.h"
#include "engine/channel.h"
#include "engine/engine.h"
#include "engine/inspect.h"
#include "engine/pack.h"
#include "ops.h"

#define BLOCKS      2u
#define BLOCK_PAGES 4u
#define STREAM_MAX  (1u << 20)
#define TAGS        22u /* two of them unknown */

enum how { HEAD_CRC = 1, SEQUENCE = 2, LENGTH = 4, OPTIONAL = 8, RAW = 16, SUM = 32, PACK = 64, LIE = 128 };

static uint8_t stream[STREAM_MAX];
static size_t stream_size;
static uint64_t sequence;

static void need(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

/* Pages of a MEMORY record: a table of runs out of the operation's bytes, {block, first, pages} each. */
static size_t make_pages(const struct op *op, uint8_t *out)
{
    struct vfmig_page_run runs[8] = {{0}};
    uint32_t crcs[64] = {0}, count = 0, pages = 0;
    uint8_t page[VFMIG_PAGE_SIZE];

    memset(page, op->size ? op->data[op->size - 1] : 7, sizeof(page));
    for (size_t at = 0; at + 3 <= op->size && count < 8; at += 3, count++) {
        runs[count] = (struct vfmig_page_run){.block = op->data[at] % 4,
                                              .first_page = op->data[at + 1] % 8,
                                              .page_count = 1 + op->data[at + 2] % 4};
        for (uint32_t i = 0; i < runs[count].page_count; i++)
            crcs[pages++] = vfmig_crc32c(0, page, sizeof(page)) ^ (op->how & SUM ? i : 0);
    }
    if (op->kind % TAGS == VFMIG_RECORD_ZERO)
        return vfmig_runs_encode(out, runs, count, NULL);
    size_t size = vfmig_runs_encode(out, runs, count, crcs);
    for (uint32_t i = 0; i < pages; i++, size += sizeof(page))
        memcpy(out + size, page, sizeof(page));
    return size;
}

/* The payload's CRC is over what is before the pages. */
static size_t summed(uint16_t tag, const uint8_t *payload, size_t size)
{
    if (tag != VFMIG_RECORD_MEMORY || size < 8)
        return size;
    size_t table = 8 + 16 * (size_t)vfmig_le32_get(payload) + 4 * (size_t)vfmig_le32_get(payload + 4);
    return table < size ? table : size;
}

static size_t pack_payload(uint16_t tag, const struct op *op, uint8_t *payload, size_t size)
{
    struct vfmig_pack *pack;
    const void *frame;
    size_t frame_size;

    if (vfmig_pack_new(1, STREAM_MAX, &pack, NULL))
        return size;
    memcpy(vfmig_pack_room(pack), payload, size);
    if (vfmig_pack(pack, size, &frame, &frame_size)) {
        uint32_t said = (uint32_t)size;
        if (op->how & LIE) /* what comes out is more, or less, than was said */
            said = op->size > 1 ? vfmig_le16_get(op->data) : 1;
        vfmig_le32_put(payload, tag);
        vfmig_le32_put(payload + 4, said);
        memcpy(payload + 8, frame, frame_size);
        size = 8 + frame_size;
    }
    vfmig_pack_free(pack);
    return size;
}

static void add_record(const struct op *op)
{
    static uint8_t payload[STREAM_MAX / 2];
    uint16_t tag = op->kind % TAGS;
    const struct vfmig_record_info *info = vfmig_record_info(tag);
    uint8_t *head = stream + stream_size;
    size_t size = op->size;

    memcpy(payload, op->data, size);
    if ((tag == VFMIG_RECORD_MEMORY || tag == VFMIG_RECORD_ZERO) && !(op->how & RAW))
        size = make_pages(op, payload);
    if (op->how & PACK) {
        size = pack_payload(tag, op, payload, size);
        tag = VFMIG_RECORD_PACKED;
        info = vfmig_record_info(tag);
    }
    if (stream_size + VFMIG_RECORD_HEAD_BYTES + size > STREAM_MAX)
        return;
    uint32_t crc = vfmig_crc32c(0, payload, summed(tag, payload, size)) ^ (op->how & SUM && !info);
    vfmig_record_head_encode(head, info ? tag : VFMIG_RECORD_BYE, 0, sequence++,
                             (uint32_t)size + (op->how & LENGTH ? 1u : 0u), crc);
    if (!info) {
        vfmig_le16_put(head + 4, tag);
        vfmig_le16_put(head + 6, op->how & OPTIONAL ? 0 : 1);
        memcpy(head + 8, "NEWER\0\0", 8);
    }
    if (op->how & SEQUENCE)
        vfmig_le64_put(head + 16, sequence + op->how);
    vfmig_le32_put(head + 36, vfmig_crc32c(0, head, 36) ^ (op->how & HEAD_CRC));
    memcpy(head + VFMIG_RECORD_HEAD_BYTES, payload, size);
    stream_size += VFMIG_RECORD_HEAD_BYTES + size;
}

/* --- the memory, between pages that cannot be touched --- */

static struct vfmig_ram_block blocks[BLOCKS];
static uint64_t *bitmaps[BLOCKS];

static void make_memory(void)
{
    for (uint32_t i = 0; i < BLOCKS && !blocks[i].host; i++) {
        size_t size = BLOCK_PAGES * VFMIG_PAGE_SIZE;
        uint8_t *all = mmap(NULL, size + 2 * VFMIG_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        need(all != MAP_FAILED && !mprotect(all + VFMIG_PAGE_SIZE, size, PROT_READ | PROT_WRITE), "mmap");
        blocks[i] = (struct vfmig_ram_block){.gpa = (uint64_t)i << 30, .size = size,
                                             .host = all + VFMIG_PAGE_SIZE, .fd = -1};
        bitmaps[i] = calloc(1, sizeof(uint64_t));
    }
}

/* All that can be said about a payload. */
static void decode(const struct vfmig_record *record)
{
    static union {
        struct vfmig_hello hello;
        struct vfmig_verdict verdict;
        struct vfmig_error error;
        struct vfmig_ping ping;
        struct vfmig_pong pong;
        struct vfmig_credit credit;
        struct vfmig_shared_block shared[VFMIG_MAX_MSG_FDS];
        struct vfmig_ho_msg msg;
    } to;
    const uint8_t *in = record->payload;
    uint32_t size = record->length, count;

    (void)vfmig_hello_decode(in, size, &to.hello, NULL);
    if (vfmig_verdict_decode(in, size, &to.verdict, NULL) == 0)
        need(strlen(to.verdict.text) < sizeof(to.verdict.text), "a verdict without an end");
    if (vfmig_stream_error_decode(in, size, &to.error, NULL) == 0)
        need(to.error.code < 0, "an error that is none");
    (void)vfmig_ping_decode(in, size, &to.ping, NULL);
    (void)vfmig_pong_decode(in, size, &to.pong, NULL);
    (void)vfmig_credit_decode(in, size, &to.credit, NULL);
    if (vfmig_shared_decode(in, size, to.shared, &count, NULL) == 0)
        need(count <= VFMIG_MAX_MSG_FDS, "more blocks than fit");
    (void)engine_ho_msg_decode(record, &to.msg, NULL);
}

static bool receive(void)
{
    const struct vfmig_memory memory = {blocks, BLOCKS};
    struct vfmig_dirty_map doubt = {.memory = memory, .bitmaps = bitmaps};
    struct vfmig_channel *channel;
    struct vfmig_record record;
    struct vfmig_error error = {0};
    struct vfmig_channel_stats stats;
    int fd = memfd_create("stream", MFD_CLOEXEC), rc;

    need(fd >= 0 && write(fd, stream, stream_size) == (ssize_t)stream_size && !lseek(fd, 0, SEEK_SET), "memfd");
    need(vfmig_channel_new_file(fd, VFMIG_SIDE_DEST, &channel, NULL) == 0, "channel");
    vfmig_channel_set_memory(channel, &memory);
    vfmig_channel_set_doubt(channel, &doubt);
    bool bye = false;
    while ((rc = vfmig_channel_recv(channel, &record, &error)) == 0) {
        need(record.length <= VFMIG_MAX_MEMORY_RECORD + 8, "a record beyond its bound");
        bye |= record.tag == VFMIG_RECORD_BYE;
        decode(&record);
    }
    need(rc < 0 && error.code == rc && error.text[0], "an end without a reason");
    vfmig_channel_stats(channel, &stats);
    need(stats.bytes_received <= stream_size, "more was received than was sent");
    need(!(bitmaps[0][0] >> BLOCK_PAGES) && !(bitmaps[1][0] >> BLOCK_PAGES), "doubt outside memory");
    vfmig_channel_free(channel);
    return bye && stats.pages_received;
}

/* --- inspect --- */

static size_t inspected;

static ssize_t read_stream(void *user, void *buf, size_t size)
{
    size = size < stream_size - inspected ? size : stream_size - inspected;
    memcpy(buf, stream + inspected, size);
    inspected += size;
    return (ssize_t)size;
}

static void look_at(void *user, const struct vfmig_inspect_item *item)
{
    need(item->field_count <= VFMIG_INSPECT_FIELDS && item->name, "an item that is none");
    for (uint32_t i = 0; i < item->field_count; i++)
        need(item->fields[i].name != NULL && (!item->fields[i].text || strlen(item->fields[i].text) < STREAM_MAX),
             "a field without a name");
}

bool ops_run(const struct op *ops, size_t count)
{
    static struct vfmig_inspect_totals totals;
    struct vfmig_error error = {0};

    make_memory();
    stream_size = inspected = 0;
    sequence = 0;
    bitmaps[0][0] = bitmaps[1][0] = 0;
    for (size_t i = 0; i < count; i++)
        add_record(&ops[i]);
    bool reached = receive();
    int rc = vfmig_inspect(read_stream, NULL, look_at, NULL, &totals, &error);
    need(rc == 0 || error.text[0], "inspect found something and does not say what");
    need(totals.offset <= stream_size, "inspect read more than there is");
    return reached;
}
