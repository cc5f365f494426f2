/* SPDX-License-Identifier: BSD-3-Clause */
/* What belongs to the VMM rather than to the device (C46-C49): config space, MSI-X table, PBA,
 * eventfds. None of it is touched by entering or leaving Z; a client's reset resets it as PCI
 * says. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sabotage.h"
#include "device/internal.h"

#define PCI_COMMAND   0x04u
#define PCI_STATUS    0x06u
#define PCI_BAR(n)    (0x10u + 4 * (n))
#define PCI_CAP       0x34u
#define MSIX_CONTROL  (MSIX_CAP + 2)
#define MSIX_FUNCTION_MASKED 0x4000u
#define ENTRY         16u
#define ENTRY_CONTROL 12u

static void put(uint8_t *at, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t get16(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8;
}

static void init_bars(struct vfmig_device *dev)
{
    for (unsigned i = 0; i < VFMIG_DEVICE_BARS; i++) {
        const struct vfmig_device_bar *bar = &dev->config.bars[i];
        if (!bar->size)
            continue;
        uint64_t mask = ~(bar->size - 1);
        put(dev->pci_config + PCI_BAR(i), (bar->is_64bit ? 4u : 0) | (bar->prefetchable ? 8u : 0),
            4);
        put(dev->pci_writable + PCI_BAR(i), (uint32_t)mask & ~0xfu, 4);
        if (bar->is_64bit)
            put(dev->pci_writable + PCI_BAR(i + 1), mask >> 32, 4);
    }
}

static void init_msix(struct vfmig_device *dev)
{
    const struct vfmig_device_config *c = &dev->config;
    uint8_t *cap = dev->pci_config + MSIX_CAP;

    if (!c->msix_vectors)
        return;
    dev->pci_config[PCI_STATUS] = 0x10; /* capability list */
    dev->pci_config[PCI_CAP] = MSIX_CAP;
    cap[0] = 0x11;
    put(cap + 2, c->msix_vectors - 1, 2);
    put(cap + 4, c->msix_table | c->msix_bar, 4);
    put(cap + 8, c->msix_pba | c->msix_bar, 4);
    put(dev->pci_writable + MSIX_CONTROL, 0xc000, 2);
}

/* Config space and MSI-X table as at power on; eventfds stay. */
void pci_reset(struct vfmig_device *dev)
{
    const struct vfmig_device_config *c = &dev->config;
    uint8_t *p = dev->pci_config;

    memset(p, 0, CONFIG_SIZE);
    memset(dev->pci_writable, 0, CONFIG_SIZE);
    put(p + 0x00, c->pci_vendor, 2);
    put(p + 0x02, c->pci_device, 2);
    p[0x08] = c->pci_revision;
    put(p + 0x09, c->pci_class, 3);
    put(p + 0x2c, c->pci_subvendor, 2);
    put(p + 0x2e, c->pci_subdevice, 2);
    put(dev->pci_writable + PCI_COMMAND, 0x0547, 2);
    dev->pci_writable[0x0c] = dev->pci_writable[0x0d] = dev->pci_writable[0x3c] = 0xff;
    init_bars(dev);
    init_msix(dev);

    pthread_mutex_lock(&dev->irq.lock);
    memset(dev->irq.table, 0, sizeof(dev->irq.table));
    for (uint32_t v = 0; v < c->msix_vectors; v++)
        dev->irq.table[v * ENTRY + ENTRY_CONTROL] = 1;
    memset(dev->irq.table_masked, 0, sizeof(dev->irq.table_masked));
    dev->irq.function_masked = false;
    pthread_mutex_unlock(&dev->irq.lock);
}

static int check_msix(const struct vfmig_device_config *c)
{
    uint64_t table = (uint64_t)c->msix_vectors * ENTRY, pba = (c->msix_vectors + 63) / 64 * 8;

    if (c->msix_vectors > VFMIG_DEVICE_VECTORS || c->msix_bar >= VFMIG_DEVICE_BARS)
        return -EINVAL;
    uint64_t size = c->bars[c->msix_bar].size;
    if (c->msix_table % 8 || c->msix_pba % 8 || table > size || pba > size ||
        c->msix_table > size - table || c->msix_pba > size - pba)
        return -EINVAL;
    return c->msix_table < c->msix_pba + pba && c->msix_pba < c->msix_table + table ? -EINVAL : 0;
}

int pci_init(struct vfmig_device *dev, struct vfmig_error *reterr)
{
    const struct vfmig_device_config *c = &dev->config;

    for (unsigned i = 0; i < VFMIG_DEVICE_BARS; i++) {
        const struct vfmig_device_bar *bar = &c->bars[i];
        bool upper = i > 0 && c->bars[i - 1].size && c->bars[i - 1].is_64bit;
        if (bar->size && (bar->size < 16 || (bar->size & (bar->size - 1)) || upper ||
                          (bar->is_64bit ? i + 1 == VFMIG_DEVICE_BARS : bar->size > 1u << 31)))
            return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                                   "BAR %u has no possible size or place", i);
    }
    if (c->msix_vectors && check_msix(c) < 0)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "MSI-X table and PBA do not fit their BAR");
    pci_reset(dev);
    return 0;
}

/* ---- interrupts ------------------------------------------------------------------------------ */

void irq_init(struct vfmig_device *dev)
{
    pthread_mutex_init(&dev->irq.lock, NULL);
    for (unsigned v = 0; v < VFMIG_DEVICE_VECTORS; v++)
        dev->irq.fds[v] = -1;
}

static bool bit(const uint64_t *map, uint32_t v)
{
    return map[v / 64] >> (v % 64) & 1;
}

static void set_bit(uint64_t *map, uint32_t v, bool on)
{
    map[v / 64] = on ? map[v / 64] | UINT64_C(1) << (v % 64)
                     : map[v / 64] & ~(UINT64_C(1) << (v % 64));
}

/* Lock held. Delivers vector v when it is pending and may be delivered. */
static void deliver(struct vfmig_device *dev, uint32_t v)
{
    struct irq_state *irq = &dev->irq;
    uint64_t one = 1;

    if (!bit(irq->pending, v) || irq->fds[v] < 0 || irq->function_masked ||
        (irq->latch && !vfmig_sabotage("irq-under-ndma")) || bit(irq->masked, v) ||
        bit(irq->table_masked, v))
        return;
    set_bit(irq->pending, v, false);
    /* A full counter is readable already, and a blocking one would hold us until it is read. */
    struct pollfd p = {.fd = irq->fds[v], .events = POLLOUT};
    if (poll(&p, 1, 0) == 1 && (p.revents & POLLOUT) &&
        write(irq->fds[v], &one, sizeof(one)) < 0)
        return;
    COUNT(dev, irqs_delivered);
}

static void deliver_all(struct vfmig_device *dev)
{
    for (uint32_t v = 0; v < dev->config.msix_vectors; v++)
        deliver(dev, v);
}

int vfmig_device_irq(struct vfmig_device *dev, uint32_t vector)
{
    if (vector >= dev->config.msix_vectors)
        return -EINVAL;
    if (vfmig_sabotage("irq-never"))
        return 0;
    pthread_mutex_lock(&dev->irq.lock);
    set_bit(dev->irq.pending, vector, true);
    deliver(dev, vector);
    bool latched = bit(dev->irq.pending, vector);
    pthread_mutex_unlock(&dev->irq.lock);
    COUNT(dev, irqs_raised);
    if (latched)
        COUNT(dev, irqs_latched);
    return 0;
}

void irq_latch(struct vfmig_device *dev, bool latch)
{
    pthread_mutex_lock(&dev->irq.lock);
    dev->irq.latch = latch;
    if (!latch && (vfmig_sabotage("irq-lost-under-ndma") ||
                   (dev->stream.library_loaded && vfmig_sabotage("irq-lost-after-load"))))
        memset(dev->irq.pending, 0, sizeof(dev->irq.pending));
    if (!latch)
        deliver_all(dev);
    pthread_mutex_unlock(&dev->irq.lock);
}

bool irq_storm(struct vfmig_device *dev)
{
    uint64_t one = 1;

    if (vfmig_dev_mmio_allowed(&dev->mig) || !vfmig_sabotage("irq-storm-when-stopped"))
        return false;
    pthread_mutex_lock(&dev->irq.lock);
    ssize_t n = dev->irq.fds[0] >= 0 ? write(dev->irq.fds[0], &one, sizeof(one)) : 0;
    pthread_mutex_unlock(&dev->irq.lock);
    return n >= 0;
}

void irq_get_pending(struct vfmig_device *dev, uint64_t *ret_bits)
{
    pthread_mutex_lock(&dev->irq.lock);
    memcpy(ret_bits, dev->irq.pending, sizeof(dev->irq.pending));
    pthread_mutex_unlock(&dev->irq.lock);
}

void irq_drop(struct vfmig_device *dev)
{
    pthread_mutex_lock(&dev->irq.lock);
    memset(dev->irq.pending, 0, sizeof(dev->irq.pending));
    pthread_mutex_unlock(&dev->irq.lock);
}

/* Lock held. fd is consumed; -1 detaches. */
static void attach(struct irq_state *irq, uint32_t v, int fd)
{
    if (irq->fds[v] >= 0)
        close(irq->fds[v]);
    irq->fds[v] = fd;
}

void irq_detach_all(struct vfmig_device *dev)
{
    pthread_mutex_lock(&dev->irq.lock);
    for (uint32_t v = 0; v < VFMIG_DEVICE_VECTORS; v++)
        attach(&dev->irq, v, -1);
    memset(dev->irq.masked, 0, sizeof(dev->irq.masked));
    pthread_mutex_unlock(&dev->irq.lock);
}

/* Lock held; the range is checked. */
static void apply(struct vfmig_device *dev, const struct vfmig_user_set_irqs *req, uint32_t v,
                  bool chosen, struct vfmig_fds *fds)
{
    struct irq_state *irq = &dev->irq;

    if ((req->flags & VFMIG_USER_IRQ_DATA_EVENTFD) && (req->flags & VFMIG_USER_IRQ_ACTION_TRIGGER))
        attach(irq, v, vfmig_fds_take(fds, v - req->start));
    else if (!chosen)
        return;
    else if (req->flags & VFMIG_USER_IRQ_ACTION_TRIGGER)
        set_bit(irq->pending, v, true);
    else
        set_bit(irq->masked, v, req->flags & VFMIG_USER_IRQ_ACTION_MASK);
    deliver(dev, v);
}

/* An eventfd is a file without a type. What has one may not be written to: a pipe that nobody reads
 * ends the process, one that is full stops it. */
static bool may_be_eventfds(const struct vfmig_fds *fds)
{
    for (uint32_t i = 0; i < fds->count; i++) {
        struct stat st;
        if (fstat(fds->fd[i], &st) < 0 || (st.st_mode & S_IFMT))
            return false;
    }
    return true;
}

int irq_set(struct vfmig_device *dev, struct vfmig_user_msg *msg)
{
    struct vfmig_user_set_irqs req;
    uint32_t vectors;

    memcpy(&req, msg->payload, sizeof(req));
    if (req.index >= VFMIG_IRQ_COUNT)
        return -EINVAL;
    vectors = req.index == VFMIG_IRQ_MSIX ? dev->config.msix_vectors : 0;
    bool trigger = req.flags & VFMIG_USER_IRQ_ACTION_TRIGGER;
    if (req.count == 0) { /* "disable the index" is the only use of no vectors */
        if (!trigger || !(req.flags & VFMIG_USER_IRQ_DATA_NONE) || req.start)
            return -EINVAL;
        if (vectors)
            irq_detach_all(dev);
        return 0;
    }
    if (req.start >= vectors || req.count > vectors - req.start)
        return -EINVAL;
    if (!trigger && (req.flags & VFMIG_USER_IRQ_DATA_EVENTFD))
        return -EINVAL;
    if (!may_be_eventfds(&msg->fds))
        return -EINVAL;
    const uint8_t *bools = req.flags & VFMIG_USER_IRQ_DATA_BOOL ? msg->payload + sizeof(req) : NULL;
    pthread_mutex_lock(&dev->irq.lock);
    for (uint32_t i = 0; i < req.count; i++)
        apply(dev, &req, req.start + i, !bools || bools[i], &msg->fds);
    pthread_mutex_unlock(&dev->irq.lock);
    return 0;
}

/* ---- MSI-X table and PBA --------------------------------------------------------------------- */

/* Lock held. A vector's mask counts once the client has written it: a client that keeps the table
 * to itself never does, and its vectors are not masked here. */
static void table_write(struct vfmig_device *dev, uint64_t at, const uint8_t *data, uint32_t size)
{
    struct irq_state *irq = &dev->irq;

    memcpy(irq->table + at, data, size);
    for (uint64_t v = at / ENTRY; v <= (at + size - 1) / ENTRY; v++) {
        uint64_t control = v * ENTRY + ENTRY_CONTROL;
        if (at <= control && control < at + size) {
            set_bit(irq->table_masked, (uint32_t)v, irq->table[control] & 1);
            deliver(dev, (uint32_t)v);
        }
    }
}

static void overlay(uint64_t start, uint64_t length, const void *ours, uint64_t offset,
                    uint8_t *data, uint32_t size)
{
    uint64_t from = offset > start ? offset : start;
    uint64_t end = offset + size < start + length ? offset + size : start + length;

    if (from < end)
        memcpy(data + (from - offset), (const uint8_t *)ours + (from - start), end - from);
}

bool msix_access(struct vfmig_device *dev, uint32_t bar, uint64_t offset, uint8_t *data,
                 uint32_t size, bool write)
{
    const struct vfmig_device_config *c = &dev->config;
    uint64_t table = (uint64_t)c->msix_vectors * ENTRY, pba = (c->msix_vectors + 63) / 64 * 8;

    if (!c->msix_vectors || bar != c->msix_bar || !size)
        return false;
    bool in_table = offset >= c->msix_table && offset + size <= c->msix_table + table;
    bool in_pba = offset >= c->msix_pba && offset + size <= c->msix_pba + pba;
    pthread_mutex_lock(&dev->irq.lock);
    if (!write) { /* also where a long read runs over them */
        overlay(c->msix_table, table, dev->irq.table, offset, data, size);
        overlay(c->msix_pba, pba, dev->irq.pending, offset, data, size);
    } else if (in_table) {
        table_write(dev, offset - c->msix_table, data, size);
    }
    pthread_mutex_unlock(&dev->irq.lock);
    return in_table || in_pba;
}

/* ---- config space ---------------------------------------------------------------------------- */

void pci_config_read(struct vfmig_device *dev, uint64_t offset, uint8_t *data, uint32_t size)
{
    memcpy(data, dev->pci_config + offset, size);
}

void pci_config_write(struct vfmig_device *dev, uint64_t offset, const uint8_t *data, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++) {
        uint8_t *at = dev->pci_config + offset + i, mask = dev->pci_writable[offset + i];
        *at = (uint8_t)((*at & ~mask) | (data[i] & mask));
    }
    if (!dev->config.msix_vectors)
        return;
    bool masked = get16(dev->pci_config + MSIX_CONTROL) & MSIX_FUNCTION_MASKED;
    pthread_mutex_lock(&dev->irq.lock);
    dev->irq.function_masked = masked;
    deliver_all(dev);
    pthread_mutex_unlock(&dev->irq.lock);
}
