/* SPDX-License-Identifier: BSD-3-Clause */
/* Mappings and logs of the fake kernel. */
#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "fake_kernel.h"

#define MAX_BITMAP (1u << 28)

/* ---- mappings ---- */

static int map(struct fake_kernel *f, uint64_t iova, uint64_t size, uint64_t at, bool writable)
{
    if (!size || iova % FAKE_PAGE || size % FAKE_PAGE || at % FAKE_PAGE || iova + size < iova)
        return -EINVAL;
    for (uint32_t i = 0; i < f->map_count; i++)
        if (iova < f->maps[i].iova + f->maps[i].size && f->maps[i].iova < iova + size)
            return -EEXIST;
    if (f->map_count == sizeof(f->maps) / sizeof(f->maps[0]))
        return -ENOSPC;
    f->maps[f->map_count++] = (struct fake_mapping){iova, size, (uint8_t *)(uintptr_t)at, writable};
    return 0;
}

/* Bytes that were unmapped. */
static uint64_t unmap(struct fake_kernel *f, uint64_t iova, uint64_t size)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < f->map_count;) {
        if (f->maps[i].iova < iova || f->maps[i].iova + f->maps[i].size > iova + size) {
            i++;
            continue;
        }
        bytes += f->maps[i].size;
        f->maps[i] = f->maps[--f->map_count];
    }
    return f->quirk.short_unmap ? bytes - FAKE_PAGE : bytes;
}

void fake_dma_write(struct fake_kernel *f, uint64_t iova, uint8_t byte)
{
    for (uint32_t i = 0; i < f->map_count; i++) {
        struct fake_mapping *m = &f->maps[i];
        if (iova < m->iova || iova - m->iova >= m->size || !m->writable)
            continue;
        m->at[iova - m->iova] = byte;
        if (f->iommu_log_on)
            vfmig_bitmap_set(f->iommu_dirty, iova / FAKE_PAGE);
        for (uint32_t r = 0; f->log_on && r < f->log_ranges; r++)
            if (iova - f->ranges[r].iova < f->ranges[r].size)
                vfmig_bitmap_set(f->device_dirty, iova / FAKE_PAGE);
    }
}

/* Sets bits of pages of page_size; never clears any of the caller's. */
static void report(struct fake_kernel *f, uint64_t *dirty, uint64_t iova, uint64_t size,
                   uint64_t page_size, uint64_t *words, bool clear)
{
    for (uint64_t at = 0; at < size; at += FAKE_PAGE) {
        uint64_t page = (iova + at) / FAKE_PAGE;
        if (page >= FAKE_SPACE_PAGES || !vfmig_bitmap_test(dirty, page))
            continue;
        vfmig_bitmap_set(words, at / page_size);
        if (clear)
            vfmig_bitmap_clear(dirty, page);
    }
    uint64_t bits = (size + page_size - 1) / page_size;
    if (f->quirk.stray_bits && bits % 64)
        words[bits / 64] |= ~UINT64_C(0) << (bits % 64);
}

/* ---- type1 ---- */

static int get_iommu_info(struct fake_kernel *f, struct vfio_iommu_type1_info *info)
{
    struct vfio_iommu_type1_info_cap_migration cap = {
        .header = {VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, 1, 0},
        .pgsize_bitmap = FAKE_PAGE,
        .max_dirty_bitmap_size = MAX_BITMAP,
    };
    uint32_t need = sizeof(*info) + sizeof(cap), room = info->argsz;

    if (room < 16)
        return -EINVAL;
    info->flags = VFIO_IOMMU_INFO_PGSIZES;
    info->iova_pgsizes = FAKE_PAGE;
    if (!f->iommu_log)
        return 0;
    info->flags |= VFIO_IOMMU_INFO_CAPS;
    info->argsz = need;
    info->cap_offset = 0;
    if (room >= need) {
        info->cap_offset = sizeof(*info);
        memcpy(info + 1, &cap, sizeof(cap));
    }
    return 0;
}

static int check_bitmap(const struct vfio_bitmap *bitmap, uint64_t size)
{
    uint64_t pages = size / FAKE_PAGE;

    return bitmap->pgsize != FAKE_PAGE || bitmap->size > MAX_BITMAP ||
                   bitmap->size < (pages + 63) / 64 * 8
               ? -EINVAL
               : 0;
}

static int dirty_pages(struct fake_kernel *f, const struct vfio_iommu_type1_dirty_bitmap *request)
{
    const struct vfio_iommu_type1_dirty_bitmap_get *get = (const void *)request->data;

    if (!f->iommu_log)
        return -ENOTTY;
    if (request->argsz < sizeof(*request))
        return -EINVAL;
    switch (request->flags) {
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_START:
        f->iommu_log_on = true; /* clears nothing that is on */
        return f->quirk.start_error;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP:
        f->iommu_log_on = false;
        memset(f->iommu_dirty, 0, sizeof(f->iommu_dirty));
        return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP:
        break;
    default:
        return -EINVAL;
    }
    if (request->argsz < sizeof(*request) + sizeof(*get) || !f->iommu_log_on || !get->size ||
        get->iova % FAKE_PAGE || get->size % FAKE_PAGE || check_bitmap(&get->bitmap, get->size) < 0)
        return -EINVAL;
    for (uint32_t i = 0; i < f->map_count; i++) { /* no mapping is cut through */
        uint64_t begin = f->maps[i].iova, end = begin + f->maps[i].size,
                 last = get->iova + get->size;
        if (begin < last && end > get->iova && (begin < get->iova || end > last))
            return -EINVAL;
    }
    if (f->quirk.report_error)
        return f->quirk.report_error;
    report(f, f->iommu_dirty, get->iova, get->size, FAKE_PAGE, (uint64_t *)get->bitmap.data, true);
    return 0;
}

static int unmap_dma(struct fake_kernel *f, struct vfio_iommu_type1_dma_unmap *request)
{
    const struct vfio_bitmap *bitmap = (const void *)request->data;

    if (request->argsz < sizeof(*request))
        return -EINVAL;
    if (request->flags & VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP) {
        if (request->argsz < sizeof(*request) + sizeof(*bitmap) || !f->iommu_log_on ||
            check_bitmap(bitmap, request->size) < 0)
            return -EINVAL;
        report(f, f->iommu_dirty, request->iova, request->size, FAKE_PAGE, (uint64_t *)bitmap->data,
               true);
    }
    request->size = unmap(f, request->iova, request->size);
    return 0;
}

int fake_container(struct fake_kernel *f, unsigned long request, void *argument)
{
    switch (request) {
    case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
    case VFIO_CHECK_EXTENSION:
        return (uintptr_t)argument == VFIO_TYPE1v2_IOMMU;
    case VFIO_SET_IOMMU:
        if (!f->container_used || (uintptr_t)argument != VFIO_TYPE1v2_IOMMU)
            return -EINVAL;
        f->iommu_set = true;
        return 0;
    case VFIO_IOMMU_GET_INFO:
        return get_iommu_info(f, argument);
    case VFIO_IOMMU_MAP_DMA: {
        const struct vfio_iommu_type1_dma_map *m = argument;
        return m->argsz < sizeof(*m)
                   ? -EINVAL
                   : map(f, m->iova, m->size, m->vaddr, m->flags & VFIO_DMA_MAP_FLAG_WRITE);
    }
    case VFIO_IOMMU_UNMAP_DMA:
        return unmap_dma(f, argument);
    case VFIO_IOMMU_DIRTY_PAGES:
        return dirty_pages(f, argument);
    default:
        return -ENOTTY;
    }
}

/* ---- iommufd: the device is 1, the address space 2, the page table 3 ---- */

static int get_log(struct fake_kernel *f, const struct iommufd_get_log *get)
{
    uint64_t mapped = 0;

    if (get->size < sizeof(*get) || !f->has_hwpt || get->hwpt != 3 || !f->iommu_log_on ||
        get->page_size < FAKE_PAGE || get->page_size % FAKE_PAGE || get->iova % FAKE_PAGE ||
        get->length % FAKE_PAGE)
        return -EINVAL;
    if (get->flags & ~(uint32_t)IOMMUFD_LOG_KEEP)
        return -EOPNOTSUPP;
    for (uint32_t i = 0; i < f->map_count; i++) {
        uint64_t begin = f->maps[i].iova, end = begin + f->maps[i].size;
        if (get->iova >= begin && get->iova + get->length <= end)
            mapped = get->length;
    }
    if (mapped != get->length) /* all of it must be mapped */
        return -EINVAL;
    if (f->quirk.report_error)
        return f->quirk.report_error;
    report(f, f->iommu_dirty, get->iova, get->length, get->page_size,
           (uint64_t *)(uintptr_t)get->bitmap, !(get->flags & IOMMUFD_LOG_KEEP));
    return 0;
}

int fake_iommufd(struct fake_kernel *f, unsigned long request, void *argument)
{
    switch (request) {
    case IOMMUFD_IOAS_ALLOC:
        f->has_ioas = true;
        ((struct iommufd_ioas_alloc *)argument)->ret_id = 2;
        return 0;
    case IOMMUFD_HW_INFO:
        ((struct iommufd_hw_info *)argument)->ret_capabilities = f->iommu_log ? IOMMUFD_CAP_LOG : 0;
        return f->bound && ((struct iommufd_hw_info *)argument)->device == 1 ? 0 : -ENOENT;
    case IOMMUFD_HWPT_ALLOC: {
        struct iommufd_hwpt_alloc *alloc = argument;
        if (alloc->size < sizeof(*alloc) || alloc->device != 1 || alloc->parent != 2)
            return -EINVAL;
        if (!f->iommu_log)
            return -EOPNOTSUPP;
        f->has_hwpt = true;
        alloc->ret_id = 3;
        return 0;
    }
    case IOMMUFD_IOAS_MAP: {
        const struct iommufd_map *m = argument;
        return m->size < sizeof(*m) || m->ioas != 2 || !(m->flags & IOMMUFD_MAP_FIXED)
                   ? -EINVAL
                   : map(f, m->iova, m->length, m->address, m->flags & IOMMUFD_MAP_WRITE);
    }
    case IOMMUFD_IOAS_UNMAP: {
        struct iommufd_unmap *u = argument;
        u->length = unmap(f, u->iova, u->length);
        return u->length ? 0 : -ENOENT;
    }
    case IOMMUFD_SET_LOG: {
        const struct iommufd_set_log *set = argument;
        if (set->size < sizeof(*set) || !f->has_hwpt || set->hwpt != 3)
            return -EINVAL;
        f->iommu_log_on = set->flags & IOMMUFD_LOG_ON;
        if (f->iommu_log_on)
            memset(f->iommu_dirty, 0, sizeof(f->iommu_dirty));
        return f->quirk.start_error;
    }
    case IOMMUFD_GET_LOG:
        return get_log(f, argument);
    case IOMMUFD_DESTROY: {
        uint32_t id = ((struct iommufd_destroy *)argument)->id;
        bool *thing = id == 2 ? &f->has_ioas : id == 3 ? &f->has_hwpt : NULL;
        if (!thing || !*thing || f->attached)
            return -ENOENT;
        *thing = false;
        return 0;
    }
    default:
        return -ENOTTY;
    }
}

/* ---- the device's own log ---- */

int fake_log_start(struct fake_kernel *f, const struct kernel_log_start *start)
{
    const struct vfmig_iova_range *ranges = (const void *)(uintptr_t)start->ranges;

    if (f->quirk.start_error)
        return f->quirk.start_error;
    if (!start->range_count || f->log_on)
        return -EINVAL;
    if (start->range_count > 256)
        return -E2BIG;
    for (uint32_t i = 0; i < start->range_count; i++) {
        if (ranges[i].iova % start->page_size || ranges[i].size % start->page_size)
            return -EINVAL;
        if (ranges[i].iova + ranges[i].size < ranges[i].iova)
            return -EOVERFLOW;
        for (uint32_t j = 0; j < i; j++)
            if (ranges[i].iova < ranges[j].iova + ranges[j].size &&
                ranges[j].iova < ranges[i].iova + ranges[i].size)
                return -EINVAL;
        f->ranges[i] = ranges[i];
    }
    f->log_ranges = start->range_count;
    f->log_on = true;
    memset(f->device_dirty, 0, sizeof(f->device_dirty));
    return 0;
}

int fake_log_report(struct fake_kernel *f, const struct kernel_log_report *request)
{
    if (request->page_size < FAKE_PAGE || (request->page_size & (request->page_size - 1)) ||
        !f->log_on)
        return -EINVAL;
    if (f->quirk.report_error)
        return f->quirk.report_error;
    report(f, f->device_dirty, request->iova, request->size, request->page_size,
           (uint64_t *)(uintptr_t)request->bitmap, true);
    return 0;
}
