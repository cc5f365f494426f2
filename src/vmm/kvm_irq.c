/* SPDX-License-Identifier: BSD-3-Clause */
/* The accelerator `kvm`: interrupts by irqfd, doorbells by ioeventfd. */
#include "vmm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Gives KVM the whole table of MSI routes; there is no other kind here. */
static int set_routes(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    struct kvm_irq_routing *table =
        calloc(1, sizeof(*table) + GUEST_MAX_GSIS * sizeof(table->entries[0]));
    if (!table)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for MSI routes");
    for (uint32_t i = 0; i < GUEST_MAX_GSIS; i++) {
        if (m->msis[i].fd < 0)
            continue;
        struct kvm_irq_routing_entry *entry = &table->entries[table->nr++];
        entry->gsi = i;
        entry->type = KVM_IRQ_ROUTING_MSI;
        entry->u.msi.address_lo = (uint32_t)m->msis[i].address;
        entry->u.msi.address_hi = (uint32_t)(m->msis[i].address >> 32);
        entry->u.msi.data = m->msis[i].data;
    }
    int ret = ioctl(kvm_of(m)->vm_fd, KVM_SET_GSI_ROUTING, table);
    if (ret < 0)
        ret = kvm_fail(reterr, "cannot set the MSI routes");
    free(table);
    return ret;
}

static int set_irqfd(struct vfmig_machine *m, uint32_t gsi, bool attach, struct vfmig_error *reterr)
{
    struct machine_msi *msi = &m->msis[gsi];
    if (msi->attached == attach)
        return 0;
    struct kvm_irqfd irqfd = {
        .fd = (uint32_t)msi->fd, .gsi = gsi, .flags = attach ? 0 : KVM_IRQFD_FLAG_DEASSIGN};
    if (ioctl(kvm_of(m)->vm_fd, KVM_IRQFD, &irqfd) < 0)
        return kvm_fail(reterr, "cannot change an irqfd");
    msi->attached = attach;
    return 0;
}

int kvm_msi(struct vfmig_machine *m, uint32_t gsi, struct vfmig_error *reterr)
{
    int ret = set_routes(m, reterr);
    return ret < 0 ? ret : set_irqfd(m, gsi, true, reterr);
}

int kvm_resume(struct vfmig_machine *m, struct vfmig_error *reterr)
{
    int ret = 0;
    pthread_mutex_lock(&m->msi_lock);
    for (uint32_t i = 0; i < GUEST_MAX_GSIS && ret == 0; i++)
        if (m->msis[i].fd >= 0)
            ret = set_irqfd(m, i, true, reterr);
    pthread_mutex_unlock(&m->msi_lock);
    return ret;
}

/* Taking an irqfd off waits for the injection that is under way; what the eventfd still holds then
 * has not reached the LAPIC and is injected here. */
int kvm_flush_irqs(struct vfmig_machine *m, uint32_t *ret_unread, struct vfmig_error *reterr)
{
    for (uint32_t i = 0; i < GUEST_MAX_GSIS; i++) {
        struct machine_msi *msi = &m->msis[i];
        uint64_t count = 0;
        if (msi->fd < 0)
            continue;
        int ret = set_irqfd(m, i, false, reterr);
        if (ret < 0)
            return ret;
        if (read(msi->fd, &count, sizeof(count)) != sizeof(count) || !count)
            continue;
        struct kvm_msi inject = {.address_lo = (uint32_t)msi->address,
                                 .address_hi = (uint32_t)(msi->address >> 32),
                                 .data = msi->data};
        if (ioctl(kvm_of(m)->vm_fd, KVM_SIGNAL_MSI, &inject) < 0)
            return kvm_fail(reterr, "cannot inject an MSI");
        *ret_unread += (uint32_t)count;
    }
    return 0;
}

int kvm_ioeventfd(struct vfmig_machine *m, uint64_t gpa, uint32_t size, int fd, bool add,
                  struct vfmig_error *reterr)
{
    struct kvm_ioeventfd io = {
        .addr = gpa, .len = size, .fd = fd, .flags = add ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN};
    if (ioctl(kvm_of(m)->vm_fd, KVM_IOEVENTFD, &io) < 0)
        return kvm_fail(reterr, "cannot change an ioeventfd");
    return 0;
}
