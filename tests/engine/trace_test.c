/* SPDX-License-Identifier: BSD-3-Clause */
/* One line of a trace: what is escaped, what is cut, what is refused. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/trace.h"

static const struct vfmig_trace_head head = {.t_ns = 5, .n = 7, .source = true};

static void texts_are_escaped(void **state)
{
    char line[VFMIG_TRACE_LINE];
    const struct vfmig_trace_value values[] = {VFMIG_I(-5), VFMIG_S("local"),
                                               VFMIG_S("a \"b\" \\ \n \x7f \xc3\xa4 ~"), {0}};
    const struct vfmig_trace_value none[] = {VFMIG_I(0), VFMIG_S(NULL), VFMIG_S(""), {0}};

    assert_int_equal(vfmig_trace_format(line, &head, VFMIG_TRACE_FAILURE, values), 0);
    assert_string_equal(line, "{\"t_ns\":5,\"n\":7,\"side\":\"source\",\"ev\":\"failure\",\"ret\":-5,"
                              "\"origin\":\"local\",\"text\":\"a \\\"b\\\" \\\\ \\u000a \\u007f "
                              "\\u00c3\\u00a4 ~\"}");
    assert_int_equal(vfmig_trace_format(line, &head, VFMIG_TRACE_FAILURE, none), 0);
    assert_non_null(strstr(line, "\"origin\":\"\",\"text\":\"\"}"));
}

static void a_long_text_is_cut_and_what_is_behind_it_stays(void **state)
{
    char line[VFMIG_TRACE_LINE], text[4000];
    const struct vfmig_trace_head other = {.t_ns = UINT64_MAX, .n = UINT64_MAX, .source = false};

    for (unsigned fill = 1; fill < 4; fill++) {
        const struct vfmig_trace_value values[] = {VFMIG_U(UINT64_MAX), VFMIG_S(text), VFMIG_S(text),
                                                   VFMIG_S(text), VFMIG_I(INT64_MIN),
                                                   VFMIG_U(UINT64_MAX), {0}};
        memset(text, fill == 1 ? 'x' : fill == 2 ? '"' : 1, sizeof(text) - 1);
        text[sizeof(text) - 1] = 0;
        assert_int_equal(vfmig_trace_format(line, &other, VFMIG_TRACE_CHANGE_END, values), 0);
        assert_true(strlen(line) < VFMIG_TRACE_LINE && strlen(line) > VFMIG_TRACE_LINE / 2);
        assert_non_null(strstr(line, ",\"ret\":-9223372036854775808,\"took_ns\":18446744073709551615}"));
        assert_null(strstr(line, "\\\",\"want")); /* no escape is cut in the middle */
    }
}

static void what_is_not_of_the_table_is_refused(void **state)
{
    char line[VFMIG_TRACE_LINE];
    const struct vfmig_trace_value nothing[] = {{0}}, wrong[] = {VFMIG_U(1), {0}},
                                   more[] = {VFMIG_S("S1"), VFMIG_S("S1"), {0}};
    struct vfmig_trace_head dest = head;

    dest.source = false;
    assert_int_equal(vfmig_trace_format(line, &head, VFMIG_TRACE_COUNT, nothing), -EINVAL);
    assert_int_equal(vfmig_trace_format(line, &head, VFMIG_TRACE_STATE, nothing), -EINVAL);
    assert_int_equal(vfmig_trace_format(line, &head, VFMIG_TRACE_STATE, wrong), -EINVAL);
    assert_int_equal(vfmig_trace_format(line, &head, VFMIG_TRACE_STATE, more), -EINVAL);
    assert_int_equal(vfmig_trace_format(line, &dest, VFMIG_TRACE_VCPUS_STOPPING, nothing), -EINVAL);
    assert_int_equal(vfmig_trace_format(line, &head, VFMIG_TRACE_VCPUS_STOPPING, nothing), 0);
    assert_int_equal(vfmig_trace_format(line, &head, VFMIG_TRACE_GIVE_BACK, nothing), -EINVAL);
    assert_null(vfmig_trace_info(VFMIG_TRACE_COUNT));
}

static void every_event_is_found_by_its_name(void **state)
{
    for (unsigned i = 0; i < VFMIG_TRACE_COUNT; i++) {
        assert_int_equal(vfmig_trace_find(vfmig_trace_info(i)->name), i);
        assert_true(vfmig_trace_field_count(vfmig_trace_info(i)) <= VFMIG_TRACE_FIELDS);
    }
    assert_int_equal(vfmig_trace_find("none"), VFMIG_TRACE_COUNT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_are_escaped),
        cmocka_unit_test(a_long_text_is_cut_and_what_is_behind_it_stays),
        cmocka_unit_test(what_is_not_of_the_table_is_refused),
        cmocka_unit_test(every_event_is_found_by_its_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
