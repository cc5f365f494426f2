/* SPDX-License-Identifier: BSD-3-Clause */
/* Two devices in one event loop of the program's own, which answer later.
 *
 *     two_devices SOCKET SOCKET
 *
 * Each has one register of 8 bytes. A write of it takes a while, and everything else is served
 * meanwhile; a device that is told to stop finishes it first. Ends on SIGTERM. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <vfmig/device.h>

static const struct itimerspec write_time = {.it_value = {.tv_nsec = 1000000}};
struct slow_device {
    struct vfmig_device *dev;
    int timer; /* of the write under way */
    uint64_t value, next;
    bool writing, saved;
    struct vfmig_later write, stop;
};

static int region_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    const struct slow_device *slow = user;

    memcpy(data, &slow->value, size == sizeof(slow->value) ? size : 0);
    return offset == 0 && size == sizeof(slow->value) ? 0 : -EINVAL;
}

static int region_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    struct slow_device *slow = user;

    if (offset != 0 || size != sizeof(slow->value) || slow->writing)
        return slow->writing ? -EBUSY : -EINVAL;
    memcpy(&slow->next, data, size);
    slow->writing = true;
    slow->write = vfmig_device_later(slow->dev);
    timerfd_settime(slow->timer, 0, &write_time, NULL);
    return -EINPROGRESS;
}

/* The loop: the write is done. */
static void write_done(struct slow_device *slow)
{
    uint64_t ticks;

    if (read(slow->timer, &ticks, sizeof(ticks)) != sizeof(ticks) || !slow->writing)
        return;
    slow->value = slow->next;
    slow->writing = false;
    vfmig_later_done(slow->write, 0);
    vfmig_later_done(slow->stop, 0); /* ends nothing when no stop waits */
}

static int stop(void *user)
{
    struct slow_device *slow = user;

    slow->stop = vfmig_device_later(slow->dev);
    return slow->writing ? -EINPROGRESS : 0;
}

/* What is open is over: the library ignores how it ends, but the write's place wants its end. */
static void reset(void *user)
{
    struct slow_device *slow = user;

    vfmig_later_done(slow->write, -ECANCELED);
    slow->value = 0;
    slow->writing = false;
}

static int save_begin(void *user, bool running)
{
    ((struct slow_device *)user)->saved = false;
    return 0;
}

static ssize_t save(void *user, void *buf, size_t size)
{
    struct slow_device *slow = user;
    size_t left = slow->saved ? 0 : sizeof(slow->value);

    memcpy(buf, &slow->value, left);
    slow->saved = true;
    return (ssize_t)left;
}

static int load(void *user, const void *data, size_t size)
{
    struct slow_device *slow = user;

    memcpy(&slow->value, data, size <= sizeof(slow->value) ? size : 0);
    return size == sizeof(slow->value) ? 0 : -EINVAL;
}

static const struct vfmig_device_config config = {
    .size = sizeof(config), .version = VFMIG_DEVICE_VERSION, .bars[0].size = 4096};
static const struct vfmig_device_ops ops = {
    .size = sizeof(ops), .version = VFMIG_DEVICE_VERSION, .region_read = region_read,
    .region_write = region_write, .reset = reset, .stop = stop, .save_begin = save_begin,
    .save = save, .load = load};

static int make_device(struct slow_device *slow, const char *path, int epoll, uint32_t number)
{
    struct epoll_event device = {.events = EPOLLIN, .data.u32 = number};
    struct epoll_event timer = {.events = EPOLLIN, .data.u32 = number + 2};
    struct vfmig_error err;

    slow->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (vfmig_device_new(&config, &ops, slow, &slow->dev, &err) < 0 ||
        vfmig_device_listen(slow->dev, path, &err) < 0)
        return fprintf(stderr, "%s\n", err.text), -1;
    epoll_ctl(epoll, EPOLL_CTL_ADD, slow->timer, &timer);
    return epoll_ctl(epoll, EPOLL_CTL_ADD, vfmig_device_poll_fd(slow->dev), &device);
}

static void on_signal(int number)
{
}

int main(int argc, char **argv)
{
    struct slow_device slow[2] = {{0}};
    int epoll = epoll_create1(EPOLL_CLOEXEC), r = argc == 3 ? 0 : -1;
    struct epoll_event ev;
    sigset_t all, none;

    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &none); /* SIGTERM only arrives in epoll_pwait, and ends it */
    signal(SIGTERM, on_signal);
    for (uint32_t i = 0; i < 2 && r == 0; i++)
        r = make_device(&slow[i], argv[i + 1], epoll, i);
    while (r >= 0 && epoll_pwait(epoll, &ev, 1, -1, &none) == 1) {
        if (ev.data.u32 < 2)
            r = vfmig_device_dispatch(slow[ev.data.u32].dev, NULL);
        else
            write_done(&slow[ev.data.u32 - 2]);
    }
    vfmig_device_free(slow[0].dev);
    vfmig_device_free(slow[1].dev);
    return r < 0;
}
