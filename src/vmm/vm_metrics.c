/* SPDX-License-Identifier: BSD-3-Clause */
#include "vmm/vm_metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bounds.h"
#include "base/buffer.h"
#include "io/sock.h"

/* --- the file: as node_exporter's textfile collector wants it, never half --- */

static void write_file(struct vmm_publisher *publisher, const struct vfmig_buffer *text)
{
    unlink(publisher->fresh); /* whatever it leads to is not ours to write */
    int fd = open(publisher->fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    ssize_t done = fd < 0 ? -1 : write(fd, text->data, text->size);
    int why = done < 0 ? errno : done != (ssize_t)text->size ? ENOSPC : 0;

    if (fd >= 0 && close(fd) && !why)
        why = errno;
    if (!why && rename(publisher->fresh, publisher->path))
        why = errno;
    if (why) {
        fprintf(stderr, "vfmig vm: metrics cannot be written to %s: %s\n", publisher->path, strerror(why));
        unlink(publisher->fresh);
    }
}

/* --- the socket: one request, one answer, one client at a time, each with a deadline --- */

#define ANSWER_NS UINT64_C(2000000000)

/* The request's head up to its empty line, or as much as fits. */
static size_t read_request(int fd, char *request, size_t size, uint64_t deadline_ns)
{
    size_t got = 0;

    request[0] = 0;
    while (got < size - 1 && !strstr(request, "\r\n\r\n") && !strstr(request, "\n\n")) {
        ssize_t more = vfmig_sock_recv(fd, request + got, size - 1 - got, NULL, NULL, deadline_ns, NULL);
        if (more <= 0)
            return 0;
        got += (size_t)more;
        request[got] = 0;
    }
    return got;
}

static void answer(struct vmm_publisher *publisher, int fd)
{
    char request[VFMIG_MAX_HTTP_REQUEST], head[160];
    uint64_t deadline_ns = vfmig_deadline_ns(ANSWER_NS);
    struct vfmig_buffer text = {0};

    if (!read_request(fd, request, sizeof(request), deadline_ns))
        return;
    bool get = !strncmp(request, "GET ", 4);
    bool here = get && (!strncmp(request + 4, "/metrics ", 9) || !strncmp(request + 4, "/metrics?", 9));
    const char *status = here ? "200 OK" : get ? "404 Not Found" : "405 Method Not Allowed";
    if (here && publisher->print(publisher->opaque, &text))
        status = "500 Internal Server Error";
    int size = snprintf(head, sizeof(head),
                        "HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                        "Content-Length: %zu\r\nConnection: close\r\n\r\n",
                        status, text.size);
    struct iovec parts[2] = {{.iov_base = head, .iov_len = (size_t)size},
                             {.iov_base = text.data, .iov_len = text.size}};
    (void)vfmig_sock_send(fd, parts, text.size ? 2 : 1, NULL, deadline_ns, NULL, NULL);
    vfmig_buffer_free(&text);
}

/* --- the thread --- */

static void *run(void *arg)
{
    struct vmm_publisher *publisher = arg;
    bool ending = false;

    while (!ending) {
        struct pollfd fds[2] = {{.fd = publisher->wake, .events = POLLIN},
                                {.fd = publisher->listener, .events = POLLIN}};
        struct vfmig_buffer text = {0};
        uint64_t count;
        int fd;

        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[0].revents && read(publisher->wake, &count, sizeof(count)) > 0) {
            ending = publisher->ending; /* before the last time that it is written */
            if (publisher->path[0] && !publisher->print(publisher->opaque, &text))
                write_file(publisher, &text);
            vfmig_buffer_free(&text);
        }
        if (ending || !fds[1].revents)
            continue;
        if (vfmig_sock_accept(publisher->listener, vfmig_deadline_ns(ANSWER_NS), &fd, NULL)) {
            poll(fds, 1, 100); /* no descriptors left, perhaps: not again at once */
            continue;
        }
        answer(publisher, fd);
        close(fd);
    }
    return NULL;
}

/* There is no password: who may ask is who may open the path, or who is on this host. */
static int listen_here(struct vmm_publisher *publisher, const char *where, struct vfmig_error *reterr)
{
    int ret = vfmig_sock_listen_near(where, &publisher->listener, reterr);

    return ret != -EREMOTE ? ret
                           : vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                                             "metrics are for this host only: %.80s is not a loopback address",
                                             where);
}

int vmm_publisher_start(struct vmm_publisher *publisher, const char *where,
                        int (*print)(void *opaque, struct vfmig_buffer *out), void *opaque,
                        struct vfmig_error *reterr)
{
    int ret = 0;

    *publisher = (struct vmm_publisher){.listener = -1, .print = print, .opaque = opaque};
    publisher->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (publisher->wake < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "cannot create an eventfd: %s",
                               strerror(errno));
    if (!where)
        return 0;
    if (!strncmp(where, "file:", 5)) {
        if (snprintf(publisher->path, sizeof(publisher->path), "%s", where + 5) >= (int)sizeof(publisher->path))
            return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                                   "the path of the metrics is too long");
        snprintf(publisher->fresh, sizeof(publisher->fresh), "%s.tmp", publisher->path);
    } else if (!strncmp(where, "unix:", 5) || !strncmp(where, "tcp:", 4)) {
        ret = listen_here(publisher, where, reterr);
    } else {
        ret = vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                              "--metrics: '%.80s' is neither file:PATH, unix:PATH nor tcp:HOST:PORT", where);
    }
    if (!ret && pthread_create(&publisher->thread, NULL, run, publisher))
        ret = vfmig_error_set(reterr, -EAGAIN, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
    publisher->running = !ret;
    if (!ret)
        vmm_publisher_wake(publisher); /* a file is there from the start */
    return ret;
}

void vmm_publisher_wake(struct vmm_publisher *publisher)
{
    uint64_t one = 1;

    if (publisher->running && write(publisher->wake, &one, sizeof(one)) < 0)
        return; /* it is full, so it is readable: that is all we want */
}

void vmm_publisher_stop(struct vmm_publisher *publisher)
{
    if (!publisher->print)
        return;
    publisher->ending = true;
    vmm_publisher_wake(publisher);
    if (publisher->running)
        pthread_join(publisher->thread, NULL);
    publisher->running = false;
    if (publisher->listener >= 0)
        close(publisher->listener);
    if (publisher->wake >= 0)
        close(publisher->wake);
    publisher->print = NULL;
}
