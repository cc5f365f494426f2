/* SPDX-License-Identifier: BSD-3-Clause */
/* Large replies, which go from the socket to the caller's buffer: in any pieces, beside others',
 * and given up in the middle. The test holds both ends of the connection. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "target/conn.h"

#define SIZE   100000u
#define HEAD   (sizeof(struct vfmig_user_header) + sizeof(struct vfmig_user_mig_data))
#define CANARY 0x5a
#define SOON   UINT64_C(20000000)
#define LONG   UINT64_C(60000000000)

static struct vfmig_conn *conn;
static int peer;
static uint8_t out[HEAD + SIZE + 64], in[SIZE + 64];

static uint32_t served, served_wrong;

/* Commands of the peer: every byte of the payload is the message's id. */
static int serve(void *opaque, struct vfmig_user_msg *msg, struct vfmig_error *reterr)
{
    served++;
    for (uint32_t i = 0; i < msg->size; i++)
        served_wrong += msg->payload[i] != msg->header.id;
    return 0;
}

static int start(void **state)
{
    int pair[2], room = 1 << 20;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    peer = pair[1];
    assert_int_equal(setsockopt(peer, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)), 0);
    return vfmig_conn_new(pair[0], 1u << 20, serve, NULL, &conn, NULL);
}

static int stop(void **state)
{
    vfmig_conn_free(conn);
    close(peer);
    return 0;
}

/* A reply of size bytes that differ with id; returns the bytes of the message. */
static size_t make_reply(uint16_t id, uint32_t size)
{
    struct vfmig_user_header h = {id, VFMIG_USER_MIG_DATA_READ, (uint32_t)HEAD + size,
                                  VFMIG_USER_TYPE_REPLY, 0};
    struct vfmig_user_mig_data data = {8 + size, size};

    memcpy(out, &h, sizeof(h));
    memcpy(out + sizeof(h), &data, sizeof(data));
    for (uint32_t i = 0; i < size; i++)
        out[HEAD + i] = (uint8_t)(i * 31 + i / 256 + id);
    return HEAD + size;
}

static void check_data(uint16_t id, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++)
        if (in[i] != (uint8_t)(i * 31 + i / 256 + id))
            fail_msg("byte %u of %u", i, size);
    for (uint32_t i = size; i < sizeof(in); i++)
        assert_int_equal(in[i], CANARY);
}

static void send_bytes(const uint8_t *bytes, size_t size)
{
    assert_int_equal(send(peer, bytes, size, MSG_NOSIGNAL), size);
}

static int call(uint64_t timeout_ns, struct vfmig_error *reterr)
{
    struct vfmig_user_mig_data request = {8 + SIZE, SIZE}, reply;
    struct vfmig_call c = {
        .command = VFMIG_USER_MIG_DATA_READ,
        .request = &request,
        .request_size = sizeof(request),
        .reply = &reply,
        .reply_room = sizeof(reply),
        .reply_data = in,
        .reply_data_room = SIZE,
    };

    memset(in, CANARY, sizeof(in));
    int r = vfmig_conn_call(conn, &c, vfmig_deadline_ns(timeout_ns), reterr);
    if (r == 0)
        assert_int_equal(c.ret_size, sizeof(reply) + reply.size);
    return r == 0 ? (int)reply.size : r;
}

/* Sends one reply in two pieces, the second a little later: the client has mostly read the first
 * by then, and what it gets is the same if not. */
static void *cutter(void *arg)
{
    const size_t *at = arg; /* where it is cut, and its size */

    send_bytes(out, at[0]);
    usleep(2000);
    send_bytes(out + at[0], at[1] - at[0]);
    return NULL;
}

static void in_any_two_pieces(void **state)
{
    static const size_t cuts[] = {1, 15, 16, 17, 23, 24, 25, 63, 64, 65, 1000, 50000, SIZE};
    uint16_t id = 0;

    for (unsigned i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++, id++) {
        size_t arg[2] = {cuts[i], make_reply(id, SIZE)};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, cutter, arg), 0);
        assert_int_equal(call(LONG, NULL), SIZE);
        pthread_join(thread, NULL);
        check_data(id, SIZE);
    }
    /* Short ones, empty ones and refusals to the same request. */
    for (uint32_t size = 0; size < 70; size++, id++) {
        send_bytes(out, make_reply(id, size));
        assert_int_equal(call(LONG, NULL), size);
        check_data(id, size);
    }
    struct vfmig_user_header h = {id, VFMIG_USER_MIG_DATA_READ, 16,
                                  VFMIG_USER_TYPE_REPLY | VFMIG_USER_ERROR, EBUSY};
    send_bytes((void *)&h, sizeof(h));
    assert_int_equal(call(LONG, NULL), -EBUSY);
    check_data(0, 0);
}

/* Two replies in one piece: the second is not eaten. */
static void one_behind_another(void **state)
{
    send_bytes(out, make_reply(0, SIZE));
    send_bytes(out, make_reply(1, 40000));
    assert_int_equal(call(LONG, NULL), SIZE);
    check_data(0, SIZE);
    assert_int_equal(call(LONG, NULL), 40000);
    check_data(1, 40000);
}

/* Given up in the middle: the caller has its buffer back, the rest is thrown away when it comes,
 * and the connection goes on. */
static void given_up_in_the_middle(void **state)
{
    static const size_t cuts[] = {10, 24, 64, 3000, SIZE};
    struct vfmig_error error;
    uint16_t id = 0;

    for (unsigned i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        size_t size = make_reply(id, SIZE);
        uint8_t *rest = malloc(size);
        memcpy(rest, out, size);
        send_bytes(out, cuts[i]);
        assert_int_equal(call(SOON, &error), -ETIMEDOUT);
        assert_false(vfmig_conn_failed(conn));
        send_bytes(rest + cuts[i], size - cuts[i]);
        free(rest);
        send_bytes(out, make_reply(++id, SIZE));
        assert_int_equal(call(LONG, &error), SIZE);
        check_data(id++, SIZE);
    }
}

/* The answer to a call that was given up comes first, whole, and in one piece with the one that is
 * waited for: it has not been in the caller's buffer for good. */
static void behind_a_late_one(void **state)
{
    static const uint32_t sizes[] = {0, 8, 5000, SIZE};
    struct vfmig_error error;
    uint16_t id = 0;

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        assert_int_equal(call(SOON, &error), -ETIMEDOUT);
        size_t late = make_reply(id++, sizes[i]);
        uint8_t *both = malloc(late + HEAD + SIZE);
        memcpy(both, out, late);
        size_t mine = make_reply(id, SIZE);
        memcpy(both + late, out, mine);
        send_bytes(both, late + HEAD + SIZE);
        free(both);
        assert_int_equal(call(LONG, &error), SIZE);
        check_data(id++, SIZE);
    }
}

/* A command of the peer's comes first, in one piece with the reply or with a refusal. */
static void behind_a_command(void **state)
{
    static const uint32_t sizes[] = {0, 8, 5000, SIZE};
    struct vfmig_error error;

    served = served_wrong = 0;
    for (uint16_t id = 0; id < 8; id++) {
        uint32_t size = sizes[id % 4], head = sizeof(struct vfmig_user_header);
        struct vfmig_user_header h = {id, VFMIG_USER_DMA_WRITE, head + size, VFMIG_USER_TYPE_CMD, 0};
        struct vfmig_user_header no = {id, VFMIG_USER_MIG_DATA_READ, head,
                                       VFMIG_USER_TYPE_REPLY | VFMIG_USER_ERROR, EBUSY};
        size_t mine = id < 4 ? make_reply(id, SIZE) : head;
        uint8_t *both = malloc(head + size + HEAD + SIZE);
        memcpy(both, &h, head);
        memset(both + head, id, size);
        memcpy(both + head + size, id < 4 ? out : (void *)&no, mine);
        send_bytes(both, head + size + mine);
        free(both);
        assert_int_equal(call(LONG, &error), id < 4 ? (int)SIZE : -EBUSY);
        if (id < 4)
            check_data(id, SIZE);
        assert_int_equal(served, id + 1);
        assert_int_equal(served_wrong, 0);
    }
}

/* A descriptor that nobody asked for does not stay open. */
static void with_a_descriptor(void **state)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {out, make_reply(0, SIZE)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                         .msg_controllen = sizeof(control)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
    struct vfmig_error error;
    int ends[2];
    char byte;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &ends[1], sizeof(int));
    assert_int_equal(sendmsg(peer, &msg, MSG_NOSIGNAL), iov.iov_len);
    close(ends[1]);
    assert_int_equal(call(LONG, &error), SIZE);
    check_data(0, SIZE);
    assert_int_equal(recv(ends[0], &byte, 1, MSG_DONTWAIT), 0);
    close(ends[0]);
}

static void the_peer_goes_away_in_the_middle(void **state)
{
    struct vfmig_error error;

    make_reply(0, SIZE);
    send_bytes(out, 5000);
    shutdown(peer, SHUT_WR);
    assert_int_equal(call(LONG, &error), -ECONNRESET);
    assert_true(vfmig_conn_failed(conn));
}

/* More than was asked for, or another answer: nothing of it reaches the buffer's end. */
static void wrong_replies(void **state)
{
    struct vfmig_error error;
    size_t size = make_reply(0, SIZE + 8);

    send_bytes(out, size);
    assert_int_equal(call(LONG, &error), -EPROTO);
    assert_int_equal(error.origin, VFMIG_ORIGIN_PEER);
    for (uint32_t i = SIZE; i < sizeof(in); i++)
        assert_int_equal(in[i], CANARY);
    stop(NULL);
    start(NULL);
    make_reply(0, SIZE);
    out[2] = VFMIG_USER_REGION_READ; /* the command */
    send_bytes(out, HEAD + SIZE);
    assert_int_equal(call(LONG, &error), -EPROTO);
}

int main(void)
{
#define WITH(test) cmocka_unit_test_setup_teardown(test, start, stop)
    const struct CMUnitTest tests[] = {
        WITH(in_any_two_pieces),
        WITH(one_behind_another),
        WITH(given_up_in_the_middle),
        WITH(behind_a_late_one),
        WITH(behind_a_command),
        WITH(with_a_descriptor),
        WITH(the_peer_goes_away_in_the_middle),
        WITH(wrong_replies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
