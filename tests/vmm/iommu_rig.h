/* SPDX-License-Identifier: BSD-3-Clause */
/* A vIOMMU with guest memory around it, and a guest that is the test. */
#ifndef VFMIG_TESTS_VMM_IOMMU_RIG_H
#define VFMIG_TESTS_VMM_IOMMU_RIG_H

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bounds.h"
#include "dirty/trackers.h"
#include "vmm/dma.h"
#include "vmm/iommu.h"

#define RIG_PAGES    64u
#define RIG_COMMANDS 0x1000u /* guest physical: queue of commands, one page */
#define RIG_REQUESTS 0x2000u /* of page requests */
#define RIG_ENTRIES  16u
#define RIG_DATA     0x10000u

struct rig {
    uint8_t *memory;
    struct vfmig_ram_block block;
    struct vmm_dma_space space;
    struct vmm_iommu *iommu;
    uint32_t tail;  /* commands queued */
    uint32_t taken; /* page requests looked at */
};

/* One access, and what became of it: 1 while nothing has. */
struct rig_access {
    struct vmm_iommu_access access; /* first */
    atomic_int result;
};

static inline void rig_put(struct rig *r, uint32_t reg, uint64_t value, uint32_t size)
{
    vmm_iommu_mmio(r->iommu, reg, true, &value, size);
}

static inline uint32_t rig_get(struct rig *r, uint32_t reg)
{
    uint32_t value = 0;
    vmm_iommu_mmio(r->iommu, reg, false, &value, 4);
    return value;
}

static inline void rig_enable(struct rig *r)
{
    memset(r->memory + RIG_COMMANDS, 0, 8192);
    r->tail = r->taken = 0;
    rig_put(r, IOMMU_REG_CMD_BASE, RIG_COMMANDS, 8);
    rig_put(r, IOMMU_REG_CMD_ENTRIES, RIG_ENTRIES, 4);
    rig_put(r, IOMMU_REG_PRQ_BASE, RIG_REQUESTS, 8);
    rig_put(r, IOMMU_REG_PRQ_ENTRIES, RIG_ENTRIES, 4);
    rig_put(r, IOMMU_REG_CTRL, IOMMU_CTRL_ENABLE, 4);
}

static inline void rig_disable(struct rig *r)
{
    rig_put(r, IOMMU_REG_CTRL, 0, 4);
    while (rig_get(r, IOMMU_REG_CTRL))
        sched_yield();
}

static inline void rig_open(struct rig *r, uint32_t devices)
{
    memset(r, 0, sizeof(*r));
    r->memory = calloc(RIG_PAGES, 4096);
    r->block =
        (struct vfmig_ram_block){.size = RIG_PAGES * UINT64_C(4096), .host = r->memory, .fd = -1};
    r->space.memory = (struct vfmig_memory){&r->block, 1};
    if (vfmig_tracker_own_new(&r->space.own, NULL) ||
        vmm_iommu_new(&r->space, devices, &r->iommu, NULL))
        abort();
    vmm_iommu_resume(r->iommu);
    rig_enable(r);
}

static inline void rig_close(struct rig *r)
{
    vmm_iommu_close(r->iommu);
    vmm_iommu_free(r->iommu);
    r->space.own->ops->free(r->space.own);
    free(r->memory);
}

/* Queues a command and says where it lies. */
static inline struct iommu_command *rig_queue(struct rig *r, struct iommu_command command)
{
    struct iommu_command *at =
        (struct iommu_command *)(r->memory + RIG_COMMANDS) + r->tail % RIG_ENTRIES;

    *at = command;
    rig_put(r, IOMMU_REG_CMD_TAIL, ++r->tail, 4);
    return at;
}

static inline bool rig_is_done(const struct iommu_command *command)
{
    return __atomic_load_n(&command->status, __ATOMIC_ACQUIRE) & IOMMU_STATUS_DONE;
}

/* Does a command: 0 or a positive errno. */
static inline int rig_do(struct rig *r, struct iommu_command command)
{
    const struct iommu_command *at = rig_queue(r, command);

    while (!rig_is_done(at))
        sched_yield();
    return (int)(at->status & ~IOMMU_STATUS_DONE);
}

static inline int rig_domain(struct rig *r, uint32_t device, bool on)
{
    return rig_do(r, (struct iommu_command){.op = IOMMU_DOMAIN, .device = device, .flags = on});
}

static inline int rig_map(struct rig *r, uint32_t device, uint64_t iova, uint64_t gpa,
                          uint64_t size, uint32_t flags)
{
    return rig_do(r, (struct iommu_command){.op = IOMMU_MAP,
                                            .device = device,
                                            .iova = iova,
                                            .gpa = gpa,
                                            .size = size,
                                            .flags = flags});
}

static inline int rig_unmap(struct rig *r, uint32_t device, uint64_t iova, uint64_t size)
{
    return rig_do(
        r, (struct iommu_command){.op = IOMMU_UNMAP, .device = device, .iova = iova, .size = size});
}

static inline int rig_respond(struct rig *r, uint32_t id, uint32_t flags)
{
    return rig_do(r, (struct iommu_command){.op = IOMMU_RESPOND, .id = id, .flags = flags});
}

/* The next page request that the guest has not taken, or NULL. */
static inline const struct iommu_request *rig_request(struct rig *r)
{
    const struct iommu_request *at =
        (const struct iommu_request *)(r->memory + RIG_REQUESTS) + r->taken % RIG_ENTRIES;

    if (__atomic_load_n(&at->turn, __ATOMIC_ACQUIRE) != r->taken + 1)
        return NULL;
    r->taken++;
    return at;
}

static inline void rig_answered(struct vmm_iommu_access *access, int result)
{
    atomic_store(&((struct rig_access *)access)->result, result);
}

static inline int rig_begin(struct rig *r, struct rig_access *a, uint32_t device, uint64_t iova,
                            uint64_t size, bool is_write, bool hold)
{
    *a = (struct rig_access){.access = {.device = device,
                                        .is_write = is_write,
                                        .iova = iova,
                                        .size = size,
                                        .answered = rig_answered},
                             .result = 1};
    return vmm_iommu_begin(r->iommu, &a->access, hold);
}

static inline int rig_again(struct rig *r, struct rig_access *a)
{
    atomic_store(&a->result, 1);
    return vmm_iommu_begin(r->iommu, &a->access, true);
}

#endif
