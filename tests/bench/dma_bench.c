/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA_MAP and DMA by message, through client and device server, against the limit: bare processes
 * that exchange messages of the same bytes over the same kind of socket at the same placement, with
 * the descriptor by SCM_RIGHTS where ours has one. Bytes of the limit are sent from and received
 * into the memory where they belong. Of two ways to receive, in a call that blocks and in one that
 * follows poll, the better one is the limit: which that is depends on size and placement. All take
 * turns, on several fresh pairs of processes; medians are compared. Prints a JSON list of
 * rows; with the name of a row, that one alone. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#include "target/user.h"
#include "vfmig/device.h"
#include "wire/proto.h"

#define STARTS 3u /* fresh pairs of processes */
#define TURNS  15u
#define VALUES (STARTS * TURNS)

#define MAPS     256u /* pairs of DMA_MAP and DMA_UNMAP in a turn */
#define RAM_IOVA UINT64_C(0x40000000)
#define RAM_SIZE (64u << 20) /* beyond the cache; its lower half is copied to the upper one */
#define HALF     (RAM_SIZE / 2)

#define HEAD      sizeof(struct vfmig_user_header)
#define MAP_BYTES (HEAD + sizeof(struct vfmig_user_dma_map))
#define UN_BYTES  (HEAD + sizeof(struct vfmig_user_dma_unmap))
#define DMA_FIXED (HEAD + sizeof(struct vfmig_user_dma_access))

static uint8_t *ram; /* the client's */
static int ram_fd;

/* One core for all: what a wake-up costs does not depend on where the kernel puts whom. */
static void place(void)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(0, &set);
    need(sched_setaffinity(0, sizeof(set), &set) == 0, "sched_setaffinity");
}

/* A child process that ends itself; the parent goes on with 0. */
static bool spawn(pid_t *ret_child)
{
    *ret_child = fork();
    need(*ret_child >= 0, "fork");
    return *ret_child == 0;
}

static void reap(pid_t child)
{
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

/* ---- bare: bytes ---- */

#define WAYS 2u
static bool polls; /* the way of this process */

/* True: there is nothing to wait for in a receive, which takes what is there. */
static bool wait_input(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return polls && poll(&p, 1, -1) == 1;
}

static ssize_t take(int fd, struct msghdr *msg)
{
    return recvmsg(fd, msg, MSG_CMSG_CLOEXEC | (wait_input(fd) ? MSG_DONTWAIT : MSG_WAITALL));
}

static void all(int fd, void *buf, size_t size, bool out)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = out ? send(fd, (char *)buf + at, size - at, MSG_NOSIGNAL)
                        : recv(fd, (char *)buf + at, size - at,
                               wait_input(fd) ? MSG_DONTWAIT : MSG_WAITALL);
        if (n <= 0)
            _exit(0); /* the other side has ended */
        at += (size_t)n;
    }
}

/* A header and data in one call, as long as the socket takes and has them. */
static void both(int fd, void *head, size_t head_size, void *data, size_t data_size, bool out)
{
    struct iovec iov[2] = {{head, head_size}, {data, data_size}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
    ssize_t n = out ? sendmsg(fd, &msg, MSG_NOSIGNAL) : take(fd, &msg);

    if (n <= 0)
        _exit(0);
    if ((size_t)n < head_size) {
        all(fd, (char *)head + n, head_size - (size_t)n, out);
        n = (ssize_t)head_size;
    }
    size_t done = (size_t)n - head_size;
    all(fd, (char *)data + done, data_size - done, out);
}

/* One message with a descriptor: sent, or received and closed. */
static void with_fd(int fd, void *buf, size_t size, bool out)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {buf, size};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof(control)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    if (out)
        memcpy(CMSG_DATA(c), &ram_fd, sizeof(int));
    ssize_t n = out ? sendmsg(fd, &msg, MSG_NOSIGNAL) : take(fd, &msg);
    if (n != (ssize_t)size)
        _exit(0);
    if (!out) {
        int got;
        memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(got));
        close(got);
    }
}

struct bare {
    bool polls;
    int fd;         /* dma-map: the client's end */
    int go, result; /* message-dma: pipes of the device */
    pid_t child[2];
};

/* ---- bare: map ---- */

static void bare_map_start(struct bare *bare, bool descriptor)
{
    char buf[128] = {0};
    int fds[2];

    polls = bare->polls;
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0, "socketpair");
    if (spawn(&bare->child[0])) {
        close(fds[0]);
        for (;;) {
            if (descriptor)
                with_fd(fds[1], buf, MAP_BYTES, false);
            else
                all(fds[1], buf, MAP_BYTES, false);
            all(fds[1], buf, HEAD, true);
            all(fds[1], buf, UN_BYTES, false);
            all(fds[1], buf, UN_BYTES, true);
        }
    }
    close(fds[1]);
    bare->fd = fds[0];
}

static double bare_map_turn(struct bare *bare, bool descriptor)
{
    char buf[128] = {0};
    double begin = now_s();

    polls = bare->polls;
    for (unsigned i = 0; i < MAPS; i++) {
        if (descriptor)
            with_fd(bare->fd, buf, MAP_BYTES, true);
        else
            all(bare->fd, buf, MAP_BYTES, true);
        all(bare->fd, buf, HEAD, false);
        all(bare->fd, buf, UN_BYTES, true);
        all(bare->fd, buf, UN_BYTES, false);
    }
    return MAPS / (now_s() - begin);
}

/* ---- bare: messages ---- */

/* Where the next read goes from, or the write behind it goes to. */
static uint64_t offset_of(uint64_t step, uint32_t size)
{
    return step / 2 * size % HALF + (step % 2 ? HALF : 0);
}

static uint32_t ops_of(uint32_t size)
{
    return size > 65536 ? 16 : 512;
}

static void bare_client(int fd, uint32_t size)
{
    char head[DMA_FIXED] = {0};

    for (uint64_t step = 0;; step++) {
        uint8_t *at = ram + offset_of(step, size);
        if (step % 2 == 0) {
            all(fd, head, DMA_FIXED, false);
            both(fd, head, DMA_FIXED, at, size, true);
        } else {
            both(fd, head, DMA_FIXED, at, size, false);
            all(fd, head, DMA_FIXED, true);
        }
    }
}

static void bare_device(int fd, int go, int result, uint32_t size)
{
    char head[DMA_FIXED] = {0}, byte;
    uint8_t *buf = malloc(size);

    need(buf != NULL, "malloc");
    while (read(go, &byte, 1) == 1) {
        double begin = now_s();
        for (uint32_t i = 0; i < ops_of(size); i++) {
            if (i % 2 == 0) {
                all(fd, head, DMA_FIXED, true);
                both(fd, head, DMA_FIXED, buf, size, false);
            } else {
                both(fd, head, DMA_FIXED, buf, size, true);
                all(fd, head, DMA_FIXED, false);
            }
        }
        double rate = ops_of(size) / (now_s() - begin);
        need(write(result, &rate, sizeof(rate)) == sizeof(rate), "pipe");
    }
    _exit(0);
}

static void bare_dma_start(struct bare *bare, uint32_t size)
{
    int fds[2], go[2], result[2];

    polls = bare->polls;
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0, "socketpair");
    need(pipe(go) == 0 && pipe(result) == 0, "pipe");
    if (spawn(&bare->child[0])) {
        close(fds[1]);
        bare_client(fds[0], size);
    }
    if (spawn(&bare->child[1])) {
        close(fds[0]);
        close(go[1]);
        bare_device(fds[1], go[0], result[1], size);
    }
    close(fds[0]);
    close(fds[1]);
    close(go[0]);
    close(result[1]);
    bare->go = go[1];
    bare->result = result[0];
}

static double bare_dma_turn(struct bare *bare)
{
    double rate;

    need(write(bare->go, "", 1) == 1, "pipe");
    need(read(bare->result, &rate, sizeof(rate)) == sizeof(rate), "the bare device");
    return rate;
}

/* ---- ours: the device ---- */

/* A doorbell starts a turn of reads and writes one after the other, on the serving thread. */
static struct {
    struct vfmig_device *dev;
    struct vfmig_dma dma;
    uint32_t size, left;
    uint64_t step;
    double begin;
    uint8_t *buf;
    int result;
} chain;

static void next(void);

static void done(void *user, int err)
{
    need(err == 0, "DMA by message");
    vfmig_dma_end(&chain.dma);
    chain.step++;
    if (--chain.left) {
        next();
        return;
    }
    double rate = ops_of(chain.size) / (now_s() - chain.begin);
    need(write(chain.result, &rate, sizeof(rate)) == sizeof(rate), "pipe");
}

static void next(void)
{
    uint64_t iova = RAM_IOVA + offset_of(chain.step, chain.size);

    need(vfmig_device_dma_begin(chain.dev, &chain.dma) == 0, "dma_begin");
    int r = chain.step % 2
                ? vfmig_dma_write_async(&chain.dma, iova, chain.buf, chain.size, done, NULL)
                : vfmig_dma_read_async(&chain.dma, iova, chain.buf, chain.size, done, NULL);
    need(r == -EINPROGRESS, "a DMA that needs no message");
}

static int doorbell(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    chain.left = ops_of(chain.size);
    chain.begin = now_s();
    next();
    return 0;
}

static void serve(const char *path, int ready, int result, uint32_t size)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    chain.size = size;
    chain.result = result;
    chain.buf = malloc(size);
    need(chain.buf != NULL, "malloc");
    config.bars[0].size = 4096;
    ops.region_write = doorbell;
    need(vfmig_device_new(&config, &ops, NULL, &chain.dev, NULL) == 0, "device");
    need(vfmig_device_listen(chain.dev, path, NULL) == 0, "listen");
    need(write(ready, "", 1) == 1, "pipe");
    vfmig_device_run(chain.dev, NULL);
    _exit(0);
}

/* ---- ours: the client ---- */

struct ours {
    struct vfmig_target *target;
    int result;
    pid_t child;
};

static void ours_start(struct ours *ours, const char *path, uint32_t size)
{
    static struct vfmig_ram_block block;
    static const struct vfmig_memory memory = {&block, 1};
    const struct vfmig_user_options opt = {.memory = &memory};
    struct vfmig_error error;
    int ready[2], result[2];
    char byte;

    block = (struct vfmig_ram_block){RAM_IOVA, RAM_SIZE, ram, ram_fd, 0};
    need(pipe(ready) == 0 && pipe(result) == 0, "pipe");
    if (spawn(&ours->child))
        serve(path, ready[1], result[1], size);
    need(read(ready[0], &byte, 1) == 1, "the device server");
    close(ready[0]);
    close(ready[1]);
    close(result[1]);
    ours->result = result[0];
    if (vfmig_user_open(path, &opt, &ours->target, &error) < 0) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    if (size)
        need(ours->target->ops->dma_map(ours->target, RAM_IOVA, RAM_SIZE, -1, 0, 3, NULL) == 0,
             "DMA_MAP");
}

static void ours_end(struct ours *ours, const char *path)
{
    ours->target->ops->close(ours->target);
    close(ours->result);
    reap(ours->child);
    unlink(path);
}

static double our_map_turn(struct vfmig_target *t, bool descriptor)
{
    int fd = descriptor ? ram_fd : -1;
    double begin = now_s();

    for (unsigned i = 0; i < MAPS; i++) {
        need(t->ops->dma_map(t, RAM_IOVA, RAM_SIZE, fd, 0, 3, NULL) == 0, "DMA_MAP");
        need(t->ops->dma_unmap(t, RAM_IOVA, RAM_SIZE, NULL) == 0, "DMA_UNMAP");
    }
    return MAPS / (now_s() - begin);
}

static double our_dma_turn(struct ours *ours)
{
    struct vfmig_target *t = ours->target;
    uint32_t go = 1;
    double rate;

    need(t->ops->region_write(t, 0, 0, &go, sizeof(go), false, NULL) == 0, "the doorbell");
    need(read(ours->result, &rate, sizeof(rate)) == sizeof(rate), "the device");
    return rate;
}

/* ---- rows ---- */

static const struct row {
    const char *name;
    bool descriptor;
    uint32_t size; /* of a message; 0: DMA_MAP */
    double floor;
} rows[] = {
    {"dma-map", false, 0, 0.7},
    {"dma-map-fd", true, 0, 0.5},
    {"message-dma-4k", false, 4096, 0.7},
    {"message-dma-1m", false, 1u << 20, 0.6},
};

static void print_row(const struct row *row, double *ours, double limits[][VALUES])
{
    double us = median(ours, VALUES), limit = 0;

    for (unsigned way = 0; way < WAYS; way++) {
        double middle = median(limits[way], VALUES);
        limit = middle > limit ? middle : limit;
    }
    printf("{\"name\": \"%s\", \"unit\": \"1/s\", \"ours\": %.0f, \"limit\": %.0f, "
           "\"ratio\": %.3f, \"floor\": %.2f}",
           row->name, us, limit, us / limit, row->floor);
    fflush(stdout);
}

static void map_row(const char *path, const struct row *row)
{
    double ours[VALUES], limits[WAYS][VALUES];

    for (unsigned i = 0; i < VALUES;) {
        struct bare bare[WAYS] = {{.polls = false}, {.polls = true}};
        struct ours us;
        for (unsigned way = 0; way < WAYS; way++)
            bare_map_start(&bare[way], row->descriptor);
        ours_start(&us, path, 0);
        for (unsigned turn = 0; turn < TURNS; turn++, i++) {
            ours[i] = our_map_turn(us.target, row->descriptor);
            for (unsigned way = 0; way < WAYS; way++)
                limits[way][i] = bare_map_turn(&bare[way], row->descriptor);
        }
        ours_end(&us, path);
        for (unsigned way = 0; way < WAYS; way++) {
            close(bare[way].fd);
            reap(bare[way].child[0]);
        }
    }
    print_row(row, ours, limits);
}

static void clear_copy(void)
{
    memset(ram + HALF, 0x55, HALF);
}

static void check_copy(uint64_t ops, uint32_t size)
{
    uint64_t bytes = ops / 2 * size;

    need(memcmp(ram, ram + HALF, bytes < HALF ? bytes : HALF) == 0, "memory arrived wrong");
}

static void dma_row(const char *path, const struct row *row)
{
    double ours[VALUES], limits[WAYS][VALUES];

    for (unsigned i = 0; i < VALUES;) {
        struct bare bare[WAYS] = {{.polls = false}, {.polls = true}};
        struct ours us;
        clear_copy();
        for (unsigned way = 0; way < WAYS; way++)
            bare_dma_start(&bare[way], row->size);
        ours_start(&us, path, row->size);
        for (unsigned turn = 0; turn < TURNS; turn++, i++) {
            ours[i] = our_dma_turn(&us);
            if (turn == 0) /* the bare ones have not copied yet */
                check_copy(ops_of(row->size), row->size);
            for (unsigned way = 0; way < WAYS; way++)
                limits[way][i] = bare_dma_turn(&bare[way]);
        }
        check_copy((uint64_t)ops_of(row->size) * TURNS, row->size);
        ours_end(&us, path);
        for (unsigned way = 0; way < WAYS; way++) {
            close(bare[way].go);
            close(bare[way].result);
            reap(bare[way].child[0]);
            reap(bare[way].child[1]);
        }
    }
    print_row(row, ours, limits);
}

int main(int argc, char **argv)
{
    char dir[] = "/tmp/vfmig-bench-XXXXXX", path[64];
    const char *before = "[";

    ram_fd = memfd_create("ram", MFD_CLOEXEC);
    need(ram_fd >= 0 && ftruncate(ram_fd, RAM_SIZE) == 0, "memfd");
    ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ram_fd, 0);
    need(ram != MAP_FAILED, "mmap");
    for (uint32_t i = 0; i < RAM_SIZE; i += 4)
        memcpy(ram + i, &(uint32_t){i * 2654435761u}, 4);
    need(mkdtemp(dir) != NULL, "mkdtemp");
    snprintf(path, sizeof(path), "%s/device", dir);
    place(); /* children inherit it */
    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct row *row = &rows[i];
        if (argc > 1 && strcmp(argv[1], row->name) != 0)
            continue;
        printf("%s", before);
        before = ",\n ";
        if (row->size)
            dma_row(path, row);
        else
            map_row(path, row);
    }
    printf("]\n");
    rmdir(dir);
    return 0;
}
