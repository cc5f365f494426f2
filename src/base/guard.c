/* SPDX-License-Identifier: BSD-3-Clause */
/* A peer's file may shrink under a mapping; the copy that meets the hole ends with -EFAULT and
 * nothing else happens. Faults outside such a copy go to whoever handled SIGBUS before. */
#include "base/guard.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

static __thread sigjmp_buf *guard;
static struct sigaction before;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    if (guard)
        siglongjmp(*guard, 1);
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(sig, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(sig);
    } else {
        /* Back to the default; the access is repeated and ends the process as it should. */
        sigaction(SIGBUS, &before, NULL);
    }
}

void vfmig_guard_arm(void)
{
    struct sigaction act = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER}, now;

    pthread_mutex_lock(&lock);
    /* Somebody else may have set a handler since; ours goes in front of it again. */
    if (sigaction(SIGBUS, NULL, &now) == 0 && now.sa_sigaction != on_sigbus) {
        before = now;
        sigemptyset(&act.sa_mask);
        sigaction(SIGBUS, &act, NULL);
    }
    pthread_mutex_unlock(&lock);
}

int vfmig_guard_copy(void *to, const void *from, size_t size)
{
    sigjmp_buf here;

    if (sigsetjmp(here, /* savesigs= */ 0)) {
        guard = NULL;
        return -EFAULT;
    }
    guard = &here;
    atomic_signal_fence(memory_order_seq_cst);
    memcpy(to, from, size);
    atomic_signal_fence(memory_order_seq_cst);
    guard = NULL;
    return 0;
}
