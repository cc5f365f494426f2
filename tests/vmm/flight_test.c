/* SPDX-License-Identifier: BSD-3-Clause */
/* The flight recorder by itself: what it keeps, what it writes, and a disk that does not take it. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bounds.h"
#include "vmm/vm_flight.h"

static char folder[64];
static struct vmm_flight flight;

static int begin(void **state)
{
    struct vfmig_error err = {0};

    strcpy(folder, "/tmp/vfmig-flight-XXXXXX");
    assert_non_null(mkdtemp(folder));
    assert_int_equal(vmm_flight_init(&flight, NULL, folder, &err), 0);
    vmm_flight_leave(&flight);
    return 0;
}

static int end(void **state)
{
    vmm_flight_done(&flight);
    unlink(flight.path);
    /* Nothing else is left behind. */
    assert_int_equal(rmdir(folder), 0);
    return 0;
}

static void line(unsigned n, const char *side, const char *rest)
{
    char text[900];

    snprintf(text, sizeof(text), "{\"t_ns\":%u,\"n\":%u,\"side\":\"%s\",\"ev\":\"%s}", 100 + n, n, side,
             rest);
    vmm_flight_line(&flight, text);
}

/* The file's lines; ret_text is to be freed. */
static unsigned lines(char **ret_text)
{
    FILE *file = fopen(flight.path, "r");
    size_t size = 0;
    unsigned count = 0;

    *ret_text = NULL;
    assert_non_null(file);
    assert_true(getdelim(ret_text, &size, 0, file) > 0);
    fclose(file);
    for (const char *at = *ret_text; *at; at++)
        count += *at == '\n';
    return count;
}

static void nothing_is_written_before_a_failure(void **state)
{
    line(0, "source", "trace\",\"id\":\"1\"");
    line(1, "source", "state\",\"state\":\"active\"");
    line(2, "source", "state\",\"state\":\"cancelled\"");
    line(3, "source", "end\"");
    /* A text that says so is not the event. */
    line(4, "source", "failure\",\"text\":\"\\\"ev\\\":\\\"state\\\",\\\"state\\\":\\\"failed\\\"\"");
    /* Nor is it ours, when the other side says it. */
    line(5, "destination", "state\",\"state\":\"failed\"");
    assert_int_equal(access(flight.path, F_OK), -1);
    assert_false(vmm_flight_told(&flight));
}

static void a_failure_writes_what_led_to_it_and_what_follows(void **state)
{
    static const char *const ends[] = {"failed", "undecided", "paused"};

    for (unsigned i = 0; i < 3; i++) {
        char rest[64], *text;

        line(0, "source", "trace\",\"id\":\"1\"");
        assert_false(vmm_flight_told(&flight));
        line(1, "source", "device\",\"device\":0");
        line(2, "source", "failure\",\"ret\":-5");
        snprintf(rest, sizeof(rest), "state\",\"state\":\"%s\"", ends[i]);
        line(3, "source", rest);
        assert_true(vmm_flight_told(&flight));
        assert_int_equal(lines(&text), 4);
        free(text);
        line(0, "destination", "trace\",\"id\":\"1\"");
        line(4, "source", "end\"");
        line(5, "source", "link-lost\""); /* is not waited for */
        assert_int_equal(lines(&text), 6);
        assert_true(strstr(text, "trace") < strstr(text, "\"device\"") &&
                    strstr(text, ends[i]) < strstr(text, "destination"));
        free(text);
    }
}

static void the_oldest_lines_go_and_the_head_stays(void **state)
{
    char filler[512] = "row\",\"row\":\"", number[32], *text;
    unsigned count = 3 * VFMIG_MAX_FLIGHT_KEPT / 512;

    memset(filler + strlen(filler), 'x', 400);
    line(0, "source", "trace\",\"id\":\"first\"");
    for (unsigned n = 1; n <= count; n++)
        line(n, "source", filler);
    line(count + 1, "source", "state\",\"state\":\"failed\"");
    assert_true(flight.size <= VFMIG_MAX_FLIGHT_KEPT && flight.size > VFMIG_MAX_FLIGHT_KEPT - 1000);
    unsigned found = lines(&text);
    assert_true(found > 1000 && found < count);
    assert_non_null(strstr(text, "first"));
    /* Every line from the first that is kept to the last one, whole. */
    for (unsigned i = 0; i + 2 < found; i++) {
        snprintf(number, sizeof(number), "\n{\"t_ns\":%u,\"n\":%u,", 102 + count - (found - 1) + i,
                 count + 2 - (found - 1) + i);
        assert_non_null(strstr(text, number));
    }
    free(text);
}

static void more_heads_than_there_is_room_for(void **state)
{
    char *text;

    line(0, "source", "trace\",\"id\":\"1\"");
    for (unsigned n = 1; n < 20000; n++)
        line(n, "source", "device\",\"device\":7");
    assert_true(flight.head_size <= VFMIG_MAX_FLIGHT_HEAD);
    line(20000, "source", "state\",\"state\":\"failed\"");
    for (unsigned n = 0; n < 60000; n++) /* a peer that goes on and on */
        line(20001 + n, "destination", "row\",\"row\":\"and so on, and so on, and so on\"");
    assert_true(lines(&text) > 10000);
    assert_true(strlen(text) <= VFMIG_MAX_FLIGHT_HEAD + VFMIG_MAX_FLIGHT_KEPT + VFMIG_MAX_FLIGHT_MORE);
    free(text);
}

/* Files of more bytes than this cannot be written. */
static void limit(rlim_t bytes)
{
    struct rlimit now;

    assert_int_equal(getrlimit(RLIMIT_FSIZE, &now), 0);
    now.rlim_cur = bytes == RLIM_INFINITY ? now.rlim_max : bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
}

static void a_disk_that_does_not_take_it_leaves_the_last_one(void **state)
{
    char *text;

    signal(SIGXFSZ, SIG_IGN);
    line(0, "source", "trace\",\"id\":\"before\"");
    line(1, "source", "state\",\"state\":\"failed\"");
    line(2, "source", "end\"");
    line(0, "source", "trace\",\"id\":\"after\"");
    limit(50);
    line(1, "source", "state\",\"state\":\"failed\"");
    limit(RLIM_INFINITY);
    assert_false(vmm_flight_told(&flight));
    line(2, "source", "end\"");
    assert_int_equal(lines(&text), 3);
    assert_non_null(strstr(text, "before"));
    free(text);
    /* One that fails in the middle of what follows keeps what led to the failure. */
    line(0, "source", "trace\",\"id\":\"last\"");
    line(1, "source", "state\",\"state\":\"failed\"");
    limit(150);
    line(2, "source", "row\",\"row\":\"and so on, and so on, and so on\"");
    limit(RLIM_INFINITY);
    line(3, "source", "end\"");
    assert_true(vmm_flight_told(&flight));
    assert_int_equal(lines(&text), 2);
    assert_non_null(strstr(text, "last"));
    free(text);
}

static void paths(void **state)
{
    char longer[400];
    struct vmm_flight other;
    struct vfmig_error err = {0};

    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = 0;
    assert_int_equal(vmm_flight_init(&other, longer, folder, &err), -ENAMETOOLONG);
    vmm_flight_done(&other);
    assert_int_equal(vmm_flight_init(&other, NULL, NULL, &err), 0);
    vmm_flight_line(&other, "{\"t_ns\":1,\"n\":0,\"side\":\"destination\",\"ev\":\"state\",\"state\":\"failed\"}");
    assert_false(vmm_flight_told(&other));
    vmm_flight_done(&other);
    assert_int_equal(vmm_flight_init(&other, "/nowhere/at/all", NULL, &err), 0);
    vmm_flight_line(&other, "{\"t_ns\":1,\"n\":0,\"side\":\"destination\",\"ev\":\"state\",\"state\":\"failed\"}");
    assert_false(vmm_flight_told(&other));
    vmm_flight_done(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_is_written_before_a_failure, begin, end),
        cmocka_unit_test_setup_teardown(a_failure_writes_what_led_to_it_and_what_follows, begin, end),
        cmocka_unit_test_setup_teardown(the_oldest_lines_go_and_the_head_stays, begin, end),
        cmocka_unit_test_setup_teardown(more_heads_than_there_is_room_for, begin, end),
        cmocka_unit_test_setup_teardown(a_disk_that_does_not_take_it_leaves_the_last_one, begin, end),
        cmocka_unit_test_setup_teardown(paths, begin, end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
