/* SPDX-License-Identifier: BSD-3-Clause */
#include "dirty/choose.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dirty/gfn_ring.h"
#include "io/sock.h"

#define PROBE_BYTES   (UINT64_C(64) << 20) /* never touched: what a log of it costs to read */
#define PROBE_WRITES  256u                 /* pages written to see what one costs */
#define PROBE_ENTRIES 4096u
#define PROBE_TIMES   3u /* the least is taken */
#define GIB           (UINT64_C(1) << 30)
#define WRITTEN_SHARE 100u /* of the memory's pages one is written between two reads */
#define BETTER_BY     2u

static const char *const names[VFMIG_TRACKER_KINDS] = {
    [VFMIG_TRACKER_AUTO] = "auto",         [VFMIG_TRACKER_KVM_BITMAP] = "kvm-bitmap",
    [VFMIG_TRACKER_KVM_RING] = "kvm-ring", [VFMIG_TRACKER_PAGEMAP] = "pagemap",
    [VFMIG_TRACKER_WP] = "wp",
};

const char *vfmig_tracker_kind_name(enum vfmig_tracker_kind kind)
{
    return (unsigned)kind < VFMIG_TRACKER_KINDS ? names[kind] : "unknown";
}

int vfmig_tracker_kind_parse(const char *name, enum vfmig_tracker_kind *ret_kind)
{
    for (unsigned i = 0; i < VFMIG_TRACKER_KINDS; i++)
        if (strcmp(name, names[i]) == 0) {
            *ret_kind = (enum vfmig_tracker_kind)i;
            return 0;
        }
    return -EINVAL;
}

/* --- the choice --- */

uint64_t vfmig_tracker_cost_ns(const struct vfmig_tracker_cost *cost, uint64_t memory_bytes)
{
    double written = (double)memory_bytes / VFMIG_PAGE_SIZE / WRITTEN_SHARE;

    return (uint64_t)((double)cost->gib_ns * (double)memory_bytes / (double)GIB +
                      (double)cost->page_ps * written / 1000);
}

int vfmig_tracker_choose(const struct vfmig_tracker_costs *costs, enum vfmig_tracker_kind wanted,
                         uint64_t memory_bytes, enum vfmig_tracker_kind *ret_kind,
                         struct vfmig_error *reterr)
{
    enum vfmig_tracker_kind best = VFMIG_TRACKER_AUTO;
    uint64_t least = UINT64_MAX;

    if (wanted != VFMIG_TRACKER_AUTO) {
        if (!costs->of[wanted].offered)
            return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_KERNEL, 0,
                                   "the dirty tracker %s is not there%s", names[wanted],
                                   wanted <= VFMIG_TRACKER_KVM_RING && !costs->kvm
                                       ? ": vCPUs are not KVM's"
                                       : ": this kernel does not offer it");
        *ret_kind = wanted;
        return 0;
    }
    for (unsigned i = 1; i < VFMIG_TRACKER_KINDS; i++) {
        /* With KVM's own log there is no reason to have the process' page tables protected too. */
        bool own = costs->kvm && i > VFMIG_TRACKER_KVM_RING && best != VFMIG_TRACKER_AUTO;
        uint64_t cost = vfmig_tracker_cost_ns(&costs->of[i], memory_bytes);
        if (!costs->of[i].offered || own || (best && cost >= least / BETTER_BY))
            continue;
        best = (enum vfmig_tracker_kind)i;
        least = cost;
    }
    if (best == VFMIG_TRACKER_AUTO)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_KERNEL, 0,
                               "this kernel has no dirty tracker for the vCPUs");
    *ret_kind = best;
    return 0;
}

/* --- measuring --- */

static int nothing(void *opaque)
{
    return 0;
}

static void least(uint64_t *value, uint64_t other)
{
    if (other < *value)
        *value = other;
}

/* A ring that lies in our memory: what taking an entry costs, without its protection, which every
 * tracker has to do for every page. */
static void measure_ring(struct vfmig_tracker_cost *cost)
{
    struct vfmig_ram_block block = {0, PROBE_ENTRIES * VFMIG_PAGE_SIZE, NULL, -1, 0};
    struct vfmig_memory memory = {&block, 1};
    struct vfmig_gfn_rings *rings = calloc(1, sizeof(*rings));
    struct kvm_dirty_gfn *entries = calloc(PROBE_ENTRIES, sizeof(*entries));
    struct vfmig_dirty_map map = {0};
    uint64_t best = UINT64_MAX;

    if (rings && entries && !vfmig_dirty_map_init(&map, &memory, NULL)) {
        vfmig_gfn_rings_init(rings);
        rings->reset = nothing;
        rings->ring_count = 1;
        rings->ring[0] = (struct vfmig_gfn_ring){.entries = entries, .count = PROBE_ENTRIES};
        vfmig_gfn_rings_begin(rings, &memory, NULL);
        for (unsigned times = 0; times < PROBE_TIMES; times++) {
            for (uint32_t i = 0; i < PROBE_ENTRIES; i++)
                entries[i] = (struct kvm_dirty_gfn){KVM_DIRTY_GFN_F_DIRTY, 0,
                                                    i * 2654435761u % PROBE_ENTRIES};
            uint64_t begin = vfmig_now_ns();
            vfmig_gfn_rings_take(rings, &map, NULL);
            least(&best, vfmig_now_ns() - begin);
        }
        vfmig_gfn_rings_done(rings);
        cost->page_ps = best * 1000 / PROBE_ENTRIES;
    } else {
        cost->offered = false;
    }
    vfmig_dirty_map_done(&map);
    free(entries);
    free(rings);
}

/* Starts a tracker on memory of its own, reads its log when nothing was written, and when pages
 * were. */
static void measure_tracker(struct vfmig_tracker *t, struct vfmig_ram_block *block, bool write,
                            struct vfmig_tracker_cost *cost)
{
    struct vfmig_memory memory = {block, 1};
    struct vfmig_dirty_map map;
    uint64_t best = UINT64_MAX, page = UINT64_MAX;

    if (vfmig_dirty_map_init(&map, &memory, NULL))
        return;
    cost->offered = t->ops->start(t, &memory, NULL) == 0;
    for (unsigned times = 0; cost->offered && times < PROBE_TIMES; times++) {
        uint64_t begin = vfmig_now_ns();
        cost->offered = t->ops->sync(t, &map, NULL) == 0;
        uint64_t scan = vfmig_now_ns() - begin;
        least(&best, scan);
        if (!write)
            continue;
        begin = vfmig_now_ns();
        for (uint32_t i = 0; i < PROBE_WRITES; i++)
            ((volatile uint8_t *)block->host)[i * VFMIG_PAGE_SIZE * 3] += 1;
        t->ops->sync(t, &map, NULL);
        uint64_t took = vfmig_now_ns() - begin;
        least(&page, took > scan ? (took - scan) * 1000 / PROBE_WRITES : 0);
    }
    (void)t->ops->stop(t, NULL);
    vfmig_dirty_map_done(&map);
    cost->gib_ns = best == UINT64_MAX ? 0 : best * (GIB / PROBE_BYTES);
    cost->page_ps = page == UINT64_MAX ? 0 : page;
}

static void measure_kvm(struct vfmig_ram_block *block, struct vfmig_tracker_costs *costs)
{
    struct vfmig_tracker_cost *bitmap = &costs->of[VFMIG_TRACKER_KVM_BITMAP];
    struct vfmig_tracker_cost *ring = &costs->of[VFMIG_TRACKER_KVM_RING];
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    struct kvm_userspace_memory_region slot = {.memory_size = block->size,
                                               .userspace_addr = (uintptr_t)block->host};
    struct vfmig_tracker *t;

    costs->kvm = vm >= 0;
    if (vm >= 0 && ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0 &&
        vfmig_tracker_kvm_new(vm, NULL, 0, &t, NULL) == 0) {
        measure_tracker(t, block, /* write= */ false, bitmap);
        t->ops->free(t);
    }
    if (kvm >= 0) {
        ring->entries = vfmig_tracker_kvm_ring_probe(kvm);
        ring->offered = ring->entries != 0;
    }
    if (ring->offered)
        measure_ring(ring);
    if (vm >= 0)
        close(vm);
    if (kvm >= 0)
        close(kvm);
}

static void measure_own(enum vfmig_wp_method method, struct vfmig_ram_block *block,
                        struct vfmig_tracker_cost *cost)
{
    struct vfmig_tracker *t;

    if (vfmig_tracker_wp_new(method, &t, NULL))
        return;
    measure_tracker(t, block, /* write= */ true, cost);
    t->ops->free(t);
}

void vfmig_tracker_costs_measure(bool kvm, struct vfmig_tracker_costs *ret_costs)
{
    int fd = memfd_create("vfmig-probe", MFD_CLOEXEC);
    struct vfmig_ram_block block = {0, PROBE_BYTES, MAP_FAILED, fd, 0};

    memset(ret_costs, 0, sizeof(*ret_costs));
    if (fd >= 0 && ftruncate(fd, (off_t)PROBE_BYTES) == 0)
        block.host = mmap(NULL, PROBE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (block.host != MAP_FAILED) {
        if (kvm)
            measure_kvm(&block, ret_costs);
        measure_own(VFMIG_WP_SCAN, &block, &ret_costs->of[VFMIG_TRACKER_PAGEMAP]);
        measure_own(VFMIG_WP_HANDLER, &block, &ret_costs->of[VFMIG_TRACKER_WP]);
        munmap(block.host, PROBE_BYTES);
    }
    if (fd >= 0)
        close(fd);
}
