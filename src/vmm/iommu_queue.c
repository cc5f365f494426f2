/* SPDX-License-Identifier: BSD-3-Clause */
/* The vIOMMU's registers, and the thread that does its commands. The guest may write anything
 * anywhere at any time: a command is copied once before it is looked at, indices are the vIOMMU's
 * own. */
#include <errno.h>
#include <string.h>

#include "dirty/trackers.h"
#include "vmm/iommu_priv.h"

#define ENTRY 64u /* bytes of an entry of either queue */

_Static_assert(sizeof(struct iommu_command) == ENTRY, "");
_Static_assert(sizeof(struct iommu_request) == ENTRY, "");

/* --- commands --- */

/* Everything of a domain goes; the lock is dropped meanwhile. */
static void empty_domain(struct vmm_iommu *iommu, struct iommu_domain *domain,
                         struct vmm_iommu_access **ret_list)
{
    domain->on = false;
    iommu_unmap(iommu, domain, 0, UINT64_C(1) << IOMMU_IOVA_BITS);
    iommu_faults_forget(iommu, domain, ret_list);
}

static int do_command(struct vmm_iommu *iommu, const struct iommu_command *command,
                      struct vmm_iommu_access **ret_list)
{
    struct iommu_domain *domain =
        command->device < IOMMU_DEVICES ? &iommu->domains[command->device] : NULL;
    const struct iommu_mapping mapping = {
        .iova = command->iova, .gpa = command->gpa, .size = command->size, .flags = command->flags};

    if (command->op == IOMMU_NOP)
        return 0;
    if (command->op == IOMMU_RESPOND)
        return command->flags > IOMMU_RESPONSE_REFUSED
                   ? -EINVAL
                   : iommu_fault_respond(iommu, command->id, ret_list);
    if (!domain || !domain->behind)
        return -ENODEV;
    switch (command->op) {
    case IOMMU_DOMAIN:
        if (command->flags & ~IOMMU_DOMAIN_ON)
            return -EINVAL;
        empty_domain(iommu, domain, ret_list);
        domain->on = command->flags & IOMMU_DOMAIN_ON;
        return 0;
    case IOMMU_MAP:
        return domain->on ? iommu_map(iommu, domain, &mapping) : -ENXIO;
    case IOMMU_UNMAP:
        return domain->on ? iommu_unmap(iommu, domain, command->iova, command->size) : -ENXIO;
    default:
        return -EINVAL;
    }
}

/* What waited is told without the lock. */
static void tell(struct vmm_iommu *iommu, struct vmm_iommu_access *list, int result)
{
    if (!list)
        return;
    pthread_mutex_unlock(&iommu->lock);
    iommu_tell(list, result);
    pthread_mutex_lock(&iommu->lock);
}

/* The next command. Whatever was told by it is told before the guest sees it done. */
static void next_command(struct vmm_iommu *iommu)
{
    uint32_t slot = iommu->regs.cmd_head & (iommu->regs.cmd_entries - 1);
    struct iommu_command *from = &iommu->commands[slot], command;
    struct vmm_iommu_access *list = NULL;

    memcpy(&command, from, sizeof(command));
    int ret = do_command(iommu, &command, &list);
    iommu->regs.errors += ret != 0;
    tell(iommu, list,
         command.op == IOMMU_RESPOND && command.flags == IOMMU_RESPONSE_TRY ? 0 : -EFAULT);
    __atomic_store_n(&from->status, IOMMU_STATUS_DONE | (uint32_t)-ret, __ATOMIC_RELEASE);
    vfmig_own_mark(iommu->space->own, iommu->regs.cmd_base + slot * sizeof(*from), sizeof(*from));
    iommu->regs.cmd_head++;
}

static void disable(struct vmm_iommu *iommu)
{
    struct vmm_iommu_access *list = NULL;

    for (uint32_t i = 0; i < IOMMU_DEVICES; i++)
        empty_domain(iommu, &iommu->domains[i], &list);
    tell(iommu, list, -EFAULT);
    iommu->regs.cmd_head = iommu->regs.cmd_tail = iommu->regs.prq_head = iommu->regs.prq_tail = 0;
    iommu->regs.enabled = iommu->regs.disabling = false;
}

static void *worker_main(void *arg)
{
    struct vmm_iommu *iommu = arg;

    pthread_mutex_lock(&iommu->lock);
    while (!iommu->quit) {
        bool command = iommu->regs.enabled && iommu->regs.cmd_head != iommu->regs.cmd_tail;
        iommu->busy = !iommu->paused && !iommu->closed && (command || iommu->regs.disabling);
        if (!iommu->busy) {
            pthread_cond_broadcast(&iommu->changed);
            pthread_cond_wait(&iommu->work, &iommu->lock);
        } else if (iommu->regs.disabling) {
            disable(iommu);
        } else {
            next_command(iommu);
        }
    }
    iommu->busy = false;
    pthread_mutex_unlock(&iommu->lock);
    return NULL;
}

int iommu_worker_start(struct vmm_iommu *iommu, struct vfmig_error *reterr)
{
    int err = pthread_create(&iommu->worker, NULL, worker_main, iommu);

    return err ? vfmig_error_set(reterr, -err, VFMIG_ORIGIN_KERNEL, 0,
                                 "cannot start the thread of the vIOMMU: %s", strerror(err))
               : 0;
}

/* --- registers --- */

static void *queue_at(const struct vmm_iommu *iommu, uint64_t base, uint32_t entries)
{
    uint64_t offset, left;

    if (base % ENTRY || !entries || entries > IOMMU_ENTRIES || (entries & (entries - 1)))
        return NULL;
    int block = vfmig_memory_find(&iommu->space->memory, base, &offset, &left);
    if (block < 0 || left < (uint64_t)entries * ENTRY)
        return NULL;
    return (char *)iommu->space->memory.blocks[block].host + offset;
}

bool iommu_queues_attach(struct vmm_iommu *iommu)
{
    iommu->commands = queue_at(iommu, iommu->regs.cmd_base, iommu->regs.cmd_entries);
    iommu->requests = queue_at(iommu, iommu->regs.prq_base, iommu->regs.prq_entries);
    return iommu->commands && iommu->requests;
}

/* False: it makes no sense. */
static bool write_ctrl(struct vmm_iommu *iommu, uint32_t value)
{
    if (value & ~IOMMU_CTRL_ENABLE || iommu->regs.disabling)
        return false;
    if (!value)
        iommu->regs.disabling = iommu->regs.enabled;
    else if (!iommu->regs.enabled)
        iommu->regs.enabled = iommu_queues_attach(iommu);
    return !value || iommu->regs.enabled;
}

static bool write_register(struct vmm_iommu *iommu, uint32_t offset, uint64_t value)
{
    uint32_t low = (uint32_t)value;

    switch (offset) {
    case IOMMU_REG_CTRL:
        return write_ctrl(iommu, low);
    case IOMMU_REG_CMD_TAIL:
        if (!iommu->regs.enabled || low - iommu->regs.cmd_head > iommu->regs.cmd_entries ||
            low - iommu->regs.cmd_head < iommu->regs.cmd_tail - iommu->regs.cmd_head)
            return false;
        iommu->regs.cmd_tail = low;
        return true;
    case IOMMU_REG_PRQ_HEAD:
        if (!iommu->regs.enabled ||
            iommu->regs.prq_tail - low > iommu->regs.prq_tail - iommu->regs.prq_head)
            return false;
        iommu->regs.prq_head = low;
        iommu_faults_flush(iommu);
        return true;
    default:
        break;
    }
    if (iommu->regs.enabled)
        return false;
    switch (offset) {
    case IOMMU_REG_CMD_BASE:
        iommu->regs.cmd_base = value;
        return true;
    case IOMMU_REG_CMD_ENTRIES:
        iommu->regs.cmd_entries = low;
        return true;
    case IOMMU_REG_PRQ_BASE:
        iommu->regs.prq_base = value;
        return true;
    case IOMMU_REG_PRQ_ENTRIES:
        iommu->regs.prq_entries = low;
        return true;
    default:
        return false;
    }
}

/* The eight bytes at offset, which is a multiple of eight. */
static uint64_t read_registers(const struct vmm_iommu *iommu, uint32_t offset)
{
    switch (offset) {
    case IOMMU_REG_ID:
        return IOMMU_ID | (uint64_t)iommu->regs.enabled << 32;
    case IOMMU_REG_CMD_BASE:
        return iommu->regs.cmd_base;
    case IOMMU_REG_CMD_ENTRIES:
        return iommu->regs.cmd_entries | (uint64_t)iommu->regs.cmd_tail << 32;
    case IOMMU_REG_CMD_HEAD:
        return iommu->regs.cmd_head | (uint64_t)iommu->devices << 32;
    case IOMMU_REG_PRQ_BASE:
        return iommu->regs.prq_base;
    case IOMMU_REG_PRQ_ENTRIES:
        return iommu->regs.prq_entries | (uint64_t)iommu->regs.prq_head << 32;
    case IOMMU_REG_PRQ_TAIL:
        return iommu->regs.prq_tail | (uint64_t)iommu->open << 32;
    case IOMMU_REG_ERRORS:
        return iommu->regs.errors;
    default:
        return 0;
    }
}

void vmm_iommu_mmio(struct vmm_iommu *iommu, uint32_t offset, bool is_write, void *data,
                    uint32_t size)
{
    bool sound = (size == 4 || size == 8) && offset % size == 0;
    uint64_t value = 0;

    pthread_mutex_lock(&iommu->lock);
    if (!is_write) {
        value = sound ? read_registers(iommu, offset & ~7u) >> offset % 8 * 8 : 0;
        memcpy(data, &value, size < 8 ? size : 8);
    } else {
        memcpy(&value, data, size < 8 ? size : 8);
        iommu->regs.errors += !sound || !write_register(iommu, offset, value);
        pthread_cond_broadcast(&iommu->work);
    }
    pthread_mutex_unlock(&iommu->lock);
}
