/* SPDX-License-Identifier: BSD-3-Clause */
/* The device of the fake kernel, in both dialects. */
#include <errno.h>
#include <string.h>

#include "fake_kernel.h"

/* ---- feature dialect: states ---- */

enum { ERR, STOP, RUN, COPY, RESUME, RUN_P2P, PRE, PRE_P2P };

/* Row: current. Column: asked for. The next arc; ERR: none. */
static const uint8_t next_hop[8][8] = {
    [STOP] = {ERR, STOP, RUN_P2P, COPY, RESUME, RUN_P2P, RUN_P2P, RUN_P2P},
    [RUN] = {ERR, RUN_P2P, RUN, RUN_P2P, RUN_P2P, RUN_P2P, PRE, RUN_P2P},
    [COPY] = {ERR, STOP, STOP, COPY, STOP, STOP, ERR, ERR},
    [RESUME] = {ERR, STOP, STOP, STOP, RESUME, STOP, STOP, STOP},
    [RUN_P2P] = {ERR, STOP, RUN, STOP, STOP, RUN_P2P, RUN, PRE_P2P},
    [PRE] = {ERR, RUN, RUN, PRE_P2P, RUN, RUN, PRE, PRE_P2P},
    [PRE_P2P] = {ERR, RUN_P2P, RUN_P2P, COPY, RUN_P2P, RUN_P2P, PRE, PRE_P2P},
};

static bool has_state(const struct fake_kernel *f, uint32_t state)
{
    static const uint32_t needs[8] = {0, 1, 0, 1, 1, 2, 4, 6};

    return state < 8 && (f->features & needs[state]) == needs[state];
}

static bool saves(uint32_t state)
{
    return state == COPY || state == PRE || state == PRE_P2P;
}

bool fake_runs(const struct fake_kernel *f)
{
    if (!f->features)
        return f->running;
    return f->state == RUN || f->state == RUN_P2P || f->state == PRE || f->state == PRE_P2P;
}

static bool resumed_well(struct fake_kernel *f)
{
    if (f->loaded_size == 0 && !f->strict)
        return true;
    return f->loaded_size == FAKE_IMAGE && !memcmp(f->loaded, f->image, FAKE_IMAGE);
}

/* One arc. *ret_opens: a session begins. */
static int step(struct fake_kernel *f, uint32_t to, bool *ret_opens)
{
    uint32_t from = f->state;

    if (f->quirk.fail_arc_to && f->quirk.fail_arc_to == to) {
        f->quirk.fail_arc_to = 0;
        if (f->quirk.arc_is_error) {
            f->state = ERR;
            f->session = 0;
        }
        return f->quirk.fail_arc;
    }
    bool bad = from == RESUME && !resumed_well(f);
    if ((saves(from) && !saves(to)) || from == RESUME)
        f->session = 0;
    if (bad) {
        f->state = ERR;
        return -EINVAL;
    }
    if ((saves(to) && !saves(from)) || to == RESUME) {
        f->session = ++f->sessions;
        f->at = f->loaded_size = 0;
        *ret_opens = true;
    }
    f->state = to;
    return 0;
}

static int walk(struct fake_kernel *f, uint32_t want, bool *ret_opens)
{
    while (f->state != want) {
        if (!has_state(f, want) || want == ERR || f->state == ERR)
            return -EINVAL;
        uint32_t next = next_hop[f->state][want];
        while (next != ERR && !has_state(f, next))
            next = next_hop[next][want];
        int r = next == ERR ? -EINVAL : step(f, next, ret_opens);
        if (r < 0)
            return r;
    }
    return want == ERR ? -EINVAL : 0;
}

static void stall(struct fake_kernel *f)
{
    pthread_mutex_unlock(&f->calls);
    pthread_mutex_lock(&f->lock);
    f->stalled = true;
    pthread_cond_broadcast(&f->changed);
    while (!f->released)
        pthread_cond_wait(&f->changed, &f->lock);
    pthread_mutex_unlock(&f->lock);
    pthread_mutex_lock(&f->calls);
}

static int set_state(struct fake_kernel *f, struct kernel_state *data)
{
    bool opens = false;

    if (f->quirk.stall)
        stall(f);
    int r = walk(f, data->state, &opens);
    data->data_fd = -1;
    if (r == 0 && opens && f->session && !f->quirk.no_fd)
        data->data_fd = fake_new_data_fd(f);
    else if (r == 0 && f->quirk.stray_fd)
        data->data_fd = 0;
    return r;
}

static int get_state(struct fake_kernel *f, struct kernel_state *data)
{
    data->data_fd = -1;
    data->state = f->quirk.bad_state ? 77 : f->state;
    if (f->stale_reads) {
        f->stale_reads--;
        data->state = f->state_before;
    }
    return 0;
}

/* ---- the feature ioctl ---- */

struct feature_row {
    uint32_t ops, size;
    bool there;
};

static struct feature_row row_of(const struct fake_kernel *f, uint32_t index)
{
    const uint32_t get = KERNEL_FEATURE_GET, set = KERNEL_FEATURE_SET;

    switch (index) {
    case KERNEL_F_MIGRATION:
        return (struct feature_row){get, 8, f->features};
    case KERNEL_F_DEVICE_STATE:
        return (struct feature_row){get | set, sizeof(struct kernel_state), f->features};
    case KERNEL_F_LOG_START:
        return (struct feature_row){set, sizeof(struct kernel_log_start), f->device_log};
    case KERNEL_F_LOG_STOP:
        return (struct feature_row){set, 0, f->device_log};
    case KERNEL_F_LOG_REPORT:
        return (struct feature_row){get, sizeof(struct kernel_log_report), f->device_log};
    case KERNEL_F_DATA_SIZE:
        return (struct feature_row){get, 8, f->features && f->data_size};
    default:
        return (struct feature_row){0};
    }
}

static int log_stop(struct fake_kernel *f)
{
    if (!f->log_on)
        return -EINVAL;
    f->log_on = false;
    return 0;
}

int fake_feature(struct fake_kernel *f, struct kernel_feature *head)
{
    const uint32_t ops = KERNEL_FEATURE_GET | KERNEL_FEATURE_SET;
    uint32_t flags = head->flags;
    void *data = head + 1;

    if (head->argsz < sizeof(*head) || (flags & ~(0xffffu | ops | KERNEL_FEATURE_PROBE)) ||
        (!(flags & KERNEL_FEATURE_PROBE) && ((flags & ops) == ops || !(flags & ops))))
        return -EINVAL;
    struct feature_row row = row_of(f, flags & 0xffff);
    if (!row.there)
        return -ENOTTY;
    if (flags & ops & ~row.ops)
        return -EINVAL;
    if (flags & KERNEL_FEATURE_PROBE)
        return 0;
    if (head->argsz < sizeof(*head) + row.size)
        return -EINVAL;
    uint64_t value = 0;
    switch (flags & 0xffff) {
    case KERNEL_F_MIGRATION:
        value = f->quirk.flags ? f->quirk.flags : f->features;
        break;
    case KERNEL_F_DATA_SIZE:
        if (f->quirk.size_error)
            return f->quirk.size_error;
        value = FAKE_IMAGE - f->at;
        break;
    case KERNEL_F_DEVICE_STATE:
        return flags & KERNEL_FEATURE_SET ? set_state(f, data) : get_state(f, data);
    case KERNEL_F_LOG_START:
        return fake_log_start(f, data);
    case KERNEL_F_LOG_STOP:
        return log_stop(f);
    default:
        return fake_log_report(f, data);
    }
    memcpy(data, &value, sizeof(value));
    return 0;
}

/* ---- the session ---- */

int fake_precopy_info(struct fake_kernel *f, struct kernel_precopy_info *info)
{
    if (info->argsz < sizeof(*info) || (f->state != PRE && f->state != PRE_P2P))
        return -EINVAL;
    info->flags = 0xa5a5a5a5; /* not defined, and no driver cleared them */
    info->initial_bytes = f->at < FAKE_PRE_COPY ? FAKE_PRE_COPY - f->at : 0;
    info->dirty_bytes = 0;
    if (f->quirk.huge_amounts)
        info->initial_bytes = info->dirty_bytes = UINT64_MAX - 1;
    return 0;
}

ssize_t fake_read(struct fake_kernel *f, const struct fake_file *file, uint8_t *data, size_t size)
{
    if (!f->session || file->session != f->session || !saves(f->state))
        return -ENODEV;
    if (!file->nonblock)
        return -EIO; /* a real one would wait for ever */
    if (f->on_read && f->state != COPY)
        f->on_read(f);
    if (f->quirk.busy_reads || f->quirk.never_ready)
        return -EAGAIN;
    uint64_t end = f->state == COPY ? FAKE_IMAGE : FAKE_PRE_COPY;
    uint64_t n = f->at < end ? end - f->at : 0;
    if (n == 0 && f->state == COPY)
        return f->quirk.enomsg_in_s ? -ENOMSG : 0;
    if (n == 0)
        return f->quirk.empty_precopy ? 0 : -ENOMSG;
    n = n < size ? n : size;
    if (f->quirk.read_piece && n > f->quirk.read_piece)
        n = f->quirk.read_piece;
    memcpy(data, f->image + f->at, n);
    f->at += n;
    return f->quirk.read_too_much ? (ssize_t)size + 1 : (ssize_t)n;
}

ssize_t fake_write(struct fake_kernel *f, const struct fake_file *file, const uint8_t *data,
                   size_t size)
{
    if (!f->session || file->session != f->session || f->state != RESUME)
        return -ENODEV;
    if (f->quirk.busy_reads || f->quirk.never_ready)
        return -EAGAIN;
    if (f->quirk.write_nothing)
        return 0;
    if (f->quirk.write_too_much)
        return (ssize_t)size + 1;
    if (f->quirk.write_piece && size > f->quirk.write_piece)
        size = f->quirk.write_piece;
    if (size > sizeof(f->loaded) - f->loaded_size)
        return -ENOSPC;
    memcpy(f->loaded + f->loaded_size, data, size);
    f->loaded_size += size;
    return (ssize_t)size;
}

int fake_reset(struct fake_kernel *f)
{
    f->resets++;
    if (f->quirk.reset_keeps_state)
        return 0;
    f->state_before = f->state;
    f->stale_reads = f->quirk.late_resets;
    f->state = RUN;
    f->session = 0;
    f->bits = VFMIG_V1_RUNNING;
    f->image_spent = f->segment_open = false;
    f->running = true;
    return 0;
}

/* ---- region dialect ---- */

#define REG(field) offsetof(struct kernel_migration_region, field)

static uint64_t data_end(const struct fake_kernel *f)
{
    return f->bits & VFMIG_V1_RUNNING ? FAKE_PRE_COPY : FAKE_IMAGE;
}

static uint64_t window_offset(const struct fake_kernel *f)
{
    return f->quirk.data_offset ? f->quirk.data_offset : FAKE_PAGE;
}

/* The segment that was open is taken. */
static uint64_t read_pending(struct fake_kernel *f)
{
    uint64_t left = f->quirk.old_image && f->image_spent ? 0 : data_end(f) - f->at;

    if (f->segment_open && !f->quirk.pending_before)
        left -= f->segment;
    if (f->segment_open)
        f->at += f->segment;
    f->segment_open = false;
    if (f->at == FAKE_IMAGE)
        f->image_spent = true;
    return left;
}

static uint64_t open_segment(struct fake_kernel *f)
{
    uint64_t n = data_end(f) - f->at;

    if (f->on_read && (f->bits & VFMIG_V1_RUNNING))
        f->on_read(f);
    f->segment = n < FAKE_PAGE / 2 ? n : FAKE_PAGE / 2;
    f->segment_open = true;
    memcpy(f->window + window_offset(f), f->image + f->at, f->segment);
    return f->segment;
}

static ssize_t refuse(const struct fake_kernel *f)
{
    return f->quirk.short_failure ? 0 : -EINVAL;
}

static ssize_t write_bits(struct fake_kernel *f, uint32_t value)
{
    uint32_t to = value & VFMIG_V1_MASK, from = f->bits & VFMIG_V1_MASK;
    bool known = f->quirk.ndma || !(to & VFMIG_V1_NDMA);

    if (!known || (value & ~VFMIG_V1_MASK) != f->quirk.reserved_bits || (to & 6) == 6 ||
        (to & 5) == 5 || (from & 6) == 6)
        return refuse(f);
    if (f->quirk.fail_arc && to == f->quirk.fail_arc_to) {
        f->quirk.fail_arc_to = VFMIG_V1_MASK;
        return f->quirk.short_failure ? 0 : f->quirk.fail_arc;
    }
    if (f->quirk.arrows_only &&
        ((from == 0 && to == VFMIG_V1_RESUMING) || (from == VFMIG_V1_RESUMING && to == 0)))
        return refuse(f);
    if (f->quirk.no_way_back && from == 0 && to == VFMIG_V1_RUNNING)
        return refuse(f);
    if ((from & VFMIG_V1_RESUMING) && to != from && !resumed_well(f)) {
        f->bits = VFMIG_V1_ERROR | f->quirk.reserved_bits;
        return -EIO;
    }
    if ((to & VFMIG_V1_SAVING) && !(from & VFMIG_V1_SAVING))
        f->at = 0;
    if (to == VFMIG_V1_RESUMING && from != to)
        f->loaded_size = f->commits = 0;
    if (f->quirk.halts_by_stop)
        f->running = to == 0 || (f->running && to == VFMIG_V1_RUNNING);
    else
        f->running = to & VFMIG_V1_RUNNING;
    if (f->quirk.gives_again || !(to & VFMIG_V1_SAVING))
        f->segment_open = false;
    f->bits = value;
    return 4;
}

static ssize_t read_register(struct fake_kernel *f, uint64_t offset, uint8_t *to, size_t size)
{
    uint32_t bits = f->bits | f->quirk.reserved_bits;
    uint64_t value;

    if (offset == REG(device_state) && size == 4) {
        if (f->stale_reads) {
            f->stale_reads--;
            bits = VFMIG_V1_SAVING;
        }
        memcpy(to, &bits, 4);
        return 4;
    }
    if (offset == REG(reserved) && size == 4) {
        memset(to, 0, size);
        return (ssize_t)size;
    }
    if (size != 8)
        return -EINVAL;
    bool in_save = f->bits & VFMIG_V1_SAVING, in_load = f->bits & VFMIG_V1_RESUMING;
    if (offset == REG(pending_bytes) && in_save) {
        if (f->quirk.short_pending)
            return 0;
        value = read_pending(f);
    } else if (offset == REG(data_offset) && (in_save || in_load)) {
        value = window_offset(f);
    } else if (offset == REG(data_size) && in_save) {
        value = f->quirk.data_size ? f->quirk.data_size : open_segment(f);
    } else {
        return -EINVAL;
    }
    memcpy(to, &value, 8);
    return 8;
}

static ssize_t write_register(struct fake_kernel *f, uint64_t offset, const uint8_t *from,
                              size_t size)
{
    uint64_t value = 0;

    if (size > 8)
        return -EINVAL;
    memcpy(&value, from, size);
    if (offset == REG(device_state) && size == 4)
        return write_bits(f, (uint32_t)value);
    if (offset == REG(reserved) && size == 4)
        return (ssize_t)size; /* ignored */
    if (offset != REG(data_size) || size != 8 || !(f->bits & VFMIG_V1_RESUMING) ||
        value > FAKE_REGION_SIZE - window_offset(f) || value > sizeof(f->loaded) - f->loaded_size)
        return -EINVAL;
    memcpy(f->loaded + f->loaded_size, f->window + window_offset(f), value);
    f->loaded_size += value;
    f->commits++;
    return 8;
}

ssize_t fake_region(struct fake_kernel *f, uint64_t offset, uint8_t *read_to,
                    const uint8_t *write_from, size_t size)
{
    if (offset < sizeof(struct kernel_migration_region))
        return read_to ? read_register(f, offset, read_to, size)
                       : write_register(f, offset, write_from, size);
    if (offset < window_offset(f) || offset > FAKE_REGION_SIZE || size > FAKE_REGION_SIZE - offset)
        return -EINVAL;
    if (read_to)
        memcpy(read_to, f->window + offset, size);
    else
        memcpy(f->window + offset, write_from, size);
    return (ssize_t)size;
}
