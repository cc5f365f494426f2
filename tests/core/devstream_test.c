/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "core/devstream.h"

#define HEADER   VFMIG_DEVSTREAM_HEADER
#define FORMAT   0x4e554c4cu
#define VERSION  3u
#define FRAMES   6u
#define CAPACITY (HEADER + 64u)

/* A save as a device makes it: two portions in SR, three in S, the end mark. */
struct save {
    uint8_t bytes[1024];
    uint32_t start[FRAMES + 1]; /* where each frame begins, and the end */
};

static const enum vfmig_devstream_kind kinds[FRAMES] = {
    VFMIG_DEVSTREAM_PRECOPY, VFMIG_DEVSTREAM_PRECOPY, VFMIG_DEVSTREAM_FINAL,
    VFMIG_DEVSTREAM_FINAL,   VFMIG_DEVSTREAM_FINAL,   VFMIG_DEVSTREAM_END};
static const uint32_t lengths[FRAMES] = {17, 1, 64, 0, 17, 0};

static void make_save_of(struct save *save, uint64_t id, uint32_t format, uint32_t version)
{
    struct vfmig_devstream_enc enc;
    uint32_t at = 0;

    vfmig_devstream_begin(&enc, id, format, version);
    for (unsigned i = 0; i < FRAMES; i++) {
        save->start[i] = at;
        for (uint32_t j = 0; j < lengths[i]; j++)
            save->bytes[at + HEADER + j] = (uint8_t)(i * 31 + j);
        assert_false(vfmig_devstream_sealed_end(&enc));
        int64_t size = vfmig_devstream_seal(&enc, kinds[i], save->bytes + at, lengths[i]);
        assert_int_equal(size, HEADER + lengths[i]);
        at += (uint32_t)size;
    }
    assert_true(vfmig_devstream_sealed_end(&enc));
    save->start[FRAMES] = at;
}

static void make_save(struct save *save)
{
    make_save_of(save, 0x1122334455667788u, FORMAT, VERSION);
}

/* Loads bytes in pieces. Frames that were passed on are checked against the save they came from;
 * returns what the device's Z would end with. */
static int load(struct vfmig_devstream_dec *dec, const uint8_t *bytes, size_t size, size_t piece,
                unsigned *ret_frames)
{
    uint8_t buf[CAPACITY];
    unsigned frames = 0;

    while (size) {
        size_t part = piece < size ? piece : size;
        const uint8_t *data = bytes;
        bytes += part;
        size -= part;
        for (;;) {
            struct vfmig_devstream_frame frame;
            int got = vfmig_devstream_feed(dec, buf, sizeof(buf), &data, &part, &frame, NULL);
            if (got < 0)
                return got;
            if (got == 0)
                break;
            assert_in_range(frames, 0, FRAMES - 1);
            assert_int_equal(frame.kind, kinds[frames]);
            assert_int_equal(frame.length, lengths[frames]);
            assert_int_equal(frame.version, VERSION);
            for (uint32_t j = 0; j < frame.length; j++)
                assert_int_equal(frame.payload[j], (uint8_t)(frames * 31 + j));
            frames++;
        }
        assert_int_equal(part, 0);
    }
    if (ret_frames)
        *ret_frames = frames;
    return vfmig_devstream_finish(dec, NULL);
}

static int load_fresh(const uint8_t *bytes, size_t size, size_t piece)
{
    struct vfmig_devstream_dec dec;

    vfmig_devstream_accept(&dec, FORMAT, 1, VERSION);
    return load(&dec, bytes, size, piece, NULL);
}

/* v1 portions of any size and v2 reads of any size carry the same stream (X7). */
static void a_save_loads_in_any_pieces(void **state)
{
    struct save save;

    make_save(&save);
    for (size_t piece = 1; piece <= save.start[FRAMES]; piece++)
        assert_int_equal(load_fresh(save.bytes, save.start[FRAMES], piece), 0);
}

static void the_same_state_gives_the_same_bytes(void **state)
{
    struct save one, two;

    memset(&one, 0x00, sizeof(one));
    memset(&two, 0xff, sizeof(two));
    make_save(&one);
    make_save(&two);
    assert_memory_equal(one.bytes, two.bytes, one.start[FRAMES]);
}

static void every_truncation_is_noticed(void **state)
{
    struct save save;

    make_save(&save);
    for (uint32_t size = 0; size < save.start[FRAMES]; size++)
        assert_int_equal(load_fresh(save.bytes, size, 64), -ENODATA);
}

static void every_flipped_bit_is_noticed(void **state)
{
    struct save save;

    make_save(&save);
    for (uint32_t bit = 0; bit < save.start[FRAMES] * 8; bit++) {
        save.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_true(load_fresh(save.bytes, save.start[FRAMES], 1024) < 0);
        save.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_int_equal(load_fresh(save.bytes, save.start[FRAMES], 1024), 0);
}

static size_t append(uint8_t *out, size_t at, const struct save *save, unsigned frame)
{
    uint32_t size = save->start[frame + 1] - save->start[frame];

    memcpy(out + at, save->bytes + save->start[frame], size);
    return at + size;
}

/* C16: swapped, left out, doubled: -EILSEQ, before the wrong frame reaches the device. */
static void every_other_order_is_refused(void **state)
{
    uint8_t bytes[2048];
    struct save save;

    make_save(&save);
    for (unsigned a = 0; a < FRAMES; a++) {
        for (unsigned b = a + 1; b < FRAMES; b++) {
            size_t size = 0;
            for (unsigned i = 0; i < FRAMES; i++)
                size = append(bytes, size, &save, i == a ? b : i == b ? a : i);
            assert_int_equal(load_fresh(bytes, size, 100), -EILSEQ);
        }
        size_t without = 0, doubled = 0;
        for (unsigned i = 0; i < FRAMES; i++)
            without = i == a ? without : append(bytes, without, &save, i);
        assert_int_equal(load_fresh(bytes, without, 100), a == FRAMES - 1 ? -ENODATA : -EILSEQ);
        for (unsigned i = 0; i < FRAMES; i++) {
            doubled = append(bytes, doubled, &save, i);
            if (i == a)
                doubled = append(bytes, doubled, &save, i);
        }
        assert_int_equal(load_fresh(bytes, doubled, 100), -EILSEQ);
    }
}

/* The same from a sender that numbers and sums up what may not be: going back, or on after the end. */
static void kinds_that_go_back_are_refused(void **state)
{
    static const enum vfmig_devstream_kind wrong[][2] = {{VFMIG_DEVSTREAM_FINAL, VFMIG_DEVSTREAM_PRECOPY},
                                                         {VFMIG_DEVSTREAM_END, VFMIG_DEVSTREAM_FINAL},
                                                         {VFMIG_DEVSTREAM_END, VFMIG_DEVSTREAM_END}};

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct vfmig_devstream_enc enc;
        struct vfmig_devstream_dec dec;
        struct vfmig_devstream_frame frame;
        uint8_t bytes[2 * HEADER] = {0}, buf[CAPACITY];
        const uint8_t *data = bytes;
        size_t size = sizeof(bytes);

        vfmig_devstream_begin(&enc, 1, FORMAT, VERSION);
        assert_int_equal(vfmig_devstream_seal(&enc, wrong[i][0], bytes, 0), HEADER);
        enc.last_kind = 0;
        assert_int_equal(vfmig_devstream_seal(&enc, wrong[i][1], bytes + HEADER, 0), HEADER);
        vfmig_devstream_accept(&dec, FORMAT, 1, VERSION);
        assert_int_equal(vfmig_devstream_feed(&dec, buf, CAPACITY, &data, &size, &frame, NULL), 1);
        assert_int_equal(vfmig_devstream_feed(&dec, buf, CAPACITY, &data, &size, &frame, NULL), -EILSEQ);
    }
}

/* C66: the data of S is worth nothing without that of SR before it. */
static void the_part_of_s_alone_is_refused(void **state)
{
    struct save save;

    make_save(&save);
    assert_int_equal(load_fresh(save.bytes + save.start[2], save.start[FRAMES] - save.start[2], 64),
                     -EILSEQ);
}

/* One frame of another save in the same place: the same device, an older attempt. */
static void frames_of_two_saves_do_not_mix(void **state)
{
    struct save save, older;
    uint8_t bytes[1024];

    make_save(&save);
    make_save_of(&older, 0x99, FORMAT, VERSION);
    for (unsigned from = 1; from < FRAMES; from++) {
        size_t size = 0;
        for (unsigned i = 0; i < FRAMES; i++)
            size = append(bytes, size, i == from ? &older : &save, i);
        assert_int_equal(load_fresh(bytes, size, 100), -EPROTO);
    }
}

/* The same save twice with other content under one id: the chain of checksums breaks. */
static void a_frame_with_another_past_is_refused(void **state)
{
    struct vfmig_devstream_enc enc;
    struct save save;
    uint8_t first[HEADER + 17] = {0};

    make_save(&save);
    vfmig_devstream_begin(&enc, 0x1122334455667788u, FORMAT, VERSION);
    memset(first + HEADER, 0x77, 17);
    assert_int_equal(vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_PRECOPY, first, 17), sizeof(first));

    struct vfmig_devstream_dec dec;
    struct vfmig_devstream_frame frame;
    uint8_t buf[CAPACITY];
    const uint8_t *data = first;
    size_t size = sizeof(first);
    vfmig_devstream_accept(&dec, FORMAT, VERSION, VERSION);
    assert_int_equal(vfmig_devstream_feed(&dec, buf, CAPACITY, &data, &size, &frame, NULL), 1);
    data = save.bytes + save.start[1];
    size = save.start[2] - save.start[1];
    assert_int_equal(vfmig_devstream_feed(&dec, buf, CAPACITY, &data, &size, &frame, NULL),
                     -EBADMSG);
}

static void another_device_or_version_is_refused(void **state)
{
    const struct {
        uint32_t format, min, max;
        int err;
    } cases[] = {{FORMAT, VERSION, VERSION, 0},     {FORMAT, 1, UINT32_MAX, 0},
                 {FORMAT + 1, 1, 9, -EPROTO},       {FORMAT, 1, VERSION - 1, -EPROTO},
                 {FORMAT, VERSION + 1, 9, -EPROTO}, {~FORMAT, VERSION, VERSION, -EPROTO}};
    struct save save;

    make_save(&save);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct vfmig_devstream_dec dec;
        vfmig_devstream_accept(&dec, cases[i].format, cases[i].min, cases[i].max);
        assert_int_equal(load(&dec, save.bytes, save.start[FRAMES], 50, NULL), cases[i].err);
    }
}

/* A wrong magic or reserved field is foreign, not damaged: the reader says so. */
static void what_is_no_device_stream_is_foreign(void **state)
{
    const uint32_t at[] = {0, 3, 36, 39};
    struct save save;

    for (size_t i = 0; i < 4; i++) {
        make_save(&save);
        save.bytes[at[i]] ^= 1;
        assert_int_equal(load_fresh(save.bytes, save.start[FRAMES], 1024), -EPROTO);
    }
}

static void nothing_may_follow_the_end(void **state)
{
    struct save save;

    make_save(&save);
    for (uint32_t more = 1; more <= HEADER; more++) {
        memcpy(save.bytes + save.start[FRAMES], save.bytes, more);
        assert_int_equal(load_fresh(save.bytes, save.start[FRAMES] + more, 77),
                         more < HEADER ? -ENODATA : -EILSEQ);
    }
}

static void a_frame_larger_than_the_buffer_is_refused(void **state)
{
    struct vfmig_devstream_dec dec;
    struct vfmig_devstream_frame frame;
    struct save save;
    uint8_t buf[CAPACITY];

    make_save(&save);
    for (uint32_t capacity = 0; capacity <= HEADER + 17; capacity++) {
        const uint8_t *data = save.bytes;
        size_t size = save.start[1];
        vfmig_devstream_accept(&dec, FORMAT, 1, VERSION);
        assert_int_equal(vfmig_devstream_feed(&dec, buf, capacity, &data, &size, &frame, NULL),
                         capacity < HEADER + 17 ? -EMSGSIZE : 1);
    }
}

/* A portion that is a whole frame, or begins with one, is taken where it lies; less than that, or the rest of one, is for
 * the other way. */
static void whole_frames_are_taken_where_they_lie(void **state)
{
    struct vfmig_devstream_dec dec;
    struct vfmig_devstream_frame frame;
    struct save save;
    uint8_t buf[CAPACITY];

    make_save(&save);
    vfmig_devstream_accept(&dec, FORMAT, 1, VERSION);
    for (unsigned i = 0; i < FRAMES; i++) {
        const uint8_t *begin = save.bytes + save.start[i], *data = begin;
        size_t whole = save.start[i + 1] - save.start[i], size;
        for (size = 0; size < whole; size++) {
            size_t left = size;
            assert_int_equal(vfmig_devstream_take(&dec, CAPACITY, &data, &left, &frame, NULL), 0);
            assert_true(data == begin && left == size);
        }
        size = whole + i; /* something may follow */
        assert_int_equal(vfmig_devstream_take(&dec, HEADER + lengths[i], &data, &size, &frame, NULL), 1);
        assert_ptr_equal(data, begin + whole);
        assert_int_equal(size, i);
        assert_true(frame.kind == kinds[i] && frame.length == lengths[i]);
        assert_ptr_equal(frame.payload, begin + HEADER);
    }
    assert_int_equal(vfmig_devstream_finish(&dec, NULL), 0);

    /* Not while a part of it was taken in, not without room, and not after a refusal. */
    vfmig_devstream_accept(&dec, FORMAT, 1, VERSION);
    const uint8_t *data = save.bytes;
    size_t size = 1;
    assert_int_equal(vfmig_devstream_feed(&dec, buf, CAPACITY, &data, &size, &frame, NULL), 0);
    size = save.start[FRAMES] - 1;
    assert_int_equal(vfmig_devstream_take(&dec, CAPACITY, &data, &size, &frame, NULL), 0);
    assert_int_equal(vfmig_devstream_feed(&dec, buf, CAPACITY, &data, &size, &frame, NULL), 1);
    assert_int_equal(vfmig_devstream_take(&dec, HEADER - 1, &data, &size, &frame, NULL), 0);
    assert_int_equal(vfmig_devstream_take(&dec, HEADER, &data, &size, &frame, NULL), -EMSGSIZE);
    assert_int_equal(vfmig_devstream_take(&dec, CAPACITY, &data, &size, &frame, NULL), 0);
}

/* The smallest stream of all needs no more room than its only frame. */
static void an_end_mark_needs_room_for_itself_alone(void **state)
{
    struct vfmig_devstream_enc enc;
    struct vfmig_devstream_dec dec;
    struct vfmig_devstream_frame frame;
    uint8_t end[HEADER], buf[HEADER];

    vfmig_devstream_begin(&enc, 1, FORMAT, VERSION);
    assert_int_equal(vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_END, end, 0), HEADER);
    for (int in_place = 0; in_place < 2; in_place++) {
        const uint8_t *data = end;
        size_t size = HEADER;
        vfmig_devstream_accept(&dec, FORMAT, 1, VERSION);
        int got = in_place ? vfmig_devstream_take(&dec, HEADER, &data, &size, &frame, NULL)
                           : vfmig_devstream_feed(&dec, buf, HEADER, &data, &size, &frame, NULL);
        assert_int_equal(got, 1);
        assert_true(frame.kind == VFMIG_DEVSTREAM_END && frame.length == 0 && size == 0);
        assert_int_equal(vfmig_devstream_finish(&dec, NULL), 0);
    }
}

static void a_failure_stays_and_says_why(void **state)
{
    struct vfmig_devstream_dec dec;
    struct vfmig_devstream_frame frame;
    struct vfmig_error err;
    struct save save;
    uint8_t buf[CAPACITY];

    make_save(&save);
    vfmig_devstream_accept(&dec, FORMAT, 1, VERSION);
    const uint8_t *data = save.bytes + save.start[1];
    size_t size = HEADER;
    assert_int_equal(vfmig_devstream_feed(&dec, buf, CAPACITY, &data, &size, &frame, &err),
                     -EILSEQ);
    assert_int_equal(err.origin, VFMIG_ORIGIN_STREAM);
    assert_string_equal(err.text, "device data frame 0: out of order, or one before it is missing");
    data = save.bytes;
    size = save.start[1];
    assert_int_equal(vfmig_devstream_feed(&dec, buf, CAPACITY, &data, &size, &frame, &err),
                     -EILSEQ);
    assert_int_equal(vfmig_devstream_finish(&dec, &err), -EILSEQ);
    vfmig_devstream_accept(&dec, FORMAT, 1, VERSION);
    assert_int_equal(vfmig_devstream_finish(&dec, &err), -ENODATA);
    assert_int_equal(err.code, -ENODATA);
}

static void a_device_cannot_make_a_wrong_stream(void **state)
{
    struct vfmig_devstream_enc enc;
    uint8_t frame[HEADER + 8] = {0};

    vfmig_devstream_begin(&enc, 1, FORMAT, VERSION);
    assert_int_equal(vfmig_devstream_seal(&enc, 0, frame, 8), -EINVAL);
    assert_int_equal(vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_END + 1, frame, 0), -EINVAL);
    assert_int_equal(vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_END, frame, 8), -EINVAL);
    assert_int_equal(vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_FINAL, frame, 8), HEADER + 8);
    assert_int_equal(vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_PRECOPY, frame, 8), -EINVAL);
    assert_int_equal(vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_END, frame, 0), HEADER);
    assert_int_equal(vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_END, frame, 0), -EINVAL);
    assert_int_equal(vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_FINAL, frame, 8), -EINVAL);
    vfmig_devstream_begin(&enc, 1, FORMAT, VERSION);
    enc.sequence = UINT32_MAX - 1;
    assert_int_equal(vfmig_devstream_seal(&enc, VFMIG_DEVSTREAM_FINAL, frame, 8), -EOVERFLOW);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_save_loads_in_any_pieces),
        cmocka_unit_test(the_same_state_gives_the_same_bytes),
        cmocka_unit_test(every_truncation_is_noticed),
        cmocka_unit_test(every_flipped_bit_is_noticed),
        cmocka_unit_test(every_other_order_is_refused),
        cmocka_unit_test(kinds_that_go_back_are_refused),
        cmocka_unit_test(the_part_of_s_alone_is_refused),
        cmocka_unit_test(frames_of_two_saves_do_not_mix),
        cmocka_unit_test(a_frame_with_another_past_is_refused),
        cmocka_unit_test(another_device_or_version_is_refused),
        cmocka_unit_test(what_is_no_device_stream_is_foreign),
        cmocka_unit_test(nothing_may_follow_the_end),
        cmocka_unit_test(a_frame_larger_than_the_buffer_is_refused),
        cmocka_unit_test(whole_frames_are_taken_where_they_lie),
        cmocka_unit_test(an_end_mark_needs_room_for_itself_alone),
        cmocka_unit_test(a_failure_stays_and_says_why),
        cmocka_unit_test(a_device_cannot_make_a_wrong_stream),
    };
    return cmocka_run_group_tests_name("devstream", tests, NULL, NULL);
}
