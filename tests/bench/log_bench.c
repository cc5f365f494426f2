/* SPDX-License-Identifier: BSD-3-Clause */
/* A report of the DMA log of 4 GiB in 4 KiB pages (a bitmap of 128 KiB) at 0, 1 and 100 % dirty,
 * through client and device server, against the limit: a bare request and reply of the same bytes
 * between two processes over the same kind of socket. Client and servers have a core each where
 * there are two. What makes pages dirty is a round trip before each report that is not timed; the bare
 * exchange has one before it too, or it would pay for a server's core that fell asleep and ours would
 * not. The bare processes receive in two ways, in a call that blocks and in one that follows poll,
 * and the better median is the limit. All take turns, in every order. Prints a JSON list of rows. */
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

#include "base/bitmap.h"
#include "device/internal.h"
#include "target/user.h"
#include "wire/proto.h"

#define TURNS    500u
#define WARM     20u
#define SPAN     (UINT64_C(4) << 30)
#define PAGES    (SPAN / 4096)
#define IOVA     (UINT64_C(1) << 32)
#define BAR_SIZE 4096u
#define REQUEST  (sizeof(struct vfmig_user_header) + sizeof(struct vfmig_user_feature) + \
                  sizeof(struct vfmig_user_feature_log_report))
#define REPLY    (REQUEST + PAGES / 8)
#define WAYS     2u /* of the bare processes to receive */

static void place(unsigned which)
{
    cpu_set_t have, set;

    need(sched_getaffinity(0, sizeof(have), &have) == 0, "sched_getaffinity");
    if (CPU_COUNT(&have) < 2)
        return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &have) && which-- == 0) {
            CPU_ZERO(&set);
            CPU_SET(cpu, &set);
            need(sched_setaffinity(0, sizeof(set), &set) == 0, "sched_setaffinity");
            return;
        }
}

/* ---- bare ---- */

struct bare {
    int fd;
    pid_t child;
    bool polls;
};

static void send_all(int fd, const uint8_t *buf, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = send(fd, buf + at, size - at, MSG_NOSIGNAL);
        if (n <= 0)
            _exit(0); /* the other side has ended */
        at += (size_t)n;
    }
}

static void receive_all(const struct bare *bare, uint8_t *buf, size_t size)
{
    struct pollfd p = {.fd = bare->fd, .events = POLLIN};

    for (size_t at = 0; at < size;) {
        if (bare->polls && poll(&p, 1, -1) != 1)
            _exit(0);
        ssize_t n = recv(bare->fd, buf + at, size - at, 0);
        if (n <= 0)
            _exit(0);
        at += (size_t)n;
    }
}

static uint8_t bare_buf[REPLY];

/* The first byte of a request says whether the reply is whole or as short as the request. */
static void bare_serve(const struct bare *bare)
{
    uint8_t request[REQUEST];

    place(1);
    memset(bare_buf, 0x55, sizeof(bare_buf));
    for (;;) {
        receive_all(bare, request, sizeof(request));
        send_all(bare->fd, bare_buf, request[0] ? REPLY : REQUEST);
    }
}

static void bare_start(struct bare *bare, bool polls)
{
    int fds[2];

    need(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0, "socketpair");
    *bare = (struct bare){.fd = fds[1], .polls = polls, .child = fork()};
    need(bare->child >= 0, "fork");
    if (bare->child == 0) {
        close(fds[0]);
        bare_serve(bare);
    }
    close(fds[1]);
    bare->fd = fds[0];
}

static void bare_call(const struct bare *bare, bool whole)
{
    const uint8_t request[REQUEST] = {whole};

    send_all(bare->fd, request, sizeof(request));
    receive_all(bare, bare_buf, whole ? REPLY : REQUEST);
}

static double bare_turn(const struct bare *bare)
{
    bare_call(bare, false);
    memset(bare_buf, 0, sizeof(bare_buf)); /* as our bitmap */
    uint64_t begin = now_ns();
    bare_call(bare, true);
    return (double)(now_ns() - begin) * 1e-3;
}

static void bare_end(const struct bare *bare)
{
    close(bare->fd);
    waitpid(bare->child, NULL, 0);
}

/* ---- ours ---- */

static struct vfmig_device *dev;

/* A register that makes so many percent of all pages dirty, scattered. */
static int make_dirty(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    uint64_t percent = 0, seed = 1;

    memcpy(&percent, data, size < sizeof(percent) ? size : sizeof(percent));
    if (percent == 100) {
        log_mark(dev, IOVA, SPAN);
        return 0;
    }
    for (uint64_t i = 0; i < PAGES * percent / 100; i++) {
        seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        log_mark(dev, IOVA + (seed >> 33) % PAGES * 4096, 8);
    }
    return 0;
}

static ssize_t save(void *user, void *buf, size_t size)
{
    return 0;
}

static int load(void *user, const void *data, size_t size)
{
    return 0;
}

static void serve(const char *path, int ready)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    place(1);
    config.bars[0].size = BAR_SIZE;
    ops.region_write = make_dirty;
    ops.save = save;
    ops.load = load;
    need(vfmig_device_new(&config, &ops, NULL, &dev, NULL) == 0, "device");
    need(vfmig_device_listen(dev, path, NULL) == 0, "listen");
    need(write(ready, "", 1) == 1, "pipe");
    vfmig_device_run(dev, NULL);
    _exit(0);
}

static void need_target(int r, const struct vfmig_error *error)
{
    if (r < 0) {
        fprintf(stderr, "%s\n", error->text);
        exit(1);
    }
}

static struct vfmig_target *target_start(const char *path, pid_t *ret_child)
{
    const struct vfmig_iova_range range = {IOVA, SPAN};
    struct vfmig_target *target;
    struct vfmig_error error;
    int pipe_fds[2];
    char byte;

    need(pipe(pipe_fds) == 0, "pipe");
    *ret_child = fork();
    need(*ret_child >= 0, "fork");
    if (*ret_child == 0)
        serve(path, pipe_fds[1]);
    need(read(pipe_fds[0], &byte, 1) == 1, "the device server");
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    need_target(vfmig_user_open(path, NULL, &target, &error), &error);
    int fd = memfd_create("log-bench", MFD_CLOEXEC); /* never touched */
    need(fd >= 0 && ftruncate(fd, (off_t)SPAN) == 0, "memfd");
    need_target(target->ops->dma_map(target, IOVA, SPAN, fd, 0, 3, &error), &error);
    need_target(target->ops->log_start(target, 4096, &range, 1, &error), &error);
    close(fd);
    return target;
}

static uint64_t bitmap[PAGES / 64];

/* Sets *ret_bits to what was reported, which depends on percent alone. */
static double our_turn(struct vfmig_target *t, uint32_t percent, uint64_t *ret_bits)
{
    need(t->ops->region_write(t, 0, 0, &percent, sizeof(percent), false, NULL) == 0, "register");
    memset(bitmap, 0, sizeof(bitmap));
    uint64_t begin = now_ns();
    int r = t->ops->log_report(t, IOVA, SPAN, 4096, bitmap, NULL);
    double us = (double)(now_ns() - begin) * 1e-3;
    need(r == 0, "report");
    *ret_bits = vfmig_bitmap_count(bitmap, PAGES);
    return us;
}

/* ---- rows ---- */

static void row(struct vfmig_target *target, const struct bare *bare, uint32_t percent)
{
    static double ours[TURNS], limit[WAYS][TURNS];
    uint64_t bits = 0, first = 0;

    for (unsigned turn = 0; turn < WARM + TURNS; turn++) {
        unsigned at = turn < WARM ? 0 : turn - WARM;
        for (unsigned i = 0; i <= WAYS; i++) {
            unsigned who = (turn + i) % (WAYS + 1);
            if (who < WAYS)
                limit[who][at] = bare_turn(&bare[who]);
            else
                ours[at] = our_turn(target, percent, &bits);
        }
        first = turn ? first : bits;
        if (bits != first || (percent == 0) != (bits == 0) || (percent == 100) != (bits == PAGES)) {
            fprintf(stderr, "%u %%: a report of %llu pages\n", percent, (unsigned long long)bits);
            exit(1);
        }
    }
    double our_us = median(ours, TURNS), blocks = median(limit[0], TURNS);
    double polls = median(limit[1], TURNS);
    double limit_us = blocks < polls ? blocks : polls;
    printf("{\"name\": \"log-report-4g-%u\", \"unit\": \"us\", \"ours\": %.1f, \"limit\": %.1f, "
           "\"ratio\": %.3f, \"ceiling\": 1.5}", percent, our_us, limit_us, our_us / limit_us);
}

int main(int argc, char **argv)
{
    static const uint32_t percents[] = {0, 1, 100};
    char dir[] = "/tmp/vfmig-bench-XXXXXX", path[64];
    struct bare bare[WAYS];
    pid_t child;

    need(mkdtemp(dir) != NULL, "mkdtemp");
    snprintf(path, sizeof(path), "%s/device", dir);
    for (unsigned i = 0; i < WAYS; i++)
        bare_start(&bare[i], i == 1);
    struct vfmig_target *target = target_start(path, &child);
    place(0);
    for (unsigned i = 0; i < 3; i++) {
        printf("%s", i ? ",\n " : "[");
        row(target, bare, percents[i]);
        fflush(stdout);
    }
    printf("]\n");
    target->ops->close(target);
    kill(child, SIGTERM);
    waitpid(child, NULL, 0);
    for (unsigned i = 0; i < WAYS; i++)
        kill(bare[i].child, SIGTERM);
    for (unsigned i = 0; i < WAYS; i++)
        bare_end(&bare[i]);
    unlink(path);
    rmdir(dir);
    return 0;
}
