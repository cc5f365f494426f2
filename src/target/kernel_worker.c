/* SPDX-License-Identifier: BSD-3-Clause */
/* State changes and resets, in a thread: nothing ends a call that a driver does not end. */
#include <errno.h>
#include <time.h>

#include "base/sabotage.h"
#include "io/sock.h"
#include "target/kernel_private.h"

#define SECOND_NS UINT64_C(1000000000)

/* Lock held. Until the worker is idle; false: not in time. */
static bool await_idle(struct kernel_worker *w, uint64_t deadline_ns)
{
    const struct timespec until = {.tv_sec = (time_t)(deadline_ns / SECOND_NS),
                                   .tv_nsec = (long)(deadline_ns % SECOND_NS)};

    while (w->work)
        if (deadline_ns == VFMIG_NEVER)
            pthread_cond_wait(&w->changed, &w->lock);
        else if (pthread_cond_timedwait(&w->changed, &w->lock, &until) == ETIMEDOUT)
            return !w->work;
    return true;
}

static void *worker_main(void *opaque)
{
    struct kernel *k = opaque;
    struct kernel_worker *w = &k->worker;

    pthread_mutex_lock(&w->lock);
    while (!w->quit) {
        if (!w->work) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        pthread_mutex_unlock(&w->lock);
        struct vfmig_error error = {.code = 0};
        int result = w->work(k, w->argument, &error);
        pthread_mutex_lock(&w->lock);
        w->result = result;
        w->error = error;
        w->work = NULL;
        pthread_cond_broadcast(&w->changed);
    }
    bool orphan = w->orphan;
    pthread_mutex_unlock(&w->lock);
    if (orphan)
        kernel_free(k);
    return NULL;
}

int kernel_worker_init(struct kernel *k, struct vfmig_error *reterr)
{
    struct kernel_worker *w = &k->worker;
    pthread_condattr_t attr;

    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &attr);
    pthread_condattr_destroy(&attr);
    int r = -pthread_create(&w->thread, NULL, worker_main, k);
    if (r < 0)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_KERNEL, 0, "no thread for a target");
    w->started = true;
    return 0;
}

static int late(const struct kernel *k, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ETIMEDOUT, VFMIG_ORIGIN_DEVICE, 0,
                           "%s did not change its state in time", k->base.info.name);
}

int kernel_work_until(struct kernel *k, kernel_work work, uint32_t argument, uint64_t timeout_ns,
                      struct vfmig_error *reterr)
{
    struct kernel_worker *w = &k->worker;
    uint64_t deadline_ns = vfmig_deadline_ns(timeout_ns);

    pthread_mutex_lock(&w->lock);
    bool done = await_idle(w, deadline_ns);
    if (done) {
        w->work = work;
        w->argument = argument;
        pthread_cond_broadcast(&w->changed);
        done = await_idle(w, deadline_ns);
    }
    int r = done ? w->result : late(k, reterr);
    if (done && r < 0 && reterr)
        *reterr = w->error;
    pthread_mutex_unlock(&w->lock);
    return r;
}

int kernel_settle(struct kernel *k, struct vfmig_error *reterr)
{
    if (vfmig_sabotage("kernel-asks-meanwhile"))
        return 0;
    pthread_mutex_lock(&k->worker.lock);
    bool idle = await_idle(&k->worker, vfmig_deadline_ns(k->opt.timeout_ns));
    pthread_mutex_unlock(&k->worker.lock);
    return idle ? 0 : late(k, reterr);
}

bool kernel_worker_done(struct kernel *k)
{
    struct kernel_worker *w = &k->worker;
    pthread_t thread = w->thread;

    if (!w->started)
        return true;
    pthread_mutex_lock(&w->lock);
    bool busy = w->orphan = w->work != NULL;
    w->quit = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    /* The thread may have freed everything by now. */
    if (busy)
        pthread_detach(thread);
    else
        pthread_join(thread, NULL);
    return !busy;
}
