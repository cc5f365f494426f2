/* SPDX-License-Identifier: BSD-3-Clause */
/* The connections of an attempt, and the records that both sides know. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#include "base/le.h"
#include "engine/engine.h"
#include "io/sock.h"

#define HO_MSG_BYTES   (VFMIG_HO_ID_BYTES + 8u)
#define CUT_WAIT_NS    UINT64_C(300000000)
#define CUT_WAIT_STEPS 100u

_Static_assert(HO_MSG_BYTES == sizeof(struct vfmig_ho_msg), "one form on the wire and in memory");

/* Tells the control thread when a link ends, and why. */
struct watch {
    struct engine *engine;
    struct vfmig_receiver *receiver;
    uint32_t generation;
};

static void *watch_main(void *arg)
{
    struct watch *watch = arg;
    struct engine_event event = {.kind = ENGINE_EVENT_LINK_LOST, .generation = watch->generation};

    (void)vfmig_receiver_wait_end(watch->receiver, &event.error);
    engine_post(watch->engine, &event);
    return NULL;
}

struct engine_link {
    struct watch watch;
    pthread_t thread;
};

/* Between rounds data channels are silent; channel 0 is not, both sides see to that. */
static void let_wait(struct vfmig_channel *channel)
{
    struct timeval forever = {0};

    if (vfmig_channel_index(channel) != VFMIG_RECORD_CONTROL)
        (void)setsockopt(vfmig_channel_fd(channel), SOL_SOCKET, SO_RCVTIMEO, &forever,
                         sizeof(forever));
}

/* Takes the channels, on failure too. */
int engine_link_new(struct engine *e, struct vfmig_channel **channels, uint32_t count,
                    uint32_t receive_count, const struct vfmig_memory *memory,
                    vfmig_record_fn on_record, struct vfmig_error *reterr)
{
    struct vfmig_receiver *receiver = NULL;
    struct engine_link *held = calloc(1, sizeof(*held));
    int ret;

    e->told_stopped = false;
    atomic_store(&e->peer_stopped, false);
    for (uint32_t i = 0; i < count; i++) {
        let_wait(channels[i]);
        vfmig_channel_set_follow(channels[i], &e->peer_stopped);
        if (e->options.confine)
            vfmig_channel_set_confined(channels[i]);
    }
    pthread_mutex_lock(&e->link_lock);
    memcpy(e->channels, channels, count * sizeof(*channels));
    e->channel_count = count;
    e->generation++;
    pthread_mutex_unlock(&e->link_lock);
    ret = held ? vfmig_receiver_new(channels, receive_count, memory, on_record, e, &receiver, reterr)
               : vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a link");
    pthread_mutex_lock(&e->link_lock);
    e->receiver = receiver;
    e->link = held;
    pthread_mutex_unlock(&e->link_lock);
    if (ret == 0) {
        held->watch = (struct watch){.engine = e, .receiver = receiver, .generation = e->generation};
        ret = -pthread_create(&held->thread, NULL, watch_main, &held->watch);
        if (ret)
            vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread");
    }
    if (ret) {
        free(held);
        e->link = NULL;
        engine_link_free(e, /* bye= */ false);
        return ret;
    }
    e->linked = true;
    return 0;
}

void engine_link_shutdown(struct engine *e)
{
    pthread_mutex_lock(&e->link_lock);
    for (uint32_t i = 0; i < e->channel_count; i++)
        vfmig_channel_shutdown(e->channels[i]);
    pthread_mutex_unlock(&e->link_lock);
}

/* Works that use the channels have ended before. */
void engine_link_free(struct engine *e, bool bye)
{
    struct vfmig_channel *channels[VFMIG_MAX_CHANNELS];
    struct vfmig_mover *mover;
    uint32_t count;

    pthread_mutex_lock(&e->link_lock);
    mover = e->mover;
    e->mover = NULL;
    pthread_mutex_unlock(&e->link_lock);
    vfmig_mover_free(mover);
    for (uint32_t i = 0; bye && e->linked && i < e->channel_count; i++)
        (void)vfmig_channel_send(e->channels[i], VFMIG_RECORD_BYE, NULL, 0, NULL);
    if (e->link) {
        /* Ends the watch, which must not outlive the receiver. Of one that failed it has ended, and the reason may
         * be on its way still: vfmig_receiver_free has a moment for that. */
        if (!bye || vfmig_receiver_failure(e->receiver, NULL) == 0)
            engine_link_shutdown(e);
        pthread_join(e->link->thread, NULL);
    }
    vfmig_receiver_free(e->receiver);
    pthread_mutex_lock(&e->link_lock);
    free(e->link);
    count = e->channel_count;
    memcpy(channels, e->channels, sizeof(channels));
    e->receiver = NULL;
    e->link = NULL;
    e->channel_count = 0;
    e->linked = false;
    pthread_mutex_unlock(&e->link_lock);
    for (uint32_t i = 0; i < count; i++)
        vfmig_channel_free(channels[i]);
}

void engine_link_cause(struct engine *e, struct vfmig_error *error)
{
    struct vfmig_error cause = {0};

    if (error->origin == VFMIG_ORIGIN_PEER && e->receiver &&
        vfmig_receiver_failure(e->receiver, &cause) < 0)
        *error = cause;
}

/* --- records --- */

/* A mover that is being cancelled may still sit in a send on this channel, and the guest waits: after
 * a moment the connections are cut. */
static void make_way(struct engine *e)
{
    struct timespec step = {.tv_nsec = CUT_WAIT_NS / CUT_WAIT_STEPS};
    struct vfmig_mover_progress progress = {0};

    if (!atomic_load(&e->abort) || !e->mover)
        return;
    for (unsigned i = 0; i < CUT_WAIT_STEPS; i++) {
        vfmig_mover_progress(e->mover, &progress);
        if (!progress.running)
            return;
        clock_nanosleep(CLOCK_MONOTONIC, 0, &step, NULL);
    }
    engine_link_shutdown(e);
}

int engine_send_msg(struct engine *e, const struct vfmig_ho_msg *msg, struct vfmig_error *reterr)
{
    uint8_t out[HO_MSG_BYTES];

    if (!e->linked)
        return vfmig_error_set(reterr, -ENOTCONN, VFMIG_ORIGIN_PEER, 0, "no connection to the peer");
    if (e->file)
        return engine_file_msg(e, msg, reterr);
    make_way(e);
    memcpy(out, msg->id, VFMIG_HO_ID_BYTES);
    vfmig_le32_put(out + VFMIG_HO_ID_BYTES, msg->epoch);
    out[VFMIG_HO_ID_BYTES + 4] = msg->kind;
    out[VFMIG_HO_ID_BYTES + 5] = msg->record;
    out[VFMIG_HO_ID_BYTES + 6] = msg->memory;
    out[VFMIG_HO_ID_BYTES + 7] = 0;
    return vfmig_channel_send(e->channels[0], VFMIG_RECORD_HANDOVER, out, sizeof(out), reterr);
}

int engine_ho_msg_decode(const struct vfmig_record *record, struct vfmig_ho_msg *ret_msg,
                         struct vfmig_error *reterr)
{
    const uint8_t *in = record->payload;

    if (record->length != HO_MSG_BYTES)
        return vfmig_error_set(reterr, -EBADMSG, VFMIG_ORIGIN_STREAM, record->tag,
                               "a handover message of %u bytes", record->length);
    memcpy(ret_msg->id, in, VFMIG_HO_ID_BYTES);
    ret_msg->epoch = vfmig_le32_get(in + VFMIG_HO_ID_BYTES);
    ret_msg->kind = in[VFMIG_HO_ID_BYTES + 4];
    ret_msg->record = in[VFMIG_HO_ID_BYTES + 5];
    ret_msg->memory = in[VFMIG_HO_ID_BYTES + 6];
    ret_msg->reserved = in[VFMIG_HO_ID_BYTES + 7];
    return 0;
}

/* More than was sent is no credit. Before the device's thread exists there is nobody to tell. */
int engine_credit_record(struct engine *e, const struct vfmig_record *record,
                         struct vfmig_error *reterr)
{
    struct vfmig_credit credit;
    int ret = vfmig_credit_decode(record->payload, record->length, &credit, reterr);

    if (ret || credit.device >= e->vm.device_count)
        return ret;
    struct device_worker *dev = &e->devices[credit.device];
    pthread_mutex_lock(&e->inbox_lock);
    if (credit.bytes > atomic_load(&dev->credit_bytes))
        atomic_store(&dev->credit_bytes, credit.bytes);
    pthread_cond_broadcast(&e->inbox_wake);
    pthread_mutex_unlock(&e->inbox_lock);
    return 0;
}

/* PROGRESS: one byte says which. */
int engine_send_progress(struct engine *e, char kind, const void *data, size_t size)
{
    struct iovec parts[2] = {{.iov_base = &kind, .iov_len = 1},
                             {.iov_base = (void *)data, .iov_len = size}};

    if (!e->linked || e->file) /* a file needs no sign of life */
        return -ENOTCONN;
    return vfmig_channel_sendv(e->channels[0], VFMIG_RECORD_PROGRESS, parts, 2, NULL);
}

void engine_tell_stopped(struct engine *e, bool stopped)
{
    if (e->told_stopped == stopped)
        return;
    e->told_stopped = stopped;
    (void)engine_send_progress(e, PROGRESS_STOPPED, stopped ? "\1" : "", 1);
}

int engine_send_report(struct engine *e, const struct engine_report *report)
{
    uint8_t out[40];

    vfmig_le64_put(out, report->grant_received);
    vfmig_le64_put(out + 8, report->running);
    vfmig_le64_put(out + 16, report->journal_ns);
    vfmig_le64_put(out + 24, report->device_load_ns);
    vfmig_le64_put(out + 32, report->state_load_ns);
    return engine_send_progress(e, PROGRESS_REPORT, out, sizeof(out));
}

static void take_progress(struct engine *e, const struct vfmig_record *record)
{
    const uint8_t *in = record->payload + 1;
    size_t size = record->length - 1;

    if (record->payload[0] == PROGRESS_TRACE) {
        engine_trace_take(e, in, size);
        return;
    }
    pthread_mutex_lock(&e->inbox_lock);
    if (record->payload[0] == PROGRESS_REPORT && size == 40) {
        e->report = (struct engine_report){.valid = true,
                                           .grant_received = vfmig_le64_get(in),
                                           .running = vfmig_le64_get(in + 8),
                                           .journal_ns = vfmig_le64_get(in + 16),
                                           .device_load_ns = vfmig_le64_get(in + 24),
                                           .state_load_ns = vfmig_le64_get(in + 32)};
        pthread_cond_broadcast(&e->inbox_wake);
        engine_post(e, &(struct engine_event){.kind = ENGINE_EVENT_REPORT});
    } else if (record->payload[0] == PROGRESS_TAKEN && e->role == VFMIG_FLOW_SOURCE) {
        engine_measure_taken(e, in, size);
        pthread_cond_broadcast(&e->inbox_wake);
    } else if (record->payload[0] == PROGRESS_LOADED && e->role == VFMIG_FLOW_SOURCE) {
        engine_measure_loaded(e, in, size);
    } else if (record->payload[0] == PROGRESS_STOPPED && e->role == VFMIG_FLOW_DESTINATION && size == 1) {
        atomic_store(&e->peer_stopped, in[0] != 0);
    } else if (record->payload[0] == PROGRESS_REASON) {
        size = size < sizeof(e->peer_reason) ? size : sizeof(e->peer_reason) - 1;
        for (size_t i = 0; i < size; i++)
            e->peer_reason[i] = in[i] >= ' ' && in[i] < 127 ? (char)in[i] : '?';
        e->peer_reason[size] = 0;
    }
    pthread_mutex_unlock(&e->inbox_lock);
}

int engine_common_record(struct engine *e, const struct vfmig_record *record,
                         struct vfmig_error *reterr)
{
    struct engine_event event = {.kind = ENGINE_EVENT_MESSAGE, .at_ns = record->received_ns};
    struct vfmig_error said = {0};
    int ret;

    switch (record->tag) {
    case VFMIG_RECORD_HANDOVER:
        ret = engine_ho_msg_decode(record, &event.msg, reterr);
        if (ret == 0 && e->file)
            ret = engine_file_heard(e, &event.msg, reterr);
        if (ret == 0)
            engine_post(e, &event);
        return ret;
    case VFMIG_RECORD_PROGRESS:
        take_progress(e, record);
        return 0;
    case VFMIG_RECORD_ERROR:
        ret = vfmig_stream_error_decode(record->payload, record->length, &said, reterr);
        return ret ? ret
                   : vfmig_error_set(reterr, -EREMOTEIO, VFMIG_ORIGIN_PEER, 0,
                                     "the other side gave up: %s", said.text);
    case VFMIG_RECORD_BYE:
    case VFMIG_RECORD_PONG:
        return 0;
    default:
        return 1;
    }
}

int engine_send_vmstate(struct engine *e, uint32_t kind, uint64_t final_round,
                        const struct vfmig_buffer *blob, struct vfmig_error *reterr)
{
    uint8_t head[VMSTATE_HEAD_BYTES];
    struct iovec parts[2] = {{.iov_base = head, .iov_len = sizeof(head)},
                             {.iov_base = blob->data, .iov_len = blob->size}};

    vfmig_le32_put(head, kind);
    vfmig_le32_put(head + 4, 0);
    vfmig_le64_put(head + 8, final_round);
    return vfmig_channel_sendv(e->channels[0], VFMIG_RECORD_VMSTATE, parts, blob->size ? 2 : 1,
                               reterr);
}
