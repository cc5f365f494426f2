/* SPDX-License-Identifier: BSD-3-Clause */
/* Region access of 4 bytes through client and device server against the limit: a bare ping-pong
 * of messages of the same sizes between two processes over the same kind of socket. Once with both
 * processes on one core, once wherever the kernel puts them, which is decided anew for several
 * pairs of processes. The two take turns; of each the best turn counts, because what disturbs a
 * turn only makes it slower. Prints a JSON list of rows. */
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#include "target/user.h"
#include "vfmig/device.h"
#include "wire/proto.h"

#define STARTS   5u /* fresh pairs of processes: the kernel places each pair anew */
#define TURNS    40
#define ACCESSES 400u
#define BAR_SIZE 4096u
#define BYTES    4u

#define FIXED (sizeof(struct vfmig_user_header) + sizeof(struct vfmig_user_region_access))

static void place(bool one_core)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    for (int cpu = 0; cpu < (one_core ? 1 : CPU_SETSIZE); cpu++)
        CPU_SET(cpu, &set);
    need(sched_setaffinity(0, sizeof(set), &set) == 0, "sched_setaffinity");
}

/* ---- bare ---- */

static void all(int fd, void *buf, size_t size, bool out)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = out ? send(fd, (char *)buf + at, size - at, MSG_NOSIGNAL)
                        : recv(fd, (char *)buf + at, size - at, 0);
        if (n <= 0)
            _exit(0); /* the other side has ended */
        at += (size_t)n;
    }
}

struct bare {
    int fd;
    pid_t child;
    size_t request, reply;
};

static void bare_start(struct bare *bare, bool write)
{
    char buf[128] = {0};
    int fds[2];

    bare->request = FIXED + (write ? BYTES : 0);
    bare->reply = FIXED + (write ? 0 : BYTES);
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0, "socketpair");
    bare->child = fork();
    need(bare->child >= 0, "fork");
    if (bare->child == 0) {
        close(fds[0]);
        for (;;) {
            all(fds[1], buf, bare->request, false);
            all(fds[1], buf, bare->reply, true);
        }
    }
    close(fds[1]);
    bare->fd = fds[0];
}

static double bare_turn(struct bare *bare)
{
    char buf[128] = {0};
    double begin = now_s();

    for (unsigned i = 0; i < ACCESSES; i++) {
        all(bare->fd, buf, bare->request, true);
        all(bare->fd, buf, bare->reply, false);
    }
    return ACCESSES / (now_s() - begin);
}

/* ---- ours ---- */

static uint32_t reg;

static int reg_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    memcpy(data, &reg, size < sizeof(reg) ? size : sizeof(reg));
    return 0;
}

static int reg_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    memcpy(&reg, data, size < sizeof(reg) ? size : sizeof(reg));
    return 0;
}

static void serve(const char *path, int ready)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;
    struct vfmig_device *dev;

    config.bars[0].size = BAR_SIZE;
    ops.region_read = reg_read;
    ops.region_write = reg_write;
    need(vfmig_device_new(&config, &ops, NULL, &dev, NULL) == 0, "device");
    need(vfmig_device_listen(dev, path, NULL) == 0, "listen");
    need(write(ready, "", 1) == 1, "pipe");
    vfmig_device_run(dev, NULL);
    _exit(0);
}

static struct vfmig_target *target_start(const char *path, pid_t *ret_child)
{
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
    if (vfmig_user_open(path, NULL, &target, &error) < 0) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    return target;
}

static double our_turn(struct vfmig_target *t, bool write)
{
    uint32_t value = 1;
    double begin = now_s();

    for (unsigned i = 0; i < ACCESSES; i++) {
        int r = write ? t->ops->region_write(t, 0, 0, &value, BYTES, false, NULL)
                      : t->ops->region_read(t, 0, 0, &value, BYTES, NULL);
        need(r == 0, "region access");
    }
    return ACCESSES / (now_s() - begin);
}

/* ---- rows ---- */

static double greater(double a, double b)
{
    return a > b ? a : b;
}

static void pair(const char *path, bool write, double *ours, double *limit)
{
    struct bare bare;
    pid_t child;

    bare_start(&bare, write);
    struct vfmig_target *target = target_start(path, &child);
    for (int turn = 0; turn < TURNS; turn++) {
        *limit = greater(*limit, bare_turn(&bare));
        *ours = greater(*ours, our_turn(target, write));
    }
    target->ops->close(target);
    close(bare.fd);
    kill(child, SIGTERM);
    waitpid(child, NULL, 0);
    waitpid(bare.child, NULL, 0);
    unlink(path);
}

static void row(const char *path, bool write, bool one_core)
{
    double ours = 0, limit = 0;

    place(one_core); /* children inherit it */
    for (unsigned i = 0; i < STARTS; i++)
        pair(path, write, &ours, &limit);
    printf("{\"name\": \"region-%s-%s\", \"unit\": \"1/s\", \"ours\": %.0f, \"limit\": %.0f, "
           "\"ratio\": %.3f, \"floor\": 0.85}",
           write ? "write" : "read", one_core ? "one-core" : "unpinned", ours, limit, ours / limit);
}

int main(int argc, char **argv)
{
    char dir[] = "/tmp/vfmig-bench-XXXXXX", path[64];

    need(mkdtemp(dir) != NULL, "mkdtemp");
    snprintf(path, sizeof(path), "%s/device", dir);
    for (unsigned i = 0; i < 4; i++) {
        printf("%s", i ? ",\n " : "[");
        row(path, i % 2, i < 2);
        fflush(stdout);
    }
    printf("]\n");
    rmdir(dir);
    return 0;
}
