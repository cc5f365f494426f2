/* SPDX-License-Identifier: BSD-3-Clause */
/* C53 and hostile peers: whatever a client sends, in whatever pieces, in whatever state, the server
 * lives, leaks nothing, and serves the next client. The
 * messages are right ones with a few fields changed, from a fixed seed; sanitizers watch. */
#include "peer.h"
#include "toy.h"

#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROUNDS   300u
#define MESSAGES 100u

static uint64_t seed = 0x9e3779b97f4a7c15;

static uint32_t any(uint32_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 32) % below;
}

static uint64_t any_number(void)
{
    static const uint64_t some[] = {0, 1, 2, 4, 8, 9, 16, 4096, 0x8000, RAM_IOVA, RAM_SIZE,
                                    UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_MAX - 4095};
    uint64_t value = some[any(sizeof(some) / sizeof(some[0]))];
    return any(3) ? value : value + any(64) - 32;
}

/* Payload of about the right form; anything may follow or be missing. */
static uint32_t make_payload(uint16_t command, uint8_t *out)
{
    uint32_t size = 8 * any(9);
    uint32_t words[32];

    for (unsigned i = 0; i < 32; i += 2) {
        uint64_t value = any_number();
        memcpy(&words[i], &value, 8);
    }
    switch (command) {
    case VFMIG_USER_DMA_MAP:
        words[0] = size = 32;
        words[1] = any(5);
        break;
    case VFMIG_USER_REGION_READ:
    case VFMIG_USER_REGION_WRITE:
        words[2] = any(11);
        words[3] = any(3) ? 1u << any(4) : any(70);
        size = command == VFMIG_USER_REGION_READ ? 16 : 16 + words[3];
        if (words[2] == VFMIG_REGION_MIGRATION && any(2)) {
            words[0] = 8 * any(5);
            words[1] = 0;
        }
        break;
    case VFMIG_USER_SET_IRQS:
        words[0] = 20;
        words[1] = 1u << any(3) | 8u << any(3);
        words[2] = any(6);
        words[3] = any(5);
        words[4] = any(5);
        size = 20 + any(4);
        break;
    case VFMIG_USER_FEATURE:
        words[0] = any(3) ? 4096 : (uint32_t)any_number();
        words[1] = any(12) | 0x10000u << any(3);
        words[2] = any(9);
        break;
    case VFMIG_USER_MIG_DATA_READ:
    case VFMIG_USER_MIG_DATA_WRITE:
        words[1] = any(100);
        words[0] = 8 + words[1];
        size = command == VFMIG_USER_MIG_DATA_READ ? 8 : 8 + words[1];
        break;
    default:
        words[0] = any(2) ? 40 : words[0];
        words[1] = any(5);
        break;
    }
    memcpy(out, words, sizeof(words));
    return size <= sizeof(words) ? size : sizeof(words);
}

static void send_some(int fd, int ram_fd)
{
    uint8_t buf[256];
    uint16_t command = (uint16_t)(any(20) ? 1 + any(18) : any(70000));
    uint32_t size = make_payload(command, buf + 16);
    struct vfmig_user_header h = {(uint16_t)any(9), command, 16 + size, any(4) ? 0 : 0x10, 0};

    if (any(30) == 0)
        h.flags = any(256);
    if (any(60) == 0)
        h.size += any(3) - 1;
    memcpy(buf, &h, 16);
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    uint32_t total = 16 + size, cut = any(3) ? total : any(total);
    struct iovec iov = {buf, cut};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (any(4) == 0 && cut) {
        msg.msg_control = control.buf;
        msg.msg_controllen = sizeof(control.buf);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &ram_fd, sizeof(int));
    }
    sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (cut < total)
        send(fd, buf + cut, total - cut, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) > 0)
        ;
}

static void any_messages_in_any_state(void **state)
{
    struct toy *toy = toy_new(true, true, true, 1000000);

    for (unsigned round = 0; round < ROUNDS; round++) {
        struct peer *peer = peer_start(toy->dev);
        assert_int_equal(peer_version(peer, "{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":"
                                            "{\"supported\":true}}}"), 0);
        assert_int_equal(peer_map(peer, RAM_IOVA, RAM_SIZE / 2, peer->ram_fd, 0, 3), 0);
        assert_int_equal(peer_map(peer, RAM_IOVA + RAM_SIZE / 2, RAM_SIZE / 2, peer->ram_fd,
                                  RAM_SIZE / 2, 1), 0);
        assert_int_equal(peer_set_v1(peer, (uint32_t[]){0, 1, 2, 3, 4, 9, 11}[round % 7]), 0);
        for (unsigned i = 0; i < MESSAGES; i++)
            send_some(peer->fd, any(2) ? peer->ram_fd : peer->twin);
        peer_end(peer);
    }
    struct peer *peer = peer_start(toy->dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    assert_int_equal(peer_get_v1(peer), 1);
    assert_int_equal(peer_put(peer, 0, TOY_SCRATCH, 3, 8), 0);
    assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 8), 3);
    peer_end(peer);
    toy_free(toy);
}

/* Bytes that are no messages at all. */
static void noise(void **state)
{
    struct toy *toy = toy_new(true, true, true, 0);

    for (unsigned round = 0; round < ROUNDS; round++) {
        struct peer *peer = peer_start(toy->dev);
        uint8_t buf[512];
        if (round % 2)
            assert_int_equal(peer_version(peer, NULL), 0);
        for (unsigned i = 0; i < sizeof(buf); i++)
            buf[i] = (uint8_t)any(256);
        send(peer->fd, buf, 1 + any(sizeof(buf) - 1), MSG_NOSIGNAL);
        peer_end(peer);
    }
    struct peer *peer = peer_start(toy->dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    assert_int_equal(peer_get_v1(peer), 1);
    peer_end(peer);
    toy_free(toy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_messages_in_any_state),
        cmocka_unit_test(noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
