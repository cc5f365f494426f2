/* SPDX-License-Identifier: BSD-3-Clause */
/* Both sides of a migration around two foreign devices: the real engine, the real vfio-user client,
 * and as little VMM as will do. The devices are another process' (peer.py); what came of it is one
 * line of JSON for the test that started both. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/buffer.h"
#include "../engine/order_rules.h"
#include "dirty/trackers.h"
#include "io/sock.h"
#include "target/user.h"
#include "vfmig/migrate.h"
#include "wire/wire.h"

#define BLOCKS       2u
#define BLOCK1_GPA   (UINT64_C(1) << 30)
#define GUEST_PAGES  8u /* the guest's own, at the end of each block */
#define CONFIG_BYTES 256u
#define WAIT_NS      UINT64_C(60000000000)

static uint64_t block_bytes[BLOCKS] = {UINT64_C(2) << 20, UINT64_C(1) << 20};
static const uint64_t block_gpa[BLOCKS] = {0, BLOCK1_GPA};

/* Command line. */
static struct {
    const char *socket[2], *dir;
    enum vfmig_dialect dialect;
    unsigned attempts;
    bool split_maps; /* each block as two mappings */
    bool message;    /* the second block without a descriptor: DMA by message */
    bool late_load;
    bool direct;     /* no engine: pre-copy is left with a portion in use */
    unsigned timeout_ms;
} opt = {.attempts = 1};

struct side {
    const char *name;
    struct vfmig_ram_block blocks[BLOCKS];
    struct vfmig_target *target;
    struct vfmig_tracker *own, *log, *trackers[2];
    struct vfmig_vm vm;
    int irq;
    pthread_t guest;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool run, parked, quit;
    atomic_ullong progress;
    struct order_rules rules; /* over this side's trace */
};

static struct side sides[2] = {{.name = "source"}, {.name = "destination"}};
static atomic_uint all_dirty; /* reports that failed */
static const char *memory_verdict = "not compared";

static void die(const char *what, const struct vfmig_error *error)
{
    printf("{\"failed\": \"%s\", \"error\": \"%s\"}\n", what, error ? error->text : strerror(errno));
    exit(3);
}

/* --- guest --- */

/* Stores to a few pages of its own, marked as a VMM marks what it writes itself. */
static void guest_round(struct side *side)
{
    unsigned long long n = atomic_fetch_add(&side->progress, 1);
    const struct vfmig_ram_block *block = &side->blocks[n % BLOCKS];
    uint64_t offset = block->size - (1 + n % GUEST_PAGES) * VFMIG_PAGE_SIZE;

    memcpy((char *)block->host + offset, &n, sizeof(n));
    vfmig_own_mark(side->own, block->gpa + offset, sizeof(n));
}

static void *guest_main(void *arg)
{
    struct side *side = arg;
    const struct timespec nap = {.tv_nsec = 100000};

    pthread_mutex_lock(&side->lock);
    while (!side->quit) {
        if (side->run)
            guest_round(side);
        if (side->parked == side->run) {
            side->parked = !side->run;
            pthread_cond_broadcast(&side->wake);
        }
        pthread_mutex_unlock(&side->lock);
        nanosleep(&nap, NULL);
        pthread_mutex_lock(&side->lock);
    }
    pthread_mutex_unlock(&side->lock);
    return NULL;
}

static int switch_vcpus(struct side *side, bool run)
{
    pthread_mutex_lock(&side->lock);
    side->run = run;
    while (side->parked == run)
        pthread_cond_wait(&side->wake, &side->lock);
    pthread_mutex_unlock(&side->lock);
    return 0;
}

static int vcpus_stop(void *opaque, struct vfmig_error *reterr)
{
    return switch_vcpus(opaque, false);
}

static int vcpus_start(void *opaque, struct vfmig_error *reterr)
{
    return switch_vcpus(opaque, true);
}

static bool guest_progresses(struct side *side)
{
    unsigned long long before = atomic_load(&side->progress);
    const struct timespec nap = {.tv_nsec = 200000};

    for (unsigned i = 0; side->run && i < 5000; i++) {
        if (atomic_load(&side->progress) > before)
            return true;
        nanosleep(&nap, NULL);
    }
    return false;
}

/* --- VMM --- */

/* With everything quiet at the source, and all of memory here. */
static void compare_memory(void)
{
    memory_verdict = "equal";
    for (unsigned b = 0; b < BLOCKS; b++)
        for (uint64_t at = 0; at < block_bytes[b]; at += VFMIG_PAGE_SIZE)
            if (memcmp((char *)sides[0].blocks[b].host + at, (char *)sides[1].blocks[b].host + at,
                       VFMIG_PAGE_SIZE))
                memory_verdict = "different";
}

static int state_save(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct side *side = opaque;
    unsigned long long n = atomic_load(&side->progress);

    return vfmig_buffer_append(out, &n, sizeof(n));
}

static int state_load(void *opaque, const void *data, size_t size, struct vfmig_error *reterr)
{
    struct side *side = opaque;
    unsigned long long n;

    if (size != sizeof(n))
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0, "no such vCPU");
    memcpy(&n, data, sizeof(n));
    atomic_store(&side->progress, n);
    compare_memory();
    return 0;
}

/* Config space, as any VMM saves and restores it, and interrupts. */
static int external_save(void *opaque, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    struct side *side = opaque;
    uint8_t config[CONFIG_BYTES];
    int ret = side->target->ops->region_read(side->target, VFMIG_REGION_CONFIG, 0, config,
                                             sizeof(config), reterr);

    return ret ? ret : vfmig_buffer_append(out, config, sizeof(config));
}

static int wire_up(struct side *side, const uint8_t *command, struct vfmig_error *reterr)
{
    const struct vfmig_target_ops *ops = side->target->ops;
    int ret = ops->set_irqs(side->target, VFMIG_IRQ_MSIX, 0, 1, &side->irq, reterr);

    if (ret == 0)
        ret = ops->region_write(side->target, VFMIG_REGION_CONFIG, 4, command, 2, false, reterr);
    return ret;
}

static int external_load(void *opaque, const void *data, size_t size, struct vfmig_error *reterr)
{
    const uint8_t *config = data;

    if (size != CONFIG_BYTES)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, 0, "no such device");
    return wire_up(opaque, config + 4, reterr);
}

static int device_reset(void *opaque, uint32_t device, struct vfmig_error *reterr)
{
    static const uint8_t command[2] = {6, 0};

    return wire_up(opaque, command, reterr);
}

static void trace(void *opaque, const char *json)
{
    struct side *side = opaque;

    if (strstr(json, "\"op\":\"sync\",\"ret\":-"))
        atomic_fetch_add(&all_dirty, 1);
    order_rules_feed(&side->rules, json);
    if (getenv("FOREIGN_TRACE"))
        fprintf(stderr, "%s %s\n", side->name, json);
}

static const struct vfmig_vm_ops vm_ops = {
    .size = sizeof(vm_ops), .version = VFMIG_VM_OPS_VERSION,
    .vcpus_stop = vcpus_stop, .vcpus_start = vcpus_start,
    .state_save = state_save, .state_load = state_load,
    .external_save = external_save, .external_load = external_load,
    .device_reset = device_reset, .trace = trace,
};

/* --- set-up --- */

static void open_memory(struct side *side, unsigned b)
{
    int fd = memfd_create("guest", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)block_bytes[b]))
        die("memory", NULL);
    void *host = mmap(NULL, block_bytes[b], PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (host == MAP_FAILED)
        die("memory", NULL);
    side->blocks[b] = (struct vfmig_ram_block){
        .gpa = block_gpa[b], .size = block_bytes[b], .host = host, .fd = fd};
}

static void map_memory(struct side *side)
{
    struct vfmig_error error = {0};
    uint32_t parts = opt.split_maps ? 2 : 1;

    for (unsigned b = 0; b < BLOCKS; b++) {
        const struct vfmig_ram_block *block = &side->blocks[b];
        uint64_t step = block->size / parts;
        int fd = opt.message && b == 1 ? -1 : block->fd;
        for (uint64_t at = 0; at < block->size; at += step)
            if (side->target->ops->dma_map(side->target, block->gpa + at, step, fd, at, 3, &error))
                die("map", &error);
    }
}

static void open_trackers(struct side *side)
{
    struct vfmig_error error = {0};

    side->vm.trackers = side->trackers;
    side->trackers[side->vm.tracker_count++] = side->own;
    if (!vfmig_tracker_device_probe(side->target))
        return;
    if (vfmig_tracker_device_new(side->target, NULL, 0, &side->log, &error))
        die("tracker", &error);
    side->trackers[side->vm.tracker_count++] = side->log;
}

static void open_side(unsigned i)
{
    static const char *const id = "foreign0";
    static const uint8_t command[2] = {6, 0};
    struct side *side = &sides[i];
    struct vfmig_error error = {0};

    for (unsigned b = 0; b < BLOCKS; b++)
        open_memory(side, b);
    side->vm = (struct vfmig_vm){.ops = &vm_ops, .opaque = side,
                                 .memory = {.blocks = side->blocks, .block_count = BLOCKS},
                                 .devices = &side->target, .device_ids = &id, .device_count = 1};
    if (vfmig_tracker_own_new(&side->own, &error))
        die("tracker", &error);
    const struct vfmig_user_options options = {
        .dialect = opt.dialect, .memory = &side->vm.memory, .own = side->own,
        .timeout_ns = opt.timeout_ms * UINT64_C(1000000),
        .incoming = i == 1, .late_load = opt.late_load,
    };
    if (vfmig_user_open(opt.socket[i], &options, &side->target, &error))
        die("open", &error);
    map_memory(side);
    open_trackers(side);
    side->irq = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wire_up(side, command, &error))
        die("interrupts", &error);
    pthread_mutex_init(&side->lock, NULL);
    pthread_cond_init(&side->wake, NULL);
    side->run = i == 0;
    side->parked = true;
    if (pthread_create(&side->guest, NULL, guest_main, side))
        die("guest", NULL);
}

static void close_side(struct side *side)
{
    pthread_mutex_lock(&side->lock);
    side->quit = true;
    pthread_mutex_unlock(&side->lock);
    pthread_join(side->guest, NULL);
    side->target->ops->close(side->target);
    if (side->log)
        side->log->ops->free(side->log);
    side->own->ops->free(side->own);
    for (unsigned b = 0; b < BLOCKS; b++) {
        munmap(side->blocks[b].host, block_bytes[b]);
        close(side->blocks[b].fd);
    }
    close(side->irq);
}

/* The device, too, has a chance to show that it lives: foreign ones do DMA when they are talked to. */
static void talk(struct side *side)
{
    uint8_t config[4];

    for (unsigned i = 0; i < 8; i++)
        (void)side->target->ops->region_read(side->target, VFMIG_REGION_CONFIG, 0, config,
                                             sizeof(config), NULL);
}

static const char *quiet_name(const struct vfmig_target_info *info)
{
    return info->quiet == VFMIG_QUIET_ALL ? "ndma_all" : info->quiet == VFMIG_QUIET_P2P ? "p2p_only"
                                                                                        : "none";
}

/* JSON has no more need of care: sentences hold no quotes. */
static void attempt(const struct vfmig_migrate_options *options, const char *uri, bool first)
{
    struct vfmig_source *source;
    struct vfmig_progress progress;
    struct vfmig_error error = {0};

    if (vfmig_source_new(&sides[0].vm, options, &source, &error) ||
        vfmig_source_start(source, uri, &error))
        die("source", &error);
    (void)vfmig_source_wait(source, WAIT_NS, NULL);
    vfmig_source_status(source, &progress);
    printf("%s{\"state\": \"%s\", \"error\": \"%s\", \"step\": \"%s\", \"vcpus_stopped\": %s, "
           "\"lost\": %u, \"device_bytes\": %llu}",
           first ? "" : ", ", vfmig_migrate_state_name(progress.state), progress.error.text,
           vfmig_step_name(progress.step), progress.steps[VFMIG_STEP_S4].start_ns ? "true" : "false",
           progress.devices_lost, (unsigned long long)progress.device_bytes);
    vfmig_source_free(source);
}

/* Until it has dropped what came of the attempt before. */
static void await_destination(struct vfmig_destination *destination)
{
    const struct timespec nap = {.tv_nsec = 1000000};
    struct vfmig_progress progress;

    do {
        nanosleep(&nap, NULL);
        vfmig_destination_status(destination, &progress);
    } while (progress.state == VFMIG_MIGRATE_ACTIVE);
}

static void run(void)
{
    char uri[160];
    struct vfmig_destination *destination;
    struct vfmig_progress progress;
    struct vfmig_error error = {0};
    const struct vfmig_target_info *info = &sides[0].target->info;
    struct vfmig_migrate_options options = {
        .journal_dir = opt.dir,
        .downtime_limit_ns = UINT64_C(5000000000),
        .device_timeout_ns = opt.timeout_ms * UINT64_C(1000000),
        .reconnect_ns = 100000000,
    };

    snprintf(uri, sizeof(uri), "unix:%s/move", opt.dir);
    if (vfmig_destination_new(&sides[1].vm, &options, &destination, &error) ||
        vfmig_destination_listen(destination, uri, &error))
        die("destination", &error);
    (void)switch_vcpus(&sides[0], true);
    printf("{\"quiet\": \"%s\", \"dialect\": \"%s\", \"features\": %u, \"in_place\": %s, \"attempts\": [",
           quiet_name(info), info->dialect == VFMIG_DIALECT_REGION ? "region" : "feature",
           info->features, info->data_in_place ? "true" : "false");
    for (unsigned i = 0; i < opt.attempts; i++) {
        await_destination(destination);
        attempt(&options, uri, i == 0);
    }
    vfmig_destination_status(destination, &progress);
    bool source_runs = guest_progresses(&sides[0]), runs = guest_progresses(&sides[1]);
    if (source_runs)
        talk(&sides[0]);
    if (runs)
        talk(&sides[1]);
    printf("], \"memory\": \"%s\", \"all_dirty\": %u, \"source_runs\": %s, \"destination_runs\": %s, "
           "\"destination_state\": \"%s\", \"destination_error\": \"%s\"}\n",
           memory_verdict, atomic_load(&all_dirty), source_runs ? "true" : "false", runs ? "true" : "false",
           vfmig_migrate_state_name(progress.state), progress.error.text);
    fflush(stdout);
    vfmig_destination_free(destination);
    for (unsigned i = 0; i < 2; i++)
        if (sides[i].rules.broken[0]) {
            fprintf(stderr, "%s: %s\n", sides[i].name, sides[i].rules.broken);
            exit(4);
        }
}

/* One portion in pre-copy, which is not acknowledged, and then all in S, into a file. */
static void take_directly(struct vfmig_target *t)
{
    char path[160];
    struct vfmig_error error = {0};
    const size_t room = (size_t)t->info.max_data_xfer;
    unsigned portions = 0;
    ssize_t n = 0;

    snprintf(path, sizeof(path), "%s/stream", opt.dir);
    FILE *file = fopen(path, "we");
    if (!file || !t->info.data_in_place || t->ops->set_state(t, VFMIG_STATE_PRE_COPY, WAIT_NS, &error))
        die("pre-copy", &error);
    do {
        const void *data;
        n = t->ops->save_in_place(t, &data, room, &error);
        if (n < 0 || (n > 0 && fwrite(data, 1, (size_t)n, file) != (size_t)n))
            die("portion", &error);
        if (portions++ == 0 && t->ops->set_state(t, VFMIG_STATE_STOP_COPY, WAIT_NS, &error))
            die("S", &error);
    } while (n > 0);
    fclose(file);
    printf("{\"portions\": %u}\n", portions);
}

int main(int argc, char **argv)
{
    opt.timeout_ms = 5000;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--feature"))
            opt.dialect = VFMIG_DIALECT_FEATURE;
        else if (!strcmp(argv[i], "--region"))
            opt.dialect = VFMIG_DIALECT_REGION;
        else if (!strcmp(argv[i], "--split-maps"))
            opt.split_maps = true;
        else if (!strcmp(argv[i], "--message"))
            opt.message = true;
        else if (!strcmp(argv[i], "--late-load"))
            opt.late_load = true;
        else if (!strcmp(argv[i], "--large"))
            block_bytes[0] = UINT64_C(160) << 20;
        else if (!strcmp(argv[i], "--direct"))
            opt.direct = true;
        else if (!strcmp(argv[i], "--twice"))
            opt.attempts = 2;
        else if (!strcmp(argv[i], "--impatient"))
            opt.timeout_ms = 300;
        else if (!opt.socket[0])
            opt.socket[0] = argv[i];
        else if (!opt.socket[1])
            opt.socket[1] = argv[i];
        else
            opt.dir = argv[i];
    }
    if (!opt.dir) {
        fprintf(stderr, "usage: host [OPTION]... SOURCE-SOCKET DESTINATION-SOCKET JOURNAL-DIR\n");
        return 2;
    }
    open_side(0);
    open_side(1);
    if (opt.direct)
        take_directly(sides[0].target);
    else
        run();
    close_side(&sides[0]);
    close_side(&sides[1]);
    return 0;
}
