/* SPDX-License-Identifier: BSD-3-Clause */
#include "rig.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices/dma_regs.h"
#include "world.h"

#define ROUNDS_MAX 400u           /* of the server, after one operation */
#define SETTLE_MAX 20000u         /* rounds until everything is answered */
#define DRAIN_NS   20000000000ull /* past every deadline of the devices */
#define GATE_NS    2000000u       /* what the pool device takes to end what it holds */

/* Bits of a program's choice. */
#define CHOICE_DEVICE(choice) ((choice)&3u)
#define CHOICE_TEXT(choice)   ((choice) >> 2 & 7u)
#define CHOICE_NO_MAPS        0x20u
#define CHOICE_RING_MESSAGE   0x40u
#define CHOICE_NO_VERSION     0x80u

static int ram_fd = -1, shrink_fd = -1;
static uint8_t *ram, pattern[RAM_SIZE];

int rig_ram(void)
{
    return ram_fd;
}

int rig_shrink(void)
{
    return shrink_fd;
}

/* ---- the client's ends ----------------------------------------------------------------------- */

/* Only these replies come with descriptors; several messages may come in one piece with them. */
static bool brings_fds(const struct vfmig_user_header *h)
{
    return h->command == VFMIG_USER_VERSION || h->command == VFMIG_USER_GET_REGION_INFO ||
           h->command == VFMIG_USER_GET_REGION_IO_FDS;
}

static void take(struct rig *rig, struct rig_end *end, struct vfmig_fds *fds)
{
    size_t at = 0;

    for (;;) {
        struct vfmig_user_msg msg = {.payload = end->in + at + sizeof(msg.header)};
        if (end->have - at < sizeof(msg.header))
            break;
        memcpy(&msg.header, end->in + at, sizeof(msg.header));
        CHECK(msg.header.size >= sizeof(msg.header) && msg.header.size <= MESSAGE_MAX,
              "the server sends a message of %u bytes", msg.header.size);
        if (msg.header.size > end->have - at)
            break;
        msg.size = msg.header.size - (uint32_t)sizeof(msg.header);
        msg.fds.count = 0;
        if (brings_fds(&msg.header))
            vfmig_fds_move(&msg.fds, fds);
        if ((msg.header.flags & VFMIG_USER_TYPE_MASK) == VFMIG_USER_TYPE_CMD)
            model_command(rig, &msg, end == &rig->twin);
        else
            model_reply(rig, &msg);
        vfmig_fds_close(&msg.fds);
        at += msg.header.size;
    }
    CHECK(at < end->have || fds->count == 0, "descriptors with a message that has none");
    memmove(end->in, end->in + at, end->have - at);
    end->have -= at;
}

ssize_t rig_receive(struct rig_end *end, struct vfmig_fds *ret_fds)
{
    union {
        char buf[CMSG_SPACE(2 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {end->in + end->have, sizeof(end->in) - end->have};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.buf,
                         .msg_controllen = sizeof(control.buf)};

    ret_fds->count = 0;
    ssize_t n = recvmsg(end->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n <= 0)
        return n < 0 ? -errno : 0;
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c && c->cmsg_type == SCM_RIGHTS) {
        ret_fds->count = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(ret_fds->fd, CMSG_DATA(c), ret_fds->count * sizeof(int));
    }
    end->have += (size_t)n;
    return n;
}

/* Reads all that is there. */
static void drain(struct rig *rig, struct rig_end *end)
{
    struct vfmig_fds fds;
    ssize_t n;

    while (end->fd >= 0 && (n = rig_receive(end, &fds)) != -EAGAIN) {
        if (n <= 0) {
            rig->closed = true;
            return;
        }
        take(rig, end, &fds);
        vfmig_fds_close(&fds);
    }
}

static void drain_both(void *user)
{
    struct rig *rig = user;

    drain(rig, &rig->main);
    drain(rig, &rig->twin);
    control_read(rig);
}

/* ---- the server ------------------------------------------------------------------------------ */

static bool has_work(struct rig *rig)
{
    struct pollfd p = {.fd = vfmig_device_poll_fd(rig->dev), .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

/* Lets the server do what it has to do, and looks at the outcome. */
void rig_pump(struct rig *rig)
{
    for (unsigned i = 0; i < ROUNDS_MAX && has_work(rig); i++) {
        int r = vfmig_device_dispatch(rig->dev, NULL);
        CHECK(r >= 0, "dispatch: %d", r);
        drain_both(rig);
    }
    enum vfmig_state state = vfmig_device_get_state(rig->dev);
    CHECK((unsigned)state < VFMIG_STATE_COUNT, "state %d", state);
    if (state == VFMIG_STATE_RESUMING && rig->last_state != state)
        rig->frame_sequence = rig->frame_crc = 0;
    rig->reach[REACH_ERRORS] += state == VFMIG_STATE_ERROR && rig->last_state != state;
    rig->last_state = state;
    bool is_quiet = state != VFMIG_STATE_RUNNING && state != VFMIG_STATE_PRE_COPY;
    CHECK(!rig->was_quiet || !is_quiet || rig->state_may_change ||
              !memcmp(rig->quiet, ram, RAM_SIZE),
          "guest memory was written in state %d", state);
    if (is_quiet && (rig->state_may_change || !rig->was_quiet))
        memcpy(rig->quiet, ram, RAM_SIZE);
    rig->was_quiet = is_quiet;
    rig->state_may_change = rig->held = has_work(rig);
    for (uint32_t i = 0; i < rig->region_count;)
        if (rig->regions[i].retired)
            rig->regions[i] = rig->regions[--rig->region_count];
        else
            i++;
    CHECK(!rig->closed || rig->may_close || !rig->negotiated,
          "the server has closed the connection without a reason");
}

void rig_send(struct rig *rig, bool twin, const void *data, size_t size, const int *fds,
              unsigned count)
{
    union {
        char buf[CMSG_SPACE(32 * sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct rig_end *end = twin ? &rig->twin : &rig->main;
    const uint8_t *at = data;

    if (size == 0 || end->fd < 0 || rig->closed)
        return;
    if (!twin)
        model_sent(rig, data, size, count);
    while (size && !rig->closed) {
        struct iovec iov = {(void *)(uintptr_t)at, size};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        if (count) {
            msg.msg_control = control.buf;
            msg.msg_controllen = CMSG_SPACE(count * sizeof(int));
            struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(count * sizeof(int));
            memcpy(CMSG_DATA(c), fds, count * sizeof(int));
        }
        ssize_t n = sendmsg(end->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            rig_pump(rig);
            continue;
        }
        if (n < 0) { /* its last words first */
            drain_both(rig);
            return;
        }
        at += n;
        size -= (size_t)n;
        count = 0;
    }
}

void rig_command(struct rig *rig, uint16_t command, uint32_t flags, const void *payload,
                 uint32_t size)
{
    static uint8_t buf[MESSAGE_MAX];
    struct vfmig_user_header h = {rig->next_id++, command, (uint32_t)sizeof(h) + size, flags, 0};

    rig->next_id |= 0x8000;
    memcpy(buf, &h, sizeof(h));
    if (size)
        memcpy(buf + sizeof(h), payload, size);
    rig_send(rig, false, buf, h.size, NULL, 0);
}

int rig_call(struct rig *rig, uint16_t command, const void *payload, uint32_t size, int fd)
{
    static uint8_t buf[MESSAGE_MAX];
    struct vfmig_user_header h = {rig->next_id++, command, (uint32_t)sizeof(h) + size, 0, 0};

    rig->next_id |= 0x8000;
    memcpy(buf, &h, sizeof(h));
    if (size)
        memcpy(buf + sizeof(h), payload, size);
    rig->want = h.id;
    rig->got = -EAGAIN;
    rig_send(rig, false, buf, h.size, &fd, fd >= 0);
    rig_pump(rig);
    rig->want = UINT32_MAX;
    return rig->got;
}

/* ---- clients --------------------------------------------------------------------------------- */

static const char *const texts[8] = {
    "",
    "{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true}}}",
    "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"pgsizes\":4096,"
    "\"max_dma_maps\":65535,\"migration\":{\"pgsize\":4096}}}",
    "{\"capabilities\":{\"max_data_xfer_size\":5000}}",
    "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":3,"
    "\"twin_socket\":{\"supported\":true}}}",
    "{\"capabilities\":{\"max_msg_fds\":8,\"vfmig\":{\"window\":131072}}}",
    "{\"capabilities\":{\"max_msg_fds\":1,\"max_data_xfer_size\":67108864,\"migration\":{}}}",
    "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":70000,\"write_multiple\":true,"
    "\"twin_socket\":{\"supported\":true,\"fd_index\":0}}}",
};

static void agree(struct rig *rig, uint8_t text)
{
    uint8_t buf[512] = {0, 0, 2};
    const char *json = texts[text % 8];
    uint32_t size = *json ? (uint32_t)strlen(json) + 1 : 0;

    memcpy(buf + 4, json, size);
    int r = rig_call(rig, VFMIG_USER_VERSION, buf, 4 + size, -1);
    CHECK(r > 0 && rig->negotiated, "VERSION: %d", r);
}

static void attach(struct rig *rig)
{
    int pair[2];

    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "no socket");
    model_forget(rig);
    rig->main.fd = pair[0];
    rig->main.have = rig->twin.have = 0;
    rig->state_may_change = true;
    int r = vfmig_device_attach_fd(rig->dev, pair[1], NULL);
    CHECK(r == 0, "attach: %d", r);
}

void rig_connect(struct rig *rig, uint8_t text)
{
    attach(rig);
    agree(rig, text);
}

/* C45: whatever it was doing, the device is as new afterwards. */
void rig_disconnect(struct rig *rig)
{
    struct rig_end *ends[] = {&rig->main, &rig->twin};

    rig->reach[REACH_CLOSED] += rig->closed;
    for (unsigned i = 0; i < 2; i++) {
        if (ends[i]->fd >= 0)
            close(ends[i]->fd);
        ends[i]->fd = -1;
    }
    rig->may_close = true;
    for (unsigned i = 0; i < 4; i++)
        rig_pump(rig);
    CHECK(!has_work(rig), "work is left after the client has gone");
    CHECK(vfmig_device_get_state(rig->dev) == VFMIG_STATE_RUNNING, "state %d without a client",
          vfmig_device_get_state(rig->dev));
    model_forget(rig);
}

/* ---- before and after ------------------------------------------------------------------------ */

static void put(struct rig *rig, uint64_t offset, uint64_t value, uint32_t size)
{
    struct {
        struct vfmig_user_region_access access;
        uint64_t value;
    } VFMIG_PACKED req = {{offset, 0, size}, value};

    int r = rig_call(rig, VFMIG_USER_REGION_WRITE, &req, (uint32_t)sizeof(req.access) + size, -1);
    CHECK(r >= 0, "register 0x%llx: %d", (unsigned long long)offset, r);
}

static void prepare(struct rig *rig, uint8_t choice)
{
    struct vfmig_user_dma_map map = {sizeof(map), 3, 0, RAM_IOVA, RAM_SIZE};

    if (choice & CHOICE_NO_MAPS)
        return;
    CHECK(rig_call(rig, VFMIG_USER_DMA_MAP, &map, sizeof(map), ram_fd) == 0, "cannot map");
    map = (struct vfmig_user_dma_map){sizeof(map), 3, RAM_SIZE, MESSAGE_IOVA, MESSAGE_SIZE};
    CHECK(rig_call(rig, VFMIG_USER_DMA_MAP, &map, sizeof(map), -1) == 0, "cannot map");
    if (!rig->variant->is_ring)
        return;
    put(rig, DMA_REG_RING, choice & CHOICE_RING_MESSAGE ? MESSAGE_IOVA : RAM_IOVA, 8);
    put(rig, DMA_REG_ENTRIES, 8, 4);
    put(rig, DMA_REG_CTRL, DMA_CTRL_ENABLE, 4);
}

/* Refuses every DMA message until none comes any more. */
static void settle(struct rig *rig)
{
    for (unsigned i = 0; i < SETTLE_MAX; i++) {
        rig_pump(rig);
        if (!rig->ask_count && !has_work(rig))
            return;
        while (rig->ask_count && !rig->closed) {
            struct op op = {OP_ANSWER, 3, (const uint8_t[]){0, ANSWER_ERROR, EFAULT}};
            ops_do(rig, &op);
        }
        if (rig->closed)
            rig->ask_count = 0;
    }
    CHECK(false, "the server does not come to rest");
}

static uint32_t state_get(struct rig *rig)
{
    struct vfmig_user_feature get = {16, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DEVICE_STATE};
    uint32_t state;

    int r = rig_call(rig, VFMIG_USER_FEATURE, &get, sizeof(get), -1);
    CHECK(r == 16, "GET of device_state: %d", r);
    memcpy(&state, rig->reply + 8, sizeof(state));
    return state;
}

/* Ends the message that the program has left in the middle. */
static void end_part(struct rig *rig)
{
    static const uint8_t zeros[MESSAGE_MAX];
    struct vfmig_user_header h;

    if (rig->part_have && rig->part_have < sizeof(h) && !rig->closed)
        rig_send(rig, false, zeros, sizeof(h) - rig->part_have, NULL, 0);
    if (rig->part_have && !rig->must_close && !rig->closed) {
        memcpy(&h, rig->part, sizeof(h));
        rig_send(rig, false, zeros, h.size - rig->part_have, NULL, 0);
    }
}

/* Nothing is in flight once every DMA message is answered: NDMA needs no time, whatever the
 * answers were. */
static void check_quiesce(struct rig *rig)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_state state;
    } VFMIG_PACKED set = {{sizeof(set), VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE},
                          {VFMIG_STATE_RUNNING_NDMA, 0}};

    if (!rig->variant->quiesces || state_get(rig) != VFMIG_STATE_RUNNING)
        return;
    int r = rig_call(rig, VFMIG_USER_FEATURE, &set, sizeof(set), -1);
    if (r == -EAGAIN) {
        rig->want = (uint32_t)(rig->next_id - 1u) | 0x8000;
        settle(rig);
        world_advance(GATE_NS);
        settle(rig);
        r = rig->got;
        rig->want = UINT32_MAX;
    }
    CHECK(r == (int)sizeof(set), "NDMA with nothing in flight: %d", r);
}

/* Every interrupt can be raised, whatever the client gave as eventfds. */
static void check_irqs(struct rig *rig)
{
    struct vfmig_user_irq_info info = {.argsz = sizeof(info), .index = VFMIG_IRQ_MSIX};
    struct vfmig_user_set_irqs irqs = {sizeof(irqs),
                                       VFMIG_USER_IRQ_DATA_NONE | VFMIG_USER_IRQ_ACTION_TRIGGER,
                                       VFMIG_IRQ_MSIX, 0, 0};

    int r = rig_call(rig, VFMIG_USER_GET_IRQ_INFO, &info, sizeof(info), -1);
    CHECK(r == sizeof(info), "GET_IRQ_INFO: %d", r);
    memcpy(&info, rig->reply, sizeof(info));
    irqs.count = info.count;
    r = info.count ? rig_call(rig, VFMIG_USER_SET_IRQS, &irqs, sizeof(irqs), -1) : 0;
    CHECK(r == 0, "raising every vector: %d", r);
}

static void finish(struct rig *rig)
{
    end_part(rig);
    control_settle(rig);
    settle(rig);
    world_advance(GATE_NS);
    settle(rig);
    world_advance(DRAIN_NS / 2);
    settle(rig);
    world_advance(DRAIN_NS / 2);
    settle(rig);
    CHECK(rig->closed || !rig->must_close, "the server goes on after a broken message");
    const struct control *c = &rig->control;
    bool served = c->end.fd >= 0 && c->negotiated && !c->closed;
    CHECK(!served || !c->must_close, "the control client is served after a broken message");
    CHECK(!served || c->request_count == 0, "command %u of the control client has no reply",
          c->requests[0].command);
    control_leave(rig);
    if (rig->closed || !rig->negotiated || rig->garbled)
        return;
    CHECK(rig->request_count == 0, "command %u with id %u has no reply", rig->requests[0].command,
          rig->requests[0].id);
    check_irqs(rig);
    check_quiesce(rig);
    int r = rig_call(rig, VFMIG_USER_RESET, NULL, 0, -1);
    CHECK(r == 0, "RESET: %d", r);
    CHECK(state_get(rig) == VFMIG_STATE_RUNNING, "another state after RESET");
}

/* The next client finds a new device. */
static void check_next(struct rig *rig)
{
    struct vfmig_user_region_access bits = {0, VFMIG_REGION_MIGRATION, 4};
    struct vfmig_user_device_info info = {.argsz = sizeof(info)};

    rig_disconnect(rig);
    rig_connect(rig, 0);
    CHECK(state_get(rig) == VFMIG_STATE_RUNNING, "another state at the start");
    int r = rig_call(rig, VFMIG_USER_REGION_READ, &bits, sizeof(bits), -1);
    CHECK(r == sizeof(bits) + 4 && !memcmp(rig->reply + sizeof(bits), "\1\0\0", 4),
          "device_state at the start: %d", r);
    r = rig_call(rig, VFMIG_USER_GET_INFO, &info, sizeof(info), -1);
    CHECK(r == sizeof(info), "GET_INFO: %d", r);
    rig_disconnect(rig);
}

static void on_sigpipe(int number)
{
    CHECK(false, "a write to what nobody reads would have ended the process");
}

static void set_up(void)
{
    if (ram)
        return;
    signal(SIGPIPE, on_sigpipe);
    ram_fd = memfd_create("ram", MFD_CLOEXEC);
    shrink_fd = memfd_create("shrink", MFD_CLOEXEC);
    CHECK(ram_fd >= 0 && shrink_fd >= 0 && ftruncate(ram_fd, RAM_SIZE) == 0, "no guest memory");
    ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ram_fd, 0);
    CHECK(ram != MAP_FAILED, "no guest memory");
    for (uint32_t i = 0x1000; i < RAM_SIZE; i++)
        pattern[i] = (uint8_t)(i * 167u >> 4);
}

void rig_run(const struct program *program, const struct variant variants[4],
             uint64_t reach[REACH_COUNT])
{
    static struct rig rig;

    set_up();
    memset(&rig, 0, offsetof(struct rig, reach));
    memset(rig.reach, 0, sizeof(rig.reach));
    memcpy(rig.expected, pattern, RAM_SIZE);
    memcpy(ram, rig.expected, RAM_SIZE);
    CHECK(ftruncate(shrink_fd, 0) == 0 && ftruncate(shrink_fd, RAM_SIZE) == 0, "no file");
    rig.variant = &variants[CHOICE_DEVICE(program->choice)];
    rig.main.fd = rig.twin.fd = rig.control.end.fd = rig.control.window = rig.window = -1;
    rig.want = UINT32_MAX;
    rig.next_id = 0x8000;
    world_begin(drain_both, &rig);
    rig.dev = rig.variant->make();
    control_begin(&rig);
    if (program->choice & CHOICE_NO_VERSION) {
        attach(&rig);
    } else {
        rig_connect(&rig, (uint8_t)CHOICE_TEXT(program->choice));
        prepare(&rig, program->choice);
    }
    for (uint32_t i = 0; i < program->count && !rig.over; i++) {
        ops_do(&rig, &program->ops[i]);
        if (rig.closed) /* the rest of the program has a new client */
            rig_disconnect(&rig), rig_connect(&rig, (uint8_t)i);
    }
    finish(&rig);
    check_next(&rig);
    model_check_memory(&rig, ram);
    vfmig_device_free(rig.dev);
    world_end();
    for (unsigned i = 0; i < REACH_COUNT; i++)
        reach[i] += rig.reach[i];
}
