/* SPDX-License-Identifier: BSD-3-Clause */
/* Which tracker follows the vCPUs: what there is, what each costs here, and the choice. */
#ifndef VFMIG_DIRTY_CHOOSE_H
#define VFMIG_DIRTY_CHOOSE_H

#include "dirty/trackers.h"

/* In the order in which equally cheap ones are preferred. */
enum vfmig_tracker_kind {
    VFMIG_TRACKER_AUTO = 0,
    VFMIG_TRACKER_KVM_BITMAP,
    VFMIG_TRACKER_KVM_RING,
    VFMIG_TRACKER_PAGEMAP,
    VFMIG_TRACKER_WP,
    VFMIG_TRACKER_KINDS
};

/* "auto", "kvm-bitmap", "kvm-ring", "pagemap", "wp"; the latter four are names of trackers too. */
const char *vfmig_tracker_kind_name(enum vfmig_tracker_kind kind);
/* -EINVAL for anything else. */
int vfmig_tracker_kind_parse(const char *name, enum vfmig_tracker_kind *ret_kind);

/* What reading a log once costs. That the first write to a page is noticed costs the same with both
 * of KVM's logs and is not in it; with the process' own it is. */
struct vfmig_tracker_cost {
    bool offered;
    uint64_t gib_ns;   /* for each GiB of memory, written or not */
    uint64_t page_ps;  /* for each page written, in picoseconds */
    uint32_t entries;  /* kvm-ring: of the largest ring */
};

struct vfmig_tracker_costs {
    bool kvm; /* vCPUs are KVM's */
    struct vfmig_tracker_cost of[VFMIG_TRACKER_KINDS];
};

/* Asks the kernel and measures, in a few milliseconds, on memory and a VM of its own. */
void vfmig_tracker_costs_measure(bool kvm, struct vfmig_tracker_costs *ret_costs);

/* The cost of one read when a share of a hundredth of the memory was written. */
uint64_t vfmig_tracker_cost_ns(const struct vfmig_tracker_cost *cost, uint64_t memory_bytes);

/* AUTO: the cheapest of what there is for these vCPUs; a later one must cost less than half of an
 * earlier one, because measures vary. Anything else: that one. -ENOTSUP: there is none, or not here. */
int vfmig_tracker_choose(const struct vfmig_tracker_costs *costs, enum vfmig_tracker_kind wanted,
                         uint64_t memory_bytes, enum vfmig_tracker_kind *ret_kind,
                         struct vfmig_error *reterr);

#endif
