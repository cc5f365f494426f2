/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "io/sock.h"

static char dir[] = "/tmp/vfmig-sock-XXXXXX";

static int setup(void **state)
{
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    return rmdir(dir);
}

static int open_fds(void)
{
    int count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void exchange(int a, int b)
{
    char out[] = "twelve bytes", in[sizeof(out)];
    struct iovec iov[2] = {{out, 4}, {out + 4, sizeof(out) - 4}};
    size_t sent;

    assert_int_equal(vfmig_sock_send(a, iov, 2, NULL, VFMIG_NEVER, &sent, NULL), 0);
    assert_int_equal(sent, sizeof(out));
    assert_int_equal(vfmig_sock_recv_all(b, in, sizeof(in), VFMIG_NEVER, NULL), 0);
    assert_string_equal(in, out);
}

static void connect_all(const char *address)
{
    struct vfmig_error err = {0};
    char name[200];
    int listener, client, server;

    assert_int_equal(vfmig_sock_listen(address, &listener, &err), 0);
    assert_int_equal(vfmig_sock_address(listener, name, sizeof(name), &err), 0);
    assert_int_equal(vfmig_sock_connect(name, vfmig_deadline_ns(1000000000), &client, &err), 0);
    assert_int_equal(vfmig_sock_accept(listener, VFMIG_NEVER, &server, &err), 0);
    assert_true(fcntl(client, F_GETFD) & FD_CLOEXEC);
    assert_true(fcntl(server, F_GETFD) & FD_CLOEXEC);
    exchange(client, server);
    exchange(server, client);
    close(client);
    char byte;
    assert_int_equal(vfmig_sock_recv(server, &byte, 1, NULL, NULL, VFMIG_NEVER, &err), 0);
    assert_int_equal(vfmig_sock_recv_all(server, &byte, 1, VFMIG_NEVER, &err), -ECONNRESET);
    assert_int_equal(err.origin, VFMIG_ORIGIN_PEER);
    close(server);
    close(listener);
}

static void addresses(void **state)
{
    char address[200];
    struct vfmig_error err;
    int fd;

    connect_all("tcp:127.0.0.1:0");
    snprintf(address, sizeof(address), "unix:%s/a", dir);
    connect_all(address);
    connect_all(address); /* the path left behind is stale: taken over */
    assert_int_equal(vfmig_sock_connect(address, VFMIG_NEVER, &fd, &err), -ECONNREFUSED);
    assert_int_equal(err.origin, VFMIG_ORIGIN_KERNEL);
    int listener;
    assert_int_equal(vfmig_sock_listen(address, &listener, &err), 0);
    assert_int_equal(vfmig_sock_listen(address, &fd, &err), -EADDRINUSE); /* alive: kept */
    close(listener);
    unlink(address + 5);
    assert_int_equal(vfmig_sock_connect(address, VFMIG_NEVER, &fd, &err), -ENOENT);

    static const char *const wrong[] = {"",          "here",   "unix:",         "tcp:",
                                        "tcp:host",  "tcp::1", "tcp:127.0.0.1:", "tcp:127.0.0.1:x",
                                        "udp:h:1"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(vfmig_sock_connect(wrong[i], VFMIG_NEVER, &fd, &err), -EINVAL);
        assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
    }
    char longer[300] = "unix:/";
    memset(longer + 6, 'x', 200);
    assert_int_equal(vfmig_sock_listen(longer, &fd, &err), -EINVAL);
}

/* Descriptors arrive once, close-on-exec; too many or unexpected ones are refused, none leaks. */
static void descriptors(void **state)
{
    int before = open_fds(), pair[2];
    struct vfmig_fds fds = {.count = 2, .fd = {0, 1}}, got = {0};
    struct vfmig_error err;
    char out[4] = "abc", in[8];
    struct iovec iov = {out, 4};

    assert_int_equal(vfmig_sock_pair(pair, NULL), 0);
    assert_int_equal(vfmig_sock_send(pair[0], &iov, 1, &fds, VFMIG_NEVER, NULL, NULL), 0);
    assert_int_equal(vfmig_sock_recv(pair[1], in, 1, &got, NULL, VFMIG_NEVER, NULL), 1);
    assert_int_equal(got.count, 2);
    assert_true(fcntl(got.fd[0], F_GETFD) & FD_CLOEXEC);
    vfmig_fds_close(&got);
    assert_int_equal(vfmig_sock_recv(pair[1], in, 8, &got, NULL, VFMIG_NEVER, NULL), 3);
    assert_int_equal(got.count, 0);

    iov = (struct iovec){out, 4};
    assert_int_equal(vfmig_sock_send(pair[0], &iov, 1, &fds, VFMIG_NEVER, NULL, NULL), 0);
    assert_int_equal(vfmig_sock_recv(pair[1], in, 8, NULL, NULL, VFMIG_NEVER, &err), 4);

    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * 40)] = {0};
    iov = (struct iovec){out, 4};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                         .msg_controllen = sizeof(control)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * 40);
    assert_int_equal(sendmsg(pair[0], &msg, 0), 4);
    assert_int_equal(vfmig_sock_recv(pair[1], in, 8, &got, NULL, VFMIG_NEVER, &err), -EPROTO);
    assert_int_equal(err.origin, VFMIG_ORIGIN_PEER);
    assert_int_equal(got.count, 0);
    close(pair[0]);
    close(pair[1]);
    assert_int_equal(open_fds(), before);
}

static void *drain(void *arg)
{
    char buf[4096];
    uint64_t total = 0;
    ssize_t n;

    while ((n = vfmig_sock_recv(*(int *)arg, buf, sizeof(buf), NULL, NULL, VFMIG_NEVER, NULL)) > 0)
        total += (uint64_t)n;
    return (void *)(uintptr_t)total;
}

/* A message above the socket buffer is sent whole while the other side reads piece by piece. */
static void large(void **state)
{
    size_t size = 8u << 20, sent;
    char *data = calloc(1, size);
    struct iovec iov[3] = {{data, 16}, {NULL, 0}, {data, size}};
    pthread_t thread;
    void *total;
    int pair[2];

    assert_non_null(data);
    assert_int_equal(vfmig_sock_pair(pair, NULL), 0);
    pthread_create(&thread, NULL, drain, &pair[1]);
    assert_int_equal(vfmig_sock_send(pair[0], iov, 3, NULL, VFMIG_NEVER, &sent, NULL), 0);
    assert_int_equal(sent, size + 16);
    close(pair[0]);
    pthread_join(thread, &total);
    assert_int_equal((uintptr_t)total, size + 16);
    close(pair[1]);
    free(data);
}

static void deadlines(void **state)
{
    struct vfmig_alarm alarm;
    struct vfmig_error err;
    char byte, *data = calloc(1, 8u << 20);
    struct iovec iov = {data, 8u << 20};
    int pair[2], listener, fd;
    size_t sent;

    assert_non_null(data);
    assert_int_equal(vfmig_sock_pair(pair, NULL), 0);
    assert_int_equal(vfmig_alarm_init(&alarm, NULL), 0);
    for (int i = 0; i < 4; i++) { /* the second round finds an alarm that rang before */
        struct vfmig_alarm *by = i % 2 ? &alarm : NULL;
        uint64_t deadline = vfmig_now_ns() + 60000000;
        assert_int_equal(vfmig_sock_recv(pair[0], &byte, 1, NULL, by, 0, &err), -ETIMEDOUT);
        assert_int_equal(err.origin, VFMIG_ORIGIN_PEER);
        assert_int_equal(vfmig_sock_recv(pair[0], &byte, 1, NULL, by, deadline, &err), -ETIMEDOUT);
        assert_true(vfmig_now_ns() >= deadline);
    }
    /* Set for an earlier deadline, it does not end a wait for a later one; nor does one for a later
     * deadline that is still set keep an earlier one waiting. */
    assert_int_equal(write(pair[1], "ab", 2), 2);
    uint64_t later = vfmig_now_ns() + 20000000;
    assert_int_equal(vfmig_sock_recv(pair[0], &byte, 1, NULL, &alarm, later, &err), 1);
    assert_int_equal(vfmig_sock_recv(pair[0], &byte, 1, NULL, &alarm, VFMIG_NEVER, &err), 1);
    later += 30000000;
    assert_int_equal(vfmig_sock_recv(pair[0], &byte, 1, NULL, &alarm, later, &err), -ETIMEDOUT);
    assert_true(vfmig_now_ns() >= later);
    assert_int_equal(write(pair[1], "c", 1), 1);
    later = vfmig_now_ns() + UINT64_C(3600000000000);
    assert_int_equal(vfmig_sock_recv(pair[0], &byte, 1, NULL, &alarm, later, &err), 1);
    assert_int_equal(vfmig_sock_recv(pair[0], &byte, 1, NULL, &alarm, vfmig_now_ns(), &err),
                     -ETIMEDOUT);
    vfmig_alarm_done(&alarm);
    int r = vfmig_sock_send(pair[0], &iov, 1, NULL, vfmig_deadline_ns(60000000), &sent, &err);
    assert_int_equal(r, -ETIMEDOUT);
    assert_true(sent > 0 && sent < (8u << 20));
    close(pair[1]);
    iov = (struct iovec){data, 1};
    assert_int_equal(vfmig_sock_send(pair[0], &iov, 1, NULL, VFMIG_NEVER, NULL, &err), -EPIPE);
    assert_int_equal(err.origin, VFMIG_ORIGIN_PEER);
    close(pair[0]);
    assert_int_equal(vfmig_sock_listen("tcp:127.0.0.1:0", &listener, &err), 0);
    assert_int_equal(vfmig_sock_accept(listener, vfmig_deadline_ns(1), &fd, &err), -ETIMEDOUT);
    close(listener);
    assert_int_equal(vfmig_deadline_ns(VFMIG_NEVER), VFMIG_NEVER);
    assert_int_equal(vfmig_deadline_ns(VFMIG_NEVER - 1), VFMIG_NEVER);
    free(data);
}

/* A name is asked for once, so what was looked at is what is listened on. */
static void near_addresses(void **state)
{
    struct vfmig_error err = {0};
    int fd = -1;

    assert_int_equal(vfmig_sock_listen_near("tcp:127.0.0.1:0", &fd, &err), 0);
    close(fd);
    assert_int_equal(vfmig_sock_listen_near("tcp:[::ffff:127.0.0.1]:0", &fd, &err), 0);
    close(fd);
    fd = -1;
    assert_int_equal(vfmig_sock_listen_near("tcp:0.0.0.0:0", &fd, &err), -EREMOTE);
    assert_int_equal(vfmig_sock_listen_near("tcp:192.0.2.7:0", &fd, &err), -EREMOTE);
    assert_int_equal(vfmig_sock_listen_near("tcp:127.0.0.1:nine", &fd, &err), -EINVAL);
    assert_int_equal(fd, -1);
}

/* Nobody accepts: so many are connected, and whoever comes then is told so. */
static void who_knocks(void **state)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    struct vfmig_error err = {0};
    char address[128];
    int listener, fds[VFMIG_MAX_KNOCKS + 2], count = 0;

    snprintf(where.sun_path, sizeof(where.sun_path), "%s/door", dir);
    snprintf(address, sizeof(address), "unix:%s", where.sun_path);
    assert_int_equal(vfmig_sock_listen(address, &listener, &err), 0);
    for (;;) {
        fds[count] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (connect(fds[count], (struct sockaddr *)&where, sizeof(where)) < 0)
            break;
        assert_in_range(++count, 1, VFMIG_MAX_KNOCKS + 1);
    }
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(count, VFMIG_MAX_KNOCKS + 1); /* Linux takes one more than it is told */
    for (int i = 0; i <= count; i++)
        close(fds[i]);
    close(listener);
    unlink(where.sun_path);
}

/* All of loopback is one host's, by whichever address; over a unix socket it is the user who counts. */
static void whose_it_is(void **state)
{
    static const char *const addresses[] = {"tcp:127.0.0.1:0", "tcp:127.0.0.7:0"};
    int pair[2], listener, ours, theirs;

    for (size_t i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
        char address[128];
        assert_int_equal(vfmig_sock_listen(addresses[i], &listener, NULL), 0);
        assert_int_equal(vfmig_sock_address(listener, address, sizeof(address), NULL), 0);
        assert_int_equal(vfmig_sock_connect(address, VFMIG_NEVER, &ours, NULL), 0);
        assert_int_equal(vfmig_sock_accept(listener, VFMIG_NEVER, &theirs, NULL), 0);
        assert_int_equal(vfmig_sock_whose(theirs), 127);
        close(ours);
        close(theirs);
        close(listener);
    }
    assert_int_equal(vfmig_sock_pair(pair, NULL), 0);
    assert_int_equal(vfmig_sock_whose(pair[0]), getuid());
    close(pair[0]);
    close(pair[1]);
    assert_int_equal(vfmig_sock_whose(pair[0]), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses),
        cmocka_unit_test(near_addresses),
        cmocka_unit_test(who_knocks),
        cmocka_unit_test(whose_it_is),
        cmocka_unit_test(descriptors),
        cmocka_unit_test(large),
        cmocka_unit_test(deadlines),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
