/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "core/window.h"

#define DATA     4096u
#define CAPACITY 1024u
#define COUNT    3u

static struct vfmig_window opened(enum vfmig_window_mode mode)
{
    struct vfmig_window win;

    assert_int_equal(vfmig_window_init(&win, DATA, CAPACITY, COUNT), 0);
    vfmig_window_open(&win, mode);
    return win;
}

/* The client's side of one portion; the device fills `size` bytes. */
static uint64_t take_portion(struct vfmig_window *win, uint64_t left, uint64_t size)
{
    uint64_t at, got;

    assert_int_equal(vfmig_window_read_pending(win, left), left);
    assert_int_equal(vfmig_window_read_offset(win, &at), -EAGAIN);
    assert_int_equal(vfmig_window_prepared(win, size), 0);
    assert_int_equal(vfmig_window_read_offset(win, &at), 0);
    assert_int_equal(at, DATA + vfmig_window_at(win));
    assert_int_equal(vfmig_window_read_size(win, &got), 0);
    return got;
}

static void a_window_needs_room(void **state)
{
    struct vfmig_window win;
    uint64_t at;

    assert_int_equal(vfmig_window_init(&win, 31, 1, 1), -EINVAL);
    assert_int_equal(vfmig_window_init(&win, 32, 0, 1), -EINVAL);
    assert_int_equal(vfmig_window_init(&win, 32, INT64_MAX, 1), -EINVAL);
    assert_int_equal(vfmig_window_init(&win, UINT64_MAX, 1, 1), -EINVAL);
    assert_int_equal(vfmig_window_init(&win, 32, UINT64_MAX, 1), -EINVAL);
    assert_int_equal(vfmig_window_init(&win, 32, INT64_MAX - 31, 1), -EINVAL);
    assert_int_equal(vfmig_window_init(&win, 32, INT64_MAX - 32, 1), 0);
    assert_int_equal(vfmig_window_init(&win, 32, INT64_MAX - 32, 2), -EINVAL);
    assert_int_equal(vfmig_window_init(&win, 32, 1, 0), -EINVAL);
    assert_int_equal(vfmig_window_init(&win, 32, 1, VFMIG_MAX_WINDOWS + 1), -EINVAL);
    assert_int_equal(vfmig_window_init(&win, 32, 1, VFMIG_MAX_WINDOWS), 0);
    assert_int_equal(vfmig_window_region_size(&win), 32 + VFMIG_MAX_WINDOWS);
    memset(&win, 0xff, sizeof(win));
    assert_int_equal(vfmig_window_init(&win, 32, 1, 1), 0);
    assert_int_equal(vfmig_window_region_size(&win), 33);
    assert_int_equal(vfmig_window_commit(&win, 0, &at), -EINVAL); /* closed */
    assert_int_equal(vfmig_window_prepared(&win, 0), -EINVAL);
}

/* The v1 registers: each field at its own width and place; the gap and the end are closed. */
static void every_access_is_a_field_or_refused(void **state)
{
    static const struct {
        uint8_t at, size, writable, field;
    } layout[] = {{0, 4, 1, VFMIG_WINDOW_DEVICE_STATE},
                  {4, 4, 1, VFMIG_WINDOW_RESERVED},
                  {8, 8, 0, VFMIG_WINDOW_PENDING_BYTES},
                  {16, 8, 0, VFMIG_WINDOW_DATA_OFFSET},
                  {24, 8, 1, VFMIG_WINDOW_DATA_SIZE}};
    struct vfmig_window win;

    assert_int_equal(vfmig_window_init(&win, 48, 16, 1), 0);
    for (uint64_t offset = 0; offset < 70; offset++)
        for (uint64_t size = 0; size < 20; size++)
            for (int write = 0; write < 2; write++) {
                enum vfmig_window_field field = 0;
                unsigned want = 0;
                for (size_t i = 0; i < 5; i++)
                    if (layout[i].at == offset && layout[i].size == size &&
                        (layout[i].writable || !write))
                        want = layout[i].field;
                if (size && offset >= 48 && offset + size <= 64)
                    want = VFMIG_WINDOW_DATA;
                int err = vfmig_window_decode(&win, offset, size, write, &field);
                assert_int_equal(err, want ? 0 : -EINVAL);
                assert_int_equal(field, want);
            }
    enum vfmig_window_field field;
    assert_int_equal(vfmig_window_decode(&win, 50, UINT64_MAX, false, &field), -EINVAL);
    assert_int_equal(vfmig_window_decode(&win, UINT64_MAX, 2, false, &field), -EINVAL);
}

static void repeated_reads_are_stable_until_acknowledged(void **state)
{
    struct vfmig_window win = opened(VFMIG_WINDOW_SAVE);
    uint64_t at, got;

    for (int i = 0; i < 3; i++)
        assert_int_equal(vfmig_window_read_pending(&win, 500), 500);
    assert_int_equal(take_portion(&win, 500, 300), 300);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(vfmig_window_prepared(&win, 200), -EINVAL); /* not before the ack */
        assert_int_equal(vfmig_window_read_offset(&win, &at), 0);
        assert_int_equal(vfmig_window_read_size(&win, &got), 0);
        assert_int_equal(got, 300);
        assert_int_equal(vfmig_window_data_read(&win, DATA + 299, 1, &at), 0);
        assert_int_equal(at, 299);
    }
    assert_int_equal(take_portion(&win, 200, 200), 200); /* the ack made room */
    assert_int_equal(vfmig_window_read_pending(&win, 0), 0);
    assert_int_equal(vfmig_window_read_size(&win, &got), -EINVAL);
}

/* What was acknowledged stays where it is until its window is filled again, which is when
 * data_offset is read, not before. */
static void an_acknowledged_portion_is_kept(void **state)
{
    struct vfmig_window win = opened(VFMIG_WINDOW_SAVE);
    uint64_t at;

    for (uint64_t i = 0; i < 3 * COUNT; i++) {
        uint64_t mine = i % COUNT * CAPACITY;
        assert_int_equal(take_portion(&win, 500, 100 + i), 100 + i);
        assert_int_equal(vfmig_window_at(&win), mine);
        /* The portions before it, and itself, to the byte. */
        for (uint64_t back = 0; back < COUNT && back <= i; back++) {
            uint64_t other = (i - back) % COUNT * CAPACITY, size = 100 + i - back;
            assert_int_equal(vfmig_window_data_read(&win, DATA + other, size, &at), 0);
            assert_int_equal(at, other);
            assert_int_equal(vfmig_window_data_read(&win, DATA + other, size + 1, &at), -EINVAL);
        }
        vfmig_window_read_pending(&win, 500); /* acknowledged: all of them stay */
        assert_int_equal(vfmig_window_data_read(&win, DATA + mine, 100 + i, &at), 0);
        if (i + 1 < COUNT)
            continue;
        uint64_t oldest = (i + 1) % COUNT * CAPACITY;
        assert_int_equal(vfmig_window_data_read(&win, DATA + oldest, 1, &at), 0);
        assert_int_equal(vfmig_window_read_offset(&win, &at), -EAGAIN);
        assert_int_equal(vfmig_window_data_read(&win, DATA + oldest, 1, &at), -EINVAL);
    }
    /* An access never runs from one portion into the next. */
    win = opened(VFMIG_WINDOW_SAVE);
    take_portion(&win, 9, CAPACITY);
    take_portion(&win, 9, CAPACITY);
    assert_int_equal(vfmig_window_data_read(&win, DATA + CAPACITY - 1, 2, &at), -EINVAL);
    assert_int_equal(vfmig_window_data_read(&win, DATA + COUNT * CAPACITY, 1, &at), -EINVAL);
}

/* X6: a portion of nothing takes no turn. */
static void an_empty_portion_takes_no_turn(void **state)
{
    struct vfmig_window win = opened(VFMIG_WINDOW_SAVE);

    take_portion(&win, 9, 5);
    for (int i = 0; i < 5; i++) {
        take_portion(&win, 9, 0);
        assert_int_equal(vfmig_window_at(&win), CAPACITY);
    }
}

static void size_without_offset_is_refused(void **state)
{
    struct vfmig_window win = opened(VFMIG_WINDOW_SAVE);
    uint64_t got;

    assert_int_equal(vfmig_window_read_size(&win, &got), -EINVAL);
    assert_int_equal(take_portion(&win, 10, 10), 10);
    vfmig_window_read_pending(&win, 5);
    assert_int_equal(vfmig_window_read_size(&win, &got), -EINVAL);
}

static void a_portion_may_be_empty_and_never_too_large(void **state)
{
    struct vfmig_window win = opened(VFMIG_WINDOW_SAVE);
    uint64_t at;

    assert_int_equal(vfmig_window_prepared(&win, CAPACITY + 1), -EINVAL);
    assert_int_equal(take_portion(&win, 8, 0), 0);
    assert_int_equal(vfmig_window_data_read(&win, DATA, 1, &at), -EINVAL);
    assert_int_equal(take_portion(&win, 8, CAPACITY), CAPACITY);
}

/* X5: 1, 2, 4, 8 or any number of bytes, in any order, inside the portion only. */
static void data_is_read_in_any_pieces(void **state)
{
    const uint64_t sizes[] = {8, 1, 4, 2, 64, 24};
    struct vfmig_window win = opened(VFMIG_WINDOW_SAVE);
    uint64_t at;

    take_portion(&win, 64, 64);
    for (size_t i = 0; i < 6; i++)
        for (uint64_t offset = 64; offset-- > 0;) {
            int err = vfmig_window_data_read(&win, DATA + offset, sizes[i], &at);
            assert_int_equal(err, offset + sizes[i] <= 64 ? 0 : -EINVAL);
            if (!err)
                assert_int_equal(at, offset);
        }
    assert_int_equal(vfmig_window_data_read(&win, DATA + 64, 0, &at), 0); /* nothing of it */
    assert_int_equal(vfmig_window_data_read(&win, DATA + 65, 0, &at), -EINVAL);
    assert_int_equal(vfmig_window_data_read(&win, DATA - 1, 1, &at), -EINVAL);
    assert_int_equal(vfmig_window_data_read(&win, DATA + 1, UINT64_MAX, &at), -EINVAL);
}

/* Loading takes turns too; what is larger than a window runs on to the end of the section. */
static void loading_takes_turns(void **state)
{
    struct vfmig_window win = opened(VFMIG_WINDOW_LOAD);
    uint64_t offset, at;

    for (uint64_t i = 0; i < 3 * COUNT; i++) {
        uint64_t mine = i % COUNT * CAPACITY, room = (COUNT - i % COUNT) * CAPACITY;
        assert_int_equal(vfmig_window_read_offset(&win, &offset), 0);
        assert_int_equal(offset, DATA + mine);
        assert_int_equal(vfmig_window_data_write(&win, offset + room - 1, 2, &at), -EINVAL);
        if (mine)
            assert_int_equal(vfmig_window_data_write(&win, offset - 1, 1, &at), -EINVAL);
        assert_int_equal(vfmig_window_data_write(&win, offset, room, &at), 0);
        assert_int_equal(at, mine);
        assert_int_equal(vfmig_window_commit(&win, room + 1, &at), -EINVAL);
        assert_int_equal(vfmig_window_commit(&win, room, &at), 0);
        assert_int_equal(at, mine);
    }
    assert_int_equal(vfmig_window_commit(&win, 0, &at), 0); /* nothing: no turn */
    assert_int_equal(vfmig_window_read_offset(&win, &offset), 0);
    assert_int_equal(offset, DATA);
}

/* What a client writes into its mapping is not seen here: the window alone bounds it. */
static void a_mapped_window_is_committed_unseen(void **state)
{
    struct vfmig_window win = opened(VFMIG_WINDOW_LOAD);
    uint64_t at;

    assert_int_equal(vfmig_window_commit(&win, 1, &at), -EINVAL);
    vfmig_window_set_mapped(&win, true);
    assert_int_equal(vfmig_window_commit(&win, COUNT * CAPACITY + 1, &at), -EINVAL);
    assert_int_equal(vfmig_window_commit(&win, UINT64_MAX, &at), -EINVAL);
    assert_int_equal(vfmig_window_commit(&win, 7, &at), 0);
    assert_int_equal(vfmig_window_commit(&win, (COUNT - 1) * CAPACITY + 1, &at), -EINVAL);
    assert_int_equal(vfmig_window_commit(&win, CAPACITY, &at), 0);
    assert_int_equal(at, CAPACITY);
    vfmig_window_set_mapped(&win, false);
    assert_int_equal(vfmig_window_commit(&win, 1, &at), -EINVAL);
}

static void data_is_written_in_any_pieces_and_committed(void **state)
{
    const uint64_t sizes[] = {1, 2, 4, 8, 64};
    uint64_t at;

    for (size_t i = 0; i < 5; i++) {
        struct vfmig_window win = opened(VFMIG_WINDOW_LOAD);
        for (uint64_t offset = 64; offset > 0;) {
            offset -= sizes[i];
            assert_int_equal(vfmig_window_data_write(&win, DATA + offset, sizes[i], &at), 0);
            assert_int_equal(at, offset);
        }
        assert_int_equal(vfmig_window_commit(&win, 65, &at), -EINVAL); /* more than was written */
        assert_int_equal(vfmig_window_commit(&win, 64, &at), 0);
        assert_int_equal(vfmig_window_commit(&win, 1, &at), -EINVAL); /* nothing new is there */
        assert_int_equal(vfmig_window_commit(&win, 0, &at), 0);
    }
}

static void writes_stay_inside_the_window(void **state)
{
    struct vfmig_window win = opened(VFMIG_WINDOW_LOAD);
    uint64_t at;

    assert_int_equal(vfmig_window_read_offset(&win, &at), 0);
    assert_int_equal(at, DATA);
    assert_int_equal(vfmig_window_data_write(&win, DATA, CAPACITY * COUNT, &at), 0);
    assert_int_equal(vfmig_window_data_write(&win, DATA, CAPACITY * COUNT + 1, &at), -EINVAL);
    assert_int_equal(vfmig_window_data_write(&win, DATA + CAPACITY * COUNT, 1, &at), -EINVAL);
    assert_int_equal(vfmig_window_data_write(&win, DATA - 1, 1, &at), -EINVAL);
    assert_int_equal(vfmig_window_data_write(&win, UINT64_MAX, 1, &at), -EINVAL);
}

static void each_mode_refuses_what_belongs_to_the_other(void **state)
{
    struct vfmig_window closed = opened(VFMIG_WINDOW_CLOSED);
    struct vfmig_window save = opened(VFMIG_WINDOW_SAVE), load = opened(VFMIG_WINDOW_LOAD);
    uint64_t x;

    assert_int_equal(vfmig_window_read_pending(&closed, 7), 0);
    assert_int_equal(vfmig_window_read_offset(&closed, &x), -EINVAL);
    assert_int_equal(vfmig_window_read_size(&closed, &x), -EINVAL);
    assert_int_equal(vfmig_window_prepared(&closed, 1), -EINVAL);
    assert_int_equal(vfmig_window_commit(&closed, 0, &x), -EINVAL);
    assert_int_equal(vfmig_window_data_read(&closed, DATA, 1, &x), -EINVAL);
    assert_int_equal(vfmig_window_data_write(&closed, DATA, 1, &x), -EINVAL);
    assert_int_equal(vfmig_window_data_write(&save, DATA, 1, &x), -EINVAL);
    assert_int_equal(vfmig_window_commit(&save, 0, &x), -EINVAL);
    assert_int_equal(vfmig_window_read_pending(&load, 7), 0);
    assert_int_equal(vfmig_window_read_size(&load, &x), -EINVAL);
    assert_int_equal(vfmig_window_prepared(&load, 1), -EINVAL);
    assert_int_equal(vfmig_window_data_read(&load, DATA, 1, &x), -EINVAL);
    assert_int_equal(vfmig_window_data_write(&load, DATA, 8, &x), 0);
    assert_int_equal(vfmig_window_data_read(&load, DATA, 1, &x), -EINVAL); /* not what was written */
}

/* C21, C43: whatever was there is gone when a window is opened or closed. */
static void opening_and_closing_drops_what_was_there(void **state)
{
    const enum vfmig_window_mode modes[] = {VFMIG_WINDOW_CLOSED, VFMIG_WINDOW_SAVE,
                                            VFMIG_WINDOW_LOAD};
    uint64_t x;

    for (size_t i = 0; i < 3; i++) {
        struct vfmig_window win = opened(VFMIG_WINDOW_SAVE);
        take_portion(&win, 10, 10);
        vfmig_window_open(&win, modes[i]);
        assert_int_equal(vfmig_window_read_size(&win, &x), -EINVAL);
        assert_int_equal(vfmig_window_data_read(&win, DATA, 1, &x), -EINVAL);
        win = opened(VFMIG_WINDOW_LOAD);
        assert_int_equal(vfmig_window_data_write(&win, DATA, 10, &x), 0);
        vfmig_window_open(&win, modes[i]);
        assert_int_equal(vfmig_window_commit(&win, 10, &x), -EINVAL);
        /* The first window is the first one again. */
        win = opened(VFMIG_WINDOW_LOAD);
        assert_int_equal(vfmig_window_data_write(&win, DATA, 10, &x), 0);
        assert_int_equal(vfmig_window_commit(&win, 10, &x), 0);
        assert_int_equal(vfmig_window_at(&win), CAPACITY);
        vfmig_window_open(&win, modes[i]);
        assert_int_equal(vfmig_window_at(&win), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_window_needs_room),
        cmocka_unit_test(every_access_is_a_field_or_refused),
        cmocka_unit_test(repeated_reads_are_stable_until_acknowledged),
        cmocka_unit_test(an_acknowledged_portion_is_kept),
        cmocka_unit_test(an_empty_portion_takes_no_turn),
        cmocka_unit_test(loading_takes_turns),
        cmocka_unit_test(a_mapped_window_is_committed_unseen),
        cmocka_unit_test(size_without_offset_is_refused),
        cmocka_unit_test(a_portion_may_be_empty_and_never_too_large),
        cmocka_unit_test(data_is_read_in_any_pieces),
        cmocka_unit_test(data_is_written_in_any_pieces_and_committed),
        cmocka_unit_test(writes_stay_inside_the_window),
        cmocka_unit_test(each_mode_refuses_what_belongs_to_the_other),
        cmocka_unit_test(opening_and_closing_drops_what_was_there),
    };
    return cmocka_run_group_tests_name("window", tests, NULL, NULL);
}
