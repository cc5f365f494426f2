/* SPDX-License-Identifier: BSD-3-Clause */
/* The VMM's devices behind the vIOMMU. All I/O virtual addresses of such a device are mapped without a
 * descriptor, so that each access is a message that can be held while the guest pages in. */
#include "vmm/vm_priv.h"

#include <errno.h>

#include "base/sabotage.h"
#include "target/user.h"

int vmm_viommu_setup(struct vfmig_vmm *vmm, const struct vfmig_vmm_config *config,
                     struct vfmig_error *reterr)
{
    uint32_t devices = 0;

    for (uint32_t i = 0; i < config->device_count; i++)
        devices |= (uint32_t)config->devices[i].iommu << i;
    int ret = devices ? vmm_iommu_new(&vmm->dma, devices, &vmm->iommu, reterr) : 0;
    /* On the destination it stays paused until the guest has arrived. */
    if (!ret && vmm->iommu && !config->incoming)
        vmm_iommu_resume(vmm->iommu);
    return ret;
}

/* C63: who cannot stop its DMA alone may not raise faults that need the vCPUs. N must stop all of it:
 * a device that stops peer to peer DMA only may fault when the vCPUs stand still. */
static int check_device(const struct vfmig_pci *pci, struct vfmig_error *reterr)
{
    const struct vfmig_target_info *info = &pci->target->info;

    if ((!(info->features & VFMIG_FEATURE_NDMA) || info->quiet != VFMIG_QUIET_ALL) &&
        !vfmig_sabotage("faults-without-ndma"))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "device %s cannot be behind the vIOMMU: it has no NDMA that stops all "
                               "DMA, so that a page fault might be open when the vCPUs stop",
                               pci->id);
    if (!vfmig_user_has_twin(pci->target))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "device %s cannot be behind the vIOMMU: it has no socket of its own "
                               "for DMA by message",
                               pci->id);
    return 0;
}

int vmm_viommu_attach(struct vfmig_vmm *vmm, uint32_t index, struct vfmig_error *reterr)
{
    struct vfmig_pci *pci = &vmm->pci[index];
    int ret = check_device(pci, reterr);

    if (!ret)
        ret = vmm_dma_attach(&vmm->dma_devices[index], pci->target, reterr);
    if (!ret)
        ret = pci->target->ops->dma_map(pci->target, 0, UINT64_C(1) << IOMMU_IOVA_BITS, -1, 0, 3,
                                        reterr);
    return ret;
}

int vmm_viommu_check(struct vfmig_vmm *vmm, struct vfmig_error *reterr)
{
    int ret = 0;

    for (uint32_t i = 0; !ret && i < vmm->device_count; i++)
        if (vmm->dma_devices[i].iommu)
            ret = check_device(&vmm->pci[i], reterr);
    return ret;
}

void vmm_viommu_end(struct vfmig_vmm *vmm)
{
    if (!vmm->iommu)
        return;
    vmm_iommu_close(vmm->iommu);
    for (uint32_t i = 0; i < GUEST_MAX_DEVICES; i++)
        vmm_dma_detach(&vmm->dma_devices[i]);
}

int vmm_viommu_idle(void *opaque, uint64_t timeout_ns, struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;

    if (!vmm->iommu)
        return 0;
    pthread_mutex_lock(&vmm->lock);
    bool running = vmm->run_state == VMM_RUNNING;
    pthread_mutex_unlock(&vmm->lock);
    return vmm_iommu_idle(vmm->iommu, running, timeout_ns, reterr);
}
