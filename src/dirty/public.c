/* SPDX-License-Identifier: BSD-3-Clause */
/* What a VMM outside the tree calls (vfmig/tracker.h). */
#include <errno.h>

#include "dirty/trackers.h"
#include "vfmig/tracker.h"

int vfmig_tracker_open_device(struct vfmig_target *target, struct vfmig_tracker **ret_tracker,
                              struct vfmig_error *reterr)
{
    if (!vfmig_tracker_device_probe(target))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0, "%s cannot log its DMA",
                               target->info.name);
    return vfmig_tracker_device_new(target, NULL, 0, ret_tracker, reterr);
}

int vfmig_tracker_open_kvm(int vm_fd, const uint32_t *slots, uint32_t slot_count,
                           struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr)
{
    return vfmig_tracker_kvm_new(vm_fd, slots, slot_count, ret_tracker, reterr);
}

int vfmig_tracker_open_process(struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr)
{
    return vfmig_tracker_wp_new(VFMIG_WP_AUTO, ret_tracker, reterr);
}

int vfmig_tracker_open_vmm(struct vfmig_tracker **ret_tracker, struct vfmig_error *reterr)
{
    return vfmig_tracker_own_new(ret_tracker, reterr);
}

void vfmig_tracker_mark(struct vfmig_tracker *tracker, uint64_t gpa, uint64_t size)
{
    vfmig_own_mark(tracker, gpa, size);
}

void vfmig_tracker_close(struct vfmig_tracker *tracker)
{
    if (tracker)
        tracker->ops->free(tracker);
}
