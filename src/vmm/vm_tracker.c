/* SPDX-License-Identifier: BSD-3-Clause */
/* Who follows the vCPUs' writes: chosen by what there is and what it costs here. */
#include <errno.h>

#include "base/sabotage.h"
#include "vmm/vm_priv.h"

int vmm_tracker_choose(struct vfmig_vmm *vmm, const struct vfmig_vmm_config *config,
                       uint32_t *ret_entries, struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;

    migration->wanted = config->tracker;
    vfmig_tracker_costs_measure(config->accel != VFMIG_ACCEL_NONE, &migration->costs);
    int ret = vfmig_tracker_choose(&migration->costs, config->tracker, config->memory_bytes,
                                   &migration->kind, reterr);
    *ret_entries = 0;
    if (ret == 0 && migration->kind == VFMIG_TRACKER_KVM_RING)
        *ret_entries = vfmig_sabotage("small-ring")
                           ? 2048
                           : migration->costs.of[VFMIG_TRACKER_KVM_RING].entries;
    return ret;
}

static int make_ring(struct vfmig_vmm *vmm, struct vfmig_tracker **ret_tracker,
                     struct vfmig_error *reterr)
{
    int vcpus[GUEST_MAX_VCPUS];
    struct vfmig_kvm_ring_config config = {.vm_fd = vfmig_machine_vm_fd(vmm->machine),
                                           .vcpu_fds = vcpus};

    while (config.vcpu_count < GUEST_MAX_VCPUS &&
           (vcpus[config.vcpu_count] = vfmig_machine_vcpu_fd(vmm->machine, config.vcpu_count)) >= 0)
        config.vcpu_count++;
    config.entries = vfmig_machine_dirty_ring(vmm->machine, &config.backup);
    int ret = vfmig_tracker_kvm_ring_new(&config, ret_tracker, reterr);
    if (ret == 0)
        vfmig_machine_on_ring_full(vmm->machine, vfmig_tracker_kvm_ring_full, *ret_tracker);
    return ret;
}

int vmm_tracker_new(struct vfmig_vmm *vmm, struct vfmig_tracker **ret_tracker,
                    struct vfmig_error *reterr)
{
    struct vmm_migration *migration = &vmm->migration;
    int vm_fd = vfmig_machine_vm_fd(vmm->machine);

    /* The machine did without KVM after all. */
    if (vm_fd < 0 && migration->costs.kvm) {
        migration->costs.kvm = false;
        migration->costs.of[VFMIG_TRACKER_KVM_BITMAP].offered = false;
        migration->costs.of[VFMIG_TRACKER_KVM_RING].offered = false;
        int ret = vfmig_tracker_choose(&migration->costs, migration->wanted,
                                       vmm->blocks[0].size, &migration->kind, reterr);
        if (ret)
            return ret;
    }
    switch (migration->kind) {
    case VFMIG_TRACKER_KVM_BITMAP:
        return vfmig_tracker_kvm_new(vm_fd, NULL, vmm->memory.block_count, ret_tracker, reterr);
    case VFMIG_TRACKER_KVM_RING:
        return make_ring(vmm, ret_tracker, reterr);
    case VFMIG_TRACKER_PAGEMAP:
        return vfmig_tracker_wp_new(VFMIG_WP_SCAN, ret_tracker, reterr);
    default:
        return vfmig_tracker_wp_new(VFMIG_WP_HANDLER, ret_tracker, reterr);
    }
}

void vmm_tracker_done(struct vfmig_vmm *vmm)
{
    if (vmm->migration.kind != VFMIG_TRACKER_KVM_RING)
        return;
    pthread_mutex_lock(&vmm->lock);
    (void)vfmig_machine_stop(vmm->machine, NULL);
    vfmig_machine_on_ring_full(vmm->machine, NULL, NULL);
    pthread_mutex_unlock(&vmm->lock);
}
