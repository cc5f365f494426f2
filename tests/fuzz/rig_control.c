/* SPDX-License-Identifier: BSD-3-Clause */
/* The control client beside the owner (docs/control.md), and the windows shared with either. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "rig.h"
#include "world.h"

static const char *const texts[8] = {
    "{\"capabilities\":{\"max_msg_fds\":8,\"vfmig\":{\"token\":\"a\"}}}",
    "{\"capabilities\":{\"max_msg_fds\":8,\"vfmig\":{\"token\":\"a\",\"window\":65536}}}",
    "{\"capabilities\":{\"max_msg_fds\":8,\"vfmig\":{\"token\":\"b\",\"window\":4096}}}",
    "{\"capabilities\":{\"max_msg_fds\":1,\"max_data_xfer_size\":70000,\"vfmig\":{\"token\":\"a\"}}}",
    "{\"capabilities\":{\"max_msg_fds\":0,\"vfmig\":{\"token\":\"a\",\"window\":65536}}}",
    "{\"capabilities\":{\"vfmig\":{\"token\":\"\"}}}",
    "{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true},\"vfmig\":{\"token\":\"a\"}}}",
    "{}",
};

static void address(struct sockaddr_un *ret_address)
{
    memset(ret_address, 0, sizeof(*ret_address));
    ret_address->sun_family = AF_UNIX;
    snprintf(ret_address->sun_path, sizeof(ret_address->sun_path), "/tmp/vfmig-fuzz.%d", getpid());
}

void control_begin(struct rig *rig)
{
    struct sockaddr_un at;

    if (!rig->variant->control)
        return;
    address(&at);
    int r = vfmig_device_listen_control(rig->dev, at.sun_path, NULL);
    CHECK(r == 0, "no control socket: %d", r);
}

static void forget(struct control *c)
{
    for (uint32_t i = 0; i < c->request_count; i++)
        free(c->requests[i].payload);
    c->request_count = 0;
    c->part_have = 0;
    c->closed = c->negotiated = c->may_close = c->must_close = false;
    if (c->window >= 0)
        close(c->window);
    c->window = -1;
}

/* ---- from the server ------------------------------------------------------------------------- */

static void agreed(struct rig *rig, struct vfmig_user_msg *msg)
{
    struct control *c = &rig->control;
    struct vfmig_user_caps caps;
    uint32_t head = sizeof(struct vfmig_user_version);

    CHECK(!vfmig_user_caps_parse(msg->payload + head, msg->size - head, &caps, NULL),
          "the reply to VERSION cannot be read");
    CHECK(caps.token[0] && !caps.twin_socket, "a session without a token, or with a twin socket");
    c->negotiated = true;
    rig->reach[REACH_SESSIONS]++;
    if (caps.window) {
        model_window(&caps, msg, &c->window);
        rig->reach[REACH_WINDOWS]++;
    }
}

static void granted(struct rig *rig, const struct request *request, struct vfmig_user_msg *msg)
{
    struct vfmig_user_feature head = {0};

    rig->reach[REACH_ASIDE]++;
    if (request->command == VFMIG_USER_VERSION)
        agreed(rig, msg);
    if (request->command != VFMIG_USER_FEATURE)
        return;
    memcpy(&head, msg->payload, sizeof(head));
    uint32_t feature = head.flags & VFMIG_USER_FEATURE_MASK;
    rig->reach[REACH_FROZEN] +=
        feature == VFMIG_USER_F_FREEZE && (head.flags & VFMIG_USER_FEATURE_SET);
    rig->reach[REACH_LISTS] += feature == VFMIG_USER_F_DIRTY_LIST || feature == VFMIG_USER_F_DMA_MAP_LIST;
    rig->reach[REACH_WINDOW_DATA] +=
        feature == VFMIG_USER_F_WINDOW_READ || feature == VFMIG_USER_F_WINDOW_WRITE;
}

static void reply(struct rig *rig, struct vfmig_user_msg *msg)
{
    struct control *c = &rig->control;
    uint32_t at = 0;

    CHECK((msg->header.flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_REPLY,
          "command %u for a control client", msg->header.command);
    while (at < c->request_count && !model_fits(&c->requests[at], msg))
        at++;
    CHECK(at < c->request_count, "reply to no control client: id %u, command %u, flags 0x%x, error %u",
          msg->header.id, msg->header.command, msg->header.flags, msg->header.error);
    struct request request = c->requests[at];
    c->request_count--;
    memmove(&c->requests[at], &c->requests[at + 1],
            (c->request_count - at) * sizeof(c->requests[0]));
    if (!(msg->header.flags & VFMIG_USER_ERROR))
        granted(rig, &request, msg);
    rig->reach[REACH_ENDED] += (msg->header.flags & VFMIG_USER_ERROR) && msg->header.error == ECONNABORTED;
    free(request.payload);
}

static void take(struct rig *rig, struct vfmig_fds *fds)
{
    struct rig_end *end = &rig->control.end;
    struct vfmig_user_header h;
    size_t at = 0;

    while (end->have - at >= sizeof(h)) {
        memcpy(&h, end->in + at, sizeof(h));
        CHECK(h.size >= sizeof(h) && h.size <= MESSAGE_MAX, "a message of %u bytes", h.size);
        if (h.size > end->have - at)
            break;
        struct vfmig_user_msg msg = {
            .header = h, .payload = end->in + at + sizeof(h), .size = h.size - (uint32_t)sizeof(h)};
        if (h.command == VFMIG_USER_VERSION || h.command == VFMIG_USER_GET_REGION_INFO)
            vfmig_fds_move(&msg.fds, fds);
        reply(rig, &msg);
        vfmig_fds_close(&msg.fds);
        at += h.size;
    }
    CHECK(at < end->have || fds->count == 0, "descriptors with a message that has none");
    memmove(end->in, end->in + at, end->have - at);
    end->have -= at;
}

void control_read(struct rig *rig)
{
    struct control *c = &rig->control;
    struct vfmig_fds fds;
    ssize_t n;

    while (c->end.fd >= 0 && (n = rig_receive(&c->end, &fds)) != -EAGAIN) {
        if (n <= 0) {
            c->closed = true;
            break;
        }
        take(rig, &fds);
        vfmig_fds_close(&fds);
    }
    /* Before VERSION was agreed on anybody may be let go. */
    CHECK(!c->closed || c->may_close || !c->negotiated,
          "the server has let the control client go without a reason");
}

/* ---- to the server --------------------------------------------------------------------------- */

static void sent(struct rig *rig, const struct vfmig_user_header *h, const uint8_t *payload)
{
    struct control *c = &rig->control;

    if ((h->flags & VFMIG_USER_TYPE_MASK) != VFMIG_USER_TYPE_REPLY && !(h->flags & VFMIG_USER_NO_REPLY))
        model_ask(rig, c->requests, &c->request_count, h, payload);
}

static void follow(struct rig *rig, const uint8_t *at, size_t size)
{
    struct control *c = &rig->control;
    struct vfmig_user_header h;

    while (size && !c->must_close) {
        size_t want = sizeof(h);
        if (c->part_have >= sizeof(h)) {
            memcpy(&h, c->part, sizeof(h));
            want = h.size;
        }
        size_t part = want - c->part_have < size ? want - c->part_have : size;
        memcpy(c->part + c->part_have, at, part);
        c->part_have += part;
        at += part;
        size -= part;
        if (c->part_have < sizeof(h))
            return;
        memcpy(&h, c->part, sizeof(h));
        if (h.size < sizeof(h) || h.size > vfmig_user_message_max(RIG_MAX_DATA)) {
            c->may_close = c->must_close = true;
        } else if (c->part_have == h.size) {
            sent(rig, &h, c->part + sizeof(h));
            c->part_have = 0;
        }
    }
}

static void send_bytes(struct rig *rig, const uint8_t *at, size_t size)
{
    struct control *c = &rig->control;

    /* A session lets it change state, and its going too. */
    rig->state_may_change = true;
    follow(rig, at, size);
    while (size && c->end.fd >= 0 && !c->closed) {
        ssize_t n = send(c->end.fd, at, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            rig_pump(rig);
            continue;
        }
        if (n < 0) { /* its last words first */
            control_read(rig);
            return;
        }
        at += n;
        size -= (size_t)n;
    }
}

static void command(struct rig *rig, uint16_t id, uint16_t command, const void *payload, uint32_t size)
{
    static uint8_t buf[1024];
    struct vfmig_user_header h = {id, command, (uint32_t)sizeof(h) + size, 0, 0};

    memcpy(buf, &h, sizeof(h));
    memcpy(buf + sizeof(h), payload, size);
    send_bytes(rig, buf, h.size);
}

void control_leave(struct rig *rig)
{
    struct control *c = &rig->control;

    if (c->end.fd < 0)
        return;
    close(c->end.fd);
    c->end.fd = -1;
    rig->state_may_change = true;
    rig_pump(rig);
    forget(c);
}

static void join(struct rig *rig, uint8_t how)
{
    struct control *c = &rig->control;
    uint8_t buf[256] = {0, 0, 2};
    const char *text = texts[how % 8];
    struct sockaddr_un at;

    control_leave(rig);
    address(&at);
    c->end.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(c->end.fd >= 0 && connect(c->end.fd, (struct sockaddr *)&at, sizeof(at)) == 0,
          "nobody listens for a control client: %s", strerror(errno));
    c->end.have = 0;
    memcpy(buf + 4, text, strlen(text) + 1);
    command(rig, 0x8000, VFMIG_USER_VERSION, buf, 5 + (uint32_t)strlen(text));
    rig_pump(rig);
}

static void aside(struct rig *rig, const struct op *op)
{
    static uint8_t bytes[INPUT_MAX];
    uint8_t how = op_byte(op, 0), cut = op_byte(op, 1);
    uint32_t size = op->size > 2 ? op->size - 2u : 0;
    struct control *c = &rig->control;

    if (c->end.fd < 0 || c->closed)
        return;
    if (size)
        memcpy(bytes, op->body + 2, size);
    if ((how & SEND_FIX_SIZE) && size >= sizeof(struct vfmig_user_header))
        memcpy(bytes + 4, &size, sizeof(size));
    cut = cut < size ? cut : 0;
    if (cut) {
        send_bytes(rig, bytes, cut);
        rig_pump(rig);
    }
    send_bytes(rig, bytes + cut, size - cut);
    if (how & SEND_HOLD)
        rig->held = true;
    else
        rig_pump(rig);
}

static void scribble(struct rig *rig, const struct op *op)
{
    int window = op_byte(op, 0) & 1 ? rig->window : rig->control.window;
    off_t size = window >= 0 ? lseek(window, 0, SEEK_END) : 0;

    if (!size || op->size <= 5)
        return;
    off_t at = op_word(op, 1) % size;
    size_t count = op->size - 5u;
    count = count < (size_t)(size - at) ? count : (size_t)(size - at);
    CHECK(pwrite(window, op->body + 5, count, at) == (ssize_t)count, "a window cannot be written");
}

void control_do(struct rig *rig, const struct op *op)
{
    struct control *c = &rig->control;

    if (c->closed)
        control_leave(rig);
    if (op->kind == OP_WINDOW)
        scribble(rig, op);
    else if (!rig->variant->control)
        return;
    else if (op->kind == OP_ASIDE)
        aside(rig, op);
    else if (op_byte(op, 0) & CONTROL_GOES)
        control_leave(rig);
    else
        join(rig, op_byte(op, 0));
}

/* The message that was left in the middle ends; then the owner's reset ends what waits. */
void control_settle(struct rig *rig)
{
    static const uint8_t zeros[MESSAGE_MAX];
    struct control *c = &rig->control;
    struct vfmig_user_header h;

    if (!rig->variant->control)
        return;
    if (c->part_have && c->part_have < sizeof(h))
        send_bytes(rig, zeros, sizeof(h) - c->part_have);
    if (c->part_have && !c->must_close) {
        memcpy(&h, c->part, sizeof(h));
        send_bytes(rig, zeros, h.size - c->part_have);
    }
    rig_command(rig, VFMIG_USER_RESET, 0, NULL, 0);
    rig_pump(rig);
}
