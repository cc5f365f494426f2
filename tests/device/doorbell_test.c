/* SPDX-License-Identifier: BSD-3-Clause */
/* Doorbells: handing eventfds out, what a signal does in each state, and that it takes effect
 * before a state write that came after it. One thread, so that every order is sure. */
#include "peer.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define MIG VFMIG_REGION_MIGRATION

/* What region_write was called with last. */
static struct {
    unsigned calls;
    uint64_t offset, value;
    uint32_t size;
    int result;
    struct vfmig_later later;
} rung;

static struct vfmig_device *dev;
static struct peer peer;
static int control;                      /* the control client's socket */
static int bells[VFMIG_DEVICE_DOORBELLS]; /* eventfds handed out last */
static unsigned bell_count;

static int region_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    rung.calls++;
    rung.offset = offset;
    rung.size = size;
    rung.value = 0;
    memcpy(&rung.value, data, size);
    if (rung.result == -EINPROGRESS)
        rung.later = vfmig_device_later(dev);
    return rung.result;
}

static ssize_t save(void *user, void *buf, size_t size)
{
    return 0;
}

static int load(void *user, const void *data, size_t size)
{
    return 0;
}

static void dispatch(void)
{
    assert_int_equal(vfmig_device_dispatch(dev, NULL), 0);
}

static int call(uint16_t command, const void *payload, uint32_t size)
{
    uint16_t id = peer_send(&peer, command, 0, payload, size, NULL, 0);
    dispatch();
    return peer_wait(&peer, id);
}

static void connect_with(const char *json)
{
    uint8_t buf[512] = {0, 0, 2, 0};
    uint32_t size = json ? (uint32_t)strlen(json) + 1 : 0;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(vfmig_device_attach_fd(dev, pair[1], NULL), 0);
    peer.fd = pair[0];
    if (json)
        memcpy(buf + 4, json, size);
    assert_int_equal(call(VFMIG_USER_VERSION, buf, 4 + size), 0);
}

static const uint64_t match = 5;

static int open_device(void **state)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    memset(&rung, 0, sizeof(rung));
    bell_count = 0;
    config.bars[0].size = 0x4000;
    config.bars[2].size = 0x1000;
    config.msix_vectors = 1;
    config.msix_table = 0x2000;
    config.msix_pba = 0x3000;
    ops.region_write = region_write;
    ops.save = save;
    ops.load = load;
    assert_int_equal(vfmig_device_new(&config, &ops, NULL, &dev, NULL), 0);
    assert_int_equal(vfmig_device_doorbell(dev, 0, 0x10, 4, NULL), 0);
    assert_int_equal(vfmig_device_doorbell(dev, 0, 0x20, 2, &match), 0);
    peer = (struct peer){.fd = -1, .twin = -1, .next_id = 1, .reply = malloc(PEER_REPLY_MAX)};
    connect_with("{\"capabilities\":{\"max_msg_fds\":8}}");
    return 0;
}

static void close_bells(void)
{
    for (unsigned i = 0; i < bell_count; i++)
        close(bells[i]);
    bell_count = 0;
}

static int close_device(void **state)
{
    vfmig_device_free(dev);
    close(peer.fd);
    free(peer.reply);
    close_bells();
    return 0;
}

/* Asks for BAR `bar`'s eventfds, into bells. The reply is in peer.reply. */
static int ask(uint32_t bar, uint32_t argsz)
{
    struct vfmig_user_region_io_fds req = {argsz, 0, bar, 0};
    struct vfmig_user_header h;
    union {
        char buf[CMSG_SPACE(VFMIG_DEVICE_DOORBELLS * sizeof(int))];
        struct cmsghdr align;
    } control_buf;
    struct iovec iov[2] = {{&h, sizeof(h)}, {peer.reply, PEER_REPLY_MAX}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2, .msg_control = control_buf.buf,
                         .msg_controllen = sizeof(control_buf)};

    peer_send(&peer, VFMIG_USER_GET_REGION_IO_FDS, 0, &req, sizeof(req), NULL, 0);
    dispatch();
    ssize_t n = recvmsg(peer.fd, &msg, MSG_CMSG_CLOEXEC);
    assert_int_equal(n, h.size);
    peer.reply_size = h.size - (uint32_t)sizeof(h);
    close_bells();
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c) {
        bell_count = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(bells, CMSG_DATA(c), bell_count * sizeof(int));
    }
    return h.flags & VFMIG_USER_ERROR ? -(int)h.error : 0;
}

static void ring(unsigned i)
{
    uint64_t one = 1;
    assert_int_equal(write(bells[i], &one, sizeof(one)), sizeof(one));
}

static struct vfmig_device_counters counters(void)
{
    struct vfmig_device_counters c;
    vfmig_device_get_counters(dev, &c);
    return c;
}

static int set_state(uint32_t bits)
{
    struct {
        struct vfmig_user_region_access access;
        uint32_t bits;
    } VFMIG_PACKED req = {{0, MIG, 4}, bits};
    return call(VFMIG_USER_REGION_WRITE, &req, sizeof(req));
}

static void declarations_are_checked(void **state)
{
    const uint64_t big = 0x10000, zero = 0;
    uint64_t value;
    static const struct {
        uint32_t bar;
        uint64_t offset;
        uint32_t size;
    } bad[] = {
        {0, 0x4000, 4}, {0, 0x3ffe, 4}, {0, 0x42, 4}, {0, 0x40, 3}, {0, 0x40, 16}, {0, 0x40, 0},
        {1, 0, 4},      {6, 0, 4},      {0, 0x2008, 4}, {0, 0x3000, 8}, {0, UINT64_MAX - 3, 4},
    };

    assert_int_equal(vfmig_device_doorbell(dev, 0, 0x40, 4, NULL), -EBUSY);
    close(peer.fd);
    assert_int_equal(vfmig_device_dispatch(dev, NULL), 1);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(
            vfmig_device_doorbell(dev, bad[i].bar, bad[i].offset, bad[i].size, NULL), -EINVAL);
    assert_int_equal(vfmig_device_doorbell(dev, 0, 0x40, 2, &big), -EINVAL);
    assert_int_equal(vfmig_device_doorbell(dev, 0, 0x20, 2, &match), -EEXIST);
    assert_int_equal(vfmig_device_doorbell(dev, 0, 0x20, 2, NULL), -EEXIST);
    assert_int_equal(vfmig_device_doorbell(dev, 0, 0x20, 2, &zero), 0);
    for (value = 0; value < VFMIG_DEVICE_DOORBELLS; value++)
        assert_int_equal(vfmig_device_doorbell(dev, 2, 0, 8, &value), 0);
    assert_int_equal(vfmig_device_doorbell(dev, 2, 0, 8, &value), -ENOSPC);
    connect_with(NULL);
}

static void eventfds_are_handed_out(void **state)
{
    struct {
        struct vfmig_user_region_io_fds head;
        struct vfmig_user_ioeventfd list[2];
    } VFMIG_PACKED r;

    assert_int_equal(ask(0, 16), 0); /* what is needed, nothing else */
    assert_int_equal(peer.reply_size, 16);
    assert_int_equal(bell_count, 0);
    memcpy(&r.head, peer.reply, 16);
    assert_int_equal(r.head.argsz, 16 + 2 * 40);
    assert_int_equal(r.head.count, 2);
    assert_int_equal(ask(0, 16 + 79), 0); /* one fits */
    assert_int_equal(peer.reply_size, 16 + 40);
    assert_int_equal(bell_count, 1);
    assert_int_equal(ask(0, 4096), 0);
    assert_int_equal(peer.reply_size, sizeof(r));
    assert_int_equal(bell_count, 2);
    memcpy(&r, peer.reply, sizeof(r));
    assert_int_equal(r.head.index, 0);
    assert_int_equal(r.list[0].offset, 0x10);
    assert_int_equal(r.list[0].size, 4);
    assert_int_equal(r.list[0].fd_index, 0);
    assert_int_equal(r.list[0].type, 0);
    assert_int_equal(r.list[0].flags, 0);
    assert_int_equal(r.list[1].offset, 0x20);
    assert_int_equal(r.list[1].size, 2);
    assert_int_equal(r.list[1].fd_index, 1);
    assert_int_equal(r.list[1].flags, 1); /* datamatch */
    assert_int_equal(r.list[1].datamatch, 5);
    assert_int_equal(ask(2, 4096), 0); /* a BAR without */
    assert_int_equal(peer.reply_size, 16);
    assert_int_equal(ask(1, 4096), -EINVAL); /* no BAR */
    assert_int_equal(ask(99, 4096), -EINVAL);
}

/* max_msg_fds is 1 unless the client says otherwise. */
static void no_more_descriptors_than_agreed(void **state)
{
    close(peer.fd);
    assert_int_equal(vfmig_device_dispatch(dev, NULL), 1);
    connect_with(NULL);
    assert_int_equal(ask(0, 4096), 0);
    assert_int_equal(bell_count, 1);
    assert_int_equal(peer.reply_size, 16 + 40);
}

static void a_signal_is_a_write(void **state)
{
    assert_int_equal(ask(0, 4096), 0);
    ring(1);
    dispatch();
    assert_int_equal(rung.calls, 1);
    assert_int_equal(rung.offset, 0x20);
    assert_int_equal(rung.size, 2);
    assert_int_equal(rung.value, 5);
    ring(0);
    ring(0);
    ring(0);
    dispatch();
    assert_int_equal(rung.calls, 2); /* signals that wait together are one */
    assert_int_equal(rung.offset, 0x10);
    assert_int_equal(rung.size, 0);
    assert_int_equal(counters().doorbells, 2);
    /* The client shares the descriptor: it may make it block, and take the signal itself. */
    assert_int_equal(fcntl(bells[0], F_SETFL, 0), 0);
    uint16_t id = peer_send(&peer, VFMIG_USER_RESET, 0, NULL, 0, NULL, 0);
    dispatch();
    assert_int_equal(peer_wait(&peer, id), 0);
    ring(0);
    dispatch();
    assert_int_equal(rung.calls, 3);
}

/* Under N the device gets it, in !R it is dropped and counted (C51), and nothing is left. */
static void a_signal_in_each_state(void **state)
{
    static const struct {
        uint32_t bits;
        bool reaches;
    } cases[] = {{1, true}, {9, true}, {3, true}, {2, false}, {0, false}, {1, true}};

    assert_int_equal(ask(0, 4096), 0);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(set_state(cases[i].bits), 0);
        unsigned calls = rung.calls;
        uint64_t dropped = counters().mmio_stopped_writes;
        ring(0);
        dispatch();
        assert_int_equal(rung.calls - calls, cases[i].reaches);
        assert_int_equal(counters().mmio_stopped_writes - dropped, !cases[i].reaches);
    }
}

/* The state write is looked at first, and yet the signal has come before it. From N too, where
 * nothing is drained any more, and in both dialects. */
static void signals_come_before_a_state_write(void **state)
{
    static const struct {
        uint32_t from, to;
    } cases[] = {{1, 0}, {1, 9}, {9, 2}, {3, 2}};

    assert_int_equal(ask(0, 4096), 0);
    for (unsigned i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
        struct {
            struct vfmig_user_region_access access;
            uint32_t bits;
        } VFMIG_PACKED v1 = {{0, MIG, 4}, cases[i / 2].to};
        static const uint32_t names[] = {VFMIG_STATE_STOP, 0, VFMIG_STATE_STOP_COPY, 0, 0, 0, 0,
                                         0, 0, VFMIG_STATE_RUNNING_NDMA};
        struct {
            struct vfmig_user_feature head;
            struct vfmig_user_feature_state state;
        } VFMIG_PACKED v2 = {{sizeof(v2), VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE},
                             {names[cases[i / 2].to], 0}};
        assert_int_equal(set_state(1), 0);
        assert_int_equal(set_state(cases[i / 2].from), 0);
        unsigned calls = rung.calls;
        uint64_t dropped = counters().mmio_stopped_writes;
        uint16_t id = i % 2 ? peer_send(&peer, VFMIG_USER_FEATURE, 0, &v2, sizeof(v2), NULL, 0)
                            : peer_send(&peer, VFMIG_USER_REGION_WRITE, 0, &v1, sizeof(v1), NULL, 0);
        ring(0);
        dispatch();
        assert_int_equal(peer_wait(&peer, id), 0);
        assert_int_equal(rung.calls - calls, 1);
        assert_int_equal(counters().mmio_stopped_writes, dropped);
    }
}

static void a_reset_forgets_signals(void **state)
{
    assert_int_equal(ask(0, 4096), 0);
    uint16_t id = peer_send(&peer, VFMIG_USER_RESET, 0, NULL, 0, NULL, 0);
    ring(0);
    dispatch();
    assert_int_equal(peer_wait(&peer, id), 0);
    assert_int_equal(rung.calls, 0);
    ring(0); /* they stay the client's */
    dispatch();
    assert_int_equal(rung.calls, 1);
}

/* C45: who keeps the eventfds of a client that has gone rings nothing, and costs nothing. */
static void a_lost_client_rings_no_more(void **state)
{
    assert_int_equal(ask(0, 4096), 0);
    close(peer.fd);
    assert_int_equal(vfmig_device_dispatch(dev, NULL), 1);
    connect_with(NULL);
    ring(0);
    ring(1);
    assert_false(peer_readable(vfmig_device_poll_fd(dev)));
    dispatch();
    assert_int_equal(rung.calls, 0);
    int old = dup(bells[0]);
    assert_int_equal(ask(0, 4096), 0); /* fresh ones */
    uint64_t one = 1;
    assert_int_equal(write(old, &one, sizeof(one)), sizeof(one));
    dispatch();
    assert_int_equal(rung.calls, 0);
    ring(0);
    dispatch();
    assert_int_equal(rung.calls, 1);
    close(old);
}

/* A doorbell whose work takes time; when every place is taken it waits, and is not lost. */
static void doorbells_may_be_answered_later(void **state)
{
    struct vfmig_later first;

    assert_int_equal(ask(0, 4096), 0);
    rung.result = -EINPROGRESS;
    ring(0);
    dispatch();
    first = rung.later;
    for (unsigned i = 1; i < VFMIG_DEVICE_LATER_ACCESSES; i++) {
        ring(0);
        dispatch();
    }
    assert_int_equal(rung.calls, VFMIG_DEVICE_LATER_ACCESSES);
    ring(0);
    dispatch();
    assert_int_equal(rung.calls, VFMIG_DEVICE_LATER_ACCESSES);
    vfmig_later_done(first, 0);
    dispatch();
    assert_int_equal(rung.calls, VFMIG_DEVICE_LATER_ACCESSES + 1);
}

static void send_control(uint16_t command, const void *payload, uint32_t size)
{
    struct vfmig_user_header h = {1, command, (uint32_t)sizeof(h) + size, 0, 0};

    assert_int_equal(send(control, &h, sizeof(h), 0), sizeof(h));
    assert_int_equal(send(control, payload, size, 0), size);
}

static int control_reply(void)
{
    struct vfmig_user_header h;
    uint8_t buf[512];

    dispatch();
    assert_int_equal(recv(control, &h, sizeof(h), MSG_WAITALL), sizeof(h));
    assert_true(h.size - sizeof(h) <= sizeof(buf));
    if (h.size > sizeof(h))
        assert_int_equal(recv(control, buf, h.size - sizeof(h), MSG_WAITALL), h.size - sizeof(h));
    return h.flags & VFMIG_USER_ERROR ? -(int)h.error : 0;
}

static int set_switch(uint32_t feature, uint32_t value)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_switch sw;
    } VFMIG_PACKED req = {{sizeof(req), VFMIG_USER_FEATURE_SET | feature}, {value, 0}};

    send_control(VFMIG_USER_FEATURE, &req, sizeof(req));
    return control_reply();
}

static void open_control(void)
{
    static const char json[] = "{\"capabilities\":{\"vfmig\":{\"token\":\"t\"}}}";
    uint8_t buf[4 + sizeof(json)] = {0, 0, 2, 0};
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    snprintf(addr.sun_path, sizeof(addr.sun_path), "/tmp/vfmig-doorbell-%d.sock", (int)getpid());
    assert_int_equal(vfmig_device_listen_control(dev, addr.sun_path, NULL), 0);
    control = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(control, (void *)&addr, sizeof(addr)), 0);
    dispatch();
    memcpy(buf + 4, json, sizeof(json));
    send_control(VFMIG_USER_VERSION, buf, sizeof(buf));
    assert_int_equal(control_reply(), 0);
}

/* Another connection's state write: the owner's signals first. HOLD keeps them. */
static void with_a_control_client(void **state)
{
    struct {
        struct vfmig_user_region_access access;
        uint32_t bits;
    } VFMIG_PACKED stop = {{0, MIG, 4}, 0}, run = {{0, MIG, 4}, 1};

    open_control();
    assert_int_equal(ask(0, 4096), 0);
    send_control(VFMIG_USER_REGION_WRITE, &stop, sizeof(stop));
    ring(0);
    assert_int_equal(control_reply(), 0);
    assert_int_equal(rung.calls, 1);
    assert_int_equal(counters().mmio_stopped_writes, 0);
    send_control(VFMIG_USER_REGION_WRITE, &run, sizeof(run));
    assert_int_equal(control_reply(), 0);
    assert_int_equal(set_switch(VFMIG_USER_F_HOLD, 1), 0);
    ring(0);
    dispatch();
    assert_int_equal(rung.calls, 1);
    assert_int_equal(set_switch(VFMIG_USER_F_HOLD, 0), 0);
    assert_int_equal(rung.calls, 2);
    close(control);
}

#define BELLS(test) cmocka_unit_test_setup_teardown(test, open_device, close_device)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BELLS(declarations_are_checked),
        BELLS(eventfds_are_handed_out),
        BELLS(no_more_descriptors_than_agreed),
        BELLS(a_signal_is_a_write),
        BELLS(a_signal_in_each_state),
        BELLS(signals_come_before_a_state_write),
        BELLS(a_reset_forgets_signals),
        BELLS(a_lost_client_rings_no_more),
        BELLS(doorbells_may_be_answered_later),
        BELLS(with_a_control_client),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
