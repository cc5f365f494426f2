/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/inspect.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/crc32c.h"
#include "base/le.h"
#include "core/handover.h"
#include "engine/pack.h"

#define PAYLOAD_BYTES (VFMIG_PACKED_BYTES + VFMIG_MAX_MEMORY_RECORD)
/* Pages of which doubt is kept: a memory map may say anything. */
#define DOUBT_PAGES   (UINT64_C(1) << 28)

struct inspect {
    vfmig_inspect_read read;
    void *read_user;
    vfmig_inspect_item_fn on_item;
    void *item_user;
    struct vfmig_inspect_totals *totals;
    struct vfmig_record_expect expect;
    bool begun;
    struct vfmig_ram_block blocks[VFMIG_MAX_RAM_BLOCKS];
    struct vfmig_memory memory; /* by the identity; before it, anything fits */
    uint64_t first_page[VFMIG_MAX_RAM_BLOCKS]; /* of a block, in doubt */
    uint64_t page_count;
    bool mapped;
    uint64_t *doubt; /* made when there is one */
    struct vfmig_page_run runs[VFMIG_MAX_MEMORY_RUNS];
    char name[VFMIG_RECORD_NAME_BYTES + 1], id[2 * VFMIG_SAVE_ID_BYTES + 1];
    char *text; /* VFMIG_MAX_IDENTITY + 1 */
    uint8_t *payload, *unpacked;
};

static void add_number(struct vfmig_inspect_item *item, const char *name, uint64_t number)
{
    if (item->field_count < VFMIG_INSPECT_FIELDS)
        item->fields[item->field_count++] = (struct vfmig_inspect_field){.name = name, .number = number};
}

static void add_text(struct vfmig_inspect_item *item, const char *name, const char *text)
{
    if (item->field_count < VFMIG_INSPECT_FIELDS)
        item->fields[item->field_count++] = (struct vfmig_inspect_field){.name = name, .text = text};
}

static void add_bytes(struct inspect *in, struct vfmig_inspect_item *item, const char *name,
                      const uint8_t *data, size_t size)
{
    if (size > VFMIG_MAX_IDENTITY)
        size = VFMIG_MAX_IDENTITY;
    for (size_t i = 0; i < size; i++)
        in->text[i] = (data[i] >= ' ' && data[i] <= '~') || data[i] == '\n' ? (char)data[i] : '?';
    in->text[size] = 0;
    add_text(item, name, in->text);
}

static void add_id(struct inspect *in, struct vfmig_inspect_item *item, const uint8_t *id)
{
    for (unsigned i = 0; i < VFMIG_SAVE_ID_BYTES; i++)
        snprintf(in->id + 2 * i, 3, "%02x", id[i]);
    add_text(item, "id", in->id);
}

/* Exactly size bytes: 1; 0 at the end, before the first of them. */
static int fill(struct inspect *in, void *buf, size_t size, const char *what, struct vfmig_error *reterr)
{
    ssize_t got = in->read(in->read_user, buf, size);

    if (got < 0)
        return vfmig_error_set(reterr, (int)got, VFMIG_ORIGIN_KERNEL, 0, "cannot be read: %s",
                               strerror((int)-got));
    if ((size_t)got == size)
        return 1;
    if (got == 0 && !what)
        return 0;
    return vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_STREAM, 0,
                           "it is cut: %zd of %zu bytes of %s", got, size, what ? what : "a head");
}

/* --- memory --- */

/* Lines memory.N=GPA+SIZE of the first identity; one that cannot be read leaves the map open. */
static void map_memory(struct inspect *in)
{
    uint64_t pages = 0;
    uint32_t count = 0;

    for (const char *at = in->mapped ? NULL : in->text; at && count < VFMIG_MAX_RAM_BLOCKS;) {
        char line[80];
        unsigned number;
        uint64_t gpa, size;
        size_t length = strcspn(at, "\n");
        snprintf(line, sizeof(line), "%.*s", (int)(length < sizeof(line) ? length : sizeof(line)), at);
        if (sscanf(line, "memory.%u=%" SCNx64 "+%" SCNx64, &number, &gpa, &size) == 3) {
            if (number != count || size > (DOUBT_PAGES - pages) * VFMIG_PAGE_SIZE)
                return;
            in->blocks[count] = (struct vfmig_ram_block){.gpa = gpa, .size = size, .fd = -1};
            in->first_page[count++] = pages;
            pages += size / VFMIG_PAGE_SIZE;
        }
        at = strchr(at, '\n');
        at = at ? at + 1 : NULL;
    }
    if (in->mapped || !count)
        return;
    in->memory.block_count = count;
    in->page_count = pages;
    in->mapped = true;
}

static int judge_page(struct inspect *in, const struct vfmig_page_run *run, uint32_t page, bool good,
                      struct vfmig_error *reterr)
{
    uint64_t bit = in->mapped ? in->first_page[run->block] + run->first_page + page : 0;

    in->totals->doubtful += !good;
    if (!in->mapped || (good && !in->doubt))
        return 0;
    if (!in->doubt)
        in->doubt = calloc(vfmig_bitmap_words(in->page_count), sizeof(uint64_t));
    if (!in->doubt)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for %" PRIu64 " pages",
                               in->page_count);
    if (good)
        in->doubt[bit / 64] &= ~(UINT64_C(1) << bit % 64);
    else
        in->doubt[bit / 64] |= UINT64_C(1) << bit % 64;
    return 0;
}

static int take_memory(struct inspect *in, const struct vfmig_record_head *head, const uint8_t *data,
                       struct vfmig_inspect_item *item, struct vfmig_error *reterr)
{
    bool zero = head->tag == VFMIG_RECORD_ZERO;
    uint64_t pages = 0, doubtful = in->totals->doubtful;
    const uint8_t *crcs;
    uint32_t run_count = 0;
    size_t table = 0;
    int ret = vfmig_runs_prefix_decode(data, head, &table, reterr);

    if (ret == 0)
        ret = vfmig_runs_decode(data, table, head, &in->memory, in->runs, &run_count, &crcs, reterr);
    const uint8_t *at = data + table;
    for (uint32_t i = 0; ret == 0 && i < run_count; i++) {
        pages += in->runs[i].page_count;
        for (uint32_t page = 0; ret == 0 && page < in->runs[i].page_count && (!zero || in->doubt); page++) {
            bool good = zero || vfmig_crc32c(0, at, VFMIG_PAGE_SIZE) == vfmig_le32_get(crcs);
            ret = judge_page(in, &in->runs[i], page, good, reterr);
            if (!zero)
                crcs += VFMIG_PAGE_CRC_BYTES, at += VFMIG_PAGE_SIZE;
        }
    }
    if (ret)
        return ret;
    *(zero ? &in->totals->zero_pages : &in->totals->pages) += pages;
    add_number(item, "runs", run_count);
    add_number(item, "pages", pages);
    add_number(item, "block", in->runs[0].block);
    add_number(item, "first-page", in->runs[0].first_page);
    if (in->totals->doubtful > doubtful)
        add_number(item, "doubtful", in->totals->doubtful - doubtful);
    return 0;
}

/* --- the other records --- */

static int take_piece(struct inspect *in, const uint8_t *data, uint32_t size,
                      struct vfmig_inspect_item *item, struct vfmig_error *reterr)
{
    struct vfmig_device_piece piece;
    int ret = vfmig_device_piece_decode(data, size, &piece, reterr);

    if (ret)
        return ret;
    struct vfmig_inspect_device *device = &in->totals->devices[piece.device];
    if (piece.device >= in->totals->device_count)
        in->totals->device_count = piece.device + 1;
    if (piece.segment != device->segments || device->ended)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_DEVDATA,
                               "segment %" PRIu64 " of device %u where %s%" PRIu64 " was due",
                               piece.segment, piece.device, device->ended ? "nothing behind " : "",
                               device->segments);
    device->segments += !piece.more;
    device->bytes += size - VFMIG_DEVICE_PIECE_BYTES;
    add_number(item, "device", piece.device);
    add_number(item, "segment", piece.segment);
    add_number(item, "data", size - VFMIG_DEVICE_PIECE_BYTES);
    if (piece.more)
        add_number(item, "more", 1);
    return 0;
}

static int take_device_end(struct inspect *in, const uint8_t *data, uint32_t size,
                           struct vfmig_inspect_item *item, struct vfmig_error *reterr)
{
    struct vfmig_device_end end;
    int ret = vfmig_device_end_decode(data, size, &end, reterr);

    if (ret)
        return ret;
    struct vfmig_inspect_device *device = &in->totals->devices[end.device];
    add_number(item, "device", end.device);
    add_number(item, "segments", end.segments);
    add_number(item, "data", end.bytes);
    if (end.segments != device->segments || end.bytes != device->bytes)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_DEVEND,
                               "device %u ends with %" PRIu64 " segments of %" PRIu64
                               " bytes, and %" PRIu64 " of %" PRIu64 " came",
                               end.device, end.segments, end.bytes, device->segments, device->bytes);
    if (end.device >= in->totals->device_count)
        in->totals->device_count = end.device + 1;
    device->ended = true;
    return 0;
}

static int take_round(struct inspect *in, const uint8_t *data, uint32_t size,
                      struct vfmig_inspect_item *item, struct vfmig_error *reterr)
{
    struct vfmig_round round;
    int ret = vfmig_round_decode(data, size, &round, reterr);

    if (ret)
        return ret;
    in->totals->rounds++;
    add_number(item, "round", round.round);
    add_number(item, "pages", round.pages);
    add_number(item, "zero-pages", round.zero_pages);
    if (round.pages != in->totals->pages || round.zero_pages != in->totals->zero_pages)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_ROUND,
                               "round %" PRIu64 " counts %" PRIu64 " pages and %" PRIu64
                               " of zeros, %" PRIu64 " and %" PRIu64 " came",
                               round.round, round.pages, round.zero_pages, in->totals->pages,
                               in->totals->zero_pages);
    return 0;
}

static int take_hello(struct inspect *in, const uint8_t *data, uint32_t size,
                      struct vfmig_inspect_item *item, struct vfmig_error *reterr)
{
    struct vfmig_hello hello;
    int ret = vfmig_hello_decode(data, size, &hello, reterr);

    if (ret)
        return ret;
    add_id(in, item, hello.migration_id);
    add_number(item, "version-min", hello.version_min);
    add_number(item, "version-max", hello.version_max);
    add_number(item, "channels", hello.channel_count);
    return 0;
}

static void take_handover(const uint8_t *data, uint32_t size, struct vfmig_inspect_item *item)
{
    if (size < VFMIG_HO_ID_BYTES + 8)
        return;
    add_number(item, "epoch", vfmig_le32_get(data + VFMIG_HO_ID_BYTES));
    add_text(item, "message", vfmig_ho_msg_name(data[VFMIG_HO_ID_BYTES + 4]));
    add_text(item, "on-record", vfmig_ho_record_name(data[VFMIG_HO_ID_BYTES + 5]));
}

static void take_vmstate(struct inspect *in, const uint8_t *data, uint32_t size,
                         struct vfmig_inspect_item *item)
{
    static const char *const kinds[] = {"unknown", "external", "external, final", "vCPUs"};
    uint32_t kind = size >= 16 ? vfmig_le32_get(data) : 0;

    in->totals->state_bytes += size;
    add_text(item, "kind", kinds[kind < 4 ? kind : 0]);
    if (kind == 3)
        add_number(item, "last-round", vfmig_le64_get(data + 8));
}

/* The descriptors themselves are not in what was kept of a stream. */
static int take_shared(const uint8_t *data, uint32_t size, struct vfmig_inspect_item *item,
                       struct vfmig_error *reterr)
{
    struct vfmig_shared_block blocks[VFMIG_MAX_MSG_FDS];
    uint64_t bytes = 0;
    uint32_t count = 0;
    int ret = vfmig_shared_decode(data, size, blocks, &count, reterr);

    if (ret)
        return ret;
    for (uint32_t i = 0; i < count; i++)
        bytes += blocks[i].size;
    add_number(item, "blocks", count);
    add_number(item, "bytes", bytes);
    return 0;
}

static int take(struct inspect *in, const struct vfmig_record_head *head, const uint8_t *data,
                struct vfmig_inspect_item *item, struct vfmig_error *reterr)
{
    switch (head->tag) {
    case VFMIG_RECORD_HELLO:
        return take_hello(in, data, head->length, item, reterr);
    case VFMIG_RECORD_MEMORY:
    case VFMIG_RECORD_ZERO:
        return take_memory(in, head, data, item, reterr);
    case VFMIG_RECORD_ROUND:
        return take_round(in, data, head->length, item, reterr);
    case VFMIG_RECORD_DEVDATA:
        return take_piece(in, data, head->length, item, reterr);
    case VFMIG_RECORD_DEVEND:
        return take_device_end(in, data, head->length, item, reterr);
    case VFMIG_RECORD_VMSTATE:
        take_vmstate(in, data, head->length, item);
        return 0;
    case VFMIG_RECORD_HANDOVER:
        take_handover(data, head->length, item);
        return 0;
    case VFMIG_RECORD_IDENTITY:
        add_bytes(in, item, "text", data, head->length);
        map_memory(in);
        return 0;
    case VFMIG_RECORD_VERDICT:
        add_number(item, "accept", vfmig_le32_get(data));
        add_bytes(in, item, "text", data + 4, head->length - 4);
        return 0;
    case VFMIG_RECORD_ERROR:
        add_bytes(in, item, "text", data + 8, head->length - 8);
        return 0;
    case VFMIG_RECORD_PROGRESS:
        add_bytes(in, item, "text", data, head->length < 64 ? head->length : 64);
        return 0;
    case VFMIG_RECORD_RAMFDS:
        return take_shared(data, head->length, item, reterr);
    case VFMIG_RECORD_BYE:
        in->totals->bye = true;
        return 0;
    default:
        return 0;
    }
}

static int take_packed(struct inspect *in, const struct vfmig_record_head *head,
                       struct vfmig_inspect_item *item, struct vfmig_error *reterr)
{
    struct vfmig_record_head inner = *head;
    struct vfmig_packed packed;
    int ret = vfmig_packed_decode(in->payload, head->length, &packed, reterr);

    if (ret == 0)
        ret = vfmig_unpack(in->payload + VFMIG_PACKED_BYTES, head->length - VFMIG_PACKED_BYTES,
                           in->unpacked, packed.bytes, reterr);
    if (ret)
        return ret;
    inner.tag = (uint16_t)packed.tag;
    inner.length = packed.bytes;
    snprintf(inner.name, sizeof(inner.name), "%s", vfmig_record_info(packed.tag)->name);
    if (packed.tag == VFMIG_RECORD_MEMORY) {
        uint64_t table = VFMIG_RUNS_PREFIX_BYTES + (uint64_t)VFMIG_RUN_BYTES * vfmig_le32_get(in->unpacked) +
                         (uint64_t)VFMIG_PAGE_CRC_BYTES * vfmig_le32_get(in->unpacked + 4);
        inner.payload_crc = table <= packed.bytes ? vfmig_crc32c(0, in->unpacked, table) : 0;
    }
    in->totals->packed_bytes += head->length;
    in->totals->unpacked_bytes += packed.bytes;
    add_text(item, "holds", vfmig_record_info(packed.tag)->name);
    add_number(item, "unpacked", packed.bytes);
    return take(in, &inner, in->unpacked, item, reterr);
}

static int check_payload(const struct inspect *in, const struct vfmig_record_head *head,
                         struct vfmig_error *reterr)
{
    bool by_table = head->tag == VFMIG_RECORD_MEMORY; /* its pages have checksums of their own */

    return by_table ? 0
                    : vfmig_record_payload_check(head, vfmig_crc32c(0, in->payload, head->length), reterr);
}

/* 1: a record was read, 0: the end. */
static int next_record(struct inspect *in, struct vfmig_error *reterr)
{
    uint8_t bytes[VFMIG_RECORD_HEAD_BYTES];
    struct vfmig_record_head head = {0};
    int ret = fill(in, bytes, sizeof(bytes), NULL, reterr);

    if (ret <= 0)
        return ret;
    if (in->totals->bye)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0, "there are bytes behind its BYE");
    if (!in->begun) { /* a capture may begin anywhere, on any channel */
        in->expect.sequence = vfmig_le64_get(bytes + 16);
        in->expect.channel = vfmig_le32_get(bytes + 32);
        in->begun = true;
    }
    int known = vfmig_record_head_decode(bytes, &in->expect, &head, reterr);
    if (known < 0)
        return known;
    ret = head.length ? fill(in, in->payload, head.length, head.name, reterr) : 1;
    if (ret == 0)
        ret = vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_STREAM, 0, "it is cut before the payload of %s",
                              head.name);
    if (ret > 0)
        ret = check_payload(in, &head, reterr);
    if (ret < 0)
        return ret;
    memcpy(in->name, head.name, sizeof(in->name));
    struct vfmig_inspect_item item = {.offset = in->totals->offset, .name = in->name,
                                      .sequence = head.sequence, .channel = head.channel,
                                      .bytes = head.length, .known = known > 0};
    for (char *at = in->name; *at; at++)
        *at = *at >= ' ' && *at <= '~' ? *at : '?';
    if (known)
        ret = head.tag == VFMIG_RECORD_PACKED ? take_packed(in, &head, &item, reterr)
                                              : take(in, &head, in->payload, &item, reterr);
    in->on_item(in->item_user, &item); /* one that contradicts others is shown, too */
    if (ret < 0)
        return ret;
    in->expect.sequence++;
    in->totals->records++;
    in->totals->offset += sizeof(bytes) + head.length;
    return 1;
}

/* --- a file --- */

static int read_log(struct inspect *in, uint8_t *head, struct vfmig_error *reterr)
{
    struct vfmig_save_entry entry;
    int ret = fill(in, head + sizeof(uint64_t), VFMIG_SAVE_HEAD_BYTES - sizeof(uint64_t),
                   "the file's log", reterr);

    if (ret < 0)
        return ret;
    in->totals->is_file = true;
    for (uint32_t i = 0; i < VFMIG_SAVE_RECORDS; i++) {
        if (vfmig_save_entry_decode(head + i * VFMIG_SAVE_RECORD_BYTES, i, &entry, NULL) <= 0)
            break;
        struct vfmig_inspect_item item = {.offset = (uint64_t)i * VFMIG_SAVE_RECORD_BYTES, .log = true,
                                          .name = vfmig_save_kind_name(entry.kind), .sequence = i,
                                          .bytes = VFMIG_SAVE_RECORD_BYTES, .known = true};
        add_id(in, &item, entry.id);
        add_number(&item, "epoch", entry.epoch);
        add_number(&item, "time-ns", entry.time_ns);
        add_text(&item, "host", entry.host);
        add_number(&item, "pid", entry.pid);
        add_text(&item, "journal", entry.journal);
        if (entry.kind == VFMIG_SAVE_COMPLETE)
            add_number(&item, "file-bytes", entry.length);
        in->on_item(in->item_user, &item);
    }
    ret = vfmig_save_log_decode(head, &in->totals->log, reterr);
    if (ret == 0)
        in->totals->offset = VFMIG_SAVE_HEAD_BYTES;
    return ret;
}

/* What was read to tell a file from a stream belongs to the stream. */
struct prefixed {
    vfmig_inspect_read read;
    void *user;
    uint8_t bytes[sizeof(uint64_t)];
    size_t size, used;
};

static ssize_t read_prefixed(void *user, void *buf, size_t size)
{
    struct prefixed *prefixed = user;
    size_t left = prefixed->size - prefixed->used, part = left < size ? left : size;

    memcpy(buf, prefixed->bytes + prefixed->used, part);
    prefixed->used += part;
    if (part == size || prefixed->size < sizeof(prefixed->bytes))
        return (ssize_t)part;
    ssize_t got = prefixed->read(prefixed->user, (uint8_t *)buf + part, size - part);
    return got < 0 ? got : got + (ssize_t)part;
}

static int conclude(struct inspect *in, struct vfmig_error *reterr)
{
    struct vfmig_inspect_totals *totals = in->totals;
    const struct vfmig_save_log *log = &totals->log;

    totals->in_doubt = totals->doubtful && !in->mapped ? UINT64_MAX : 0;
    for (uint64_t i = 0; in->doubt && i < vfmig_bitmap_words(in->page_count); i++)
        totals->in_doubt += (uint64_t)__builtin_popcountll(in->doubt[i]);
    if (!totals->bye)
        return vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_STREAM, 0, "it ends without a BYE");
    if (totals->is_file && !log->complete.kind)
        return vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_STREAM, 0,
                               "its log does not say that it is complete");
    if (totals->is_file && log->complete.length != totals->offset)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "its log says that it has %" PRIu64 " bytes", log->complete.length);
    if (totals->is_file && log->torn)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "record %u of its log is damaged", log->count);
    if (totals->in_doubt && totals->in_doubt != UINT64_MAX)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0,
                               "%" PRIu64 " pages are altered, and no later copy is right",
                               totals->in_doubt);
    return 0;
}

static int run(struct inspect *in, uint8_t *head, struct vfmig_error *reterr)
{
    struct prefixed prefixed = {.read = in->read, .user = in->read_user};
    ssize_t got = in->read(in->read_user, prefixed.bytes, sizeof(prefixed.bytes));

    if (got < 0)
        return vfmig_error_set(reterr, (int)got, VFMIG_ORIGIN_KERNEL, 0, "cannot be read: %s",
                               strerror((int)-got));
    int ret = 0;
    if (got == sizeof(prefixed.bytes) && vfmig_le64_get(prefixed.bytes) == VFMIG_SAVE_MAGIC) {
        memcpy(head, prefixed.bytes, sizeof(prefixed.bytes));
        ret = read_log(in, head, reterr);
    } else {
        prefixed.size = (size_t)got;
        in->read = read_prefixed;
        in->read_user = &prefixed;
    }
    while (ret == 0) {
        ret = next_record(in, reterr);
        if (ret <= 0)
            break;
        ret = 0;
        if (in->totals->records == UINT64_MAX)
            break;
    }
    struct vfmig_error why = {0};
    int end = conclude(in, &why);
    if (ret == 0 && end && reterr)
        *reterr = why;
    return ret ? ret : end;
}

int vfmig_inspect(vfmig_inspect_read read, void *read_user, vfmig_inspect_item_fn on_item,
                  void *item_user, struct vfmig_inspect_totals *ret_totals,
                  struct vfmig_error *reterr)
{
    struct inspect *in = calloc(1, sizeof(*in));
    uint8_t *head = calloc(1, VFMIG_SAVE_HEAD_BYTES);
    int ret = -ENOMEM;

    memset(ret_totals, 0, sizeof(*ret_totals));
    if (in) {
        *in = (struct inspect){.read = read, .read_user = read_user, .on_item = on_item,
                               .item_user = item_user, .totals = ret_totals,
                               .expect.sender = VFMIG_SIDE_BOTH,
                               .text = malloc(VFMIG_MAX_IDENTITY + 1u),
                               .payload = malloc(PAYLOAD_BYTES),
                               .unpacked = malloc(VFMIG_MAX_MEMORY_RECORD)};
        in->memory = (struct vfmig_memory){.blocks = in->blocks, .block_count = VFMIG_MAX_RAM_BLOCKS};
        for (unsigned i = 0; i < VFMIG_MAX_RAM_BLOCKS; i++)
            in->blocks[i].size = UINT64_MAX;
    }
    if (in && head && in->text && in->payload && in->unpacked)
        ret = run(in, head, reterr);
    else
        vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "no memory to inspect it");
    if (in) {
        free(in->text);
        free(in->payload);
        free(in->unpacked);
        free(in->doubt);
    }
    free(head);
    free(in);
    return ret;
}
