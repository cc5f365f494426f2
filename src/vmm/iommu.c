/* SPDX-License-Identifier: BSD-3-Clause */
/* The vIOMMU: domains, their mappings, and accesses in flight. */
#include "vmm/iommu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/sabotage.h"
#include "vmm/iommu_priv.h"

#define IOVA_END (UINT64_C(1) << IOMMU_IOVA_BITS)

/* --- mappings --- */

/* Index of the first mapping that ends after iova. */
static uint32_t find(const struct iommu_domain *domain, uint64_t iova)
{
    uint32_t low = 0, high = domain->count;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (domain->mappings[mid].iova + domain->mappings[mid].size <= iova)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static int make_room(struct iommu_domain *domain)
{
    if (domain->count < domain->room)
        return 0;
    uint32_t room = domain->room ? domain->room * 2 : 64;
    struct iommu_mapping *more = realloc(domain->mappings, room * sizeof(*more));
    if (!more)
        return -ENOMEM;
    domain->mappings = more;
    domain->room = room;
    return 0;
}

int iommu_map(struct vmm_iommu *iommu, struct iommu_domain *domain,
              const struct iommu_mapping *mapping)
{
    uint64_t size = mapping->size;

    if (!size || (mapping->iova | mapping->gpa | size) % IOMMU_PAGE || size > IOVA_END ||
        mapping->iova > IOVA_END - size || mapping->gpa > UINT64_MAX - size || !mapping->flags ||
        (mapping->flags & ~(IOMMU_MAP_READ | IOMMU_MAP_WRITE)))
        return -EINVAL;
    uint32_t at = find(domain, mapping->iova);
    if (at < domain->count && domain->mappings[at].iova < mapping->iova + size)
        return -EEXIST;
    if (iommu->mapping_count == VFMIG_MAX_IOMMU_MAPPINGS)
        return -ENOSPC;
    int ret = make_room(domain);
    if (ret)
        return ret;
    memmove(&domain->mappings[at + 1], &domain->mappings[at],
            (domain->count - at) * sizeof(*mapping));
    domain->mappings[at] = *mapping;
    domain->count++;
    iommu->mapping_count++;
    return 0;
}

static bool is_flying(const struct iommu_domain *domain, uint64_t iova, uint64_t size)
{
    for (const struct vmm_iommu_access *a = domain->flying; a; a = a->next)
        if (a->iova < iova + size && iova < a->iova + a->size)
            return true;
    return false;
}

/* An access in flight goes on with the translation that it began with, and is waited for: it alone,
 * because it waits for nothing that the guest does. */
int iommu_unmap(struct vmm_iommu *iommu, struct iommu_domain *domain, uint64_t iova, uint64_t size)
{
    if (!size || iova >= IOVA_END || size > IOVA_END - iova)
        return -EINVAL;
    uint32_t first = find(domain, iova), end = first;
    while (end < domain->count && domain->mappings[end].iova < iova + size) {
        const struct iommu_mapping *m = &domain->mappings[end++];
        if (m->iova < iova || m->iova + m->size > iova + size)
            return -EINVAL;
    }
    if (first == end)
        return 0;
    for (uint32_t i = first; i < end; i++)
        domain->mappings[i].leaving = true;
    while (is_flying(domain, iova, size) && !vfmig_sabotage("unmap-without-waiting"))
        pthread_cond_wait(&iommu->changed, &iommu->lock);
    /* Only this thread changes the list. */
    memmove(&domain->mappings[first], &domain->mappings[end],
            (domain->count - end) * sizeof(domain->mappings[0]));
    domain->count -= end - first;
    iommu->mapping_count -= end - first;
    return 0;
}

/* --- accesses --- */

/* True when all of the access is mapped for what it wants; else the first page that is not. */
static bool is_mapped(const struct iommu_domain *domain, const struct vmm_iommu_access *access,
                      uint64_t *ret_page)
{
    uint32_t need = access->is_write ? IOMMU_MAP_WRITE : IOMMU_MAP_READ;
    uint64_t at = access->iova, end = access->iova + access->size;

    for (uint32_t i = find(domain, at); at < end; i++) {
        const struct iommu_mapping *m = i < domain->count ? &domain->mappings[i] : NULL;
        if (!m || m->iova > at || m->leaving || !(m->flags & need)) {
            *ret_page = at & ~(uint64_t)(IOMMU_PAGE - 1);
            return false;
        }
        at = m->iova + m->size;
    }
    return true;
}

static int begin(struct vmm_iommu *iommu, struct vmm_iommu_access *access, bool hold)
{
    struct iommu_domain *domain = &iommu->domains[access->device % IOMMU_DEVICES];
    uint64_t page;

    if (iommu->closed || iommu->regs.disabling || !iommu->regs.enabled || !domain->behind ||
        !domain->on)
        return -EFAULT;
    if (access->iova >= IOVA_END || access->size > IOVA_END - access->iova)
        return -EFAULT;
    if (!is_mapped(domain, access, &page))
        return hold ? iommu_fault_raise(iommu, access, page) : -EAGAIN;
    access->next = domain->flying;
    access->link = &domain->flying;
    if (access->next)
        access->next->link = &access->next;
    domain->flying = access;
    return 0;
}

int vmm_iommu_begin(struct vmm_iommu *iommu, struct vmm_iommu_access *access, bool hold)
{
    pthread_mutex_lock(&iommu->lock);
    if (hold && !access->held) {
        access->held = true;
        iommu->held++;
    }
    int ret = begin(iommu, access, hold);
    pthread_mutex_unlock(&iommu->lock);
    return ret;
}

void vmm_iommu_translate(struct vmm_iommu *iommu, const struct vmm_iommu_access *access,
                         uint64_t iova, uint64_t *ret_gpa, uint64_t *ret_left)
{
    pthread_mutex_lock(&iommu->lock);
    const struct iommu_domain *domain = &iommu->domains[access->device % IOMMU_DEVICES];
    const struct iommu_mapping *m = &domain->mappings[find(domain, iova)];
    *ret_gpa = m->gpa + (iova - m->iova);
    *ret_left = m->size - (iova - m->iova);
    pthread_mutex_unlock(&iommu->lock);
}

void vmm_iommu_end(struct vmm_iommu *iommu, struct vmm_iommu_access *access)
{
    pthread_mutex_lock(&iommu->lock);
    *access->link = access->next;
    if (access->next)
        access->next->link = access->link;
    pthread_cond_broadcast(&iommu->changed);
    pthread_mutex_unlock(&iommu->lock);
}

void vmm_iommu_release(struct vmm_iommu *iommu, struct vmm_iommu_access *access)
{
    pthread_mutex_lock(&iommu->lock);
    iommu->held -= access->held;
    access->held = false;
    pthread_cond_broadcast(&iommu->changed);
    pthread_mutex_unlock(&iommu->lock);
}

uint32_t vmm_iommu_faults(struct vmm_iommu *iommu)
{
    pthread_mutex_lock(&iommu->lock);
    uint32_t held = iommu->held;
    pthread_mutex_unlock(&iommu->lock);
    return held;
}

/* --- the grace state --- */

static struct timespec deadline_in(uint64_t ns)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    uint64_t nsec = (uint64_t)at.tv_nsec + ns % 1000000000u;
    at.tv_sec += (time_t)(ns / 1000000000u + nsec / 1000000000u);
    at.tv_nsec = (long)(nsec % 1000000000u);
    return at;
}

static bool is_idle(const struct vmm_iommu *iommu, bool guest_runs)
{
    bool commands =
        guest_runs && iommu->regs.enabled && iommu->regs.cmd_head != iommu->regs.cmd_tail;

    if (vfmig_sabotage("viommu-idle-at-once"))
        return true;
    return !iommu->open && !iommu->held && !iommu->busy && !commands && !iommu->regs.disabling;
}

int vmm_iommu_idle(struct vmm_iommu *iommu, bool guest_runs, uint64_t timeout_ns,
                   struct vfmig_error *reterr)
{
    struct vmm_iommu_access *list = NULL;
    struct timespec until = deadline_in(timeout_ns);
    int ret = 0;

    pthread_mutex_lock(&iommu->lock);
    iommu_faults_withdraw(iommu, guest_runs, &list);
    pthread_mutex_unlock(&iommu->lock);
    iommu_tell(list, -ECANCELED);
    pthread_mutex_lock(&iommu->lock);
    while (!is_idle(iommu, guest_runs) && !ret)
        ret = -pthread_cond_timedwait(&iommu->changed, &iommu->lock, &until);
    uint32_t open = iommu->open, held = iommu->held;
    bool idle = is_idle(iommu, guest_runs);
    pthread_mutex_unlock(&iommu->lock);
    if (idle)
        return 0;
    return vfmig_error_set(reterr, -ETIMEDOUT, VFMIG_ORIGIN_LOCAL, 0,
                           open ? "the guest has not responded to %u page requests"
                                : "%u accesses of devices through the vIOMMU do not end",
                           open ? open : held);
}

void vmm_iommu_pause(struct vmm_iommu *iommu)
{
    pthread_mutex_lock(&iommu->lock);
    iommu->paused = true;
    while (iommu->busy)
        pthread_cond_wait(&iommu->changed, &iommu->lock);
    pthread_mutex_unlock(&iommu->lock);
}

void vmm_iommu_resume(struct vmm_iommu *iommu)
{
    pthread_mutex_lock(&iommu->lock);
    iommu->paused = false;
    iommu_faults_flush(iommu);
    pthread_cond_broadcast(&iommu->work);
    pthread_mutex_unlock(&iommu->lock);
}

/* --- life --- */

static int allocate(struct vmm_iommu *iommu)
{
    for (uint32_t i = 0; i < IOMMU_DEVICES; i++) {
        struct iommu_domain *domain = &iommu->domains[i];
        domain->behind = iommu->devices >> i & 1;
        if (!domain->behind)
            continue;
        domain->faults = calloc(VFMIG_MAX_LATE_DMA, sizeof(*domain->faults));
        if (!domain->faults)
            return -ENOMEM;
    }
    return 0;
}

int vmm_iommu_new(const struct vmm_dma_space *space, uint32_t devices, struct vmm_iommu **ret_iommu,
                  struct vfmig_error *reterr)
{
    struct vmm_iommu *iommu = calloc(1, sizeof(*iommu));
    pthread_condattr_t attr;

    if (!iommu)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a vIOMMU");
    iommu->space = space;
    iommu->devices = devices;
    iommu->paused = true;
    iommu->last_queued = &iommu->first_queued;
    pthread_mutex_init(&iommu->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&iommu->work, &attr);
    pthread_cond_init(&iommu->changed, &attr);
    pthread_condattr_destroy(&attr);
    int ret = allocate(iommu);
    if (ret)
        vfmig_error_set(reterr, ret, VFMIG_ORIGIN_KERNEL, 0, "no memory for a vIOMMU");
    else
        ret = iommu_worker_start(iommu, reterr);
    if (ret) {
        iommu->quit = true;
        vmm_iommu_free(iommu);
        return ret;
    }
    *ret_iommu = iommu;
    return 0;
}

void vmm_iommu_close(struct vmm_iommu *iommu)
{
    struct vmm_iommu_access *list = NULL;

    pthread_mutex_lock(&iommu->lock);
    iommu->closed = true;
    for (uint32_t i = 0; i < IOMMU_DEVICES; i++)
        iommu_faults_forget(iommu, &iommu->domains[i], &list);
    pthread_mutex_unlock(&iommu->lock);
    iommu_tell(list, -EFAULT);
    pthread_mutex_lock(&iommu->lock);
    iommu->quit = true;
    pthread_cond_broadcast(&iommu->work);
    pthread_mutex_unlock(&iommu->lock);
    pthread_join(iommu->worker, NULL);
}

void vmm_iommu_free(struct vmm_iommu *iommu)
{
    if (!iommu)
        return;
    for (uint32_t i = 0; i < IOMMU_DEVICES; i++) {
        free(iommu->domains[i].mappings);
        free(iommu->domains[i].faults);
    }
    pthread_cond_destroy(&iommu->work);
    pthread_cond_destroy(&iommu->changed);
    pthread_mutex_destroy(&iommu->lock);
    free(iommu);
}
