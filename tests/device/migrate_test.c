/* SPDX-License-Identifier: BSD-3-Clause */
/* States, drain, streams, reset and disconnect, as a client sees them in both dialects. */
#include "peer.h"
#include "toy.h"

#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define MIG VFMIG_REGION_MIGRATION

static struct toy *toy;
static struct peer *peer;

static void open_toy(bool ndma, bool precopy, uint64_t drain_timeout_ns)
{
    toy = toy_new(ndma, precopy, true, drain_timeout_ns);
    peer = peer_start(toy->dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    peer_map_ram(peer);
}

static void close_toy(void)
{
    peer_end(peer);
    toy_free(toy);
}

/* The next client of the same device. */
static void reopen(void)
{
    peer_end(peer);
    peer = peer_start(toy->dev);
    assert_int_equal(peer_version(peer, NULL), 0);
}

static int start(void **state)
{
    open_toy(true, true, 0);
    return 0;
}

static int stop(void **state)
{
    close_toy();
    return 0;
}

/* Every state a client can ask for, with its v1 bits. */
static const struct {
    uint32_t state, bits;
    bool runs, quiet;
} all[] = {
    {VFMIG_STATE_STOP, 0, false, true},         {VFMIG_STATE_RUNNING, 1, true, false},
    {VFMIG_STATE_STOP_COPY, 2, false, true},    {VFMIG_STATE_RESUMING, 4, false, true},
    {VFMIG_STATE_RUNNING_NDMA, 9, true, true},  {VFMIG_STATE_PRE_COPY, 3, true, false},
    {VFMIG_STATE_PRE_COPY_NDMA, 11, true, true},
};
#define ALL (sizeof(all) / sizeof(all[0]))

/* C13, C37, C51: what MMIO does in each state, through both dialects; X3: both read the same. */
static void mmio_in_every_state(void **state)
{
    struct vfmig_device_counters before, after;

    peer_put(peer, 0, TOY_SCRATCH, 0x77, 8);
    for (unsigned i = 0; i < 2 * ALL; i++) {
        unsigned s = i / 2;
        assert_int_equal(i % 2 ? peer_set_v1(peer, all[s].bits) : peer_set_v2(peer, all[s].state),
                         0);
        assert_int_equal(peer_get_v1(peer), all[s].bits);
        assert_int_equal(peer_get_v2(peer), all[s].state);
        uint64_t value = 1; /* C31, C34: DMA from any thread */
        assert_int_equal(vfmig_device_dma_write(toy->dev, RAM_IOVA, &value, 8),
                         all[s].quiet ? -EAGAIN : 0);
        vfmig_device_get_counters(toy->dev, &before);
        if (all[s].state != VFMIG_STATE_RESUMING && all[s].runs)
            assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 8), 0x77);
        else
            assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 8), UINT64_MAX);
        assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 1), all[s].runs ? 0x77 : 0xff);
        assert_int_equal(peer_put(peer, 0, TOY_SCRATCH, all[s].runs ? 0x77 : 0x99, 8), 0);
        vfmig_device_get_counters(toy->dev, &after);
        assert_int_equal(after.mmio_stopped_reads - before.mmio_stopped_reads,
                         all[s].runs ? 0 : 2);
        assert_int_equal(after.mmio_stopped_writes - before.mmio_stopped_writes,
                         all[s].runs ? 0 : 1);
        assert_int_equal(peer_reset(peer), 0); /* Z would need its data */
        peer_put(peer, 0, TOY_SCRATCH, 0x77, 8);
    }
}

/* C51: a write that came while it was stopped has no effect later. */
static void stopped_writes_leave_nothing(void **state)
{
    peer_put(peer, 0, TOY_SCRATCH, 1, 8);
    assert_int_equal(peer_set_v1(peer, 0), 0);
    peer_put(peer, 0, TOY_SCRATCH, 2, 8);
    assert_int_equal(peer_set_v1(peer, 1), 0);
    assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 8), 1);
    assert_int_equal(toy->stops, 1);
    assert_int_equal(toy->starts, 1);
}

/* C31: under N a doorbell starts no DMA; it does once N is cleared. */
static void no_new_dma_under_ndma(void **state)
{
    uint64_t value = 0;

    peer_put(peer, 0, TOY_IOVA, RAM_IOVA, 8);
    peer_put(peer, 0, TOY_VALUE, 5, 8);
    for (unsigned i = 0; i < ALL; i++) {
        if (!all[i].runs || !all[i].quiet)
            continue;
        assert_int_equal(peer_set_v1(peer, all[i].bits), 0);
        peer_put(peer, 0, TOY_WRITE, 1, 4);
        assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EAGAIN);
        peer_put(peer, 0, TOY_BEGIN, 1, 4);
        assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EAGAIN);
        memcpy(&value, peer->ram, 8);
        assert_int_equal(value, 0);
    }
    assert_int_equal(peer_get(peer, 0, TOY_GATES, 4), 1); /* told once: X9 */
    assert_int_equal(peer_set_v1(peer, 1), 0);
    assert_int_equal(peer_get(peer, 0, TOY_GATES, 4), 0x10001);
    peer_put(peer, 0, TOY_WRITE, 1, 4);
    memcpy(&value, peer->ram, 8);
    assert_int_equal(value, 5);
}

static uint16_t send_state_v1(uint32_t bits)
{
    struct {
        struct vfmig_user_region_access access;
        uint32_t bits;
    } VFMIG_PACKED req = {{0, MIG, 4}, bits};
    return peer_send(peer, VFMIG_USER_REGION_WRITE, 0, &req, sizeof(req), NULL, 0);
}

static void begin_dma(void)
{
    peer_put(peer, 0, TOY_IOVA, RAM_IOVA + 64, 8);
    peer_put(peer, 0, TOY_VALUE, 0xd3a1, 8);
    peer_put(peer, 0, TOY_BEGIN, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), 0);
}

/* C32, C60, X11: N is answered when the DMA in flight is over; until then everything else is
 * served, device_state shows the old value and a second write gets -EBUSY. */
static void drain_waits_and_serves(void **state)
{
    uint64_t value = 0;
    int fd = peer_vector(peer, 0);

    begin_dma();
    uint16_t id = send_state_v1(9);
    assert_int_equal(peer_get_v1(peer), 1);
    assert_int_equal(peer_get_v2(peer), VFMIG_STATE_RUNNING);
    assert_int_equal(peer_set_v1(peer, 0), -EBUSY);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP), -EBUSY);
    assert_int_equal(peer_map(peer, 0x10000000, 0x1000, -1, 0, 3), 0);
    assert_int_equal(peer_log_start(peer, 4096, RAM_IOVA, RAM_SIZE), 0);
    peer_put(peer, 0, TOY_WRITE, 1, 4); /* nothing new meanwhile */
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EAGAIN);
    assert_false(peer_readable(peer->fd));
    peer_post(peer, 0, TOY_END, 1, 4);
    assert_int_equal(peer_wait(peer, id), 0);
    memcpy(&value, peer->ram + 64, 8);
    assert_int_equal(value, 0xd3a1);
    assert_int_equal(peer_get_v1(peer), 9);
    uint64_t bitmap[4];
    assert_int_equal(peer_log_report(peer, RAM_IOVA, RAM_SIZE, 4096, bitmap), 1);
    assert_int_equal(peer_irqs(fd), 0); /* raised while N waited: latched (A6) */
    assert_int_equal(peer_set_v1(peer, 1), 0);
    assert_int_equal(peer_irqs(fd), 1);
    close(fd);
}

/* A21: past the deadline the write fails and the old state stands. */
static void drain_deadline(void **state)
{
    open_toy(true, true, 1000000);
    begin_dma();
    assert_int_equal(peer_set_v1(peer, 9), -ETIMEDOUT);
    assert_int_equal(peer_get_v1(peer), 1);
    peer_put(peer, 0, TOY_END, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), 0);
    peer_put(peer, 0, TOY_WRITE, 1, 4); /* the gate is open again */
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), 0);
    assert_int_equal(peer_set_v1(peer, 9), 0);
    close_toy();
}

/* A7: at half the deadline, DMA that waits for the client is given up, and N gets through. */
static void fault_that_nobody_resolves_is_given_up(void **state)
{
    open_toy(true, true, 20000000);
    assert_int_equal(peer_map(peer, 0x1000, 0x1000, -1, 0, 3), 0);
    peer_put(peer, 0, TOY_IOVA, 0x1000, 8);
    peer_post(peer, 0, TOY_ASYNC, 1, 4);
    uint8_t request[40];
    assert_int_equal(recv(peer->fd, request, sizeof(request), MSG_WAITALL), sizeof(request));
    assert_int_equal(peer_set_v1(peer, 9), 0);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EINTR);
    close_toy();
}

/* Reset wins over an open state write; the operation in flight is dead and its end harmless. */
static void reset_while_draining(void **state)
{
    begin_dma();
    uint16_t write_id = send_state_v1(9), reset_id = peer_send(peer, 13, 0, NULL, 0, NULL, 0);
    assert_int_equal(peer_wait(peer, reset_id), 0);
    assert_int_equal(peer_wait(peer, write_id), -ECANCELED);
    assert_int_equal(peer_get_v1(peer), 1);
    peer_put(peer, 0, TOY_END, 1, 4);
    assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -ECANCELED);
    assert_int_equal(peer->ram[64], 0);
    assert_int_equal(peer_set_v1(peer, 9), 0);
}

static void disconnect_while_draining(void **state)
{
    begin_dma();
    send_state_v1(9);
    reopen();
    assert_int_equal(peer_get_v1(peer), 1);
    assert_int_equal(peer_set_v1(peer, 9), 0);
}

/* A6: raised under N, kept through S, delivered once in R; the PBA shows it meanwhile. */
static void latched_interrupt_is_delivered_once(void **state)
{
    int fd = peer_vector(peer, 1);

    assert_int_equal(peer_set_v1(peer, 9), 0);
    peer_put(peer, 0, TOY_IRQ, 1, 4);
    peer_put(peer, 0, TOY_IRQ, 1, 4);
    assert_int_equal(peer_get(peer, 0, TOY_PBA, 8), 2);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    assert_int_equal(peer_get(peer, 0, TOY_PBA, 8), 2);
    assert_int_equal(peer_irqs(fd), 0);
    assert_int_equal(peer_set_v1(peer, 1), 0);
    assert_int_equal(peer_irqs(fd), 1);
    assert_int_equal(peer_get(peer, 0, TOY_PBA, 8), 0);
    close(fd);
}

/* C42, C43, C44, X10: reset in every state, ERROR included; the next read says 1. */
static void reset_in_every_state(void **state)
{
    for (unsigned i = 0; i <= ALL; i++) {
        peer_put(peer, 0, TOY_SCRATCH, 0x1234, 8);
        if (i < ALL) {
            assert_int_equal(peer_set_v1(peer, all[i].bits), 0);
        } else {
            assert_int_equal(peer_set_v1(peer, 4), 0);
            assert_true(peer_set_v1(peer, 1) < 0); /* nothing was loaded */
            assert_int_equal(peer_get_v1(peer), 6);
            assert_int_equal(peer_get_v2(peer), VFMIG_STATE_ERROR);
            assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 8), UINT64_MAX);
            assert_true(peer_set_v1(peer, 1) < 0); /* C41: only reset leads out */
            assert_true(peer_set_v2(peer, VFMIG_STATE_RUNNING) < 0);
        }
        uint16_t id = peer_send(peer, VFMIG_USER_RESET, 0, NULL, 0, NULL, 0);
        struct vfmig_user_region_access access = {0, MIG, 4};
        uint16_t read_id = peer_send(peer, VFMIG_USER_REGION_READ, 0, &access, 16, NULL, 0);
        assert_int_equal(peer_wait(peer, id), 0);
        assert_int_equal(peer_wait(peer, read_id), 0);
        assert_int_equal(*(uint32_t *)(peer->reply + 16), 1);
        assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 8), 0);
        assert_int_equal(peer_get(peer, MIG, 8, 8), 0);
    }
}

/* C45: whatever the state in which a client leaves, the next one finds a fresh device. */
static void disconnect_in_every_state(void **state)
{
    for (unsigned i = 0; i <= ALL; i++) {
        peer_put(peer, 0, TOY_SCRATCH, 0x1234, 8);
        peer_put(peer, VFMIG_REGION_CONFIG, 4, 6, 2);
        if (i < ALL)
            assert_int_equal(peer_set_v1(peer, all[i].bits), 0);
        else if (peer_set_v1(peer, 4) == 0)
            assert_true(peer_set_v1(peer, 1) < 0);
        reopen();
        assert_int_equal(peer_get_v1(peer), 1);
        assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 8), 0);
        assert_int_equal(peer_get(peer, VFMIG_REGION_CONFIG, 4, 2), 0);
        peer_put(peer, 0, TOY_IOVA, RAM_IOVA, 8);
        peer_put(peer, 0, TOY_WRITE, 1, 4); /* its memory is gone with it */
        assert_int_equal((int)peer_get(peer, 0, TOY_STATUS, 4), -EFAULT);
    }
}

/* ---- streams --------------------------------------------------------------------------------- */

static void put_memory(uint8_t salt)
{
    uint8_t memory[TOY_MEMORY_SIZE];

    for (unsigned i = 0; i < sizeof(memory); i++)
        memory[i] = (uint8_t)(i * salt + i / 256);
    assert_int_equal(peer_write(peer, 0, TOY_MEMORY, memory, sizeof(memory)), 0);
}

static void check_memory(uint8_t salt)
{
    uint8_t memory[TOY_MEMORY_SIZE];

    assert_int_equal(peer_read(peer, 0, TOY_MEMORY, memory, sizeof(memory)), 0);
    for (unsigned i = 0; i < sizeof(memory); i++)
        assert_int_equal(memory[i], (uint8_t)(i * salt + i / 256));
}

/* Saves what is in the device now; leaves it in S. */
static size_t save_now(uint8_t **ret_data)
{
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
    return peer_save_v2(peer, ret_data, 10000);
}

/* C21: a save that was given up leaves nothing in the next one. */
static void an_aborted_save_leaves_nothing(void **state)
{
    uint8_t *data, *again;

    put_memory(3);
    for (unsigned way = 0; way < 2; way++) {
        assert_int_equal(peer_set_v1(peer, 3), 0);
        struct vfmig_user_mig_data req = {8 + 1000, 1000};
        assert_int_equal(peer_call(peer, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req)), 0);
        assert_int_equal(peer_set_v1(peer, 1), 0);
        assert_int_equal(peer_call(peer, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req)), -EINVAL);
    }
    put_memory(5);
    assert_int_equal(peer_set_v1(peer, 3), 0);
    size_t size = peer_save_v2(peer, &data, 4096);
    assert_true(size >= TOY_MEMORY_SIZE);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    size_t more = peer_save_v2(peer, &again, 4096);
    assert_true(more < 2000);
    data = realloc(data, size + more);
    memcpy(data + size, again, more);
    reopen();
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RESUMING), 0);
    assert_int_equal(peer_load_v2(peer, data, size + more, 777), 0);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING), 0);
    check_memory(5);
    free(data);
    free(again);
}

/* C22: without an internal log the stream of SR is empty, the whole state comes in S. */
static void without_a_log_pre_copy_is_empty(void **state)
{
    uint8_t *data;

    open_toy(true, false, 0);
    put_memory(9);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY), -EINVAL);
    assert_int_equal(peer_set_v1(peer, 3), 0);
    assert_int_equal(peer_get(peer, MIG, 8, 8), 0);
    assert_int_equal(peer_save_v1(peer, &data), 0);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    size_t size = peer_save_v1(peer, &data);
    assert_true(size > TOY_MEMORY_SIZE);
    assert_int_equal(toy->precopy_bytes, 0);
    reopen();
    assert_int_equal(peer_set_v1(peer, 4), 0);
    assert_int_equal(peer_load_v1(peer, data, size, 5000), 0);
    assert_int_equal(peer_set_v1(peer, 0), 0); /* C25, Z to {}: loaded and validated */
    assert_int_equal(peer_set_v1(peer, 1), 0);
    check_memory(9);
    free(data);
    close_toy();
}

/* C69: without NDMA the capability is absent and 9 is refused, nothing changed. */
static void without_ndma(void **state)
{
    struct vfmig_user_region_info info = {.argsz = 128, .index = MIG};
    struct vfmig_user_feature head = {16, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_MIGRATION};

    open_toy(false, true, 0);
    assert_int_equal(peer_call(peer, VFMIG_USER_GET_REGION_INFO, &info, sizeof(info)), 0);
    assert_int_equal(peer->reply_size, 80);
    assert_int_equal(peer_call(peer, VFMIG_USER_FEATURE, &head, sizeof(head)), 0);
    assert_int_equal(peer->reply[8], VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_PRE_COPY);
    assert_int_equal(peer_set_v1(peer, 9), -EINVAL);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING_NDMA), -EINVAL);
    assert_int_equal(peer_get_v1(peer), 1);
    for (uint32_t bits = 3; bits != UINT32_MAX; bits--)
        if (bits != 1)
            assert_int_equal(peer_set_v1(peer, bits), 0);
    close_toy();
}

/* A11, C16, C66: short, reordered, foreign or altered data: the write that clears Z fails, the
 * state is ERROR, reset leads out. */
static void bad_data_is_refused(void **state)
{
    uint8_t *data;
    put_memory(1);
    size_t size = save_now(&data);
    uint8_t *bad = malloc(size + 1);

    for (unsigned way = 0; way < 6; way++) {
        size_t bad_size = size;
        memcpy(bad, data, size);
        if (way == 0)
            bad_size = size - 1; /* short by a byte */
        else if (way == 1)
            bad_size = 0;
        else if (way == 2)
            bad[size / 2] ^= 1; /* altered */
        else if (way == 3)
            memmove(bad, bad + 400, bad_size = size - 400); /* begins in the middle */
        else if (way == 4)
            bad[bad_size++] = 0; /* goes on after its end */
        else
            bad_size = size / 2;
        reopen();
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RESUMING), 0);
        peer_load_v2(peer, bad, bad_size, 1000);
        assert_true(peer_set_v2(peer, VFMIG_STATE_RUNNING) < 0);
        assert_int_equal(peer_get_v2(peer), VFMIG_STATE_ERROR);
        assert_int_equal(peer_reset(peer), 0);
        assert_int_equal(peer_get_v2(peer), VFMIG_STATE_RUNNING);
        assert_int_equal(peer_get(peer, 0, TOY_MEMORY + 8, 8), 0); /* nothing of it stays */
    }
    free(bad);
    free(data);
}

/* What is in flight when SR becomes S goes on: no byte lost or doubled (A14), X1, X4. */
static void an_open_portion_is_carried_over(void **state)
{
    uint8_t *rest;

    put_memory(7);
    assert_int_equal(peer_set_v1(peer, 3), 0);
    assert_true(peer_get(peer, MIG, 8, 8) > 0);
    uint64_t offset = peer_get(peer, MIG, 16, 8), size = peer_get(peer, MIG, 24, 8);
    uint8_t *data = malloc(size);
    assert_int_equal(peer_read(peer, MIG, offset, data, 1000), 0);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    assert_int_equal(peer_set_v1(peer, 2), 0); /* X2 */
    assert_int_equal(peer_get(peer, MIG, 16, 8), offset);
    assert_int_equal(peer_get(peer, MIG, 24, 8), size);
    assert_int_equal(peer_read(peer, MIG, offset + 1000, data + 1000, (uint32_t)size - 1000), 0);
    size_t more = peer_save_v1(peer, &rest);
    data = realloc(data, size + more);
    memcpy(data + size, rest, more);
    reopen();
    assert_int_equal(peer_set_v1(peer, 4), 0);
    assert_int_equal(peer_load_v1(peer, data, size + more, 4096), 0);
    assert_int_equal(peer_set_v1(peer, 9), 0); /* C17: Z to NR in one write */
    check_memory(7);
    free(data);
    free(rest);
}

/* C33: two saves without leaving !R are equal but for their name. */
static void a_stopped_device_stays_the_same(void **state)
{
    uint8_t *one, *two;

    put_memory(11);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP), 0);
    size_t size = save_now(&one);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP), 0);
    uint8_t noise[TOY_MEMORY_SIZE] = {1};
    assert_int_equal(peer_write(peer, 0, TOY_MEMORY, noise, sizeof(noise)), 0);
    assert_int_equal(save_now(&two), size);
    /* Frames: 40 bytes of header with id and CRC, 8 of section, then a record. */
    for (size_t at = 48; at + 264 < size - 400; at += 48 + 264)
        assert_memory_equal(one + at, two + at, 264);
    free(one);
    free(two);
}

/* ---- the region's rules ---------------------------------------------------------------------- */

/* X5, X8 and section 1.3: widths, places, read-only fields. */
static void register_access_rules(void **state)
{
    uint8_t buf[64];

    assert_int_equal(peer_get(peer, MIG, 4, 4), 0);
    assert_int_equal(peer_put(peer, MIG, 4, UINT32_MAX, 4), 0);
    assert_int_equal(peer_get(peer, MIG, 4, 4), 0);
    assert_int_equal(peer_read(peer, MIG, 0, buf, 2), -EINVAL);
    assert_int_equal(peer_read(peer, MIG, 0, buf, 8), -EINVAL);
    assert_int_equal(peer_read(peer, MIG, 8, buf, 4), -EINVAL);
    assert_int_equal(peer_read(peer, MIG, 32, buf, 1), -EINVAL);
    assert_int_equal(peer_put(peer, MIG, 8, 1, 8), -EINVAL);
    assert_int_equal(peer_put(peer, MIG, 16, 1, 8), -EINVAL);
    assert_int_equal(peer_put(peer, MIG, 24, 1, 8), -EINVAL); /* not in Z */
    assert_int_equal(peer_read(peer, MIG, 16, buf, 8), -EINVAL);
    for (uint32_t bits = 0; bits < 64; bits++)
        if (bits == 5 || bits == 6 || bits == 7 || bits > 12)
            assert_int_equal(peer_set_v1(peer, bits), -EINVAL); /* X12 */
    assert_int_equal(peer_get_v1(peer), 1);
}

static void data_in_pieces_of_any_width(void **state)
{
    uint8_t *data;

    put_memory(13);
    assert_int_equal(peer_set_v1(peer, 2), 0);
    peer_get(peer, MIG, 8, 8);
    uint64_t offset = peer_get(peer, MIG, 16, 8), size = peer_get(peer, MIG, 24, 8);
    data = malloc(size + 8);
    assert_int_equal(peer_read(peer, MIG, offset, data, (uint32_t)size), 0);
    for (uint64_t at = 0, width = 1; at + 8 < 2000; at += 8, width = width == 8 ? 1 : width * 2)
        for (uint64_t i = 0; i < 8; i += width) {
            uint64_t got = peer_get(peer, MIG, offset + at + i, (uint32_t)width);
            assert_memory_equal(&got, data + at + i, width);
        }
    assert_int_equal(peer_read(peer, MIG, offset + size, data, 1), -EINVAL);
    reopen();
    assert_int_equal(peer_set_v1(peer, 4), 0);
    offset = peer_get(peer, MIG, 16, 8);
    /* Backwards, in words; committed at once. */
    uint64_t words = size / 8 * 8;
    assert_int_equal(peer_write(peer, MIG, offset + words, data + words, (uint32_t)(size - words)),
                     0);
    for (uint64_t at = words; at; at -= 8)
        assert_int_equal(peer_write(peer, MIG, offset + at - 8, data + at - 8, 8), 0);
    assert_int_equal(peer_put(peer, MIG, 24, size, 8), 0);
    assert_int_equal(peer_set_v1(peer, 1), 0);
    check_memory(13);
    free(data);
}

/* ---- what is the VMM's ----------------------------------------------------------------------- */

/* C46-C49: programmed before Z, changed in SR, S and Z: untouched by the data, and the data by
 * it; table, PBA and config space work while the device is stopped. */
static void external_state_is_left_alone(void **state)
{
    uint8_t *first, *last;

    put_memory(17);
    assert_int_equal(peer_set_v1(peer, 3), 0);
    size_t size = peer_save_v2(peer, &first, 4096);
    peer_put(peer, VFMIG_REGION_CONFIG, 4, 2, 2);
    peer_put(peer, 0, TOY_TABLE, 0xfee01000, 4);
    close(peer_vector(peer, 0));
    assert_int_equal(peer_set_v1(peer, 2), 0);
    peer_put(peer, VFMIG_REGION_CONFIG, 4, 6, 2);
    peer_put(peer, 0, TOY_TABLE + 4, 0x55, 4);
    assert_int_equal(peer_get(peer, 0, TOY_TABLE, 4), 0xfee01000);
    close(peer_vector(peer, 0));
    size_t more = peer_save_v1(peer, &last); /* one stream, whoever reads it */
    first = realloc(first, size + more);
    memcpy(first + size, last, more);

    reopen();
    int fd = peer_vector(peer, 2);
    peer_put(peer, VFMIG_REGION_CONFIG, 4, 0x402, 2);
    peer_put(peer, 0, TOY_TABLE + 32, 0xfee07000, 4);
    peer_put(peer, 0, TOY_TABLE + 32 + 12, 1, 4);
    assert_int_equal(peer_set_v1(peer, 4), 0);
    assert_int_equal(peer_load_v2(peer, first, size / 2, 5000), 0);
    peer_put(peer, 0, TOY_TABLE + 32 + 8, 0x41, 4);
    peer_put(peer, VFMIG_REGION_CONFIG, 4, 0x406, 2);
    assert_int_equal(peer_load_v2(peer, first + size / 2, size + more - size / 2, 5000), 0);
    assert_int_equal(peer_set_v1(peer, 1), 0);
    check_memory(17);
    assert_int_equal(peer_get(peer, VFMIG_REGION_CONFIG, 4, 2), 0x406);
    assert_int_equal(peer_get(peer, 0, TOY_TABLE + 32, 8), 0xfee07000);
    assert_int_equal(peer_get(peer, 0, TOY_TABLE + 32 + 8, 8), 0x100000041);
    peer_put(peer, 0, TOY_IRQ, 2, 4);
    assert_int_equal(peer_irqs(fd), 0); /* still masked, still attached */
    peer_put(peer, 0, TOY_TABLE + 32 + 12, 0, 4);
    assert_int_equal(peer_irqs(fd), 1);
    close(fd);
    free(first);
    free(last);
}

/* Callbacks that fail: the old state stands when nothing was undone that cannot be. */
static void failing_callbacks(void **state)
{
    toy->fail_stop = -EIO;
    assert_int_equal(peer_set_v1(peer, 2), -EIO);
    assert_int_equal(peer_get_v1(peer), 1);
    assert_int_equal(peer_put(peer, 0, TOY_SCRATCH, 4, 8), 0);
    assert_int_equal(peer_get(peer, 0, TOY_SCRATCH, 8), 4);
    toy->fail_stop = 0;
    toy->fail_save_begin = -ENOSPC;
    assert_int_equal(peer_set_v1(peer, 3), -ENOSPC);
    assert_int_equal(peer_get_v1(peer), 1);
    toy->fail_save_begin = 0;
    assert_int_equal(peer_set_v1(peer, 3), 0);
}

/* C67: the stream is about internal state only, whatever memory the device wrote before and in SR. */
static void the_stream_knows_no_guest_memory(void **state)
{
    size_t sizes[2];
    uint8_t *data;

    for (unsigned pages = 0; pages < 2; pages++) {
        for (unsigned i = 0; i < pages * 64; i++) {
            if (i == 32)
                assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY), 0);
            assert_int_equal(peer_put(peer, 0, TOY_IOVA, RAM_IOVA + i * 4096, 8), 0);
            assert_int_equal(peer_put(peer, 0, TOY_WRITE, 1, 4), 0);
        }
        assert_int_equal(peer_put(peer, 0, TOY_IOVA, RAM_IOVA, 8), 0);
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
        sizes[pages] = peer_save_v2(peer, &data, 4096);
        free(data);
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RUNNING), 0);
    }
    assert_int_equal(sizes[0], sizes[1]);
}

int main(void)
{
#define WITH(test) cmocka_unit_test_setup_teardown(test, start, stop)
    const struct CMUnitTest tests[] = {
        WITH(mmio_in_every_state),
        WITH(stopped_writes_leave_nothing),
        WITH(no_new_dma_under_ndma),
        WITH(drain_waits_and_serves),
        cmocka_unit_test(drain_deadline),
        cmocka_unit_test(fault_that_nobody_resolves_is_given_up),
        WITH(reset_while_draining),
        WITH(disconnect_while_draining),
        WITH(latched_interrupt_is_delivered_once),
        WITH(reset_in_every_state),
        WITH(disconnect_in_every_state),
        WITH(an_aborted_save_leaves_nothing),
        cmocka_unit_test(without_a_log_pre_copy_is_empty),
        cmocka_unit_test(without_ndma),
        WITH(bad_data_is_refused),
        WITH(an_open_portion_is_carried_over),
        WITH(a_stopped_device_stays_the_same),
        WITH(register_access_rules),
        WITH(data_in_pieces_of_any_width),
        WITH(external_state_is_left_alone),
        WITH(failing_callbacks),
        WITH(the_stream_knows_no_guest_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
