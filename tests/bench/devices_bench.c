/* SPDX-License-Identifier: BSD-3-Clause */
/* N bulk devices in processes of their own, moved between two more over TCP loopback by the engine, with
 * a guest that is nothing but a page of memory: what is measured is the devices' part of a downtime.
 *
 *   devices-rate-8, -64   state saved and loaded at 100 MB/s: N devices against one
 *   devices-free-N        as fast as it goes, 16 MiB each: against bare processes that move as many
 *                         bytes in as many copies, plus the downtime of N devices with hardly any state
 *   devices-stateless-4   four devices with hardly any state: against the journal and the round trips
 *
 * Runs take turns, medians are compared. Prints a JSON list of rows. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#include "base/buffer.h"
#include "target/user.h"
#include "vfmig/migrate.h"

#define MIB      ((size_t)1 << 20)
#define STATE    (16 * MIB)
#define PIECE    MIB
#define MOST     64u
#define CHANNELS 2u
#define TURNS    5u

static char folder[64], vfmig[512];
static pid_t processes[2 * MOST];
static uint32_t process_count;

/* --- ours --- */

struct shape {
    uint32_t devices;
    const char *state, *rate; /* rate NULL: no limit */
};

static int nothing(void *opaque, struct vfmig_error *reterr)
{
    return 0;
}

static int state_save(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    return vfmig_buffer_append(out, "", 1);
}

static int state_load(void *opaque, const void *data, size_t size, struct vfmig_error *reterr)
{
    return 0;
}

static const struct vfmig_vm_ops vm_ops = {
    .size = sizeof(vm_ops), .version = VFMIG_VM_OPS_VERSION,
    .vcpus_stop = nothing, .vcpus_start = nothing, .state_save = state_save, .state_load = state_load,
};

static void socket_of(char path[128], char side, uint32_t i)
{
    snprintf(path, 128, "%s/%c%u", folder, side, i);
}

static void start_device(const struct shape *shape, char side, uint32_t i)
{
    char path[128];
    pid_t pid = fork();

    need(pid >= 0, "fork");
    socket_of(path, side, i);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a run that fails leaves nobody behind */
        execl(vfmig, vfmig, "device", "bulk", "--socket", path, "--state-size", shape->state,
              "--no-precopy", shape->rate ? "--save-rate" : NULL, shape->rate, "--load-rate",
              shape->rate, NULL);
        _exit(127);
    }
    processes[process_count++] = pid;
}

/* Prefaulted memory, targets, and the struct that names them. */
struct side {
    struct vfmig_vm vm;
    struct vfmig_ram_block block;
    struct vfmig_target *targets[MOST];
    const char *ids[MOST];
    char names[MOST][8];
};

static void open_side(struct side *side, char name, uint32_t count)
{
    side->block = (struct vfmig_ram_block){.size = MIB, .fd = -1};
    side->block.host = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(side->block.host != MAP_FAILED, "mmap");
    side->vm = (struct vfmig_vm){.ops = &vm_ops, .memory = {.blocks = &side->block, .block_count = 1},
                                 .devices = side->targets, .device_ids = side->ids,
                                 .device_count = count};
    for (uint32_t i = 0; i < count; i++) {
        static const struct vfmig_user_options options = {.dialect = VFMIG_DIALECT_FEATURE};
        struct vfmig_error error = {0};
        char path[128];
        int ret = -1;

        snprintf(side->names[i], sizeof(side->names[i]), "bulk%u", i);
        side->ids[i] = side->names[i];
        socket_of(path, name, i);
        /* The process has just been started. */
        for (unsigned again = 0; ret && again < 2000; again++) {
            ret = vfmig_user_open(path, &options, &side->targets[i], &error);
            if (ret)
                usleep(5000);
        }
        if (ret)
            fprintf(stderr, "%s: %s\n", path, error.text);
        need(ret == 0, "device");
    }
}

static void close_side(struct side *side)
{
    for (uint32_t i = 0; i < side->vm.device_count; i++)
        side->targets[i]->ops->close(side->targets[i]);
    munmap(side->block.host, MIB);
}

static struct vfmig_migrate_options options_of(const char *journal)
{
    return (struct vfmig_migrate_options){.journal_dir = journal, .channels = CHANNELS,
                                          .downtime_limit_ns = UINT64_C(60000000000)};
}

/* The destination's process: tells its port, stays until told to end. */
static void destination(uint32_t count, int up, int down)
{
    static struct side side;
    struct vfmig_migrate_options options;
    struct vfmig_destination *dest;
    struct vfmig_error error = {0};
    char journal[128], byte;
    uint16_t port;

    snprintf(journal, sizeof(journal), "%s/journal-b", folder);
    mkdir(journal, 0700);
    options = options_of(journal);
    open_side(&side, 'b', count);
    need(vfmig_destination_new(&side.vm, &options, &dest, &error) == 0 &&
             vfmig_destination_listen(dest, "tcp:127.0.0.1:0", &error) == 0, error.text);
    port = vfmig_destination_port(dest);
    need(write(up, &port, sizeof(port)) == sizeof(port), "pipe");
    need(read(down, &byte, 1) >= 0, "pipe");
    vfmig_destination_free(dest);
    close_side(&side);
    _exit(0);
}

static void clean(void)
{
    char command[160];

    for (uint32_t i = 0; i < process_count; i++)
        kill(processes[i], SIGTERM);
    for (uint32_t i = 0; i < process_count; i++)
        waitpid(processes[i], NULL, 0);
    process_count = 0;
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    need(system(command) == 0, command);
}

/* One migration: its report. */
static struct vfmig_progress move(const struct shape *shape)
{
    static struct side side;
    struct vfmig_migrate_options options;
    struct vfmig_source *source;
    struct vfmig_progress progress;
    struct vfmig_error error = {0};
    char journal[128], uri[64];
    int up[2], down[2];
    uint16_t port;

    snprintf(folder, sizeof(folder), "/tmp/vfmig-bench-XXXXXX");
    need(mkdtemp(folder), "mkdtemp");
    need(pipe2(up, O_CLOEXEC) == 0 && pipe2(down, O_CLOEXEC) == 0, "pipe");
    for (uint32_t i = 0; i < shape->devices; i++) {
        start_device(shape, 'a', i);
        start_device(shape, 'b', i);
    }
    pid_t pid = fork();
    need(pid >= 0, "fork");
    if (pid == 0) {
        close(down[1]);
        destination(shape->devices, up[1], down[0]);
    }
    close(up[1]);
    snprintf(journal, sizeof(journal), "%s/journal-a", folder);
    mkdir(journal, 0700);
    options = options_of(journal);
    open_side(&side, 'a', shape->devices);
    need(read(up[0], &port, sizeof(port)) == sizeof(port), "the destination");
    snprintf(uri, sizeof(uri), "tcp:127.0.0.1:%u", port);
    need(vfmig_source_new(&side.vm, &options, &source, &error) == 0 &&
             vfmig_source_start(source, uri, &error) == 0, error.text);
    if (vfmig_source_wait(source, UINT64_C(120000000000), &error)) {
        fprintf(stderr, "%u devices: %s\n", shape->devices, error.text);
        exit(1);
    }
    vfmig_source_status(source, &progress);
    vfmig_source_free(source);
    close_side(&side);
    close(down[1]);
    close(down[0]);
    close(up[0]);
    waitpid(pid, NULL, 0);
    clean();
    return progress;
}

static double downtime(const struct shape *shape)
{
    return (double)move(shape).downtime.total_ns / 1e6;
}

/* --- bare: the same processes and the same copies, and nothing else --- */

static uint8_t *shared(size_t size)
{
    uint8_t *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    need(m != MAP_FAILED, "mmap");
    return m;
}

static bool some(int fd, void *data, size_t size, bool out)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = out ? send(fd, (char *)data + at, size - at, MSG_NOSIGNAL)
                        : recv(fd, (char *)data + at, size - at, 0);
        if (n <= 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

/* A device: a byte comes, a piece is copied out of, or into, its state, a byte goes. */
static void bare_device(int fd, uint8_t *window, bool loads)
{
    uint8_t *state = malloc(STATE), *piece = malloc(PIECE), byte;

    if (!loads)
        memset(state, 1, STATE);
    for (size_t at = 0; some(fd, &byte, 1, false); at = (at + PIECE) % STATE) {
        if (loads) {
            memcpy(piece, window, PIECE);
            memcpy(state + at, piece, PIECE);
        } else {
            memcpy(window, state + at, PIECE);
        }
        if (!some(fd, &byte, 1, true))
            break;
    }
    _exit(0);
}

struct waiting {
    struct waiting *next;
    uint8_t data[PIECE];
};

static struct bare {
    uint32_t devices;
    int to_device[MOST], channel[CHANNELS];
    uint8_t *window[MOST];
    pthread_mutex_t turn[CHANNELS], lock;
    pthread_cond_t more;
    struct waiting *head[MOST], **tail[MOST];
} bare;

static void *bare_send(void *arg)
{
    uint32_t i = (uint32_t)(uintptr_t)arg, c = i % CHANNELS;
    uint8_t byte = 0;

    for (size_t at = 0; at < STATE; at += PIECE) {
        need(some(bare.to_device[i], &byte, 1, true) && some(bare.to_device[i], &byte, 1, false), "save");
        pthread_mutex_lock(&bare.turn[c]);
        need(some(bare.channel[c], &i, sizeof(i), true) &&
                 some(bare.channel[c], bare.window[i], PIECE, true), "send");
        pthread_mutex_unlock(&bare.turn[c]);
    }
    return NULL;
}

static void *bare_receive(void *arg)
{
    uint32_t c = (uint32_t)(uintptr_t)arg, i;
    uint8_t *buffer = malloc(PIECE);

    while (some(bare.channel[c], &i, sizeof(i), false) && some(bare.channel[c], buffer, PIECE, false)) {
        struct waiting *waiting = malloc(sizeof(*waiting));
        waiting->next = NULL;
        memcpy(waiting->data, buffer, PIECE);
        pthread_mutex_lock(&bare.lock);
        *bare.tail[i] = waiting;
        bare.tail[i] = &waiting->next;
        pthread_cond_broadcast(&bare.more);
        pthread_mutex_unlock(&bare.lock);
    }
    free(buffer);
    return NULL;
}

static void *bare_load(void *arg)
{
    uint32_t i = (uint32_t)(uintptr_t)arg;
    uint8_t byte = 0;

    for (size_t at = 0; at < STATE; at += PIECE) {
        pthread_mutex_lock(&bare.lock);
        while (!bare.head[i])
            pthread_cond_wait(&bare.more, &bare.lock);
        struct waiting *waiting = bare.head[i];
        bare.head[i] = waiting->next;
        if (!bare.head[i])
            bare.tail[i] = &bare.head[i];
        pthread_mutex_unlock(&bare.lock);
        memcpy(bare.window[i], waiting->data, PIECE);
        free(waiting);
        need(some(bare.to_device[i], &byte, 1, true) && some(bare.to_device[i], &byte, 1, false), "load");
    }
    return NULL;
}

static void all_threads(void *(*body)(void *), uint32_t count, pthread_t *threads)
{
    for (uint32_t i = 0; i < count; i++)
        need(pthread_create(&threads[i], NULL, body, (void *)(uintptr_t)i) == 0, "thread");
}

static void join(pthread_t *threads, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

static void start_bare_devices(bool loads)
{
    for (uint32_t i = 0; i < bare.devices; i++) {
        int pair[2];

        need(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
        bare.window[i] = shared(PIECE);
        pid_t pid = fork();
        need(pid >= 0, "fork");
        if (pid == 0) {
            close(pair[0]);
            for (uint32_t k = 0; k < i; k++)
                close(bare.to_device[k]);
            bare_device(pair[1], bare.window[i], loads);
        }
        close(pair[1]);
        bare.to_device[i] = pair[0];
    }
}

static void bare_destination(int done)
{
    pthread_t receivers[CHANNELS], loaders[MOST];

    pthread_mutex_init(&bare.lock, NULL);
    pthread_cond_init(&bare.more, NULL);
    for (uint32_t i = 0; i < bare.devices; i++)
        bare.tail[i] = &bare.head[i];
    start_bare_devices(true);
    need(write(done, "", 1) == 1, "pipe"); /* ready */
    all_threads(bare_receive, CHANNELS, receivers);
    all_threads(bare_load, bare.devices, loaders);
    join(loaders, bare.devices);
    need(write(done, "", 1) == 1, "pipe");
    join(receivers, CHANNELS); /* until the other side has closed */
    _exit(0);
}

static void connect_pair(int ret_pair[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof(address);
    int one = 1, room = 192 << 10, listener = socket(AF_INET, SOCK_STREAM, 0);

    need(listener >= 0 && bind(listener, (struct sockaddr *)&address, size) == 0 &&
             listen(listener, 1) == 0 &&
             getsockname(listener, (struct sockaddr *)&address, &size) == 0, "listen");
    ret_pair[0] = socket(AF_INET, SOCK_STREAM, 0);
    need(connect(ret_pair[0], (struct sockaddr *)&address, size) == 0, "connect");
    ret_pair[1] = accept(listener, NULL, NULL);
    need(ret_pair[1] >= 0, "accept");
    close(listener);
    setsockopt(ret_pair[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(ret_pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
}

/* Milliseconds for the state of all devices. */
static double bare_path(uint32_t devices)
{
    pthread_t senders[MOST];
    int pairs[CHANNELS][2], done[2];
    char byte;

    memset(&bare, 0, sizeof(bare));
    bare.devices = devices;
    need(pipe(done) == 0, "pipe");
    for (uint32_t c = 0; c < CHANNELS; c++)
        connect_pair(pairs[c]);
    pid_t pid = fork();
    need(pid >= 0, "fork");
    for (uint32_t c = 0; c < CHANNELS; c++) {
        bare.channel[c] = pairs[c][pid == 0];
        close(pairs[c][pid != 0]);
        pthread_mutex_init(&bare.turn[c], NULL);
    }
    if (pid == 0)
        bare_destination(done[1]);
    start_bare_devices(false);
    need(read(done[0], &byte, 1) == 1, "ready");
    double begin = now_s();
    all_threads(bare_send, devices, senders);
    join(senders, devices);
    need(read(done[0], &byte, 1) == 1, "done");
    double took = now_s() - begin;
    for (uint32_t i = 0; i < devices; i++)
        close(bare.to_device[i]);
    for (uint32_t c = 0; c < CHANNELS; c++)
        close(bare.channel[c]);
    while (wait(NULL) > 0)
        ;
    for (uint32_t i = 0; i < devices; i++)
        munmap(bare.window[i], PIECE);
    close(done[0]);
    close(done[1]);
    return took * 1e3;
}

/* --- rows --- */

static const char *separator = "[";

static void row(const char *name, uint32_t devices, double ours, double limit, const char *bound)
{
    printf("%s{\"name\": \"%s-%u\", \"unit\": \"ms\", \"ours\": %.3f, \"limit\": %.3f, \"ratio\": %.4f%s}",
           separator, name, devices, ours, limit, ours / limit, bound);
    separator = ",\n ";
}

static void at_a_rate(uint32_t devices, const char *bound)
{
    struct shape one = {1, "16M", "100M"}, many = {devices, "16M", "100M"};
    double alone[TURNS], together[TURNS];

    for (unsigned turn = 0; turn < TURNS; turn++) {
        alone[turn] = downtime(&one);
        together[turn] = downtime(&many);
    }
    row("devices-rate", devices, median(together, TURNS), median(alone, TURNS), bound);
}

static void as_fast_as_it_goes(uint32_t devices)
{
    struct shape small = {devices, "4K", NULL}, large = {devices, "16M", NULL};
    double fixed[TURNS], path[TURNS], ours[TURNS];

    for (unsigned turn = 0; turn < TURNS; turn++) {
        fixed[turn] = downtime(&small);
        path[turn] = bare_path(devices);
        ours[turn] = downtime(&large);
    }
    row("devices-free", devices, median(ours, TURNS), median(path, TURNS) + median(fixed, TURNS),
        ", \"ceiling\": 1.3");
}

static void stateless(uint32_t devices)
{
    struct shape shape = {devices, "4K", NULL};
    double ours[TURNS], limit[TURNS];

    for (unsigned turn = 0; turn < TURNS; turn++) {
        struct vfmig_progress progress = move(&shape);
        ours[turn] = (double)progress.downtime.total_ns / 1e6;
        limit[turn] = (double)(progress.downtime.journal_ns + 2 * progress.rtt_ns) / 1e6;
    }
    row("devices-stateless", devices, median(ours, TURNS), median(limit, TURNS), "");
}

int main(void)
{
    ssize_t size = readlink("/proc/self/exe", vfmig, sizeof(vfmig) - 32);

    need(size > 0, "/proc/self/exe");
    vfmig[size] = 0;
    for (unsigned up = 0; up < 3; up++) /* BUILD/tests/bench/devices_bench */
        *strrchr(vfmig, '/') = 0;
    strcat(vfmig, "/tools/vfmig");
    signal(SIGPIPE, SIG_IGN);
    at_a_rate(8, ", \"ceiling\": 1.5");
    at_a_rate(64, "");
    for (uint32_t devices = 1; devices <= 8; devices *= 2)
        as_fast_as_it_goes(devices);
    stateless(4);
    printf("]\n");
    return 0;
}
