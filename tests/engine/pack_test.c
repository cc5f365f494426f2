/* SPDX-License-Identifier: BSD-3-Clause */
/* Compressed records: what is sent arrives, what lies is refused, and nothing grows. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <zstd.h>

#include "base/le.h"
#include "engine/channel.h"
#include "engine/pack.h"

#define PAGES 8u

struct pair {
    struct vfmig_channel *source, *dest;
    uint8_t from[PAGES * VFMIG_PAGE_SIZE], to[PAGES * VFMIG_PAGE_SIZE];
    struct vfmig_ram_block blocks[2];
    struct vfmig_memory here, there;
};

static int set_up(void **state)
{
    struct pair *p = calloc(1, sizeof(*p));
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds))
        return -1;
    for (unsigned i = 0; i < 2; i++) {
        p->blocks[i] = (struct vfmig_ram_block){.size = sizeof(p->from), .fd = -1,
                                                .host = i ? p->to : p->from};
    }
    p->here = (struct vfmig_memory){.blocks = &p->blocks[0], .block_count = 1};
    p->there = (struct vfmig_memory){.blocks = &p->blocks[1], .block_count = 1};
    assert_int_equal(vfmig_channel_new(fds[0], 0, VFMIG_SIDE_SOURCE, &p->source, NULL), 0);
    assert_int_equal(vfmig_channel_new(fds[1], 0, VFMIG_SIDE_DEST, &p->dest, NULL), 0);
    assert_int_equal(vfmig_channel_set_pack(p->source, 3, NULL), 0);
    vfmig_channel_set_memory(p->dest, &p->there);
    memset(p->to, 0xee, sizeof(p->to));
    *state = p;
    return 0;
}

static int tear_down(void **state)
{
    struct pair *p = *state;

    vfmig_channel_free(p->source);
    vfmig_channel_free(p->dest);
    free(p);
    return 0;
}

static uint64_t sent(const struct pair *p)
{
    struct vfmig_channel_stats stats;

    vfmig_channel_stats(p->source, &stats);
    return stats.bytes_sent;
}

static void move_pages(struct pair *p)
{
    const struct vfmig_page_run runs[2] = {{.page_count = 3}, {.first_page = 5, .page_count = 3}};
    struct vfmig_record record;

    assert_int_equal(vfmig_channel_send_pages(p->source, &p->here, runs, 2, NULL), 0);
    assert_int_equal(vfmig_channel_send_round(p->source, 1, NULL), 0);
    assert_int_equal(vfmig_channel_recv(p->dest, &record, NULL), 0);
    assert_int_equal(record.tag, VFMIG_RECORD_ROUND); /* it counts the pages before it */
    assert_memory_equal(p->to, p->from, 3 * VFMIG_PAGE_SIZE);
    assert_memory_equal(p->to + 5 * VFMIG_PAGE_SIZE, p->from + 5 * VFMIG_PAGE_SIZE, 3 * VFMIG_PAGE_SIZE);
    assert_int_equal(p->to[4 * VFMIG_PAGE_SIZE], 0xee);
}

static void pages_that_are_nearly_empty(void **state)
{
    struct pair *p = *state;

    for (unsigned i = 0; i < PAGES; i++)
        vfmig_le32_put(p->from + i * VFMIG_PAGE_SIZE + 7 * i, i + 1);
    move_pages(p);
    assert_true(sent(p) < 6 * VFMIG_PAGE_SIZE / 20);
}

static void pages_that_cannot_be_shorter(void **state)
{
    struct pair *p = *state;
    uint64_t random = 88172645463325252u;

    for (size_t i = 0; i < sizeof(p->from); i += 8) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        vfmig_le64_put(p->from + i, random);
    }
    move_pages(p);
    assert_true(sent(p) > 6 * VFMIG_PAGE_SIZE && sent(p) < 6 * VFMIG_PAGE_SIZE + 256);
}

static void device_data(void **state)
{
    struct pair *p = *state;
    uint8_t data[50000] = {1, 2, 3};
    struct vfmig_device_piece piece;
    struct vfmig_record record;

    assert_int_equal(vfmig_channel_send_segment(p->source, 2, 9, data, sizeof(data), NULL), 0);
    assert_true(sent(p) < 1000);
    assert_int_equal(vfmig_channel_recv(p->dest, &record, NULL), 0);
    assert_int_equal(record.tag, VFMIG_RECORD_DEVDATA);
    assert_int_equal(record.length, sizeof(data) + VFMIG_DEVICE_PIECE_BYTES);
    assert_int_equal(vfmig_device_piece_decode(record.payload, record.length, &piece, NULL), 0);
    assert_true(piece.device == 2 && piece.segment == 9 && !piece.more);
    assert_memory_equal(record.payload + VFMIG_DEVICE_PIECE_BYTES, data, sizeof(data));
}

/* What the receiver says to a PACKED record of this content. */
static int refused(struct pair *p, uint32_t tag, uint32_t says, const void *frame, size_t size,
                   struct vfmig_error *reterr)
{
    uint8_t *payload = malloc(VFMIG_PACKED_BYTES + size);
    struct vfmig_record record;

    vfmig_le32_put(payload, tag);
    vfmig_le32_put(payload + 4, says);
    memcpy(payload + VFMIG_PACKED_BYTES, frame, size);
    assert_int_equal(vfmig_channel_send(p->source, VFMIG_RECORD_PACKED, payload,
                                        VFMIG_PACKED_BYTES + size, NULL), 0);
    free(payload);
    return vfmig_channel_recv(p->dest, &record, reterr);
}

static size_t compress(uint8_t *frame, size_t room, size_t bytes)
{
    uint8_t *zeros = calloc(1, bytes);
    size_t size = ZSTD_compress(frame, room, zeros, bytes, 19);

    assert_false(ZSTD_isError(size));
    free(zeros);
    return size;
}

enum lie { BOMB, HIDDEN_BOMB, SHORT, TWICE, CUT, OTHER_TAG, TOO_LARGE, NO_FRAME, LIES };

static void whoever_lies_is_refused(void **state)
{
    static uint8_t frame[100000];

    for (enum lie lie = 0; lie < LIES; lie++) {
        struct vfmig_error err = {0};
        uint32_t tag = VFMIG_RECORD_DEVDATA, says = 5000;
        size_t size = compress(frame, sizeof(frame), lie == BOMB || lie == HIDDEN_BOMB ? 64u << 20 : 5000);
        void *own;

        assert_int_equal(set_up(&own), 0);
        if (lie == HIDDEN_BOMB) /* a frame that does not say how much it gives */
            size = size > 6 ? (frame[4] = 0x00, frame[5] = 0x68, size) : size;
        else if (lie == SHORT)
            says = 5001;
        else if (lie == TWICE)
            memcpy(frame + size, frame, size), size *= 2;
        else if (lie == CUT)
            size--;
        else if (lie == OTHER_TAG)
            tag = VFMIG_RECORD_VMSTATE;
        else if (lie == TOO_LARGE)
            says = 16 + VFMIG_MAX_DEVICE_PIECE + 1;
        else if (lie == NO_FRAME)
            memset(frame, 7, size);
        int ret = refused(own, tag, says, frame, size, &err);
        assert_int_equal(ret, lie == OTHER_TAG ? -EPROTO : lie == TOO_LARGE ? -EMSGSIZE : -EBADMSG);
        assert_int_equal(err.origin, VFMIG_ORIGIN_STREAM);
        tear_down(&own);
    }
}

/* Every altered byte: refused, or the same number of bytes, whose checksums are looked at later. */
static void altered_frames_stay_inside(void **state)
{
    uint8_t frame[4096], data[3000], out[3000 + 64];

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * i >> 5);
    size_t size = ZSTD_compress(frame, sizeof(frame), data, sizeof(data), 3);
    for (size_t at = 0; at < size; at++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            memset(out + sizeof(data), 0x5a, 64);
            frame[at] ^= (uint8_t)(1u << bit);
            int ret = vfmig_unpack(frame, size, out, sizeof(data), NULL);
            frame[at] ^= (uint8_t)(1u << bit);
            assert_true(ret == 0 || ret == -EBADMSG);
            for (unsigned i = 0; i < 64; i++)
                assert_int_equal(out[sizeof(data) + i], 0x5a);
        }
    }
    assert_int_equal(vfmig_unpack(frame, size, out, sizeof(data), NULL), 0);
    assert_memory_equal(out, data, sizeof(data));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(pages_that_are_nearly_empty),
        TEST(pages_that_cannot_be_shorter),
        TEST(device_data),
        cmocka_unit_test(whoever_lies_is_refused),
        cmocka_unit_test(altered_frames_stay_inside),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
