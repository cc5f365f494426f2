/* SPDX-License-Identifier: BSD-3-Clause */
/* The QMP server against clients that behave, and against those that do not. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bounds.h"
#include "vmm/qmp.h"

struct fixture {
    char folder[64];
    char path[80];
    struct vfmig_qmp *qmp;
};

static int run_echo(void *opaque, struct json_object *args, struct json_object **ret_result,
                    struct vfmig_error *reterr)
{
    *ret_result = json_object_get(args);
    return 0;
}

static int run_fail(void *opaque, struct json_object *args, struct json_object **ret_result,
                    struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_LOCAL, 0, "no, thank you");
}

static const struct vfmig_qmp_command commands[] = {
    {"echo", "text:s,count:i?", run_echo},
    {"fail", NULL, run_fail},
    {NULL, NULL, NULL},
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    strcpy(f->folder, "/tmp/vfmig-qmp-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->path, sizeof(f->path), "%s/qmp", f->folder);
    struct vfmig_error err = {0};
    assert_int_equal(vfmig_qmp_start(f->path, commands, NULL, &f->qmp, &err), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    vfmig_qmp_stop(f->qmp);
    assert_int_not_equal(access(f->path, F_OK), 0); /* the socket is gone */
    rmdir(f->folder);
    free(f);
    return 0;
}

static FILE *dial(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    struct timeval patience = {.tv_sec = 20};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    FILE *stream = fdopen(fd, "r+");
    setvbuf(stream, NULL, _IONBF, 0);
    return stream;
}

/* The next line, as text valid until the next call. */
static const char *hear(FILE *stream)
{
    static char line[4096];
    return fgets(line, sizeof(line), stream) ? line : "(nothing)";
}

static void say(FILE *stream, const char *text)
{
    assert_int_equal(write(fileno(stream), text, strlen(text)), (ssize_t)strlen(text));
}

static FILE *dial_negotiated(const char *path)
{
    FILE *stream = dial(path);
    assert_non_null(strstr(hear(stream), "\"QMP\""));
    say(stream, "{\"execute\":\"qmp_capabilities\"}");
    assert_string_equal(hear(stream), "{ \"return\": { } }\r\n");
    return stream;
}

#define assert_hears(stream, text) assert_non_null(strstr(hear(stream), text))

static void negotiation_comes_first(void **state)
{
    struct fixture *f = *state;
    FILE *stream = dial(f->path);

    assert_hears(stream, "\"QMP\"");
    say(stream, "{\"execute\":\"echo\",\"arguments\":{\"text\":\"x\"}}\n");
    assert_hears(stream, "CommandNotFound");
    say(stream, "{\"execute\":\"qmp_capabilities\"}\n");
    assert_hears(stream, "return");
    say(stream, "{\"execute\":\"qmp_capabilities\"}\n");
    assert_hears(stream, "CommandNotFound");
    fclose(stream);
}

static void requests_in_pieces_and_in_one_piece(void **state)
{
    struct fixture *f = *state;
    FILE *stream = dial_negotiated(f->path);
    const char *text = "{\"execute\":\"echo\",\"arguments\":{\"text\":\"\\u00e9}{\"},\"id\":7}";

    for (const char *c = text; *c; c++)
        assert_int_equal(write(fileno(stream), c, 1), 1);
    assert_hears(stream, "\"id\": 7");
    say(stream, "{\"execute\":\"echo\",\"arguments\":{\"text\":\"a\"},\"id\":1}"
                "{\"execute\":\"fail\",\"id\":2}\r\n \t{\"execute\":\"nothing\",\"id\":\"3\"}");
    assert_string_equal(hear(stream), "{ \"return\": { \"text\": \"a\" }, \"id\": 1 }\r\n");
    assert_string_equal(hear(stream), "{ \"error\": { \"class\": \"GenericError\", \"desc\": "
                                      "\"no, thank you\" }, \"id\": 2 }\r\n");
    const char *line = hear(stream);
    assert_non_null(strstr(line, "CommandNotFound"));
    assert_non_null(strstr(line, "\"id\": \"3\""));
    fclose(stream);
}

static void arguments_are_checked_by_the_table(void **state)
{
    struct fixture *f = *state;
    FILE *stream = dial_negotiated(f->path);

    say(stream, "{\"execute\":\"echo\"}\n");
    assert_hears(stream, "argument 'text' is missing");
    say(stream, "{\"execute\":\"echo\",\"arguments\":{\"text\":3}}\n");
    assert_hears(stream, "argument 'text' has the wrong type");
    say(stream, "{\"execute\":\"echo\",\"arguments\":{\"text\":\"\",\"count\":1.5}}\n");
    assert_hears(stream, "argument 'count' has the wrong type");
    say(stream, "{\"execute\":\"echo\",\"arguments\":{\"text\":\"\",\"colour\":1}}\n");
    assert_hears(stream, "does not know");
    say(stream, "{\"execute\":\"echo\",\"arguments\":[]}\n");
    assert_hears(stream, "must be an object");
    say(stream, "{\"execute\":3}\n");
    assert_hears(stream, "lacks member 'execute'");
    say(stream, "{\"execute\":\"fail\",\"colour\":3}\n");
    assert_hears(stream, "unexpected member");
    say(stream, "{\"execute\":\"fail\"}\n");
    assert_hears(stream, "no, thank you");
    fclose(stream);
}

static void bad_json_costs_one_line(void **state)
{
    static const char *const bad[] = {
        "hello\n", "[1,2]\n", "{\"execute\":}\n", "{'execute':'fail'}\n", "{\"a\":\"\xff\"}\n",
        "{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]}\n", "}\n", "1 2 3\n",
        "{\"a\":NaN}\n",
    };
    struct fixture *f = *state;
    FILE *stream = dial_negotiated(f->path);

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        say(stream, bad[i]);
        assert_hears(stream, "GenericError");
        say(stream, "{\"execute\":\"fail\",\"id\":9}\n");
        assert_hears(stream, "\"id\": 9");
    }
    fclose(stream);
}

static void an_endless_request_is_cut(void **state)
{
    struct fixture *f = *state;
    FILE *stream = dial_negotiated(f->path);
    char *text = malloc(VFMIG_MAX_QMP_INPUT + 100);

    memset(text, 'x', VFMIG_MAX_QMP_INPUT + 99);
    text[VFMIG_MAX_QMP_INPUT + 99] = 0;
    memcpy(text, "{\"execute\":\"", 12);
    say(stream, text);
    assert_hears(stream, "too long");
    say(stream, "\n{\"execute\":\"fail\"}");
    assert_hears(stream, "no, thank you");
    free(text);
    fclose(stream);
}

static void events_reach_every_negotiated_client(void **state)
{
    struct fixture *f = *state;
    FILE *one = dial_negotiated(f->path);
    FILE *two = dial_negotiated(f->path);
    FILE *stranger = dial(f->path);

    assert_hears(stranger, "QMP");
    vfmig_qmp_event(f->qmp, "STOP", NULL);
    for (int i = 0; i < 2; i++) {
        const char *line = hear(i ? two : one);
        assert_non_null(strstr(line, "\"event\": \"STOP\""));
        assert_non_null(strstr(line, "\"seconds\""));
    }
    say(stranger, "{\"execute\":\"qmp_capabilities\"}");
    assert_string_equal(hear(stranger), "{ \"return\": { } }\r\n");
    fclose(one);
    fclose(two);
    fclose(stranger);
}

static void clients_that_leave_in_the_middle_do_no_harm(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < 3 * VFMIG_MAX_QMP_CLIENTS; i++) {
        FILE *stream = dial(f->path);
        say(stream, i % 2 ? "{\"execute\":\"qmp_cap" : "{\"execute\":\"qmp_capabilities\"}");
        fclose(stream);
    }
    FILE *stream = dial_negotiated(f->path);
    fclose(stream);
}

static void a_client_that_never_reads_is_cut_off(void **state)
{
    struct fixture *f = *state;
    FILE *deaf = dial_negotiated(f->path);
    char text[4096];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = 0;
    /* More than its socket and its queue hold together. */
    for (unsigned i = 0; i < 4 * VFMIG_MAX_QMP_OUTPUT / sizeof(text); i++)
        vfmig_qmp_event(f->qmp, "X", json_object_new_string(text));
    FILE *stream = dial_negotiated(f->path);
    fclose(stream);
    while (fgets(text, sizeof(text), deaf))
        ;
    assert_true(feof(deaf)); /* closed by the server, not by the timeout */
    fclose(deaf);
}

static void a_live_socket_is_refused_and_a_stale_one_replaced(void **state)
{
    struct fixture *f = *state;
    struct vfmig_qmp *other;
    struct vfmig_error err = {0};
    struct stat status;

    assert_int_equal(stat(f->path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    assert_int_equal(vfmig_qmp_start(f->path, commands, NULL, &other, &err), -EADDRINUSE);
    assert_non_null(strstr(err.text, f->path));

    char stale[96];
    snprintf(stale, sizeof(stale), "%s/stale", f->folder);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, stale);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd);
    assert_int_equal(vfmig_qmp_start(stale, commands, NULL, &other, &err), 0);
    FILE *stream = dial_negotiated(stale);
    fclose(stream);
    vfmig_qmp_stop(other);
}

static void a_path_that_is_too_long_is_named(void **state)
{
    char path[300];
    struct vfmig_qmp *other;
    struct vfmig_error err = {0};

    memset(path, 'p', sizeof(path) - 1);
    path[sizeof(path) - 1] = 0;
    assert_int_equal(vfmig_qmp_start(path, commands, NULL, &other, &err), -ENAMETOOLONG);
    assert_int_equal(vfmig_qmp_start("/nonexistent/qmp", commands, NULL, &other, &err), -ENOENT);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(negotiation_comes_first),
        T(requests_in_pieces_and_in_one_piece),
        T(arguments_are_checked_by_the_table),
        T(bad_json_costs_one_line),
        T(an_endless_request_is_cut),
        T(events_reach_every_negotiated_client),
        T(clients_that_leave_in_the_middle_do_no_harm),
        T(a_client_that_never_reads_is_cut_off),
        T(a_live_socket_is_refused_and_a_stale_one_replaced),
        T(a_path_that_is_too_long_is_named),
    };
    return cmocka_run_group_tests_name("qmp", tests, NULL, NULL);
}
