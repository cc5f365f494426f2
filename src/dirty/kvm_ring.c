/* SPDX-License-Identifier: BSD-3-Clause */
/* The vCPUs' writes, by KVM's dirty rings: what a sync costs grows with the pages written and not
 * with the size of memory. A vCPU whose ring is full leaves KVM_RUN, and its thread empties it.
 *
 * Where the processor logs pages by itself, the last few stay in its buffer until the vCPU leaves
 * the guest: a sync may miss them, and the next one has them. The one that counts is done with
 * every vCPU parked. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "dirty/gfn_ring.h"

/* uAPI that released headers of our oldest distribution lack. */
#define CAP_DIRTY_LOG_RING_WITH_BITMAP 225

struct kvm_ring {
    struct vfmig_tracker base;
    int vm_fd;
    size_t bytes; /* of one ring */
    struct vfmig_gfn_rings rings;
    uint32_t slot_count; /* 0: slot i for block i */
    struct vfmig_dirty_map backup; /* memory map of the last start; bits of writes without a vCPU */
    bool has_backup;
    bool running;
};

uint32_t vfmig_tracker_kvm_ring_probe(int fd)
{
    int bytes = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_ACQ_REL);

    if (bytes <= 0)
        bytes = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING);
    return bytes <= 0 ? 0 : (uint32_t)bytes / (uint32_t)sizeof(struct kvm_dirty_gfn);
}

int vfmig_tracker_kvm_ring_enable(int vm_fd, uint32_t entries, bool *ret_backup,
                                  struct vfmig_error *reterr)
{
    bool acquire = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_ACQ_REL) > 0;
    struct kvm_enable_cap cap = {
        .cap = acquire ? KVM_CAP_DIRTY_LOG_RING_ACQ_REL : KVM_CAP_DIRTY_LOG_RING,
        .args[0] = entries * sizeof(struct kvm_dirty_gfn),
    };

    if (ioctl(vm_fd, KVM_ENABLE_CAP, &cap) < 0) {
        int err = errno;
        return vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0,
                               "KVM gives no dirty rings of %u entries: %s", entries, strerror(err));
    }
    cap = (struct kvm_enable_cap){.cap = CAP_DIRTY_LOG_RING_WITH_BITMAP};
    *ret_backup = ioctl(vm_fd, KVM_CHECK_EXTENSION, CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0 &&
                  ioctl(vm_fd, KVM_ENABLE_CAP, &cap) == 0;
    return 0;
}

static int reset_rings(void *opaque)
{
    const struct kvm_ring *ring = opaque;

    int ret;

    do
        ret = ioctl(ring->vm_fd, KVM_RESET_DIRTY_RINGS, 0);
    while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

static int failed(const char *what, uint32_t slot, struct vfmig_error *reterr)
{
    int err = errno;
    return vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0, "%s of slot %u: %s", what, slot,
                           strerror(err));
}

static int set_flags(struct kvm_ring *ring, uint32_t flags, struct vfmig_error *reterr)
{
    const struct vfmig_memory *memory = &ring->backup.memory;
    int r = 0;

    for (uint32_t i = 0; i < memory->block_count; i++) {
        struct kvm_userspace_memory_region region = {
            .slot = ring->rings.slots[i],
            .flags = flags,
            .guest_phys_addr = memory->blocks[i].gpa,
            .memory_size = memory->blocks[i].size,
            .userspace_addr = (uintptr_t)memory->blocks[i].host,
        };
        if (ioctl(ring->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 && r == 0)
            r = failed("dirty logging", region.slot, reterr);
    }
    return r;
}

static int ring_stop(struct vfmig_tracker *t, struct vfmig_error *reterr)
{
    struct kvm_ring *ring = (struct kvm_ring *)t;
    int r = ring->running ? set_flags(ring, 0, reterr) : 0;

    ring->running = false;
    return r;
}

/* Writes by KVM itself, without a vCPU, go into a bitmap where KVM has one beside the rings. */
static int take_backup(struct kvm_ring *ring, struct vfmig_dirty_map *map,
                       struct vfmig_error *reterr)
{
    for (uint32_t i = 0; ring->has_backup && i < ring->backup.memory.block_count; i++) {
        struct kvm_dirty_log arg = {.slot = ring->rings.slots[i],
                                    .dirty_bitmap = ring->backup.bitmaps[i]};
        if (ioctl(ring->vm_fd, KVM_GET_DIRTY_LOG, &arg) < 0)
            return failed("KVM_GET_DIRTY_LOG", arg.slot, reterr);
        if (map)
            vfmig_dirty_map_merge(map, i, 0, ring->backup.bitmaps[i],
                                  vfmig_block_pages(&map->memory.blocks[i]));
    }
    return 0;
}

/* No slot logs while the rings are emptied, so that nothing of this log is thrown away with the
 * rest of the last one (C27). */
static int ring_start(struct vfmig_tracker *t, const struct vfmig_memory *memory,
                      struct vfmig_error *reterr)
{
    struct kvm_ring *ring = (struct kvm_ring *)t;
    int r = ring_stop(t, reterr);

    if (r == 0 && ring->slot_count && ring->slot_count != memory->block_count)
        r = vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "%u slots for %u memory blocks",
                            ring->slot_count, memory->block_count);
    if (r < 0)
        return r;
    vfmig_dirty_map_done(&ring->backup);
    r = vfmig_dirty_map_init(&ring->backup, memory, reterr);
    if (r == 0)
        r = vfmig_gfn_rings_begin(&ring->rings, memory, reterr);
    if (r < 0)
        return r;
    ring->running = true;
    r = set_flags(ring, KVM_MEM_LOG_DIRTY_PAGES, reterr);
    if (r == 0)
        r = take_backup(ring, NULL, reterr);
    if (r < 0)
        ring_stop(t, NULL);
    return r;
}

static int ring_sync(struct vfmig_tracker *t, struct vfmig_dirty_map *map,
                     struct vfmig_error *reterr)
{
    struct kvm_ring *ring = (struct kvm_ring *)t;
    int r = vfmig_dirty_check(&ring->backup.memory, ring->running, map, reterr);

    if (r == 0)
        r = take_backup(ring, map, reterr);
    if (r == 0)
        r = vfmig_gfn_rings_take(&ring->rings, map, reterr);
    t->full = vfmig_tracker_kvm_ring_full_count(t);
    /* What fell out of a ring is writable and in no log: switching on protects everything. */
    if (r == -EPROTO && (set_flags(ring, 0, NULL) || set_flags(ring, KVM_MEM_LOG_DIRTY_PAGES, NULL)))
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_KERNEL, 0,
                               "dirty logging could not be started anew");
    return r;
}

static void ring_free(struct vfmig_tracker *t)
{
    struct kvm_ring *ring = (struct kvm_ring *)t;

    ring_stop(t, NULL);
    for (uint32_t i = 0; i < ring->rings.ring_count; i++)
        munmap(ring->rings.ring[i].entries, ring->bytes);
    vfmig_gfn_rings_done(&ring->rings);
    vfmig_dirty_map_done(&ring->backup);
    free(ring);
}

static const struct vfmig_tracker_ops ring_ops = {
    .name = "kvm-ring",
    .start = ring_start,
    .sync = ring_sync,
    .stop = ring_stop,
    .free = ring_free,
};

void vfmig_tracker_kvm_ring_full(void *tracker, uint32_t vcpu)
{
    vfmig_gfn_rings_full(&((struct kvm_ring *)tracker)->rings, vcpu);
}

uint64_t vfmig_tracker_kvm_ring_full_count(struct vfmig_tracker *tracker)
{
    struct vfmig_gfn_rings *rings = &((struct kvm_ring *)tracker)->rings;

    pthread_mutex_lock(&rings->lock);
    uint64_t full = rings->full;
    pthread_mutex_unlock(&rings->lock);
    return full;
}

static int map_ring(struct kvm_ring *ring, uint32_t entries, int vcpu_fd, struct vfmig_error *reterr)
{
    void *at = mmap(NULL, ring->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd,
                    KVM_DIRTY_LOG_PAGE_OFFSET * VFMIG_PAGE_SIZE);

    if (at == MAP_FAILED) {
        int err = errno;
        return vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0,
                               "cannot map the dirty ring of vCPU %u: %s", ring->rings.ring_count,
                               strerror(err));
    }
    ring->rings.ring[ring->rings.ring_count++] =
        (struct vfmig_gfn_ring){.entries = at, .count = entries};
    return 0;
}

int vfmig_tracker_kvm_ring_new(const struct vfmig_kvm_ring_config *config,
                               struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr)
{
    if (config->vcpu_count > VFMIG_MAX_VCPUS || config->slot_count > VFMIG_MAX_RAM_BLOCKS ||
        !config->entries || config->entries & (config->entries - 1))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%u vCPUs, %u slots and rings of %u entries do not go together",
                               config->vcpu_count, config->slot_count, config->entries);
    struct kvm_ring *ring = calloc(1, sizeof(*ring));
    if (!ring)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a tracker");
    ring->base.ops = &ring_ops;
    ring->base.atomic = true;
    ring->base.slow_stop = true;
    ring->vm_fd = config->vm_fd;
    ring->bytes = config->entries * sizeof(struct kvm_dirty_gfn);
    ring->has_backup = config->backup;
    vfmig_gfn_rings_init(&ring->rings);
    ring->rings.reset = reset_rings;
    ring->rings.opaque = ring;
    ring->slot_count = config->slot_count;
    for (uint32_t i = 0; i < config->slot_count; i++)
        ring->rings.slots[i] = config->slots[i];
    for (uint32_t i = 0; i < config->vcpu_count; i++) {
        int r = map_ring(ring, config->entries, config->vcpu_fds[i], reterr);
        if (r < 0) {
            ring_free(&ring->base);
            return r;
        }
    }
    *ret_tracker = &ring->base;
    return 0;
}
