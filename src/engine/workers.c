/* SPDX-License-Identifier: BSD-3-Clause */
/* The threads that block in the control thread's place: one a device, one for memory, one for the
 * VM and the trackers. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "core/state.h"
#include "engine/engine.h"
#include "io/sock.h"

static void post(struct engine *e, const struct vfmig_flow_event *event,
                 const struct vfmig_error *error)
{
    struct engine_event out = {.kind = ENGINE_EVENT_FLOW, .flow = *event, .error = *error};

    engine_post(e, &out);
}

/* --- devices --- */

static enum vfmig_state real_state(struct device_worker *dev)
{
    enum vfmig_state state = VFMIG_STATE_ERROR;
    struct vfmig_error ignored = {0};

    /* A device that does not even say where it is counts as failed. */
    if (dev->target->ops->get_state(dev->target, &state, &ignored) ||
        !vfmig_state_info((uint32_t)state))
        return VFMIG_STATE_ERROR;
    return state;
}

/* A reset takes configuration and interrupts with it. At the destination what comes next is the
 * source's external state, or the next source's. */
static int reset_device(struct device_worker *dev, struct vfmig_error *reterr)
{
    struct engine *e = dev->engine;
    int ret = dev->target->ops->reset(dev->target, reterr);

    if (ret || e->role != VFMIG_FLOW_SOURCE)
        return ret;
    if (e->vm.ops->device_reset)
        ret = e->vm.ops->device_reset(e->vm.opaque, dev->index, reterr);
    if (ret == 0) {
        pthread_mutex_lock(&e->status_lock);
        e->progress.devices_reset++;
        pthread_mutex_unlock(&e->status_lock);
    }
    return ret;
}

/* A device that says yes and is somewhere else would break whatever relies on its state. */
static int set_state(struct device_worker *dev, enum vfmig_state state, struct vfmig_error *reterr)
{
    int ret = dev->target->ops->set_state(dev->target, state, dev->timeout_ns, reterr);

    if (ret || vfmig_sabotage("believe-state"))
        return ret;
    enum vfmig_state real = real_state(dev);
    if (real == state)
        return 0;
    return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_DEVICE, real,
                           "it was brought to %s and says that it is in %s",
                           vfmig_state_name(state), vfmig_state_name(real));
}

/* A device that was given up has answered after all. The guest has been running without it, here; or
 * it is not here any more, and what the device still has to do is never done here. */
static void recover(struct device_worker *dev, uint32_t want)
{
    struct engine *e = dev->engine;
    int ret = 0;

    if (want == VFMIG_STATE_RUNNING && real_state(dev) != VFMIG_STATE_RUNNING)
        ret = set_state(dev, VFMIG_STATE_RUNNING, NULL);
    if (want != VFMIG_STATE_RUNNING)
        ret = dev->target->ops->reset(dev->target, NULL);
    else if (ret)
        ret = reset_device(dev, NULL);
    engine_trace(e, DEVICE_BACK, VFMIG_U(dev->index), VFMIG_S(dev->id), VFMIG_I(ret));
    if (ret)
        return;
    pthread_mutex_lock(&e->status_lock);
    if (e->progress.devices_lost)
        e->progress.devices_lost--;
    pthread_mutex_unlock(&e->status_lock);
}

#define SABOTAGE_LAG_US 500000

/* The sabotage skip-barrier leaves the grace states out; then the first device runs on for a while when
 * the others have stopped, and before they run (C59). */
static void lag(const struct device_worker *dev, uint32_t want)
{
    bool late = dev->engine->role == VFMIG_FLOW_SOURCE
                    ? dev->index == 0 && want == VFMIG_STATE_STOP_COPY
                    : dev->index > 0 && want == VFMIG_STATE_RUNNING;

    if (late && vfmig_sabotage("skip-barrier"))
        usleep(SABOTAGE_LAG_US);
}

static void change_state(struct device_worker *dev, uint32_t want)
{
    struct engine *e = dev->engine;
    struct vfmig_error error = {0};
    uint64_t begin = vfmig_now_ns();
    struct vfmig_flow_event event = {.kind = VFMIG_FLOW_EVENT_DEVICE_DONE, .device = dev->index};
    const char *name = want == VFMIG_WANT_RESET ? "reset" : vfmig_state_name(want);
    int ret;

    lag(dev, want);
    engine_trace(e, CHANGE_BEGIN, VFMIG_U(dev->index), VFMIG_S(dev->id), VFMIG_S(name));
    if (want == VFMIG_WANT_RESET)
        ret = reset_device(dev, &error);
    else
        ret = set_state(dev, (enum vfmig_state)want, &error);
    uint64_t took = vfmig_now_ns() - begin;
    if (ret == 0)
        event.state = want == VFMIG_WANT_RESET ? VFMIG_STATE_RUNNING : want;
    else
        event.state = real_state(dev);
    event.err = ret;
    pthread_mutex_lock(&dev->lock);
    if (ret == 0 && want != VFMIG_WANT_RESET)
        vfmig_samples_add(&dev->changes, took);
    pthread_mutex_unlock(&dev->lock);
    engine_trace(e, CHANGE_END, VFMIG_U(dev->index), VFMIG_S(dev->id), VFMIG_S(name),
                 VFMIG_S(vfmig_state_name(event.state)), VFMIG_I(ret), VFMIG_U(took));
    if (ret)
        vfmig_error_prefix(&error, "device %s", dev->id);
    post(e, &event, &error);
}

static void move_data(struct device_worker *dev, uint32_t work)
{
    struct engine *e = dev->engine;
    struct vfmig_error error = {0};
    struct vfmig_flow_event event = {.kind = VFMIG_FLOW_EVENT_DATA_DONE, .device = dev->index};

    uint64_t before = dev->bytes;

    engine_trace(e, DATA_BEGIN, VFMIG_U(dev->index), VFMIG_S(dev->id),
                 VFMIG_S(vfmig_work_name(work)));
    event.err = e->do_data(e, dev, work == VFMIG_WORK_LAST_DATA, &error);
    engine_trace(e, DATA_END, VFMIG_U(dev->index), VFMIG_S(dev->id), VFMIG_S(vfmig_work_name(work)),
                 VFMIG_I(event.err), VFMIG_U(dev->bytes - before), VFMIG_U(dev->bytes));
    if (event.err)
        vfmig_error_prefix(&error, "device %s", dev->id);
    post(e, &event, &error);
}

static struct device_job next_job(struct device_worker *dev)
{
    struct device_job job;

    pthread_mutex_lock(&dev->lock);
    while (!dev->job_count)
        pthread_cond_wait(&dev->wake, &dev->lock);
    job = dev->jobs[0];
    memmove(dev->jobs, dev->jobs + 1, --dev->job_count * sizeof(job));
    pthread_mutex_unlock(&dev->lock);
    return job;
}

static void *device_main(void *arg)
{
    struct device_worker *dev = arg;

    for (;;) {
        struct device_job job = next_job(dev);
        if (job.command == DEVICE_QUIT)
            return NULL;
        if (job.command == DEVICE_GO)
            change_state(dev, job.arg);
        else if (job.command == DEVICE_RECOVER)
            recover(dev, job.arg);
        else
            move_data(dev, job.arg);
    }
}

void engine_device_job(struct device_worker *dev, enum device_command command, uint32_t arg)
{
    pthread_mutex_lock(&dev->lock);
    if (dev->job_count < sizeof(dev->jobs) / sizeof(dev->jobs[0]))
        dev->jobs[dev->job_count++] = (struct device_job){.command = command, .arg = arg};
    pthread_cond_broadcast(&dev->wake);
    pthread_mutex_unlock(&dev->lock);
}

/* --- works --- */

static void *work_main(void *arg)
{
    struct work_thread *thread = arg;
    struct engine *e = thread->engine;

    for (;;) {
        pthread_mutex_lock(&thread->lock);
        while (!thread->job_count && !thread->quit)
            pthread_cond_wait(&thread->wake, &thread->lock);
        if (!thread->job_count) {
            pthread_mutex_unlock(&thread->lock);
            return NULL;
        }
        uint32_t work = thread->jobs[0];
        memmove(thread->jobs, thread->jobs + 1, --thread->job_count * sizeof(work));
        thread->current = work;
        pthread_mutex_unlock(&thread->lock);

        struct vfmig_error error = {0};
        struct vfmig_flow_event event = {.kind = VFMIG_FLOW_EVENT_WORK_DONE, .work = work};
        engine_trace(e, WORK_BEGIN, VFMIG_S(vfmig_work_name(work)));
        event.err = e->do_work(e, work, &error);
        engine_trace(e, WORK_END, VFMIG_S(vfmig_work_name(work)), VFMIG_I(event.err));
        pthread_mutex_lock(&thread->lock);
        thread->current = VFMIG_WORK_COUNT;
        pthread_mutex_unlock(&thread->lock);
        post(e, &event, &error);
    }
}

static bool is_memory_work(uint32_t work)
{
    return work == VFMIG_WORK_ROUND || work == VFMIG_WORK_QUIET_LOG ||
           work == VFMIG_WORK_TRIAL || work == VFMIG_WORK_MEMORY || work == VFMIG_WORK_LAST_MEMORY ||
           work == VFMIG_WORK_RECEIVE;
}

/* A log that does not answer: whose it is, is no callback of the VMM's. */
static bool waits_for_log(struct work_thread *thread)
{
    pthread_mutex_lock(&thread->lock);
    uint32_t work = thread->current;
    pthread_mutex_unlock(&thread->lock);
    return work == VFMIG_WORK_SNAPSHOT || work == VFMIG_WORK_FINAL_LOG || work == VFMIG_WORK_TRACK_STOP;
}

void engine_work_job(struct engine *e, uint32_t work)
{
    bool memory = is_memory_work(work);

    /* Memory is not sent any more when the guest is to run on, or not sent from here. */
    if (work == VFMIG_WORK_VCPU_START && waits_for_log(&e->vm_thread) && !vfmig_sabotage("log-holds-guest"))
        memory = true;
    struct work_thread *thread = memory ? &e->memory_thread : &e->vm_thread;
    if (work == VFMIG_WORK_ROUND)
        atomic_store(&e->round_over, false);
    pthread_mutex_lock(&thread->lock);
    if (thread->job_count < VFMIG_WORK_COUNT)
        thread->jobs[thread->job_count++] = work;
    pthread_cond_signal(&thread->wake);
    pthread_mutex_unlock(&thread->lock);
}

/* --- start and stop --- */

static int start_work_thread(struct engine *e, struct work_thread *thread,
                             struct vfmig_error *reterr)
{
    thread->engine = e;
    thread->quit = false;
    thread->current = VFMIG_WORK_COUNT;
    pthread_mutex_init(&thread->lock, NULL);
    pthread_cond_init(&thread->wake, NULL);
    int ret = -pthread_create(&thread->thread, NULL, work_main, thread);
    if (ret) {
        pthread_mutex_destroy(&thread->lock);
        pthread_cond_destroy(&thread->wake);
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
    }
    thread->started = true;
    return 0;
}

static void stop_work_thread(struct work_thread *thread)
{
    if (!thread->started)
        return;
    pthread_mutex_lock(&thread->lock);
    thread->quit = true;
    pthread_cond_signal(&thread->wake);
    pthread_mutex_unlock(&thread->lock);
    pthread_join(thread->thread, NULL);
    pthread_mutex_destroy(&thread->lock);
    pthread_cond_destroy(&thread->wake);
    thread->started = false;
}

static void drop_segments(struct device_worker *dev)
{
    while (dev->head) {
        struct segment *segment = dev->head;
        dev->head = segment->next;
        free(segment);
    }
    dev->tail = &dev->head;
    vfmig_buffer_free(&dev->partial);
}

static int start_device(struct engine *e, uint32_t i, struct vfmig_error *reterr)
{
    struct device_worker *dev = &e->devices[i];

    *dev = (struct device_worker){.engine = e,
                                  .target = e->vm.devices[i],
                                  .id = e->vm.device_ids[i],
                                  .index = i,
                                  .timeout_ns = e->options.device_timeout_ns,
                                  .tail = &dev->head,
                                  .partial.limit = VFMIG_MAX_DEVICE_SEGMENT};
    if (e->vm.device_timeouts_ns && e->vm.device_timeouts_ns[i])
        dev->timeout_ns = e->vm.device_timeouts_ns[i];
    pthread_mutex_init(&dev->lock, NULL);
    pthread_cond_init(&dev->wake, NULL);
    int ret = -pthread_create(&dev->thread, NULL, device_main, dev);
    dev->made = true;
    if (ret)
        return vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
    dev->started = true;
    return 0;
}

int engine_workers_start(struct engine *e, struct vfmig_error *reterr)
{
    int ret = start_work_thread(e, &e->memory_thread, reterr);

    e->queued_bytes = e->unfinished_bytes = 0;
    if (e->role == VFMIG_FLOW_DESTINATION)
        e->window = vfmig_device_window(e->vm.device_count);

    if (!ret)
        ret = start_work_thread(e, &e->vm_thread, reterr);
    for (uint32_t i = 0; !ret && i < e->vm.device_count; i++)
        ret = start_device(e, i, reterr);
    if (ret) {
        engine_workers_stop(e);
        engine_workers_free(e);
    }
    return ret;
}

/* Waits for what each of them is doing: a device that hangs holds this up until it answers. */
void engine_workers_stop(struct engine *e)
{
    for (uint32_t i = 0; i < e->vm.device_count; i++) {
        struct device_worker *dev = &e->devices[i];
        if (!dev->started)
            continue;
        engine_device_job(dev, DEVICE_QUIT, 0);
        pthread_join(dev->thread, NULL);
        dev->started = false;
    }
    stop_work_thread(&e->memory_thread);
    stop_work_thread(&e->vm_thread);
}

/* After the link has gone: its threads queue data until then. */
void engine_workers_free(struct engine *e)
{
    for (uint32_t i = 0; i < e->vm.device_count; i++) {
        struct device_worker *dev = &e->devices[i];
        if (!dev->made)
            continue;
        drop_segments(dev);
        pthread_mutex_destroy(&dev->lock);
        pthread_cond_destroy(&dev->wake);
        dev->made = false;
    }
}
