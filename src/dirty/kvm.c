/* SPDX-License-Identifier: BSD-3-Clause */
/* The vCPUs' writes, by KVM's dirty bitmap. */
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/bitmap.h"
#include "base/bounds.h"
#include "dirty/private.h"

/* Pages of one KVM_CLEAR_DIRTY_LOG, a multiple of 64: KVM holds its MMU lock meanwhile, and vCPUs
 * that fault wait for it. */
#define CLEAR_PAGES 16384u

struct kvm_log {
    struct vfmig_tracker base;
    int vm_fd;
    bool manual;     /* reading does not protect: KVM_CLEAR_DIRTY_LOG does */
    uint32_t slots[VFMIG_MAX_RAM_BLOCKS];
    uint32_t slot_count;
    struct vfmig_dirty_map scratch; /* memory map of the last start, and what KVM returned */
    bool running;
};

static int ask(int vm_fd, long extension)
{
    return ioctl(vm_fd, KVM_CHECK_EXTENSION, extension);
}

int vfmig_tracker_kvm_probe(int vm_fd, bool *ret_manual_protect)
{
    if (ask(vm_fd, KVM_CAP_USER_MEMORY) <= 0)
        return -ENOTSUP;
    if (ret_manual_protect) {
        int offered = ask(vm_fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
        *ret_manual_protect = offered > 0 && (offered & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    }
    return 0;
}

/* INITIALLY_SET spares KVM protecting everything in one go when a log starts: pages are protected
 * as they are cleared, which start does chunk by chunk. */
static bool enable_manual(int vm_fd)
{
    int offered = ask(vm_fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2};

    if (offered <= 0 || !(offered & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE))
        return false;
    cap.args[0] =
        (uint64_t)offered & (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
    return ioctl(vm_fd, KVM_ENABLE_CAP, &cap) == 0;
}

static int failed(const char *what, uint32_t slot, struct vfmig_error *reterr)
{
    int err = errno;
    return vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0, "%s of slot %u: %s", what, slot,
                           strerror(err));
}

static int set_flags(struct kvm_log *log, uint32_t i, uint32_t flags, struct vfmig_error *reterr)
{
    const struct vfmig_ram_block *block = &log->scratch.memory.blocks[i];
    struct kvm_userspace_memory_region region = {
        .slot = log->slots[i],
        .flags = flags,
        .guest_phys_addr = block->gpa,
        .memory_size = block->size,
        .userspace_addr = (uintptr_t)block->host,
    };

    if (ioctl(log->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        return failed("dirty logging", log->slots[i], reterr);
    return 0;
}

static int clear(struct kvm_log *log, uint32_t i, struct vfmig_error *reterr)
{
    uint64_t pages = vfmig_block_pages(&log->scratch.memory.blocks[i]);
    uint64_t *bits = log->scratch.bitmaps[i];

    for (uint64_t at = 0; at < pages; at += CLEAR_PAGES) {
        uint64_t count = pages - at < CLEAR_PAGES ? pages - at : CLEAR_PAGES;
        struct kvm_clear_dirty_log arg = {
            .slot = log->slots[i],
            .num_pages = (uint32_t)count,
            .first_page = at,
            .dirty_bitmap = bits + at / 64,
        };
        if (vfmig_bitmap_next(bits + at / 64, count, 0) == count)
            continue;
        if (ioctl(log->vm_fd, KVM_CLEAR_DIRTY_LOG, &arg) < 0)
            return failed("KVM_CLEAR_DIRTY_LOG", log->slots[i], reterr);
    }
    return 0;
}

/* What slot i logged so far goes into scratch, and KVM's log is clear. A page that is written
 * between the two calls is reported now, and its bytes are read later. */
static int take(struct kvm_log *log, uint32_t i, struct vfmig_error *reterr)
{
    struct kvm_dirty_log arg = {.slot = log->slots[i], .dirty_bitmap = log->scratch.bitmaps[i]};

    if (ioctl(log->vm_fd, KVM_GET_DIRTY_LOG, &arg) < 0)
        return failed("KVM_GET_DIRTY_LOG", log->slots[i], reterr);
    return log->manual ? clear(log, i, reterr) : 0;
}

static int kvm_stop(struct vfmig_tracker *t, struct vfmig_error *reterr)
{
    struct kvm_log *log = (struct kvm_log *)t;
    int r = 0;

    for (uint32_t i = 0; log->running && i < log->scratch.memory.block_count; i++) {
        int one = set_flags(log, i, 0, r == 0 ? reterr : NULL);
        if (r == 0)
            r = one;
    }
    log->running = false;
    return r;
}

static int kvm_start(struct vfmig_tracker *t, const struct vfmig_memory *memory,
                     struct vfmig_error *reterr)
{
    struct kvm_log *log = (struct kvm_log *)t;
    int r = kvm_stop(t, reterr);

    if (r < 0)
        return r;
    if (log->slot_count && log->slot_count != memory->block_count)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%u slots for %u memory blocks", log->slot_count,
                               memory->block_count);
    vfmig_dirty_map_done(&log->scratch);
    r = vfmig_dirty_map_init(&log->scratch, memory, reterr);
    for (uint32_t i = 0; r == 0 && i < memory->block_count; i++) {
        if (log->slot_count == 0)
            log->slots[i] = i;
        r = set_flags(log, i, KVM_MEM_LOG_DIRTY_PAGES, reterr);
    }
    log->running = r == 0;
    /* C27: the log starts empty, also where KVM starts it full. */
    for (uint32_t i = 0; r == 0 && i < memory->block_count; i++)
        r = take(log, i, reterr);
    if (r < 0) {
        log->running = true;
        kvm_stop(t, NULL);
    }
    return r;
}

static int kvm_sync(struct vfmig_tracker *t, struct vfmig_dirty_map *map, struct vfmig_error *reterr)
{
    struct kvm_log *log = (struct kvm_log *)t;
    int r = vfmig_dirty_check(&log->scratch.memory, log->running, map, reterr);

    for (uint32_t i = 0; r == 0 && i < map->memory.block_count; i++) {
        r = take(log, i, reterr);
        if (r == 0)
            vfmig_dirty_map_merge(map, i, 0, log->scratch.bitmaps[i],
                                  vfmig_block_pages(&map->memory.blocks[i]));
    }
    return r;
}

static void kvm_free(struct vfmig_tracker *t)
{
    struct kvm_log *log = (struct kvm_log *)t;

    kvm_stop(t, NULL);
    vfmig_dirty_map_done(&log->scratch);
    free(log);
}

static const struct vfmig_tracker_ops kvm_ops = {
    .name = "kvm-bitmap",
    .start = kvm_start,
    .sync = kvm_sync,
    .stop = kvm_stop,
    .free = kvm_free,
};

int vfmig_tracker_kvm_new(int vm_fd, const uint32_t *slots, uint32_t slot_count,
                          struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr)
{
    if (vfmig_tracker_kvm_probe(vm_fd, NULL) < 0)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_KERNEL, 0,
                               "this VM has no dirty log");
    if (slots && slot_count > VFMIG_MAX_RAM_BLOCKS)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "too many slots");
    struct kvm_log *log = calloc(1, sizeof(*log));
    if (!log)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a tracker");
    log->base.ops = &kvm_ops;
    log->base.atomic = true;
    log->base.slow_stop = true;
    log->vm_fd = vm_fd;
    log->manual = enable_manual(vm_fd);
    if (slots) {
        memcpy(log->slots, slots, slot_count * sizeof(*slots));
        log->slot_count = slot_count;
    }
    *ret_tracker = &log->base;
    return 0;
}
