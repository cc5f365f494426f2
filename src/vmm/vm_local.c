/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest memory that comes from, or goes to, another VMM of this host by its descriptor. Host addresses
 * stay, so that KVM's slots and everybody's pointers do. */
#include "vmm/vm_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/sabotage.h"

static int map_over(const struct vfmig_ram_block *block, int fd, uint64_t offset,
                    struct vfmig_error *reterr)
{
    void *at = mmap(block->host, block->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                    (off_t)offset);

    if (at == MAP_FAILED)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0,
                               "cannot map guest memory that was passed on: %s", strerror(errno));
    madvise(at, block->size, MADV_NOHUGEPAGE);
    madvise(at, block->size, MADV_DONTDUMP);
    return 0;
}

/* A device behind the vIOMMU, or with a PASID, has its memory from this process, at its host address. All are tried:
 * the first error is told. */
static int map_dma(struct vfmig_vmm *vmm, const struct vfmig_ram_block *block,
                   struct vfmig_error *reterr)
{
    int first = 0;

    for (uint32_t i = 0; i < vmm->device_count; i++) {
        struct vfmig_target *target = vmm->pci[i].target;
        struct vfmig_error *told = first ? NULL : reterr;
        if (vmm_served_here(vmm, i))
            continue;
        int ret = target->ops->dma_unmap(target, block->gpa, block->size, told);
        if (ret == 0)
            ret = target->ops->dma_map(target, block->gpa, block->size, block->fd,
                                       block->fd_offset, 3, told);
        first = first ? first : ret;
    }
    return first;
}

/* What a failed attempt would leave in our own memory must not be found by the next one. */
static void empty_own(int fd, uint64_t size)
{
    (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)size);
}

static int take_back_own(struct vfmig_vmm *vmm, uint32_t index, struct vfmig_error *reterr)
{
    struct vfmig_ram_block *block = &vmm->blocks[index];
    struct vmm_own_memory *own = &vmm->own_memory[index];

    if (!own->replaced)
        return 0;
    int ret = map_over(block, own->fd, 0, reterr);
    if (ret)
        return ret;
    close(block->fd);
    block->fd = own->fd;
    block->fd_offset = 0;
    own->replaced = false;
    return map_dma(vmm, block, reterr);
}

int vmm_memory_adopt(void *opaque, uint32_t index, int fd, uint64_t fd_offset,
                     struct vfmig_error *reterr)
{
    struct vfmig_vmm *vmm = opaque;
    struct vfmig_ram_block *block = &vmm->blocks[index];
    struct vmm_own_memory *own = &vmm->own_memory[index];

    if (fd < 0)
        return take_back_own(vmm, index, reterr);
    int ours = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (ours < 0)
        return vfmig_error_set(reterr, -errno, VFMIG_ORIGIN_KERNEL, 0,
                               "cannot keep a descriptor of guest memory: %s", strerror(errno));
    int ret = map_over(block, ours, fd_offset, reterr);
    if (ret) {
        close(ours);
        return ret;
    }
    if (own->replaced)
        close(block->fd);
    else
        own->fd = block->fd;
    own->replaced = true;
    empty_own(own->fd, block->size);
    block->fd = ours;
    block->fd_offset = fd_offset;
    if (vfmig_sabotage("write-before-grant"))
        memset(block->host, 0x5a, VFMIG_PAGE_SIZE);
    return map_dma(vmm, block, reterr);
}

void vmm_memory_keep(struct vfmig_vmm *vmm)
{
    for (uint32_t i = 0; i < vmm->memory.block_count; i++)
        if (vmm->own_memory[i].replaced) {
            close(vmm->own_memory[i].fd);
            vmm->own_memory[i].replaced = false;
        }
}

/* What is read from now on is zero and what is written is lost; where that cannot be had, nothing can be read
 * or written. Of much memory it takes a second. */
static void *unmap_main(void *opaque)
{
    struct vfmig_vmm *vmm = opaque;

    for (uint32_t i = 0; i < vmm->memory.block_count; i++) {
        struct vfmig_ram_block *block = &vmm->blocks[i];
        if (mmap(block->host, block->size, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
            (void)mprotect(block->host, block->size, PROT_NONE);
    }
    return NULL;
}

/* This process cannot touch the guest any more, whoever in it tries. Devices are quiet, and a dead one
 * has nothing mapped; they have to go to {} yet, so that nobody waits for the unmapping here. */
void vmm_memory_leave(struct vfmig_vmm *vmm)
{
    if (vmm->leaving || vmm->blocks[0].fd < 0)
        return;
    for (uint32_t b = 0; b < vmm->memory.block_count; b++) {
        struct vfmig_ram_block *block = &vmm->blocks[b];
        for (uint32_t i = 0; i < vmm->device_count; i++)
            if (!vmm_served_here(vmm, i))
                (void)vmm->pci[i].target->ops->dma_unmap(vmm->pci[i].target, block->gpa, block->size,
                                                         NULL);
        close(block->fd);
        block->fd = -1;
    }
    vmm->leaving = !pthread_create(&vmm->leaver, NULL, unmap_main, vmm);
    if (!vmm->leaving)
        unmap_main(vmm);
}

void vmm_memory_left(struct vfmig_vmm *vmm)
{
    if (vmm->leaving)
        pthread_join(vmm->leaver, NULL);
    vmm->leaving = false;
}
