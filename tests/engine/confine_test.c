/* SPDX-License-Identifier: BSD-3-Clause */
/* What threads that read a stranger's bytes can no longer do, and that receiving still works there. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>

#include "engine/confine.h"
#include "mover_rig.h"

struct tried {
    int open, open_at, link, make, socket, connect, fork, exec, kill, ptrace, code, protect, cpu;
};

static int code_of(long result)
{
    return result < 0 ? errno : 0;
}

/* Each by the system call itself, and none may do harm where it is not refused. */
static void try_all(struct tried *ret)
{
    char *const none[] = {NULL};
    const unsigned long cpu[16] = {1};

    ret->open = code_of(syscall(SYS_open, "/dev/null", O_RDONLY));
    ret->open_at = code_of(syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR));
    ret->link = code_of(syscall(SYS_unlink, "/nonexistent/file"));
    ret->make = code_of(syscall(SYS_mkdir, "/nonexistent/dir", 0700));
    ret->socket = code_of(syscall(SYS_socket, AF_INET, SOCK_STREAM, 0));
    ret->connect = code_of(syscall(SYS_connect, -1, NULL, 0));
    ret->fork = code_of(syscall(SYS_unshare, 0));
    ret->exec = code_of(syscall(SYS_execve, "/nonexistent/program", none, none));
    ret->kill = code_of(syscall(SYS_kill, getpid(), 0));
    ret->ptrace = code_of(syscall(SYS_ptrace, -1, 0, 0, 0));
    ret->cpu = code_of(syscall(SYS_sched_setaffinity, getpid(), sizeof(cpu), cpu));
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ret->protect = code_of(syscall(SYS_mprotect, page, 4096, PROT_READ | PROT_EXEC));
    ret->code = code_of(syscall(SYS_mmap, NULL, 4096, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    munmap(page, 4096);
}

static void assert_all_refused(const struct tried *tried)
{
    const int *codes = (const int *)(const void *)tried;

    for (size_t i = 0; i < sizeof(*tried) / sizeof(int); i++)
        if (codes[i] != EPERM)
            fail_msg("number %zu: %s", i, strerror(codes[i]));
}

static void *try_confined(void *opaque)
{
    cpu_set_t here;

    if (vfmig_confine(NULL))
        return opaque; /* with nothing tried */
    try_all(opaque);
    /* Its own CPU it may choose (engine/seats.h). */
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    return sched_setaffinity(0, sizeof(here), &here) == 0 ? NULL : opaque;
}

static void a_confined_thread_can_do_no_harm(void **state)
{
    struct tried tried = {0};
    pthread_t thread;
    void *failed;

    assert_int_equal(pthread_create(&thread, NULL, try_confined, &tried), 0);
    pthread_join(thread, &failed);
    assert_null(failed);
    assert_all_refused(&tried);
}

static void other_threads_are_not_concerned(void **state)
{
    struct tried tried = {0};
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, try_confined, &tried), 0);
    pthread_join(thread, NULL);
    try_all(&tried);
    assert_int_equal(tried.open, 0);
    assert_int_equal(tried.socket, 0);
    assert_int_equal(tried.kill, 0);
    assert_int_equal(tried.exec, ENOENT);
}

struct landlocked {
    int rc, open, still_open;
};

static void *try_landlocked(void *opaque)
{
    struct landlocked *tried = opaque;
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    char byte;

    tried->rc = vfmig_confine_files(NULL);
    tried->open = code_of(open("/dev/null", O_RDONLY));
    tried->still_open = code_of(read(fd, &byte, 1));
    close(fd);
    return NULL;
}

/* Where the kernel has no Landlock that is said, and files can be opened as before. */
static void landlock_closes_all_files(void **state)
{
    bool has = syscall(444, NULL, 0, 1u) > 0;
    struct landlocked tried;
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, try_landlocked, &tried), 0);
    pthread_join(thread, NULL);
    print_message("Landlock: %s\n", has ? "yes" : "not in this kernel");
    assert_int_equal(tried.rc, has ? 0 : -ENOTSUP);
    assert_int_equal(tried.open, has ? EACCES : 0);
    assert_int_equal(tried.still_open, 0);
}

/* --- receiving threads --- */

struct seen {
    struct tried tried;
    unsigned records;
};

static int try_in_callback(void *user, const struct vfmig_record *record, struct vfmig_error *reterr)
{
    struct seen *seen = user;

    if (record->tag == VFMIG_RECORD_PROGRESS) {
        try_all(&seen->tried);
        seen->records++;
    }
    return 0;
}

static void a_receiver_is_confined_and_receives(void **state)
{
    const uint64_t pages[RIG_BLOCKS] = {VFMIG_STRIPE_PAGES, 3 * VFMIG_STRIPE_PAGES};
    struct rig_memory from, to;
    struct rig_channels c;
    struct rig_map map;
    struct seen seen = {.records = 0};
    struct vfmig_mover *mover;
    struct vfmig_receiver *receiver;
    struct vfmig_error error = {0};
    uint64_t seed = 7;

    rig_memory_init(&from, pages);
    rig_memory_init(&to, pages);
    rig_memory_randomise(&from, &seed);
    rig_map_init(&map, &from.memory);
    rig_map_fill(&map);
    rig_channels_init(&c, 2, /* tcp= */ true);
    for (int i = 0; i < 2; i++)
        vfmig_channel_set_confined(c.dest[i]);
    assert_int_equal(vfmig_receiver_new(c.dest, 2, &to.memory, try_in_callback, &seen, &receiver, NULL), 0);
    assert_int_equal(vfmig_channel_send(c.source[0], VFMIG_RECORD_PROGRESS, "x", 1, NULL), 0);
    assert_int_equal(vfmig_mover_new(c.source, 2, &from.memory, &mover, &error), 0);
    assert_int_equal(vfmig_mover_send(mover, &map.map, 1, &error), 0);
    if (vfmig_receiver_wait_round(receiver, 1, UINT64_MAX, &error))
        fail_msg("%s", error.text);
    assert_true(rig_memory_equal(&from, &to));
    assert_int_equal(seen.records, 1);
    assert_all_refused(&seen.tried);
    vfmig_mover_free(mover);
    vfmig_receiver_free(receiver);
    rig_channels_done(&c);
    rig_map_done(&map);
    rig_memory_done(&from);
    rig_memory_done(&to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_confined_thread_can_do_no_harm),
        cmocka_unit_test(other_threads_are_not_concerned),
        cmocka_unit_test(landlock_closes_all_files),
        cmocka_unit_test(a_receiver_is_confined_and_receives),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
