/* SPDX-License-Identifier: BSD-3-Clause */
#include "vmm/dma.h"

#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "devices/dma_regs.h"
#include "dirty/trackers.h"

/* RAM at gpa, and how much there is from there; NULL: it is no RAM. */
static char *ram_at(const struct vmm_dma_space *space, uint64_t gpa, uint64_t *ret_left)
{
    uint64_t offset;
    int block = vfmig_memory_find(&space->memory, gpa, &offset, ret_left);

    return block < 0 ? NULL : (char *)space->memory.blocks[block].host + offset;
}

static void access_ram(const struct vmm_dma_space *space, char *host, uint64_t gpa, bool is_write,
                       char *data, uint64_t size)
{
    if (!is_write) {
        memcpy(data, host, size);
        return;
    }
    memcpy(host, data, size);
    if (!vfmig_sabotage("dma-service-unmarked"))
        vfmig_own_mark(space->own, gpa, size);
}

int vmm_dma_access(const struct vmm_dma_space *space, uint32_t device, uint64_t gpa, bool is_write,
                   void *data, uint64_t size)
{
    char *bytes = data;

    if (size && gpa + (size - 1) < gpa)
        return -EFAULT;
    while (size) {
        uint64_t step = VFMIG_PAGE_SIZE - gpa % VFMIG_PAGE_SIZE, left;
        char *host = ram_at(space, gpa, &left);
        if (host)
            step = left;
        if (step > size)
            step = size;
        if (host)
            access_ram(space, host, gpa, is_write, bytes, step);
        int ret = host ? 0
                  : space->beside
                      ? space->beside(space->opaque, device, gpa, is_write, bytes, (uint32_t)step)
                      : -EFAULT;
        if (ret)
            return ret;
        gpa += step;
        bytes += step;
        size -= step;
    }
    return 0;
}

/* The guest physical address; false: of another address space, or of none. */
static bool untag(const struct vmm_dma_device *d, uint64_t iova, uint64_t *ret_gpa)
{
    *ret_gpa = d->tagged ? iova & ((UINT64_C(1) << DMA_PASID_SHIFT) - 1) : iova;
    return !d->tagged || (d->pasid && iova >> DMA_PASID_SHIFT == d->pasid) ||
           vfmig_sabotage("pasid-unchecked");
}

static int on_read(void *opaque, uint64_t iova, void *data, uint32_t size)
{
    struct vmm_dma_device *d = opaque;
    uint64_t gpa;

    if (d->iommu)
        return vmm_dma_translated(d, iova, /* is_write= */ false, data, size);
    return untag(d, iova, &gpa)
               ? vmm_dma_access(d->space, d->index, gpa, /* is_write= */ false, data, size)
               : -EFAULT;
}

static int on_write(void *opaque, uint64_t iova, const void *data, uint32_t size)
{
    struct vmm_dma_device *d = opaque;
    void *bytes = (void *)(uintptr_t)data;
    uint64_t gpa;

    if (d->iommu)
        return vmm_dma_translated(d, iova, /* is_write= */ true, bytes, size);
    return untag(d, iova, &gpa)
               ? vmm_dma_access(d->space, d->index, gpa, /* is_write= */ true, bytes, size)
               : -EFAULT;
}

static const void *in_place(void *opaque, uint64_t iova, uint32_t size)
{
    struct vmm_dma_device *d = opaque;
    uint64_t left, gpa;
    const char *host = d->iommu || !untag(d, iova, &gpa) ? NULL : ram_at(d->space, gpa, &left);

    return host && size <= left ? host : NULL;
}

struct vfmig_user_dma vmm_dma_callbacks(struct vmm_dma_device *d)
{
    return (struct vfmig_user_dma){
        .opaque = d, .read = on_read, .write = on_write, .in_place = in_place};
}
