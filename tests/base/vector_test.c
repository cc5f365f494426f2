/* SPDX-License-Identifier: BSD-3-Clause */
/* The forms that use wide vectors against the plain ones. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/zero.h"

static void crc32c_forms_agree_at_every_size(void **state)
{
    uint8_t data[1200];
    uint32_t seed = 1;

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)((seed = seed * 1103515245u + 12345u) >> 16);
    for (size_t size = 0; size < 1100; size++) {
        const uint8_t *at = data + size % 67;
        uint32_t plain = 0, form = 0;
        assert_true(vfmig_crc32c_by(VFMIG_CRC32C_PORTABLE, seed, at, size, &plain));
        for (int i = 0; i < VFMIG_CRC32C_FORM_COUNT; i++)
            if (vfmig_crc32c_by((enum vfmig_crc32c_form)i, seed, at, size, &form))
                assert_int_equal(form, plain);
        assert_int_equal(vfmig_crc32c(seed, at, size), plain);
    }
}

static void every_flipped_bit_changes_the_crc(void **state)
{
    uint8_t data[1024] = {0};
    uint32_t plain = vfmig_crc32c(0, data, sizeof(data));

    for (size_t bit = 0; bit < sizeof(data) * 8; bit++) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_not_equal(vfmig_crc32c(0, data, sizeof(data)), plain);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void one_bit_anywhere_is_not_zero(void **state)
{
    uint8_t *page = calloc(1, 4096);
    bool supported;

    assert_non_null(page);
    for (unsigned form = 0; form < 3; form++) {
        bool zero = vfmig_is_zero_by(form, page, 4096, &supported);
        assert_true(zero || !supported);
        for (size_t at = 0; at < 4096; at++) {
            page[at] = (uint8_t)(1u << at % 8);
            assert_false(vfmig_is_zero_by(form, page, 4096, &supported));
            page[at] = 0;
        }
    }
    assert_true(vfmig_is_zero(page, 4096));
    page[4095] = 1;
    assert_false(vfmig_is_zero(page, 4096));
    free(page);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc32c_forms_agree_at_every_size),
        cmocka_unit_test(every_flipped_bit_changes_the_crc),
        cmocka_unit_test(one_bit_anywhere_is_not_zero),
    };
    return cmocka_run_group_tests_name("vector", tests, NULL, NULL);
}
