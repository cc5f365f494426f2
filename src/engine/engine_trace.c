/* SPDX-License-Identifier: BSD-3-Clause */
/* The trace of an attempt: lines to the VMM, and the destination's to the source's when it asks. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/engine.h"
#include "engine/probes.h"
#include "io/sock.h"

/* In the identity of a source that wants the destination's lines. */
#define WISH "info.trace=1\n"

/* Called with the lock held. What does not fit is missed: the numbers of lines tell. */
static void keep_line(struct engine *e, const char *line)
{
    e->trace_kept.limit = VFMIG_MAX_TRACE_SENT;
    (void)vfmig_buffer_append(&e->trace_kept, line, strlen(line) + 1);
}

/* A line that does not fit its row of the table is an error of this program. */
void engine_trace_event(struct engine *e, enum vfmig_trace_event event,
                        const struct vfmig_trace_value *values)
{
    char line[VFMIG_TRACE_LINE];

    vfmig_probe(event, e->role == VFMIG_FLOW_SOURCE, values);
    if (!e->vm.ops->trace && e->role == VFMIG_FLOW_SOURCE)
        return;
    /* The time is taken under the lock: lines of a side are in the order of their times. */
    pthread_mutex_lock(&e->trace_lock);
    if (event == VFMIG_TRACE_HEAD)
        e->trace_lines = 0;
    struct vfmig_trace_head head = {
        .t_ns = vfmig_now_ns(), .n = e->trace_lines++, .source = e->role == VFMIG_FLOW_SOURCE};
    int ret = vfmig_trace_format(line, &head, event, values);
    assert(ret == 0);
    if (ret == 0 && e->vm.ops->trace)
        e->vm.ops->trace(e->vm.opaque, line);
    if (ret == 0 && e->trace_wanted && e->role == VFMIG_FLOW_DESTINATION)
        keep_line(e, line);
    pthread_mutex_unlock(&e->trace_lock);
}

static void trace_device(struct engine *e, uint32_t device)
{
    const struct vfmig_target_info *info = &e->vm.devices[device]->info;
    uint32_t has = info->features;
    char features[32];

    snprintf(
        features, sizeof(features), "%s%s%s", has & VFMIG_FEATURE_STOP_COPY ? " stop-copy" : "",
        has & VFMIG_FEATURE_NDMA ? " ndma" : "", has & VFMIG_FEATURE_PRE_COPY ? " pre-copy" : "");
    engine_trace(e, DEVICE, VFMIG_U(device), VFMIG_S(e->vm.device_ids[device]),
                 VFMIG_S(features[0] ? features + 1 : ""), VFMIG_B(info->dma_log));
}

/* id NULL: the destination listens. */
void engine_trace_begin(struct engine *e, const uint8_t *id, uint32_t epoch)
{
    char text[2 * VFMIG_MIGRATION_ID_BYTES + 1] = "";
    struct timespec wall;

    if (id)
        vfmig_ho_id_format(id, text);
    clock_gettime(CLOCK_REALTIME, &wall);
    engine_trace(e, HEAD, VFMIG_U(VFMIG_TRACE_VERSION), VFMIG_S(text), VFMIG_U(epoch),
                 VFMIG_U((uint64_t)wall.tv_sec * UINT64_C(1000000000) + (uint64_t)wall.tv_nsec),
                 VFMIG_U(e->vm.device_count), VFMIG_U(e->progress.memory_bytes),
                 VFMIG_U(e->options.downtime_limit_ns), VFMIG_U(e->options.channels));
    for (uint32_t i = 0; i < e->vm.device_count; i++)
        trace_device(e, i);
}

void engine_trace_vmstate(struct engine *e, uint32_t kind, uint64_t bytes, int ret)
{
    engine_trace(e, VMSTATE,
                 VFMIG_S(kind == VMSTATE_EXTERNAL_FIRST   ? "external-first"
                         : kind == VMSTATE_EXTERNAL_FINAL ? "external-final"
                                                          : "vcpus"),
                 VFMIG_U(bytes), VFMIG_I(ret));
}

int engine_vcpus_start(struct engine *e, struct vfmig_error *reterr)
{
    engine_trace(e, VCPUS_STARTING);
    int ret = e->vm.ops->vcpus_start(e->vm.opaque, reterr);
    engine_trace(e, VCPUS_RUNNING, VFMIG_I(ret));
    return ret;
}

/* --- the peer's lines --- */

int engine_trace_wish(struct engine *e, struct vfmig_buffer *identity, struct vfmig_error *reterr)
{
    if (!e->options.trace_peer || !e->vm.ops->trace)
        return 0;
    if (vfmig_buffer_printf(identity, WISH))
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for the identity");
    pthread_mutex_lock(&e->trace_lock);
    e->trace_wanted = true;
    pthread_mutex_unlock(&e->trace_lock);
    return 0;
}

void engine_trace_wished(struct engine *e, const char *identity)
{
    pthread_mutex_lock(&e->trace_lock);
    e->trace_wanted = strstr(identity, "\n" WISH) != NULL;
    e->trace_kept.size = 0;
    pthread_mutex_unlock(&e->trace_lock);
}

/* The last thing of an attempt. A source that is gone misses it. */
void engine_trace_send(struct engine *e)
{
    struct vfmig_buffer lines = {0};
    int ret = 0;

    engine_trace(e, END);
    pthread_mutex_lock(&e->trace_lock);
    bool wanted = e->trace_wanted;
    lines = e->trace_kept;
    memset(&e->trace_kept, 0, sizeof(e->trace_kept));
    e->trace_wanted = false;
    pthread_mutex_unlock(&e->trace_lock);
    for (size_t at = 0; wanted && ret == 0 && at < lines.size;) {
        size_t size = strlen((const char *)lines.data + at);
        ret = engine_send_progress(e, PROGRESS_TRACE, lines.data + at, size);
        at += size + 1;
    }
    if (wanted && ret == 0)
        (void)engine_send_progress(e, PROGRESS_TRACE, NULL, 0);
    vfmig_buffer_free(&lines);
}

static bool skip(const char **at, const char *text)
{
    bool there = !strncmp(*at, text, strlen(text));

    *at += there ? strlen(text) : 0;
    return there;
}

static void skip_number(const char **at)
{
    *at += strspn(*at, "0123456789");
}

/* Whether it is what a destination writes: it is about to be a line of our trace. */
static bool is_line(const uint8_t *data, size_t size, char *ret_line)
{
    const char *at = ret_line;

    if (size >= VFMIG_TRACE_LINE || data[size - 1] != '}')
        return false;
    for (size_t i = 0; i < size; i++)
        if (data[i] < ' ' || data[i] > '~')
            return false;
    memcpy(ret_line, data, size);
    ret_line[size] = 0;
    if (!skip(&at, "{\"t_ns\":"))
        return false;
    skip_number(&at);
    if (!skip(&at, ",\"n\":"))
        return false;
    skip_number(&at);
    return skip(&at, ",\"side\":\"destination\",\"ev\":\"");
}

/* size 0: that was all. */
void engine_trace_take(struct engine *e, const uint8_t *data, size_t size)
{
    char line[VFMIG_TRACE_LINE];

    pthread_mutex_lock(&e->trace_lock);
    e->trace_taken += size;
    if (!size || e->trace_taken > VFMIG_MAX_TRACE_SENT)
        e->trace_wanted = false;
    if (e->trace_wanted && e->role == VFMIG_FLOW_SOURCE && is_line(data, size, line))
        e->vm.ops->trace(e->vm.opaque, line);
    pthread_mutex_unlock(&e->trace_lock);
    /* The control thread may have waited for this. */
    if (!size)
        engine_post(e, &(struct engine_event){.kind = ENGINE_EVENT_REPORT});
}

bool engine_trace_awaited(struct engine *e)
{
    pthread_mutex_lock(&e->trace_lock);
    bool awaited = e->trace_wanted;
    pthread_mutex_unlock(&e->trace_lock);
    return awaited && e->linked;
}
