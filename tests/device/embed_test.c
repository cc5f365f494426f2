/* SPDX-License-Identifier: BSD-3-Clause */
/* The library inside a program: its own thread, many devices in one loop, structs of other
 * versions. */
#include "peer.h"
#include "toy.h"

#include <dirent.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define DEVICES 4u

/* A client whose server runs elsewhere. */
static struct peer attach(struct vfmig_device *dev)
{
    struct peer p = {.twin = -1, .reply = malloc(PEER_REPLY_MAX)};
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(vfmig_device_attach_fd(dev, pair[1], NULL), 0);
    p.fd = pair[0];
    return p;
}

static void detach(struct peer *p)
{
    close(p->fd);
    free(p->reply);
}

static unsigned threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    unsigned count = 0;

    while (readdir(dir))
        count++;
    closedir(dir);
    return count - 2;
}

static void an_own_thread(void **state)
{
    struct toy *toys[DEVICES];
    struct peer peers[DEVICES];
    struct vfmig_error err = {0};
    unsigned before = threads();

    for (unsigned i = 0; i < DEVICES; i++) {
        toys[i] = toy_new(true, true, true, 0);
        peers[i] = attach(toys[i]->dev);
        assert_int_equal(vfmig_device_join(toys[i]->dev, &err), -EINVAL);
        assert_int_equal(vfmig_device_start(toys[i]->dev, NULL), 0);
        assert_int_equal(vfmig_device_start(toys[i]->dev, &err), -EBUSY);
    }
    for (unsigned i = 0; i < DEVICES; i++) {
        assert_int_equal(peer_version(&peers[i], NULL), 0);
        assert_int_equal(peer_put(&peers[i], 0, TOY_SCRATCH, i, 8), 0);
    }
    for (unsigned i = 0; i < DEVICES; i++)
        assert_int_equal(peer_get(&peers[i], 0, TOY_SCRATCH, 8), i);
    /* Ends by stop, by its client's leaving, by free. */
    vfmig_device_stop(toys[0]->dev);
    assert_int_equal(vfmig_device_join(toys[0]->dev, NULL), 0);
    detach(&peers[1]);
    assert_int_equal(vfmig_device_join(toys[1]->dev, NULL), 0);
    /* And starts again. */
    assert_int_equal(vfmig_device_start(toys[0]->dev, NULL), 0);
    assert_int_equal(peer_get(&peers[0], 0, TOY_SCRATCH, 8), 0);
    for (unsigned i = 0; i < DEVICES; i++) {
        toy_free(toys[i]);
        if (i != 1)
            detach(&peers[i]);
    }
    assert_int_equal(threads(), before);
}

/* A signal for the process never lands in the library's thread, a fault of its own does. */
static void signals_stay_with_the_program(void **state)
{
    struct toy *toy = toy_new(true, true, true, 0);
    struct peer p = attach(toy->dev);
    sigset_t usr1, before;
    int number = 0;

    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    assert_int_equal(vfmig_device_start(toy->dev, NULL), 0);
    pthread_sigmask(SIG_BLOCK, &usr1, &before); /* the other thread has it blocked on its own */
    kill(getpid(), SIGUSR1);
    assert_int_equal(peer_version(&p, NULL), 0);
    assert_int_equal(sigwait(&usr1, &number), 0);
    assert_int_equal(number, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    toy_free(toy);
    detach(&p);
}

static struct {
    struct toy *toys[DEVICES];
    int epoll;
} loop;

static void *serve(void *arg)
{
    for (;;) {
        struct epoll_event ev;
        if (epoll_wait(loop.epoll, &ev, 1, -1) != 1)
            continue;
        if (ev.data.u32 == DEVICES)
            return NULL;
        vfmig_device_dispatch(loop.toys[ev.data.u32]->dev, NULL);
    }
}

static void many_devices_in_one_loop(void **state)
{
    struct peer peers[DEVICES];
    pthread_t thread;
    int end[2];

    loop.epoll = epoll_create1(EPOLL_CLOEXEC);
    assert_int_equal(pipe(end), 0);
    for (unsigned i = 0; i <= DEVICES; i++) {
        struct epoll_event ev = {.events = EPOLLIN, .data.u32 = i};
        int fd = end[0];
        if (i < DEVICES) {
            loop.toys[i] = toy_new(true, true, true, 0);
            peers[i] = attach(loop.toys[i]->dev);
            fd = vfmig_device_poll_fd(loop.toys[i]->dev);
        }
        assert_int_equal(epoll_ctl(loop.epoll, EPOLL_CTL_ADD, fd, &ev), 0);
    }
    assert_int_equal(pthread_create(&thread, NULL, serve, NULL), 0);
    for (unsigned i = 0; i < DEVICES; i++) {
        assert_int_equal(peer_version(&peers[i], NULL), 0);
        peer_put(&peers[i], 0, TOY_SCRATCH, i, 8);
    }
    /* Each moves to the next one while the others are served. */
    for (unsigned i = 0; i + 1 < DEVICES; i += 2) {
        uint8_t *data;
        assert_int_equal(peer_set_v2(&peers[i], VFMIG_STATE_STOP_COPY), 0);
        size_t size = peer_save_v2(&peers[i], &data, 4096);
        assert_int_equal(peer_set_v2(&peers[i + 1], VFMIG_STATE_RESUMING), 0);
        assert_int_equal(peer_load_v2(&peers[i + 1], data, size, 4096), 0);
        assert_int_equal(peer_set_v2(&peers[i + 1], VFMIG_STATE_RUNNING), 0);
        assert_int_equal(peer_get(&peers[i + 1], 0, TOY_SCRATCH, 8), i);
        free(data);
    }
    assert_int_equal(write(end[1], "", 1), 1);
    pthread_join(thread, NULL);
    for (unsigned i = 0; i < DEVICES; i++) {
        toy_free(loop.toys[i]);
        detach(&peers[i]);
    }
    close(end[0]);
    close(end[1]);
    close(loop.epoll);
}

/* ---- structs of other versions --------------------------------------------------------------- */

static unsigned freed;

static void count_free(void *user)
{
    freed++;
}

static int register_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    memset(data, 0x5a, size);
    return 0;
}

static void structs_of_other_versions(void **state)
{
    struct {
        struct vfmig_device_config known;
        uint64_t more[4];
    } config = {.known = VFMIG_DEVICE_CONFIG_INIT};
    struct {
        struct vfmig_device_ops known;
        void *more[4];
    } ops = {.known = VFMIG_DEVICE_OPS_INIT};
    struct vfmig_device *dev;
    struct vfmig_error err = {0};
    uint64_t value;

    config.known.bars[0].size = 4096;
    ops.known.region_read = register_read;
    ops.known.free = count_free;
    /* Newer, and nothing asked for that is not known. */
    config.known.size = sizeof(config);
    ops.known.size = sizeof(ops);
    assert_int_equal(vfmig_device_new(&config.known, &ops.known, NULL, &dev, NULL), 0);
    vfmig_device_free(dev);
    assert_int_equal(freed, 1);
    config.more[3] = 1ull << 63;
    assert_int_equal(vfmig_device_new(&config.known, &ops.known, NULL, &dev, &err), -EINVAL);
    config.more[3] = 0;
    ops.more[0] = count_free;
    assert_int_equal(vfmig_device_new(&config.known, &ops.known, NULL, &dev, &err), -EINVAL);
    assert_int_equal(freed, 3);
    ops.more[0] = NULL;
    /* Older: what is behind its end is not looked at, and is 0. */
    config.known.size = offsetof(struct vfmig_device_config, max_data_xfer_bytes);
    config.known.max_data_xfer_bytes = UINT32_MAX;
    ops.known.size = offsetof(struct vfmig_device_ops, reset);
    assert_int_equal(vfmig_device_new(&config.known, &ops.known, NULL, &dev, NULL), 0);
    struct peer p = attach(dev);
    assert_int_equal(vfmig_device_start(dev, NULL), 0);
    assert_int_equal(peer_version(&p, NULL), 0);
    assert_int_equal(peer_read(&p, 0, 0, &value, 8), 0);
    assert_int_equal(value, 0x5a5a5a5a5a5a5a5a);
    vfmig_device_free(dev);
    assert_int_equal(freed, 3); /* it had no free yet */
    detach(&p);
    /* Too small to say what it is, and another version. */
    config.known.size = offsetof(struct vfmig_device_config, version);
    assert_int_equal(vfmig_device_new(&config.known, &ops.known, NULL, &dev, &err), -EINVAL);
    config.known.size = sizeof(config.known);
    config.known.max_data_xfer_bytes = 0;
    ops.known.size = 0;
    assert_int_equal(vfmig_device_new(&config.known, &ops.known, NULL, &dev, &err), -EINVAL);
    ops.known.size = sizeof(ops.known);
    ops.known.version = VFMIG_DEVICE_VERSION + 1;
    assert_int_equal(vfmig_device_new(&config.known, &ops.known, NULL, &dev, &err), -EINVAL);
    assert_int_equal(err.origin, VFMIG_ORIGIN_LOCAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_own_thread),
        cmocka_unit_test(signals_stay_with_the_program),
        cmocka_unit_test(many_devices_in_one_loop),
        cmocka_unit_test(structs_of_other_versions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
