/* SPDX-License-Identifier: BSD-3-Clause */
#include "vmm/qmp.h"

#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/bounds.h"
#include "vmm/qmp_session.h"

struct client {
    int fd; /* -1: free slot */
    struct qmp_session session;
};

struct vfmig_qmp {
    const struct vfmig_qmp_command *commands;
    void *opaque;
    int listen_fd;
    int wake_fd;
    bool stopping;         /* under lock */
    pthread_t thread;
    pthread_mutex_t lock;  /* clients' output and negotiated, stopping */
    struct client clients[VFMIG_MAX_QMP_CLIENTS];
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

static void client_close(struct client *client)
{
    if (client->fd >= 0)
        close(client->fd);
    qmp_session_end(&client->session);
    client->fd = -1;
}

static void client_read(struct vfmig_qmp *qmp, struct client *client)
{
    char data[4096];
    ssize_t size = recv(client->fd, data, sizeof(data), MSG_DONTWAIT);

    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (size <= 0) {
        pthread_mutex_lock(&qmp->lock);
        client->session.closing = true;
        if (size < 0)
            client->session.out_size = 0;
        pthread_mutex_unlock(&qmp->lock);
        return;
    }
    qmp_session_feed(&client->session, data, (size_t)size);
}

/* Sends what the socket takes; called with the lock held. */
static void client_write(struct client *client)
{
    size_t sent = 0;

    while (sent < client->session.out_size) {
        ssize_t ret = send(client->fd, client->session.out + sent, client->session.out_size - sent,
                           MSG_DONTWAIT | MSG_NOSIGNAL);
        if (ret < 0 && errno == EINTR)
            continue;
        if (ret < 0 && errno != EAGAIN) {
            client->session.closing = true;
            sent = client->session.out_size;
        }
        if (ret <= 0)
            break;
        sent += (size_t)ret;
    }
    memmove(client->session.out, client->session.out + sent, client->session.out_size - sent);
    client->session.out_size -= sent;
}

static void accept_client(struct vfmig_qmp *qmp)
{
    int fd = accept4(qmp->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        return;
    for (unsigned i = 0; i < VFMIG_MAX_QMP_CLIENTS; i++) {
        struct client *client = &qmp->clients[i];
        if (client->fd >= 0)
            continue;
        if (qmp_session_begin(&client->session, qmp->commands, qmp->opaque, &qmp->lock))
            break;
        pthread_mutex_lock(&qmp->lock);
        client->fd = fd;
        pthread_mutex_unlock(&qmp->lock);
        return;
    }
    close(fd); /* no memory for it */
}

/* Writes, closes what is finished, and fills the poll list. Returns false when it is time to go. */
static bool prepare(struct vfmig_qmp *qmp, struct pollfd *polls)
{
    bool go_on, room = false;

    pthread_mutex_lock(&qmp->lock);
    go_on = !qmp->stopping;
    for (unsigned i = 0; i < VFMIG_MAX_QMP_CLIENTS; i++) {
        struct client *client = &qmp->clients[i];
        if (client->fd >= 0 && client->session.out_size)
            client_write(client);
        if (client->fd >= 0 && client->session.closing && !client->session.out_size)
            client_close(client);
        room |= client->fd < 0;
        polls[i].fd = client->fd;
        polls[i].events = (short)((client->session.closing ? 0 : POLLIN) | (client->session.out_size ? POLLOUT : 0));
    }
    pthread_mutex_unlock(&qmp->lock);
    polls[VFMIG_MAX_QMP_CLIENTS] = (struct pollfd){.fd = qmp->wake_fd, .events = POLLIN};
    polls[VFMIG_MAX_QMP_CLIENTS + 1] = (struct pollfd){.fd = room ? qmp->listen_fd : -1, .events = POLLIN};
    return go_on;
}

static void *serve(void *arg)
{
    struct vfmig_qmp *qmp = arg;
    struct pollfd polls[VFMIG_MAX_QMP_CLIENTS + 2];

    while (prepare(qmp, polls)) {
        if (poll(polls, VFMIG_MAX_QMP_CLIENTS + 2, -1) < 0)
            continue; /* EINTR */
        uint64_t count;
        if (polls[VFMIG_MAX_QMP_CLIENTS].revents && read(qmp->wake_fd, &count, sizeof(count)) < 0)
            continue;
        for (unsigned i = 0; i < VFMIG_MAX_QMP_CLIENTS; i++) {
            struct client *client = &qmp->clients[i];
            if (!polls[i].revents)
                continue;
            if (!client->session.closing && polls[i].revents & (POLLIN | POLLHUP | POLLERR)) {
                client_read(qmp, client);
            } else if (polls[i].revents & (POLLHUP | POLLERR)) {
                pthread_mutex_lock(&qmp->lock);
                client->session.out_size = 0;
                pthread_mutex_unlock(&qmp->lock);
            }
        }
        if (polls[VFMIG_MAX_QMP_CLIENTS + 1].revents)
            accept_client(qmp);
    }
    return NULL;
}

static int listen_at(const char *path, struct vfmig_error *reterr)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "cannot create a socket: %s",
                               strerror(errno));
    memcpy(address.sun_path, path, strlen(path));
    fchmod(fd, 0600); /* the file inherits it: whoever controls the guest is its owner */
    int ret = bind(fd, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
    if (ret == -EADDRINUSE) {
        /* Replace what nobody listens on; connecting is the only way to know. */
        int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (probe >= 0 && connect(probe, (struct sockaddr *)&address, sizeof(address)) &&
            errno == ECONNREFUSED && unlink(path) == 0)
            ret = bind(fd, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
        if (probe >= 0)
            close(probe);
    }
    if (!ret && listen(fd, 8))
        ret = -errno;
    if (!ret)
        return fd;
    close(fd);
    return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot listen on %s: %s", path,
                           strerror(-ret));
}

int vfmig_qmp_start(const char *path, const struct vfmig_qmp_command *commands, void *opaque,
                    struct vfmig_qmp **ret_qmp, struct vfmig_error *reterr)
{
    struct vfmig_qmp *qmp = calloc(1, sizeof(*qmp));

    if (!qmp)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for the QMP server");
    if (strlen(path) >= sizeof(qmp->path)) {
        free(qmp);
        return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                               "the socket path is longer than %zu bytes: %s",
                               sizeof(qmp->path) - 1, path);
    }
    snprintf(qmp->path, sizeof(qmp->path), "%s", path);
    qmp->commands = commands;
    qmp->opaque = opaque;
    pthread_mutex_init(&qmp->lock, NULL);
    for (unsigned i = 0; i < VFMIG_MAX_QMP_CLIENTS; i++)
        qmp->clients[i].fd = -1;
    int ret = qmp->listen_fd = listen_at(path, reterr);
    if (ret < 0)
        goto out_free;
    qmp->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (qmp->wake_fd < 0) {
        ret = vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "cannot create an eventfd: %s",
                              strerror(errno));
        goto out_listen;
    }
    ret = -pthread_create(&qmp->thread, NULL, serve, qmp);
    if (ret) {
        vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread: %s", strerror(-ret));
        goto out_wake;
    }
    *ret_qmp = qmp;
    return 0;

out_wake:
    close(qmp->wake_fd);
out_listen:
    close(qmp->listen_fd);
    unlink(path);
out_free:
    pthread_mutex_destroy(&qmp->lock);
    free(qmp);
    return ret;
}

static void wake(struct vfmig_qmp *qmp)
{
    uint64_t one = 1;

    /* It fails only when the counter is full, and then the thread wakes anyway. */
    if (write(qmp->wake_fd, &one, sizeof(one)) < 0)
        return;
}

void vfmig_qmp_event(struct vfmig_qmp *qmp, const char *name, struct json_object *data)
{
    struct timespec now;
    struct json_object *event = json_object_new_object();
    struct json_object *timestamp = json_object_new_object();

    clock_gettime(CLOCK_REALTIME, &now);
    json_object_object_add(timestamp, "seconds", json_object_new_int64(now.tv_sec));
    json_object_object_add(timestamp, "microseconds", json_object_new_int64(now.tv_nsec / 1000));
    json_object_object_add(event, "timestamp", timestamp);
    json_object_object_add(event, "event", json_object_new_string(name));
    if (data)
        json_object_object_add(event, "data", data);
    pthread_mutex_lock(&qmp->lock);
    for (unsigned i = 0; i < VFMIG_MAX_QMP_CLIENTS; i++)
        if (qmp->clients[i].fd >= 0 && qmp->clients[i].session.negotiated)
            qmp_session_queue(&qmp->clients[i].session, event);
    pthread_mutex_unlock(&qmp->lock);
    json_object_put(event);
    wake(qmp);
}

void vfmig_qmp_stop(struct vfmig_qmp *qmp)
{
    if (!qmp)
        return;
    pthread_mutex_lock(&qmp->lock);
    qmp->stopping = true;
    pthread_mutex_unlock(&qmp->lock);
    wake(qmp);
    pthread_join(qmp->thread, NULL);
    for (unsigned i = 0; i < VFMIG_MAX_QMP_CLIENTS; i++)
        client_close(&qmp->clients[i]);
    close(qmp->wake_fd);
    close(qmp->listen_fd);
    unlink(qmp->path);
    pthread_mutex_destroy(&qmp->lock);
    free(qmp);
}
