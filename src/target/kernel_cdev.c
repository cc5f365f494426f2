/* SPDX-License-Identifier: BSD-3-Clause */
/* A device by its character device, in an iommufd of its own; and the IOMMU's log. */
#include <errno.h>

#include "target/kernel_private.h"

static int iommufd_map(struct kernel *k, const struct kernel_map *map, uint32_t prot,
                       struct vfmig_error *reterr)
{
    struct iommufd_map request = {
        .size = sizeof(request),
        .flags = IOMMUFD_MAP_FIXED | (prot & 1 ? IOMMUFD_MAP_READ : 0) |
                 (prot & 2 ? IOMMUFD_MAP_WRITE : 0),
        .ioas = k->ioas,
        .address = (uintptr_t)map->host,
        .length = map->size,
        .iova = map->iova,
    };

    return kernel_need(k, k->iommufd, IOMMUFD_IOAS_MAP, &request, "a mapping", reterr);
}

static int get_log(struct kernel *k, uint32_t flags, uint64_t iova, uint64_t size,
                   uint64_t page_size, uint64_t *words, struct vfmig_error *reterr)
{
    struct iommufd_get_log request = {
        .size = sizeof(request),
        .hwpt = k->hwpt,
        .flags = flags,
        .iova = iova,
        .length = size,
        .page_size = page_size,
        .bitmap = (uintptr_t)words,
    };

    return kernel_need(k, k->iommufd, IOMMUFD_GET_LOG, &request, "a log report", reterr);
}

/* The log is read before the range goes: a device that writes there meanwhile writes to what its
 * guest has given up. */
static int iommufd_unmap(struct kernel *k, const struct kernel_map *map, uint64_t *bits,
                         struct vfmig_error *reterr)
{
    struct iommufd_unmap request = {
        .size = sizeof(request), .ioas = k->ioas, .iova = map->iova, .length = map->size};
    int r =
        bits ? get_log(k, IOMMUFD_LOG_KEEP, map->iova, map->size, k->log_page, bits, reterr) : 0;

    if (r == 0)
        r = kernel_need(k, k->iommufd, IOMMUFD_IOAS_UNMAP, &request, "unmapping", reterr);
    if (r == 0 && request.length != map->size)
        return vfmig_error_set(reterr, -EIO, VFMIG_ORIGIN_KERNEL, 0,
                               "%s: 0x%llx of 0x%llx bytes were unmapped", k->base.info.name,
                               (unsigned long long)request.length, (unsigned long long)map->size);
    return r;
}

static void destroy(struct kernel *k, uint32_t *id)
{
    struct iommufd_destroy request = {.size = sizeof(request), .id = *id};

    if (*id)
        (void)kernel_ioctl(k, k->iommufd, IOMMUFD_DESTROY, &request);
    *id = 0;
}

static void iommufd_detach(struct kernel *k)
{
    struct kernel_attach request = {.argsz = 8}; /* struct without a table */

    if (k->attached)
        (void)kernel_ioctl(k, k->device, KERNEL_DETACH_PT, &request);
    k->attached = false;
    kernel_close_file(k, &k->device);
    destroy(k, &k->hwpt);
    destroy(k, &k->ioas);
}

static const struct kernel_iommu iommufd = {iommufd_map, iommufd_unmap, iommufd_detach};

/* A page table that logs, if the IOMMU can: without one the device is attached to the address
 * space, and there is no log of this kind. */
static void make_log(struct kernel *k)
{
    struct iommufd_hw_info info = {.size = sizeof(info), .device = k->device_id};
    struct iommufd_hwpt_alloc alloc = {
        .size = sizeof(alloc),
        .flags = IOMMUFD_HWPT_LOG,
        .device = k->device_id,
        .parent = k->ioas,
    };

    if (kernel_ioctl(k, k->iommufd, IOMMUFD_HW_INFO, &info) == 0 &&
        (info.ret_capabilities & IOMMUFD_CAP_LOG) &&
        kernel_ioctl(k, k->iommufd, IOMMUFD_HWPT_ALLOC, &alloc) == 0)
        k->hwpt = alloc.ret_id;
}

int kernel_cdev_attach(struct kernel *k, const char *path, struct vfmig_error *reterr)
{
    struct iommufd_ioas_alloc space = {.size = sizeof(space)};
    struct kernel_bind bind = {.argsz = sizeof(bind)};
    struct kernel_attach attach = {.argsz = sizeof(attach)};

    if (*path != '/')
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "'%s' is not vfio:/PATH",
                               k->base.info.name);
    k->iommu = &iommufd;
    int r = kernel_open_file(k, path, &k->device, reterr);
    if (r == 0)
        r = kernel_open_file(k, "/dev/iommu", &k->iommufd, reterr);
    if (r < 0)
        return r;
    bind.iommufd = k->iommufd;
    r = kernel_need(k, k->device, KERNEL_BIND_IOMMUFD, &bind, "binding to iommufd", reterr);
    if (r == 0)
        r = kernel_need(k, k->iommufd, IOMMUFD_IOAS_ALLOC, &space, "an address space", reterr);
    if (r < 0)
        return r;
    k->device_id = bind.ret_device;
    k->ioas = space.ret_id;
    make_log(k);
    attach.table = k->hwpt ? k->hwpt : k->ioas;
    r = kernel_need(k, k->device, KERNEL_ATTACH_PT, &attach, "its address space", reterr);
    k->attached = r == 0;
    return r;
}

/* ---- the IOMMU's log ---- */

static int set_log(struct kernel *k, uint32_t flags, struct vfmig_error *reterr)
{
    struct iommufd_set_log request = {.size = sizeof(request), .flags = flags, .hwpt = k->hwpt};

    return kernel_need(k, k->iommufd, IOMMUFD_SET_LOG, &request, "the IOMMU's log", reterr);
}

static int log_start(struct kernel *k, uint64_t page_size, const struct vfmig_iova_range *ranges,
                     uint32_t count, struct vfmig_error *reterr)
{
    return set_log(k, IOMMUFD_LOG_ON, reterr);
}

static int log_stop(struct kernel *k, struct vfmig_error *reterr)
{
    return set_log(k, 0, reterr);
}

static int log_fetch(struct kernel *k, uint64_t iova, uint64_t size, uint64_t page_size,
                     uint64_t *words, struct vfmig_error *reterr)
{
    return get_log(k, 0, iova, size, page_size, words, reterr);
}

const struct kernel_log kernel_log_iommufd = {
    .name = "iommufd",
    .by_mapping = true,
    .start = log_start,
    .stop = log_stop,
    .fetch = log_fetch,
};
