/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/crc32c.h"
#include "vfmig/error.h"

/* RFC 3720 B.4 test vectors. */
static void crc32c_matches_the_published_vectors(void **state)
{
    uint8_t data[32];

    memset(data, 0, sizeof(data));
    assert_int_equal(vfmig_crc32c(0, data, sizeof(data)), 0x8a9136aa);
    memset(data, 0xff, sizeof(data));
    assert_int_equal(vfmig_crc32c(0, data, sizeof(data)), 0x62a8ab43);
    for (int i = 0; i < 32; i++)
        data[i] = (uint8_t)i;
    assert_int_equal(vfmig_crc32c(0, data, sizeof(data)), 0x46dd794e);
}

static void crc32c_of_pieces_is_the_crc_of_the_whole(void **state)
{
    const char text[] = "123456789";

    for (size_t cut = 0; cut <= 9; cut++)
        assert_int_equal(vfmig_crc32c(vfmig_crc32c(0, text, cut), text + cut, 9 - cut), 0xe3069283);
}

static void set_range_equals_single_bits(void **state)
{
    for (uint64_t first = 0; first < 130; first++) {
        for (uint64_t count = 0; first + count <= 192; count++) {
            uint64_t one[3] = {0}, many[3] = {0}, atomic[3] = {0};
            for (uint64_t bit = first; bit < first + count; bit++)
                vfmig_bitmap_set(one, bit);
            vfmig_bitmap_set_range(many, first, count);
            vfmig_bitmap_set_range_atomic(atomic, first, count);
            assert_memory_equal(one, many, sizeof(one));
            assert_memory_equal(one, atomic, sizeof(one));
            assert_int_equal(vfmig_bitmap_count(one, 192), count);
            assert_int_equal(vfmig_bitmap_next(one, 192, 0), count ? first : 192);
            assert_int_equal(vfmig_bitmap_next_zero(one, 192, first), first + count);
        }
    }
}

static void bits_beyond_the_end_do_not_count(void **state)
{
    uint64_t map[2] = {0, ~UINT64_C(0)};

    assert_int_equal(vfmig_bitmap_count(map, 70), 6);
    assert_int_equal(vfmig_bitmap_next(map, 64, 0), 64);
    assert_int_equal(vfmig_bitmap_next_zero(map, 70, 64), 70);
}

static void errors_keep_origin_and_cut_the_text(void **state)
{
    struct vfmig_error err;
    char longtext[600];

    memset(longtext, 'x', sizeof(longtext) - 1);
    longtext[sizeof(longtext) - 1] = 0;
    assert_int_equal(vfmig_error_set(&err, -EINVAL, VFMIG_ORIGIN_PEER, 3, "%s", longtext), -EINVAL);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    assert_int_equal(vfmig_error_set(&err, -EIO, VFMIG_ORIGIN_DEVICE, 1, "no"), -EIO);
    assert_int_equal(vfmig_error_prefix(&err, "device %d", 7), -EIO);
    assert_string_equal(err.text, "device 7: no");
    assert_string_equal(vfmig_origin_name(err.origin), "device");
    assert_string_equal(vfmig_origin_name((enum vfmig_origin)99), "none");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc32c_matches_the_published_vectors),
        cmocka_unit_test(crc32c_of_pieces_is_the_crc_of_the_whole),
        cmocka_unit_test(set_range_equals_single_bits),
        cmocka_unit_test(bits_beyond_the_end_do_not_count),
        cmocka_unit_test(errors_keep_origin_and_cut_the_text),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
