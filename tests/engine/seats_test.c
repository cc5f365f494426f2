/* SPDX-License-Identifier: BSD-3-Clause */
/* Where the threads run that send and receive on one host. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <sched.h>
#include <stdatomic.h>

#include "mover_rig.h"

static int take_it(void *user, const struct vfmig_record *record, struct vfmig_error *reterr)
{
    return 0;
}

/* Threads of this process that may use one CPU only, and how many CPUs this one may use. */
static unsigned threads_on_one_cpu(void)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;
    unsigned count = 0;

    assert_non_null(tasks);
    while ((task = readdir(tasks))) {
        cpu_set_t set;
        int tid = atoi(task->d_name);
        if (tid > 0 && sched_getaffinity(tid, sizeof(set), &set) == 0)
            count += CPU_COUNT(&set) == 1;
    }
    closedir(tasks);
    return count;
}

/* A mover and its receiver over some channels; `follow`, unless it is NULL, is what the receiver goes by. */
struct moving {
    struct rig_memory from, to;
    struct rig_channels c;
    struct rig_map map;
    struct vfmig_mover *mover;
    struct vfmig_receiver *receiver;
};

static void begin(struct moving *m, unsigned channels, bool tcp, const atomic_bool *follow)
{
    const uint64_t pages[RIG_BLOCKS] = {2 * VFMIG_STRIPE_PAGES, VFMIG_STRIPE_PAGES};

    rig_memory_init(&m->from, pages);
    rig_memory_init(&m->to, pages);
    rig_channels_init(&m->c, channels, tcp);
    rig_map_init(&m->map, &m->from.memory);
    for (unsigned i = 0; follow && i < channels; i++)
        vfmig_channel_set_follow(m->c.dest[i], follow);
    assert_int_equal(vfmig_receiver_new(m->c.dest, channels, &m->to.memory, take_it, NULL, &m->receiver, NULL), 0);
    assert_int_equal(vfmig_mover_new(m->c.source, channels, &m->from.memory, &m->mover, NULL), 0);
}

static void send_round(struct moving *m, uint64_t round, bool seated)
{
    vfmig_mover_set_seated(m->mover, seated);
    assert_int_equal(vfmig_mover_send(m->mover, &m->map.map, round, NULL), 0);
    assert_int_equal(vfmig_receiver_wait_round(m->receiver, round, UINT64_MAX, NULL), 0);
}

static void end(struct moving *m)
{
    vfmig_mover_free(m->mover);
    vfmig_receiver_free(m->receiver);
    rig_map_done(&m->map);
    rig_channels_done(&m->c);
    rig_memory_done(&m->from);
    rig_memory_done(&m->to);
}

/* Senders to this host, of as many as there are CPUs, while they are told to; no others. */
static void senders_keep_to_a_cpu_of_their_own(void **state)
{
    cpu_set_t ours;

    assert_int_equal(sched_getaffinity(0, sizeof(ours), &ours), 0);
    const unsigned cpus = (unsigned)CPU_COUNT(&ours), channels = 3;
    for (int tcp = 0; tcp < 2 && cpus > 1; tcp++) { /* with one, all threads are on it anyway */
        struct moving m;

        begin(&m, channels, tcp, /* follow= */ NULL);
        for (uint64_t round = 1; round <= 4; round++) {
            bool seated = round == 2 || round == 3;
            send_round(&m, round, seated);
            assert_int_equal(threads_on_one_cpu(), !seated || !tcp ? 0 : cpus < channels ? cpus : channels);
        }
        end(&m);
    }
}

/* On two CPUs, while they are told that the senders have seats; those of a unix socket never. */
static void receivers_keep_to_the_cpus_of_their_senders(void **state)
{
    const unsigned channels = 2;
    cpu_set_t ours, two;

    assert_int_equal(sched_getaffinity(0, sizeof(ours), &ours), 0);
    CPU_ZERO(&two);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&two) < 2; cpu++)
        if (CPU_ISSET(cpu, &ours))
            CPU_SET(cpu, &two);
    assert_int_equal(sched_setaffinity(0, sizeof(two), &two), 0);
    for (int tcp = 0; tcp < 2 && CPU_COUNT(&two) > 1; tcp++) { /* with one, all threads are on it anyway */
        atomic_bool stopped = false;
        struct moving m;

        begin(&m, channels, tcp, &stopped);
        for (uint64_t round = 1; round <= 4; round++) {
            atomic_store(&stopped, round == 2 || round == 3);
            send_round(&m, round, stopped);
            assert_int_equal(threads_on_one_cpu(), tcp && stopped ? 2 * channels : 0);
        }
        end(&m);
    }
    assert_int_equal(sched_setaffinity(0, sizeof(ours), &ours), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(senders_keep_to_a_cpu_of_their_own),
        cmocka_unit_test(receivers_keep_to_the_cpus_of_their_senders),
    };

    return cmocka_run_group_tests_name("seats", tests, NULL, NULL);
}
