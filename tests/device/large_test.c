/* SPDX-License-Identifier: BSD-3-Clause */
/* Large DMA reads by message, whose replies the server receives straight into the device's buffer:
 * cut anywhere, wrong, given up in the middle, from a client that goes away in the middle. */
#include "peer.h"

#include <sys/socket.h>

#define SIZE  ((1u << 20) - 100u)
#define GUARD 64u
#define BASE  0x10000000ull
#define HEAD  (sizeof(struct vfmig_user_header) + sizeof(struct vfmig_user_dma_access))

/* The device: one read of SIZE bytes, begun by a write to its BAR. */
static struct vfmig_device *dev;
static struct vfmig_dma dma;
static uint8_t buf[SIZE + GUARD];
static int status;
static unsigned gave_up;
static bool wanted;

static struct peer *peer;
static uint8_t reply[HEAD + SIZE + GUARD]; /* what the client sends */

static void done(void *user, int err)
{
    vfmig_dma_end(&dma);
    status = err;
    if (err != -EINTR) {
        wanted = false;
        return;
    }
    gave_up++;
    memset(buf, 0xaa, sizeof(buf)); /* the device's own again */
}

static void start(void)
{
    assert_int_equal(vfmig_device_dma_begin(dev, &dma), 0);
    status = vfmig_dma_read_async(&dma, BASE, buf, SIZE, done, NULL);
    if (status != -EINPROGRESS)
        vfmig_dma_end(&dma);
}

static int on_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    memset(buf, 0x55, sizeof(buf));
    wanted = true;
    start();
    return 0;
}

static int on_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    memset(data, 0, size);
    memcpy(data, &status, size < sizeof(status) ? size : sizeof(status));
    return 0;
}

static void on_gate(void *user, bool open)
{
    if (open && wanted)
        start();
}

static ssize_t save(void *user, void *data, size_t size)
{
    return 0;
}

static int load(void *user, const void *data, size_t size)
{
    return 0;
}

static void connect_client(void)
{
    peer = peer_start(dev);
    assert_int_equal(peer_version(peer, "{\"capabilities\":{\"max_msg_fds\":8,"
                                        "\"max_data_xfer_size\":1048576,"
                                        "\"twin_socket\":{\"supported\":true}}}"),
                     0);
    assert_true(peer->twin >= 0);
    assert_int_equal(peer_map(peer, BASE, 4u << 20, -1, 0, 3), 0);
}

static void open_device(uint64_t drain_timeout_ns)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    config.name = "large";
    config.bars[0].size = 4096;
    config.drain_timeout_ns = drain_timeout_ns;
    ops.region_read = on_read;
    ops.region_write = on_write;
    ops.gate = on_gate;
    ops.save = save;
    ops.load = load;
    gave_up = 0;
    wanted = false;
    assert_int_equal(vfmig_device_new(&config, &ops, NULL, &dev, NULL), 0);
    connect_client();
}

static void close_device(void)
{
    peer_end(peer);
    vfmig_device_free(dev);
}

/* ---- the client ---- */

/* Takes the request of SIZE bytes and makes the right reply to it, each time of other bytes. */
static struct vfmig_user_header *take(void)
{
    static uint32_t seed;
    struct vfmig_user_header *h = (struct vfmig_user_header *)reply;
    struct vfmig_user_dma_access access;

    assert_int_equal(recv(peer->twin, reply, HEAD, MSG_WAITALL), HEAD);
    memcpy(&access, reply + sizeof(*h), sizeof(access));
    assert_int_equal(h->command, VFMIG_USER_DMA_READ);
    assert_int_equal(access.address, BASE);
    assert_int_equal(access.count, SIZE);
    seed++;
    for (uint32_t i = 0; i < SIZE + GUARD; i++)
        reply[HEAD + i] = (uint8_t)(i * 13 + (i >> 9) + seed);
    h->flags = VFMIG_USER_TYPE_REPLY;
    h->size = HEAD + SIZE;
    return h;
}

static void send_bytes(uint32_t from, uint32_t to)
{
    if (from < to)
        assert_int_equal(send(peer->twin, reply + from, to - from, MSG_NOSIGNAL), to - from);
}

/* Whatever was sent on the twin socket before has been received when this returns: the server looks
 * at both sockets in each round, in any order. */
static void settle(void)
{
    for (unsigned i = 0; i < 2; i++)
        peer_get(peer, 0, 0, 4);
}

static int result(void)
{
    int now;

    do
        now = (int)peer_get(peer, 0, 0, 4);
    while (now == -EINPROGRESS);
    return now;
}

static void begin(void)
{
    assert_int_equal(peer_put(peer, 0, 0, 1, 4), 0);
}

static void check_guard(uint8_t value)
{
    for (uint32_t i = 0; i < GUARD; i++)
        assert_int_equal(buf[SIZE + i], value);
}

static void read_well(void)
{
    begin();
    take();
    send_bytes(0, HEAD + SIZE);
    assert_int_equal(result(), 0);
    assert_memory_equal(buf, reply + HEAD, SIZE);
    check_guard(0x55);
}

static void cut_anywhere(void **state)
{
    static const uint32_t late[] = {33, 64, 4096, 8191, 70000, HEAD + SIZE / 2, HEAD + SIZE - 1};

    open_device(0);
    for (uint32_t i = 1; i <= HEAD + sizeof(late) / sizeof(late[0]); i++) {
        uint32_t cut = i <= HEAD ? i : late[i - HEAD - 1];
        begin();
        take();
        send_bytes(0, cut);
        settle();
        assert_int_equal((int)peer_get(peer, 0, 0, 4), -EINPROGRESS);
        send_bytes(cut, HEAD + SIZE);
        assert_int_equal(result(), 0);
        assert_memory_equal(buf, reply + HEAD, SIZE);
        check_guard(0x55);
    }
    close_device();
}

/* A reply that is not what was asked for ends this DMA alone, and writes nothing behind the buffer.
 */
static void wrong_replies(void **state)
{
    open_device(0);
    for (unsigned i = 0; i < 6; i++) {
        begin();
        struct vfmig_user_header *h = take();
        struct vfmig_user_dma_access *access = (void *)(reply + sizeof(*h));
        if (i == 0)
            h->size += GUARD; /* more bytes than were asked for */
        else if (i == 1)
            h->size -= 1;
        else if (i == 2)
            access->address += 4096;
        else if (i == 3)
            access->count += GUARD;
        else if (i == 4)
            h->command = VFMIG_USER_DMA_WRITE;
        else
            h->flags |= VFMIG_USER_ERROR; /* refused, and yet with bytes */
        h->error = i == 5 ? ENXIO : 0;
        send_bytes(0, h->size);
        assert_int_equal(result(), i == 5 ? -ENXIO : -EIO);
        for (uint32_t b = 0; b < SIZE; b += 997)
            assert_int_equal(buf[b], 0x55);
        check_guard(0x55);
        read_well();
    }
    close_device();
}

/* A7, in the middle of the reply: the buffer is the device's again, the rest of the bytes goes
 * nowhere, and the read is issued again. */
static void given_up_in_the_middle(void **state)
{
    open_device(200000000);
    begin();
    take();
    send_bytes(0, SIZE / 2);
    settle();
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING_NDMA), 0);
    assert_int_equal(gave_up, 1);
    send_bytes(SIZE / 2, HEAD + SIZE);
    settle();
    for (uint32_t i = 0; i < SIZE + GUARD; i++)
        assert_int_equal(buf[i], 0xaa);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING), 0);
    take();
    send_bytes(0, HEAD + SIZE);
    assert_int_equal(result(), 0);
    assert_memory_equal(buf, reply + HEAD, SIZE);
    read_well();
    close_device();
}

/* The rest of the old reply never comes; the next client's replies are not taken for it. */
static void client_gone_in_the_middle(void **state)
{
    open_device(0);
    for (unsigned i = 0; i < 3; i++) {
        begin();
        take();
        send_bytes(0, (uint32_t[]){10, HEAD, SIZE / 2}[i]);
        settle();
        peer_end(peer);
        assert_int_equal(status, -EFAULT); /* issued again by the reset's gate: for no client */
        connect_client();
        read_well();
    }
    close_device();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cut_anywhere),
        cmocka_unit_test(wrong_replies),
        cmocka_unit_test(given_up_in_the_middle),
        cmocka_unit_test(client_gone_in_the_middle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
