/* SPDX-License-Identifier: BSD-3-Clause */
/* What the source does beside the devices' state changes; in the work and device threads. */
#include "engine/source.h"

#include <errno.h>
#include <stdlib.h>

#include "base/sabotage.h"
#include "io/sock.h"

#define SECOND_NS     UINT64_C(1000000000)
#define MIN_SAVE_BUFFER (UINT64_C(32) << 10)
#define MEASURED_BYTES  (UINT64_C(256) << 10) /* fewer say little about a device's rate */

static int stop_vcpus(struct engine *e, struct vfmig_error *reterr)
{
    /* Before it is: who does not read must not hold up a guest that stands. */
    engine_tell_stopped(e, true);
    engine_stamp(e, &e->stamps.stop_asked);
    engine_trace(e, VCPUS_STOPPING);
    int ret = e->vm.ops->vcpus_stop(e->vm.opaque, reterr);
    engine_trace(e, VCPUS_STOPPED, VFMIG_I(ret));
    if (ret)
        return ret;
    engine_count_bytes(e);
    pthread_mutex_lock(&e->status_lock);
    e->bytes_at_stop = e->progress.sent_running_bytes;
    e->pages_at_stop = e->progress.memory_running_bytes / VFMIG_PAGE_SIZE;
    pthread_mutex_unlock(&e->status_lock);
    engine_stamp(e, &e->stamps.parked);
    engine_throttle_off(e);
    e->stop_round = e->round;
    vfmig_mover_set_bandwidth(e->mover, 0); /* the limit is for the guest's sake; it waits now */
    vfmig_mover_set_seated(e->mover, true);
    return 0;
}

/* The two final snapshots. Only the second is relied upon; the first makes its share small. */
static void read_log(struct engine *e, enum engine_log log, uint64_t *begin, uint64_t *end,
                     uint64_t *ret_pages)
{
    *ret_pages = 0;
    engine_stamp(e, begin);
    /* Without both, the last one that was read is that of the last round: before N was asked for. */
    if (!vfmig_sabotage("skip-final-log") && !vfmig_sabotage("final-log-before-ndma"))
        engine_trackers_sync(e, log, ret_pages);
    engine_stamp(e, end);
}

/* vCPUs are parked, and devices with NDMA are quiet. */
static void first_snapshot(struct engine *e)
{
    const struct vfmig_cpu_use begin = vfmig_cpu_use();
    uint64_t pages;

    read_log(e, e->flow.quiet_log ? ENGINE_LOG_STOPPED : ENGINE_LOG_RUNNING, &e->stamps.snapshot_begin,
             &e->stamps.snapshot_end, &pages);
    e->measure.snapshot_alone_ns =
        vfmig_cpu_alone(&begin, e->stamps.snapshot_end - e->stamps.snapshot_begin);
}

int source_send_external(struct engine *e, uint32_t kind, struct vfmig_error *reterr)
{
    int ret = 0;

    e->blob.size = 0;
    e->blob.limit = VFMIG_MAX_VMSTATE - VMSTATE_HEAD_BYTES;
    struct vfmig_cpu_use use = {0};
    if (kind == VMSTATE_EXTERNAL_FIRST)
        use = vfmig_cpu_use();
    uint64_t begin = vfmig_now_ns();
    if (e->vm.ops->external_save &&
        !(kind == VMSTATE_EXTERNAL_FINAL && vfmig_sabotage("external-saved-once")))
        ret = e->vm.ops->external_save(e->vm.opaque, &e->blob, reterr);
    if (ret == 0)
        ret = engine_send_vmstate(e, kind, 0, &e->blob, reterr);
    engine_trace_vmstate(e, kind, e->blob.size, ret);
    /* That of the vCPUs, which cannot be tried, is taken as as much again. */
    e->vm_state_bytes = 2 * e->blob.size;
    if (kind != VMSTATE_EXTERNAL_FIRST)
        return ret; /* nothing is foretold any more, and the guest is waiting */
    uint64_t took_ns = vfmig_now_ns() - begin, alone_ns = vfmig_cpu_alone(&use, took_ns);
    pthread_mutex_lock(&e->measure.lock);
    engine_measure_sample(&e->measure.samples.vm_state, 2 * took_ns, &e->measure.samples.vm_state_alone,
                          2 * alone_ns);
    pthread_mutex_unlock(&e->measure.lock);
    return ret;
}

static int send_vm_state(struct engine *e, struct vfmig_error *reterr)
{
    int ret;

    engine_stamp(e, &e->stamps.state_begin);
    ret = source_send_external(e, VMSTATE_EXTERNAL_FINAL, reterr);
    if (ret)
        return ret;
    e->blob.size = 0;
    ret = e->vm.ops->state_save(e->vm.opaque, &e->blob, reterr);
    /* The rounds MEMORY and LAST_MEMORY follow the last one with vCPUs running. */
    if (ret == 0)
        ret = engine_send_vmstate(e, VMSTATE_VCPUS, e->stop_round + 2, &e->blob, reterr);
    engine_trace_vmstate(e, VMSTATE_VCPUS, e->blob.size, ret);
    engine_stamp(e, &e->stamps.state_end);
    return ret;
}

static int final_log(struct engine *e)
{
    uint64_t pages;

    if (vfmig_sabotage("rely-on-snapshot"))
        return 0;
    read_log(e, ENGINE_LOG_STOPPED, &e->stamps.log_begin, &e->stamps.log_end, &pages);
    pthread_mutex_lock(&e->status_lock);
    e->progress.final_log_pages = pages;
    pthread_mutex_unlock(&e->status_lock);
    return 0;
}

int source_do_work(struct engine *e, uint32_t work, struct vfmig_error *reterr)
{
    uint64_t pages;

    switch (work) {
    case VFMIG_WORK_TRACK_START:
        return engine_trackers_start(e, reterr);
    case VFMIG_WORK_TRACK_STOP:
        return engine_trackers_stop(e, reterr);
    case VFMIG_WORK_ROUND:
        return engine_round(e, reterr);
    case VFMIG_WORK_QUIET_LOG:
        engine_trackers_sync(e, ENGINE_LOG_QUIET, &pages);
        return 0;
    case VFMIG_WORK_VIOMMU_IDLE:
        return e->vm.ops->viommu_idle
                   ? e->vm.ops->viommu_idle(e->vm.opaque, e->options.viommu_timeout_ns, reterr)
                   : 0;
    case VFMIG_WORK_VCPU_STOP:
        return stop_vcpus(e, reterr);
    case VFMIG_WORK_VCPU_START:
        return engine_vcpus_start(e, reterr);
    case VFMIG_WORK_SNAPSHOT:
        first_snapshot(e);
        return 0;
    case VFMIG_WORK_TRIAL:
        return engine_trial(e, reterr);
    case VFMIG_WORK_FINAL_LOG:
        return final_log(e);
    case VFMIG_WORK_MEMORY:
        return engine_send_round(e, work, e->stop_round + 1, reterr);
    case VFMIG_WORK_LAST_MEMORY:
        return engine_send_round(e, work, e->stop_round + 2, reterr);
    case VFMIG_WORK_VM_STATE:
        return send_vm_state(e, reterr);
    default:
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%s is no work of a source",
                               vfmig_work_name(work));
    }
}

/* --- device data --- */

static int given_up(struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0, "the migration was given up");
}

static uint64_t estimate(struct device_worker *dev)
{
    uint64_t left = 0;

    /* A device that cannot say is taken as having little left. */
    if (dev->target->ops->left(dev->target, &left, NULL) || left == UINT64_MAX)
        return 0;
    return left;
}

static int send_end(struct engine *e, struct device_worker *dev, struct vfmig_channel *channel,
                    struct vfmig_error *reterr)
{
    uint8_t out[VFMIG_DEVICE_END_BYTES];
    struct vfmig_device_end end = {
        .device = dev->index, .segments = dev->segments, .bytes = dev->bytes};

    vfmig_device_end_encode(out, &end);
    return vfmig_channel_send(channel, VFMIG_RECORD_DEVEND, out, sizeof(out), reterr);
}

/* The next piece of a device's data: where it lies, or in buffer. *ret_more: it is a part of a portion
 * that is larger than the buffer. */
static ssize_t next_piece(struct device_worker *dev, void *buffer, size_t size,
                          const void **ret_data, bool *ret_more, struct vfmig_error *reterr)
{
    struct vfmig_target *t = dev->target;
    ssize_t got;

    atomic_store(&dev->call_ns, vfmig_now_ns());
    *ret_data = buffer;
    *ret_more = false;
    if (t->info.data_in_place && t->info.dialect == VFMIG_DIALECT_REGION)
        size = VFMIG_MAX_DEVICE_PORTION; /* which takes up nothing here */
    got = t->info.data_in_place ? t->ops->save_in_place(t, ret_data, size, reterr)
          : t->ops->save_part   ? t->ops->save_part(t, buffer, size, ret_more, reterr)
                                : t->ops->save(t, buffer, size, reterr);
    atomic_store(&dev->call_ns, 0);
    return got;
}

/* Until the destination's device has loaded enough: others go on meanwhile, on the same channel. */
static void wait_for_credit(struct engine *e, struct device_worker *dev, uint64_t size)
{
    uint64_t loaded;

    if (!e->window || vfmig_sabotage("send-without-credit"))
        return;
    pthread_mutex_lock(&e->inbox_lock);
    while (!atomic_load(&e->abort)) {
        loaded = atomic_load(&dev->credit_bytes);
        if (loaded >= dev->bytes || dev->bytes - loaded + size <= e->window)
            break;
        pthread_cond_wait(&e->inbox_wake, &e->inbox_lock);
    }
    pthread_mutex_unlock(&e->inbox_lock);
}

/* buffer may be NULL when the device's data is taken where it lies. */
static int stream_out(struct engine *e, struct device_worker *dev, bool final, void *buffer,
                      size_t size, uint64_t *ret_bytes, uint64_t *ret_waited_ns,
                      struct vfmig_error *reterr)
{
    /* All of a device's data is on one channel, in order. */
    struct vfmig_channel *channel = e->channels[dev->index % e->channel_count];
    uint64_t expected = final ? UINT64_MAX : estimate(dev);

    *ret_waited_ns = 0;
    for (*ret_bytes = 0; !atomic_load(&e->abort);) {
        const void *data = NULL;
        uint64_t waited;
        bool more;
        ssize_t got = next_piece(dev, buffer, size, &data, &more, reterr);
        if (got < 0)
            return (int)got;
        if (got == 0)
            return final ? send_end(e, dev, channel, reterr) : 0;
        wait_for_credit(e, dev, (uint64_t)got);
        int ret = vfmig_mover_share(e->mover, (uint64_t)got, &waited, reterr);
        *ret_waited_ns += waited;
        if (ret == 0)
            ret = vfmig_channel_send_part(channel, dev->index, dev->segments, data, (size_t)got,
                                          more, reterr);
        if (ret)
            return ret;
        dev->segments += !more;
        dev->bytes += (uint64_t)got;
        *ret_bytes += (uint64_t)got;
        /* A device may log changes as fast as they are read: the round of memory bounds it. */
        if (!final && !more && atomic_load(&e->round_over) && *ret_bytes >= expected)
            return 0;
    }
    return given_up(reterr);
}

int source_do_data(struct engine *e, struct device_worker *dev, bool final,
                   struct vfmig_error *reterr)
{
    const struct vfmig_target_info *info = &dev->target->info;
    size_t size = (size_t)info->max_data_xfer;
    uint64_t begin = vfmig_now_ns(), bytes, waited;
    int ret;

    /* One is loaded while the next one is on its way. A portion of the region dialect is what it is. */
    if (info->dialect == VFMIG_DIALECT_FEATURE && e->window && size > e->window / 2)
        size = (size_t)e->window / 2;
    if (size < MIN_SAVE_BUFFER)
        size = MIN_SAVE_BUFFER;
    if (size > VFMIG_MAX_DEVICE_SEGMENT)
        size = VFMIG_MAX_DEVICE_SEGMENT;
    void *buffer = dev->target->info.data_in_place ? NULL : malloc(size);
    if (!buffer && !dev->target->info.data_in_place)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for its data");
    ret = stream_out(e, dev, final, buffer, size, &bytes, &waited, reterr);
    free(buffer);
    if (ret)
        return ret;
    uint64_t took = vfmig_now_ns() - begin - waited;
    uint64_t left = final ? 0 : estimate(dev);
    pthread_mutex_lock(&dev->lock);
    dev->left_bytes = left;
    if (bytes >= MEASURED_BYTES && took)
        dev->rate_bytes = (uint64_t)((double)bytes * (double)SECOND_NS / (double)took);
    pthread_mutex_unlock(&dev->lock);
    pthread_mutex_lock(&e->status_lock);
    e->progress.device_bytes += bytes;
    pthread_mutex_unlock(&e->status_lock);
    return 0;
}
