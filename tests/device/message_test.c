/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA by message, as with page requests: many open at once, answered late, out of order, refused, in
 * either length of reply, on the twin socket and beside the client's own commands. */
#include "peer.h"

#include "base/bounds.h"

#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define OPS     200u
#define SLOT    0x4000u      /* bytes of memory of each operation */
#define BASE    0x10000000ull
#define ROUNDS  6u
#define COMMANDS 512u

/* One operation of the device: a copy of its buffer to or from memory at BASE + index * SLOT. */
static struct op {
    struct vfmig_dma dma;
    bool write, wanted, open;
    uint32_t size;
    int err;
    unsigned done, aborted;
    uint8_t buf[SLOT];
} ops[OPS];

static struct vfmig_device *dev;
static struct peer *peer;
static uint8_t memory[OPS * SLOT]; /* what the client has */

/* ---- the device ---- */

static void start_op(struct op *op);

static void op_done(void *user, int err)
{
    struct op *op = user;

    vfmig_dma_end(&op->dma);
    op->open = false;
    if (err == -EINTR) { /* kept, and issued again when the gate opens */
        op->aborted++;
        return;
    }
    op->wanted = false;
    op->err = err;
    op->done++;
}

static void start_op(struct op *op)
{
    uint64_t iova = BASE + (uint64_t)(op - ops) * SLOT;

    if (vfmig_device_dma_begin(dev, &op->dma) < 0)
        return;
    op->open = true;
    int r = op->write ? vfmig_dma_write_async(&op->dma, iova, op->buf, op->size, op_done, op)
                      : vfmig_dma_read_async(&op->dma, iova, op->buf, op->size, op_done, op);
    if (r != -EINPROGRESS)
        op_done(op, r);
}

static int on_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    uint32_t index;

    memcpy(&index, data, sizeof(index));
    if (size != 4 || index >= OPS)
        return -EINVAL;
    ops[index].wanted = true;
    start_op(&ops[index]);
    return 0;
}

static void on_gate(void *user, bool open)
{
    for (unsigned i = 0; open && i < OPS; i++)
        if (ops[i].wanted && !ops[i].open)
            start_op(&ops[i]);
}

static ssize_t save(void *user, void *buf, size_t size)
{
    return 0;
}

static int load(void *user, const void *data, size_t size)
{
    return 0;
}

static void open_device(uint64_t drain_timeout_ns, bool twin)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops device_ops = VFMIG_DEVICE_OPS_INIT;

    memset(ops, 0, sizeof(ops));
    config.name = "many";
    config.bars[0].size = 4096;
    config.drain_timeout_ns = drain_timeout_ns;
    device_ops.region_write = on_write;
    device_ops.gate = on_gate;
    device_ops.save = save;
    device_ops.load = load;
    assert_int_equal(vfmig_device_new(&config, &device_ops, NULL, &dev, NULL), 0);
    peer = peer_start(dev);
    assert_int_equal(peer_version(peer, twin ? "{\"capabilities\":{\"max_msg_fds\":8,"
                                               "\"twin_socket\":{\"supported\":true}}}"
                                             : NULL),
                     0);
    assert_int_equal(peer_map(peer, BASE, sizeof(memory), -1, 0, 3), 0);
}

static void close_device(void)
{
    peer_end(peer);
    vfmig_device_free(dev);
}

/* ---- the client ---- */

/* Commands of the server that are not answered yet. */
static struct command {
    struct vfmig_user_header h;
    struct vfmig_user_dma_access access;
    uint8_t data[SLOT];
} *commands;
static unsigned command_count;
static uint32_t seed;

static uint32_t dice(uint32_t sides)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % sides;
}

static void read_all(int fd, void *buf, size_t size)
{
    if (size)
        assert_int_equal(recv(fd, buf, size, MSG_WAITALL), size);
}

/* Takes one message from fd. True: it was a reply, whose header is in *ret_reply. */
static bool take(int fd, struct vfmig_user_header *ret_reply)
{
    struct command c;

    read_all(fd, &c.h, sizeof(c.h));
    if ((c.h.flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_REPLY) {
        *ret_reply = c.h;
        peer->reply_size = c.h.size - (uint32_t)sizeof(c.h);
        read_all(fd, peer->reply, peer->reply_size);
        return true;
    }
    read_all(fd, &c.access, sizeof(c.access));
    assert_true(c.access.address >= BASE && c.access.count <= SLOT &&
                c.access.address - BASE + c.access.count <= sizeof(memory));
    if (c.h.command == VFMIG_USER_DMA_WRITE)
        read_all(fd, c.data, c.access.count);
    else
        assert_int_equal(c.h.command, VFMIG_USER_DMA_READ);
    assert_true(command_count < COMMANDS);
    for (unsigned i = 0; i < command_count; i++) /* an open id is nobody else's */
        assert_int_not_equal(commands[i].h.id, c.h.id);
    commands[command_count++] = c;
    return false;
}

static int dma_fd(void)
{
    return peer->twin >= 0 ? peer->twin : peer->fd;
}

/* Answers one of the open commands; a refusal with EFAULT when refuse. */
static void answer(unsigned index, bool refuse)
{
    struct command *c = &commands[index];
    uint8_t *at = memory + (c->access.address - BASE);
    bool write = c->h.command == VFMIG_USER_DMA_WRITE;
    uint8_t out[sizeof(struct vfmig_user_header) + sizeof(c->access) + SLOT];
    size_t size = sizeof(c->h);

    c->h.flags = VFMIG_USER_TYPE_REPLY | (refuse ? VFMIG_USER_ERROR : 0);
    c->h.error = refuse ? EFAULT : 0;
    if (!refuse && write)
        memcpy(at, c->data, c->access.count);
    if (!refuse) {
        /* Of a DMA_WRITE the reply is seen with 16, with 12 and without bytes of payload. */
        size_t fixed = write ? (size_t[]){16, 12, 0}[dice(3)] : 16;
        memcpy(out + size, &c->access, fixed);
        size += fixed;
        if (!write)
            memcpy(out + size, at, c->access.count);
        size += write ? 0 : c->access.count;
    }
    c->h.size = (uint32_t)size;
    memcpy(out, &c->h, sizeof(c->h));
    assert_int_equal(send(dma_fd(), out, size, 0), size);
    commands[index] = commands[--command_count];
}

static bool readable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, timeout_ms) == 1;
}

static void take_commands(int timeout_ms)
{
    struct vfmig_user_header none;

    for (; readable(dma_fd(), timeout_ms); timeout_ms = 0)
        assert_false(take(dma_fd(), &none));
}

/* A command of the client, while commands of the server may come on the same socket. */
static int call(uint16_t command, const void *payload, uint32_t size)
{
    struct vfmig_user_header reply;
    uint16_t id = peer_send(peer, command, 0, payload, size, NULL, 0);

    while (!take(peer->fd, &reply))
        ;
    assert_int_equal(reply.id, id);
    return reply.flags & VFMIG_USER_ERROR ? -(int)reply.error : 0;
}

static void begin(uint32_t index)
{
    struct {
        struct vfmig_user_region_access access;
        uint32_t index;
    } VFMIG_PACKED req = {{0, 0, 4}, index};

    assert_int_equal(call(VFMIG_USER_REGION_WRITE, &req, sizeof(req)), 0);
}

static int set_state(uint32_t state)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_state state;
    } VFMIG_PACKED req = {{sizeof(req), VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE},
                          {state, 0}};
    return call(VFMIG_USER_FEATURE, &req, sizeof(req));
}

static void prepare_ops(void)
{
    for (unsigned i = 0; i < sizeof(memory); i++)
        memory[i] = (uint8_t)dice(256);
    for (unsigned i = 0; i < OPS; i++) {
        ops[i].write = dice(2);
        ops[i].size = 1 + dice(SLOT);
        for (unsigned b = 0; b < SLOT; b++)
            ops[i].buf[b] = (uint8_t)(i + b * 3);
    }
}

/* Every operation ended once, with its own result; the bytes are where they belong. */
static void check_op(unsigned i, bool refused)
{
    struct op *op = &ops[i];
    uint8_t *at = memory + i * SLOT;

    assert_int_equal(op->done, 1);
    assert_int_equal(op->err, refused ? -EFAULT : 0);
    for (unsigned b = 0; b < op->size && op->write && !refused; b++)
        assert_int_equal(at[b], (uint8_t)(i + b * 3));
    if (!op->write && !refused)
        assert_memory_equal(op->buf, at, op->size);
}

static void many_open(bool twin)
{
    static bool refused[OPS];
    uint32_t begun = 0;

    commands = calloc(COMMANDS, sizeof(*commands));
    for (uint32_t round = 0; round < ROUNDS; round++) {
        seed = round * 77 + twin;
        open_device(0, twin);
        prepare_ops();
        memset(refused, 0, sizeof(refused));
        command_count = 0;
        for (begun = 0; begun < OPS || command_count;) {
            if (begun < OPS && dice(3))
                begin(begun++);
            take_commands(begun == OPS && !command_count ? 2000 : 0);
            if (!command_count || dice(2))
                continue;
            unsigned pick = dice(command_count);
            unsigned op = (unsigned)((commands[pick].access.address - BASE) / SLOT);
            bool refuse = dice(9) == 0;
            refused[op] |= refuse;
            answer(pick, refuse);
            take_commands(0);
            if (!command_count && begun == OPS)
                take_commands(50); /* the next piece of one of them */
        }
        assert_int_equal(set_state(VFMIG_STATE_RUNNING_NDMA), 0); /* nothing is open any more */
        for (unsigned i = 0; i < OPS; i++)
            check_op(i, refused[i]);
        close_device();
    }
    free(commands);
}

static void many_open_on_the_twin_socket(void **state)
{
    many_open(true);
}

static void many_open_beside_commands(void **state)
{
    many_open(false);
}

/* A7: at half of the drain deadline the open ones are given up, the write succeeds, the device
 * issues them again when it runs without N, once each; answers that come too late change nothing,
 * although they come after the new messages. */
static void given_up_and_issued_again(void **state)
{
    const unsigned count = 20;
    unsigned old;

    commands = calloc(COMMANDS, sizeof(*commands));
    seed = 5;
    open_device(200000000, true);
    prepare_ops();
    command_count = 0;
    for (unsigned i = 0; i < count; i++) {
        ops[i].size = 16;
        begin(i);
    }
    while (command_count < count)
        take_commands(2000);
    old = command_count;
    assert_int_equal(set_state(VFMIG_STATE_RUNNING_NDMA), 0);
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(ops[i].aborted, 1);
    assert_int_equal(set_state(VFMIG_STATE_RUNNING), 0);
    while (command_count < old + count)
        take_commands(2000);
    /* The late ones first: with other bytes for the reads, which must not arrive. */
    for (unsigned i = 0; i < old; i++) {
        struct command late = commands[i];
        memset(commands[i].data, 0xee, sizeof(commands[i].data));
        commands[i].access.address = BASE + (OPS - 1) * SLOT; /* nobody's bytes */
        answer(i, false);
        commands[command_count++] = commands[i];
        commands[i] = late;
        command_count--;
    }
    memmove(commands, commands + old, count * sizeof(*commands));
    command_count = count;
    while (command_count)
        answer(dice(command_count), false);
    assert_int_equal(set_state(VFMIG_STATE_RUNNING_NDMA), 0);
    for (unsigned i = 0; i < count; i++)
        check_op(i, false);
    close_device();
    free(commands);
}

/* One too many: the device is told to come back. */
static void more_than_can_be_open(void **state)
{
    commands = calloc(COMMANDS, sizeof(*commands));
    seed = 9;
    open_device(0, true);
    prepare_ops();
    command_count = 0;
    struct vfmig_dma dma[300];
    unsigned again = 0;
    assert_int_equal(set_state(VFMIG_STATE_RUNNING), 0);
    for (unsigned i = 0; i < OPS; i++)
        begin(i);
    /* From the test's thread, against the interface's rules but the server is idle now. */
    for (unsigned i = 0; i < 300; i++) {
        assert_int_equal(vfmig_device_dma_begin(dev, &dma[i]), 0);
        int r = vfmig_dma_read_async(&dma[i], BASE, memory, 8, op_done, &ops[0]);
        again += r == -EAGAIN;
        vfmig_dma_end(&dma[i]);
    }
    assert_true(again >= 300 + OPS - VFMIG_MAX_OPEN_DMA);
    close_device();
    free(commands);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_open_on_the_twin_socket),
        cmocka_unit_test(many_open_beside_commands),
        cmocka_unit_test(given_up_and_issued_again),
        cmocka_unit_test(more_than_can_be_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
