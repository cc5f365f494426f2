/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bounds.h"
#include "engine/confine.h"
#include "engine/pack.h"
#include "io/sock.h"
#include "io/tls.h"

#define SECOND_NS UINT64_C(1000000000)

void engine_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

void engine_sleep_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t until_ns)
{
    struct timespec ts = {.tv_sec = (time_t)(until_ns / SECOND_NS),
                          .tv_nsec = (long)(until_ns % SECOND_NS)};

    if (until_ns == UINT64_MAX)
        pthread_cond_wait(cond, lock);
    else
        pthread_cond_timedwait(cond, lock, &ts);
}

static uint64_t default_to(uint64_t value, uint64_t otherwise)
{
    return value ? value : otherwise;
}

static int copy_path(char *to, size_t size, const char *from, const char *what,
                     struct vfmig_error *reterr)
{
    if (!from)
        return 0;
    if (strlen(from) >= size)
        return vfmig_error_set(reterr, -ENAMETOOLONG, VFMIG_ORIGIN_LOCAL, 0, "%s is too long", what);
    strcpy(to, from);
    return 0;
}

static int check_arguments(const struct vfmig_vm *vm, const struct vfmig_migrate_options *options,
                           struct vfmig_error *reterr)
{
    const struct vfmig_vm_ops *ops = vm->ops;

    if (!ops || ops->size != sizeof(*ops) || ops->version != VFMIG_VM_OPS_VERSION)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "the VM's callbacks are of another version");
    if (!ops->vcpus_stop || !ops->vcpus_start || !ops->state_save || !ops->state_load)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "a callback of the VM is missing");
    if (vm->memory.block_count == 0 || vm->memory.block_count > VFMIG_MAX_RAM_BLOCKS)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%u blocks of memory, 1 to %u can be moved", vm->memory.block_count,
                               VFMIG_MAX_RAM_BLOCKS);
    if (vm->device_count > VFMIG_MAX_DEVICES)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%u devices, at most %u",
                               vm->device_count, VFMIG_MAX_DEVICES);
    if (!options->journal_dir)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "no directory for the journal");
    if (options->channels > VFMIG_MAX_CHANNELS)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%u channels, at most %u",
                               options->channels, VFMIG_MAX_CHANNELS);
    if (options->throttle_max > VFMIG_THROTTLE_LIMIT)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "vCPUs cannot be slowed down by %u %%, at most by %u",
                               options->throttle_max, VFMIG_THROTTLE_LIMIT);
    if (options->throttle_max && !ops->throttle)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0,
                               "this VMM cannot slow its vCPUs down");
    if (options->zstd_level > VFMIG_PACK_LEVEL_MAX)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "zstd has no level %u, only 1 to %u",
                               options->zstd_level, VFMIG_PACK_LEVEL_MAX);
    if (options->zstd_level && !vfmig_pack_supported())
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0, "this build has no zstd");
    return 0;
}

int engine_init(struct engine *e, enum vfmig_flow_role role, const struct vfmig_vm *vm,
                const struct vfmig_migrate_options *options, struct vfmig_error *reterr)
{
    int ret = check_arguments(vm, options, reterr);

    if (ret)
        return ret;
    e->role = role;
    e->vm = *vm;
    e->options = *options;
    ret = copy_path(e->journal_dir, sizeof(e->journal_dir), options->journal_dir,
                    "the path of the journal", reterr);
    if (!ret)
        ret = copy_path(e->control_path, sizeof(e->control_path), options->control_path,
                        "the path of the control socket", reterr);
    if (!ret && options->confine)
        ret = vfmig_confine_check(reterr);
    if (!ret)
        ret = engine_secure_init(e, reterr);
    if (ret)
        return ret;
    e->options.downtime_limit_ns = default_to(options->downtime_limit_ns, 300 * SECOND_NS / 1000);
    e->options.channels = (uint32_t)default_to(options->channels, 2);
    e->options.device_timeout_ns = default_to(options->device_timeout_ns, 10 * SECOND_NS);
    e->options.viommu_timeout_ns = default_to(options->viommu_timeout_ns, 10 * SECOND_NS);
    e->options.stall_ns = default_to(options->stall_ns, 10 * SECOND_NS);
    e->options.reconnect_ns = default_to(options->reconnect_ns, 10 * SECOND_NS);

    e->events = calloc(ENGINE_MAX_EVENTS, sizeof(*e->events));
    e->devices = calloc(vm->device_count ? vm->device_count : 1, sizeof(*e->devices));
    if (!e->events || !e->devices) {
        free(e->events);
        free(e->devices);
        vfmig_tls_creds_free(e->tls);
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for the engine");
    }
    pthread_mutex_init(&e->event_lock, NULL);
    engine_cond_init(&e->event_wake);
    pthread_mutex_init(&e->link_lock, NULL);
    pthread_mutex_init(&e->inbox_lock, NULL);
    engine_cond_init(&e->inbox_wake);
    pthread_mutex_init(&e->status_lock, NULL);
    engine_cond_init(&e->status_changed);
    pthread_mutex_init(&e->trace_lock, NULL);
    engine_measure_init(&e->measure);
    e->measure.throttle.max_percent = e->options.throttle_max;
    e->progress.device_count = vm->device_count;
    for (uint32_t i = 0; i < vm->memory.block_count; i++)
        e->progress.memory_bytes += vm->memory.blocks[i].size;
    for (uint32_t i = 0; i < vm->device_count && i < VFMIG_PROGRESS_DEVICES; i++)
        e->progress.device_state[i] = VFMIG_STATE_RUNNING;
    e->progress.downtime_limit_ns = e->options.downtime_limit_ns;
    return 0;
}

void engine_done(struct engine *e)
{
    engine_file_done(e);
    engine_local_forget(e);
    vfmig_tls_creds_free(e->tls);
    vfmig_journal_close(e->journal);
    for (unsigned i = 0; i < 4; i++)
        vfmig_buffer_free(&e->inbox[i]);
    vfmig_buffer_free(&e->blob);
    vfmig_buffer_free(&e->trace_kept);
    free(e->events);
    free(e->devices);
    pthread_mutex_destroy(&e->event_lock);
    pthread_cond_destroy(&e->event_wake);
    pthread_mutex_destroy(&e->link_lock);
    pthread_mutex_destroy(&e->inbox_lock);
    pthread_cond_destroy(&e->inbox_wake);
    pthread_mutex_destroy(&e->status_lock);
    pthread_cond_destroy(&e->status_changed);
    pthread_mutex_destroy(&e->trace_lock);
    engine_measure_done(&e->measure);
}

static bool from_peer(const struct engine_event *event)
{
    return event->kind == ENGINE_EVENT_MESSAGE || event->kind == ENGINE_EVENT_REPORT;
}

void engine_post(struct engine *e, const struct engine_event *event)
{
    pthread_mutex_lock(&e->event_lock);
    bool message = from_peer(event);
    bool full = e->event_count == ENGINE_MAX_EVENTS;

    /* Only what a peer sends can fill the ring: devices and works have one event each. */
    if (!full && !(message && e->message_count >= ENGINE_MAX_MESSAGES)) {
        e->events[(e->event_head + e->event_count++) % ENGINE_MAX_EVENTS] = *event;
        e->message_count += message;
        pthread_cond_signal(&e->event_wake);
    }
    pthread_mutex_unlock(&e->event_lock);
}

bool engine_next(struct engine *e, uint64_t until_ns, struct engine_event *ret_event)
{
    bool found = false;

    pthread_mutex_lock(&e->event_lock);
    while (!e->event_count && (until_ns == UINT64_MAX || vfmig_now_ns() < until_ns))
        engine_sleep_until(&e->event_wake, &e->event_lock, until_ns);
    if (e->event_count) {
        *ret_event = e->events[e->event_head];
        e->event_head = (e->event_head + 1) % ENGINE_MAX_EVENTS;
        e->event_count--;
        e->message_count -= from_peer(ret_event);
        found = true;
    }
    pthread_mutex_unlock(&e->event_lock);
    return found;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    if (!a || !b)
        return a ? a : b;
    return a < b ? a : b;
}

uint64_t engine_deadline(const struct engine *e)
{
    uint64_t sum;

    if (!e->options.deadline_ns)
        return 0;
    return __builtin_add_overflow(e->progress.started_ns, e->options.deadline_ns, &sum) ? UINT64_MAX
                                                                                         : sum;
}

bool engine_still_running(const struct engine *e)
{
    return e->flow_active && (e->flow.row < VFMIG_ROW_S3_ENTER || e->flow.row == VFMIG_ROW_ASK);
}

/* When the control thread has something to do without an event. */
uint64_t engine_wakeup(const struct engine *e)
{
    uint64_t at = e->flow_active ? e->flow.deadline_ns : 0;

    at = earlier(at, e->again_at_ns);
    if (engine_still_running(e) && !e->failure.code &&
        e->options.on_deadline == VFMIG_ON_DEADLINE_FAIL)
        at = earlier(at, engine_deadline(e));
    at = earlier(at, e->shutdown_at_ns);
    at = earlier(at, e->retry_at_ns);
    at = earlier(at, e->give_up_at_ns);
    at = earlier(at, e->reconnect_at_ns);
    at = earlier(at, e->answer_at_ns);
    at = earlier(at, e->beat_at_ns);
    at = earlier(at, engine_look_at(e));
    return at ? at : UINT64_MAX;
}
