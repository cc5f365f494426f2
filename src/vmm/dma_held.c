/* SPDX-License-Identifier: BSD-3-Clause */
/* DMA of a device behind the vIOMMU. An access whose pages are all mapped is done at once, in the
 * thread that serves the device's DMA. Another one is held until the guest has answered, and then
 * done by a thread of this device's own, so that neither the vIOMMU nor another device ever waits
 * for this one. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/dma.h"

struct vmm_dma_held {
    struct vmm_iommu_access access; /* first */
    struct vmm_dma_device *device;
    struct vfmig_user_later later;
    void *data;
    int result; /* of the page request */
    struct vmm_dma_held *next;
};

/* The access is in flight: all of it is mapped. */
static int perform(struct vmm_dma_device *d, const struct vmm_iommu_access *access, void *data)
{
    uint64_t gpa, left;
    int ret = 0;

    for (uint64_t done = 0; !ret && done < access->size; done += left) {
        vmm_iommu_translate(d->iommu, access, access->iova + done, &gpa, &left);
        if (left > access->size - done)
            left = access->size - done;
        ret = vmm_dma_access(d->space, d->index, gpa, access->is_write, (char *)data + done, left);
    }
    return ret;
}

/* Tries again, or takes it that the answer was no. */
static void go_on(struct vmm_dma_held *held)
{
    struct vmm_dma_device *d = held->device;
    int ret = held->result ? -EFAULT : vmm_iommu_begin(d->iommu, &held->access, /* hold= */ true);

    if (ret == -EINPROGRESS)
        return;
    if (!ret) {
        ret = perform(d, &held->access, held->data);
        vmm_iommu_end(d->iommu, &held->access);
    }
    vfmig_user_answer(held->later, ret);
    vmm_iommu_release(d->iommu, &held->access);
    free(held);
}

static void answered(struct vmm_iommu_access *access, int result)
{
    struct vmm_dma_held *held = (struct vmm_dma_held *)access;
    struct vmm_dma_lane *lane = &held->device->lane;

    held->result = result;
    held->next = NULL;
    pthread_mutex_lock(&lane->lock);
    *lane->last = held;
    lane->last = &held->next;
    pthread_cond_signal(&lane->work);
    pthread_mutex_unlock(&lane->lock);
}

static void *lane_main(void *arg)
{
    struct vmm_dma_device *d = arg;
    struct vmm_dma_lane *lane = &d->lane;

    pthread_mutex_lock(&lane->lock);
    while (lane->first || !lane->quit) {
        struct vmm_dma_held *held = lane->first;
        if (!held) {
            pthread_cond_wait(&lane->work, &lane->lock);
            continue;
        }
        lane->first = held->next;
        if (!lane->first)
            lane->last = &lane->first;
        pthread_mutex_unlock(&lane->lock);
        go_on(held);
        pthread_mutex_lock(&lane->lock);
    }
    pthread_mutex_unlock(&lane->lock);
    return NULL;
}

static int hold(struct vmm_dma_device *d, const struct vmm_iommu_access *access)
{
    struct vfmig_target *target = atomic_load(&d->target);
    struct vmm_dma_held *held = target ? calloc(1, sizeof(*held)) : NULL;

    if (!held)
        return -EFAULT;
    held->access = *access;
    held->access.answered = answered;
    held->device = d;
    int ret = vfmig_user_later(target, &held->later, &held->data);
    if (ret) {
        free(held);
        return ret;
    }
    go_on(held); /* which asks the guest, unless the page has come meanwhile */
    return -EINPROGRESS;
}

int vmm_dma_translated(struct vmm_dma_device *d, uint64_t iova, bool is_write, void *data,
                       uint32_t size)
{
    struct vmm_iommu_access access = {
        .device = d->index, .is_write = is_write, .iova = iova, .size = size};
    int ret = vmm_iommu_begin(d->iommu, &access, /* hold= */ false);

    if (ret == -EAGAIN)
        return hold(d, &access);
    if (ret)
        return ret;
    ret = perform(d, &access, data);
    vmm_iommu_end(d->iommu, &access);
    return ret;
}

int vmm_dma_attach(struct vmm_dma_device *d, struct vfmig_target *target,
                   struct vfmig_error *reterr)
{
    struct vmm_dma_lane *lane = &d->lane;

    pthread_mutex_init(&lane->lock, NULL);
    pthread_cond_init(&lane->work, NULL);
    lane->last = &lane->first;
    int err = pthread_create(&lane->thread, NULL, lane_main, d);
    if (err) {
        pthread_cond_destroy(&lane->work);
        pthread_mutex_destroy(&lane->lock);
        return vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0, "cannot start a thread: %s",
                               strerror(err));
    }
    lane->started = true;
    atomic_store(&d->target, target);
    return 0;
}

void vmm_dma_detach(struct vmm_dma_device *d)
{
    struct vmm_dma_lane *lane = &d->lane;

    if (!lane->started)
        return;
    atomic_store(&d->target, NULL);
    pthread_mutex_lock(&lane->lock);
    lane->quit = true;
    pthread_cond_signal(&lane->work);
    pthread_mutex_unlock(&lane->lock);
    pthread_join(lane->thread, NULL);
    pthread_cond_destroy(&lane->work);
    pthread_mutex_destroy(&lane->lock);
    lane->started = false;
}
