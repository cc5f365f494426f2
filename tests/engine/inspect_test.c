/* SPDX-License-Identifier: BSD-3-Clause */
/* A stream of every kind of record, whole, cut at every byte, and with altered bytes. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "core/handover.h"
#include "engine/channel.h"
#include "engine/inspect.h"
#include "engine/pack.h"

static uint8_t pages[4 * VFMIG_PAGE_SIZE];
static struct vfmig_ram_block block = {.size = sizeof(pages), .host = pages, .fd = -1};
static const struct vfmig_memory memory = {.blocks = &block, .block_count = 1};

static uint8_t *stream; /* head of a file and all records */
static size_t stream_bytes;
static uint64_t record_count;

struct source {
    const uint8_t *data;
    size_t size, at;
};

static ssize_t read_source(void *user, void *buf, size_t size)
{
    struct source *source = user;
    size_t left = source->size - source->at;

    size = left < size ? left : size;
    memcpy(buf, source->data + source->at, size);
    source->at += size;
    return (ssize_t)size;
}

static void count_item(void *user, const struct vfmig_inspect_item *item)
{
    uint64_t *count = user;

    /* Whatever is printed is printable. */
    for (const char *at = item->name; *at; at++)
        assert_true(*at >= ' ' && *at <= '~');
    for (uint32_t i = 0; i < item->field_count; i++)
        for (const char *at = item->fields[i].text; at && *at; at++)
            assert_true((*at >= ' ' && *at <= '~') || *at == '\n');
    *count += !item->log;
}

static int inspect(const uint8_t *data, size_t size, struct vfmig_inspect_totals *totals,
                   uint64_t *ret_items, struct vfmig_error *err)
{
    struct source source = {.data = data, .size = size};

    *ret_items = 0;
    *err = (struct vfmig_error){0};
    int ret = vfmig_inspect(read_source, &source, count_item, ret_items, totals, err);
    assert_true(ret == err->code);
    assert_true(totals->offset <= size);
    return ret;
}

static void send(struct vfmig_channel *channel, enum vfmig_record_tag tag, const void *data, size_t size)
{
    assert_int_equal(vfmig_channel_send(channel, tag, data, size, NULL), 0);
    record_count++;
}

static void send_all(struct vfmig_channel *channel)
{
    static const char identity[] = "identity=1\nmemory.blocks=1\nmemory.0=0x0+0x4000\n\x1b[31m";
    const struct vfmig_page_run two = {.page_count = 2}, rest = {.first_page = 2, .page_count = 2};
    struct vfmig_hello hello = {.version_min = 1, .version_max = 1, .channel_count = 1,
                                .page_size = VFMIG_PAGE_SIZE};
    struct vfmig_device_end end = {.device = 1, .segments = 2, .bytes = 300};
    uint8_t out[VFMIG_HELLO_BYTES], data[200] = {1};
    struct vfmig_ho_msg msg = {.epoch = 1, .kind = VFMIG_HO_MSG_SEAL};

    vfmig_hello_encode(out, &hello);
    send(channel, VFMIG_RECORD_HELLO, out, sizeof(out));
    send(channel, VFMIG_RECORD_IDENTITY, identity, sizeof(identity) - 1);
    send(channel, VFMIG_RECORD_VMSTATE, "\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0x", 17);
    assert_int_equal(vfmig_channel_send_pages(channel, &memory, &two, 1, NULL), 0);
    assert_int_equal(vfmig_channel_send_zero(channel, &rest, 1, NULL), 0);
    assert_int_equal(vfmig_channel_send_round(channel, 1, NULL), 0);
    assert_int_equal(vfmig_channel_send_segment(channel, 1, 0, data, 200, NULL), 0);
    assert_int_equal(vfmig_channel_send_segment(channel, 1, 1, data, 100, NULL), 0);
    vfmig_device_end_encode(out, &end);
    send(channel, VFMIG_RECORD_DEVEND, out, VFMIG_DEVICE_END_BYTES);
    uint8_t passed[VFMIG_SHARED_BYTES_MAX];
    send(channel, VFMIG_RECORD_RAMFDS, passed,
         vfmig_shared_encode(passed, &(struct vfmig_shared_block){.size = sizeof(pages)}, 1));
    if (vfmig_pack_supported()) {
        assert_int_equal(vfmig_channel_set_pack(channel, 1, NULL), 0);
        assert_int_equal(vfmig_channel_send_pages(channel, &memory, &two, 1, NULL), 0);
        record_count++;
    }
    send(channel, VFMIG_RECORD_HANDOVER, &msg, sizeof(msg));
    send(channel, VFMIG_RECORD_BYE, NULL, 0);
    assert_int_equal(vfmig_channel_send(channel, VFMIG_RECORD_PROGRESS, "late", 4, NULL), -EPIPE);
    record_count += 5;
}

static int make_stream(void **state)
{
    struct vfmig_save_entry entry = {.kind = VFMIG_SAVE_BEGUN, .epoch = 1, .host = "h", .journal = "/j"};
    struct vfmig_channel *channel;
    int fd = memfd_create("stream", MFD_CLOEXEC);

    for (size_t i = 0; i < sizeof(pages) / 2; i++)
        pages[i] = (uint8_t)(i / 64);
    assert_int_equal(lseek(fd, VFMIG_SAVE_HEAD_BYTES, SEEK_SET), VFMIG_SAVE_HEAD_BYTES);
    assert_int_equal(vfmig_channel_new_file(dup(fd), VFMIG_SIDE_SOURCE, &channel, NULL), 0);
    send_all(channel);
    vfmig_channel_free(channel);
    stream_bytes = (size_t)lseek(fd, 0, SEEK_END);
    stream = calloc(1, stream_bytes);
    assert_int_equal(pread(fd, stream, stream_bytes, 0), stream_bytes);
    close(fd);
    vfmig_save_entry_encode(&entry, 0, stream);
    entry.kind = VFMIG_SAVE_COMPLETE;
    entry.length = stream_bytes;
    vfmig_save_entry_encode(&entry, 1, stream + VFMIG_SAVE_RECORD_BYTES);
    return 0;
}

static int free_stream(void **state)
{
    free(stream);
    return 0;
}

static void a_whole_one(void **state)
{
    struct vfmig_inspect_totals t;
    struct vfmig_error err;
    uint64_t items;

    for (int raw = 0; raw < 2; raw++) {
        size_t skip = raw ? VFMIG_SAVE_HEAD_BYTES : 0;
        if (inspect(stream + skip, stream_bytes - skip, &t, &items, &err))
            fail_msg("%s", err.text);
        assert_int_equal(t.records, record_count);
        assert_int_equal(items, record_count);
        assert_int_equal(t.offset, stream_bytes - skip);
        assert_true(t.is_file == !raw && t.bye);
        assert_int_equal(t.pages, vfmig_pack_supported() ? 4 : 2);
        assert_int_equal(t.zero_pages, 2);
        assert_int_equal(t.device_count, 2);
        assert_true(t.devices[1].ended && t.devices[1].segments == 2 && t.devices[1].bytes == 300);
    }
}

static void cut_anywhere(void **state)
{
    struct vfmig_inspect_totals t;
    struct vfmig_error err;
    uint64_t items, last = 0;

    for (size_t size = 0; size < stream_bytes; size += size < 8 || size > VFMIG_SAVE_HEAD_BYTES ? 7 : 4099) {
        assert_true(inspect(stream, size, &t, &items, &err) < 0);
        assert_int_equal(err.origin, VFMIG_ORIGIN_STREAM);
        assert_true(t.records >= last && t.records < record_count);
        assert_int_equal(items, t.records);
        last = t.records;
    }
    assert_int_equal(last, record_count - 1);
}

/* No byte can be altered without being told; the place is never behind the damage. */
static void every_altered_byte(void **state)
{
    uint8_t *copy = malloc(stream_bytes);
    struct vfmig_inspect_totals t;
    struct vfmig_error err;
    uint64_t items;

    memcpy(copy, stream, stream_bytes);
    for (size_t at = 0; at < stream_bytes; at += at < 1100 ? 11 : at < VFMIG_SAVE_HEAD_BYTES ? 4096 : 5) {
        copy[at] ^= (uint8_t)(1u << at % 8);
        int ret = inspect(copy, stream_bytes, &t, &items, &err);
        bool page = t.doubtful > 0; /* a later copy may be right: then nothing is lost */
        assert_true(ret < 0 || page);
        if (ret < 0 && !page && at >= VFMIG_SAVE_HEAD_BYTES)
            assert_true(t.offset <= at);
        copy[at] ^= (uint8_t)(1u << at % 8);
    }
    free(copy);
}

/* Heads and payloads whose checksums are right and whose fields are not: a hostile file. */
static void whatever_is_sealed_again(void **state)
{
    uint8_t *copy = malloc(stream_bytes + 8);
    struct vfmig_inspect_totals t;
    struct vfmig_error err;
    uint64_t items;
    uint32_t random = 1;
    unsigned told = 0;

    for (unsigned round = 0; round < 1500; round++) {
        memcpy(copy, stream, stream_bytes);
        for (size_t at = VFMIG_SAVE_HEAD_BYTES; at + VFMIG_RECORD_HEAD_BYTES <= stream_bytes;) {
            uint8_t *head = copy + at, *payload = head + VFMIG_RECORD_HEAD_BYTES;
            uint32_t length = vfmig_le32_get(stream + at + 24); /* the original's */
            uint32_t tag = vfmig_le32_get(head + 4) & 0xffff, covered = length;

            random = random * 1664525u + 1013904223u;
            if (length && random >> 29 == 0) {
                uint32_t where = (random >> 8) % (length < 64 ? length : 64);
                payload[where] = (uint8_t)(random >> 3 & 1 ? 0xff : random >> 16);
            }
            if (tag == VFMIG_RECORD_MEMORY)
                covered = 8 + 16 * vfmig_le32_get(stream + at + 40) + 4 * vfmig_le32_get(stream + at + 44);
            if (random >> 26 == 1)
                vfmig_le32_put(head + 24, random >> 4);
            if (random >> 26 == 2)
                head[4] = (uint8_t)(random >> 9 & 31);
            vfmig_le32_put(head + 28, vfmig_crc32c(0, payload, covered));
            vfmig_le32_put(head + 36, vfmig_crc32c(0, head, 36));
            at += VFMIG_RECORD_HEAD_BYTES + length;
        }
        told += inspect(copy, stream_bytes, &t, &items, &err) < 0;
    }
    assert_true(told > 300);
    free(copy);
}

/* --- records that are whole and come where they must not --- */

static void record(int fd, uint64_t sequence, enum vfmig_record_tag tag, const uint32_t *words, uint32_t count)
{
    uint8_t head[VFMIG_RECORD_HEAD_BYTES], out[64];
    struct iovec iov[2] = {{head, sizeof(head)}, {out, 4 * count}};

    for (uint32_t i = 0; i < count; i++)
        vfmig_le32_put(out + 4 * i, words[i]);
    vfmig_record_head_encode(head, tag, VFMIG_RECORD_CONTROL, sequence, 4 * count, vfmig_crc32c(0, out, 4 * count));
    assert_int_equal(writev(fd, iov, 2), sizeof(head) + 4 * count);
}

static const struct wrong {
    struct {
        enum vfmig_record_tag tag;
        uint32_t count, words[6];
    } records[3];
    const char *why;
} wrong[] = {
    {{{VFMIG_RECORD_DEVDATA, 5, {0, 1, 0, 0, 7}}, {VFMIG_RECORD_DEVDATA, 5, {0, 0, 0, 0, 7}},
      {VFMIG_RECORD_DEVDATA, 5, {0, 0, 0, 0, 7}}}, "where 1 was due"},
    {{{VFMIG_RECORD_DEVDATA, 5, {3, 0, 1, 0, 7}}}, "segment 1 of device 3 where 0 was due"},
    {{{VFMIG_RECORD_DEVEND, 6, {0}}, {VFMIG_RECORD_DEVDATA, 5, {0, 0, 0, 0, 7}}}, "nothing behind"},
    {{{VFMIG_RECORD_DEVEND, 6, {0, 0, 5}}}, "ends with 5 segments"},
    {{{VFMIG_RECORD_DEVEND, 6, {0}}, {VFMIG_RECORD_DEVEND, 6, {0}}}, ""},
    {{{VFMIG_RECORD_ROUND, 6, {1, 0, 9}}}, ""},
    {{{VFMIG_RECORD_VMSTATE, 4, {9}}, {VFMIG_RECORD_HANDOVER, 6, {1, 2, 3, 4, 1}},
      {VFMIG_RECORD_ZERO, 2, {1, 1}}}, "ZERO"},
    {{{VFMIG_RECORD_ERROR, 3, {5, 2, 0x6f6f6d}}, {VFMIG_RECORD_VMSTATE, 4, {3}}}, ""},
};

static void records_out_of_place(void **state)
{
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct vfmig_inspect_totals t;
        static uint8_t data[4096];
        struct vfmig_error err;
        uint64_t items;
        int fd = memfd_create("wrong", MFD_CLOEXEC);

        for (unsigned k = 0; k < 3 && wrong[i].records[k].tag; k++)
            record(fd, k, wrong[i].records[k].tag, wrong[i].records[k].words, wrong[i].records[k].count);
        ssize_t size = pread(fd, data, sizeof(data), 0);
        close(fd);
        assert_true(size > 0);
        assert_true(inspect(data, (size_t)size, &t, &items, &err) < 0);
        if (!strstr(err.text, wrong[i].why))
            fail_msg("%zu: %s", i, err.text);
        assert_true(vfmig_inspect(read_source, &(struct source){.data = data, .size = (size_t)size}, count_item,
                                  &items, &t, NULL) < 0);
    }
}

/* Maps that cannot be: the pages are counted without them. */
static void maps_that_are_none(void **state)
{
    static const char *const maps[] = {"memory.1=0x0+0x4000\n", "memory.0=0x0+0x7fffffffffff0000\n", "no memory",
                                       "memory.0=0x0+0x4000\nmemory.0=0x0+0x4000\n"};

    for (size_t i = 0; i < sizeof(maps) / sizeof(maps[0]); i++) {
        const struct vfmig_page_run run = {.page_count = 2};
        struct vfmig_inspect_totals t;
        struct vfmig_channel *channel;
        static uint8_t data[16384];
        struct vfmig_error err;
        uint64_t items;
        int fd = memfd_create("map", MFD_CLOEXEC);

        assert_int_equal(vfmig_channel_new_file(dup(fd), VFMIG_SIDE_SOURCE, &channel, NULL), 0);
        assert_int_equal(vfmig_channel_send(channel, VFMIG_RECORD_IDENTITY, maps[i], strlen(maps[i]), NULL), 0);
        assert_int_equal(vfmig_channel_send(channel, VFMIG_RECORD_IDENTITY, maps[i], strlen(maps[i]), NULL), 0);
        assert_int_equal(vfmig_channel_send_pages(channel, &memory, &run, 1, NULL), 0);
        assert_int_equal(vfmig_channel_send(channel, VFMIG_RECORD_BYE, NULL, 0, NULL), 0);
        vfmig_channel_free(channel);
        ssize_t size = pread(fd, data, sizeof(data), 0);
        close(fd);
        assert_true(size > 0);
        assert_int_equal(inspect(data, (size_t)size, &t, &items, &err), 0);
        assert_int_equal(t.pages, 2);
    }
}

static ssize_t read_error(void *user, void *buf, size_t size)
{
    unsigned *good = user;

    return (*good)-- ? read_source(&(struct source){.data = stream, .size = stream_bytes}, buf, size) : -EIO;
}

static void a_file_that_cannot_be_read(void **state)
{
    for (unsigned reads = 0; reads < 3; reads++) {
        struct vfmig_inspect_totals t;
        struct vfmig_error err = {0};
        unsigned good = reads;
        uint64_t items = 0;

        assert_true(vfmig_inspect(read_error, &good, count_item, &items, &t, &err) < 0);
        if (reads == 0)
            assert_int_equal(err.code, -EIO);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_one),
        cmocka_unit_test(cut_anywhere),
        cmocka_unit_test(every_altered_byte),
        cmocka_unit_test(whatever_is_sealed_again),
        cmocka_unit_test(records_out_of_place),
        cmocka_unit_test(maps_that_are_none),
        cmocka_unit_test(a_file_that_cannot_be_read),
    };

    return cmocka_run_group_tests(tests, make_stream, free_stream);
}
