/* SPDX-License-Identifier: BSD-3-Clause */
/* A device that answers later: each of its callbacks, what is served meanwhile, and what a reset
 * or a lost client makes of the handle. */
#include "peer.h"

#include <semaphore.h>
#include <sys/socket.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIG   VFMIG_REGION_MIGRATION
#define BAR   0x10000u
#define STATE 300000u /* more than one frame of the device stream */

enum callback { READ = 0, WRITE, RESET, STOP, START, SAVE_BEGIN, PRECOPY, SAVE, LOAD, LOAD_END,
                CALLBACKS };
#define BIT(callback) (1u << (callback))
#define WINDOW        (1u << 20)
#define ALL           (BIT(CALLBACKS) - 1)

/* A device with STATE bytes that answers later whatever `defer` says, every second time it is
 * asked for data. */
static struct slow {
    struct vfmig_device *dev;
    unsigned defer;
    bool by_worker; /* handles are ended by another thread at once, else by the test */
    bool no_handle; /* -EINPROGRESS, and nothing to end it by */
    struct vfmig_later handle[CALLBACKS];
    unsigned calls[CALLBACKS];
    sem_t called;
    bool again[CALLBACKS]; /* data: was asked before */
    uint8_t bar[BAR], state[STATE];
    void *data; /* of the access that is open */
    size_t at;
    pthread_t worker;
    sem_t work;
    int pipe[2];
} slow;

static struct peer *peer;

static void *work(void *arg)
{
    struct vfmig_later later;

    while (read((int)(intptr_t)arg, &later, sizeof(later)) == sizeof(later) && later.dev)
        vfmig_later_done(later, 0);
    return NULL;
}

static void end_by_worker(struct vfmig_later later)
{
    assert_int_equal(write(slow.pipe[1], &later, sizeof(later)), sizeof(later));
}

/* 0: answer now. */
static int later(enum callback callback)
{
    slow.calls[callback]++;
    if (!(slow.defer & BIT(callback)))
        return 0;
    if (slow.no_handle)
        return -EINPROGRESS;
    slow.handle[callback] = vfmig_device_later(slow.dev);
    if (slow.by_worker)
        end_by_worker(slow.handle[callback]);
    else
        sem_post(&slow.called);
    return -EINPROGRESS;
}

/* Data: every second time. */
static int later_again(enum callback callback)
{
    slow.again[callback] = !slow.again[callback];
    return slow.again[callback] ? later(callback) : 0;
}

static int region_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    slow.data = data;
    memcpy(data, slow.bar + offset, size);
    return later(READ);
}

static int region_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    slow.data = (void *)(uintptr_t)data;
    memcpy(slow.bar + offset, data, size);
    return later(WRITE);
}

static void reset(void *user)
{
    slow.at = 0;
    memset(slow.again, 0, sizeof(slow.again));
    later(RESET);
}

static int stop(void *user)
{
    return later(STOP);
}

static int start(void *user)
{
    return later(START);
}

static int save_begin(void *user, bool running)
{
    slow.at = 0;
    return later(SAVE_BEGIN);
}

/* Half of the state before it stops, over and over: what is logged is the test's business. */
static ssize_t save_to(enum callback callback, void *buf, size_t size, size_t end)
{
    int r = later_again(callback);

    if (r < 0)
        return r;
    size = size < end - slow.at ? size : end - slow.at;
    memcpy(buf, slow.state + slow.at, size);
    slow.at += size;
    return (ssize_t)size;
}

static ssize_t save_precopy(void *user, void *buf, size_t size)
{
    return save_to(PRECOPY, buf, size, STATE / 2);
}

static ssize_t save(void *user, void *buf, size_t size)
{
    return save_to(SAVE, buf, size, STATE);
}

static int load(void *user, const void *data, size_t size)
{
    int r = later_again(LOAD);

    if (r < 0)
        return r;
    if (slow.at == STATE / 2 && size == STATE)
        slow.at = 0;
    assert_true(size <= STATE - slow.at);
    memcpy(slow.state + slow.at, data, size);
    slow.at = (slow.at + size) % STATE;
    return 0;
}

static int load_end(void *user)
{
    return later(LOAD_END);
}

static void make_device(void)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    memset(&slow, 0, sizeof(slow));
    sem_init(&slow.called, 0, 0);
    assert_int_equal(pipe(slow.pipe), 0);
    config.bars[0].size = BAR;
    ops.region_read = region_read;
    ops.region_write = region_write;
    ops.reset = reset;
    ops.stop = stop;
    ops.start = start;
    ops.save_begin = save_begin;
    ops.save_precopy = save_precopy;
    ops.save = save;
    ops.load = load;
    ops.load_end = load_end;
    assert_int_equal(vfmig_device_new(&config, &ops, NULL, &slow.dev, NULL), 0);
    assert_int_equal(pthread_create(&slow.worker, NULL, work,
                                    (void *)(intptr_t)slow.pipe[0]), 0);
}

static void end_device(void)
{
    end_by_worker((struct vfmig_later){0});
    pthread_join(slow.worker, NULL);
    vfmig_device_free(slow.dev);
    close(slow.pipe[0]);
    close(slow.pipe[1]);
    sem_destroy(&slow.called);
}

static int open_device(void **state)
{
    make_device();
    peer = peer_start(slow.dev);
    return peer_version(peer, NULL);
}

static int close_device(void **state)
{
    slow.defer = 0;
    for (unsigned i = 0; i < CALLBACKS; i++) /* what a failed test has left open */
        vfmig_later_done(slow.handle[i], 0);
    peer_end(peer);
    end_device();
    return 0;
}

static uint16_t send_state_v1(uint32_t bits)
{
    struct {
        struct vfmig_user_region_access access;
        uint32_t bits;
    } VFMIG_PACKED req = {{0, MIG, 4}, bits};
    return peer_send(peer, VFMIG_USER_REGION_WRITE, 0, &req, sizeof(req), NULL, 0);
}

static uint16_t send_state_v2(uint32_t state)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_state state;
    } VFMIG_PACKED req = {{sizeof(req), VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE},
                          {state, 0}};
    return peer_send(peer, VFMIG_USER_FEATURE, 0, &req, sizeof(req), NULL, 0);
}

static uint16_t send_access(uint16_t command, uint32_t region, uint64_t offset, uint32_t size)
{
    uint8_t req[sizeof(struct vfmig_user_region_access) + 4096] = {0};
    struct vfmig_user_region_access access = {offset, region, size};

    memcpy(req, &access, sizeof(access));
    return peer_send(peer, command, 0, req,
                     (uint32_t)sizeof(access) + (command == VFMIG_USER_REGION_WRITE ? size : 0),
                     NULL, 0);
}

static uint16_t send_data_read(uint32_t size)
{
    struct vfmig_user_mig_data req = {8 + size, size};
    return peer_send(peer, VFMIG_USER_MIG_DATA_READ, 0, &req, sizeof(req), NULL, 0);
}

static int data_read(uint32_t size)
{
    return peer_wait(peer, send_data_read(size));
}

static void wait_called(void)
{
    while (sem_wait(&slow.called) < 0)
        assert_int_equal(errno, EINTR);
}

static void end(enum callback callback, int result)
{
    vfmig_later_done(slow.handle[callback], result);
}

/* X11, C60: everything else is answered while a call is open; the old state is shown. */
static void a_call_that_ends_later(void **state)
{
    static const struct {
        enum callback callback;
        uint32_t from, to;
    } cases[] = {
        {STOP, 1, 0}, {STOP, 1, 2}, {START, 0, 1}, {SAVE_BEGIN, 1, 3}, {SAVE_BEGIN, 0, 2},
        {RESET, 1, 4},
    };
    struct vfmig_device_counters counters;

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        slow.defer = 0;
        assert_int_equal(peer_reset(peer), 0);
        assert_int_equal(peer_set_v1(peer, cases[i].from), 0);
        slow.defer = BIT(cases[i].callback);
        uint16_t id = send_state_v1(cases[i].to);
        wait_called();
        assert_int_equal(peer_get_v1(peer), cases[i].from);
        assert_int_equal(peer_get(peer, VFMIG_REGION_CONFIG, 0, 2), 0);
        assert_int_equal(peer_set_v1(peer, 1), -EBUSY);
        end(cases[i].callback, 0);
        assert_int_equal(peer_wait(peer, id), 0);
        assert_int_equal(peer_get_v1(peer), cases[i].to);
        end(cases[i].callback, -EIO); /* once only */
    }
    vfmig_device_get_counters(slow.dev, &counters);
    assert_int_equal(counters.answered_later, sizeof(cases) / sizeof(cases[0]));
}

static void a_call_that_fails_later(void **state)
{
    slow.defer = BIT(STOP);
    uint16_t id = send_state_v1(2);
    wait_called();
    end(STOP, -ENOSPC);
    assert_int_equal(peer_wait(peer, id), -ENOSPC);
    assert_int_equal(peer_get_v1(peer), 1);
    /* Undoing may take its time too. */
    slow.defer = BIT(SAVE_BEGIN) | BIT(START);
    id = send_state_v1(2);
    wait_called();
    end(SAVE_BEGIN, -ENOSPC);
    wait_called();
    assert_int_equal(peer_get_v1(peer), 1);
    end(START, 0);
    assert_int_equal(peer_wait(peer, id), -ENOSPC);
    assert_int_equal(peer_get_v1(peer), 1);
}

static void in_progress_without_a_handle_is_a_failure(void **state)
{
    slow.defer = BIT(STOP) | BIT(READ);
    slow.no_handle = true;
    assert_int_equal(peer_set_v1(peer, 0), -EIO);
    uint64_t value;
    assert_int_equal(peer_read(peer, 0, 0, &value, 8), -EIO);
    assert_null(vfmig_device_later(slow.dev).dev); /* no callback */
}

static void a_reset_that_ends_later(void **state)
{
    slow.defer = BIT(RESET);
    assert_int_equal(peer_set_v1(peer, 0), 0);
    uint16_t id = peer_send(peer, VFMIG_USER_RESET, 0, NULL, 0, NULL, 0);
    wait_called();
    assert_int_equal(peer_get_v1(peer), 0);
    assert_int_equal(peer_set_v1(peer, 1), -EBUSY);
    assert_int_equal(peer_get(peer, 0, 0, 8), UINT64_MAX); /* nothing reaches it yet */
    end(RESET, -EIO);
    assert_int_equal(peer_wait(peer, id), 0);
    assert_int_equal(peer_get_v1(peer), 1);
}

/* The handle of a call that a reset has ended ends nothing, neither that call nor the next one. */
static void a_reset_makes_handles_stale(void **state)
{
    slow.defer = BIT(STOP) | BIT(RESET);
    uint16_t write = send_state_v1(0);
    wait_called();
    struct vfmig_later stale = slow.handle[STOP];
    uint16_t id = peer_send(peer, VFMIG_USER_RESET, 0, NULL, 0, NULL, 0);
    wait_called();
    vfmig_later_done(stale, 0);
    assert_int_equal(peer_get_v1(peer), 1);
    assert_int_equal(peer_set_v1(peer, 1), -EBUSY); /* the reset is under way still */
    end(RESET, 0);
    assert_int_equal(peer_wait(peer, id), 0);
    assert_int_equal(peer_wait(peer, write), -ECANCELED);
    write = send_state_v1(0);
    wait_called();
    vfmig_later_done(stale, -EIO);
    assert_int_equal(peer_get_v1(peer), 1);
    end(STOP, 0);
    assert_int_equal(peer_wait(peer, write), 0);
}

static void attach(int *ret_fd, int expected)
{
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(vfmig_device_attach_fd(slow.dev, pair[1], NULL), expected);
    *ret_fd = pair[0];
}

/* C45: the next client comes in when the device is fresh. In one thread, so that the order is
 * sure. */
static void the_next_client_waits_for_the_reset(void **state)
{
    int fd, other;

    make_device();
    slow.defer = BIT(RESET);
    attach(&fd, 0);
    close(fd);
    assert_int_equal(vfmig_device_dispatch(slow.dev, NULL), 0); /* not over yet */
    assert_int_equal(slow.calls[RESET], 1);
    attach(&other, -EBUSY);
    close(other);
    assert_int_equal(vfmig_device_dispatch(slow.dev, NULL), 0);
    end(RESET, 0);
    assert_int_equal(vfmig_device_dispatch(slow.dev, NULL), 1);
    attach(&other, 0);
    assert_int_equal(vfmig_device_dispatch(slow.dev, NULL), 0);
    slow.defer = 0;
    close(other);
    assert_int_equal(vfmig_device_dispatch(slow.dev, NULL), 1);
    end_device();
}

static void a_lost_client_makes_handles_stale(void **state)
{
    slow.defer = BIT(STOP) | BIT(READ);
    send_access(VFMIG_USER_REGION_READ, 0, 0, 8);
    wait_called();
    send_state_v1(0);
    wait_called();
    peer_end(peer);
    end(STOP, 0);
    memset(slow.data, 1, 8); /* the buffer is there as long as the handle is open */
    end(READ, 0);
    slow.defer = 0;
    peer = peer_start(slow.dev);
    assert_int_equal(peer_version(peer, NULL), 0);
    assert_int_equal(peer_get_v1(peer), 1);
    assert_int_equal(peer_get(peer, 0, 0, 8), 0);
}

static void accesses_are_answered_out_of_order(void **state)
{
    struct vfmig_later first;
    uint8_t *data;

    slow.defer = BIT(READ);
    uint16_t one = send_access(VFMIG_USER_REGION_READ, 0, 0x100, 8);
    wait_called();
    first = slow.handle[READ];
    data = slow.data;
    uint16_t two = send_access(VFMIG_USER_REGION_READ, 0, 0x200, 4096);
    wait_called();
    memset(slow.data, 2, 4096);
    memset(data, 1, 8);
    end(READ, 0);
    assert_int_equal(peer_wait(peer, two), 0);
    assert_int_equal(peer->reply_size, 16 + 4096);
    assert_int_equal(peer->reply[16], 2);
    assert_int_equal(peer->reply[16 + 4095], 2);
    vfmig_later_done(first, 0);
    assert_int_equal(peer_wait(peer, one), 0);
    assert_int_equal(peer->reply[16], 1);
    assert_int_equal(peer->reply[0], 0); /* offset 0x100 */
    assert_int_equal(peer->reply[1], 1);
}

static void a_write_keeps_its_data_and_may_fail(void **state)
{
    uint8_t req[16 + 4096];
    struct vfmig_user_region_access access = {0, 0, 4096};

    memset(req, 7, sizeof(req));
    memcpy(req, &access, sizeof(access));
    slow.defer = BIT(WRITE);
    uint16_t id = peer_send(peer, VFMIG_USER_REGION_WRITE, 0, req, sizeof(req), NULL, 0);
    wait_called();
    for (unsigned i = 0; i < 50; i++) /* other messages go through the receive buffer */
        assert_int_equal(peer_get_v1(peer), 1);
    for (unsigned i = 0; i < 4096; i++)
        assert_int_equal(((uint8_t *)slow.data)[i], 7);
    end(WRITE, -EDOM);
    assert_int_equal(peer_wait(peer, id), -EDOM);
    assert_int_equal(peer->reply_size, 0);
    peer_post(peer, 0, 0, 1, 8); /* nobody waits for the answer */
    wait_called();
    end(WRITE, 0);
    assert_int_equal(peer_get_v1(peer), 1);
}

/* A place is only free when its handle was ended: the device may still write into its buffer. */
static void accesses_are_bounded(void **state)
{
    struct vfmig_later open[VFMIG_DEVICE_LATER_ACCESSES];
    uint16_t ids[VFMIG_DEVICE_LATER_ACCESSES];
    uint64_t value;

    slow.defer = BIT(READ);
    for (unsigned i = 0; i < VFMIG_DEVICE_LATER_ACCESSES; i++) {
        ids[i] = send_access(VFMIG_USER_REGION_READ, 0, 0, 8);
        wait_called();
        open[i] = slow.handle[READ];
    }
    assert_int_equal(peer_read(peer, 0, 0, &value, 8), -EBUSY);
    uint16_t id = peer_send(peer, VFMIG_USER_RESET, 0, NULL, 0, NULL, 0);
    for (unsigned i = 0; i < VFMIG_DEVICE_LATER_ACCESSES; i++)
        assert_int_equal(peer_wait(peer, ids[i]), -ECANCELED);
    assert_int_equal(peer_wait(peer, id), 0);
    assert_int_equal(peer_read(peer, 0, 0, &value, 8), -EBUSY);
    slow.defer = 0;
    vfmig_later_done(open[3], 0);
    assert_int_equal(peer_get_v1(peer), 1);
    assert_int_equal(peer_read(peer, 0, 0, &value, 8), 0);
    for (unsigned i = 0; i < VFMIG_DEVICE_LATER_ACCESSES; i++)
        vfmig_later_done(open[i], 0);
}

static void fill_state(void)
{
    for (unsigned i = 0; i < STATE; i++)
        slow.state[i] = (uint8_t)(i * 7 + i / 251);
}

static void check_state(void)
{
    for (unsigned i = 0; i < STATE; i++)
        assert_int_equal(slow.state[i], (uint8_t)(i * 7 + i / 251));
}

/* Whole migrations in which every callback answers later, from another thread. */
static void everything_later(void **state)
{
    for (unsigned i = 0; i < 8; i++) {
        bool save_v1 = i & 1, load_v1 = i & 2;
        uint8_t *data;
        size_t size;

        fill_state();
        slow.defer = ALL;
        slow.by_worker = true;
        assert_int_equal(peer_put(peer, 0, 64, 0x1234, 8), 0);
        assert_int_equal(peer_get(peer, 0, 64, 8), 0x1234);
        assert_int_equal(peer_set_v1(peer, 2), 0);
        size = save_v1 ? peer_save_v1(peer, &data) : peer_save_v2(peer, &data, i & 4 ? 8192 : 77777);
        assert_true(size > STATE);
        memset(slow.state, 0, STATE);
        assert_int_equal(peer_set_v1(peer, 4), 0);
        assert_int_equal(load_v1 ? peer_load_v1(peer, data, size, 50000)
                                 : peer_load_v2(peer, data, size, 50000),
                         0);
        assert_int_equal(peer_set_v1(peer, 1), 0);
        check_state();
        assert_int_equal(peer_reset(peer), 0);
        free(data);
    }
    for (unsigned i = 0; i < CALLBACKS; i++)
        assert_true(i == PRECOPY || slow.calls[i] >= 8);
}

/* X11: a data read waits, everything else is served, another data command is not taken. */
static void a_data_read_waits(void **state)
{
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
    slow.defer = BIT(SAVE);
    uint16_t id = send_data_read(1000);
    wait_called();
    assert_int_equal(peer_get_v2(peer), VFMIG_STATE_STOP_COPY);
    assert_int_equal(data_read(100), -EBUSY);
    uint64_t value;
    assert_int_equal(peer_read(peer, MIG, 16, &value, 8), -EBUSY);
    assert_int_equal(peer_read(peer, MIG, 8, &value, 8), -EBUSY);
    assert_int_equal(peer_get(peer, MIG, 4, 4), 0);
    end(SAVE, 0);
    assert_int_equal(peer_wait(peer, id), 0);
    assert_int_equal(peer->reply_size, 8 + 1000);
    slow.defer = 0;
    /* The device fails instead. */
    slow.again[SAVE] = false;
    slow.defer = BIT(SAVE);
    id = send_data_read(1u << 20);
    wait_called();
    end(SAVE, -ENOMEM);
    assert_int_equal(peer_wait(peer, id), 0); /* what there was before */
    assert_true(peer->reply_size > 8 && peer->reply_size < 8 + STATE);
}

static void what_ends_a_save_ends_its_read(void **state)
{
    uint16_t id, write;

    slow.defer = BIT(PRECOPY);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY), 0);
    id = send_data_read(1000);
    wait_called();
    write = send_state_v2(VFMIG_STATE_RUNNING); /* given up */
    assert_int_equal(peer_wait(peer, id), -ECANCELED);
    assert_int_equal(peer_wait(peer, write), 0);
    end(PRECOPY, 0);
    slow.again[PRECOPY] = false;
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY), 0);
    id = send_data_read(1000);
    wait_called();
    write = peer_send(peer, VFMIG_USER_RESET, 0, NULL, 0, NULL, 0);
    assert_int_equal(peer_wait(peer, id), -ECANCELED);
    assert_int_equal(peer_wait(peer, write), 0);
    end(PRECOPY, 0);
    assert_int_equal(peer_get_v1(peer), 1);
    /* SR to S goes on with the same read. */
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_PRE_COPY), 0);
    id = send_data_read(1000);
    wait_called();
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
    end(PRECOPY, 0);
    assert_int_equal(peer_wait(peer, id), 0);
    assert_int_equal(peer->reply_size, 8 + 1000);
}

/* The region dialect: without an estimate pending_bytes asks the device, and does not wait. */
static void the_window_waits(void **state)
{
    slow.defer = BIT(PRECOPY);
    assert_int_equal(peer_set_v1(peer, 3), 0);
    assert_int_equal(peer_get(peer, MIG, 8, 8), 1); /* there may be something (X6) */
    wait_called();
    uint16_t id = send_access(VFMIG_USER_REGION_READ, MIG, 16, 8);
    assert_int_equal(peer_get_v1(peer), 3);
    assert_int_equal(data_read(100), -EBUSY);
    assert_int_equal(slow.calls[PRECOPY], 1); /* not asked again before it said so */
    end(PRECOPY, 0);
    wait_called(); /* every second call answers later */
    end(PRECOPY, 0);
    assert_int_equal(peer_wait(peer, id), 0);
    assert_true(peer_get(peer, MIG, 24, 8) > STATE / 2);
}

static void data_that_is_being_taken(void **state)
{
    uint8_t *data;
    size_t size;

    fill_state();
    assert_int_equal(peer_set_v1(peer, 2), 0);
    size = peer_save_v2(peer, &data, 1u << 20);
    for (unsigned v1 = 0; v1 < 2; v1++) {
        uint16_t id;

        memset(slow.state, 0, STATE);
        slow.defer = BIT(LOAD) | BIT(LOAD_END);
        assert_int_equal(peer_set_v1(peer, 4), 0);
        if (v1) {
            uint64_t at = peer_get(peer, MIG, 16, 8);
            assert_int_equal(peer_write(peer, MIG, at, data, (uint32_t)size), 0);
            struct {
                struct vfmig_user_region_access access;
                uint64_t size;
            } VFMIG_PACKED req = {{24, MIG, 8}, size};
            id = peer_send(peer, VFMIG_USER_REGION_WRITE, 0, &req, sizeof(req), NULL, 0);
            wait_called();
            assert_int_equal(peer_write(peer, MIG, at, data, 8), -EBUSY);
        } else {
            struct vfmig_user_mig_data *req = malloc(8 + size);
            *req = (struct vfmig_user_mig_data){(uint32_t)(8 + size), (uint32_t)size};
            memcpy(req + 1, data, size);
            id = peer_send(peer, VFMIG_USER_MIG_DATA_WRITE, 0, req, (uint32_t)(8 + size), NULL, 0);
            free(req);
            wait_called();
        }
        assert_int_equal(peer_get_v1(peer), 4);
        assert_int_equal(peer_set_v1(peer, 1), -EBUSY);
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP), -EBUSY);
        assert_int_equal(peer_load_v2(peer, data, 8, 8), -EBUSY);
        end(LOAD, 0); /* the first frame */
        wait_called();
        end(LOAD, 0); /* the second one */
        assert_int_equal(peer_wait(peer, id), 0);
        check_state();
        id = send_state_v1(1);
        wait_called();
        assert_int_equal(peer_load_v2(peer, data, 8, 8), -EBUSY); /* it is being looked at */
        end(LOAD_END, v1 ? -EBADMSG : 0);
        assert_int_equal(peer_wait(peer, id), v1 ? -EBADMSG : 0);
        assert_int_equal(peer_get_v1(peer), v1 ? 6 : 1);
    }
    free(data);
}

static void data_that_is_refused_later(void **state)
{
    uint8_t *data;
    size_t size;

    assert_int_equal(peer_set_v1(peer, 2), 0);
    size = peer_save_v2(peer, &data, 1u << 20);
    slow.defer = BIT(LOAD);
    assert_int_equal(peer_set_v1(peer, 4), 0);
    struct vfmig_user_mig_data *req = malloc(8 + size);
    *req = (struct vfmig_user_mig_data){(uint32_t)(8 + size), (uint32_t)size};
    memcpy(req + 1, data, size);
    uint16_t id = peer_send(peer, VFMIG_USER_MIG_DATA_WRITE, 0, req, (uint32_t)(8 + size), NULL, 0);
    wait_called();
    end(LOAD, -EBADMSG);
    assert_int_equal(peer_wait(peer, id), -EBADMSG);
    assert_true(peer_set_v1(peer, 1) < 0);
    assert_int_equal(peer_get_v1(peer), 6);
    free(req);
    free(data);
}

/* A client with a shared window, mapped. */
static uint8_t *open_window(void)
{
    peer_end(peer);
    peer = peer_start(slow.dev);
    assert_int_equal(peer_version(peer, "{\"capabilities\":{\"vfmig\":{\"window\":1048576}}}"), 0);
    int fd = peer_take_fd(peer, 0);
    uint8_t *map = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(map != MAP_FAILED);
    close(fd);
    return map;
}

static uint16_t send_window(uint32_t flags, uint64_t offset, uint32_t size)
{
    struct vfmig_user_window_message req = {{sizeof(req), flags}, {offset, size, 0}};
    return peer_send(peer, VFMIG_USER_FEATURE, 0, &req, sizeof(req), NULL, 0);
}

#define WINDOW_READ  (VFMIG_USER_FEATURE_GET | VFMIG_USER_F_WINDOW_READ)
#define WINDOW_WRITE (VFMIG_USER_FEATURE_SET | VFMIG_USER_F_WINDOW_WRITE)

/* A read into the shared window and a write out of it wait as messages do. */
static void the_shared_window_waits(void **state)
{
    struct vfmig_user_window_message got;
    uint8_t *window = open_window();

    fill_state();
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
    slow.defer = BIT(SAVE);
    uint16_t id = send_window(WINDOW_READ, 4096, WINDOW - 4096);
    for (unsigned i = 0; i < 3; i++) { /* two frames, and that there is no more */
        wait_called();
        assert_int_equal(data_read(100), -EBUSY);
        assert_int_equal(peer_wait(peer, send_window(WINDOW_READ, 0, 10)), -EBUSY);
        assert_int_equal(peer_get_v2(peer), VFMIG_STATE_STOP_COPY);
        end(SAVE, 0);
    }
    assert_int_equal(peer_wait(peer, id), 0);
    memcpy(&got, peer->reply, sizeof(got));
    assert_int_equal(got.head.argsz, sizeof(got));
    assert_int_equal(got.place.offset, 4096);
    assert_true(got.place.size > STATE && got.place.size < WINDOW - 4096);

    uint8_t *data = malloc(got.place.size);
    memcpy(data, window + 4096, got.place.size);
    munmap(window, WINDOW);
    slow.defer = 0;
    window = open_window();
    memset(slow.state, 0, STATE);
    assert_int_equal(peer_set_v2(peer, VFMIG_STATE_RESUMING), 0);
    slow.again[LOAD] = false;
    slow.defer = BIT(LOAD);
    memcpy(window, data, got.place.size);
    id = send_window(WINDOW_WRITE, 0, got.place.size);
    wait_called();
    assert_int_equal(peer_set_v1(peer, 1), -EBUSY);
    memset(window, 0, WINDOW); /* too late: the write was taken */
    assert_int_equal(peer_load_v2(peer, data, 8, 8), -EBUSY);
    end(LOAD, 0);
    wait_called();
    end(LOAD, 0);
    assert_int_equal(peer_wait(peer, id), 0);
    assert_int_equal(peer->reply_size, sizeof(got));
    assert_int_equal(peer_set_v1(peer, 1), 0);
    check_state();
    munmap(window, WINDOW);
    free(data);
}

/* The client goes away, and its memory with it, while the device is asked for what goes there. */
static void a_client_that_is_lost_takes_its_windows(void **state)
{
    for (unsigned v1 = 0; v1 < 2; v1++) {
        munmap(open_window(), WINDOW);
        assert_int_equal(peer_set_v2(peer, VFMIG_STATE_STOP_COPY), 0);
        slow.again[SAVE] = false;
        slow.defer = BIT(SAVE);
        if (v1)
            send_access(VFMIG_USER_REGION_READ, MIG, 16, 8);
        else
            send_window(WINDOW_READ, 0, WINDOW);
        wait_called();
        struct vfmig_later handle = slow.handle[SAVE];
        slow.defer = 0;
        peer_end(peer);
        vfmig_later_done(handle, 0);
        peer = peer_start(slow.dev);
        assert_int_equal(peer_version(peer, NULL), 0);
        uint8_t *data;
        assert_int_equal(peer_set_v1(peer, 2), 0);
        assert_true(peer_save_v1(peer, &data) > STATE);
        free(data);
    }
}

#define LATER(test) cmocka_unit_test_setup_teardown(test, open_device, close_device)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LATER(a_call_that_ends_later),
        LATER(a_call_that_fails_later),
        LATER(in_progress_without_a_handle_is_a_failure),
        LATER(a_reset_that_ends_later),
        LATER(a_reset_makes_handles_stale),
        cmocka_unit_test(the_next_client_waits_for_the_reset),
        LATER(a_lost_client_makes_handles_stale),
        LATER(accesses_are_answered_out_of_order),
        LATER(a_write_keeps_its_data_and_may_fail),
        LATER(accesses_are_bounded),
        LATER(everything_later),
        LATER(a_data_read_waits),
        LATER(what_ends_a_save_ends_its_read),
        LATER(the_window_waits),
        LATER(data_that_is_being_taken),
        LATER(data_that_is_refused_later),
        LATER(the_shared_window_waits),
        LATER(a_client_that_is_lost_takes_its_windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
