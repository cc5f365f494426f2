/* SPDX-License-Identifier: BSD-3-Clause */
/* The vIOMMU's state as it travels: registers, domains and mappings. Page requests do not: the
 * grace state has ended them all. Little-endian. */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/sabotage.h"
#include "vmm/iommu_priv.h"

struct saved_head {
    uint32_t version, devices;
    uint32_t enabled, disabling;
    uint64_t cmd_base, prq_base;
    uint32_t cmd_entries, cmd_tail, cmd_head;
    uint32_t prq_entries, prq_tail, prq_head;
    uint32_t errors, reserved;
} __attribute__((packed));

struct saved_domain {
    uint32_t on, turn, count, reserved;
} __attribute__((packed));

struct saved_mapping {
    uint64_t iova, gpa, size;
    uint32_t flags, reserved;
} __attribute__((packed));

_Static_assert(sizeof(struct saved_mapping) * VFMIG_MAX_IOMMU_MAPPINGS < VFMIG_MAX_VMSTATE / 2,
               "it fits the state of the VM");

static int put_domain(const struct iommu_domain *domain, struct vfmig_buffer *out)
{
    const struct saved_domain head = {
        .on = htole32(domain->on), .turn = htole32(domain->turn), .count = htole32(domain->count)};
    int ret = vfmig_buffer_append(out, &head, sizeof(head));

    for (uint32_t i = 0; !ret && i < domain->count; i++) {
        const struct iommu_mapping *m = &domain->mappings[i];
        const struct saved_mapping saved = {.iova = htole64(m->iova),
                                            .gpa = htole64(m->gpa),
                                            .size = htole64(m->size),
                                            .flags = htole32(m->flags)};
        ret = vfmig_buffer_append(out, &saved, sizeof(saved));
    }
    return ret;
}

static int save(struct vmm_iommu *iommu, struct vfmig_buffer *out)
{
    const struct saved_head head = {
        .version = htole32(IOMMU_VERSION),
        .devices = htole32(iommu->devices),
        .enabled = htole32(iommu->regs.enabled),
        .disabling = htole32(iommu->regs.disabling),
        .cmd_base = htole64(iommu->regs.cmd_base),
        .prq_base = htole64(iommu->regs.prq_base),
        .cmd_entries = htole32(iommu->regs.cmd_entries),
        .cmd_tail = htole32(iommu->regs.cmd_tail),
        .cmd_head = htole32(iommu->regs.cmd_head),
        .prq_entries = htole32(iommu->regs.prq_entries),
        .prq_tail = htole32(iommu->regs.prq_tail),
        .prq_head = htole32(iommu->regs.prq_head),
        .errors = htole32(iommu->regs.errors),
    };
    int ret = vfmig_buffer_append(out, &head, sizeof(head));

    for (uint32_t i = 0; !ret && i < IOMMU_DEVICES; i++)
        if (iommu->domains[i].behind)
            ret = put_domain(&iommu->domains[i], out);
    return ret;
}

int vmm_iommu_save(struct vmm_iommu *iommu, struct vfmig_buffer *out, struct vfmig_error *reterr)
{
    pthread_mutex_lock(&iommu->lock);
    bool open = (iommu->open || iommu->held) && !vfmig_sabotage("save-with-open-fault");
    bool ready = iommu->paused && !iommu->busy && !open;
    int ret = ready ? save(iommu, out) : -EBUSY;
    pthread_mutex_unlock(&iommu->lock);
    if (open)
        return vfmig_error_set(reterr, -EBUSY, VFMIG_ORIGIN_DEVICE, 0,
                               "a device that should be quiet accesses memory through the vIOMMU");
    return ret ? vfmig_error_set(reterr, ret, VFMIG_ORIGIN_LOCAL, 0,
                                 "the vIOMMU's state cannot be saved: %s", strerror(-ret))
               : 0;
}

/* --- load: everything comes from a peer --- */

struct reader {
    const uint8_t *at;
    size_t left;
};

static bool take(struct reader *r, void *to, size_t size)
{
    if (r->left < size)
        return false;
    memcpy(to, r->at, size);
    r->at += size;
    r->left -= size;
    return true;
}

/* Into a vIOMMU that is empty. */
static int get_domain(struct vmm_iommu *iommu, struct iommu_domain *domain, struct reader *r)
{
    struct saved_domain head;

    if (!take(r, &head, sizeof(head)) || le32toh(head.on) > 1 || (le32toh(head.count) && !head.on))
        return -EBADMSG;
    domain->on = le32toh(head.on);
    domain->turn = le32toh(head.turn);
    for (uint32_t i = 0; i < le32toh(head.count); i++) {
        struct saved_mapping saved;
        if (!take(r, &saved, sizeof(saved)))
            return -EBADMSG;
        const struct iommu_mapping mapping = {.iova = le64toh(saved.iova),
                                              .gpa = le64toh(saved.gpa),
                                              .size = le64toh(saved.size),
                                              .flags = le32toh(saved.flags)};
        int ret = iommu_map(iommu, domain, &mapping);
        if (ret)
            return ret == -ENOMEM ? ret : -EBADMSG;
    }
    return 0;
}

static int get_head(struct vmm_iommu *iommu, struct reader *r)
{
    struct saved_head head;

    if (!take(r, &head, sizeof(head)) || le32toh(head.version) != IOMMU_VERSION ||
        le32toh(head.devices) != iommu->devices || le32toh(head.enabled) > 1 ||
        le32toh(head.disabling) > le32toh(head.enabled))
        return -EBADMSG;
    iommu->regs.enabled = le32toh(head.enabled);
    iommu->regs.disabling = le32toh(head.disabling);
    iommu->regs.cmd_base = le64toh(head.cmd_base);
    iommu->regs.prq_base = le64toh(head.prq_base);
    iommu->regs.cmd_entries = le32toh(head.cmd_entries);
    iommu->regs.cmd_tail = le32toh(head.cmd_tail);
    iommu->regs.cmd_head = le32toh(head.cmd_head);
    iommu->regs.prq_entries = le32toh(head.prq_entries);
    iommu->regs.prq_tail = le32toh(head.prq_tail);
    iommu->regs.prq_head = le32toh(head.prq_head);
    iommu->regs.errors = le32toh(head.errors);
    if (!iommu->regs.enabled)
        return iommu->regs.cmd_tail == iommu->regs.cmd_head &&
                       iommu->regs.prq_tail == iommu->regs.prq_head
                   ? 0
                   : -EBADMSG;
    return iommu_queues_attach(iommu) &&
                   iommu->regs.cmd_tail - iommu->regs.cmd_head <= iommu->regs.cmd_entries &&
                   iommu->regs.prq_tail - iommu->regs.prq_head <= iommu->regs.prq_entries
               ? 0
               : -EBADMSG;
}

static int get_all(struct vmm_iommu *iommu, const void *data, size_t size)
{
    struct reader r = {data, size};
    int ret = get_head(iommu, &r);

    for (uint32_t i = 0; !ret && i < IOMMU_DEVICES; i++)
        if (iommu->domains[i].behind)
            ret = get_domain(iommu, &iommu->domains[i], &r);
    return !ret && r.left ? -EBADMSG : ret;
}

/* What travels, moved from one object to the other. */
static void move_state(struct vmm_iommu *to, struct vmm_iommu *from)
{
    to->regs = from->regs;
    to->commands = from->commands;
    to->requests = from->requests;
    to->mapping_count = from->mapping_count;
    for (uint32_t i = 0; i < IOMMU_DEVICES; i++) {
        struct iommu_domain *domain = &to->domains[i], *loaded = &from->domains[i];
        free(domain->mappings);
        domain->mappings = loaded->mappings;
        domain->count = loaded->count;
        domain->room = loaded->room;
        domain->on = loaded->on;
        domain->turn = loaded->turn;
        loaded->mappings = NULL;
    }
}

int vmm_iommu_load(struct vmm_iommu *iommu, const void *data, size_t size,
                   struct vfmig_error *reterr)
{
    struct vmm_iommu *loaded = calloc(1, sizeof(*loaded)); /* no more than a place for the state */

    if (!loaded)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_KERNEL, 0, "no memory for a vIOMMU");
    loaded->space = iommu->space;
    loaded->devices = iommu->devices;
    for (uint32_t i = 0; i < IOMMU_DEVICES; i++)
        loaded->domains[i].behind = iommu->domains[i].behind;
    int ret = get_all(loaded, data, size);
    pthread_mutex_lock(&iommu->lock);
    if (!ret && (!iommu->paused || iommu->busy || iommu->held || iommu->open))
        ret = -EBUSY;
    if (!ret)
        move_state(iommu, loaded);
    pthread_mutex_unlock(&iommu->lock);
    for (uint32_t i = 0; i < IOMMU_DEVICES; i++)
        free(loaded->domains[i].mappings);
    free(loaded);
    return ret ? vfmig_error_set(reterr, ret, VFMIG_ORIGIN_STREAM, 0,
                                 ret == -EBADMSG ? "the vIOMMU's state makes no sense"
                                                 : "the vIOMMU's state cannot be loaded")
               : 0;
}

int vmm_iommu_identity(const struct vmm_iommu *iommu, struct vfmig_buffer *out)
{
    return vfmig_buffer_printf(out, "iommu.version=%u\niommu.devices=%#x\n", IOMMU_VERSION,
                               iommu->devices);
}
