/* SPDX-License-Identifier: BSD-3-Clause */
/* Sockets, the loop, replies. A command takes three system calls in the steady state: epoll_wait,
 * recvmsg, sendmsg. Waiting in recvmsg itself would save one, but a receive on a unix socket is
 * also woken when the client has read the last reply, and that costs more. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "device/internal.h"

enum source { SOURCE_LISTEN, SOURCE_CLIENT, SOURCE_TWIN, SOURCE_WAKE, SOURCE_TIMER, SOURCE_COUNT };

static int watch(struct vfmig_device *dev, int fd, enum source source)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u32 = source};
    return epoll_ctl(dev->epoll, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

int server_init(struct vfmig_device *dev, struct vfmig_error *reterr)
{
    dev->listen = -1;
    socket_init(&dev->client);
    socket_init(&dev->twin);
    dev->epoll = epoll_create1(EPOLL_CLOEXEC);
    dev->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    dev->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    dev->timer_armed = UINT64_MAX;
    for (unsigned i = 0; i < VFMIG_DEVICE_TIMERS; i++)
        dev->timers[i] = UINT64_MAX;
    if (dev->epoll < 0 || dev->wake < 0 || dev->timer_fd < 0 ||
        watch(dev, dev->wake, SOURCE_WAKE) < 0 || watch(dev, dev->timer_fd, SOURCE_TIMER) < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0,
                               "cannot set up the event loop: %s", strerror(errno));
    return 0;
}

void server_done(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < PENDING_MAX; i++)
        free(dev->pending[i].data);
    socket_close(&dev->client);
    socket_close(&dev->twin);
    int fds[] = {dev->listen, dev->epoll, dev->wake, dev->timer_fd};
    for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (dev->path)
        unlink(dev->path);
    free(dev->path);
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

/* ---- replies --------------------------------------------------------------------------------- */

static int send_client(struct vfmig_device *dev, const struct iovec *iov, unsigned count,
                       const int *fds, unsigned fd_count)
{
    int r = socket_send(&dev->client, iov, count, fds, fd_count, &dev->stopping);

    if (r < 0)
        dev->lost = true;
    return 0; /* the command itself is answered, as far as anybody listens */
}

int server_reply(struct vfmig_device *dev, const struct vfmig_user_header *request,
                 const void *fixed, uint32_t fixed_size, const void *data, uint32_t size,
                 const int *fds, unsigned fd_count)
{
    struct vfmig_user_header h = vfmig_user_make_reply(request, fixed_size + size);
    struct iovec iov[3] = {
        {&h, sizeof(h)}, {(void *)(uintptr_t)fixed, fixed_size}, {(void *)(uintptr_t)data, size}};

    if (request->flags & VFMIG_USER_NO_REPLY)
        return 0;
    return send_client(dev, iov, size ? 3 : fixed_size ? 2 : 1, fds, fd_count);
}

int server_error(struct vfmig_device *dev, const struct vfmig_user_header *request, int err)
{
    struct vfmig_user_header h = vfmig_user_make_error(request, err);
    struct iovec iov = {&h, sizeof(h)};

    if (request->flags & VFMIG_USER_NO_REPLY)
        return 0;
    return send_client(dev, &iov, 1, NULL, 0);
}

struct pending *server_defer(struct vfmig_device *dev, const struct vfmig_user_header *request,
                             const void *echo, uint32_t size, uint64_t *ret_id)
{
    for (unsigned i = 0; i < PENDING_MAX; i++) {
        struct pending *p = &dev->pending[i];
        if (p->used)
            continue;
        *p = (struct pending){.used = true, .header = *request, .echo_size = size};
        if (size)
            memcpy(p->echo, echo, size);
        *ret_id = i;
        return p;
    }
    return NULL;
}

void server_answer(struct vfmig_device *dev, uint64_t id, int err)
{
    if (id >= PENDING_MAX || !dev->pending[id].used)
        return;
    struct pending p = dev->pending[id];
    dev->pending[id].used = false;
    dev->pending[id].data = NULL;
    dev->pending_unmaps -= p.unmap;
    if (err < 0)
        server_error(dev, &p.header, err);
    else
        server_reply(dev, &p.header, p.echo, p.echo_size, p.data, p.data_size, NULL, 0);
    free(p.data);
}

/* ---- clients --------------------------------------------------------------------------------- */

static int adopt(struct vfmig_device *dev, int fd)
{
    uint32_t max_data = dev->config.max_data_xfer_bytes;
    int r = socket_open(&dev->client, fd, vfmig_user_message_max(max_data));

    if (r < 0) {
        close(fd);
        return r;
    }
    r = watch(dev, fd, SOURCE_CLIENT);
    if (r < 0) {
        socket_close(&dev->client);
        return r;
    }
    dev->negotiated = dev->lost = false;
    dev->max_data = VFMIG_USER_DATA_MIN;
    dev->client_max_data = VFMIG_MAX_DATA_XFER;
    dev->client_max_fds = 1;
    COUNT(dev, clients);
    return 0;
}

int vfmig_device_attach_fd(struct vfmig_device *dev, int fd, struct vfmig_error *reterr)
{
    int r = -EBUSY;

    if (dev->client.fd < 0)
        r = adopt(dev, fd);
    else
        close(fd);
    if (r < 0)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_LOCAL, 0, "%s: cannot serve this socket: %s",
                               dev->name, strerror(-r));
    return 0;
}

static void accept_client(struct vfmig_device *dev)
{
    int fd = accept4(dev->listen, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return;
    if (adopt(dev, fd) == 0) /* the next one waits in the backlog */
        epoll_ctl(dev->epoll, EPOLL_CTL_DEL, dev->listen, NULL);
}

/* C45: the next client finds a fresh device. The machine resets the device; the rest was the
 * client's and goes with it. */
static void drop_client(struct vfmig_device *dev)
{
    socket_close(&dev->client);
    socket_close(&dev->twin);
    message_abort(dev, -ECANCELED);
    if (!vfmig_sabotage("next-client-finds-old-state"))
        migrate_event(dev, VFMIG_DEV_EVENT_OWNER_GONE, 0, 0);
    for (unsigned i = 0; i < PENDING_MAX; i++) {
        free(dev->pending[i].data);
        dev->pending[i] = (struct pending){0};
    }
    dev->pending_unmaps = 0;
    dma_map_clear(dev);
    log_done(&dev->log);
    log_init(&dev->log);
    irq_detach_all(dev);
    dev->negotiated = dev->lost = false;
    free(dev->reply);
    dev->reply = NULL;
    dev->reply_room = 0;
    if (dev->listen >= 0)
        watch(dev, dev->listen, SOURCE_LISTEN);
}

static int handle(struct vfmig_device *dev, struct vfmig_user_msg *msg)
{
    if ((msg->header.flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_REPLY) {
        message_reply(dev, msg);
        return 0;
    }
    int r = dev->negotiated ? command_handle(dev, msg) : version_handle(dev, msg);
    if (r < 0)
        server_error(dev, &msg->header, r);
    return dev->negotiated ? 0 : -EPROTO; /* a client that cannot agree is let go */
}

/* Reads once and handles all that is whole. */
static void client_readable(struct vfmig_device *dev)
{
    struct vfmig_user_msg msg;
    ssize_t n = socket_receive(&dev->client);

    if (n == -EAGAIN)
        return;
    int r = n > 0 ? 0 : -EPROTO;
    while (r == 0 && !dev->lost && (r = vfmig_framer_next(&dev->client.framer, &msg)) == 1) {
        r = handle(dev, &msg);
        vfmig_fds_close(&msg.fds);
    }
    if (r < 0 || dev->lost)
        drop_client(dev);
}

static void twin_readable(struct vfmig_device *dev)
{
    struct vfmig_user_msg msg;
    ssize_t n = socket_receive(&dev->twin);

    if (n == -EAGAIN)
        return;
    int r = n > 0 ? 0 : -EPROTO;
    while (r == 0 && (r = vfmig_framer_next(&dev->twin.framer, &msg)) == 1) {
        if ((msg.header.flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_REPLY)
            message_reply(dev, &msg);
        vfmig_fds_close(&msg.fds);
        r = 0;
    }
    if (r < 0)
        dev->lost = true;
}

int server_add_twin(struct vfmig_device *dev, int *ret_client_end)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    int r = socket_open(&dev->twin, pair[0], vfmig_user_message_max(dev->config.max_data_xfer_bytes));
    if (r < 0) {
        close(pair[0]);
    } else if ((r = watch(dev, pair[0], SOURCE_TWIN)) < 0) {
        socket_close(&dev->twin);
    }
    if (r < 0) {
        close(pair[1]);
        return r;
    }
    *ret_client_end = pair[1];
    return 0;
}

/* ---- listening and the loop ------------------------------------------------------------------ */

/* A socket file that nobody listens on is left from a server that died. */
static bool is_stale(const struct sockaddr_un *addr)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool stale = fd >= 0 && connect(fd, (const void *)addr, sizeof(*addr)) < 0 &&
                 errno == ECONNREFUSED;

    if (fd >= 0)
        close(fd);
    return stale;
}

int vfmig_device_listen(struct vfmig_device *dev, const char *path, struct vfmig_error *reterr)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int r = 0;

    if (dev->listen >= 0 || strlen(path) >= sizeof(addr.sun_path))
        return vfmig_error_set(reterr, dev->listen >= 0 ? -EBUSY : -ENAMETOOLONG,
                               VFMIG_ORIGIN_LOCAL, 0, "cannot listen on %s: %s", path,
                               dev->listen >= 0 ? "listening already" : "the path is too long");
    strcpy(addr.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        r = -errno;
    else if (bind(fd, (void *)&addr, sizeof(addr)) < 0) {
        r = -errno;
        if (r == -EADDRINUSE && is_stale(&addr) && unlink(path) == 0)
            r = bind(fd, (void *)&addr, sizeof(addr)) < 0 ? -errno : 0;
    }
    if (r == 0 && (!(dev->path = strdup(path)) || listen(fd, 8) < 0))
        r = dev->path ? -errno : -ENOMEM;
    if (r == 0 && dev->client.fd < 0)
        r = watch(dev, fd, SOURCE_LISTEN);
    if (r < 0) {
        if (fd >= 0)
            close(fd);
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_KERNEL, 0, "cannot listen on %s: %s", path,
                               strerror(-r));
    }
    dev->listen = fd;
    return 0;
}

static void handle_source(struct vfmig_device *dev, enum source source)
{
    uint64_t count;

    switch (source) {
    case SOURCE_LISTEN:
        accept_client(dev);
        break;
    case SOURCE_CLIENT:
        client_readable(dev);
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
    case SOURCE_COUNT:
        break;
    }
}

static bool is_over(const struct vfmig_device *dev)
{
    return atomic_load(&dev->stopping) || (dev->listen < 0 && dev->client.fd < 0);
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
        enum source source = events[i].data.u32;
        if ((source == SOURCE_CLIENT && dev->client.fd < 0) ||
            (source == SOURCE_TWIN && dev->twin.fd < 0))
            continue;
        handle_source(dev, source);
    }
    migrate_poll(dev);
    if (dev->lost)
        drop_client(dev);
    return is_over(dev);
}

int vfmig_device_run(struct vfmig_device *dev, struct vfmig_error *reterr)
{
    int r = 0;

    while (!is_over(dev) && r == 0)
        r = serve(dev, -1, reterr);
    dev->is_serving = false;
    atomic_store(&dev->stopping, false);
    return r < 0 ? r : 0;
}

void vfmig_device_stop(struct vfmig_device *dev)
{
    atomic_store(&dev->stopping, true);
    server_wake(dev);
}

int vfmig_device_poll_fd(struct vfmig_device *dev)
{
    return dev->epoll;
}

int vfmig_device_dispatch(struct vfmig_device *dev, struct vfmig_error *reterr)
{
    return serve(dev, 0, reterr);
}
