/* SPDX-License-Identifier: BSD-3-Clause */
/* What the destination receives, and what it does with it beside the devices' state changes. */
#include "engine/destination.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "base/sabotage.h"
#include "io/sock.h"

#define CREDIT_PARTS 4u /* of a window, each told of when it is loaded */

/* --- records, in the receiver's threads --- */

/* With what the heap takes for it, so that a flood of small ones is no way round the limit. */
static size_t cost(size_t size)
{
    return size + sizeof(struct segment) + 32;
}

static bool has_room(const struct device_worker *dev, size_t size)
{
    const struct engine *e = dev->engine;

    return !size || (e->queued_bytes <= VFMIG_MAX_BACKLOG &&
                     (!dev->queued_bytes || dev->queued_bytes + size <= e->window)) ||
           vfmig_sabotage("backlog-unbounded");
}

/* A source that obeys CREDIT never comes here with a device's window full; one that does not (a file
 * cannot) stops its own channel. The end of a device's data takes up nothing. Devices load when the first
 * external state is here: on a channel that is stopped it might never come, nor the news that the source is gone. */
static int wait_for_room(struct device_worker *dev, size_t size, struct vfmig_error *reterr)
{
    struct engine *e = dev->engine;
    uint64_t part_ns = e->options.stall_ns / VFMIG_STALL_PARTS, until_ns = 0;
    unsigned parts = 0;
    int ret = 0;

    pthread_mutex_lock(&e->inbox_lock);
    while (ret == 0 && !has_room(dev, size) && !atomic_load(&e->abort)) {
        bool loads = e->inbox_full[VMSTATE_EXTERNAL_FIRST];
        bool over = until_ns && vfmig_now_ns() >= until_ns;
        until_ns = until_ns && !over ? until_ns : vfmig_deadline_ns(part_ns);
        if (!loads && over && !vfmig_sock_go_on(&parts))
            ret = vfmig_error_set(reterr, -ETIMEDOUT, VFMIG_ORIGIN_PEER, VFMIG_RECORD_DEVDATA,
                                  "device %s has more data than it may, and the state that comes first does not come",
                                  dev->id);
        if (ret)
            break;
        e->stopped_channels++;
        engine_sleep_until(&e->inbox_wake, &e->inbox_lock, loads ? UINT64_MAX : until_ns);
        e->stopped_channels--;
    }
    if (ret == 0) {
        dev->queued_bytes += size;
        e->queued_bytes += cost(size);
    }
    pthread_mutex_unlock(&e->inbox_lock);
    return ret;
}

/* Returns whether there is more to be loaded. */
static bool make_room(struct device_worker *dev, size_t size)
{
    struct engine *e = dev->engine;

    pthread_mutex_lock(&e->inbox_lock);
    dev->queued_bytes -= size;
    bool more = dev->queued_bytes;
    e->queued_bytes -= cost(size);
    pthread_cond_broadcast(&e->inbox_wake);
    pthread_mutex_unlock(&e->inbox_lock);
    return more;
}

/* Often enough that the source need not wait for it; always when nothing is left, because a segment
 * that is larger than the window waits for that. */
static void give_credit(struct device_worker *dev, bool more)
{
    struct engine *e = dev->engine;
    uint8_t out[VFMIG_CREDIT_BYTES];

    if (more && dev->loaded_bytes - dev->told_bytes < e->window / CREDIT_PARTS)
        return;
    dev->told_bytes = dev->loaded_bytes;
    vfmig_credit_encode(out, &(struct vfmig_credit){.device = dev->index, .bytes = dev->loaded_bytes});
    /* That the link is gone is found out by others. */
    (void)vfmig_channel_send(e->channels[VFMIG_RECORD_CONTROL], VFMIG_RECORD_CREDIT, out, sizeof(out),
                             NULL);
}

static int push_segment(struct device_worker *dev, const void *data, size_t size, bool more,
                        bool end, struct vfmig_error *reterr)
{
    struct segment *segment = malloc(sizeof(*segment) + size);

    if (!segment)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for the data of device %s", dev->id);
    segment->next = NULL;
    segment->end = end;
    segment->more = more;
    segment->size = size;
    if (size)
        memcpy(segment->data, data, size);
    int ret = wait_for_room(dev, size, reterr);
    if (ret) {
        free(segment);
        return ret;
    }
    pthread_mutex_lock(&dev->lock);
    if (atomic_load(&dev->engine->abort)) {
        pthread_mutex_unlock(&dev->lock);
        (void)make_room(dev, size);
        free(segment); /* nobody loads it any more */
        return 0;
    }
    *dev->tail = segment;
    dev->tail = &segment->next;
    dev->ended |= end;
    pthread_cond_broadcast(&dev->wake);
    pthread_mutex_unlock(&dev->lock);
    return 0;
}

/* A device's records are on one channel, so that one thread alone keeps its counts. */
static struct device_worker *device_of(struct engine *e, const struct vfmig_record *record,
                                       uint32_t index, struct vfmig_error *reterr)
{
    if (index >= e->vm.device_count) {
        vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_DEVDATA,
                        "data for device %u of %u", index, e->vm.device_count);
        return NULL;
    }
    if (record->channel != index % e->channel_count) {
        vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, record->tag,
                        "data for device %s on channel %u", e->devices[index].id, record->channel);
        return NULL;
    }
    if (e->devices[index].ended) {
        vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_DEVDATA,
                        "data for device %s after its end", e->devices[index].id);
        return NULL;
    }
    return &e->devices[index];
}

static int segment_complete(struct engine *e, struct device_worker *dev, const uint8_t *data,
                            size_t size, struct vfmig_error *reterr)
{
    dev->received_segments++;
    dev->received_bytes += size;
    if (vfmig_sabotage("drop-pre-copy-data") && dev->received_segments == 1)
        return 0;
    return push_segment(dev, data, size, /* more= */ false, /* end= */ false, reterr);
}

/* A device that takes parts gets each piece as it comes: nothing is held, however large the segment. */
static int pass_piece(struct device_worker *dev, const uint8_t *data, size_t size, bool more,
                      struct vfmig_error *reterr)
{
    if (size > VFMIG_MAX_DEVICE_PORTION - dev->passed)
        return vfmig_error_set(reterr, -ENOBUFS, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_DEVDATA,
                               "a segment of device %s is larger than %u bytes", dev->id,
                               VFMIG_MAX_DEVICE_PORTION);
    dev->passed = more ? dev->passed + size : 0;
    dev->received_bytes += size;
    dev->received_segments += !more;
    if (vfmig_sabotage("drop-pre-copy-data") && dev->received_segments <= 1)
        return 0;
    return push_segment(dev, data, size, more, /* end= */ false, reterr);
}

/* Pieces cannot wait for each other: what they may take up together is a limit. */
static int keep_piece(struct engine *e, struct device_worker *dev, const uint8_t *data, size_t size,
                      struct vfmig_error *reterr)
{
    pthread_mutex_lock(&e->inbox_lock);
    bool room = size <= VFMIG_MAX_UNFINISHED - e->unfinished_bytes || vfmig_sabotage("unfinished-unbounded");
    if (room)
        e->unfinished_bytes += size;
    pthread_mutex_unlock(&e->inbox_lock);
    if (!room)
        return vfmig_error_set(reterr, -ENOBUFS, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_DEVDATA,
                               "unfinished segments of all devices are larger than %u bytes",
                               VFMIG_MAX_UNFINISHED);
    int ret = 0;
    /* All of it at once: what is never written takes up nothing, and growing would hold it twice. */
    if (!dev->partial.size)
        ret = vfmig_buffer_reserve(&dev->partial, VFMIG_MAX_DEVICE_SEGMENT);
    if (ret == 0)
        ret = vfmig_buffer_append(&dev->partial, data, size);
    return ret ? vfmig_error_set(reterr, ret, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_DEVDATA,
                                 "a segment of device %s is larger than %u bytes", dev->id,
                                 VFMIG_MAX_DEVICE_SEGMENT)
               : 0;
}

static void forget_pieces(struct engine *e, struct device_worker *dev)
{
    pthread_mutex_lock(&e->inbox_lock);
    e->unfinished_bytes -= dev->partial.size;
    pthread_mutex_unlock(&e->inbox_lock);
    vfmig_buffer_free(&dev->partial);
    dev->partial.limit = VFMIG_MAX_DEVICE_SEGMENT;
}

static int device_data(struct engine *e, const struct vfmig_record *record,
                       struct vfmig_error *reterr)
{
    struct vfmig_device_piece piece;
    int ret = vfmig_device_piece_decode(record->payload, record->length, &piece, reterr);
    struct device_worker *dev = ret ? NULL : device_of(e, record, piece.device, reterr);

    if (!dev)
        return ret ? ret : -EBADMSG;
    if (piece.segment != dev->received_segments)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, record->tag,
                               "segment %llu of device %s instead of %llu",
                               (unsigned long long)piece.segment, dev->id,
                               (unsigned long long)dev->received_segments);
    const uint8_t *data = record->payload + VFMIG_DEVICE_PIECE_BYTES;
    size_t size = record->length - VFMIG_DEVICE_PIECE_BYTES;
    if (dev->target->ops->load_part)
        return pass_piece(dev, data, size, piece.more, reterr);
    if (!piece.more && !dev->partial.size)
        return segment_complete(e, dev, data, size, reterr);
    ret = keep_piece(e, dev, data, size, reterr);
    if (ret || piece.more)
        return ret;
    ret = segment_complete(e, dev, dev->partial.data, dev->partial.size, reterr);
    forget_pieces(e, dev);
    return ret;
}

static int device_end(struct engine *e, const struct vfmig_record *record, struct vfmig_error *reterr)
{
    struct vfmig_device_end end;
    int ret = vfmig_device_end_decode(record->payload, record->length, &end, reterr);
    struct device_worker *dev = ret ? NULL : device_of(e, record, end.device, reterr);

    if (!dev)
        return ret ? ret : -EBADMSG;
    if (dev->passed || end.segments != dev->received_segments || end.bytes != dev->received_bytes)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, record->tag,
                               "device %s: %llu segments of %llu bytes were sent, and %llu of %llu bytes arrived%s",
                               dev->id, (unsigned long long)end.segments, (unsigned long long)end.bytes,
                               (unsigned long long)dev->received_segments,
                               (unsigned long long)dev->received_bytes,
                               dev->passed ? ", and a part of one more" : "");
    return push_segment(dev, NULL, 0, /* more= */ false, /* end= */ true, reterr);
}

static int vm_state(struct engine *e, const struct vfmig_record *record, struct vfmig_error *reterr)
{
    uint32_t kind = record->length >= VMSTATE_HEAD_BYTES ? vfmig_le32_get(record->payload) : 0;
    int ret = 0;

    if (kind < VMSTATE_EXTERNAL_FIRST || kind > VMSTATE_VCPUS)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, record->tag,
                               "VM state of an unknown kind %u", kind);
    pthread_mutex_lock(&e->inbox_lock);
    if (e->inbox_full[kind])
        ret = vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, record->tag,
                              "VM state of kind %u came twice", kind);
    else
        ret = vfmig_buffer_append(&e->inbox[kind], record->payload + VMSTATE_HEAD_BYTES,
                                  record->length - VMSTATE_HEAD_BYTES);
    if (ret == 0) {
        e->inbox_full[kind] = true;
        if (kind == VMSTATE_VCPUS)
            e->final_round = vfmig_le64_get(record->payload + 8);
        pthread_cond_broadcast(&e->inbox_wake);
    }
    pthread_mutex_unlock(&e->inbox_lock);
    return ret;
}

int destination_on_question(void *user, const struct vfmig_record *record, struct vfmig_error *reterr)
{
    int ret = engine_common_record(user, record, reterr);

    return ret <= 0 ? ret
                    : vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_STREAM, record->tag,
                                      "the source sent %s", vfmig_record_info(record->tag)->name);
}

int destination_on_record(void *user, const struct vfmig_record *record, struct vfmig_error *reterr)
{
    struct engine *e = user;

    switch (record->tag) {
    case VFMIG_RECORD_DEVDATA:
        return device_data(e, record, reterr);
    case VFMIG_RECORD_DEVEND:
        return device_end(e, record, reterr);
    case VFMIG_RECORD_VMSTATE:
        return vm_state(e, record, reterr);
    case VFMIG_RECORD_RAMFDS:
        return engine_local_record(e, record, reterr);
    default:
        return destination_on_question(user, record, reterr);
    }
}

/* --- works --- */

static int given_up(struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -ECANCELED, VFMIG_ORIGIN_LOCAL, 0, "the migration was given up");
}

static int wait_inbox(struct engine *e, uint32_t kind, struct vfmig_error *reterr)
{
    pthread_mutex_lock(&e->inbox_lock);
    while (!e->inbox_full[kind] && !e->inbox_cut && !atomic_load(&e->abort))
        pthread_cond_wait(&e->inbox_wake, &e->inbox_lock);
    bool full = e->inbox_full[kind];
    pthread_mutex_unlock(&e->inbox_lock);
    if (full)
        return 0;
    return atomic_load(&e->abort) ? given_up(reterr)
                                  : vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_VMSTATE,
                                                    "the stream ended before the machine's state was there");
}

/* After wait_inbox: nobody writes a full slot again during an attempt. */
static int load_external(struct engine *e, uint32_t kind, struct vfmig_error *reterr)
{
    int ret = wait_inbox(e, kind, reterr);
    const bool first = kind == VMSTATE_EXTERNAL_FIRST; /* the other one is too late to foretell anything */
    const struct vfmig_cpu_use use = first ? vfmig_cpu_use() : (struct vfmig_cpu_use){0};
    uint64_t begin = vfmig_now_ns();

    if (ret || !e->vm.ops->external_load)
        return ret;
    ret = e->vm.ops->external_load(e->vm.opaque, e->inbox[kind].data, e->inbox[kind].size, reterr);
    if (first) {
        uint64_t took_ns = vfmig_now_ns() - begin, alone_ns = vfmig_cpu_alone(&use, took_ns);
        pthread_mutex_lock(&e->measure.lock);
        e->measure.external_load_ns = took_ns;
        e->measure.external_load_alone_ns = alone_ns;
        pthread_mutex_unlock(&e->measure.lock);
    }
    engine_trace_vmstate(e, kind, e->inbox[kind].size, ret);
    return ret;
}

static int receive_all(struct engine *e, struct vfmig_error *reterr)
{
    int ret = wait_inbox(e, VMSTATE_VCPUS, reterr);

    return ret ? ret : vfmig_receiver_wait_round(e->receiver, e->final_round, UINT64_MAX, reterr);
}

static int load_state(struct engine *e, struct vfmig_error *reterr)
{
    const struct vfmig_buffer *vcpus = &e->inbox[VMSTATE_VCPUS];
    int ret = 0;

    engine_stamp(e, &e->stamps.state_load_begin);
    if (!vfmig_sabotage("first-external-stays"))
        ret = load_external(e, VMSTATE_EXTERNAL_FINAL, reterr);
    if (ret == 0) {
        ret = e->vm.ops->state_load(e->vm.opaque, vcpus->data, vcpus->size, reterr);
        engine_trace_vmstate(e, VMSTATE_VCPUS, vcpus->size, ret);
    }
    engine_stamp(e, &e->stamps.state_load_end);
    return ret;
}

/* vCPUs that were let go may take the CPU from the thread that did it, for some milliseconds: the downtime
 * was over when the last of them ran, if the VMM can tell. */
static int start_vcpus(struct engine *e, struct vfmig_error *reterr)
{
    struct vfmig_vm_sample now = {0};
    uint64_t asked_ns = vfmig_now_ns();
    int ret = engine_vcpus_start(e, reterr);

    if (ret)
        return ret;
    if (e->vm.ops->sample)
        e->vm.ops->sample(e->vm.opaque, &now);
    if (now.vcpus_run_since_ns < asked_ns || now.vcpus_run_since_ns > vfmig_now_ns()) {
        engine_stamp(e, &e->stamps.running); /* paused, not all of them yet, or not known */
        return 0;
    }
    pthread_mutex_lock(&e->status_lock);
    if (!e->stamps.running)
        e->stamps.running = now.vcpus_run_since_ns;
    pthread_mutex_unlock(&e->status_lock);
    return 0;
}

int destination_do_work(struct engine *e, uint32_t work, struct vfmig_error *reterr)
{
    int ret;

    switch (work) {
    case VFMIG_WORK_EXTERNAL:
        ret = engine_local_adopt(e, reterr);
        return ret ? ret : load_external(e, VMSTATE_EXTERNAL_FIRST, reterr);
    case VFMIG_WORK_RECEIVE:
        return receive_all(e, reterr);
    case VFMIG_WORK_STATE_LOAD:
        return load_state(e, reterr);
    case VFMIG_WORK_VCPU_START:
        return start_vcpus(e, reterr);
    default:
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%s is no work of a destination", vfmig_work_name(work));
    }
}

static struct segment *next_segment(struct device_worker *dev)
{
    struct segment *segment;

    pthread_mutex_lock(&dev->lock);
    while (!dev->head && !dev->cut && !atomic_load(&dev->engine->abort))
        pthread_cond_wait(&dev->wake, &dev->lock);
    segment = atomic_load(&dev->engine->abort) ? NULL : dev->head;
    if (segment) {
        dev->head = segment->next;
        if (!dev->head)
            dev->tail = &dev->head;
    }
    pthread_mutex_unlock(&dev->lock);
    return segment;
}

static int load_segment(struct vfmig_target *t, const struct segment *segment,
                        struct vfmig_error *reterr)
{
    return t->ops->load_part
               ? t->ops->load_part(t, segment->data, segment->size, segment->more, reterr)
               : t->ops->load(t, segment->data, segment->size, reterr);
}

/* SEAL is on channel 0, and may be faster than the last data on another one that broke then. What else is on
 * channel 0 came before it, unless the source lies. */
void destination_cut_data(struct engine *e)
{
    pthread_mutex_lock(&e->inbox_lock);
    e->inbox_cut = !vfmig_sabotage("inbox-uncut");
    pthread_cond_broadcast(&e->inbox_wake);
    pthread_mutex_unlock(&e->inbox_lock);
    for (uint32_t i = 0; i < e->vm.device_count; i++) {
        struct device_worker *dev = &e->devices[i];
        pthread_mutex_lock(&dev->lock);
        dev->cut = true;
        pthread_cond_broadcast(&dev->wake);
        pthread_mutex_unlock(&dev->lock);
    }
}

/* Loads what arrives, in the order in which it was saved (C16, C66), until the end. */
int destination_do_data(struct engine *e, struct device_worker *dev, bool final,
                        struct vfmig_error *reterr)
{
    for (;;) {
        struct segment *segment = next_segment(dev);
        int ret = 0;

        if (!segment && !atomic_load(&e->abort))
            return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, VFMIG_RECORD_DEVEND,
                                   "the stream ended before all of its data was there");
        if (!segment)
            return given_up(reterr);
        bool end = segment->end;
        size_t size = segment->size;
        if (!end) {
            uint64_t begin = vfmig_now_ns();
            atomic_store(&dev->call_ns, begin);
            ret = load_segment(dev->target, segment, reterr);
            atomic_store(&dev->call_ns, 0);
            dev->bytes += segment->size;
            pthread_mutex_lock(&dev->lock);
            dev->loaded_bytes += segment->size;
            dev->loaded_ns += vfmig_now_ns() - begin;
            pthread_mutex_unlock(&dev->lock);
        }
        free(segment);
        bool more = make_room(dev, size);
        if (ret || end)
            return ret ? ret : destination_translate(e, dev, reterr);
        give_credit(dev, more);
    }
}
