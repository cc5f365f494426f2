/* SPDX-License-Identifier: BSD-3-Clause */
/* Devices whose DMA carries a PASID (C71). The guest knows an address space by a handle, the number
 * of its device plus one; the host's value is this VMM's to give, on each host another one, and an
 * access counts only under it. All of such a device's DMA is by message, since that is where the
 * value is looked at. */
#include <errno.h>

#include "devices/dma_regs.h"
#include "target/user.h"
#include "vmm/vm_priv.h"

static int check(const struct vmm_dma_device *d, const struct vfmig_pci *pci,
                 struct vfmig_error *reterr)
{
    const struct vfmig_target_info *info = &pci->target->info;

    if (info->pci_vendor != DMA_PCI_VENDOR || info->pci_device != DMA_PCI_DEVICE)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_LOCAL, 0,
                               "device %s has no PASID: only the dma device does", pci->id);
    if (d->iommu)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "device %s cannot be behind the vIOMMU and have a PASID", pci->id);
    if (!vfmig_user_has_twin(pci->target))
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "device %s cannot have a PASID: it has no socket of its own for DMA "
                               "by message",
                               pci->id);
    return 0;
}

int vmm_pasid_attach(struct vfmig_vmm *vmm, uint32_t index, struct vfmig_error *reterr)
{
    const struct vmm_dma_device *d = &vmm->dma_devices[index];
    struct vfmig_target *target = vmm->pci[index].target;
    const struct vfmig_handle handle = {VFMIG_HANDLE_PASID, vmm_pasid_handle(index), d->pasid};
    int ret = check(d, &vmm->pci[index], reterr);

    if (!ret && d->pasid)
        ret = target->ops->dma_map(target, dma_tagged(d->pasid, 0), UINT64_C(1) << DMA_PASID_SHIFT, -1,
                                   0, 3, reterr);
    /* Nothing else of the device's reaches memory. At a destination the value comes when the guest's
     * state asks for it, and not before. */
    if (!ret && vmm->run_state != VMM_INMIGRATE)
        ret = d->pasid ? target->ops->set_handles(target, &handle, 1, reterr)
                       : vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                                         "device %s: pasid=0 is for a destination that has none",
                                         vmm->pci[index].id);
    return ret;
}

int vmm_pasid_identity(const struct vfmig_vmm *vmm, struct vfmig_buffer *out)
{
    int ret = 0;

    for (uint32_t i = 0; !ret && i < vmm->device_count; i++)
        if (vmm->dma_devices[i].tagged)
            ret = vfmig_buffer_printf(out, "pasid.%s=%u\n", vmm->pci[i].id, vmm_pasid_handle(i));
    return ret;
}

int vmm_pasid_translate(void *opaque, uint32_t device, uint32_t kind, uint32_t number,
                        uint64_t *ret_value, struct vfmig_error *reterr)
{
    const struct vfmig_vmm *vmm = opaque;
    const struct vmm_dma_device *d = &vmm->dma_devices[device];

    if (!d->tagged || kind != VFMIG_HANDLE_PASID || number != vmm_pasid_handle(device))
        return vfmig_error_set(reterr, -ENOENT, VFMIG_ORIGIN_LOCAL, 0,
                               "the guest was never given it");
    if (!d->pasid)
        return vfmig_error_set(reterr, -ENOSPC, VFMIG_ORIGIN_LOCAL, 0,
                               "this host has no PASID for it");
    *ret_value = d->pasid;
    return 0;
}
