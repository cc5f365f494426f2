/* SPDX-License-Identifier: BSD-3-Clause */
/* Capabilities are a thread's, and only the thread itself can give them up. Those of this process are asked to by a
 * signal, one after the other, as the C library does it for the user id. */
#include <dirent.h>
#include <errno.h>
#include <linux/capability.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "vmm/vm_priv.h"

#define DROP_SIGNAL  (SIGRTMIN + 2)
#define MAX_THREADS  4096u
#define MAX_LOOKS    500u     /* at a thread that was asked */
#define LOOK_NS      10000000 /* from one to the next */

/* What is given up, and what came of it. For one caller at a time: before anything is listened on. */
static struct {
    bool all; /* or what an exec could give back, while the rest is still needed */
    sem_t answered;
    atomic_int who; /* the last that has */
    int error;
} drop;

static int drop_own(bool all)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};

    if (syscall(SYS_capget, &head, data) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        return -errno;
    /* The bounding set is that of a program that is started later. Who may not drop it has no capabilities that
     * could be had back from it: no_new_privs. Beyond the last capability of this kernel: EINVAL. */
    for (unsigned cap = 0; cap <= 63; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) && errno != EPERM && errno != EINVAL)
            return -errno;
    for (unsigned i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
        data[i].inheritable = 0;
        data[i].permitted = all ? 0 : data[i].permitted;
        data[i].effective = all ? 0 : data[i].effective;
    }
    return syscall(SYS_capset, &head, data) ? -errno : 0;
}

static void on_signal(int number)
{
    int saved = errno, error = drop_own(drop.all);

    if (error)
        drop.error = error;
    atomic_store(&drop.who, (int)syscall(SYS_gettid));
    sem_post(&drop.answered);
    errno = saved;
    (void)number;
}

/* 1: it is gone. */
static int ask(pid_t thread)
{
    for (unsigned looks = 0; looks < MAX_LOOKS; looks++) {
        struct timespec until;
        if (syscall(SYS_tgkill, getpid(), thread, looks ? 0 : DROP_SIGNAL))
            return errno == ESRCH ? 1 : -errno;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += LOOK_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (sem_timedwait(&drop.answered, &until) == 0) {
            if (atomic_load(&drop.who) == thread)
                return drop.error;
        } else if (errno != ETIMEDOUT && errno != EINTR) {
            return -errno;
        }
    }
    return -ETIMEDOUT;
}

/* Asks those that have not been; *ret_more: there were some, and they may have begun others before they answered. */
static int ask_all(pid_t *asked, unsigned *count, bool *ret_more)
{
    DIR *dir = opendir("/proc/self/task");
    struct dirent *entry;
    int ret = dir ? 0 : -errno;

    *ret_more = false;
    while (ret == 0 && dir && (entry = readdir(dir))) {
        pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);
        bool known = thread <= 0 || thread == (pid_t)syscall(SYS_gettid);
        for (unsigned i = 0; i < *count; i++)
            known = known || asked[i] == thread;
        if (known)
            continue;
        if (*count == MAX_THREADS)
            ret = -E2BIG;
        else if ((ret = ask(thread)) >= 0)
            asked[(*count)++] = thread;
        *ret_more = true;
        ret = ret > 0 ? 0 : ret;
    }
    if (dir)
        closedir(dir);
    return ret;
}

int vmm_drop_rights(bool all)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
    pid_t *asked;
    unsigned count = 0;
    bool more = true;
    int ret = drop_own(all);

    if (ret || vfmig_sabotage("drop-own-rights-only"))
        return ret;
    asked = calloc(MAX_THREADS, sizeof(*asked));
    if (!asked || sem_init(&drop.answered, 0, 0)) {
        free(asked);
        return -ENOMEM;
    }
    drop.all = all;
    drop.error = 0;
    sigfillset(&action.sa_mask);
    ret = sigaction(DROP_SIGNAL, &action, &before) ? -errno : 0;
    while (ret == 0 && more)
        ret = ask_all(asked, &count, &more);
    /* One that was asked and has not answered yet must not die of it. */
    if (ret != -ETIMEDOUT) {
        sigaction(DROP_SIGNAL, &before, NULL);
        sem_destroy(&drop.answered);
    }
    free(asked);
    return ret;
}
