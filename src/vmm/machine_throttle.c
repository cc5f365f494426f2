/* SPDX-License-Identifier: BSD-3-Clause */
/* Takes a share of their time from the vCPUs: once a period each of them is kicked and sleeps. */
#include "vmm/machine_internal.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define PERIOD_NS UINT64_C(20000000) /* short, so that no guest takes a sleep for a hang */

static struct timespec later(uint64_t ns)
{
    struct timespec when;

    clock_gettime(CLOCK_MONOTONIC, &when);
    ns += (uint64_t)when.tv_nsec;
    when.tv_sec += (time_t)(ns / 1000000000u);
    when.tv_nsec = (long)(ns % 1000000000u);
    return when;
}

static void *ticker_main(void *arg)
{
    struct vfmig_machine *m = arg;

    pthread_mutex_lock(&m->lock);
    while (m->throttle) {
        const struct timespec end = later(PERIOD_NS);
        __atomic_fetch_add(&m->throttle_turn, 1, __ATOMIC_SEQ_CST);
        for (uint32_t i = 0; i < m->config.vcpu_count; i++)
            if (m->vcpus[i].has_thread && !m->vcpus[i].parked)
                m->ops->kick(m, i);
        while (m->throttle && pthread_cond_timedwait(&m->throttle_wake, &m->lock, &end) == 0)
            ;
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

int vfmig_machine_throttle(struct vfmig_machine *m, uint32_t percent, struct vfmig_error *reterr)
{
    int ret = 0;

    if (percent > VFMIG_MACHINE_MAX_THROTTLE)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "vCPUs cannot be slowed down by %u %%, at most by %u", percent,
                               VFMIG_MACHINE_MAX_THROTTLE);
    pthread_mutex_lock(&m->throttle_lock);
    pthread_mutex_lock(&m->lock);
    m->throttle = percent;
    pthread_cond_broadcast(&m->throttle_wake);
    pthread_cond_broadcast(&m->wake); /* whoever sleeps gets up to see for how long */
    pthread_mutex_unlock(&m->lock);
    if (!percent && m->has_ticker) {
        pthread_join(m->ticker, NULL);
        m->has_ticker = false;
    } else if (percent && !m->has_ticker) {
        ret = -pthread_create(&m->ticker, NULL, ticker_main, m);
        m->has_ticker = ret == 0;
    }
    if (ret) {
        pthread_mutex_lock(&m->lock);
        m->throttle = 0;
        pthread_mutex_unlock(&m->lock);
        vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread: %s",
                        strerror(-ret));
    }
    pthread_mutex_unlock(&m->throttle_lock);
    return ret;
}

bool machine_throttle_due(struct vfmig_machine *m, uint32_t vcpu)
{
    return m->vcpus[vcpu].turn != __atomic_load_n(&m->throttle_turn, __ATOMIC_SEQ_CST);
}

/* The share of one period; ends early with the throttle or when the vCPUs are to stop. */
void machine_throttle_sleep(struct vfmig_machine *m, uint32_t vcpu)
{
    uint64_t turn = __atomic_load_n(&m->throttle_turn, __ATOMIC_SEQ_CST);

    __atomic_store_n(&m->vcpus[vcpu].turn, turn, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&m->lock);
    const struct timespec end = later(PERIOD_NS / 100 * m->throttle);
    while (m->throttle && !machine_stopping(m) &&
           pthread_cond_timedwait(&m->wake, &m->lock, &end) == 0)
        ;
    pthread_mutex_unlock(&m->lock);
}
