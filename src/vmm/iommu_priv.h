/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the vIOMMU; not for others. */
#ifndef VFMIG_VMM_IOMMU_PRIV_H
#define VFMIG_VMM_IOMMU_PRIV_H

#include <pthread.h>

#include "base/bounds.h"
#include "vmm/dma.h"
#include "vmm/iommu.h"

#define IOMMU_DEVICES 32u
#define IOMMU_VERSION 1u

struct iommu_mapping {
    uint64_t iova, gpa, size;
    uint32_t flags; /* IOMMU_MAP_* */
    bool leaving;   /* unmapped, and only there for accesses in flight */
};

/* A page request that the guest has not responded to. */
struct iommu_fault {
    bool open;
    bool queued;    /* to be written to the guest's queue */
    bool told;      /* it was written there */
    bool withdrawn; /* nobody waits for it any more */
    bool is_write;
    uint32_t id;
    uint64_t iova; /* of the page */
    struct vmm_iommu_access *waiting;
    struct iommu_fault *next; /* in the order of queueing */
};

struct iommu_domain {
    bool behind;
    bool on;
    uint32_t turn;                  /* gives every request another id */
    struct iommu_mapping *mappings; /* sorted by iova */
    uint32_t count, room;
    struct vmm_iommu_access *flying; /* in flight */
    struct iommu_fault *faults;      /* VFMIG_MAX_LATE_DMA, where behind */
};

struct iommu_registers {
    bool enabled;
    bool disabling; /* CTRL was cleared; the worker does it */
    uint64_t cmd_base, prq_base;
    uint32_t cmd_entries, cmd_tail, cmd_head;
    uint32_t prq_entries, prq_tail, prq_head;
    uint32_t errors;
};

struct vmm_iommu {
    const struct vmm_dma_space *space;
    uint32_t devices;

    pthread_mutex_t lock;   /* of everything below */
    pthread_cond_t work;    /* the worker: a command, a resume, the end */
    pthread_cond_t changed; /* whoever waits for less of something */
    pthread_t worker;
    bool quit, closed, paused;
    bool busy; /* the worker is at a command */

    struct iommu_registers regs;
    struct iommu_command *commands; /* the queues as they lie in guest memory, while enabled */
    struct iommu_request *requests;

    struct iommu_domain domains[IOMMU_DEVICES];
    uint32_t mapping_count; /* of all domains */
    uint32_t open;          /* page requests without response */
    uint32_t held;          /* open faults */
    struct iommu_fault *first_queued, **last_queued;
};

/* All of these with the lock held. */

/* iommu.c: mappings */
int iommu_map(struct vmm_iommu *iommu, struct iommu_domain *domain,
              const struct iommu_mapping *mapping);
/* They are left out from now on, and gone when this returns: it waits for accesses in flight, the
 * lock is dropped meanwhile. -EINVAL: a mapping is only partly inside. */
int iommu_unmap(struct vmm_iommu *iommu, struct iommu_domain *domain, uint64_t iova, uint64_t size);

/* iommu_fault.c: page requests. Accesses that are to be told of an answer are collected in a list
 * and told by iommu_tell() without the lock. */
int iommu_fault_raise(struct vmm_iommu *iommu, struct vmm_iommu_access *access, uint64_t page);
int iommu_fault_respond(struct vmm_iommu *iommu, uint32_t id, struct vmm_iommu_access **ret_list);
/* All of a domain, as if they had never been. */
void iommu_faults_forget(struct vmm_iommu *iommu, struct iommu_domain *domain,
                         struct vmm_iommu_access **ret_list);
void iommu_faults_withdraw(struct vmm_iommu *iommu, bool guest_runs,
                           struct vmm_iommu_access **ret_list);
/* Writes to the guest's queue what there is room for. */
void iommu_faults_flush(struct vmm_iommu *iommu);
void iommu_tell(struct vmm_iommu_access *list, int result);

/* iommu_queue.c: the queues named by the registers, as they lie in guest memory. False: they do
 * not. */
bool iommu_queues_attach(struct vmm_iommu *iommu);
int iommu_worker_start(struct vmm_iommu *iommu, struct vfmig_error *reterr);

#endif
