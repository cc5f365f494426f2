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

struct client {
    int fd; /* -1: free slot */
    bool negotiated;
    bool skipping;  /* after bad input: everything up to the next newline is dropped */
    bool closing;   /* nothing more is read; closed once out is empty */
    json_tokener *tokener;
    size_t pending; /* bytes of the object that is being parsed */
    char *out;      /* queued output */
    size_t out_size, out_room;
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
    if (client->tokener)
        json_tokener_free(client->tokener);
    free(client->out);
    *client = (struct client){.fd = -1};
}

/* Appends one line. A client that does not read what it asked for is cut off, not remembered. */
static void client_queue(struct client *client, struct json_object *message)
{
    size_t size;
    const char *text = json_object_to_json_string_length(message, JSON_C_TO_STRING_SPACED, &size);

    if (client->closing || !text)
        return;
    if (client->out_size + size + 2 > VFMIG_MAX_QMP_OUTPUT) {
        client->closing = true;
        client->out_size = 0;
        return;
    }
    if (client->out_size + size + 2 > client->out_room) {
        size_t room = 2 * (client->out_size + size + 2);
        char *out = realloc(client->out, room);
        if (!out) {
            client->closing = true;
            return;
        }
        client->out = out;
        client->out_room = room;
    }
    memcpy(client->out + client->out_size, text, size);
    memcpy(client->out + client->out_size + size, "\r\n", 2);
    client->out_size += size + 2;
}

static void client_send(struct vfmig_qmp *qmp, struct client *client, struct json_object *message)
{
    pthread_mutex_lock(&qmp->lock);
    client_queue(client, message);
    pthread_mutex_unlock(&qmp->lock);
    json_object_put(message);
}

static void client_error(struct vfmig_qmp *qmp, struct client *client, struct json_object *id,
                         const char *class, const char *text)
{
    struct json_object *reply = json_object_new_object();
    struct json_object *error = json_object_new_object();

    json_object_object_add(error, "class", json_object_new_string(class));
    json_object_object_add(error, "desc", json_object_new_string(text));
    json_object_object_add(reply, "error", error);
    if (id)
        json_object_object_add(reply, "id", json_object_get(id));
    client_send(qmp, client, reply);
}

struct json_object *vfmig_qmp_version(void)
{
    int numbers[3] = {0};
    static const char *const names[3] = {"major", "minor", "micro"};
    struct json_object *number = json_object_new_object();
    struct json_object *version = json_object_new_object();

    sscanf(VFMIG_VERSION, "%d.%d.%d", &numbers[0], &numbers[1], &numbers[2]);
    for (unsigned i = 0; i < 3; i++)
        json_object_object_add(number, names[i], json_object_new_int(numbers[i]));
    json_object_object_add(version, "qemu", number); /* the key that clients look for */
    json_object_object_add(version, "package", json_object_new_string("vfmig " VFMIG_VERSION));
    return version;
}

static void client_greet(struct vfmig_qmp *qmp, struct client *client)
{
    struct json_object *greeting = json_object_new_object();
    struct json_object *content = json_object_new_object();

    json_object_object_add(content, "version", vfmig_qmp_version());
    json_object_object_add(content, "capabilities", json_object_new_array());
    json_object_object_add(greeting, "QMP", content);
    client_send(qmp, client, greeting);
}

static bool type_matches(char type, struct json_object *value)
{
    switch (type) {
    case 's':
        return json_object_is_type(value, json_type_string);
    case 'i':
        return json_object_is_type(value, json_type_int);
    case 'n':
        return json_object_is_type(value, json_type_int) ||
               json_object_is_type(value, json_type_double);
    case 'b':
        return json_object_is_type(value, json_type_boolean);
    case 'o':
        return json_object_is_type(value, json_type_object);
    case 'a':
        return json_object_is_type(value, json_type_array);
    default:
        return false;
    }
}

/* Compares args with the command's list; counts what is known to find what is not. */
static int check_args(const struct vfmig_qmp_command *command, struct json_object *args,
                      struct vfmig_error *reterr)
{
    int known = 0;

    for (const char *item = command->args ? command->args : ""; *item;) {
        size_t size = strcspn(item, ",");
        size_t name_size = strcspn(item, ":");
        char name[64];
        snprintf(name, sizeof(name), "%.*s", (int)name_size, item);
        struct json_object *value;
        if (json_object_object_get_ex(args, name, &value)) {
            known++;
            if (!type_matches(item[name_size + 1], value))
                return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                                       "argument '%s' has the wrong type", name);
        } else if (item[size - 1] != '?') {
            return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                                   "argument '%s' is missing", name);
        }
        item += size + (item[size] == ',');
    }
    if (json_object_object_length(args) == known)
        return 0;
    return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_PEER, 0,
                           "%s has an argument it does not know (it takes: %s)", command->name,
                           command->args ? command->args : "none");
}

static struct json_object *list_commands(const struct vfmig_qmp *qmp)
{
    static const char *const own[] = {"qmp_capabilities", "query-commands"};
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; i < 2; i++) {
        struct json_object *row = json_object_new_object();
        json_object_object_add(row, "name", json_object_new_string(own[i]));
        json_object_array_add(list, row);
    }
    for (const struct vfmig_qmp_command *command = qmp->commands; command->name; command++) {
        struct json_object *row = json_object_new_object();
        json_object_object_add(row, "name", json_object_new_string(command->name));
        json_object_array_add(list, row);
    }
    return list;
}

static void reply_result(struct vfmig_qmp *qmp, struct client *client, struct json_object *id,
                         struct json_object *result)
{
    struct json_object *reply = json_object_new_object();

    json_object_object_add(reply, "return", result ? result : json_object_new_object());
    if (id)
        json_object_object_add(reply, "id", json_object_get(id));
    client_send(qmp, client, reply);
}

static void run_command(struct vfmig_qmp *qmp, struct client *client, struct json_object *id,
                        const char *name, struct json_object *args)
{
    const struct vfmig_qmp_command *command = qmp->commands;
    struct vfmig_error err = {0};
    struct json_object *result = NULL;

    if (!client->negotiated) {
        if (strcmp(name, "qmp_capabilities")) {
            client_error(qmp, client, id, "CommandNotFound",
                         "expecting capabilities negotiation with 'qmp_capabilities'");
            return;
        }
        pthread_mutex_lock(&qmp->lock);
        client->negotiated = true;
        pthread_mutex_unlock(&qmp->lock);
        reply_result(qmp, client, id, NULL);
        return;
    }
    if (!strcmp(name, "query-commands")) {
        reply_result(qmp, client, id, list_commands(qmp));
        return;
    }
    while (command->name && strcmp(command->name, name))
        command++;
    if (!command->name) {
        char text[128];
        snprintf(text, sizeof(text), "The command %.64s has not been found", name);
        client_error(qmp, client, id, "CommandNotFound", text);
        return;
    }
    if (check_args(command, args, &err) || command->run(qmp->opaque, args, &result, &err)) {
        json_object_put(result);
        client_error(qmp, client, id, "GenericError", err.text);
        return;
    }
    reply_result(qmp, client, id, result);
}

/* One complete JSON value from the client. */
static void take_request(struct vfmig_qmp *qmp, struct client *client, struct json_object *request)
{
    struct json_object *execute = NULL, *args = NULL, *id = NULL;
    int known = 0;

    if (!json_object_is_type(request, json_type_object)) {
        client_error(qmp, client, NULL, "GenericError", "QMP input must be a JSON object");
        return;
    }
    known += json_object_object_get_ex(request, "id", &id);
    known += json_object_object_get_ex(request, "execute", &execute);
    known += json_object_object_get_ex(request, "arguments", &args);
    if (!json_object_is_type(execute, json_type_string)) {
        client_error(qmp, client, id, "GenericError", "QMP input lacks member 'execute'");
        return;
    }
    if (args && !json_object_is_type(args, json_type_object)) {
        client_error(qmp, client, id, "GenericError", "QMP input member 'arguments' must be an object");
        return;
    }
    if (json_object_object_length(request) != known) {
        client_error(qmp, client, id, "GenericError", "QMP input has an unexpected member");
        return;
    }
    struct json_object *empty = args ? NULL : json_object_new_object();
    run_command(qmp, client, id, json_object_get_string(execute), args ? args : empty);
    json_object_put(empty);
}

/* Input that cannot be parsed: say so, then drop the rest of the line. */
static void reject_input(struct vfmig_qmp *qmp, struct client *client, const char *text)
{
    json_tokener_reset(client->tokener);
    client->pending = 0;
    client->skipping = true;
    client_error(qmp, client, NULL, "GenericError", text);
}

/* Consumes a prefix of data and returns its length; 0 only when it starts to skip. */
static size_t take_input(struct vfmig_qmp *qmp, struct client *client, const char *data, size_t size)
{
    if (client->skipping) {
        const char *newline = memchr(data, '\n', size);
        client->skipping = !newline;
        return newline ? (size_t)(newline - data) + 1 : size;
    }
    if (!client->pending) {
        if (data[0] && strchr(" \t\r\n", data[0]))
            return 1;
        if (data[0] != '{') {
            reject_input(qmp, client, "JSON parse error, expecting an object");
            return 1;
        }
    }
    size_t room = VFMIG_MAX_QMP_INPUT - client->pending;
    size_t piece = size < room ? size : room;
    struct json_object *request = json_tokener_parse_ex(client->tokener, data, (int)piece);
    enum json_tokener_error error = json_tokener_get_error(client->tokener);
    size_t used = json_tokener_get_parse_end(client->tokener);
    if (error == json_tokener_continue) {
        client->pending += piece;
        if (client->pending >= VFMIG_MAX_QMP_INPUT)
            reject_input(qmp, client, "QMP input is too long");
        return piece;
    }
    if (error != json_tokener_success) {
        char text[128];
        snprintf(text, sizeof(text), "JSON parse error, %s", json_tokener_error_desc(error));
        reject_input(qmp, client, text);
        return used; /* not the refused byte: it may be the newline that ends the skipping */
    }
    json_tokener_reset(client->tokener);
    client->pending = 0;
    take_request(qmp, client, request);
    json_object_put(request);
    return used;
}

static void client_read(struct vfmig_qmp *qmp, struct client *client)
{
    char data[4096];
    ssize_t size = recv(client->fd, data, sizeof(data), MSG_DONTWAIT);

    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (size <= 0) {
        pthread_mutex_lock(&qmp->lock);
        client->closing = true;
        if (size < 0)
            client->out_size = 0;
        pthread_mutex_unlock(&qmp->lock);
        return;
    }
    for (size_t used = 0; used < (size_t)size && !client->closing;)
        used += take_input(qmp, client, data + used, (size_t)size - used);
}

/* Sends what the socket takes; called with the lock held. */
static void client_write(struct client *client)
{
    size_t sent = 0;

    while (sent < client->out_size) {
        ssize_t ret = send(client->fd, client->out + sent, client->out_size - sent,
                           MSG_DONTWAIT | MSG_NOSIGNAL);
        if (ret < 0 && errno == EINTR)
            continue;
        if (ret < 0 && errno != EAGAIN) {
            client->closing = true;
            sent = client->out_size;
        }
        if (ret <= 0)
            break;
        sent += (size_t)ret;
    }
    memmove(client->out, client->out + sent, client->out_size - sent);
    client->out_size -= sent;
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
        json_tokener *tokener = json_tokener_new_ex(VFMIG_MAX_QMP_DEPTH);
        if (!tokener)
            break;
        json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_ALLOW_TRAILING_CHARS |
                                            JSON_TOKENER_VALIDATE_UTF8);
        pthread_mutex_lock(&qmp->lock);
        *client = (struct client){.fd = fd, .tokener = tokener};
        pthread_mutex_unlock(&qmp->lock);
        client_greet(qmp, client);
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
        if (client->fd >= 0 && client->out_size)
            client_write(client);
        if (client->fd >= 0 && client->closing && !client->out_size)
            client_close(client);
        room |= client->fd < 0;
        polls[i].fd = client->fd;
        polls[i].events = (short)((client->closing ? 0 : POLLIN) | (client->out_size ? POLLOUT : 0));
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
            if (!client->closing && polls[i].revents & (POLLIN | POLLHUP | POLLERR)) {
                client_read(qmp, client);
            } else if (polls[i].revents & (POLLHUP | POLLERR)) {
                pthread_mutex_lock(&qmp->lock);
                client->out_size = 0;
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
        if (qmp->clients[i].fd >= 0 && qmp->clients[i].negotiated)
            client_queue(&qmp->clients[i], event);
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
