/* SPDX-License-Identifier: BSD-3-Clause */
/* The region dialect ("v1"): the migration region and DIRTY_PAGES. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/guard.h"
#include "base/sabotage.h"
#include "core/state.h"
#include "target/user_private.h"

#define ZERO_PORTIONS 4u /* portions of no bytes in a row, with pending_bytes above 0 (X6) */

static uint64_t deadline(const struct user *u)
{
    return vfmig_deadline_ns(u->opt.timeout_ns);
}

static int read_reg(struct user *u, uint64_t offset, void *value, uint32_t size,
                    uint64_t deadline_ns, struct vfmig_error *reterr)
{
    return user_region_access(u, u->mig_index, offset, value, NULL, size, deadline_ns, reterr);
}

static int read_pending(struct user *u, struct vfmig_error *reterr)
{
    u->unacknowledged = false;
    return read_reg(u, USER_REG(pending_bytes), &u->pending, sizeof(u->pending), deadline(u),
                    reterr);
}

static int nonsense(const struct user *u, const char *what, uint64_t value,
                    struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0, "%s: %s of 0x%llx makes no sense",
                           u->base.info.name, what, (unsigned long long)value);
}

/* ---- device_state ---- */

/* Bits that are ours to write; the others are kept as they are (RFC). N is one of them only where
 * capability 6 says that it exists. */
static uint32_t state_mask(const struct user *u)
{
    return u->mig_ndma ? VFMIG_V1_MASK : VFMIG_V1_MASK & ~VFMIG_V1_NDMA;
}

static int get_state(struct vfmig_target *t, enum vfmig_state *ret_state,
                     struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    uint32_t bits;
    int r = read_reg(u, USER_REG(device_state), &bits, sizeof(bits), deadline(u), reterr);

    if (r == 0 && vfmig_state_from_bits(bits & state_mask(u), ret_state) < 0)
        return nonsense(u, "device_state", bits, reterr);
    if (r == 0 && u->held && *ret_state == VFMIG_STATE_RESUMING)
        *ret_state = VFMIG_STATE_STOP;
    return r;
}

/* Reserved bits are kept. */
static int write_state(struct user *u, uint32_t bits, uint64_t deadline_ns,
                       struct vfmig_error *reterr)
{
    uint32_t value;
    int r = read_reg(u, USER_REG(device_state), &value, sizeof(value), deadline_ns, reterr);

    if (r < 0)
        return r;
    value = (value & ~state_mask(u)) | bits;
    return user_region_access(u, u->mig_index, USER_REG(device_state), NULL, &value, sizeof(value),
                              deadline_ns, reterr);
}

/* Moves that servers of other makes do not make in one step, or not at all (docs/foreign.md). */
static int foreign_state(struct user *u, enum vfmig_state state, uint32_t bits,
                         uint64_t deadline_ns, struct vfmig_error *reterr)
{
    struct vfmig_error err = {.code = 0};
    enum vfmig_state from = u->asked;

    if (state == VFMIG_STATE_STOP && from == VFMIG_STATE_RESUMING &&
        u->base.info.halt == VFMIG_HALT_LATE) {
        u->held = true;
        return 0;
    }
    if (state == VFMIG_STATE_STOP_COPY)
        user_keep_config(u);
    /* One that was stopped, or was about to be, may go on from {} only. */
    if (state == VFMIG_STATE_RUNNING && (from == VFMIG_STATE_STOP_COPY || u->halfway) &&
        !vfmig_sabotage("back-directly"))
        (void)write_state(u, 0, deadline_ns, NULL);
    int r = write_state(u, bits, deadline_ns, &err);
    /* {} to Z is not in the uAPI's drawing, R to Z is; and a device that cannot even go back to R can
     * be reset, since nothing is in it yet. */
    if (r == -EINVAL && state == VFMIG_STATE_RESUMING && from == VFMIG_STATE_STOP &&
        (write_state(u, VFMIG_V1_RUNNING, deadline_ns, NULL) == 0 ||
         user_send_reset(u, NULL) == 0))
        r = write_state(u, bits, deadline_ns, &err);
    u->halfway = r < 0 && !(bits & VFMIG_V1_RUNNING);
    if (r == 0)
        u->held = false;
    else if (reterr)
        *reterr = err;
    return r;
}

/* What became of the session. */
static int leave_session(struct user *u, struct vfmig_error *reterr)
{
    /* A portion that is open is taken already: some would give it again after the change. */
    int r = u->unacknowledged && !vfmig_sabotage("portion-left-open") ? read_pending(u, reterr) : 0;

    u->pending = u->part_left = 0;
    u->unacknowledged = u->loading_part = false;
    return r;
}

static int set_state(struct vfmig_target *t, enum vfmig_state state, uint64_t timeout_ns,
                     struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    uint64_t deadline_ns = vfmig_deadline_ns(timeout_ns);
    uint32_t bits;

    if (vfmig_state_to_bits(state, &bits) < 0 ||
        vfmig_state_check_bits(t->info.features, bits) < 0)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, state,
                               "%s has no state %s to go to", t->info.name, vfmig_state_name(state));
    int r = leave_session(u, reterr);
    if (r < 0)
        return r;
    r = u->ours ? write_state(u, bits, deadline_ns, reterr)
                : foreign_state(u, state, bits, deadline_ns, reterr);
    if (r == 0) {
        if (!(bits & VFMIG_V1_SAVING)) {
            u->saved_before |= u->saved;
            u->saved = false;
        }
        u->asked = state;
        return user_catch_up(u, reterr);
    }
    if (reterr)
        reterr->state = state;
    return r;
}

/* Nothing else tells whether a server makes this move, and without it nothing of what was loaded is
 * looked at before the guest is handed over. A device that goes to ERROR instead, because it was
 * given no data, does make it. */
int user_try_halt(struct user *u, struct vfmig_error *reterr)
{
    struct vfmig_target_info *info = &u->base.info;
    uint64_t deadline_ns = vfmig_deadline_ns(u->opt.reset_ns);
    uint32_t bits = 0;

    if (info->dialect != VFMIG_DIALECT_REGION || u->ours)
        return 0;
    if (write_state(u, VFMIG_V1_RESUMING, deadline_ns, NULL) == 0) {
        int halted = write_state(u, 0, deadline_ns, NULL);
        int r = read_reg(u, USER_REG(device_state), &bits, sizeof(bits), deadline_ns, reterr);
        if (r < 0)
            return r;
        if (halted < 0 && (bits & VFMIG_V1_MASK) == VFMIG_V1_RESUMING)
            info->halt = u->opt.late_load ? VFMIG_HALT_LATE : VFMIG_HALT_NEVER;
    }
    if (write_state(u, VFMIG_V1_RUNNING, deadline_ns, NULL) == 0)
        return 0;
    return user_reset(&u->base, reterr);
}

/* ---- the window ---- */

/* Where size bytes at offset of the region are mapped, or NULL. */
static uint8_t *mapped(const struct user *u, uint64_t offset, uint64_t size)
{
    if (!u->window || offset < u->window_offset || size > u->window_size ||
        offset - u->window_offset > u->window_size - size)
        return NULL;
    return u->window + (offset - u->window_offset);
}

/* Bytes of the data section: mapped where the server offers it, by message elsewhere. */
static int window_access(struct user *u, uint64_t offset, void *read_to, const void *write_from,
                         uint32_t size, struct vfmig_error *reterr)
{
    uint8_t *at = mapped(u, offset, size);

    if (!at)
        return user_region_access(u, u->mig_index, offset, read_to, write_from, size, deadline(u),
                                  reterr);
    if (vfmig_sabotage("window-unguarded"))
        memcpy(read_to ? read_to : at, read_to ? at : write_from, size);
    int r = read_to ? vfmig_guard_copy(read_to, at, size) : vfmig_guard_copy(at, write_from, size);
    return r == 0 ? 0
                  : vfmig_error_set(reterr, r, VFMIG_ORIGIN_PEER, 0,
                                    "%s: its window went away while it was in use",
                                    u->base.info.name);
}

/* Opens a portion of at most room bytes. */
static ssize_t open_portion(struct user *u, uint64_t *ret_offset, size_t room,
                            struct vfmig_error *reterr)
{
    uint64_t offset, size;
    int r = read_reg(u, USER_REG(data_offset), &offset, sizeof(offset), deadline(u), reterr);

    if (r == 0)
        r = read_reg(u, USER_REG(data_size), &size, sizeof(size), deadline(u), reterr);
    if (r < 0)
        return r;
    if (size && (offset < sizeof(struct vfmig_user_mig_region) || offset > u->mig_size))
        return nonsense(u, "data_offset", offset, reterr);
    if (size && size > u->mig_size - offset)
        return nonsense(u, "data_size", size, reterr);
    if (size > room || size > UINT32_MAX)
        return vfmig_error_set(reterr, -EMSGSIZE, VFMIG_ORIGIN_DEVICE, 0,
                               "%s: a portion of %llu bytes is too large", u->base.info.name,
                               (unsigned long long)size);
    *ret_offset = offset;
    u->unacknowledged = true;
    return (ssize_t)size;
}

/* The next portion that has bytes; 0: there is none now. */
static ssize_t next_portion(struct user *u, uint64_t *ret_offset, size_t room,
                            struct vfmig_error *reterr)
{
    if (u->pending == 0 || u->unacknowledged) {
        int r = read_pending(u, reterr);
        if (r < 0)
            return r;
    }
    for (unsigned empty = 0; u->pending && empty < ZERO_PORTIONS; empty++) {
        ssize_t n = open_portion(u, ret_offset, room, reterr);
        if (n != 0)
            return n;
        if (vfmig_sabotage("empty-portion-is-an-error"))
            return -EPROTO;
        if (u->asked != VFMIG_STATE_STOP_COPY) {
            u->pending = 0; /* nothing now: ask again next time */
            return 0;
        }
        int r = read_pending(u, reterr);
        if (r < 0)
            return r;
    }
    return 0;
}

/* The same. One driver had no data at all for whoever saved a second time, and went on as if that
 * were its state: what had data once and has none now is not believed. */
static ssize_t take_portion(struct user *u, uint64_t *ret_offset, size_t room,
                            struct vfmig_error *reterr)
{
    ssize_t n = next_portion(u, ret_offset, room, reterr);

    u->saved |= n > 0;
    if (n != 0 || u->asked != VFMIG_STATE_STOP_COPY || u->saved || !u->saved_before ||
        vfmig_sabotage("empty-is-believed"))
        return n;
    return vfmig_error_set(reterr, -ENODATA, VFMIG_ORIGIN_DEVICE, 0,
                           "%s says nothing where it has saved before: it must be reset first",
                           u->base.info.name);
}

/* It was taken. Reading pending_bytes says so, and serves as the beginning of the next one. */
static int acknowledge(struct user *u, uint64_t size, struct vfmig_error *reterr)
{
    if (!vfmig_sabotage("trust-pending-bytes"))
        return read_pending(u, reterr);
    u->pending = u->pending > size ? u->pending - size : 0;
    u->unacknowledged = false;
    return 0;
}

/* A portion, or as much of it as there is room for. */
static ssize_t save_part(struct vfmig_target *t, void *buf, size_t size, bool *ret_more,
                         struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;

    *ret_more = false;
    if (u->part_left == 0) {
        ssize_t n = take_portion(u, &u->part_offset, VFMIG_MAX_DEVICE_PORTION, reterr);
        if (n <= 0)
            return n;
        u->part_left = (uint64_t)n;
    }
    uint32_t step = u->part_left < size ? (uint32_t)u->part_left : (uint32_t)size;
    int r = window_access(u, u->part_offset, buf, NULL, step, reterr);
    u->part_offset += step;
    u->part_left -= step;
    *ret_more = u->part_left != 0;
    if (r == 0 && u->part_left == 0)
        r = acknowledge(u, step, reterr);
    return r < 0 ? r : (ssize_t)step;
}

static ssize_t save(struct vfmig_target *t, void *buf, size_t size, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    uint64_t offset = 0;
    ssize_t n = take_portion(u, &offset, size, reterr);

    if (n <= 0)
        return n;
    int r = window_access(u, offset, buf, NULL, (uint32_t)n, reterr);
    if (r == 0)
        r = acknowledge(u, (uint64_t)n, reterr);
    return r < 0 ? r : n;
}

/* The portion is acknowledged when the next one is asked for. What lies outside the mapping is
 * fetched. */
static ssize_t save_in_place(struct vfmig_target *t, const void **ret_data, size_t size,
                             struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    uint64_t offset = 0;
    ssize_t n = take_portion(u, &offset, size, reterr);

    if (n <= 0)
        return n;
    *ret_data = mapped(u, offset, (uint64_t)n);
    if (*ret_data)
        return n;
    if (u->copy_size < (uint64_t)n) {
        free(u->copy);
        u->copy = malloc((size_t)n);
        u->copy_size = u->copy ? (uint64_t)n : 0;
    }
    int r = u->copy ? window_access(u, offset, u->copy, NULL, (uint32_t)n, reterr)
                    : vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                                      "no memory for a portion");
    *ret_data = u->copy;
    return r < 0 ? r : n;
}

/* Tells that what was written to the window is a portion. */
static int commit(struct user *u, struct vfmig_error *reterr)
{
    uint64_t size = u->load_size;

    u->loading_part = false;
    return user_region_access(u, u->mig_index, USER_REG(data_size), NULL, &size, sizeof(size),
                              deadline(u), reterr);
}

/* Opens the window for a portion. */
static int open_window(struct user *u, struct vfmig_error *reterr)
{
    int r = read_reg(u, USER_REG(data_offset), &u->load_offset, sizeof(u->load_offset), deadline(u),
                     reterr);

    if (r == 0 && (u->load_offset < sizeof(struct vfmig_user_mig_region) ||
                   u->load_offset >= u->mig_size))
        return nonsense(u, "data_offset", u->load_offset, reterr);
    u->load_size = 0;
    u->loading_part = r == 0;
    return r;
}

/* Portions are kept whole unless the window here is smaller than where they came from. */
static int load_part(struct vfmig_target *t, const void *data, size_t size, bool more,
                     struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    int r = 0;

    for (size_t at = 0; r == 0 && at < size;) {
        if (!u->loading_part)
            r = open_window(u, reterr);
        if (r < 0)
            return r;
        uint64_t room = u->mig_size - u->load_offset;
        room = room < VFMIG_MAX_DATA_XFER_CAP ? room : VFMIG_MAX_DATA_XFER_CAP;
        uint64_t step = vfmig_sabotage("portion-not-split") ? size - at : room - u->load_size;
        step = step < size - at ? step : size - at;
        r = window_access(u, u->load_offset + u->load_size, NULL, (const char *)data + at,
                          (uint32_t)step, reterr);
        u->load_size += step;
        at += step;
        if (r == 0 && u->load_size >= room)
            r = commit(u, reterr);
    }
    return r == 0 && !more && u->loading_part ? commit(u, reterr) : r;
}

static int load(struct vfmig_target *t, const void *data, size_t size, struct vfmig_error *reterr)
{
    return load_part(t, data, size, /* more= */ false, reterr);
}

static int left(struct vfmig_target *t, uint64_t *ret_bytes, struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;
    int r = read_pending(u, reterr);

    if (r == 0)
        *ret_bytes = u->pending;
    return r;
}

/* ---- DIRTY_PAGES ---- */

static int dirty_switch(struct user *u, uint32_t flags, struct vfmig_error *reterr)
{
    struct vfmig_user_dirty_pages request = {.argsz = sizeof(request), .flags = flags};
    struct vfmig_call call = {
        .command = VFMIG_USER_DIRTY_PAGES,
        .request = &request,
        .request_size = sizeof(request),
        .reply = &request,
        .reply_room = sizeof(request),
    };

    return user_call(u, &call, reterr);
}

static int log_stop(struct vfmig_target *t, struct vfmig_error *reterr)
{
    return dirty_switch((struct user *)t, VFMIG_USER_DIRTY_STOP, reterr);
}

/* C27: starting a log that is on already succeeds and clears nothing, so it is stopped first. The
 * region dialect knows no ranges: all of the device's DMA is logged. */
static int log_start(struct vfmig_target *t, uint64_t page_size,
                     const struct vfmig_iova_range *ranges, uint32_t range_count,
                     struct vfmig_error *reterr)
{
    struct user *u = (struct user *)t;

    if (page_size != t->info.log_page_size)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "%s logs pages of %llu bytes only", t->info.name,
                               (unsigned long long)t->info.log_page_size);
    log_stop(t, NULL);
    return dirty_switch(u, VFMIG_USER_DIRTY_START, reterr);
}

static int fetch(struct user *u, uint64_t iova, uint64_t size, uint64_t page_size, uint64_t *words,
                 uint32_t bytes, struct vfmig_error *reterr)
{
    struct {
        struct vfmig_user_dirty_pages head;
        struct vfmig_user_dirty_range range;
    } VFMIG_PACKED request = {
        .head = {.flags = VFMIG_USER_DIRTY_GET},
        .range = {iova, size, {page_size, bytes}},
    }, reply;
    struct vfmig_call call = {
        .command = VFMIG_USER_DIRTY_PAGES,
        .request = &request,
        .request_size = sizeof(request),
        .reply = &reply,
        .reply_room = sizeof(reply),
        .reply_data = words,
        .reply_data_room = bytes,
    };

    request.head.argsz = (uint32_t)sizeof(request) + bytes;
    int r = user_call(u, &call, reterr);
    if (r == 0 && call.ret_size != sizeof(reply) + bytes)
        return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_PEER, 0,
                               "%s: reply to a log report is too short", u->base.info.name);
    const struct vfmig_user_feature_log_report
        asked = {iova, size, page_size},
        told = {reply.range.iova, reply.range.size, reply.range.bitmap.pgsize};
    return r == 0 ? user_same_report(u, &asked, &told, reterr) : r;
}

static int log_report(struct vfmig_target *t, uint64_t iova, uint64_t size, uint64_t page_size,
                      uint64_t *bitmap, struct vfmig_error *reterr)
{
    return user_log_report((struct user *)t, fetch, iova, size, page_size, bitmap, reterr);
}

const struct vfmig_target_ops user_region_ops = {
    .name = "vfio-user region",
    .get_state = get_state,
    .set_state = set_state,
    .reset = user_reset,
    .save = save,
    .save_part = save_part,
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
