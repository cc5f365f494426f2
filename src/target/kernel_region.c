/* SPDX-License-Identifier: BSD-3-Clause */
/* The region dialect ("v1") of kernel devices: the migration region. What drivers of its time did
 * beside the documents is known from what was posted of them (docs/foreign.md). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/caps.h"
#include "base/guard.h"
#include "base/sabotage.h"
#include "core/state.h"
#include "target/kernel_private.h"

#define ZERO_PORTIONS 4u /* portions of no bytes in a row, with pending_bytes above 0 (X6) */
#define MAX_AREAS     64u
#define REG(field)    offsetof(struct kernel_migration_region, field)

/* ---- finding it ---- */

/* Maps the largest area of the data section that the driver lets us map; the rest, or all of it if
 * that fails, is read and written. */
static void map_window(struct kernel *k, const struct kernel_region *region, const uint8_t *cap,
                       uint32_t cap_size)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), best = 0, best_size = 0, file;
    struct vfio_region_info_cap_sparse_mmap sparse;
    struct vfio_region_sparse_mmap_area area;
    void *at = NULL;

    if (cap_size < sizeof(sparse))
        return;
    memcpy(&sparse, cap, sizeof(sparse)); /* before 6.6 it need not be aligned */
    if (sparse.nr_areas > MAX_AREAS || cap_size - sizeof(sparse) < sparse.nr_areas * sizeof(area))
        return;
    for (uint32_t i = 0; i < sparse.nr_areas; i++) {
        memcpy(&area, cap + sizeof(sparse) + i * sizeof(area), sizeof(area));
        uint64_t offset = area.offset, bytes = area.size;
        if (offset >= page && offset < region->size && bytes <= region->size - offset &&
            bytes > best_size) {
            best = offset;
            best_size = bytes;
        }
    }
    if (best_size == 0 || best % page || best_size % page ||
        best_size > (uint64_t)VFMIG_MAX_DATA_XFER_CAP * VFMIG_MAX_WINDOWS ||
        __builtin_add_overflow(region->offset, best, &file) || file % page || file > INT64_MAX ||
        k->calls->mmap(k->opt.opaque, k->device, file, (size_t)best_size, /* writable= */ true,
                       &at) < 0)
        return;
    vfmig_guard_arm();
    k->window = at;
    k->window_offset = best;
    k->window_size = best_size;
}

void kernel_look_at_region(struct kernel *k, uint32_t index, const void *info, uint32_t size)
{
    const struct vfio_region_info *head = info;
    uint32_t cap_size = 0, first = head->flags & VFIO_REGION_INFO_FLAG_CAPS ? head->cap_offset : 0;
    const struct vfio_region_info_cap_type *type =
        vfmig_find_cap(info, size, first, VFIO_REGION_INFO_CAP_TYPE, &cap_size);

    if (k->mig_index || index < VFIO_PCI_NUM_REGIONS || !type || cap_size < sizeof(*type) ||
        type->type != KERNEL_REGION_MIGRATION || type->subtype != KERNEL_SUBTYPE_MIGRATION ||
        head->size <= sizeof(struct kernel_migration_region))
        return;
    k->mig_index = index;
    k->mig_ndma = vfmig_find_cap(info, size, first, KERNEL_CAP_NDMA, &cap_size) != NULL;
    const void *sparse =
        vfmig_find_cap(info, size, first, VFIO_REGION_INFO_CAP_SPARSE_MMAP, &cap_size);
    if (sparse && (head->flags & VFIO_REGION_INFO_FLAG_MMAP))
        map_window(k, &k->regions[index], sparse, cap_size);
}

uint32_t kernel_region_probe(const struct kernel *k)
{
    return !k->mig_index ? 0
                         : VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_PRE_COPY |
                               (k->mig_ndma ? VFMIG_FEATURE_NDMA : 0);
}

/* ---- registers ---- */

static int read_reg(struct kernel *k, uint64_t offset, void *value, uint32_t size,
                    struct vfmig_error *reterr)
{
    return kernel_access(k, k->mig_index, offset, value, NULL, size, reterr);
}

static int nonsense(const struct kernel *k, const char *what, uint64_t value,
                    struct vfmig_error *reterr)
{
    return vfmig_error_set(reterr, -EPROTO, VFMIG_ORIGIN_DEVICE, 0,
                           "%s: %s of 0x%llx makes no sense", k->base.info.name, what,
                           (unsigned long long)value);
}

static int read_pending(struct kernel *k, struct vfmig_error *reterr)
{
    return read_reg(k, REG(pending_bytes), &k->pending, sizeof(k->pending), reterr);
}

/* Bits that are ours to write. N is one of them only where capability 6 says that it exists. */
static uint32_t state_mask(const struct kernel *k)
{
    return k->mig_ndma ? VFMIG_V1_MASK : VFMIG_V1_MASK & ~VFMIG_V1_NDMA;
}

static int read_state(struct kernel *k, enum vfmig_state *ret_state, struct vfmig_error *reterr)
{
    uint32_t bits;
    int r = read_reg(k, REG(device_state), &bits, sizeof(bits), reterr);

    return r == 0 && vfmig_state_from_bits(bits & state_mask(k), ret_state) < 0
               ? nonsense(k, "device_state", bits, reterr)
               : r;
}

static int get_state(struct vfmig_target *t, enum vfmig_state *ret_state,
                     struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    int r = kernel_settle(k, reterr);

    if (r == 0)
        r = read_state(k, ret_state, reterr);
    if (r == 0 && k->held && *ret_state == VFMIG_STATE_RESUMING)
        *ret_state = VFMIG_STATE_STOP;
    return r;
}

/* Reserved bits are kept (RFC). */
static int write_state(struct kernel *k, uint32_t bits, struct vfmig_error *reterr)
{
    uint32_t value;
    int r = read_reg(k, REG(device_state), &value, sizeof(value), reterr);

    if (r < 0)
        return r;
    value = (value & ~state_mask(k)) | bits;
    return kernel_access(k, k->mig_index, REG(device_state), NULL, &value, sizeof(value), reterr);
}

/* A portion that is open is taken already: where the stream goes on it is acknowledged, because
 * some would give it again (X4). */
static int leave_portion(struct kernel *k, uint32_t bits, struct vfmig_error *reterr)
{
    bool goes_on = k->part_left && (bits & VFMIG_V1_SAVING);
    int r = goes_on && !vfmig_sabotage("kernel-portion-left-open") ? read_pending(k, reterr) : 0;

    kernel_session_end(k);
    return r;
}

/* A kernel_work. The ways round are those that vfio-user servers of the same drivers need. */
static int change_state(struct kernel *k, uint32_t state, struct vfmig_error *reterr)
{
    enum vfmig_state from = k->asked;
    uint32_t bits = 0;

    (void)vfmig_state_to_bits(state, &bits);
    int r = leave_portion(k, bits, reterr);
    if (r < 0)
        return r;
    if (state == VFMIG_STATE_STOP && from == VFMIG_STATE_RESUMING &&
        k->base.info.halt == VFMIG_HALT_LATE) {
        k->held = true;
        return 0;
    }
    /* One that was stopped, or was about to be, may go on from {} only. */
    if (state == VFMIG_STATE_RUNNING && (from == VFMIG_STATE_STOP_COPY || k->halfway) &&
        !vfmig_sabotage("kernel-back-directly"))
        (void)write_state(k, 0, NULL);
    r = write_state(k, bits, reterr);
    /* {} to Z is not in the uAPI's drawing, R to Z is; and a device that cannot even go back to R
     * can be reset, since nothing is in it yet. */
    if (r == -EINVAL && state == VFMIG_STATE_RESUMING && from == VFMIG_STATE_STOP &&
        (write_state(k, VFMIG_V1_RUNNING, NULL) == 0 || kernel_send_reset(k, 0, NULL) == 0))
        r = write_state(k, bits, reterr);
    k->halfway = r < 0 && !(bits & VFMIG_V1_RUNNING);
    if (r < 0) {
        if (reterr)
            reterr->state = state;
        return r;
    }
    k->held = false;
    if (!(bits & VFMIG_V1_SAVING)) {
        k->saved_before |= k->saved;
        k->saved = false;
    }
    k->asked = (enum vfmig_state)state;
    return 0;
}

static int set_state(struct vfmig_target *t, enum vfmig_state state, uint64_t timeout_ns,
                     struct vfmig_error *reterr)
{
    uint32_t bits;

    if (vfmig_state_to_bits(state, &bits) < 0 || vfmig_state_check_bits(t->info.features, bits) < 0)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, state,
                               "%s has no state %s to go to", t->info.name,
                               vfmig_state_name(state));
    return kernel_work_until((struct kernel *)t, change_state, state, timeout_ns, reterr);
}

/* Nothing else tells whether a driver makes this move, and without it nothing of what was loaded is
 * looked at before the guest is handed over. One that goes to ERROR instead, because it was given
 * no data, does make it. */
int kernel_try_halt(struct kernel *k, struct vfmig_error *reterr)
{
    uint32_t bits = 0;

    if (write_state(k, VFMIG_V1_RESUMING, NULL) == 0) {
        int halted = write_state(k, 0, NULL);
        int r = read_reg(k, REG(device_state), &bits, sizeof(bits), reterr);
        if (r < 0)
            return r;
        if (halted < 0 && (bits & VFMIG_V1_MASK) == VFMIG_V1_RESUMING)
            k->base.info.halt = k->opt.late_load ? VFMIG_HALT_LATE : VFMIG_HALT_NEVER;
    }
    return write_state(k, VFMIG_V1_RUNNING, NULL) == 0 ? 0 : kernel_reset(&k->base, reterr);
}

/* ---- the window ---- */

static int window_access(struct kernel *k, uint64_t offset, void *read_to, const void *write_from,
                         uint64_t size, struct vfmig_error *reterr)
{
    bool mapped = k->window && offset >= k->window_offset && size <= k->window_size &&
                  offset - k->window_offset <= k->window_size - size;

    if (!mapped)
        return kernel_access(k, k->mig_index, offset, read_to, write_from, size, reterr);
    uint8_t *at = k->window + (offset - k->window_offset);
    int r = read_to ? vfmig_guard_copy(read_to, at, (size_t)size)
                    : vfmig_guard_copy(at, write_from, (size_t)size);
    return r == 0
               ? 0
               : vfmig_error_set(reterr, r, VFMIG_ORIGIN_DEVICE, 0,
                                 "%s: its window went away while it was in use", k->base.info.name);
}

/* Opens a portion; 0: of no bytes. */
static ssize_t open_portion(struct kernel *k, uint64_t *ret_offset, struct vfmig_error *reterr)
{
    uint64_t offset, size, region = k->regions[k->mig_index].size;
    int r = read_reg(k, REG(data_offset), &offset, sizeof(offset), reterr);

    if (r == 0)
        r = read_reg(k, REG(data_size), &size, sizeof(size), reterr);
    if (r < 0)
        return r;
    if (size && (offset < sizeof(struct kernel_migration_region) || offset > region))
        return nonsense(k, "data_offset", offset, reterr);
    if (size && size > region - offset)
        return nonsense(k, "data_size", size, reterr);
    if (size > VFMIG_MAX_DEVICE_PORTION)
        return vfmig_error_set(reterr, -EMSGSIZE, VFMIG_ORIGIN_DEVICE, 0,
                               "%s: a portion of %llu bytes is too large", k->base.info.name,
                               (unsigned long long)size);
    *ret_offset = offset;
    return (ssize_t)size;
}

/* The next portion that has bytes; 0: there is none now. */
static ssize_t next_portion(struct kernel *k, uint64_t *ret_offset, struct vfmig_error *reterr)
{
    int r = k->pending ? 0 : read_pending(k, reterr);

    for (unsigned empty = 0; r == 0 && k->pending && empty < ZERO_PORTIONS; empty++) {
        ssize_t n = open_portion(k, ret_offset, reterr);
        if (n != 0)
            return n;
        if (k->asked != VFMIG_STATE_STOP_COPY) {
            k->pending = 0; /* nothing now: ask again next time */
            return 0;
        }
        r = read_pending(k, reterr);
    }
    return r;
}

/* A portion, or as much of it as there is room for. */
static ssize_t save_part(struct vfmig_target *t, void *buf, size_t size, bool *ret_more,
                         struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    int r = kernel_settle(k, reterr);

    *ret_more = false;
    if (r < 0)
        return r;
    if (k->part_left == 0) {
        ssize_t n = next_portion(k, &k->part_offset, reterr);
        k->saved |= n > 0;
        /* One driver had no data for whoever saved a second time, and went on as if that were its
         * state: what had data once and has none now is not believed. */
        if (n == 0 && k->asked == VFMIG_STATE_STOP_COPY && !k->saved && k->saved_before &&
            !vfmig_sabotage("kernel-empty-is-believed"))
            return vfmig_error_set(
                reterr, -ENODATA, VFMIG_ORIGIN_DEVICE, 0,
                "%s says nothing where it has saved before: it must be reset first", t->info.name);
        if (n <= 0)
            return n;
        k->part_left = (uint64_t)n;
    }
    uint64_t step = k->part_left < size ? k->part_left : size;
    r = window_access(k, k->part_offset, buf, NULL, step, reterr);
    if (r < 0)
        return r;
    k->part_offset += step;
    k->part_left -= step;
    *ret_more = k->part_left != 0;
    if (k->part_left == 0) /* acknowledges it, and begins the next one */
        r = read_pending(k, reterr);
    return r < 0 ? r : (ssize_t)step;
}

static ssize_t save(struct vfmig_target *t, void *buf, size_t size, struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    bool more;
    ssize_t n = save_part(t, buf, size, &more, reterr);

    if (n < 0 || !more)
        return n;
    return vfmig_error_set(reterr, -EMSGSIZE, VFMIG_ORIGIN_DEVICE, 0,
                           "%s: a portion of %llu bytes is too large", t->info.name,
                           (unsigned long long)(k->part_left + (uint64_t)n));
}

/* Tells that what was written to the window is a portion. */
static int commit(struct kernel *k, struct vfmig_error *reterr)
{
    uint64_t size = k->load_size;

    k->loading_part = false;
    return kernel_access(k, k->mig_index, REG(data_size), NULL, &size, sizeof(size), reterr);
}

static int open_window(struct kernel *k, struct vfmig_error *reterr)
{
    int r = read_reg(k, REG(data_offset), &k->load_offset, sizeof(k->load_offset), reterr);

    if (r == 0 && (k->load_offset < sizeof(struct kernel_migration_region) ||
                   k->load_offset >= k->regions[k->mig_index].size))
        return nonsense(k, "data_offset", k->load_offset, reterr);
    k->load_size = 0;
    k->loading_part = r == 0;
    return r;
}

/* Portions are kept whole unless the window here is smaller than where they came from (X7). */
static int load_part(struct vfmig_target *t, const void *data, size_t size, bool more,
                     struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    int r = kernel_settle(k, reterr);

    for (size_t at = 0; r == 0 && at < size;) {
        if (!k->loading_part)
            r = open_window(k, reterr);
        if (r < 0)
            return r;
        uint64_t room = k->regions[k->mig_index].size - k->load_offset, step = room - k->load_size;
        if (step > size - at || vfmig_sabotage("kernel-portion-not-split"))
            step = size - at;
        r = window_access(k, k->load_offset + k->load_size, NULL, (const char *)data + at, step,
                          reterr);
        k->load_size += step;
        at += step;
        if (r == 0 && k->load_size >= room)
            r = commit(k, reterr);
    }
    return r == 0 && !more && k->loading_part ? commit(k, reterr) : r;
}

static int load(struct vfmig_target *t, const void *data, size_t size, struct vfmig_error *reterr)
{
    return load_part(t, data, size, /* more= */ false, reterr);
}

static int left(struct vfmig_target *t, uint64_t *ret_bytes, struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    int r = kernel_settle(k, reterr);

    /* Not while a portion is open: reading would acknowledge it. */
    if (r == 0 && !k->part_left)
        r = read_pending(k, reterr);
    if (r == 0)
        *ret_bytes = k->pending;
    return r;
}

const struct vfmig_target_ops kernel_region_ops = {
    .name = "kernel region",
    .get_state = get_state,
    .set_state = set_state,
    .reset = kernel_reset,
    .save = save,
    .save_part = save_part,
    .load = load,
    .load_part = load_part,
    .left = left,
    .log_start = kernel_log_start,
    .log_stop = kernel_log_stop,
    .log_report = kernel_log_report,
    .dma_map = kernel_dma_map,
    .dma_unmap = kernel_dma_unmap,
    .region_read = kernel_region_read,
    .region_write = kernel_region_write,
    .set_irqs = kernel_set_irqs,
    .close = kernel_close,
};
