/* SPDX-License-Identifier: BSD-3-Clause */
/* Lays out guest memory: parameters, program, driver heaps, working set. */
#include "vmm/machine_internal.h"

#include <errno.h>
#include <string.h>

#include "devices/dma_regs.h"
#include "guest/guest.h"

#define IN_FLIGHT_MAX 48u

static uint32_t value_or(uint32_t value, uint32_t otherwise)
{
    return value ? value : otherwise;
}

static int check_guest(const struct vfmig_guest_config *guest, struct vfmig_error *reterr)
{
    if (guest->device_count > GUEST_MAX_DEVICES)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "the guest drives %u devices at most, not %u", GUEST_MAX_DEVICES,
                               guest->device_count);
    if (guest->dma_bytes % 64 || guest->dma_bytes > DMA_MAX_LENGTH)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "DMA of %u bytes: not a multiple of 64 up to %u", guest->dma_bytes,
                               DMA_MAX_LENGTH);
    if (guest->dma_in_flight > IN_FLIGHT_MAX)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "%u descriptors in flight, %u at most", guest->dma_in_flight,
                               IN_FLIGHT_MAX);
    for (uint32_t i = 0; i < guest->device_count; i++)
        if (guest->device_peer[i] > guest->device_count || guest->device_peer[i] == i + 1)
            return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                                   "device %u has no such peer: %u", i, guest->device_peer[i]);
    if (guest->iommu_answers > GUEST_ANSWERS_NEVER)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "no such way to answer page requests: %u", guest->iommu_answers);
    if (guest->idle > GUEST_IDLE_READ)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0, "no such way to idle: %u",
                               guest->idle);
    return 0;
}

static void fill_params(struct vfmig_machine *m, const struct vfmig_guest_config *guest,
                        struct guest_params *p)
{
    p->magic = GUEST_PARAMS_MAGIC;
    p->version = GUEST_ABI_VERSION;
    p->flags = m->ops->guest_flags(m);
    p->vcpu_count = m->config.vcpu_count;
    p->device_count = guest->device_count;
    p->tsc_khz = m->ops->tsc_khz(m);
    p->seed = guest->seed ? guest->seed : 1;
    p->rate_mib_s = value_or(guest->rate_mib_s, 100);
    p->sleep_us = value_or(guest->sleep_us, 1000);
    p->timer_hz = guest->timer_hz == GUEST_TIMER_OFF ? 0 : value_or(guest->timer_hz, 100);
    p->idle = guest->idle;
    p->dma_in_flight = value_or(guest->dma_in_flight, 16);
    p->dma_bytes = value_or(guest->dma_bytes, 4096);
    p->dma_ops_s = guest->dma_ops_s;
    p->iommu_answers = guest->iommu_answers;
    p->irq_timeout_ms = value_or(guest->irq_timeout_ms, 5000);
}

/* Gives out the heap; -ENOSPC when block 0 is too small. */
static int lay_out(struct vfmig_machine *m, const struct vfmig_guest_config *guest,
                   struct guest_params *p, struct vfmig_error *reterr)
{
    uint64_t size = m->blocks[0].size, next = GUEST_HEAP;
    bool iommu = false;
    p->cpu_gpa = next;
    next += p->vcpu_count * UINT64_C(4096);
    next = (next + GUEST_STACK_SIZE) & ~(uint64_t)(GUEST_STACK_SIZE - 1);
    p->stack_gpa = next + GUEST_STACK_SIZE;
    next += p->vcpu_count * (uint64_t)GUEST_STACK_SIZE;
    for (uint32_t i = 0; i < p->device_count; i++) {
        p->devices[i].bar_gpa = guest->device_bar[i];
        p->devices[i].heap_gpa = next;
        p->devices[i].iommu = guest->device_iommu[i];
        p->devices[i].pasid = guest->device_pasid[i];
        /* One vCPU drives the vIOMMU and what is behind it. */
        p->devices[i].vcpu = guest->device_iommu[i] ? 0 : i % p->vcpu_count;
        iommu |= guest->device_iommu[i] != 0;
        p->devices[i].first_vector = GUEST_VECTOR_DEVICE + i * GUEST_VECTORS;
        next += guest_dma_heap_bytes(p->dma_bytes);
        if (guest->device_peer[i]) {
            p->devices[i].peer_bar_gpa = guest->device_bar[guest->device_peer[i] - 1];
            p->devices[guest->device_peer[i] - 1].writer = i + 1;
        }
    }
    if (iommu) {
        p->iommu_gpa = next;
        next += GUEST_IOMMU_HEAP_BYTES;
    }
    uint64_t bytes = guest->working_set_bytes ? guest->working_set_bytes : size / 2;
    p->working_pages = bytes / 4096;
    p->table_gpa = next;
    next = guest_page_up(next + p->working_pages * 4);
    p->working_gpa = next;
    if (p->working_pages < p->vcpu_count || bytes > size || next + bytes > size)
        return vfmig_error_set(reterr, -ENOSPC, VFMIG_ORIGIN_LOCAL, 0,
                               "a working set of %llu MiB does not fit: it takes %llu of the %llu MiB "
                               "at address 0",
                               (unsigned long long)(bytes >> 20),
                               (unsigned long long)((next + bytes) >> 20),
                               (unsigned long long)(size >> 20));
    return 0;
}

int vfmig_machine_load_guest(struct vfmig_machine *m, const struct vfmig_guest_config *guest,
                             struct vfmig_error *reterr)
{
    int ret = check_guest(guest, reterr);
    if (ret < 0)
        return ret;
    if (vfmig_machine_running(m))
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_LOCAL, 0, "the vCPUs are running");
    struct guest_params params = {0};
    fill_params(m, guest, &params);
    ret = lay_out(m, guest, &params, reterr);
    if (ret < 0)
        return ret;
    memcpy(machine_memory(m, GUEST_PARAMS, sizeof(params)), &params, sizeof(params));
    memcpy(machine_memory(m, GUEST_IMAGE, vfmig_guest_image_size), vfmig_guest_image,
           vfmig_guest_image_size);
    for (uint32_t i = 0; i < m->config.vcpu_count && ret == 0; i++)
        ret = m->ops->boot(m, i, reterr);
    return ret;
}
