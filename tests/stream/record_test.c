/* SPDX-License-Identifier: BSD-3-Clause */
/* The stream's codec: every record of the table, every bit, every bound. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "stream/record.h"

static const enum vfmig_record_tag tags[] = {
#define STREAM_RECORD(name, tag, min, max, required, senders, channels, text) VFMIG_RECORD_##name,
#include "../tables/stream.def"
#undef STREAM_RECORD
};
#define TAGS (sizeof(tags) / sizeof(tags[0]))

static void seal(uint8_t *head)
{
    vfmig_le32_put(head + 36, vfmig_crc32c(0, head, 36));
}

static enum vfmig_side sender_of(const struct vfmig_record_info *info)
{
    return info->senders & VFMIG_SIDE_SOURCE ? VFMIG_SIDE_SOURCE : VFMIG_SIDE_DEST;
}

static void every_record_survives_the_trip(void **state)
{
    for (size_t i = 0; i < TAGS; i++) {
        const struct vfmig_record_info *info = vfmig_record_info(tags[i]);
        uint8_t bytes[VFMIG_RECORD_HEAD_BYTES];
        struct vfmig_record_head head;
        uint64_t sequence = UINT64_C(0x123456789abc) + i;
        struct vfmig_record_expect expect = {.sender = sender_of(info), .sequence = sequence};

        assert_non_null(info);
        vfmig_record_head_encode(bytes, tags[i], 0, sequence, info->min_bytes, 0xcafe);
        assert_int_equal(vfmig_record_head_decode(bytes, &expect, &head, NULL), 1);
        assert_int_equal(head.tag, tags[i]);
        assert_string_equal(head.name, info->name);
        assert_int_equal(head.sequence, sequence);
        assert_int_equal(head.length, info->min_bytes);
        assert_int_equal(head.payload_crc, 0xcafe);
        assert_int_equal(vfmig_record_payload_check(&head, 0xcafe, NULL), 0);
        assert_int_equal(vfmig_record_payload_check(&head, 0xcaff, NULL), -EBADMSG);
    }
    assert_null(vfmig_record_info(VFMIG_RECORD_NONE));
    assert_null(vfmig_record_info(VFMIG_RECORD_COUNT));
    assert_null(vfmig_record_info(UINT32_MAX));
}

static void every_flipped_bit_of_a_head_is_seen(void **state)
{
    const struct vfmig_record_expect expect = {.sender = VFMIG_SIDE_SOURCE, .sequence = 5};
    uint8_t bytes[VFMIG_RECORD_HEAD_BYTES];
    struct vfmig_record_head head = {.tag = 99};
    struct vfmig_error error;

    vfmig_record_head_encode(bytes, VFMIG_RECORD_ROUND, 0, 5, VFMIG_ROUND_BYTES, 1);
    for (size_t bit = 0; bit < sizeof(bytes) * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(vfmig_record_head_decode(bytes, &expect, &head, &error), -EBADMSG);
        assert_int_equal(error.origin, VFMIG_ORIGIN_STREAM);
        assert_int_equal(head.tag, 99); /* untouched on failure */
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static int decode_as(enum vfmig_record_tag tag, enum vfmig_side sender, uint32_t channel,
                     uint64_t sequence, uint32_t length, struct vfmig_error *reterr)
{
    const struct vfmig_record_expect expect = {sender, channel, 7};
    uint8_t bytes[VFMIG_RECORD_HEAD_BYTES];
    struct vfmig_record_head head;

    vfmig_record_head_encode(bytes, tag, channel, sequence, length, 0);
    return vfmig_record_head_decode(bytes, &expect, &head, reterr);
}

static void bounds_senders_and_channels_are_those_of_the_table(void **state)
{
    for (size_t i = 0; i < TAGS; i++) {
        const struct vfmig_record_info *info = vfmig_record_info(tags[i]);
        enum vfmig_side sender = sender_of(info);
        struct vfmig_error error;

        assert_int_equal(decode_as(tags[i], sender, 0, 7, info->max_bytes, &error), 1);
        assert_int_equal(decode_as(tags[i], sender, 0, 7, info->max_bytes + 1, &error), -EMSGSIZE);
        assert_int_equal(decode_as(tags[i], sender, 0, 7, UINT32_MAX, &error), -EMSGSIZE);
        if (info->min_bytes)
            assert_int_equal(decode_as(tags[i], sender, 0, 7, info->min_bytes - 1, &error),
                             -EMSGSIZE);
        assert_int_equal(decode_as(tags[i], sender, 3, 7, info->min_bytes, &error),
                         info->any_channel ? 1 : -EPROTO);
        for (int side = VFMIG_SIDE_SOURCE; side <= VFMIG_SIDE_DEST; side++) {
            assert_int_equal(decode_as(tags[i], (enum vfmig_side)side, 0, 7, info->min_bytes,
                                       &error), info->senders & side ? 1 : -EPROTO);
            if (!(info->senders & side))
                assert_non_null(strstr(error.text, side == VFMIG_SIDE_SOURCE ? "source" : "destination"));
        }
        assert_non_null(strstr(error.text, info->name));
    }
}

static void replayed_lost_and_reordered_records_are_seen(void **state)
{
    struct vfmig_error error;

    for (uint64_t sequence = 0; sequence < 16; sequence++)
        assert_int_equal(decode_as(VFMIG_RECORD_BYE, VFMIG_SIDE_SOURCE, 0, sequence, 0, &error),
                         sequence == 7 ? 1 : -EBADMSG);
    assert_int_equal(decode_as(VFMIG_RECORD_BYE, VFMIG_SIDE_SOURCE, 0, UINT64_C(7) << 32, 0,
                               &error), -EBADMSG);
    /* Another channel's record with the right sequence. */
    const struct vfmig_record_expect expect = {VFMIG_SIDE_SOURCE, 1, 7};
    uint8_t bytes[VFMIG_RECORD_HEAD_BYTES];
    struct vfmig_record_head head;
    vfmig_record_head_encode(bytes, VFMIG_RECORD_BYE, 2, 7, 0, 0);
    assert_int_equal(vfmig_record_head_decode(bytes, &expect, &head, &error), -EBADMSG);
}

static int decode_unknown(uint16_t tag, uint16_t flags, const char *name, uint32_t length,
                          struct vfmig_error *reterr)
{
    const struct vfmig_record_expect expect = {VFMIG_SIDE_SOURCE, 0, 0};
    uint8_t bytes[VFMIG_RECORD_HEAD_BYTES];
    struct vfmig_record_head head;

    vfmig_record_head_encode(bytes, VFMIG_RECORD_BYE, 0, 0, length, 0);
    vfmig_le16_put(bytes + 4, tag);
    vfmig_le16_put(bytes + 6, flags);
    memset(bytes + 8, 0, 8);
    memcpy(bytes + 8, name, strlen(name));
    seal(bytes);
    head.length = ~length;
    int ret = vfmig_record_head_decode(bytes, &expect, &head, reterr);
    if (ret == 0)
        assert_int_equal(head.length, length); /* so much is skipped */
    return ret;
}

static void unknown_records_are_skipped_or_refused_by_name(void **state)
{
    const uint16_t unknown[] = {0, VFMIG_RECORD_COUNT, 1000, UINT16_MAX};
    struct vfmig_error error;

    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(decode_unknown(unknown[i], 0, "FUTURE", 10, &error), 0);
        assert_int_equal(decode_unknown(unknown[i], 0, "FUTURE", VFMIG_MAX_SKIPPED, &error), 0);
        assert_int_equal(decode_unknown(unknown[i], 0, "FUTURE", VFMIG_MAX_SKIPPED + 1, &error),
                         -EMSGSIZE);
        assert_int_equal(decode_unknown(unknown[i], VFMIG_RECORD_REQUIRED, "FUTURE", 10, &error),
                         -EPROTONOSUPPORT);
        assert_non_null(strstr(error.text, "FUTURE"));
        assert_int_equal(decode_unknown(unknown[i], 2, "FUTURE", 10, &error), -EPROTONOSUPPORT);
        /* A name is the peer's: it must not write control bytes into a terminal. */
        assert_int_equal(decode_unknown(unknown[i], VFMIG_RECORD_REQUIRED, "\033[2J", 10, &error),
                         -EPROTONOSUPPORT);
        assert_null(strchr(error.text, '\033'));
        decode_unknown(unknown[i], VFMIG_RECORD_REQUIRED, "~\x7f!\x80 x", 10, &error);
        assert_non_null(strstr(error.text, "~?!??x"));
    }
    /* A known tag under another name, or without its flag. */
    assert_int_equal(decode_unknown(VFMIG_RECORD_BYE, VFMIG_RECORD_REQUIRED, "HELLO", 0, &error),
                     -EPROTO);
    assert_int_equal(decode_unknown(VFMIG_RECORD_BYE, 0, "BYE", 0, &error), -EPROTO);
}

/* --- Tables of pages --- */

static const struct vfmig_ram_block blocks[2] = {{.size = 100 * 4096}, {.size = 7 * 4096}};
static const struct vfmig_memory memory = {blocks, 2};

static int decode_table(const uint8_t *bytes, size_t size, enum vfmig_record_tag tag,
                        uint32_t length, struct vfmig_page_run *runs, uint32_t *ret_count)
{
    struct vfmig_record_head head = {.tag = (uint16_t)tag, .length = length,
                                     .payload_crc = vfmig_crc32c(0, bytes, size)};
    const uint8_t *crcs;
    size_t table_bytes;
    int rc = vfmig_runs_prefix_decode(bytes, &head, &table_bytes, NULL);

    if (rc == 0 && table_bytes != size)
        return -E2BIG;
    return rc < 0 ? rc
                  : vfmig_runs_decode(bytes, size, &head, &memory, runs, ret_count, &crcs, NULL);
}

static void tables_survive_the_trip_and_stay_inside_the_map(void **state)
{
    uint8_t *bytes = calloc(1, VFMIG_MAX_RUNS_BYTES);
    uint32_t *crcs = calloc(VFMIG_MAX_MEMORY_PAGES, sizeof(*crcs));
    struct vfmig_page_run runs[VFMIG_MAX_MEMORY_RUNS];
    uint32_t seed = 5, count;

    assert_true(bytes && crcs);
    for (int turn = 0; turn < 4000; turn++) {
        struct vfmig_page_run in[3];
        uint32_t run_count = 1 + (uint32_t)turn % 3, pages = 0;
        bool inside = true;
        for (uint32_t i = 0; i < run_count; i++) {
            seed = seed * 1103515245u + 12345u;
            in[i].block = (seed >> 8) % 16 == 0 ? 2 : (seed >> 16) & 1;
            in[i].page_count = (seed >> 20) % 9;
            in[i].first_page = (seed >> 24) % 8 == 0 ? UINT64_MAX - 3 : (seed >> 10) % 110;
            uint64_t size = in[i].block < 2 ? blocks[in[i].block].size / 4096 : 0;
            inside = inside && in[i].page_count && in[i].first_page < size &&
                     in[i].first_page + in[i].page_count <= size;
            pages += in[i].page_count;
        }
        size_t size = vfmig_runs_encode(bytes, in, run_count, crcs);
        int rc = decode_table(bytes, size, VFMIG_RECORD_MEMORY,
                              (uint32_t)(size + pages * 4096), runs, &count);
        assert_int_equal(rc == 0, inside);
        if (inside) {
            assert_int_equal(count, run_count);
            for (uint32_t i = 0; i < run_count; i++) {
                assert_int_equal(runs[i].block, in[i].block);
                assert_int_equal(runs[i].page_count, in[i].page_count);
                assert_int_equal(runs[i].first_page, in[i].first_page);
            }
        }
        size = vfmig_runs_encode(bytes, in, run_count, /* page_crcs= */ NULL);
        rc = decode_table(bytes, size, VFMIG_RECORD_ZERO, (uint32_t)size, runs, &count);
        assert_int_equal(rc == 0, inside);
    }
    free(bytes);
    free(crcs);
}

/* Each page has its own checksum, in the order of the pages; a table of zero pages has none. */
static void checksums_of_pages_survive_the_trip(void **state)
{
    const struct vfmig_page_run in[2] = {{.block = 1, .page_count = 2, .first_page = 3},
                                         {.block = 0, .page_count = 3, .first_page = 0}};
    const uint32_t crcs[5] = {0x11, 0x22334455, UINT32_MAX, 0, 0x99};
    uint8_t bytes[VFMIG_MAX_RUNS_BYTES];
    struct vfmig_page_run out[VFMIG_MAX_MEMORY_RUNS];
    const uint8_t *got = NULL;
    uint32_t count;
    size_t size;

    memset(bytes, 0xee, sizeof(bytes));
    size = vfmig_runs_encode(bytes, in, 2, crcs);
    struct vfmig_record_head head = {.tag = VFMIG_RECORD_MEMORY, .length = (uint32_t)size + 5 * 4096,
                                     .payload_crc = vfmig_crc32c(0, bytes, size)};
    assert_int_equal(vfmig_runs_decode(bytes, size, &head, &memory, out, &count, &got, NULL), 0);
    assert_ptr_equal(got + sizeof(crcs), bytes + size);
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(vfmig_le32_get(got + 4 * i), crcs[i]);
    assert_int_equal(vfmig_runs_encode(bytes, in, 2, NULL) + sizeof(crcs), size);
}

static void tables_that_lie_about_their_size_are_refused(void **state)
{
    const struct vfmig_page_run run = {.block = 0, .page_count = 4, .first_page = 1};
    uint8_t bytes[VFMIG_MAX_RUNS_BYTES] = {0};
    const uint32_t crcs[4] = {1, 2, 3, 4};
    struct vfmig_page_run runs[VFMIG_MAX_MEMORY_RUNS];
    uint32_t count;
    size_t size = vfmig_runs_encode(bytes, &run, 1, crcs);
    uint32_t length = (uint32_t)size + 4 * 4096;

    assert_int_equal(decode_table(bytes, size, VFMIG_RECORD_MEMORY, length, runs, &count), 0);
    for (int by = -4096; by <= 4096; by += 16)
        if (by)
            assert_int_equal(decode_table(bytes, size, VFMIG_RECORD_MEMORY,
                                          length + (uint32_t)by, runs, &count), -EBADMSG);
    const uint32_t counts[] = {0, 2, 5, VFMIG_MAX_MEMORY_RUNS + 1, UINT32_MAX};
    for (size_t i = 0; i < 5; i++) {
        vfmig_le32_put(bytes, counts[i]);
        assert_true(decode_table(bytes, size, VFMIG_RECORD_MEMORY, length, runs, &count) < 0);
        vfmig_le32_put(bytes, 1);
        vfmig_le32_put(bytes + 4, counts[i]);
        assert_true(decode_table(bytes, size, VFMIG_RECORD_MEMORY, length, runs, &count) < 0);
        vfmig_le32_put(bytes + 4, 4);
    }
    /* More pages in the runs than in the sum, and fewer. */
    for (uint32_t pages = 0; pages < 9; pages++) {
        vfmig_le32_put(bytes + 8 + 4, pages);
        assert_int_equal(decode_table(bytes, size, VFMIG_RECORD_MEMORY, length, runs, &count) == 0,
                         pages == 4);
    }
}

static int prefix(enum vfmig_record_tag tag, uint32_t runs, uint32_t pages)
{
    bool with_bytes = tag == VFMIG_RECORD_MEMORY;
    struct vfmig_record_head head = {.tag = (uint16_t)tag};
    uint8_t in[VFMIG_RUNS_PREFIX_BYTES];
    size_t bytes;

    head.length = VFMIG_RUNS_PREFIX_BYTES + VFMIG_RUN_BYTES * runs +
                  (with_bytes ? (VFMIG_PAGE_CRC_BYTES + VFMIG_PAGE_SIZE) * pages : 0);
    vfmig_le32_put(in, runs);
    vfmig_le32_put(in + 4, pages);
    return vfmig_runs_prefix_decode(in, &head, &bytes, NULL);
}

/* Even when the lengths agree. */
static void tables_are_bounded(void **state)
{
    const uint32_t runs = VFMIG_MAX_MEMORY_RUNS, pages = VFMIG_MAX_MEMORY_PAGES;

    assert_int_equal(prefix(VFMIG_RECORD_MEMORY, 1, 1), 0);
    assert_int_equal(prefix(VFMIG_RECORD_MEMORY, 1, pages), 0);
    assert_int_equal(prefix(VFMIG_RECORD_MEMORY, 1, pages + 1), -EBADMSG);
    assert_int_equal(prefix(VFMIG_RECORD_ZERO, 1, pages + 1), 0);
    assert_int_equal(prefix(VFMIG_RECORD_ZERO, runs, runs), 0);
    assert_int_equal(prefix(VFMIG_RECORD_ZERO, runs, runs - 1), -EBADMSG);
    assert_int_equal(prefix(VFMIG_RECORD_ZERO, runs + 1, runs + 1), -EBADMSG);
    assert_int_equal(prefix(VFMIG_RECORD_ZERO, 0, 0), -EBADMSG);
}

static void a_flipped_bit_of_a_table_is_seen_before_a_page_is_placed(void **state)
{
    const struct vfmig_page_run run = {.block = 0, .page_count = 1, .first_page = 1};
    const uint32_t crc = 77;
    uint8_t bytes[VFMIG_MAX_RUNS_BYTES];
    size_t size = vfmig_runs_encode(bytes, &run, 1, &crc);
    struct vfmig_record_head head = {.tag = VFMIG_RECORD_MEMORY, .length = (uint32_t)size + 4096,
                                     .payload_crc = vfmig_crc32c(0, bytes, size)};
    struct vfmig_page_run out = {.block = 55};
    const uint8_t *crcs;
    uint32_t count;

    for (size_t bit = 0; bit < size * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(vfmig_runs_decode(bytes, size, &head, &memory, &out, &count, &crcs, NULL),
                         -EBADMSG);
        assert_int_equal(out.block, 55);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

/* --- Small payloads --- */

static void hello_is_checked_field_by_field(void **state)
{
    struct vfmig_hello hello = {.version_min = 1, .version_max = 3, .channel = 2,
                                .channel_count = 3, .page_size = 4096};
    struct vfmig_hello out;
    uint8_t bytes[VFMIG_HELLO_BYTES];
    struct vfmig_error error;

    memset(hello.migration_id, 0x5a, 16);
    memset(hello.token, 0xa5, 16);
    vfmig_hello_encode(bytes, &hello);
    assert_int_equal(vfmig_hello_decode(bytes, sizeof(bytes), &out, &error), 0);
    assert_memory_equal(&out, &hello, sizeof(out));
    for (size_t cut = 0; cut < sizeof(bytes); cut++)
        assert_int_equal(vfmig_hello_decode(bytes, cut, &out, &error), -EBADMSG);
    const struct {
        size_t at;
        uint32_t value;
        int code;
    } bad[] = {
        {0, 2, -EPROTONOSUPPORT}, {0, 4, -EBADMSG},   {4, 0, -EBADMSG},
        {40, 3, -EBADMSG},        {44, 0, -EBADMSG},  {44, VFMIG_MAX_CHANNELS + 1, -EBADMSG},
        {48, 65536, -EPROTONOSUPPORT}, {52, 1, -EBADMSG},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        vfmig_hello_encode(bytes, &hello);
        vfmig_le32_put(bytes + bad[i].at, bad[i].value);
        assert_int_equal(vfmig_hello_decode(bytes, sizeof(bytes), &out, &error), bad[i].code);
        assert_int_equal(error.origin, VFMIG_ORIGIN_STREAM);
    }
    /* As many channels as there may be, and one version only. */
    hello.version_min = hello.version_max = VFMIG_STREAM_VERSION;
    hello.channel_count = VFMIG_MAX_CHANNELS;
    hello.channel = VFMIG_MAX_CHANNELS - 1;
    vfmig_hello_encode(bytes, &hello);
    assert_int_equal(vfmig_hello_decode(bytes, sizeof(bytes), &out, &error), 0);
    assert_memory_equal(&out, &hello, sizeof(out));
}

static void round_survives_the_trip(void **state)
{
    const struct vfmig_round round = {UINT64_C(1) << 40, UINT64_C(2) << 41, UINT64_C(3) << 42};
    uint8_t bytes[VFMIG_ROUND_BYTES + 1];
    struct vfmig_round got;

    memset(bytes, 0xee, sizeof(bytes));
    memset(&got, 0xee, sizeof(got));
    vfmig_round_encode(bytes, &round);
    assert_int_equal(bytes[VFMIG_ROUND_BYTES], 0xee);
    assert_int_equal(vfmig_round_decode(bytes, VFMIG_ROUND_BYTES, &got, NULL), 0);
    assert_memory_equal(&got, &round, sizeof(got));
    assert_int_equal(vfmig_round_decode(bytes, VFMIG_ROUND_BYTES - 1, &got, NULL), -EBADMSG);
    assert_int_equal(vfmig_round_decode(bytes, VFMIG_ROUND_BYTES + 1, &got, NULL), -EBADMSG);
}

static void device_records_survive_the_trip(void **state)
{
    uint8_t bytes[VFMIG_DEVICE_END_BYTES + 1] = {0};
    struct vfmig_device_piece piece;
    struct vfmig_device_end end;

    for (int more = 0; more < 2; more++) {
        vfmig_device_piece_encode(bytes, &(struct vfmig_device_piece){255, more, 1ull << 40});
        assert_int_equal(vfmig_device_piece_decode(bytes, 17, &piece, NULL), 0);
        assert_int_equal(piece.device, 255);
        assert_int_equal(piece.more, more);
        assert_int_equal(piece.segment, 1ull << 40);
        assert_int_equal(vfmig_device_piece_decode(bytes, 16, &piece, NULL), -EBADMSG);
    }
    vfmig_le32_put(bytes + 4, 2);
    assert_int_equal(vfmig_device_piece_decode(bytes, 17, &piece, NULL), -EBADMSG);
    vfmig_device_piece_encode(bytes, &(struct vfmig_device_piece){VFMIG_MAX_DEVICES, 0, 0});
    assert_int_equal(vfmig_device_piece_decode(bytes, 17, &piece, NULL), -EBADMSG);

    vfmig_device_end_encode(bytes, &(struct vfmig_device_end){3, 4, 5});
    assert_int_equal(vfmig_device_end_decode(bytes, 24, &end, NULL), 0);
    assert_true(end.device == 3 && end.segments == 4 && end.bytes == 5);
    assert_int_equal(vfmig_device_end_decode(bytes, 23, &end, NULL), -EBADMSG);
    vfmig_le32_put(bytes, VFMIG_MAX_DEVICES);
    assert_int_equal(vfmig_device_end_decode(bytes, 24, &end, NULL), -EBADMSG);
}

static void passed_memory_survives_the_trip(void **state)
{
    const struct vfmig_shared_block sent[2] = {{0, 4096, 8192}, {1ull << 32, 1ull << 40, 0}};
    const struct vfmig_shared_block bad[] = {
        {1, 4096, 0},         {0, 4095, 0},    {0, 4096, 1},
        {0, 0, 0},            {0, 1ull << 63, 0}, {0, 4096, 0x7ffffffffffff000},
    };
    uint8_t bytes[VFMIG_SHARED_BYTES_MAX];
    struct vfmig_shared_block got[VFMIG_MAX_MSG_FDS];
    uint32_t count = 0;

    assert_int_equal(vfmig_shared_encode(bytes, sent, 2), 56);
    assert_int_equal(vfmig_shared_decode(bytes, 56, got, &count, NULL), 0);
    assert_int_equal(count, 2);
    assert_memory_equal(got, sent, sizeof(sent));
    for (size_t size = 0; size < 56; size++)
        assert_int_equal(vfmig_shared_decode(bytes, size, got, &count, NULL), -EBADMSG);
    vfmig_le32_put(bytes + 4, 1);
    assert_int_equal(vfmig_shared_decode(bytes, 56, got, &count, NULL), -EBADMSG);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(vfmig_shared_decode(bytes, vfmig_shared_encode(bytes, &bad[i], 1), got,
                                             &count, NULL), -EBADMSG);
    vfmig_le32_put(bytes, VFMIG_MAX_MSG_FDS + 1);
    assert_int_equal(vfmig_shared_decode(bytes, sizeof(bytes), got, &count, NULL), -EBADMSG);
}

/* As many blocks as one message takes, one that ends where files do; and one more or less than there are is a lie. */
static void passed_memory_goes_up_to_its_bounds(void **state)
{
    struct vfmig_shared_block sent[VFMIG_MAX_MSG_FDS] = {{0}}, got[VFMIG_MAX_MSG_FDS + 1];
    uint8_t bytes[VFMIG_SHARED_BYTES_MAX + 24] = {0};
    uint32_t count = 0;

    for (uint64_t i = 0; i < VFMIG_MAX_MSG_FDS; i++)
        sent[i] = (struct vfmig_shared_block){i << 20, 4096 << i % 4, i << 12};
    sent[1].fd_offset = INT64_MAX - 4095 - sent[1].size; /* the last page of a file would be cut */
    memset(bytes, 0xab, sizeof(bytes));
    size_t size = vfmig_shared_encode(bytes, sent, VFMIG_MAX_MSG_FDS);
    assert_int_equal(size, VFMIG_SHARED_BYTES_MAX);
    for (size_t at = size; at < sizeof(bytes); at++)
        assert_int_equal(bytes[at], 0xab);
    memset(got, 0x77, sizeof(got));
    assert_int_equal(vfmig_shared_decode(bytes, size, got, &count, NULL), 0);
    assert_int_equal(count, VFMIG_MAX_MSG_FDS);
    assert_memory_equal(got, sent, sizeof(sent));
    assert_int_equal(got[VFMIG_MAX_MSG_FDS].gpa, UINT64_C(0x7777777777777777)); /* none behind */
    for (uint32_t said = VFMIG_MAX_MSG_FDS - 1; said <= VFMIG_MAX_MSG_FDS + 1; said += 2) {
        vfmig_le32_put(bytes, said);
        assert_int_equal(vfmig_shared_decode(bytes, size, got, &count, NULL), -EBADMSG);
    }
    memset(bytes + size, 0, 24);
    vfmig_le64_put(bytes + size + 8, VFMIG_PAGE_SIZE);
    assert_int_equal(vfmig_shared_decode(bytes, size + 24, got, &count, NULL), -EBADMSG); /* one too many, whole */
    assert_int_equal(vfmig_shared_decode(bytes, vfmig_shared_encode(bytes, sent, 0), got, &count, NULL), -EBADMSG);
}

static void credit_survives_the_trip(void **state)
{
    uint8_t bytes[VFMIG_CREDIT_BYTES];
    struct vfmig_credit credit;

    vfmig_credit_encode(bytes, &(struct vfmig_credit){255, 1ull << 40});
    assert_int_equal(vfmig_credit_decode(bytes, 16, &credit, NULL), 0);
    assert_true(credit.device == 255 && credit.bytes == 1ull << 40);
    assert_int_equal(vfmig_credit_decode(bytes, 15, &credit, NULL), -EBADMSG);
    vfmig_le32_put(bytes + 4, 1);
    assert_int_equal(vfmig_credit_decode(bytes, 16, &credit, NULL), -EBADMSG);
    vfmig_credit_encode(bytes, &(struct vfmig_credit){VFMIG_MAX_DEVICES, 0});
    assert_int_equal(vfmig_credit_decode(bytes, 16, &credit, NULL), -EBADMSG);

    /* All windows together stay within their limit, and so does each. */
    for (uint32_t count = 0; count <= VFMIG_MAX_DEVICES; count++) {
        uint64_t window = vfmig_device_window(count);
        assert_true(window > 0 && window <= VFMIG_WINDOW_MAX);
        assert_true(window * count <= VFMIG_WINDOW_ALL);
    }
}

static void what_is_packed_says_what_it_was(void **state)
{
    struct vfmig_packed packed = {.tag = VFMIG_RECORD_DEVDATA, .bytes = 5000}, got = {0};
    uint8_t bytes[VFMIG_PACKED_BYTES + 1];

    memset(bytes, 0xee, sizeof(bytes));
    vfmig_packed_encode(bytes, &packed);
    assert_int_equal(vfmig_packed_decode(bytes, sizeof(bytes), &got, NULL), 0);
    assert_int_equal(got.tag, packed.tag);
    assert_int_equal(got.bytes, packed.bytes);
    assert_int_not_equal(vfmig_packed_decode(bytes, VFMIG_PACKED_BYTES, &got, NULL), 0);
    for (uint32_t tag = 0; tag <= VFMIG_RECORD_COUNT; tag++) {
        vfmig_packed_encode(bytes, &(struct vfmig_packed){.tag = tag, .bytes = 5000});
        assert_int_equal(vfmig_packed_decode(bytes, sizeof(bytes), &got, NULL),
                         tag == VFMIG_RECORD_MEMORY || tag == VFMIG_RECORD_DEVDATA ? 0 : -EPROTO);
    }
}

static void texts_are_bounded_terminated_and_printable(void **state)
{
    uint8_t bytes[VFMIG_MAX_STREAM_TEXT];
    struct vfmig_verdict verdict = {.accept = true, .text = "be welcome"}, got_verdict = {.accept = false};
    struct vfmig_error error = {.code = -ENOSPC, .origin = VFMIG_ORIGIN_KERNEL, .text = "disk full"};
    struct vfmig_error got;
    size_t size = vfmig_verdict_encode(bytes, &verdict);

    assert_int_equal(vfmig_verdict_decode(bytes, size, &got_verdict, NULL), 0);
    assert_true(got_verdict.accept);
    assert_string_equal(got_verdict.text, "be welcome");
    verdict.accept = false;
    size = vfmig_verdict_encode(bytes, &verdict);
    assert_int_equal(vfmig_verdict_decode(bytes, size, &got_verdict, NULL), 0);
    assert_false(got_verdict.accept);
    assert_int_equal(vfmig_verdict_decode(bytes, 3, &got_verdict, NULL), -EBADMSG);
    assert_int_equal(vfmig_verdict_decode(bytes, 4, &got_verdict, NULL), 0); /* without a text */
    assert_string_equal(got_verdict.text, "");
    vfmig_le32_put(bytes, 2);
    assert_int_equal(vfmig_verdict_decode(bytes, size, &got_verdict, NULL), -EBADMSG);

    size = vfmig_stream_error_encode(bytes, &error);
    memset(&got, 0xee, sizeof(got));
    assert_int_equal(vfmig_stream_error_decode(bytes, size, &got, NULL), 0);
    assert_int_equal(got.state, 0);
    assert_int_equal(got.code, -ENOSPC);
    assert_int_equal(got.origin, VFMIG_ORIGIN_KERNEL);
    assert_string_equal(got.text, "disk full");
    memset(bytes + 8, '\033', sizeof(bytes) - 8);
    assert_int_equal(vfmig_stream_error_decode(bytes, sizeof(bytes), &got, NULL), 0);
    assert_int_equal(strlen(got.text), sizeof(got.text) - 1);
    assert_null(strchr(got.text, '\033'));
    const uint32_t codes[] = {0, 4096, UINT32_MAX};
    for (size_t i = 0; i < 3; i++) {
        vfmig_le32_put(bytes, codes[i]);
        assert_int_equal(vfmig_stream_error_decode(bytes, 16, &got, NULL), -EBADMSG);
    }
    const uint32_t known[] = {1, 4095}; /* what an errno can be */
    for (size_t i = 0; i < 2; i++) {
        vfmig_le32_put(bytes, known[i]);
        assert_int_equal(vfmig_stream_error_decode(bytes, 16, &got, NULL), 0);
        assert_int_equal(got.code, -(int)known[i]);
    }
    vfmig_le32_put(bytes, 5);
    vfmig_le32_put(bytes + 4, VFMIG_ORIGIN_COUNT);
    assert_int_equal(vfmig_stream_error_decode(bytes, 16, &got, NULL), -EBADMSG);
    assert_int_equal(vfmig_stream_error_decode(bytes, 7, &got, NULL), -EBADMSG);
    vfmig_le32_put(bytes + 4, VFMIG_ORIGIN_COUNT - 1);
    assert_int_equal(vfmig_stream_error_decode(bytes, 8, &got, NULL), 0); /* without a text */
    assert_string_equal(got.text, "");
}

static void ping_and_pong_survive_the_trip(void **state)
{
    const struct vfmig_ping ping = {.id = UINT64_MAX - 1, .sent_ns = UINT64_C(0x1122334455667788)};
    const struct vfmig_pong pong = {5, UINT64_C(6) << 33, 7, 7};
    uint8_t bytes[VFMIG_PONG_BYTES];
    struct vfmig_ping got = {0};
    struct vfmig_pong back = {0};

    memset(bytes, 0xee, sizeof(bytes));
    vfmig_ping_encode(bytes, &ping);
    assert_int_equal(vfmig_ping_decode(bytes, VFMIG_PING_BYTES, &got, NULL), 0);
    assert_memory_equal(&got, &ping, sizeof(got));
    assert_int_equal(vfmig_ping_decode(bytes, VFMIG_PING_BYTES - 1, &got, NULL), -EBADMSG);
    vfmig_pong_encode(bytes, &pong);
    assert_int_equal(vfmig_pong_decode(bytes, sizeof(bytes), &back, NULL), 0);
    assert_memory_equal(&back, &pong, sizeof(back));
    assert_int_equal(vfmig_pong_decode(bytes, sizeof(bytes) - 1, &back, NULL), -EBADMSG);
}

static void the_clock_offset_is_inside_its_error(void **state)
{
    struct vfmig_clock_offset clock = {0};
    uint32_t seed = 9;

    /* The peer's clock is 5 s ahead; requests and answers take whatever they like. */
    for (int i = 0; i < 1000; i++) {
        uint64_t sent = 1000000u + (uint64_t)i * 1000000u;
        seed = seed * 1103515245u + 12345u;
        uint64_t out = (seed >> 8) % 50000, held = (seed >> 4) % 9000, back = (seed >> 12) % 50000;
        struct vfmig_pong pong = {.id = 1, .sent_ns = sent,
                                  .received_ns = sent + out + 5000000000u,
                                  .answered_ns = sent + out + held + 5000000000u};
        uint8_t bytes[VFMIG_PONG_BYTES];
        vfmig_pong_encode(bytes, &pong);
        pong = (struct vfmig_pong){0};
        assert_int_equal(vfmig_pong_decode(bytes, sizeof(bytes), &pong, NULL), 0);
        assert_int_equal(pong.sent_ns, sent);
        vfmig_clock_offset_add(&clock, &pong, sent + out + held + back);
        assert_true((uint64_t)llabs(clock.offset_ns - 5000000000ll) <= clock.error_ns);
    }
    assert_true(clock.rtt_ns < 20000);
    assert_int_equal(clock.samples, 1000);
    struct vfmig_clock_offset before = clock;
    /* Held longer than the whole trip took: not a sample. */
    vfmig_clock_offset_add(&clock, &(struct vfmig_pong){1, 100, 0, 1000}, 200);
    assert_int_equal(clock.rtt_ns, before.rtt_ns);
    /* Nor is it the first one; what takes no time at all is, and of two equally good ones the first counts. */
    clock = (struct vfmig_clock_offset){0};
    vfmig_clock_offset_add(&clock, &(struct vfmig_pong){1, 100, 0, 1000}, 200);
    assert_true(clock.rtt_ns == 0 && clock.error_ns == 0 && clock.offset_ns == 0);
    vfmig_clock_offset_add(&clock, &(struct vfmig_pong){1, 100, 50, 50}, 100);
    assert_true(clock.error_ns == 1 && clock.offset_ns == -50);
    clock = (struct vfmig_clock_offset){0};
    vfmig_clock_offset_add(&clock, &(struct vfmig_pong){1, 100, 1000, 1000}, 120);
    vfmig_clock_offset_add(&clock, &(struct vfmig_pong){1, 200, 1105, 1105}, 220);
    assert_true(clock.rtt_ns == 20 && clock.offset_ns == 890);
    uint8_t bytes[VFMIG_PONG_BYTES];
    struct vfmig_pong out;
    vfmig_pong_encode(bytes, &(struct vfmig_pong){1, 2, 10, 9});
    assert_int_equal(vfmig_pong_decode(bytes, sizeof(bytes), &out, NULL), -EBADMSG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_record_survives_the_trip),
        cmocka_unit_test(every_flipped_bit_of_a_head_is_seen),
        cmocka_unit_test(bounds_senders_and_channels_are_those_of_the_table),
        cmocka_unit_test(replayed_lost_and_reordered_records_are_seen),
        cmocka_unit_test(unknown_records_are_skipped_or_refused_by_name),
        cmocka_unit_test(tables_survive_the_trip_and_stay_inside_the_map),
        cmocka_unit_test(checksums_of_pages_survive_the_trip),
        cmocka_unit_test(tables_that_lie_about_their_size_are_refused),
        cmocka_unit_test(tables_are_bounded),
        cmocka_unit_test(a_flipped_bit_of_a_table_is_seen_before_a_page_is_placed),
        cmocka_unit_test(hello_is_checked_field_by_field),
        cmocka_unit_test(round_survives_the_trip),
        cmocka_unit_test(device_records_survive_the_trip),
        cmocka_unit_test(passed_memory_survives_the_trip),
        cmocka_unit_test(passed_memory_goes_up_to_its_bounds),
        cmocka_unit_test(credit_survives_the_trip),
        cmocka_unit_test(what_is_packed_says_what_it_was),
        cmocka_unit_test(texts_are_bounded_terminated_and_printable),
        cmocka_unit_test(ping_and_pong_survive_the_trip),
        cmocka_unit_test(the_clock_offset_is_inside_its_error),
    };
    return cmocka_run_group_tests_name("record", tests, NULL, NULL);
}
