/* SPDX-License-Identifier: BSD-3-Clause */
/* A call whose reply another thread reads: at its deadline the reply is looked at before the clock. The thread that
 * reads is held between its poll and its receive, as when the whole process stood still. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "target/conn.h"

#define LONG UINT64_C(60000000000)
#define SOON UINT64_C(50000000)
#define HELD UINT64_C(200000000) /* behind the deadline; what gives up does so at once */

static struct vfmig_conn *conn;
static int peer;
static atomic_bool ended;          /* the call that follows */
static _Atomic uint64_t held_from; /* its deadline; 0: nobody is held */
static atomic_bool hold, polled;

int __real_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
    atomic_store(&polled, true);
    int n = __real_poll(fds, count, timeout_ms);
    while (atomic_load(&hold) && !atomic_load(&ended) &&
           (!atomic_load(&held_from) || vfmig_now_ns() < atomic_load(&held_from) + HELD))
        usleep(1000);
    return n;
}

static int call(uint64_t deadline_ns, struct vfmig_error *reterr)
{
    struct vfmig_user_device_info info = {.argsz = sizeof(info)};
    struct vfmig_call c = {
        .command = VFMIG_USER_GET_INFO,
        .request = &info,
        .request_size = sizeof(info),
        .reply = &info,
        .reply_room = sizeof(info),
    };

    return vfmig_conn_call(conn, &c, deadline_ns, reterr);
}

static void *lead(void *result)
{
    *(int *)result = call(vfmig_deadline_ns(LONG), NULL);
    return NULL;
}

static void *follow(void *result)
{
    uint64_t deadline_ns = vfmig_now_ns() + SOON;

    atomic_store(&held_from, deadline_ns);
    *(int *)result = call(deadline_ns, NULL);
    atomic_store(&ended, true);
    return NULL;
}

static struct vfmig_user_header next_request(void)
{
    struct vfmig_user_device_info info;
    struct vfmig_user_header h;

    assert_int_equal(recv(peer, &h, sizeof(h), MSG_WAITALL), sizeof(h));
    assert_int_equal(recv(peer, &info, sizeof(info), MSG_WAITALL), sizeof(info));
    return h;
}

static void answer(struct vfmig_user_header h)
{
    struct vfmig_user_device_info info = {.argsz = sizeof(info)};
    uint8_t message[sizeof(h) + sizeof(info)];

    h.flags = VFMIG_USER_TYPE_REPLY;
    memcpy(message, &h, sizeof(h));
    memcpy(message + sizeof(h), &info, sizeof(info));
    assert_int_equal(send(peer, message, sizeof(message), MSG_NOSIGNAL), sizeof(message));
}

static void begin(pthread_t *ret_thread, void *(*what)(void *), int *ret_result,
                  struct vfmig_user_header *ret_request)
{
    assert_int_equal(pthread_create(ret_thread, NULL, what, ret_result), 0);
    *ret_request = next_request();
}

/* The first of two: it reads for both. */
static void begin_leader(pthread_t *ret_thread, int *ret_result, struct vfmig_user_header *ret_request)
{
    atomic_store(&polled, false);
    begin(ret_thread, lead, ret_result, ret_request);
    while (!atomic_load(&polled))
        usleep(1000);
}

static void a_reply_that_is_here_is_not_late(void **state)
{
    struct vfmig_user_header first, second;
    pthread_t leader, follower;
    int pair[2], led = 1, followed = 1;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    peer = pair[1];
    assert_int_equal(vfmig_conn_new(pair[0], 1u << 20, NULL, NULL, &conn, NULL), 0);
    atomic_store(&hold, true);
    begin_leader(&leader, &led, &first);
    begin(&follower, follow, &followed, &second);
    answer(second);
    pthread_join(follower, NULL);
    atomic_store(&hold, false);
    assert_int_equal(followed, 0);
    answer(first);
    pthread_join(leader, NULL);
    assert_int_equal(led, 0);
    /* And one that is not here is. */
    atomic_store(&ended, false);
    begin_leader(&leader, &led, &first);
    begin(&follower, follow, &followed, &second);
    pthread_join(follower, NULL);
    assert_int_equal(followed, -ETIMEDOUT);
    answer(second);
    answer(first);
    pthread_join(leader, NULL);
    assert_int_equal(led, 0);
    vfmig_conn_free(conn);
    close(peer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reply_that_is_here_is_not_late),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
