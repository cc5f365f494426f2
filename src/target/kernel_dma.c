/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory that a kernel device reaches: mapped into this process first, because the kernel takes
 * addresses of it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/sabotage.h"
#include "target/kernel_private.h"

/* maps_lock held. The first mapping that ends after iova; map_count: none. */
static uint32_t first_after(const struct kernel *k, uint64_t iova)
{
    uint32_t i = 0;

    while (i < k->map_count && k->maps[i].iova + (k->maps[i].size - 1) < iova)
        i++;
    return i;
}

/* maps_lock held. Room for one more. */
static int reserve(struct kernel *k, struct vfmig_error *reterr)
{
    struct kernel_map *maps = NULL;

    if (k->map_count < VFMIG_MAX_DMA_REGIONS)
        maps = realloc(k->maps, (k->map_count + 1) * sizeof(*maps));
    if (!maps)
        return vfmig_error_set(reterr, -ENOSPC, VFMIG_ORIGIN_LOCAL, 0, "%s: too many mappings",
                               k->base.info.name);
    k->maps = maps;
    return 0;
}

static int insert(struct kernel *k, const struct kernel_map *map, uint32_t prot,
                  struct vfmig_error *reterr)
{
    uint32_t at = first_after(k, map->iova);
    int r = reserve(k, reterr);

    if (r == 0 && at < k->map_count && k->maps[at].iova <= map->iova + (map->size - 1))
        r = vfmig_error_set(reterr, -EEXIST, VFMIG_ORIGIN_LOCAL, 0, "%s: 0x%llx is mapped already",
                            k->base.info.name, (unsigned long long)map->iova);
    if (r == 0)
        r = k->iommu->map(k, map, prot, reterr);
    if (r < 0)
        return r;
    memmove(&k->maps[at + 1], &k->maps[at], (k->map_count - at) * sizeof(*map));
    k->maps[at] = *map;
    k->map_count++;
    return 0;
}

int kernel_dma_map(struct vfmig_target *t, uint64_t iova, uint64_t size, int fd, uint64_t fd_offset,
                   uint32_t prot, struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    struct kernel_map map = {.iova = iova, .size = size};

    if (size == 0 || size > SIZE_MAX || iova + (size - 1) < iova || fd_offset > INT64_MAX)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "a mapping of 0x%llx bytes at 0x%llx makes no sense",
                               (unsigned long long)size, (unsigned long long)iova);
    if (fd < 0)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
                               "%s reaches memory that has a descriptor only", t->info.name);
    int r = k->calls->mmap(k->opt.opaque, fd, fd_offset, (size_t)size, prot & 2, &map.host);
    if (r < 0)
        return vfmig_error_set(reterr, r, VFMIG_ORIGIN_KERNEL, 0, "memory for %s: %s", t->info.name,
                               strerror(-r));
    pthread_mutex_lock(&k->maps_lock);
    r = insert(k, &map, prot, reterr);
    pthread_mutex_unlock(&k->maps_lock);
    if (r < 0)
        k->calls->munmap(k->opt.opaque, map.host, (size_t)size);
    return r;
}

/* maps_lock held. What its log knows of the mapping would go with it. */
static int unmap_one(struct kernel *k, uint32_t i, struct vfmig_error *reterr)
{
    struct kernel_map map = k->maps[i];
    bool keep =
        k->logging && k->log && k->log->by_mapping && !vfmig_sabotage("kernel-unmap-forgets");
    uint64_t pages = keep ? (map.size - 1) / k->log_page + 1 : 0; /* the last may be a part */
    uint64_t *bits = keep ? calloc(vfmig_bitmap_words(pages), sizeof(*bits)) : NULL;

    if (keep && !bits)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0,
                               "no memory for a dirty bitmap");
    int r = k->iommu->unmap(k, &map, bits, reterr);
    if (r < 0) {
        free(bits); /* and the memory stays: the device may still reach it */
        return r;
    }
    if (keep)
        kernel_keep_rest(k, &map, bits);
    k->calls->munmap(k->opt.opaque, map.host, (size_t)map.size);
    k->map_count--;
    memmove(&k->maps[i], &k->maps[i + 1], (k->map_count - i) * sizeof(map));
    return 0;
}

/* All mappings in the range, none of which may stick out of it. */
int kernel_dma_unmap(struct vfmig_target *t, uint64_t iova, uint64_t size,
                     struct vfmig_error *reterr)
{
    struct kernel *k = (struct kernel *)t;
    uint64_t last = iova + (size - 1);
    int r = 0;

    pthread_mutex_lock(&k->maps_lock);
    uint32_t begin = first_after(k, iova), end = begin;
    while (end < k->map_count && k->maps[end].iova <= last)
        end++;
    if (size == 0 || last < iova || end == begin || k->maps[begin].iova < iova ||
        k->maps[end - 1].iova + (k->maps[end - 1].size - 1) > last)
        r = vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                            "%s: 0x%llx bytes at 0x%llx are not what was mapped", t->info.name,
                            (unsigned long long)size, (unsigned long long)iova);
    for (uint32_t left = end - begin; r == 0 && left; left--)
        r = unmap_one(k, begin, reterr);
    pthread_mutex_unlock(&k->maps_lock);
    return r;
}

void kernel_forget_maps(struct kernel *k)
{
    for (uint32_t i = 0; i < k->map_count; i++)
        k->calls->munmap(k->opt.opaque, k->maps[i].host, (size_t)k->maps[i].size);
    free(k->maps);
    k->maps = NULL;
    k->map_count = 0;
}
