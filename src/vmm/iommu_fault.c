/* SPDX-License-Identifier: BSD-3-Clause */
/* Page requests: accesses that wait for a page, and the queue by which the guest is asked for it.
 * Every access waits for one request at most and a target holds VFMIG_MAX_LATE_DMA of them, so that
 * a domain has a place for each. */
#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "dirty/trackers.h"
#include "vmm/iommu_priv.h"

_Static_assert(VFMIG_MAX_LATE_DMA == 256, "the place of a fault is the last byte of its id");

static void queue(struct vmm_iommu *iommu, struct iommu_fault *fault)
{
    if (fault->queued)
        return;
    fault->queued = true;
    fault->next = NULL;
    *iommu->last_queued = fault;
    iommu->last_queued = &fault->next;
}

static void unqueue(struct vmm_iommu *iommu, struct iommu_fault *fault)
{
    struct iommu_fault **at = &iommu->first_queued;

    if (!fault->queued)
        return;
    while (*at != fault)
        at = &(*at)->next;
    *at = fault->next;
    if (iommu->last_queued == &fault->next)
        iommu->last_queued = at;
    fault->queued = false;
}

/* The body, then turn, then the mark: the guest looks at turn, whoever copies the page at the mark.
 */
static void write_request(struct vmm_iommu *iommu, const struct iommu_fault *fault)
{
    uint32_t slot = iommu->regs.prq_tail & (iommu->regs.prq_entries - 1);
    struct iommu_request *to = &iommu->requests[slot];
    struct iommu_request request = {
        .iova = fault->iova,
        .device = fault->id >> 24,
        .id = fault->id,
        .flags = (fault->is_write ? IOMMU_REQUEST_WRITE : 0) |
                 (fault->withdrawn ? IOMMU_REQUEST_WITHDRAWN : 0),
    };

    memcpy(to, &request, offsetof(struct iommu_request, turn));
    iommu->regs.prq_tail++;
    __atomic_store_n(&to->turn, iommu->regs.prq_tail, __ATOMIC_RELEASE);
    vfmig_own_mark(iommu->space->own, iommu->regs.prq_base + slot * sizeof(*to), sizeof(*to));
}

void iommu_faults_flush(struct vmm_iommu *iommu)
{
    while (iommu->first_queued && iommu->regs.enabled && !iommu->paused && !iommu->closed &&
           iommu->regs.prq_tail - iommu->regs.prq_head < iommu->regs.prq_entries) {
        struct iommu_fault *fault = iommu->first_queued;
        unqueue(iommu, fault);
        fault->told = true;
        write_request(iommu, fault);
    }
}

static struct iommu_fault *find_open(struct iommu_domain *domain, uint64_t page, bool is_write)
{
    for (uint32_t i = 0; i < VFMIG_MAX_LATE_DMA; i++) {
        struct iommu_fault *fault = &domain->faults[i];
        if (fault->open && !fault->withdrawn && fault->iova == page && fault->is_write == is_write)
            return fault;
    }
    return NULL;
}

static struct iommu_fault *open_fault(struct vmm_iommu *iommu, uint32_t device, uint64_t page,
                                      bool is_write)
{
    struct iommu_domain *domain = &iommu->domains[device];

    for (uint32_t i = 0; i < VFMIG_MAX_LATE_DMA; i++) {
        struct iommu_fault *fault = &domain->faults[i];
        if (fault->open)
            continue;
        *fault = (struct iommu_fault){
            .open = true,
            .is_write = is_write,
            .iova = page,
            .id = device << 24 | (domain->turn++ & 0xffff) << 8 | i,
        };
        iommu->open++;
        queue(iommu, fault);
        iommu_faults_flush(iommu);
        return fault;
    }
    return NULL;
}

int iommu_fault_raise(struct vmm_iommu *iommu, struct vmm_iommu_access *access, uint64_t page)
{
    struct iommu_fault *fault = find_open(&iommu->domains[access->device], page, access->is_write);

    if (!fault)
        fault = open_fault(iommu, access->device, page, access->is_write);
    /* All places are taken by requests that were withdrawn and that the guest never responded to.
     */
    if (!fault)
        return -EFAULT;
    access->next = NULL;
    struct vmm_iommu_access **at = &fault->waiting;
    while (*at)
        at = &(*at)->next;
    *at = access;
    return -EINPROGRESS;
}

/* Those who wait for the fault go to the list. */
static void detach(struct iommu_fault *fault, struct vmm_iommu_access **list)
{
    while (*list)
        list = &(*list)->next;
    *list = fault->waiting;
    fault->waiting = NULL;
}

static void close_fault(struct vmm_iommu *iommu, struct iommu_fault *fault)
{
    unqueue(iommu, fault);
    fault->open = false;
    iommu->open--;
    pthread_cond_broadcast(&iommu->changed);
}

int iommu_fault_respond(struct vmm_iommu *iommu, uint32_t id, struct vmm_iommu_access **ret_list)
{
    uint32_t device = id >> 24;
    struct iommu_domain *domain = device < IOMMU_DEVICES ? &iommu->domains[device] : NULL;

    if (!domain || !domain->behind)
        return -ENOENT;
    struct iommu_fault *fault = &domain->faults[id % VFMIG_MAX_LATE_DMA];
    if (!fault->open || fault->id != id || !fault->told)
        return -ENOENT;
    if (vfmig_sabotage("forget-fault"))
        fault->waiting = NULL;
    detach(fault, ret_list);
    close_fault(iommu, fault);
    return 0;
}

void iommu_faults_forget(struct vmm_iommu *iommu, struct iommu_domain *domain,
                         struct vmm_iommu_access **ret_list)
{
    for (uint32_t i = 0; domain->behind && i < VFMIG_MAX_LATE_DMA; i++) {
        struct iommu_fault *fault = &domain->faults[i];
        if (!fault->open)
            continue;
        detach(fault, ret_list);
        close_fault(iommu, fault);
    }
}

void iommu_faults_withdraw(struct vmm_iommu *iommu, bool guest_runs,
                           struct vmm_iommu_access **ret_list)
{
    for (uint32_t d = 0; d < IOMMU_DEVICES; d++) {
        struct iommu_domain *domain = &iommu->domains[d];
        if (!guest_runs)
            iommu_faults_forget(iommu, domain, ret_list);
        for (uint32_t i = 0; domain->behind && i < VFMIG_MAX_LATE_DMA; i++) {
            struct iommu_fault *fault = &domain->faults[i];
            if (!fault->open || fault->withdrawn)
                continue;
            detach(fault, ret_list);
            fault->withdrawn = true;
            if (fault->told)
                queue(iommu, fault);
            else
                close_fault(iommu, fault); /* the guest never heard of it */
        }
    }
    iommu_faults_flush(iommu);
}

void iommu_tell(struct vmm_iommu_access *list, int result)
{
    while (list) {
        struct vmm_iommu_access *access = list;
        list = access->next;
        access->answered(access, result);
    }
}
