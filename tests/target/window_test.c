/* SPDX-License-Identifier: BSD-3-Clause */
/* The client and a VERSION answer with a shared window that is not as agreed: it says so, maps
 * nothing that could go away under it, and leaks no descriptor. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/sock.h"
#include "served.h"
#include "wire/wire.h"

enum file { NONE, GOOD, UNSEALED, SMALL, DEVNULL, SOCKET };

struct answer {
    const char *caps; /* what is inside of "capabilities" */
    enum file files[3];
    bool no_window;
    int want; /* of the client */
};

struct script {
    const struct answer *answer;
    int listener;
    pthread_t thread;
};

static int make_file(enum file kind)
{
    int pair[2], fd;

    switch (kind) {
    case DEVNULL:
        return open("/dev/null", O_RDWR | O_CLOEXEC);
    case SOCKET:
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        close(pair[1]);
        return pair[0];
    default:
        fd = memfd_create("window", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        assert_int_equal(ftruncate(fd, kind == SMALL ? 16384 - 1 : 16384), 0);
        if (kind != UNSEALED)
            assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
        return fd;
    }
}

/* Answers VERSION, takes what is sent next, and goes away. */
static void *serve(void *arg)
{
    const struct script *s = arg;
    struct vfmig_user_header h;
    struct vfmig_user_version version = {0, 2};
    struct vfmig_fds fds = {.count = 0};
    char text[512];
    uint8_t request[4096];
    int fd;

    if (vfmig_sock_accept(s->listener, VFMIG_NEVER, &fd, NULL) < 0)
        return NULL;
    if (vfmig_sock_recv_all(fd, &h, sizeof(h), VFMIG_NEVER, NULL) == 0 &&
        vfmig_sock_recv_all(fd, request, h.size - sizeof(h), VFMIG_NEVER, NULL) == 0) {
        int size = snprintf(text, sizeof(text), "{\"capabilities\":{%s}}", s->answer->caps) + 1;
        for (unsigned i = 0; i < 3 && s->answer->files[i] != NONE; i++)
            fds.fd[fds.count++] = make_file(s->answer->files[i]);
        h = vfmig_user_make_reply(&h, (uint32_t)(sizeof(version)) + (uint32_t)size);
        struct iovec iov[3] = {{&h, sizeof(h)}, {&version, sizeof(version)}, {text, (size_t)size}};
        vfmig_sock_send(fd, iov, 3, &fds, VFMIG_NEVER, NULL, NULL);
        vfmig_fds_close(&fds);
        vfmig_sock_recv_all(fd, &h, sizeof(h), VFMIG_NEVER, NULL);
    }
    close(fd);
    return NULL;
}

#define WINDOW(rest) "\"vfmig\":{\"window\":8192,\"windows\":2" rest "}"
#define TWIN(index)  "\"twin_socket\":{\"supported\":true,\"fd_index\":" #index "},"

static const struct answer answers[] = {
    /* As agreed: what ends it is that this server goes away. */
    {"", {NONE}, false, -ECONNRESET},
    {WINDOW(",\"fd_index\":0"), {GOOD}, false, -ECONNRESET},
    {TWIN(0) WINDOW(",\"fd_index\":1"), {SOCKET, GOOD}, false, -ECONNRESET},
    {TWIN(1) WINDOW(",\"fd_index\":0"), {GOOD, SOCKET}, false, -ECONNRESET},
    {"\"vfmig\":{\"window\":4096,\"windows\":1,\"fd_index\":0}", {SMALL}, false, -ECONNRESET},
    /* Larger than was asked for, or than its file; more of them than the file holds. */
    {"\"vfmig\":{\"window\":16384,\"windows\":1,\"fd_index\":0}", {GOOD}, false, -EPROTO},
    {WINDOW(",\"fd_index\":0"), {SMALL}, false, -EPROTO},
    {"\"vfmig\":{\"window\":8192,\"windows\":3,\"fd_index\":0}", {GOOD}, false, -EPROTO},
    {"\"vfmig\":{\"window\":8192,\"windows\":9,\"fd_index\":0}", {GOOD}, false, -EINVAL},
    /* Memory that can shrink, or is none. */
    {WINDOW(",\"fd_index\":0"), {UNSEALED}, false, -EPROTO},
    {WINDOW(",\"fd_index\":0"), {DEVNULL}, false, -EPROTO},
    {WINDOW(",\"fd_index\":0"), {SOCKET}, false, -EPROTO},
    /* Descriptors that are not there, are the other one's, or are too many. */
    {WINDOW(",\"fd_index\":0"), {NONE}, false, -EPROTO},
    {WINDOW(""), {GOOD}, false, -EPROTO},
    {WINDOW(",\"fd_index\":1"), {GOOD}, false, -EPROTO},
    {TWIN(0) WINDOW(",\"fd_index\":0"), {GOOD}, false, -EPROTO},
    {WINDOW(",\"fd_index\":0"), {GOOD, DEVNULL}, false, -EPROTO},
    {"", {GOOD}, false, -EPROTO},
    {TWIN(0) WINDOW(",\"fd_index\":1"), {SOCKET, GOOD, GOOD}, false, -EPROTO},
    /* Nobody asked. */
    {WINDOW(",\"fd_index\":0"), {GOOD}, true, -EPROTO},
};

static void answers_are_held_against_the_offer(void **state)
{
    int before = open_descriptors();

    for (unsigned i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
        struct script s = {.answer = &answers[i]};
        struct vfmig_user_options opt = {.window = 8192, .no_window = answers[i].no_window};
        struct vfmig_target *t;
        struct vfmig_error err;
        char path[64];
        served_path(path, sizeof(path));
        assert_int_equal(vfmig_sock_listen(path, &s.listener, NULL), 0);
        assert_int_equal(pthread_create(&s.thread, NULL, serve, &s), 0);
        int r = vfmig_user_open(path, &opt, &t, &err);
        pthread_join(s.thread, NULL);
        close(s.listener);
        unlink(path);
        if (r != answers[i].want || err.origin != VFMIG_ORIGIN_PEER)
            fail_msg("answer %u: %d (%s)", i, r, err.text);
        assert_int_equal(open_descriptors(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_held_against_the_offer),
    };
    return cmocka_run_group_tests(tests, served_setup, served_teardown);
}
