/* SPDX-License-Identifier: BSD-3-Clause */
/* What a VMM outside the tree calls (vfmig/target.h). */
#include <errno.h>

#include "target/open.h"
#include "vfmig/target.h"

int vfmig_target_open(const char *path, const struct vfmig_target_options *options,
                      struct vfmig_target **ret_target, struct vfmig_error *reterr)
{
    struct vfmig_user_options user = {0};

    if (options && options->size != sizeof(*options))
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "the options of a target are of another version");
    if (options) {
        user.dialect = options->dialect;
        user.dma.opaque = options->opaque;
        user.dma.read = options->dma_read;
        user.dma.write = options->dma_write;
        user.memory = options->memory;
        user.own = options->own;
        user.timeout_ns = options->timeout_ns;
        user.reset_ns = options->reset_ns;
        user.incoming = options->incoming;
        user.late_load = options->late_load;
    }
    return vfmig_open_address(path, &user, ret_target, reterr);
}

void vfmig_target_close(struct vfmig_target *target)
{
    if (target)
        target->ops->close(target);
}

const struct vfmig_target_info *vfmig_target_get_info(const struct vfmig_target *target)
{
    return &target->info;
}

int vfmig_target_map(struct vfmig_target *target, uint64_t iova, uint64_t size, int fd,
                     uint64_t fd_offset, bool writable, struct vfmig_error *reterr)
{
    return target->ops->dma_map(target, iova, size, fd, fd_offset, writable ? 3 : 1, reterr);
}

int vfmig_target_unmap(struct vfmig_target *target, uint64_t iova, uint64_t size,
                       struct vfmig_error *reterr)
{
    return target->ops->dma_unmap(target, iova, size, reterr);
}

int vfmig_target_map_memory(struct vfmig_target *target, const struct vfmig_memory *memory,
                            struct vfmig_error *reterr)
{
    int ret = 0;

    for (uint32_t i = 0; ret == 0 && i < memory->block_count; i++) {
        const struct vfmig_ram_block *block = &memory->blocks[i];
        ret = vfmig_target_map(target, block->gpa, block->size, block->fd, block->fd_offset,
                               /* writable= */ true, reterr);
    }
    return ret;
}

int vfmig_target_read(struct vfmig_target *target, uint32_t region, uint64_t offset, void *data,
                      uint32_t size, struct vfmig_error *reterr)
{
    return target->ops->region_read(target, region, offset, data, size, reterr);
}

int vfmig_target_write(struct vfmig_target *target, uint32_t region, uint64_t offset,
                       const void *data, uint32_t size, bool posted, struct vfmig_error *reterr)
{
    return target->ops->region_write(target, region, offset, data, size, posted, reterr);
}

int vfmig_target_set_irqs(struct vfmig_target *target, uint32_t index, uint32_t start,
                          uint32_t count, const int *fds, struct vfmig_error *reterr)
{
    return target->ops->set_irqs(target, index, start, count, fds, reterr);
}

int vfmig_target_set_handles(struct vfmig_target *target, const struct vfmig_handle *handles,
                             uint32_t count, struct vfmig_error *reterr)
{
    if (!target->ops->set_handles)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0, "%s knows no handles",
                               target->info.name);
    return target->ops->set_handles(target, handles, count, reterr);
}

int vfmig_target_reset(struct vfmig_target *target, struct vfmig_error *reterr)
{
    return target->ops->reset(target, reterr);
}
