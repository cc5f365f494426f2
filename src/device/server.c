/* SPDX-License-Identifier: BSD-3-Clause */
/* The loop, its timers, listening. A command takes three system calls in the steady state: epoll_wait,
 * recvmsg, sendmsg. Waiting in recvmsg itself would save one, but a receive on a unix socket is
 * also woken when the client has read the last reply, and that costs more. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "device/internal.h"
#include "io/sock.h"

int server_watch(struct vfmig_device *dev, int fd, unsigned source)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u32 = source};
    return epoll_ctl(dev->epoll, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

int server_init(struct vfmig_device *dev, struct vfmig_error *reterr)
{
    dev->listen_owner.fd = dev->listen_control.fd = -1;
    client_init(&dev->owner, dev);
    client_init(&dev->control, dev);
    socket_init(&dev->twin);
    dev->epoll = epoll_create1(EPOLL_CLOEXEC);
    dev->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    dev->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    dev->timer_armed = UINT64_MAX;
    for (unsigned i = 0; i < VFMIG_DEVICE_TIMERS; i++)
        dev->timers[i] = UINT64_MAX;
    if (dev->epoll < 0 || dev->wake < 0 || dev->timer_fd < 0 ||
        server_watch(dev, dev->wake, SOURCE_WAKE) < 0 ||
        server_watch(dev, dev->timer_fd, SOURCE_TIMER) < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0,
                               "cannot set up the event loop: %s", strerror(errno));
    return 0;
}

static void stop_listening(struct listener *l)
{
    if (l->fd >= 0)
        close(l->fd);
    if (l->path)
        unlink(l->path);
    free(l->path);
}

void server_done(struct vfmig_device *dev)
{
    doorbell_close(dev);
    client_close(&dev->owner);
    client_close(&dev->control);
    socket_close(&dev->twin);
    stop_listening(&dev->listen_owner);
    stop_listening(&dev->listen_control);
    int fds[] = {dev->epoll, dev->wake, dev->timer_fd};
    for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* ---- time ------------------------------------------------------------------------------------ */

uint64_t vfmig_device_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Timers are the device's own, so they wait while it is stopped; deadlines are ours. */
static uint64_t next_due(const struct vfmig_device *dev)
{
    uint64_t due = vfmig_dev_deadline(&dev->mig);

    for (unsigned i = 0; vfmig_dev_mmio_allowed(&dev->mig) && i < VFMIG_DEVICE_TIMERS; i++)
        due = dev->timers[i] < due ? dev->timers[i] : due;
    return due;
}

/* The timer is only moved to be earlier; one that fires too early costs less than setting it. */
void server_rearm(struct vfmig_device *dev)
{
    uint64_t due = next_due(dev);

    if (due >= dev->timer_armed)
        return;
    struct itimerspec spec = {.it_value = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)}};
    if (due == 0)
        spec.it_value.tv_nsec = 1;
    timerfd_settime(dev->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
    dev->timer_armed = due;
}

int vfmig_device_timer(struct vfmig_device *dev, uint32_t timer, uint64_t when_ns)
{
    if (timer >= VFMIG_DEVICE_TIMERS)
        return -EINVAL;
    dev->timers[timer] = when_ns;
    server_rearm(dev);
    return 0;
}

static void run_timers(struct vfmig_device *dev)
{
    uint64_t ticks, now = vfmig_device_now_ns();
    ssize_t n = read(dev->timer_fd, &ticks, sizeof(ticks));

    (void)n;
    dev->timer_armed = UINT64_MAX;
    if (vfmig_dev_deadline(&dev->mig) <= now)
        migrate_event(dev, VFMIG_DEV_EVENT_TICK, 0, 0);
    for (unsigned i = 0; i < VFMIG_DEVICE_TIMERS; i++) {
        if (dev->timers[i] > now || !vfmig_dev_mmio_allowed(&dev->mig))
            continue;
        dev->timers[i] = UINT64_MAX;
        if (dev->ops.timer)
            dev->ops.timer(dev->user, i);
    }
    server_rearm(dev);
}

void server_wake(struct vfmig_device *dev)
{
    uint64_t one = 1;
    ssize_t n = write(dev->wake, &one, sizeof(one));
    (void)n;
}

bool server_on_thread(const struct vfmig_device *dev)
{
    return dev->is_serving && pthread_equal(dev->serving, pthread_self());
}

/* ---- listening and the loop ------------------------------------------------------------------ */

static struct client *client_of(struct vfmig_device *dev, const struct listener *l)
{
    return l == &dev->listen_owner ? &dev->owner : &dev->control;
}

static enum source source_of(const struct vfmig_device *dev, const struct listener *l)
{
    return l == &dev->listen_owner ? SOURCE_LISTEN_OWNER : SOURCE_LISTEN_CONTROL;
}

static int start_listening(struct vfmig_device *dev, struct listener *l, const char *path,
                           struct vfmig_error *reterr)
{
    char address[sizeof("unix:") + sizeof(((struct sockaddr_un *)NULL)->sun_path)];
    int fd, r;

    if (l->fd >= 0)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0,
                               "cannot listen on %s: listening already", path);
    if ((size_t)snprintf(address, sizeof(address), "unix:%s", path) >= sizeof(address) - 1)
        return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                               "cannot listen on %s: the path is too long", path);
    r = vfmig_sock_listen(address, &fd, reterr);
    if (r < 0)
        return r;
    l->path = strdup(path);
    r = l->path ? 0 : -ENOMEM;
    if (r == 0 && fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        r = -errno;
    if (r == 0 && client_of(dev, l)->socket.fd < 0)
        r = server_watch(dev, fd, source_of(dev, l));
    if (r < 0) {
        free(l->path);
        l->path = NULL;
        close(fd);
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_KERNEL, 0, "cannot listen on %s: %s", path,
                               strerror(-r));
    }
    l->fd = fd;
    return 0;
}

int vfmig_device_listen(struct vfmig_device *dev, const char *path, struct vfmig_error *reterr)
{
    return start_listening(dev, &dev->listen_owner, path, reterr);
}

int vfmig_device_listen_control(struct vfmig_device *dev, const char *path,
                                struct vfmig_error *reterr)
{
    return start_listening(dev, &dev->listen_control, path, reterr);
}

void server_listen_again(struct vfmig_device *dev, const struct client *c)
{
    const struct listener *l = c == &dev->owner ? &dev->listen_owner : &dev->listen_control;

    if (l->fd >= 0)
        server_watch(dev, l->fd, source_of(dev, l));
}

static void accept_client(struct vfmig_device *dev, const struct listener *l)
{
    struct client *c = client_of(dev, l);
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return;
    if (client_open(c, fd, c == &dev->owner ? SOURCE_OWNER : SOURCE_CONTROL) == 0)
        epoll_ctl(dev->epoll, EPOLL_CTL_DEL, l->fd, NULL); /* the next one waits in the backlog */
}

static void handle_source(struct vfmig_device *dev, enum source source)
{
    uint64_t count;

    switch (source) {
    case SOURCE_LISTEN_OWNER:
        accept_client(dev, &dev->listen_owner);
        break;
    case SOURCE_LISTEN_CONTROL:
        accept_client(dev, &dev->listen_control);
        break;
    case SOURCE_OWNER:
        client_readable(&dev->owner);
        break;
    case SOURCE_CONTROL:
        client_readable(&dev->control);
        break;
    case SOURCE_TWIN:
        twin_readable(dev);
        break;
    case SOURCE_WAKE:
        if (read(dev->wake, &count, sizeof(count)) < 0)
            break;
        break;
    case SOURCE_TIMER:
        run_timers(dev);
        break;
    case SOURCE_DOORBELL:
    case SOURCE_COUNT:
        break;
    }
}

static bool is_over(const struct vfmig_device *dev)
{
    return atomic_load(&dev->stopping) ||
           (dev->listen_owner.fd < 0 && dev->owner.socket.fd < 0 && !dev->releasing);
}

/* One round; timeout_ms as in epoll_wait. True when run is over. */
static int serve(struct vfmig_device *dev, int timeout_ms, struct vfmig_error *reterr)
{
    struct epoll_event events[SOURCE_COUNT];

    dev->serving = pthread_self();
    dev->is_serving = true;
    int n = epoll_wait(dev->epoll, events, SOURCE_COUNT, timeout_ms);
    if (n < 0 && errno != EINTR)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "%s: epoll_wait: %s",
                               dev->name, strerror(errno));
    for (int i = 0; i < n; i++) {
        /* An earlier event of this round may have dropped the client. */
        unsigned source = events[i].data.u32;
        if (source >= SOURCE_DOORBELL) {
            doorbell_rung(dev, source - SOURCE_DOORBELL);
            continue;
        }
        if ((source == SOURCE_OWNER && dev->owner.socket.fd < 0) ||
            (source == SOURCE_CONTROL && dev->control.socket.fd < 0) ||
            (source == SOURCE_TWIN && dev->twin.fd < 0))
            continue;
        handle_source(dev, (enum source)source);
    }
    migrate_poll(dev);
    if (dev->owner.lost)
        client_drop(&dev->owner);
    if (dev->control.lost)
        client_drop(&dev->control);
    return is_over(dev);
}

int vfmig_device_run(struct vfmig_device *dev, struct vfmig_error *reterr)
{
    int r = 0;

    while (!is_over(dev) && r == 0)
        r = serve(dev, irq_storm(dev) ? 0 : -1, reterr);
    dev->is_serving = false;
    atomic_store(&dev->stopping, false);
    return r < 0 ? r : 0;
}

void vfmig_device_stop(struct vfmig_device *dev)
{
    atomic_store(&dev->stopping, true);
    server_wake(dev);
}

static void *run_own(void *arg)
{
    struct vfmig_device *dev = arg;

    dev->own_result = vfmig_device_run(dev, &dev->own_error);
    return NULL;
}

int vfmig_device_start(struct vfmig_device *dev, struct vfmig_error *reterr)
{
    static const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP};
    sigset_t none, before;
    int r = EBUSY;

    if (!dev->started) {
        sigfillset(&none);
        for (unsigned i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
            sigdelset(&none, faults[i]);
        pthread_sigmask(SIG_SETMASK, &none, &before);
        r = pthread_create(&dev->own, NULL, run_own, dev);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (r)
        return vfmig_error_set(reterr, -r, VFMIG_ORIGIN_LOCAL, 0, "%s: cannot start: %s", dev->name,
                               strerror(r));
    dev->started = true;
    return 0;
}

int vfmig_device_join(struct vfmig_device *dev, struct vfmig_error *reterr)
{
    if (!dev->started)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%s: not started",
                               dev->name);
    pthread_join(dev->own, NULL);
    dev->started = false;
    if (dev->own_result < 0 && reterr)
        *reterr = dev->own_error;
    return dev->own_result;
}

int vfmig_device_poll_fd(struct vfmig_device *dev)
{
    return dev->epoll;
}

int vfmig_device_dispatch(struct vfmig_device *dev, struct vfmig_error *reterr)
{
    return serve(dev, 0, reterr);
}
