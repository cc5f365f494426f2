/* SPDX-License-Identifier: BSD-3-Clause */
/* A way to reach one device: vfio-user in either dialect, a kernel device, a fake.
 *
 * Every operation may block and returns 0 (or a count) or a negative errno with *reterr filled.
 * The engine calls the migration operations of one target from one thread at a time; region
 * access, DMA map and interrupts may be called from other threads meanwhile. */
#ifndef VFMIG_TARGET_TARGET_H
#define VFMIG_TARGET_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#include "vfmig/error.h"
#include "vfmig/state.h"
#include "vfmig/target.h"

struct vfmig_iova_range {
    uint64_t iova;
    uint64_t size;
};

struct vfmig_target_ops {
    const char *name;

    /* Device state. set_state returns when the device is there (C60: it may take long; the
     * caller's thread waits at most timeout_ns, then -ETIMEDOUT and the state must be read).
     * After a failure the state is the old one, one on the way, or ERROR: read it. */
    int (*get_state)(struct vfmig_target *t, enum vfmig_state *ret_state, struct vfmig_error *reterr);
    int (*set_state)(struct vfmig_target *t, enum vfmig_state state, uint64_t timeout_ns,
                     struct vfmig_error *reterr);
    int (*reset)(struct vfmig_target *t, struct vfmig_error *reterr);

    /* Device data. save returns bytes read into buf (a whole v1 portion or a piece of the v2
     * stream); 0 is "nothing now" with R and "end of stream" without. In the region dialect the
     * size of buf is at least max_data_xfer. load takes what one save returned, whole and in order. */
    ssize_t (*save)(struct vfmig_target *t, void *buf, size_t size, struct vfmig_error *reterr);
    int (*load)(struct vfmig_target *t, const void *data, size_t size, struct vfmig_error *reterr);
    /* The same for portions that are larger than a buffer should be: *ret_more says that the rest of
     * this one is still to come, and only then may the next part follow. NULL: they are not. */
    ssize_t (*save_part)(struct vfmig_target *t, void *buf, size_t size, bool *ret_more,
                         struct vfmig_error *reterr);
    int (*load_part)(struct vfmig_target *t, const void *data, size_t size, bool more,
                     struct vfmig_error *reterr);
    /* As save, for at most size bytes, but the data stays where it is: in memory shared with the
     * device, which may still change it. *ret_data is good until the next save, load or set_state.
     * Only where info.data_in_place says so. */
    ssize_t (*save_in_place)(struct vfmig_target *t, const void **ret_data, size_t size,
                             struct vfmig_error *reterr);
    /* Estimate of the bytes left to save; UINT64_MAX when the device cannot say. */
    int (*left)(struct vfmig_target *t, uint64_t *ret_bytes, struct vfmig_error *reterr);

    /* DMA log. report ORs into bitmap (bit i = page i of the range) and clears in the device. */
    int (*log_start)(struct vfmig_target *t, uint64_t page_size,
                     const struct vfmig_iova_range *ranges, uint32_t range_count,
                     struct vfmig_error *reterr);
    int (*log_stop)(struct vfmig_target *t, struct vfmig_error *reterr);
    int (*log_report)(struct vfmig_target *t, uint64_t iova, uint64_t size, uint64_t page_size,
                      uint64_t *bitmap, struct vfmig_error *reterr);

    /* Set-up and use, for the VMM. map consumes nothing: fd stays the caller's (-1: by message).
     * prot: 1 read, 2 write. */
    int (*dma_map)(struct vfmig_target *t, uint64_t iova, uint64_t size, int fd, uint64_t fd_offset,
                   uint32_t prot, struct vfmig_error *reterr);
    int (*dma_unmap)(struct vfmig_target *t, uint64_t iova, uint64_t size, struct vfmig_error *reterr);
    int (*region_read)(struct vfmig_target *t, uint32_t region, uint64_t offset, void *data,
                       uint32_t size, struct vfmig_error *reterr);
    int (*region_write)(struct vfmig_target *t, uint32_t region, uint64_t offset, const void *data,
                        uint32_t size, bool posted, struct vfmig_error *reterr);
    /* Attaches eventfds (the caller's) to vectors [start, start + count); fds NULL detaches. */
    int (*set_irqs)(struct vfmig_target *t, uint32_t index, uint32_t start, uint32_t count,
                    const int *fds, struct vfmig_error *reterr);

    /* Handles in use, in Z those that the loaded data wants, with their values here; and the values of
     * some, in any state. NULL: the device has none. */
    int (*get_handles)(struct vfmig_target *t, struct vfmig_handle *ret_handles, uint32_t room,
                       uint32_t *ret_count, struct vfmig_error *reterr);
    int (*set_handles)(struct vfmig_target *t, const struct vfmig_handle *handles, uint32_t count,
                       struct vfmig_error *reterr);

    void (*close)(struct vfmig_target *t);
};

/* Base of every kind of target; each kind embeds it first. */
struct vfmig_target {
    const struct vfmig_target_ops *ops;
    struct vfmig_target_info info;
};

/* Where a reset ends (X10). Some devices leave the state alone, so RUNNING is asked for, within reset_ns; others
 * do the reset in the background and tell the old state for a while: it is looked at now and then, pause_ns apart. */
int vfmig_target_await_running(struct vfmig_target *t, uint64_t reset_ns, long pause_ns,
                               struct vfmig_error *reterr);

#define VFMIG_TARGET_PCI_HEAD 0x30u /* bytes of config space with its identity in them */

/* Identity from config space, as PCI lays it out. */
static inline void vfmig_target_take_pci(struct vfmig_target_info *info,
                                         const uint8_t config[VFMIG_TARGET_PCI_HEAD])
{
    memcpy(&info->pci_vendor, config, 2);
    memcpy(&info->pci_device, config + 2, 2);
    info->pci_revision = config[8];
    memcpy(&info->pci_subvendor, config + 0x2c, 2);
    memcpy(&info->pci_subdevice, config + 0x2e, 2);
}

#endif
