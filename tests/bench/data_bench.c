/* SPDX-License-Identifier: BSD-3-Clause */
/* Device data between a device server and a client in another process: 256 MiB of state, more than
 * any cache holds. By message against a bare unix stream that carries as many bytes between two
 * processes, from and to the same places, in calls of the best of three sizes; by window, in portions of 16 MiB, against memcpy of as
 * many bytes in as large portions. Ours and the limit take turns; medians are compared. Prints a
 * JSON list of rows. */
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

#define MIB      (1u << 20)
#define STATE    ((size_t)256 * MIB)
#define PORTION  (16u * MIB)
#define MESSAGE  MIB
#define TURNS    11
#define STREAM   (STATE + 4 * MIB) /* the state with what frames it */
#define STATE_NS UINT64_C(30000000000)

/* Memory that is there: no page fault is measured. */
static uint8_t *memory(size_t size)
{
    uint8_t *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    need(m != MAP_FAILED, "mmap");
    for (size_t at = 0; at < size; at += 8)
        memcpy(m + at, &(uint64_t){at * UINT64_C(0x9e3779b97f4a7c15)}, 8);
    return m;
}

static void all(int fd, uint8_t *data, size_t size, size_t step, bool out)
{
    for (size_t at = 0; at < size;) {
        size_t most = size - at < step ? size - at : step;
        ssize_t n = out ? send(fd, data + at, most, MSG_NOSIGNAL) : recv(fd, data + at, most, 0);
        if (n <= 0)
            _exit(0); /* the other side has ended */
        at += (size_t)n;
    }
}

/* ---- the device ---- */

static uint8_t *state;
static size_t save_at, load_at;

static int save_begin(void *user, bool running)
{
    save_at = 0;
    return 0;
}

static ssize_t save(void *user, void *buf, size_t size)
{
    size_t n = size < STATE - save_at ? size : STATE - save_at;

    memcpy(buf, state + save_at, n);
    save_at += n;
    return (ssize_t)n;
}

static void reset(void *user)
{
    load_at = 0;
}

static int load(void *user, const void *data, size_t size)
{
    if (size > STATE - load_at)
        return -1;
    memcpy(state + load_at, data, size);
    load_at += size;
    return 0;
}

static void serve_device(const char *path, int ready)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;
    struct vfmig_device *dev;

    config.window_bytes = PORTION;
    config.window_count = 2;
    config.save_writes_only = true;
    ops.save_begin = save_begin;
    ops.save = save;
    ops.load = load;
    ops.reset = reset;
    need(vfmig_device_new(&config, &ops, NULL, &dev, NULL) == 0, "device");
    need(vfmig_device_listen(dev, path, NULL) == 0, "listen");
    need(write(ready, "", 1) == 1, "pipe");
    vfmig_device_run(dev, NULL);
    _exit(0);
}

struct bare_command {
    size_t step; /* bytes in one call */
    bool write;  /* to the server's state, else from it */
};

static const size_t steps[] = {64u << 10, 256u << 10, MESSAGE};
#define STEPS (sizeof(steps) / sizeof(steps[0]))

/* The bare stream: for each command the state is sent or received. */
static void serve_bare(int fd)
{
    struct bare_command command;

    while (recv(fd, &command, sizeof(command), MSG_WAITALL) == sizeof(command)) {
        all(fd, state, STATE, command.step, !command.write);
        if (command.write)
            all(fd, (uint8_t *)&command, 1, 1, true);
    }
    _exit(0);
}

/* ---- the client ---- */

struct bench {
    char path[64];
    pid_t device, bare;
    int bare_fd;
    uint8_t *stream;  /* a whole save, to be loaded */
    size_t stream_size;
    uint8_t *buffer;  /* of a portion */
    uint8_t *local;   /* as much as the state, for memcpy */
    uint8_t *portions[2];
};

static void start(struct bench *b)
{
    int ready[2], pair[2];
    char byte;

    need(pipe(ready) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    b->device = fork();
    if (b->device == 0) {
        state = memory(STATE);
        serve_device(b->path, ready[1]);
    }
    b->bare = fork();
    if (b->bare == 0) {
        close(pair[0]);
        state = memory(STATE);
        serve_bare(pair[1]);
    }
    need(b->device > 0 && b->bare > 0, "fork");
    close(pair[1]);
    b->bare_fd = pair[0];
    need(read(ready[0], &byte, 1) == 1, "the device server");
    close(ready[0]);
    close(ready[1]);
    b->stream = memory(STREAM);
    b->buffer = memory(2 * PORTION + 4096);
    b->local = memory(STATE);
    for (unsigned i = 0; i < 2; i++)
        b->portions[i] = memory(PORTION);
}

static struct vfmig_target *open_target(const struct bench *b, enum vfmig_dialect dialect,
                                        bool windows)
{
    const struct vfmig_user_options opt = {.dialect = dialect, .no_window = !windows};
    struct vfmig_target *t;
    struct vfmig_error error;

    if (vfmig_user_open(b->path, &opt, &t, &error) < 0) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    return t;
}

static void go(struct vfmig_target *t, enum vfmig_state to)
{
    struct vfmig_error error;

    if (t->ops->set_state(t, to, STATE_NS, &error) < 0) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
}

enum how { BY_COPY, IN_PLACE };

/* One whole save; seconds. keep: for loading. */
static double save_turn(struct bench *b, struct vfmig_target *t, enum how how, size_t most,
                        uint8_t *keep)
{
    const void *data = b->buffer;
    size_t total = 0;
    ssize_t n;

    go(t, VFMIG_STATE_STOP_COPY);
    double begin = now_s();
    while ((n = how == IN_PLACE ? t->ops->save_in_place(t, &data, most, NULL)
                                : t->ops->save(t, b->buffer, most, NULL)) > 0) {
        need(total + (size_t)n <= STREAM, "more than the state");
        if (keep)
            memcpy(keep + total, data, (size_t)n);
        total += (size_t)n;
    }
    double took = now_s() - begin;
    need(n == 0 && total > STATE, "save");
    if (keep)
        b->stream_size = total;
    go(t, VFMIG_STATE_RUNNING);
    return took;
}

static double load_turn(struct bench *b, struct vfmig_target *t, size_t most)
{
    go(t, VFMIG_STATE_RESUMING);
    double begin = now_s();
    for (size_t at = 0; at < b->stream_size; at += most) {
        size_t n = b->stream_size - at < most ? b->stream_size - at : most;
        need(t->ops->load(t, b->stream + at, n, NULL) == 0, "load");
    }
    double took = now_s() - begin;
    go(t, VFMIG_STATE_RUNNING); /* whole and right, or this fails */
    return took;
}

static double bare_turn(struct bench *b, bool write, size_t step)
{
    struct bare_command command = {.step = step, .write = write};
    double begin = now_s();

    all(b->bare_fd, (uint8_t *)&command, sizeof(command), sizeof(command), true);
    if (write) {
        all(b->bare_fd, b->stream, STATE, step, true);
        all(b->bare_fd, (uint8_t *)&command, 1, 1, false);
    } else {
        for (size_t at = 0; at < STATE; at += MESSAGE)
            all(b->bare_fd, b->buffer, MESSAGE, step, false);
    }
    return now_s() - begin;
}

static double memcpy_turn(struct bench *b)
{
    double begin = now_s();

    for (size_t at = 0, i = 0; at < STATE; at += PORTION, i ^= 1) {
        memcpy(b->portions[i], b->local + at, PORTION);
        __asm__ volatile("" : : "r"(b->portions[i]) : "memory");
    }
    return now_s() - begin;
}

/* ---- rows ---- */

enum row { READ, WRITE, STAGED, DIRECT, SHARED, ROWS };

static const struct {
    const char *name;
    enum vfmig_dialect dialect;
    bool windows;
    double floor;
} rows[ROWS] = {
    [READ] = {"mig-data-read", VFMIG_DIALECT_FEATURE, false, 0.8},
    [WRITE] = {"mig-data-write", VFMIG_DIALECT_FEATURE, false, 0.8},
    [STAGED] = {"window-staged", VFMIG_DIALECT_REGION, true, 0.3},
    [DIRECT] = {"window-direct", VFMIG_DIALECT_REGION, true, 0.6},
    [SHARED] = {"window-shared", VFMIG_DIALECT_FEATURE, true, 0.6},
};

static double our_turn(struct bench *b, struct vfmig_target *t, enum row row)
{
    switch (row) {
    case READ:
        return save_turn(b, t, BY_COPY, MESSAGE, NULL);
    case WRITE:
        return load_turn(b, t, MESSAGE);
    case STAGED:
        return save_turn(b, t, BY_COPY, 2 * PORTION + 4096, NULL);
    default:
        return save_turn(b, t, IN_PLACE, PORTION, NULL);
    }
}

static void measure(struct bench *b, enum row row)
{
    double ours[TURNS], limit[STEPS][TURNS];
    unsigned limits = row <= WRITE ? STEPS : 1;
    struct vfmig_target *t = open_target(b, rows[row].dialect, rows[row].windows);

    if (!b->stream_size)
        save_turn(b, t, BY_COPY, 2 * PORTION + 4096, b->stream);
    our_turn(b, t, row); /* warm: pages of windows and sockets are there */
    for (unsigned i = 0; i < TURNS; i++) {
        for (unsigned s = 0; s < limits; s++)
            limit[s][i] = row <= WRITE ? bare_turn(b, row == WRITE, steps[s]) : memcpy_turn(b);
        ours[i] = our_turn(b, t, row);
    }
    t->ops->close(t);
    double our = (double)STATE / median(ours, TURNS), bound = 0;
    for (unsigned s = 0; s < limits; s++) {
        double speed = (double)STATE / median(limit[s], TURNS);
        bound = speed > bound ? speed : bound;
    }
    printf("{\"name\": \"%s\", \"unit\": \"MB/s\", \"ours\": %.0f, \"limit\": %.0f, "
           "\"ratio\": %.3f, \"floor\": %.1f}",
           rows[row].name, our / 1e6, bound / 1e6, our / bound, rows[row].floor);
}

int main(int argc, char **argv)
{
    struct bench b = {.stream_size = 0};
    char dir[] = "/tmp/vfmig-bench-XXXXXX";

    need(mkdtemp(dir) != NULL, "mkdtemp");
    snprintf(b.path, sizeof(b.path), "%s/device", dir);
    start(&b);
    for (enum row row = 0; row < ROWS; row++) {
        if (argc > 1 && strcmp(argv[1], rows[row].name) != 0)
            continue;
        printf("%s", row && argc == 1 ? ",\n " : "[");
        measure(&b, row);
        fflush(stdout);
    }
    printf("]\n");
    kill(b.device, SIGTERM);
    close(b.bare_fd);
    waitpid(b.device, NULL, 0);
    waitpid(b.bare, NULL, 0);
    unlink(b.path);
    rmdir(dir);
    return 0;
}
