/* SPDX-License-Identifier: BSD-3-Clause */
/* A device by its group, in a type1 container of its own; and the container's log. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/caps.h"
#include "target/kernel_private.h"

static int type1_map(struct kernel *k, const struct kernel_map *map, uint32_t prot,
                     struct vfmig_error *reterr)
{
    struct vfio_iommu_type1_dma_map request = {
        .argsz = sizeof(request),
        .flags = (prot & 1 ? VFIO_DMA_MAP_FLAG_READ : 0) | (prot & 2 ? VFIO_DMA_MAP_FLAG_WRITE : 0),
        .vaddr = (uintptr_t)map->host,
        .iova = map->iova,
        .size = map->size,
    };

    return kernel_need(k, k->container, VFIO_IOMMU_MAP_DMA, &request, "a mapping", reterr);
}

static int type1_unmap(struct kernel *k, const struct kernel_map *map, uint64_t *bits,
                       struct vfmig_error *reterr)
{
    struct {
        struct vfio_iommu_type1_dma_unmap head;
        struct vfio_bitmap bitmap;
    } request = {.head = {.argsz = sizeof(request.head), .iova = map->iova, .size = map->size}};

    if (bits) {
        request.head.argsz = sizeof(request);
        request.head.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
        request.bitmap = (struct vfio_bitmap){
            .pgsize = k->log_page,
            .size = vfmig_bitmap_words((map->size - 1) / k->log_page + 1) * sizeof(*bits),
            .data = (void *)bits,
        };
    }
    int r = kernel_need(k, k->container, VFIO_IOMMU_UNMAP_DMA, &request, "unmapping", reterr);
    if (r == 0 && request.head.size != map->size)
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_KERNEL, 0,
                               "%s: 0x%llx of 0x%llx bytes were unmapped", k->base.info.name,
                               (unsigned long long)request.head.size,
                               (unsigned long long)map->size);
    return r;
}

static void type1_detach(struct kernel *k)
{
    kernel_close_file(k, &k->device);
    if (k->attached)
        (void)kernel_ioctl(k, k->group, VFIO_GROUP_UNSET_CONTAINER, NULL);
    k->attached = false;
}

static const struct kernel_iommu type1 = {type1_map, type1_unmap, type1_detach};

/* What the container's log can do, if it has one. */
static int look_at_log(struct kernel *k, struct vfmig_error *reterr)
{
    struct vfio_iommu_type1_info_cap_migration cap;
    uint32_t size = 0, cap_size = 0;
    void *info = NULL;
    int r = kernel_get_info(k, k->container, VFIO_IOMMU_GET_INFO,
                            sizeof(struct vfio_iommu_type1_info), 0, &info, &size, reterr);

    if (r < 0)
        return r;
    const struct vfio_iommu_type1_info *head = info;
    const void *at = head->flags & VFIO_IOMMU_INFO_CAPS
                         ? vfmig_find_cap(info, size, head->cap_offset,
                                           VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, &cap_size)
                         : NULL;
    if (at && cap_size >= sizeof(cap)) {
        memcpy(&cap, at, sizeof(cap)); /* before 6.6 it need not be aligned */
        k->type1_page = cap.pgsize_bitmap & -cap.pgsize_bitmap;
        k->type1_bytes = cap.max_dirty_bitmap_size;
    }
    free(info);
    return 0;
}

static int use_container(struct kernel *k, struct vfmig_error *reterr)
{
    int r = kernel_open_file(k, "/dev/vfio/vfio", &k->container, reterr);

    if (r < 0)
        return r;
    if (kernel_ioctl(k, k->container, VFIO_GET_API_VERSION, NULL) != VFIO_API_VERSION ||
        kernel_ioctl(k, k->container, VFIO_CHECK_EXTENSION,
                     (void *)(uintptr_t)VFIO_TYPE1v2_IOMMU) <= 0)
        return vfmig_error_set(reterr, -ENOTSUP, VFMIG_ORIGIN_KERNEL, 0,
                               "%s: this kernel has no type1 container", k->base.info.name);
    r = kernel_need(k, k->group, VFIO_GROUP_SET_CONTAINER, &k->container, "its group", reterr);
    if (r < 0)
        return r;
    k->attached = true;
    return kernel_need(k, k->container, VFIO_SET_IOMMU, (void *)(uintptr_t)VFIO_TYPE1v2_IOMMU,
                       "its IOMMU", reterr);
}

/* where: "N:NAME". */
static int parse(const char *where, char path[static 32], const char **ret_name)
{
    char *end;
    unsigned long number = strtoul(where, &end, 10);

    if (end == where || *where < '0' || *where > '9' || number > INT32_MAX || *end != ':' ||
        !end[1] || strlen(end + 1) > 63)
        return -EINVAL;
    snprintf(path, 32, "/dev/vfio/%lu", number);
    *ret_name = end + 1;
    return 0;
}

int kernel_group_attach(struct kernel *k, const char *where, struct vfmig_error *reterr)
{
    struct vfio_group_status status = {.argsz = sizeof(status)};
    const char *name = NULL;
    char path[32];

    if (parse(where, path, &name) < 0)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "'%s' is not vfio-group:N:NAME", k->base.info.name);
    k->iommu = &type1;
    int r = kernel_open_file(k, path, &k->group, reterr);
    if (r == 0)
        r = kernel_need(k, k->group, VFIO_GROUP_GET_STATUS, &status, "its group", reterr);
    if (r == 0 && !(status.flags & VFIO_GROUP_FLAGS_VIABLE))
        r = vfmig_error_set(reterr, -EPERM, VFMIG_ORIGIN_KERNEL, 0,
                            "%s: other devices of its group are used by drivers of the host",
                            k->base.info.name);
    if (r == 0)
        r = use_container(k, reterr);
    if (r < 0)
        return r;
    int fd = kernel_ioctl(k, k->group, VFIO_GROUP_GET_DEVICE_FD, (void *)name);
    if (fd < 0)
        return vfmig_error_set(reterr, fd, VFMIG_ORIGIN_KERNEL, 0, "%s: the device: %s",
                               k->base.info.name, strerror(-fd));
    k->device = fd;
    return look_at_log(k, reterr);
}

/* ---- the container's log ---- */

static int dirty_switch(struct kernel *k, uint32_t flags, struct vfmig_error *reterr)
{
    struct vfio_iommu_type1_dirty_bitmap request = {.argsz = sizeof(request), .flags = flags};

    return kernel_need(k, k->container, VFIO_IOMMU_DIRTY_PAGES, &request, "the container's log",
                       reterr);
}

static int log_stop(struct kernel *k, struct vfmig_error *reterr)
{
    return dirty_switch(k, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, reterr);
}

static int log_start(struct kernel *k, uint64_t page_size, const struct vfmig_iova_range *ranges,
                     uint32_t count, struct vfmig_error *reterr)
{
    return dirty_switch(k, VFIO_IOMMU_DIRTY_PAGES_FLAG_START, reterr);
}

static int log_fetch(struct kernel *k, uint64_t iova, uint64_t size, uint64_t page_size,
                     uint64_t *words, struct vfmig_error *reterr)
{
    struct {
        struct vfio_iommu_type1_dirty_bitmap head;
        struct vfio_iommu_type1_dirty_bitmap_get get;
    } request = {
        .head = {.argsz = sizeof(request), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP},
        .get = {.iova = iova,
                .size = size,
                .bitmap = {.pgsize = page_size,
                           .size = vfmig_bitmap_words(size / page_size) * sizeof(*words),
                           .data = (void *)words}},
    };

    if (request.get.bitmap.size > k->type1_bytes)
        return vfmig_error_set(reterr, -E2BIG, VFMIG_ORIGIN_KERNEL, 0,
                               "%s: a mapping of 0x%llx bytes is too large for its container's log",
                               k->base.info.name, (unsigned long long)size);
    return kernel_need(k, k->container, VFIO_IOMMU_DIRTY_PAGES, &request, "a log report", reterr);
}

const struct kernel_log kernel_log_type1 = {
    .name = "type1",
    .by_mapping = true,
    .whole = true,
    .start = log_start,
    .stop = log_stop,
    .fetch = log_fetch,
};
