/* SPDX-License-Identifier: BSD-3-Clause */
/* The feature dialect ("v2"): DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/sabotage.h"
#include "core/state.h"
#include "target/user_private.h"

#define DOUBT_BYTES 4096u /* asked for after a short answer */
#define MAX_RANGES 256u /* in one LOG_START; more and everything is logged */

static int short_reply(const struct user *u, const char *what, struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0, "%s: reply to %s is too short",
                           u->base.info.name, what);
}

static int get_state(struct vfmig_target *t, enum vfmig_state *ret_state,
                     struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    struct vfmig_user_feature_state data = {.device_state = 0};
    uint32_t size;
    int r = user_feature(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DEVICE_STATE, &data, 0,
                         sizeof(data), &size, vfmig_deadline_ns(u->opt.timeout_ns), reterr);

    if (r < 0)
        return r;
    if (size < sizeof(data.device_state))
        return short_reply(u, "the device state", reterr);
    if (data.device_state >= VFMIG_STATE_COUNT)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                               "%s says that its state is %u", t->info.name, data.device_state);
    *ret_state = (enum vfmig_state)data.device_state;
    return 0;
}

static int set_state(struct vfmig_target *t, enum vfmig_state state, uint64_t timeout_ns,
                     struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    struct vfmig_user_feature_state data = {.device_state = state};

    if (state == VFMIG_STATE_ERROR || !vfmig_state_supported(t->info.features, state))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, state,
                               "%s has no state %s to go to", t->info.name, vfmig_state_name(state));
    u->ended = u->doubtful = false;
    int r = user_settle(u, reterr);
    if (r < 0)
        return r;
    if (state == VFMIG_STATE_STOP_COPY)
        user_keep_config(u);
    r = user_feature(u, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_DEVICE_STATE, &data, sizeof(data),
                         sizeof(data), NULL, vfmig_deadline_ns(timeout_ns), reterr);
    if (r == 0) {
        u->asked = state;
        return user_catch_up(u, reterr);
    }
    if (reterr)
        reterr->state = state;
    return r;
}

/* The shared window whose turn it is. */
static uint8_t *next_window(struct user *u, struct vfmig_user_feature_window *ret_place,
                            uint32_t size)
{
    uint64_t offset = (uint64_t)u->shared_size * u->turn;

    u->turn = (u->turn + 1) % u->shared_count;
    *ret_place = (struct vfmig_user_feature_window){.offset = offset, .size = size};
    return u->shared + offset;
}

/* A server of ours fills a request completely while it has data, so a short answer in S is the last
 * one, and asking again would cost a round trip. */
static ssize_t save_in_place(struct vfmig_target *t, const void **ret_data, size_t size,
                             struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    uint32_t want = size < u->shared_size ? (uint32_t)size : u->shared_size, got = 0;
    struct vfmig_user_feature_window place;

    if (u->ended)
        return 0;
    *ret_data = next_window(u, &place, want);
    int r = user_feature(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_WINDOW_READ, &place,
                         sizeof(place), sizeof(place), &got, vfmig_deadline_ns(u->opt.timeout_ns),
                         reterr);
    if (r < 0)
        return r;
    if (got != sizeof(place) || place.size > want)
        return short_reply(u, "a read into the window", reterr);
    u->ended = place.size < want && u->asked == VFMIG_STATE_STOP_COPY;
    return (ssize_t)place.size;
}

static ssize_t save_by_window(struct vfmig_target *t, void *buf, size_t size,
                              struct vfmig_error *reterr)
{
    const void *data = NULL;
    ssize_t n = save_in_place(t, &data, size, reterr);

    if (n > 0)
        memcpy(buf, data, (size_t)n);
    return n;
}

/* The protocol says that a server fills a request while it has data, but drivers end a read where a
 * record of theirs ends: from a server of another make only nothing is the end. After a short answer
 * little is asked for, because libvfio-user answers at full length, with zeroes. */
static void note_read(struct user *u, uint32_t want, uint32_t got)
{
    bool in_s = u->asked == VFMIG_STATE_STOP_COPY;

    if (u->ours || vfmig_sabotage("short-read-is-the-end")) {
        u->ended = in_s && got < want;
        return;
    }
    u->ended = in_s && got == 0;
    u->doubtful = in_s && got < want;
}

static ssize_t save(struct vfmig_target *t, void *buf, size_t size, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;

    if (u->shared)
        return save_by_window(t, buf, size, reterr);
    uint32_t want = size < u->max_data ? (uint32_t)size : u->max_data;
    if (u->doubtful && want > DOUBT_BYTES)
        want = DOUBT_BYTES;
    struct vfmig_user_mig_data head = {.argsz = (uint32_t)sizeof(head) + want, .size = want};
    struct vfmig_call call = {
        .command = VFMIG_USER_MIG_DATA_READ,
        .request = &head,
        .request_size = sizeof(head),
        .reply_room = sizeof(head),
        .reply_data = buf,
        .reply_data_room = want,
    };
    struct vfmig_user_mig_data reply = {.size = 0};

    if (u->ended)
        return 0;
    call.reply = &reply;
    int r = user_call(u, &call, reterr);
    /* As kernel drivers say that there is nothing now (uAPI v2). */
    if (r == -ENOMSG && u->asked != VFMIG_STATE_STOP_COPY && !vfmig_sabotage("enomsg-is-an-error"))
        return 0;
    if (r < 0)
        return r;
    note_read(u, want, reply.size);
    return (ssize_t)reply.size;
}

static int load_by_window(struct user *u, const void *data, size_t size,
                          struct vfmig_error *reterr)
{
    int r = 0;

    for (size_t at = 0; r == 0 && at < size;) {
        uint32_t step = size - at < u->shared_size ? (uint32_t)(size - at) : u->shared_size;
        struct vfmig_user_feature_window place;
        memcpy(next_window(u, &place, step), (const char *)data + at, step);
        r = user_feature(u, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_WINDOW_WRITE, &place,
                         sizeof(place), sizeof(place), NULL, vfmig_deadline_ns(u->opt.timeout_ns),
                         reterr);
        at += step;
    }
    return r;
}

/* One message is on its way while the one before it is loaded: a refusal is heard one message late,
 * the last one before the state is left. */
static int load_message(struct user *u, const struct vfmig_call *call, struct vfmig_error *reterr)
{
    struct vfmig_ticket *before = u->loading;

    u->loading = NULL;
    int r = vfmig_conn_begin(u->conn, call, vfmig_deadline_ns(u->opt.timeout_ns), &u->loading,
                             reterr);
    if (before) {
        struct vfmig_error error;
        int first = vfmig_conn_finish(u->conn, before, &error);
        if (first < 0 && reterr)
            *reterr = error;
        r = first < 0 ? first : r;
    }
    if (r < 0)
        vfmig_error_prefix(reterr, "%s", u->base.info.name);
    return r;
}

static int load(struct vfmig_target *t, const void *data, size_t size, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;

    if (u->shared)
        return load_by_window(u, data, size, reterr);
    for (size_t at = 0; at < size;) {
        uint32_t step = size - at < u->max_write ? (uint32_t)(size - at) : u->max_write;
        struct vfmig_user_mig_data head = {.argsz = (uint32_t)sizeof(head) + step, .size = step};
        struct vfmig_call call = {
            .command = VFMIG_USER_MIG_DATA_WRITE,
            .request = &head,
            .request_size = sizeof(head),
            .data = (const char *)data + at,
            .data_size = step,
            .reply_room = sizeof(head), /* some answer with more than the header */
        };
        int r = load_message(u, &call, reterr);
        if (r < 0)
            return r;
        at += step;
    }
    return 0;
}

/* Boundaries mean nothing in a stream. */
static int load_part(struct vfmig_target *t, const void *data, size_t size, bool more,
                     struct vfmig_error *reterr)
{
    return load(t, data, size, reterr);
}

static int left(struct vfmig_target *t, uint64_t *ret_bytes, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    struct vfmig_user_feature_data_size data = {0};
    uint32_t size;

    *ret_bytes = UINT64_MAX;
    if (!u->data_size)
        return 0;
    int r = user_feature(u, VFMIG_USER_FEATURE_GET | VFMIG_USER_F_DATA_SIZE, &data, 0, sizeof(data),
                         &size, vfmig_deadline_ns(u->opt.timeout_ns), reterr);
    if (r == 0 && size < sizeof(data))
        return short_reply(u, "what is left", reterr);
    if (r == 0)
        *ret_bytes = data.stop_copy_length;
    return r;
}

static int log_stop(struct vfmig_target *t, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;

    return user_feature(u, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_STOP, NULL, 0, 0, NULL,
                        vfmig_deadline_ns(u->opt.timeout_ns), reterr);
}

static int send_start(struct user *u, uint64_t page_size, const struct vfmig_iova_range *ranges,
                      uint32_t count, struct vfmig_error *reterr)
{
    struct {
        struct vfmig_user_feature_log_start start;
        struct vfmig_user_log_range range[MAX_RANGES];
    } VFMIG_PACKED data;

    count = count <= MAX_RANGES ? count : 0; /* 0: everything */
    data.start = (struct vfmig_user_feature_log_start){.page_size = page_size, .num_ranges = count};
    for (uint32_t i = 0; i < count; i++)
        data.range[i] = (struct vfmig_user_log_range){ranges[i].iova, ranges[i].size};
    uint32_t size = (uint32_t)(sizeof(data.start) + count * sizeof(data.range[0])), got;
    int r = user_feature(u, VFMIG_USER_FEATURE_SET | VFMIG_USER_F_LOG_START, &data, size, size, &got,
                         vfmig_deadline_ns(u->opt.timeout_ns), reterr);
    if (r < 0)
        return r;
    uint64_t theirs = got >= sizeof(data.start) ? data.start.page_size : page_size;
    u->log_size = theirs == page_size ? 0 : theirs;
    /* One bit of theirs is then several of ours. */
    if (theirs < page_size || theirs > VFMIG_MAX_LOG_PAGE || (theirs & (theirs - 1))) {
        log_stop(&u->base, NULL);
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "%s logs pages of %llu bytes only", u->base.info.name,
                               (unsigned long long)theirs);
    }
    return 0;
}

/* C27: a log that somebody left on is stopped first, because a second start does not clear. */
static int log_start(struct vfmig_target *t, uint64_t page_size,
                     const struct vfmig_iova_range *ranges, uint32_t range_count,
                     struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;

    log_stop(t, NULL);
    return send_start(u, page_size, ranges, range_count, reterr);
}

static int fetch(struct user *u, uint64_t iova, uint64_t size, uint64_t page_size, uint64_t *words,
                 uint32_t bytes, struct vfmig_error *reterr)
{
    struct {
        struct vfmig_user_feature head;
        struct vfmig_user_feature_log_report report;
    } VFMIG_PACKED request = {
        .head = {.flags = VFMIG_USER_FEATURE_GET | VFMIG_USER_F_LOG_REPORT},
        .report = {iova, size, page_size},
    }, reply;
    struct vfmig_call call = {
        .command = VFMIG_USER_FEATURE,
        .request = &request,
        .request_size = sizeof(request),
        .reply = &reply,
        .reply_room = sizeof(reply),
        .reply_data = words,
        .reply_data_room = bytes,
    };

    request.head.argsz = (uint32_t)sizeof(request) + bytes;
    int r = user_call(u, &call, reterr);
    /* libvfio-user answers a range over two of its regions with success and no bitmap. */
    if (r == 0 && call.ret_size != sizeof(reply) + bytes)
        return short_reply(u, "a log report", reterr);
    return r == 0 ? user_same_report(u, &request.report, &reply.report, reterr) : r;
}

static int log_report(struct vfmig_target *t, uint64_t iova, uint64_t size, uint64_t page_size,
                      uint64_t *bitmap, struct vfmig_error *reterr)
{
    return user_log_report((struct user *)t, fetch, iova, size, page_size, bitmap, reterr);
}

const struct vfmig_target_ops user_feature_ops = {
    .name = "vfio-user feature",
    .get_state = get_state,
    .set_state = set_state,
    .reset = user_reset,
    .save = save,
    .save_in_place = save_in_place,
    .load = load,
    .load_part = load_part,
    .left = left,
    .log_start = log_start,
    .log_stop = log_stop,
    .log_report = log_report,
    .dma_map = user_dma_map,
    .dma_unmap = user_dma_unmap,
    .region_read = user_region_read,
    .region_write = user_region_write,
    .set_irqs = user_set_irqs,
    .get_handles = user_get_handles,
    .set_handles = user_set_handles,
    .close = user_close,
};
