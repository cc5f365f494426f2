/* SPDX-License-Identifier: BSD-3-Clause */
/* Whole migrations, saves, restores, handovers on one host and dry runs, each again and again, and
 * each time another call to the system or for memory fails (fault_point.h), until every point that
 * is ever reached has. Whatever fails: the guest runs on where it was, or is where it was to go;
 * never at both, never lost; whoever failed says one sentence; and when all is freed no descriptor
 * and no thread is left. Each run is a process of its own, so that a leak, a crash or a hang has a
 * name. sweep_test SCENARIO [STRIDE [KEY KIND]]: of the points only each STRIDE-th, or that one;
 * SWEEP_STRIDE overrides it, SWEEP_SHOW prints what is said, SWEEP_NTH=N lets the N-th later call of each
 * point fail instead of the first. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "engine/engine.h"
#include "engine/source.h"
#include "fault_point.h"
#include "rig.h"
#include "rig_source.h"

#define FULL   (VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY)
#define PLAIN  (VFMIG_FEATURE_STOP_COPY)
#define SECOND UINT64_C(1000000000)

static const uint32_t features[] = {FULL, PLAIN};
static struct rig rig;
static bool harmless; /* the fault of this run must change nothing */
static struct {
    _Atomic unsigned runs, struck, sentences;
} * counts; /* of all processes */

/* --- what must be so --- */

static unsigned entries(const char *path)
{
    unsigned count = 0;
    DIR *dir = opendir(path);

    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

/* A thread that was joined is a moment later off the list. */
static void assert_nothing_left(unsigned files, unsigned threads)
{
    for (unsigned i = 0; i < 5000 && entries("/proc/self/task") != threads; i++)
        usleep(1000);
    assert_int_equal(entries("/proc/self/task"), threads);
    assert_int_equal(entries("/proc/self/fd"), files);
}

static void assert_sentence(const struct vfmig_error *error)
{
    assert_true(error->code < 0);
    assert_true(error->origin > VFMIG_ORIGIN_NONE && error->origin < VFMIG_ORIGIN_COUNT);
    assert_true(error->text[0] != 0);
    counts->sentences++;
    if (getenv("SWEEP_SHOW"))
        print_message("    %d, %s: %s\n", error->code, vfmig_origin_name(error->origin),
                      error->text);
}

static struct vfmig_progress source_status(void)
{
    struct vfmig_progress progress;

    vfmig_source_status(rig.source, &progress);
    return progress;
}

static struct vfmig_progress destination_status(void)
{
    struct vfmig_progress progress;

    vfmig_destination_status(rig.destination, &progress);
    return progress;
}

/* The source's end: it is undecided only until the two have talked. */
static enum vfmig_migrate_state settle(void)
{
    enum vfmig_migrate_state state = rig_wait(&rig);

    fault_points_mend();
    for (unsigned i = 0; state == VFMIG_MIGRATE_UNDECIDED && i < 4000; i++) {
        usleep(5000);
        state = rig_wait(&rig);
    }
    return state;
}

static void assert_arrived(void)
{
    struct vfmig_error error = {0};

    int ret = vfmig_destination_wait(rig.destination, 20 * SECOND, &error);
    if (ret)
        print_error("destination: %s\n", error.text);
    assert_int_equal(ret, 0);
    rig_assert_moved(&rig);
}

static void assert_stayed(void)
{
    struct vfmig_progress progress = source_status();

    if (harmless)
        print_error("%s\n", progress.error.text);
    assert_false(harmless);
    assert_sentence(&progress.error);
    rig_assert_source_runs(&rig);
}

/* --- scenarios --- */

static bool started(int ret, const struct vfmig_error *error)
{
    if (ret)
        assert_sentence(error);
    assert_true(ret == 0 || !harmless);
    return ret == 0;
}

static bool listens(void)
{
    struct vfmig_error error = {0};
    int ret = vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination, &error);

    if (ret == 0)
        ret = vfmig_destination_listen(rig.destination, rig.uri, &error);
    if (ret == 0 && strncmp(rig.uri, "tcp:", 4) == 0) {
        /* Nobody could be told where to go. */
        if (!vfmig_destination_port(rig.destination))
            return false;
        snprintf(rig.uri, sizeof(rig.uri), "tcp:127.0.0.1:%u",
                 vfmig_destination_port(rig.destination));
    }
    return started(ret, &error);
}

static bool starts(const char *uri)
{
    struct vfmig_error error = {0};
    int ret = vfmig_source_new(&rig.side[RIG_SOURCE].vm, &rig.options, &rig.source, &error);

    if (ret == 0)
        ret = vfmig_source_start(rig.source, uri, &error);
    return started(ret, &error);
}

static void migrate(void)
{
    if (!listens() || !starts(rig.uri)) {
        rig_assert_source_runs(&rig);
        return;
    }
    enum vfmig_migrate_state state = settle();
    if (state == VFMIG_MIGRATE_COMPLETED)
        assert_arrived();
    else
        assert_int_equal(state, VFMIG_MIGRATE_FAILED);
    if (state == VFMIG_MIGRATE_FAILED)
        assert_stayed();
}

static void over_unix(void)
{
    rig_open(&rig, 2, features, /* tcp= */ false);
}

/* The source's rules see its own lines alone; those of the destination come as they can be had. */
static struct vfmig_vm_ops sifting;
static void (*feed)(void *opaque, const char *json);

static void sift(void *opaque, const char *json)
{
    if (!strstr(json, "\"side\":\"destination\""))
        feed(opaque, json);
}

static void over_tcp_packed(void)
{
    struct vfmig_vm *vm = &rig.side[RIG_SOURCE].vm;

    rig_open(&rig, 2, features, /* tcp= */ true);
    rig.options.zstd_level = 1;
    rig.options.trace_peer = true;
    sifting = *vm->ops;
    feed = sifting.trace;
    sifting.trace = sift;
    vm->ops = &sifting;
}

/* The link breaks when the guest is about to run at the destination: the source asks again. */
static void cut(struct rig *r, const struct rig_entry *entry)
{
    if (entry->side == RIG_DEST && entry->op == RIG_VCPU_START && !entry->end)
        rig_cut_link(r);
}

static void cut_after_the_grant(void)
{
    rig_open(&rig, 1, features, /* tcp= */ false);
    rig.watch = cut;
}

static void cut_early(struct rig *r, const struct rig_entry *entry)
{
    if (entry->side == RIG_DEST && entry->op == RIG_LOAD && !entry->end)
        rig_cut_link(r);
}

static void cut_before_it(void)
{
    rig_open(&rig, 1, features, /* tcp= */ false);
    rig.watch = cut_early;
}

/* --- memory that is passed on --- */

static struct vfmig_vm_ops adopting;

static int adopt(void *opaque, uint32_t block, int fd, uint64_t fd_offset,
                 struct vfmig_error *reterr)
{
    struct rig_vm *vm = opaque;
    struct vfmig_ram_block *ram = &vm->blocks[block];
    int flags = MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);

    return mmap(ram->host, ram->size, PROT_READ | PROT_WRITE, flags, fd, (off_t)fd_offset) ==
                   MAP_FAILED
               ? vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0, "no memory")
               : 0;
}

static void on_one_host(void)
{
    struct rig_vm *source = &rig.side[RIG_SOURCE], *dest = &rig.side[RIG_DEST];

    rig_open(&rig, 2, features, /* tcp= */ false);
    rig.options.local = true;
    for (uint32_t b = 0; b < 2; b++) {
        struct vfmig_ram_block *ram = &source->blocks[b];
        ram->fd = memfd_create("rig", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        assert_true(ram->fd >= 0);
        assert_int_equal(ftruncate(ram->fd, (off_t)ram->size), 0);
        assert_int_equal(fcntl(ram->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL), 0);
        assert_int_equal(adopt(source, b, ram->fd, 0, NULL), 0);
    }
    adopting = *dest->vm.ops;
    adopting.memory_adopt = adopt;
    dest->vm.ops = &adopting;
}

/* --- files --- */

static char file[128];

static void to_a_file(void)
{
    rig_open(&rig, 2, features, /* tcp= */ false);
    snprintf(file, sizeof(file), "file:%s/guest", rig.dir);
}

static bool restores(void)
{
    struct vfmig_error error = {0};
    int ret = vfmig_destination_new(&rig.side[RIG_DEST].vm, &rig.options, &rig.destination, &error);

    if (ret == 0)
        ret = vfmig_destination_restore(rig.destination, file + 5, /* clone= */ false, &error);
    if (ret == 0)
        (void)vfmig_destination_wait(rig.destination, 20 * SECOND, &error);
    if (ret == 0 && destination_status().state == VFMIG_MIGRATE_COMPLETED)
        return true;
    assert_false(harmless);
    assert_sentence(&error);
    return false;
}

static void save_and_restore(void)
{
    enum vfmig_migrate_state state = VFMIG_MIGRATE_FAILED;

    if (!starts(file)) {
        rig_assert_source_runs(&rig);
        return;
    }
    (void)vfmig_source_wait(rig.source, 20 * SECOND, NULL);
    state = source_status().state;
    if (state != VFMIG_MIGRATE_SAVED) {
        assert_int_equal(state, VFMIG_MIGRATE_FAILED);
        assert_stayed();
        return;
    }
    /* What did not come out of it the first time does the second time, at the latest when who wrote
     * it is gone. */
    if (!restores()) {
        fault_points_mend();
        vfmig_destination_free(rig.destination);
        rig.destination = NULL;
        rig_free_source(&rig);
        assert_true(restores());
    }
    /* The source's devices stay as they were saved: it may be told to go on after all. */
    assert_true(rig_progresses(&rig.side[RIG_DEST]));
    assert_int_equal(rig.both_running, 0);
}

/* --- asking --- */

static void count_finding(void *opaque, bool source, const char *text)
{
    assert_true(text[0] != 0);
    (*(unsigned *)opaque)++;
}

static void ask(void)
{
    struct vfmig_error error = {0};
    unsigned findings = 0;

    if (listens()) {
        int ret = vfmig_source_check(&rig.side[RIG_SOURCE].vm, &rig.options, rig.uri, count_finding,
                                     &findings, &error);
        if (ret)
            assert_sentence(&error);
        assert_true(!harmless || (ret == 0 && !findings));
        assert_true(ret < 0 || !findings);
    }
    rig_assert_source_runs(&rig);
}

static const struct scenario {
    const char *name;
    void (*open)(void);
    void (*run)(void);
} scenarios[] = {
    {"unix", over_unix, migrate},
    {"tcp", over_tcp_packed, migrate},
    {"granted", cut_after_the_grant, migrate},
    {"loading", cut_before_it, migrate},
    {"local", on_one_host, migrate},
    {"file", to_a_file, save_and_restore},
    {"ask", over_unix, ask},
};

/* --- the sweep --- */

#define PATIENCE_S 120 /* a run takes less than a second */

static const struct scenario *chosen;
static uint64_t key = FAULT_NOWHERE;
static enum fault_kind kind;
static uint32_t nth; /* call of the point that fails, from 0 */

static void one(void **state)
{
    unsigned files = entries("/proc/self/fd"), threads = entries("/proc/self/task");

    harmless = key == FAULT_NOWHERE || kind == FAULT_SIGNAL || kind == FAULT_SHORT;
    harmless &= chosen->open != cut_before_it;
    chosen->open();
    /* Faults that must not matter may take their time, others are over soon. */
    rig.options.stall_ns = harmless ? 20 * SECOND : SECOND / 2;
    rig.options.device_timeout_ns = 5 * SECOND;
    fault_points_arm(key, kind, nth);
    chosen->run();
    rig_free_source(&rig);
    vfmig_destination_free(rig.destination);
    counts->struck += fault_points_disarm();
    counts->runs++;
    rig.destination = NULL;
    for (uint32_t b = 0; b < 2; b++)
        if (rig.side[RIG_SOURCE].blocks[b].fd >= 0)
            close(rig.side[RIG_SOURCE].blocks[b].fd);
    rig_close(&rig);
    assert_nothing_left(files, threads);
}

/* Most of a run is waiting for each other. */
#define JOBS 6u

static struct job {
    pid_t child;
    uint32_t point;
    enum fault_kind kind;
} jobs[JOBS];
static uint32_t running;
static int bad;

static void wait_for_one(void)
{
    int status = -1;
    pid_t child = waitpid(-1, &status, 0);
    uint32_t i = 0;

    while (i < running && jobs[i].child != child)
        i++;
    if (child < 0 || i == running)
        abort();
    const struct fault_point *point = fault_point(jobs[i].point);
    if (status)
        fprintf(stderr, "%s: %s %s ended with %#x: SWEEP_NTH=%u sweep_test %s 1 %" PRIx64 " %u\n", chosen->name,
                point->call, fault_kind_name(jobs[i].kind), status, nth, chosen->name, point->key,
                jobs[i].kind);
    bad += status != 0;
    jobs[i] = jobs[--running];
}

/* In a process of its own. */
static void begin(uint32_t point)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(one)};

    if (running == JOBS)
        wait_for_one();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(PATIENCE_S);
        cmocka_set_message_output(CM_OUTPUT_XML); /* nothing to say about what passes */
        if (!getenv("SWEEP_SHOW") && !freopen("/dev/null", "w", stdout))
            exit(3);
        exit(cmocka_run_group_tests_name(chosen->name, tests, NULL, NULL));
    }
    if (child < 0)
        abort();
    jobs[running++] = (struct job){.child = child, .point = point, .kind = kind};
}

static void wait_for_all(void)
{
    while (running)
        wait_for_one();
}

static void sweep(uint32_t stride)
{
    for (uint32_t i = 0; i < fault_points_count(); i++) {
        const struct fault_point *point = fault_point(i);
        key = point->key;
        for (unsigned k = 0; k < FAULT_KIND_COUNT; k++) {
            kind = (enum fault_kind)k;
            if (point->kinds & 1u << k && (key + k) % stride == 0)
                begin(i);
        }
        if (i + 1 == fault_points_count())
            wait_for_all(); /* they may come upon more */
    }
}

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
        if (strcmp(argv[1], scenarios[i].name) == 0)
            chosen = &scenarios[i];
    if (!chosen) {
        fprintf(stderr, "which scenario?\n");
        return 2;
    }
    fault_points_init();
    counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (argc > 4) {
        key = strtoull(argv[3], NULL, 16);
        kind = (enum fault_kind)strtoul(argv[4], NULL, 10);
    }
    nth = getenv("SWEEP_NTH") ? (uint32_t)strtoul(getenv("SWEEP_NTH"), NULL, 10) : 0;
    const char *given = getenv("SWEEP_STRIDE") ? getenv("SWEEP_STRIDE") : argc > 2 ? argv[2] : "1";
    begin(0); /* without a fault, unless one was named: what is called at all */
    wait_for_all();
    if (!bad && argc <= 4)
        sweep((uint32_t)strtoul(given, NULL, 10));
    printf("%s: %u points, %u runs, %u faults, %u sentences, %d bad\n", chosen->name,
           fault_points_count(), counts->runs, counts->struck, counts->sentences, bad);
    /* What is called once only has no later call that could fail. */
    return bad || (argc <= 4 && !nth && (!counts->struck || !counts->sentences));
}
