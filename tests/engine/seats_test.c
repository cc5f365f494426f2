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

/* Senders to this host, of as many as there are CPUs, while they are told to; no others. */
static void senders_keep_to_a_cpu_of_their_own(void **state)
{
    const uint64_t pages[RIG_BLOCKS] = {2 * VFMIG_STRIPE_PAGES, VFMIG_STRIPE_PAGES};
    cpu_set_t ours;

    assert_int_equal(sched_getaffinity(0, sizeof(ours), &ours), 0);
    const unsigned cpus = (unsigned)CPU_COUNT(&ours), channels = 3;
    for (int tcp = 0; tcp < 2 && cpus > 1; tcp++) { /* with one, all threads are on it anyway */
        struct rig_memory memory, to;
        struct rig_channels c;
        struct rig_map map;
        struct vfmig_mover *mover;
        struct vfmig_receiver *receiver;

        rig_memory_init(&memory, pages);
        rig_memory_init(&to, pages);
        rig_channels_init(&c, channels, tcp);
        rig_map_init(&map, &memory.memory);
        assert_int_equal(vfmig_receiver_new(c.dest, channels, &to.memory, take_it, NULL, &receiver, NULL), 0);
        assert_int_equal(vfmig_mover_new(c.source, channels, &memory.memory, &mover, NULL), 0);
        for (uint64_t round = 1; round <= 4; round++) {
            bool seated = round == 2 || round == 3;
            vfmig_mover_set_seated(mover, seated);
            assert_int_equal(vfmig_mover_send(mover, &map.map, round, NULL), 0);
            assert_int_equal(threads_on_one_cpu(), !seated || !tcp ? 0 : cpus < channels ? cpus : channels);
        }
        vfmig_mover_free(mover);
        vfmig_receiver_free(receiver);
        rig_map_done(&map);
        rig_channels_done(&c);
        rig_memory_done(&memory);
        rig_memory_done(&to);
    }
}

/* On two CPUs, while they are told that the senders have seats; those of a unix socket never. */
static void receivers_keep_to_the_cpus_of_their_senders(void **state)
{
    const uint64_t pages[RIG_BLOCKS] = {2 * VFMIG_STRIPE_PAGES, VFMIG_STRIPE_PAGES};
    const unsigned channels = 2;
    cpu_set_t ours, two;

    assert_int_equal(sched_getaffinity(0, sizeof(ours), &ours), 0);
    CPU_ZERO(&two);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&two) < 2; cpu++)
        if (CPU_ISSET(cpu, &ours))
            CPU_SET(cpu, &two);
    assert_int_equal(sched_setaffinity(0, sizeof(two), &two), 0);
    for (int tcp = 0; tcp < 2 && CPU_COUNT(&two) > 1; tcp++) { /* with one, all threads are on it anyway */
        struct rig_memory memory, to;
        struct rig_channels c;
        struct rig_map map;
        struct vfmig_mover *mover;
        struct vfmig_receiver *receiver;
        atomic_bool stopped = false;

        rig_memory_init(&memory, pages);
        rig_memory_init(&to, pages);
        rig_channels_init(&c, channels, tcp);
        rig_map_init(&map, &memory.memory);
        for (unsigned i = 0; i < channels; i++)
            vfmig_channel_set_follow(c.dest[i], &stopped);
        assert_int_equal(vfmig_receiver_new(c.dest, channels, &to.memory, take_it, NULL, &receiver, NULL), 0);
        assert_int_equal(vfmig_mover_new(c.source, channels, &memory.memory, &mover, NULL), 0);
        for (uint64_t round = 1; round <= 4; round++) {
            atomic_store(&stopped, round == 2 || round == 3);
            vfmig_mover_set_seated(mover, stopped);
            assert_int_equal(vfmig_mover_send(mover, &map.map, round, NULL), 0);
            assert_int_equal(vfmig_receiver_wait_round(receiver, round, UINT64_MAX, NULL), 0);
            assert_int_equal(threads_on_one_cpu(), tcp && stopped ? 2 * channels : 0);
        }
        vfmig_mover_free(mover);
        vfmig_receiver_free(receiver);
        rig_map_done(&map);
        rig_channels_done(&c);
        rig_memory_done(&memory);
        rig_memory_done(&to);
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
