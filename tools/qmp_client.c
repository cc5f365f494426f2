/* SPDX-License-Identifier: BSD-3-Clause */
#include "qmp_client.h"

#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER_MAX     (4u << 20) /* bytes of one message from the VMM */
#define ANSWER_WAIT_MS 30000      /* a VMM answers at once; a hung one must not hang the tool */

struct qmp_client {
    int fd;
    json_tokener *tokener;
    char data[4096];
    size_t used, size; /* of data */
};

static int lost(struct vfmig_error *reterr, const char *why)
{
    return vfmig_error_set(reterr, -ECONNRESET, VFMIG_ORIGIN_PEER, 0, "the VMM's control socket %s", why);
}

static int fill(struct qmp_client *client, struct vfmig_error *reterr)
{
    struct pollfd pollfd = {.fd = client->fd, .events = POLLIN};

    for (;;) {
        int ready = poll(&pollfd, 1, ANSWER_WAIT_MS);
        if (ready == 0)
            return lost(reterr, "does not answer");
        ssize_t size = ready > 0 ? recv(client->fd, client->data, sizeof(client->data), 0) : -1;
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return lost(reterr, size ? strerror(errno) : "was closed");
        client->used = 0;
        client->size = (size_t)size;
        return 0;
    }
}

/* The next JSON object from the VMM. */
static int receive(struct qmp_client *client, struct json_object **ret_message,
                   struct vfmig_error *reterr)
{
    size_t total = 0;

    json_tokener_reset(client->tokener);
    for (;;) {
        if (client->used == client->size) {
            int ret = fill(client, reterr);
            if (ret)
                return ret;
        }
        size_t size = client->size - client->used;
        struct json_object *message =
            json_tokener_parse_ex(client->tokener, client->data + client->used, (int)size);
        enum json_tokener_error error = json_tokener_get_error(client->tokener);
        client->used += json_tokener_get_parse_end(client->tokener);
        if (error == json_tokener_continue) {
            client->used = client->size;
            total += size;
            if (total > ANSWER_MAX)
                return lost(reterr, "sends without end");
            continue;
        }
        if (error != json_tokener_success || !json_object_is_type(message, json_type_object)) {
            json_object_put(message);
            return lost(reterr, "does not speak QMP");
        }
        *ret_message = message;
        return 0;
    }
}

static int send_all(struct qmp_client *client, const char *text, struct vfmig_error *reterr)
{
    for (size_t left = strlen(text); left;) {
        ssize_t sent = send(client->fd, text, left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return lost(reterr, errno == EPIPE ? "was closed" : strerror(errno));
        text += sent;
        left -= (size_t)sent;
    }
    return 0;
}

int qmp_execute(struct qmp_client *client, const char *command, struct json_object *args,
                struct json_object **ret_result, struct vfmig_error *reterr)
{
    struct json_object *request = json_object_new_object();
    struct json_object *message, *part;

    json_object_object_add(request, "execute", json_object_new_string(command));
    if (args)
        json_object_object_add(request, "arguments", args);
    int ret = send_all(client, json_object_to_json_string(request), reterr);
    if (!ret)
        ret = send_all(client, "\n", reterr);
    json_object_put(request);
    if (ret)
        return ret;
    for (;;) {
        ret = receive(client, &message, reterr);
        if (ret)
            return ret;
        if (json_object_object_get_ex(message, "return", &part)) {
            if (ret_result)
                *ret_result = json_object_get(part);
            json_object_put(message);
            return 0;
        }
        if (json_object_object_get_ex(message, "error", &part)) {
            struct json_object *text = NULL;
            json_object_object_get_ex(part, "desc", &text);
            vfmig_error_set(reterr, -EREMOTEIO, VFMIG_ORIGIN_PEER, 0, "%s",
                            text ? json_object_get_string(text) : "the VMM refused without a reason");
            json_object_put(message);
            return -EREMOTEIO;
        }
        json_object_put(message); /* an event */
    }
}

static int greet(struct qmp_client *client, struct vfmig_error *reterr)
{
    struct json_object *greeting;
    int ret = receive(client, &greeting, reterr);

    if (ret)
        return ret;
    bool is_qmp = json_object_object_get_ex(greeting, "QMP", NULL);
    json_object_put(greeting);
    return is_qmp ? qmp_execute(client, "qmp_capabilities", NULL, NULL, reterr)
                  : lost(reterr, "does not speak QMP");
}

int qmp_connect(const char *path, struct qmp_client **ret_client, struct vfmig_error *reterr)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path))
        return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0,
                               "the path of the control socket is too long: %s", path);
    memcpy(address.sun_path, path, strlen(path));
    struct qmp_client *client = calloc(1, sizeof(*client));
    if (!client)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory");
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    client->tokener = json_tokener_new();
    int ret = 0;
    if (client->fd < 0 || !client->tokener)
        ret = vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "cannot create a socket");
    else if (connect(client->fd, (struct sockaddr *)&address, sizeof(address)))
        ret = vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_PEER, 0,
                              "cannot reach the VMM's control socket %s: %s", path, strerror(errno));
    else
        ret = greet(client, reterr);
    if (ret) {
        qmp_close(client);
        return ret;
    }
    *ret_client = client;
    return 0;
}

void qmp_close(struct qmp_client *client)
{
    if (!client)
        return;
    if (client->fd >= 0)
        close(client->fd);
    if (client->tokener)
        json_tokener_free(client->tokener);
    free(client);
}
