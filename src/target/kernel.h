/* SPDX-License-Identifier: BSD-3-Clause */
/* A device of the kernel's VFIO, in both dialects:
 *
 *   vfio:/dev/vfio/devices/vfioN   character device, mapped through iommufd
 *   vfio-group:N:NAME              NAME (PCI address or mdev UUID) in group N, type1 container
 *
 * The feature dialect is DEVICE_FEATURE and a descriptor for the data (Linux 5.18 and later), the
 * region dialect the migration region (drivers before that). docs/kernel-targets.md. */
#ifndef VFMIG_TARGET_KERNEL_H
#define VFMIG_TARGET_KERNEL_H

#include "target/target.h"

/* Every system call that a target makes. Each returns what the call does, or a negative errno. */
struct vfmig_kernel_calls {
    int (*open)(void *opaque, const char *path);
    int (*close)(void *opaque, int fd);
    int (*ioctl)(void *opaque, int fd, unsigned long request, void *argument);
    ssize_t (*read)(void *opaque, int fd, void *data, size_t size);
    ssize_t (*write)(void *opaque, int fd, const void *data, size_t size);
    ssize_t (*pread)(void *opaque, int fd, void *data, size_t size, uint64_t offset);
    ssize_t (*pwrite)(void *opaque, int fd, const void *data, size_t size, uint64_t offset);
    int (*poll)(void *opaque, int fd, short events, int timeout_ms);
    int (*nonblock)(void *opaque, int fd);
    int (*mmap)(void *opaque, int fd, uint64_t offset, size_t size, bool writable, void **ret_at);
    int (*munmap)(void *opaque, void *at, size_t size);
};

/* The kernel's own. */
extern const struct vfmig_kernel_calls vfmig_kernel_real;

/* All zero is a good default. */
struct vfmig_kernel_options {
    enum vfmig_dialect dialect;
    uint64_t timeout_ns;      /* of waiting for data, or for an earlier call that is late; 0: 5 s */
    uint64_t reset_ns;        /* of VFIO_DEVICE_RESET; 0: 30 s */
    bool incoming, late_load; /* as those of struct vfmig_user_options */
    const struct vfmig_kernel_calls *calls; /* NULL: vfmig_kernel_real */
    void *opaque;                           /* of calls */
};

/* Whether address has one of the two forms above by its scheme. */
bool vfmig_kernel_address(const char *address);

/* Opens the device, attaches it to an IOMMU address space of its own and learns what it is.
 * -ENOTSUP when it cannot migrate in the dialect asked for; AUTO accepts that, and info.features is
 * 0 then. Closed by its ops->close: a call that is still in the kernel then keeps the descriptors
 * until it returns. */
int vfmig_kernel_open(const char *address, const struct vfmig_kernel_options *options,
                      struct vfmig_target **ret_target, struct vfmig_error *reterr);

/* ---- nothing in between: for whoever judges the driver ----
 *
 * These do what they are asked and answer what the kernel does; -ETIMEDOUT also when an earlier
 * change is still in the kernel. Only for targets of vfmig_kernel_open. */

/* DEVICE_FEATURE with this argsz (which must not be more than the head of 8 bytes and size), flags
 * and data. */
int vfmig_kernel_feature(struct vfmig_target *target, uint32_t argsz, uint32_t flags, void *data,
                         size_t size);
/* Reads and writes the device state as the dialect has it, whatever value. *ret_opened: a
 * descriptor was given; it is the target's then, and what the next three use. The session's earlier
 * one stays open, so that it can be seen dead: *ret_earlier is it, the caller's to close by the
 * same calls (-1: none). -ETIMEDOUT as set_state. */
int vfmig_kernel_look_state(struct vfmig_target *target, uint32_t *ret_value);
int vfmig_kernel_ask_state(struct vfmig_target *target, uint32_t value, uint64_t timeout_ns,
                           bool *ret_opened, int *ret_earlier);
/* VFIO_DEVICE_RESET and no more: where it ends is not looked at. */
int vfmig_kernel_reset_once(struct vfmig_target *target, uint64_t timeout_ns);
/* Starts or stops the log that is used, whether it is on or not. */
int vfmig_kernel_log_once(struct vfmig_target *target, bool on, uint64_t page_size);
/* One call of that log, for exactly this range; sets bits. */
int vfmig_kernel_report_once(struct vfmig_target *target, uint64_t iova, uint64_t size,
                             uint64_t page_size, uint64_t *bitmap);
/* One read or write of the session's descriptor, -EBADF without one. They do not wait. */
ssize_t vfmig_kernel_read_data(struct vfmig_target *target, void *data, size_t size);
ssize_t vfmig_kernel_write_data(struct vfmig_target *target, const void *data, size_t size);
/* Until the descriptor is ready for one, or the target's timeout: 0, or -ETIMEDOUT. */
int vfmig_kernel_await_data(struct vfmig_target *target, bool to_write);
/* MIG_GET_PRECOPY_INFO with this argsz (at most 24) on the session's descriptor. */
int vfmig_kernel_precopy_info(struct vfmig_target *target, uint32_t argsz, uint64_t *ret_initial,
                              uint64_t *ret_dirty);
/* The migration region, for region_read and region_write; false: none. */
bool vfmig_kernel_migration_region(const struct vfmig_target *target, uint32_t *ret_index,
                                   uint64_t *ret_size);

#endif
