/* SPDX-License-Identifier: BSD-3-Clause */
#include "peer.h"

#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define HEADER sizeof(struct vfmig_user_header)

static void *serve(void *arg)
{
    struct vfmig_error err = {0};
    if (vfmig_device_run(arg, &err) < 0) {
        fprintf(stderr, "server: %s\n", err.text);
        abort();
    }
    return NULL;
}

struct peer *peer_start(struct vfmig_device *dev)
{
    struct peer *p = calloc(1, sizeof(*p));
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    p->fd = pair[0];
    p->twin = -1;
    p->dev = dev;
    p->next_id = 100;
    p->reply = malloc(PEER_REPLY_MAX);
    p->ram_fd = memfd_create("ram", MFD_CLOEXEC);
    assert_int_equal(ftruncate(p->ram_fd, RAM_SIZE), 0);
    p->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, p->ram_fd, 0);
    assert_int_equal(vfmig_device_attach_fd(dev, pair[1], NULL), 0);
    assert_int_equal(pthread_create(&p->server, NULL, serve, dev), 0);
    return p;
}

static void drop_fds(struct peer *p)
{
    for (unsigned i = 0; i < p->fd_count; i++)
        if (p->fds[i] >= 0)
            close(p->fds[i]);
    p->fd_count = 0;
}

void peer_end(struct peer *p)
{
    close(p->fd);
    if (p->twin >= 0)
        close(p->twin);
    drop_fds(p);
    pthread_join(p->server, NULL);
    munmap(p->ram, RAM_SIZE);
    close(p->ram_fd);
    free(p->reply);
    free(p);
}

struct peer *peer_control(const char *path, const char *token, int *ret_err)
{
    struct peer *p = calloc(1, sizeof(*p));
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    char json[128];

    p->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    p->twin = p->ram_fd = -1;
    p->next_id = 5000;
    p->reply = malloc(PEER_REPLY_MAX);
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    assert_int_equal(connect(p->fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    snprintf(json, sizeof(json), "{\"capabilities\":{\"vfmig\":{\"token\":\"%s\"}}}", token);
    *ret_err = peer_version(p, token[0] ? json : NULL);
    if (*ret_err == 0)
        return p;
    peer_leave(p);
    return NULL;
}

void peer_leave(struct peer *p)
{
    close(p->fd);
    drop_fds(p);
    free(p->reply);
    free(p);
}

static void send_bytes(int fd, const struct iovec *iov, unsigned count, const int *fds,
                       unsigned fd_count)
{
    union {
        char buf[CMSG_SPACE(16 * sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct msghdr msg = {.msg_iov = (struct iovec *)iov, .msg_iovlen = count};
    size_t total = 0;

    for (unsigned i = 0; i < count; i++)
        total += iov[i].iov_len;
    if (fd_count) {
        msg.msg_control = control.buf;
        msg.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, fd_count * sizeof(int));
    }
    assert_int_equal(sendmsg(fd, &msg, MSG_NOSIGNAL), total);
}

uint16_t peer_send(struct peer *p, uint16_t command, uint32_t flags, const void *payload,
                   uint32_t size, const int *fds, unsigned fd_count)
{
    struct vfmig_user_header h = {p->next_id++, command, (uint32_t)HEADER + size, flags, 0};
    struct iovec iov[2] = {{&h, HEADER}, {(void *)payload, size}};

    send_bytes(p->fd, iov, 2, fds, fd_count);
    return h.id;
}

static bool read_all(int fd, void *buf, size_t size)
{
    while (size) {
        ssize_t n = recv(fd, buf, size, 0);
        if (n <= 0)
            return false;
        buf = (char *)buf + n;
        size -= (size_t)n;
    }
    return true;
}

int peer_take_fd(struct peer *p, unsigned index)
{
    assert_true(index < p->fd_count && p->fds[index] >= 0);
    int fd = p->fds[index];
    p->fds[index] = -1;
    return fd;
}

/* As read_all for the header, but takes descriptors. */
static bool read_header(struct peer *p, struct vfmig_user_header *h)
{
    union {
        char buf[CMSG_SPACE(PEER_FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {h, HEADER};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf,
                         .msg_controllen = sizeof(control.buf)};
    ssize_t n = recvmsg(p->fd, &msg, MSG_WAITALL | MSG_CMSG_CLOEXEC);

    drop_fds(p);
    if (n != (ssize_t)HEADER)
        return false;
    assert_false(msg.msg_flags & MSG_CTRUNC);
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c && c->cmsg_type == SCM_RIGHTS) {
        p->fd_count = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(p->fds, CMSG_DATA(c), p->fd_count * sizeof(int));
    }
    return true;
}

int peer_wait(struct peer *p, uint16_t id)
{
    struct vfmig_user_header h;

    if (!read_header(p, &h))
        return -ECONNRESET;
    assert_int_equal(h.id, id);
    assert_int_equal(h.flags & VFMIG_USER_TYPE_MASK, VFMIG_USER_TYPE_REPLY);
    assert_true(h.size >= HEADER && h.size - HEADER <= PEER_REPLY_MAX);
    p->reply_size = h.size - (uint32_t)HEADER;
    assert_true(read_all(p->fd, p->reply, p->reply_size));
    if (!(h.flags & VFMIG_USER_ERROR))
        return 0;
    assert_int_equal(p->reply_size, 0);
    assert_true(h.error > 0);
    return -(int)h.error;
}

bool peer_readable(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 1;
}

int peer_call(struct peer *p, uint16_t command, const void *payload, uint32_t size)
{
    return peer_wait(p, peer_send(p, command, 0, payload, size, NULL, 0));
}

int peer_version(struct peer *p, const char *json)
{
    uint8_t buf[8192] = {0};
    struct vfmig_user_version version = {0, 2};
    uint32_t size = json ? (uint32_t)strlen(json) + 1 : 0;

    memcpy(buf, &version, sizeof(version));
    if (json)
        memcpy(buf + sizeof(version), json, size);
    int r = peer_call(p, VFMIG_USER_VERSION, buf, (uint32_t)sizeof(version) + size);
    if (r == 0 && strstr((char *)p->reply + sizeof(version), "\"twin_socket\""))
        p->twin = peer_take_fd(p, 0);
    return r;
}

int peer_map(struct peer *p, uint64_t iova, uint64_t size, int fd, uint64_t offset, uint32_t prot)
{
    struct vfmig_user_dma_map map = {sizeof(map), prot, offset, iova, size};
    return peer_wait(p, peer_send(p, VFMIG_USER_DMA_MAP, 0, &map, sizeof(map), &fd, fd >= 0));
}

void peer_map_ram(struct peer *p)
{
    assert_int_equal(peer_map(p, RAM_IOVA, RAM_SIZE, p->ram_fd, 0, 3), 0);
}

int peer_unmap(struct peer *p, uint64_t iova, uint64_t size)
{
    struct vfmig_user_dma_unmap un = {sizeof(un), 0, iova, size};
    return peer_call(p, VFMIG_USER_DMA_UNMAP, &un, sizeof(un));
}

int peer_read(struct peer *p, uint32_t region, uint64_t offset, void *data, uint32_t size)
{
    struct vfmig_user_region_access access = {offset, region, size};
    int r = peer_call(p, VFMIG_USER_REGION_READ, &access, sizeof(access));

    if (r < 0)
        return r;
    assert_int_equal(p->reply_size, sizeof(access) + size);
    assert_memory_equal(p->reply, &access, sizeof(access));
    memcpy(data, p->reply + sizeof(access), size);
    return 0;
}

int peer_write(struct peer *p, uint32_t region, uint64_t offset, const void *data, uint32_t size)
{
    struct vfmig_user_region_access *access = malloc(sizeof(*access) + size);

    *access = (struct vfmig_user_region_access){offset, region, size};
    memcpy(access + 1, data, size);
    int r = peer_call(p, VFMIG_USER_REGION_WRITE, access, (uint32_t)sizeof(*access) + size);
    free(access);
    return r;
}

uint64_t peer_get(struct peer *p, uint32_t region, uint64_t offset, uint32_t size)
{
    uint64_t value = 0;
    assert_int_equal(peer_read(p, region, offset, &value, size), 0);
    return value;
}

int peer_put(struct peer *p, uint32_t region, uint64_t offset, uint64_t value, uint32_t size)
{
    return peer_write(p, region, offset, &value, size);
}

void peer_post(struct peer *p, uint32_t region, uint64_t offset, uint64_t value, uint32_t size)
{
    struct {
        struct vfmig_user_region_access access;
        uint64_t value;
    } VFMIG_PACKED req = {{offset, region, size}, value};
    peer_send(p, VFMIG_USER_REGION_WRITE, VFMIG_USER_NO_REPLY, &req,
              (uint32_t)sizeof(req.access) + size, NULL, 0);
}

uint8_t *peer_map_section(struct peer *p, uint64_t *ret_offset, size_t *ret_size)
{
    struct vfmig_user_region_info info = {.argsz = 4096, .index = VFMIG_REGION_MIGRATION};
    struct vfmig_user_cap_sparse sparse;

    assert_int_equal(peer_call(p, VFMIG_USER_GET_REGION_INFO, &info, sizeof(info)), 0);
    memcpy(&info, p->reply, sizeof(info));
    assert_true(info.flags & VFMIG_USER_REGION_F_MMAP);
    uint32_t at = info.cap_offset;
    do { /* the chain ends at 0, which is no sparse capability */
        assert_true(at && at + sizeof(struct vfmig_user_cap) <= p->reply_size);
        memcpy(&sparse, p->reply + at, sizeof(sparse));
        at = sparse.cap.next;
    } while (sparse.cap.id != VFMIG_USER_CAP_SPARSE_MMAP);
    assert_int_equal(sparse.count, 1);
    *ret_offset = sparse.area.offset;
    *ret_size = (size_t)sparse.area.size;
    int fd = peer_take_fd(p, 0);
    uint8_t *map = mmap(NULL, *ret_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                        (off_t)(info.offset + sparse.area.offset));
    assert_true(map != MAP_FAILED);
    close(fd);
    return map;
}

int peer_vector(struct peer *p, uint32_t v)
{
    struct vfmig_user_set_irqs irqs = {sizeof(irqs),
                                       VFMIG_USER_IRQ_DATA_EVENTFD | VFMIG_USER_IRQ_ACTION_TRIGGER,
                                       VFMIG_IRQ_MSIX, v, 1};
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    uint16_t id = peer_send(p, VFMIG_USER_SET_IRQS, 0, &irqs, sizeof(irqs), &fd, 1);

    assert_int_equal(peer_wait(p, id), 0);
    return fd;
}

uint64_t peer_irqs(int eventfd)
{
    uint64_t count = 0;
    return read(eventfd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

/* ---- migration ------------------------------------------------------------------------------- */

int peer_set_v2(struct peer *p, uint32_t state)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_state state;
    } VFMIG_PACKED req = {{sizeof(req), VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE},
                          {state, 0}};
    return peer_call(p, VFMIG_USER_FEATURE, &req, sizeof(req));
}

uint32_t peer_get_v2(struct peer *p)
{
    struct vfmig_user_feature head = {16, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DEVICE_STATE};
    struct vfmig_user_feature_state state;

    assert_int_equal(peer_call(p, VFMIG_USER_FEATURE, &head, sizeof(head)), 0);
    assert_int_equal(p->reply_size, 16);
    memcpy(&state, p->reply + 8, sizeof(state));
    return state.device_state;
}

int peer_feature(struct peer *p, uint32_t flags, const void *data, uint32_t size)
{
    uint8_t request[4096];
    struct vfmig_user_feature head = {.argsz = PEER_REPLY_MAX, .flags = flags};

    assert_true(size <= sizeof(request) - sizeof(head));
    memcpy(request, &head, sizeof(head));
    if (size)
        memcpy(request + sizeof(head), data, size);
    return peer_call(p, VFMIG_USER_FEATURE, request, (uint32_t)sizeof(head) + size);
}

int peer_set_v1(struct peer *p, uint32_t bits)
{
    return peer_put(p, VFMIG_REGION_MIGRATION, 0, bits, 4);
}

uint32_t peer_get_v1(struct peer *p)
{
    return (uint32_t)peer_get(p, VFMIG_REGION_MIGRATION, 0, 4);
}

int peer_reset(struct peer *p)
{
    return peer_call(p, VFMIG_USER_RESET, NULL, 0);
}

size_t peer_save_v2(struct peer *p, uint8_t **ret_data, uint32_t piece)
{
    size_t total = 0;
    struct vfmig_user_mig_data req = {8 + piece, piece}, got;

    *ret_data = NULL;
    do {
        assert_int_equal(peer_call(p, VFMIG_USER_MIG_DATA_READ, &req, sizeof(req)), 0);
        memcpy(&got, p->reply, sizeof(got));
        assert_true(got.size <= piece && p->reply_size >= 8 + got.size);
        *ret_data = realloc(*ret_data, total + got.size + 1);
        memcpy(*ret_data + total, p->reply + 8, got.size);
        total += got.size;
    } while (got.size == piece);
    return total;
}

size_t peer_save_v1(struct peer *p, uint8_t **ret_data)
{
    size_t total = 0;

    *ret_data = NULL;
    while (peer_get(p, VFMIG_REGION_MIGRATION, 8, 8)) {
        uint64_t offset = peer_get(p, VFMIG_REGION_MIGRATION, 16, 8);
        uint64_t size = peer_get(p, VFMIG_REGION_MIGRATION, 24, 8);
        assert_int_equal(peer_get(p, VFMIG_REGION_MIGRATION, 16, 8), offset); /* X1 */
        if (size == 0)
            break; /* X6 */
        *ret_data = realloc(*ret_data, total + size);
        for (uint64_t at = 0; at < size; at += 65536) {
            uint32_t n = (uint32_t)(size - at < 65536 ? size - at : 65536);
            assert_int_equal(
                peer_read(p, VFMIG_REGION_MIGRATION, offset + at, *ret_data + total + at, n), 0);
        }
        total += size;
    }
    return total;
}

int peer_load_v2(struct peer *p, const uint8_t *data, size_t size, uint32_t piece)
{
    int r = 0;

    for (size_t at = 0; r == 0 && at < size; at += piece) {
        uint32_t n = (uint32_t)(size - at < piece ? size - at : piece);
        struct vfmig_user_mig_data *req = malloc(8 + n);
        *req = (struct vfmig_user_mig_data){8 + n, n};
        memcpy(req + 1, data + at, n);
        r = peer_call(p, VFMIG_USER_MIG_DATA_WRITE, req, 8 + n);
        free(req);
    }
    return r;
}

int peer_load_v1(struct peer *p, const uint8_t *data, size_t size, uint32_t piece)
{
    int r = 0;

    for (size_t at = 0; r == 0 && at < size; at += piece) {
        uint32_t n = (uint32_t)(size - at < piece ? size - at : piece);
        uint64_t offset = peer_get(p, VFMIG_REGION_MIGRATION, 16, 8);
        r = peer_write(p, VFMIG_REGION_MIGRATION, offset, data + at, n);
        if (r == 0)
            r = peer_put(p, VFMIG_REGION_MIGRATION, 24, n, 8);
    }
    return r;
}

int peer_log_start(struct peer *p, uint64_t page_size, uint64_t iova, uint64_t length)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_log_start start;
        struct vfmig_user_log_range range;
    } VFMIG_PACKED req = {{sizeof(req), VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_START},
                          {page_size, length != 0, 0},
                          {iova, length}};
    return peer_call(p, VFMIG_USER_FEATURE, &req, sizeof(req) - (length ? 0 : sizeof(req.range)));
}

int peer_log_stop(struct peer *p)
{
    struct vfmig_user_feature head = {8, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_STOP};
    return peer_call(p, VFMIG_USER_FEATURE, &head, sizeof(head));
}

int peer_log_report(struct peer *p, uint64_t iova, uint64_t length, uint64_t page_size,
                    uint64_t *ret_bitmap)
{
    uint64_t pages = (length + page_size - 1) / page_size, bytes = (pages + 63) / 64 * 8;
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_log_report report;
    } VFMIG_PACKED req = {{(uint32_t)(32 + bytes), VFMIG_USER_FEATURE_GET | VFMIG_USER_F_LOG_REPORT},
                          {iova, length, page_size}};
    int r = peer_call(p, VFMIG_USER_FEATURE, &req, sizeof(req));

    if (r < 0)
        return r;
    assert_int_equal(p->reply_size, 32 + bytes);
    memcpy(ret_bitmap, p->reply + 32, bytes);
    r = 0;
    for (uint64_t i = 0; i < bytes / 8; i++)
        r += __builtin_popcountll(ret_bitmap[i]);
    return r;
}
