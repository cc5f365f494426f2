/* SPDX-License-Identifier: BSD-3-Clause */
/* A device as a VMM reaches it: connected, mapped into guest memory, and given to the engine
 * (vfmig/migrate.h): a vfio-user server, or a device of the kernel's VFIO.
 *
 * Functions return 0 or a negative errno with *reterr filled. Region access, mappings and
 * interrupts may be used from any thread, also while the engine migrates the device; the guest's
 * vCPUs are parked whenever that would be wrong. */
#ifndef VFMIG_TARGET_H
#define VFMIG_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfmig/error.h"
#include "vfmig/memory.h"
#include "vfmig/state.h"

#ifdef __cplusplus
extern "C" {
#endif

struct vfmig_target;
struct vfmig_tracker;

enum vfmig_dialect {
    VFMIG_DIALECT_AUTO = 0, /* feature if the device has it, else region */
    VFMIG_DIALECT_FEATURE,  /* v2: DEVICE_FEATURE and MIG_DATA_READ/WRITE */
    VFMIG_DIALECT_REGION,   /* v1: the migration region and DIRTY_PAGES */
};

/* How quiet N (v2 P2P) makes the device. */
enum vfmig_quiet {
    VFMIG_QUIET_NONE = 0, /* no NDMA */
    VFMIG_QUIET_P2P,      /* only peer to peer DMA is known to stop (foreign v2) */
    VFMIG_QUIET_ALL,      /* all DMA stops (v1 capability 6, devices of this library) */
};

/* What became of the try to halt a fresh device after loading (Z to {}), without which nothing that
 * was loaded is looked at before the guest is handed over. */
enum vfmig_halt {
    VFMIG_HALT_UNKNOWN = 0, /* not tried, or it can */
    VFMIG_HALT_NEVER,       /* the device refuses */
    VFMIG_HALT_LATE,        /* it does, and migrates all the same, as its user wishes */
};

/* What the device is and can do; constant after connecting, but for a change of dialect. */
struct vfmig_target_info {
    char name[64]; /* for messages: socket path or device */
    enum vfmig_dialect dialect;
    uint32_t features; /* VFMIG_FEATURE_* */
    enum vfmig_quiet quiet;
    uint16_t pci_vendor, pci_device, pci_subvendor, pci_subdevice;
    uint8_t pci_revision;
    uint32_t region_count;
    uint64_t region_size[16]; /* by PCI region index: BARs from 0, 7 is config space */
    uint32_t irq_count[5];    /* by PCI interrupt index: 2 is MSI-X */
    bool dma_log;             /* the device logs its DMA */
    uint64_t log_page_size;   /* page size of its log, bytes */
    uint64_t max_data_xfer;   /* bytes of device data that come at once */
    bool data_in_place;       /* device data can be taken where it lies */
    enum vfmig_halt halt;
};

/* All zero is a good default, but for size. */
struct vfmig_target_options {
    size_t size;                /* sizeof(struct vfmig_target_options) */
    enum vfmig_dialect dialect; /* to migrate it in */
    /* DMA by message: of what is mapped without descriptor, or by a device that cannot map. With
     * the callbacks, they serve it, from a thread of the target, and mark what they write
     * (vfmig_tracker_mark); without, IOVA is GPA in memory, marked in own; with neither it fails.
     */
    int (*dma_read)(void *opaque, uint64_t iova, void *data, uint32_t size);
    int (*dma_write)(void *opaque, uint64_t iova, const void *data, uint32_t size);
    void *opaque;
    const struct vfmig_memory *memory; /* kept */
    struct vfmig_tracker *own;         /* vfmig_tracker_open_vmm(); must outlive the target */
    uint64_t timeout_ns;               /* of each request but state and reset; 0: 5 s */
    uint64_t reset_ns;                 /* of a reset; 0: 30 s */
    bool incoming;  /* state will be loaded into it, and it is fresh: what is needed for that is tried
                       out, which leaves it reset or as it was */
    bool late_load; /* with incoming: a device that cannot be halted once its state is loaded may
                       migrate, though a bad state is only found out when it must run */
};

/* Connects to the vfio-user socket at path, or opens a device of the kernel ("vfio:PATH" of its character
 * device, "vfio-group:N:NAME"), and learns what it is. options NULL: defaults; a kernel device has no DMA
 * by message.
 * -ENOTSUP: the device cannot migrate in the dialect that was asked for; with AUTO it is there
 * nevertheless, with features 0, and the engine refuses it. */
int vfmig_target_open(const char *path, const struct vfmig_target_options *options,
                      struct vfmig_target **ret_target, struct vfmig_error *reterr);
/* No other call may be under way. The device resets. NULL is fine. */
void vfmig_target_close(struct vfmig_target *target);

/* Until close. */
const struct vfmig_target_info *vfmig_target_get_info(const struct vfmig_target *target);

/* The device may read (and with writable write) what is mapped. fd stays the caller's; -1: accesses
 * come by message. */
int vfmig_target_map(struct vfmig_target *target, uint64_t iova, uint64_t size, int fd,
                     uint64_t fd_offset, bool writable, struct vfmig_error *reterr);
/* Returns when the device has stopped to use it. */
int vfmig_target_unmap(struct vfmig_target *target, uint64_t iova, uint64_t size,
                       struct vfmig_error *reterr);
/* Every block at IOVA = GPA, writable. What was mapped before a failure stays mapped. */
int vfmig_target_map_memory(struct vfmig_target *target, const struct vfmig_memory *memory,
                            struct vfmig_error *reterr);

/* A vCPU's access to a BAR or to config space. posted: nobody waits for the write. */
int vfmig_target_read(struct vfmig_target *target, uint32_t region, uint64_t offset, void *data,
                      uint32_t size, struct vfmig_error *reterr);
int vfmig_target_write(struct vfmig_target *target, uint32_t region, uint64_t offset,
                       const void *data, uint32_t size, bool posted, struct vfmig_error *reterr);

/* Eventfds (the caller's) for vectors start to start + count of an interrupt index; NULL detaches.
 */
int vfmig_target_set_irqs(struct vfmig_target *target, uint32_t index, uint32_t start,
                          uint32_t count, const int *fds, struct vfmig_error *reterr);

/* As the guest's own reset of the function: RUNNING, config space and interrupts as after power-on;
 * mappings stay. */
int vfmig_target_reset(struct vfmig_target *target, struct vfmig_error *reterr);

/* What PASID and IMS handles stand for on this host (C71): for those that the guest may use here. At a
 * destination the engine asks for the ones that a state needs (translate_handle). Any state; a handle
 * that was given before gets the new value, VFMIG_HANDLE_UNMAPPED takes it away. All or nothing; at
 * most VFMIG_DEVICE_HANDLES. They stay over resets. -ENOTSUP: the device knows none. */
int vfmig_target_set_handles(struct vfmig_target *target, const struct vfmig_handle *handles,
                             uint32_t count, struct vfmig_error *reterr);

#ifdef __cplusplus
}
#endif

#endif
