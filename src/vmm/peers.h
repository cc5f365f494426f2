/* SPDX-License-Identifier: BSD-3-Clause */
/* Peer to peer: which devices' BARs are mapped for which others, and the DMA that comes by it.
 *
 * A window is DMA_MAPped at its guest physical address and without descriptor, so each access comes
 * here and goes on as a region access of the peer, which can count, refuse and log it (design, BARs
 * and P2P). Pages that hold a device's MSI-X table or pending bits are in no window: they are the
 * VMM's (C46), and so is configuration space, which has no address. */
#ifndef VFMIG_VMM_PEERS_H
#define VFMIG_VMM_PEERS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "vfmig/error.h"
#include "vmm/guest_abi.h"
#include "vmm/pci.h"

enum vmm_p2p {
    VMM_P2P_AUTO =
        0,      /* among devices that have NDMA; the others neither reach nor are reached (C57) */
    VMM_P2P_ON, /* among all; a set that is mixed then cannot be migrated (C70) */
    VMM_P2P_OFF,
};
/* "auto", "on", "off"; -EINVAL for anything else. */
int vmm_p2p_parse(const char *name, enum vmm_p2p *ret_policy);

#define VMM_PEER_WINDOWS 3u /* of one BAR */

struct vmm_peer_window {
    uint64_t gpa, size;
};

struct vmm_peers {
    struct vfmig_pci *pci; /* of all devices, in their order */
    enum vmm_p2p policy;
    /* What follows changes by one thread at a time: the one that adds and removes devices. */
    atomic_uint count;
    bool serves[GUEST_MAX_DEVICES];   /* DMA by message is served at any time (a twin socket) */
    bool translated[GUEST_MAX_DEVICES]; /* behind the vIOMMU: the guest maps the windows, or not */
    uint8_t flags[GUEST_MAX_DEVICES]; /* VFMIG_PEER_*, for the engine */
    bool any;
    atomic_bool mapped[GUEST_MAX_DEVICES][GUEST_MAX_DEVICES]; /* [who reaches][whom] */
    pthread_rwlock_t lock; /* held for reading by each access, for writing when a device goes */
};

void vmm_peers_init(struct vmm_peers *peers, struct vfmig_pci *pci, enum vmm_p2p policy);
/* Everything is about to end: no access is under way on return, and every later one is refused. */
void vmm_peers_shut(struct vmm_peers *peers);
/* After the last device is closed. */
void vmm_peers_done(struct vmm_peers *peers);

/* The part of a BAR that others may reach. */
unsigned vmm_peers_windows(const struct vfmig_pci *pci, unsigned bar,
                           struct vmm_peer_window ret_windows[VMM_PEER_WINDOWS]);

/* There is one more device, the last of count: maps what the policy says, for it and for those that
 * were there, or nothing at all and *reterr says why. */
int vmm_peers_add(struct vmm_peers *peers, uint32_t count, struct vfmig_error *reterr);
/* Takes the last device's mappings away. On return no access to it is under way. */
void vmm_peers_remove(struct vmm_peers *peers);

/* The hook of struct vmm_dma_space: DMA by device at gpa, which is in no RAM. Writes are posted, in
 * the order in which they come; those that fail later are lost, as on a bus. -EFAULT where this
 * device has no window, -EIO when the peer does not answer. Any thread. */
int vmm_peers_access(void *peers, uint32_t device, uint64_t gpa, bool is_write, void *data,
                     uint32_t size);

#endif
