/* SPDX-License-Identifier: BSD-3-Clause */
/* One PCI function of the guest that is reached through a target: where its BARs are in guest
 * physical memory, its configuration, and its MSI-X table, which is the VMM's even though the
 * device keeps a copy (design section 4, C46-C49). */
#ifndef VFMIG_VMM_PCI_H
#define VFMIG_VMM_PCI_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buffer.h"
#include "target/target.h"
#include "vmm/machine.h"

#define VFMIG_PCI_BARS         6u
#define VFMIG_PCI_CONFIG       7u   /* region index of configuration space */
#define VFMIG_PCI_CONFIG_BYTES 256u /* what is kept of it */
#define VFMIG_PCI_IRQ_MSIX     2u
#define VFMIG_PCI_MAX_VECTORS  32u /* GUEST_MAX_GSIS shared by GUEST_MAX_DEVICES */

#define VFMIG_PCI_MAX_SAVED    4096u /* bytes of a device's PCI state in the stream */

/* The windows for BARs, between RAM and the machine's own pages. */
#define VFMIG_PCI_WINDOW      0xe0000000u
#define VFMIG_PCI_WINDOW_END  0xf8000000u
#define VFMIG_PCI_WINDOW_STEP 0x100000u /* at least, so that windows are easy to read in a log */

struct vfmig_pci_bar {
    uint64_t gpa;
    uint64_t size; /* 0: the BAR does not exist */
    bool prefetchable; /* reads have no side effects, writes may be merged (PCI 3.0, 6.2.5.1) */
};

struct vfmig_pci_msix_entry {
    uint64_t address;
    uint32_t data;
    uint32_t control; /* bit 0: masked */
};

struct vfmig_pci {
    char id[64];
    uint32_t index; /* among the VMM's devices; gives the interrupt routes their numbers */
    struct vfmig_target *target;
    struct vfmig_machine *machine; /* NULL until start */
    struct vfmig_pci_bar bars[VFMIG_PCI_BARS];

    uint32_t vectors; /* MSI-X vectors in use, 0 without MSI-X */
    uint32_t table_entries; /* that its MSI-X table has */
    uint8_t msix_cap; /* offset in configuration space */
    uint8_t table_bar;
    uint32_t table_offset;
    uint8_t pba_bar;
    uint32_t pba_offset;
    pthread_mutex_t lock; /* of table */
    struct vfmig_pci_msix_entry table[VFMIG_PCI_MAX_VECTORS];
    uint8_t config[VFMIG_PCI_CONFIG_BYTES]; /* as last saved */
    bool saved;

    atomic_uint_fast64_t reads, writes, failures; /* accesses by the guest */
    atomic_uint_fast64_t peer_reads, peer_writes, peer_failures; /* DMA of other devices */
};

/* Reads the configuration space and places the BARs at or after *window, which moves on. The
 * target stays the caller's until the call has succeeded. */
int vfmig_pci_init(struct vfmig_pci *pci, uint32_t index, const char *id,
                   struct vfmig_target *target, uint64_t *window, struct vfmig_error *reterr);
/* Closes the target. */
void vfmig_pci_done(struct vfmig_pci *pci);

/* Programs BARs, enables memory, bus master and MSI-X, and connects every vector. */
int vfmig_pci_start(struct vfmig_pci *pci, struct vfmig_machine *machine,
                    struct vfmig_error *reterr);

/* The BAR that holds [gpa, gpa + size), or NULL. */
const struct vfmig_pci_bar *vfmig_pci_find(const struct vfmig_pci *pci, uint64_t gpa, uint32_t size);

/* An access of the guest to bar, from any vCPU's thread. A read that fails gives all ones. */
void vfmig_pci_access(struct vfmig_pci *pci, const struct vfmig_pci_bar *bar, uint64_t gpa,
                      bool is_write, void *data, uint32_t size);

/* DMA of another device to bar: whole where the BAR is prefetchable, else in naturally aligned pieces
 * of 1, 2, 4 and 8 bytes, as the CPU's accesses are. Writes are posted. -EIO when the device does not
 * answer. Any thread but those that serve this device. */
int vfmig_pci_forward(struct vfmig_pci *pci, const struct vfmig_pci_bar *bar, uint64_t gpa,
                      bool is_write, void *data, uint32_t size);

/* Interrupts that the device has raised and not delivered, by its pending bits; 0 if it cannot be
 * asked. */
uint32_t vfmig_pci_pending(struct vfmig_pci *pci);

/* Configuration and MSI-X table, for the stream. vCPUs parked. */
int vfmig_pci_save(struct vfmig_pci *pci, struct vfmig_buffer *out, struct vfmig_error *reterr);
/* After a reset that the guest did not ask for: configuration as last saved, interrupts, and the
 * MSI-X table as the guest last wrote it; -ENODATA before the first save. */
int vfmig_pci_restore(struct vfmig_pci *pci, struct vfmig_error *reterr);
/* On the destination, after reset and before Z: configuration, interrupts, MSI-X table. */
int vfmig_pci_load(struct vfmig_pci *pci, const void *data, size_t size, struct vfmig_error *reterr);

#endif
