/* SPDX-License-Identifier: BSD-3-Clause */
#include "vmm/peers.h"

#include <errno.h>
#include <string.h>

#include "base/sabotage.h"
#include "vfmig/memory.h"
#include "vfmig/migrate.h"

#define PROT_ALL 3u

int vmm_p2p_parse(const char *name, enum vmm_p2p *ret_policy)
{
    static const char *const names[] = {
        [VMM_P2P_AUTO] = "auto", [VMM_P2P_ON] = "on", [VMM_P2P_OFF] = "off"};

    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (!strcmp(name, names[i])) {
            *ret_policy = (enum vmm_p2p)i;
            return 0;
        }
    }
    return -EINVAL;
}

void vmm_peers_init(struct vmm_peers *peers, struct vfmig_pci *pci, enum vmm_p2p policy)
{
    pthread_rwlockattr_t attr;

    *peers = (struct vmm_peers){.pci = pci, .policy = policy};
    /* DMA goes on all the time: whoever wants to remove a device must get his turn. */
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&peers->lock, &attr);
    pthread_rwlockattr_destroy(&attr);
}

void vmm_peers_shut(struct vmm_peers *peers)
{
    if (!peers->pci)
        return;
    pthread_rwlock_wrlock(&peers->lock);
    atomic_store(&peers->count, 0);
    pthread_rwlock_unlock(&peers->lock);
}

void vmm_peers_done(struct vmm_peers *peers)
{
    if (peers->pci)
        pthread_rwlock_destroy(&peers->lock);
}

/* --- windows --- */

/* The pages of a BAR that hold [offset, offset + size) of it. */
static struct vmm_peer_window hole_at(uint64_t offset, uint64_t size)
{
    uint64_t page = VFMIG_PAGE_SIZE, begin = offset / page * page;

    return (struct vmm_peer_window){begin, (offset + size + page - 1) / page * page - begin};
}

unsigned vmm_peers_windows(const struct vfmig_pci *pci, unsigned bar,
                           struct vmm_peer_window ret_windows[VMM_PEER_WINDOWS])
{
    struct vmm_peer_window holes[2];
    unsigned hole_count = 0, count = 0;
    uint64_t at = 0, size = pci->bars[bar].size;

    if (size < VFMIG_PAGE_SIZE) /* it shares its page with nothing that is ours to map */
        return 0;
    if (pci->vectors && pci->table_bar == bar)
        holes[hole_count++] = hole_at(pci->table_offset, pci->table_entries * UINT64_C(16));
    if (pci->vectors && pci->pba_bar == bar)
        holes[hole_count++] =
            hole_at(pci->pba_offset, (pci->table_entries + UINT64_C(63)) / 64 * 8);
    if (vfmig_sabotage("p2p-windows-hold-msix"))
        hole_count = 0;
    if (hole_count == 2 && holes[1].gpa < holes[0].gpa) {
        struct vmm_peer_window first = holes[1];
        holes[1] = holes[0];
        holes[0] = first;
    }
    for (unsigned i = 0; i <= hole_count; i++) {
        uint64_t end = i < hole_count && holes[i].gpa < size ? holes[i].gpa : size;
        if (end > at)
            ret_windows[count++] = (struct vmm_peer_window){pci->bars[bar].gpa + at, end - at};
        if (i < hole_count && holes[i].gpa + holes[i].size > at)
            at = holes[i].gpa + holes[i].size;
    }
    return count;
}

/* --- who may --- */

static bool takes_part(const struct vmm_peers *peers, uint32_t device)
{
    const struct vfmig_target_info *info = &peers->pci[device].target->info;
    /* N of any kind: peer to peer DMA is what each of them stops. */
    bool ndma = (info->features & VFMIG_FEATURE_NDMA) && info->quiet != VFMIG_QUIET_NONE;

    if (vfmig_sabotage("p2p-never-mapped"))
        return false;
    if (peers->policy == VMM_P2P_AUTO)
        return ndma || vfmig_sabotage("map-p2p-without-ndma");
    return peers->policy == VMM_P2P_ON;
}

static bool may_reach(const struct vmm_peers *peers, uint32_t device, uint32_t peer)
{
    return device != peer && peers->serves[device] && takes_part(peers, device) &&
           takes_part(peers, peer);
}

/* What the engine is told: who reaches whom in fact. */
static void note_flags(struct vmm_peers *peers)
{
    peers->any = false;
    memset(peers->flags, 0, sizeof(peers->flags));
    for (uint32_t i = 0; i < peers->count; i++) {
        for (uint32_t j = 0; j < peers->count; j++) {
            if (!atomic_load(&peers->mapped[i][j]))
                continue;
            peers->flags[i] |= VFMIG_PEER_REACHES;
            peers->flags[j] |= VFMIG_PEER_REACHED;
            peers->any = true;
        }
    }
}

/* --- mapping --- */

static void unmap_windows(struct vfmig_target *target, const struct vfmig_pci *peer, unsigned count)
{
    struct vmm_peer_window windows[VMM_PEER_WINDOWS];

    for (unsigned bar = 0; bar < VFMIG_PCI_BARS; bar++)
        for (unsigned i = 0; i < vmm_peers_windows(peer, bar, windows) && count; i++, count--)
            target->ops->dma_unmap(target, windows[i].gpa, windows[i].size, NULL);
}

/* The device that is to lose them answers when no access is in flight; one that cannot be asked any
 * more does no DMA either. */
static void unmap_peer(struct vmm_peers *peers, uint32_t device, uint32_t peer)
{
    if (!atomic_load(&peers->mapped[device][peer]))
        return;
    if (!peers->translated[device])
        unmap_windows(peers->pci[device].target, &peers->pci[peer], UINT32_MAX);
    atomic_store(&peers->mapped[device][peer], false);
}

static int map_peer(struct vmm_peers *peers, uint32_t device, uint32_t peer,
                    struct vfmig_error *reterr)
{
    struct vfmig_target *target = peers->pci[device].target;
    struct vmm_peer_window windows[VMM_PEER_WINDOWS];
    unsigned done = 0;
    int ret = 0;

    if (!may_reach(peers, device, peer))
        return 0;
    atomic_store(&peers->mapped[device][peer], true); /* it may use a window before it answers */
    for (unsigned bar = 0; !ret && !peers->translated[device] && bar < VFMIG_PCI_BARS; bar++) {
        unsigned count = vmm_peers_windows(&peers->pci[peer], bar, windows);
        for (unsigned i = 0; !ret && i < count; i++, done += !ret)
            ret = target->ops->dma_map(target, windows[i].gpa, windows[i].size, -1, 0, PROT_ALL,
                                       reterr);
    }
    if (!ret)
        return 0;
    unmap_windows(target, &peers->pci[peer], done);
    atomic_store(&peers->mapped[device][peer], false);
    if (reterr)
        vfmig_error_prefix(reterr, "device %s cannot be given the windows of %s",
                           peers->pci[device].id, peers->pci[peer].id);
    return ret;
}

int vmm_peers_add(struct vmm_peers *peers, uint32_t count, struct vfmig_error *reterr)
{
    uint32_t last = count - 1;
    int ret = 0;

    if (peers->policy == VMM_P2P_ON && !peers->serves[last])
        return vfmig_error_set(
            reterr, -ENOTSUP, VFMIG_ORIGIN_DEVICE, 0,
            "device %s has no twin socket, so its peer to peer DMA cannot be served",
            peers->pci[last].id);
    atomic_store(&peers->count, count);
    for (uint32_t i = 0; !ret && i < last; i++) {
        ret = map_peer(peers, i, last, reterr);
        if (!ret)
            ret = map_peer(peers, last, i, reterr);
    }
    if (ret)
        vmm_peers_remove(peers);
    else
        note_flags(peers);
    return ret;
}

void vmm_peers_remove(struct vmm_peers *peers)
{
    uint32_t last = peers->count - 1;

    for (uint32_t i = 0; i < last; i++) {
        unmap_peer(peers, i, last);
        unmap_peer(peers, last, i);
    }
    pthread_rwlock_wrlock(&peers->lock);
    atomic_store(&peers->count, last);
    pthread_rwlock_unlock(&peers->lock);
    note_flags(peers);
}

/* --- access --- */

/* Whose BAR [gpa, gpa + size) is in, and in one of its windows; NULL: in none that device has. */
static struct vfmig_pci *find_window(struct vmm_peers *peers, uint32_t device, uint64_t gpa,
                                     uint32_t size, const struct vfmig_pci_bar **ret_bar)
{
    struct vmm_peer_window windows[VMM_PEER_WINDOWS];
    uint32_t count = atomic_load(&peers->count);

    for (uint32_t peer = 0; peer < count; peer++) {
        struct vfmig_pci *pci = &peers->pci[peer];
        if (!atomic_load(&peers->mapped[device][peer]) && !vfmig_sabotage("p2p-unmapped-served"))
            continue;
        *ret_bar = vfmig_pci_find(pci, gpa, size);
        unsigned windows_count =
            *ret_bar ? vmm_peers_windows(pci, (unsigned)(*ret_bar - pci->bars), windows) : 0;
        for (unsigned i = 0; i < windows_count; i++)
            if (gpa >= windows[i].gpa && gpa - windows[i].gpa <= windows[i].size - size &&
                size <= windows[i].size)
                return pci;
    }
    return NULL;
}

int vmm_peers_access(void *opaque, uint32_t device, uint64_t gpa, bool is_write, void *data,
                     uint32_t size)
{
    struct vmm_peers *peers = opaque;
    const struct vfmig_pci_bar *bar;
    int ret = -EFAULT;

    pthread_rwlock_rdlock(&peers->lock);
    struct vfmig_pci *pci = find_window(peers, device, gpa, size, &bar);
    if (pci)
        ret = vfmig_pci_forward(pci, bar, gpa, is_write, data, size);
    pthread_rwlock_unlock(&peers->lock);
    return ret;
}
