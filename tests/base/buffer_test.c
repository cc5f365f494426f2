/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "base/buffer.h"

static void buffer_keeps_what_was_appended(void **state)
{
    struct vfmig_buffer buf = {0};
    (void)state;
    for (uint32_t i = 0; i < 2000; i++)
        assert_int_equal(vfmig_buffer_append(&buf, &i, sizeof(i)), 0);
    assert_int_equal(buf.size, 8000);
    for (uint32_t i = 0; i < 2000; i++)
        assert_memory_equal(buf.data + i * 4, &i, 4);
    assert_int_equal(vfmig_buffer_append(&buf, NULL, 3), 0);
    assert_memory_equal(buf.data + 8000, "\0\0\0", 4); /* zeroes, and one behind */
    vfmig_buffer_free(&buf);
    assert_int_equal(buf.size, 0);
    assert_null(buf.data);
}

static void buffer_text_is_terminated(void **state)
{
    struct vfmig_buffer buf = {0};
    (void)state;
    assert_int_equal(vfmig_buffer_printf(&buf, "%s=%d\n", "one", 1), 0);
    assert_int_equal(vfmig_buffer_printf(&buf, "%0300d", 0), 0);
    assert_int_equal(strlen((char *)buf.data), buf.size);
    assert_int_equal(buf.size, 306);
    vfmig_buffer_free(&buf);
}

static void buffer_obeys_its_limit(void **state)
{
    struct vfmig_buffer buf = {.limit = 10};
    (void)state;
    assert_int_equal(vfmig_buffer_append(&buf, "12345678", 8), 0);
    assert_int_equal(vfmig_buffer_append(&buf, "9ab", 3), -ENOBUFS);
    assert_int_equal(vfmig_buffer_printf(&buf, "%d", 123), -ENOBUFS);
    assert_int_equal(vfmig_buffer_append(&buf, "x", SIZE_MAX), -ENOBUFS);
    assert_int_equal(buf.size, 8);
    assert_int_equal(vfmig_buffer_append(&buf, "9a", 2), 0);
    assert_string_equal((char *)buf.data, "123456789a");
    vfmig_buffer_free(&buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buffer_keeps_what_was_appended),
        cmocka_unit_test(buffer_text_is_terminated),
        cmocka_unit_test(buffer_obeys_its_limit),
    };
    return cmocka_run_group_tests_name("buffer", tests, NULL, NULL);
}
