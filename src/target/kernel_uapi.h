/* SPDX-License-Identifier: BSD-3-Clause */
/* The kernel's VFIO ABI. <linux/vfio.h> has had its migration part under other names (before 5.18),
 * and headers of 6.1 lack iommufd and what came later: names of our own for all of that. The states
 * are enum vfmig_state, which has their values. */
#ifndef VFMIG_TARGET_KERNEL_UAPI_H
#define VFMIG_TARGET_KERNEL_UAPI_H

#include <linux/vfio.h>
#include <stdint.h>

#define KERNEL_IOCTL(number) _IO(VFIO_TYPE, number)

/* ---- VFIO_DEVICE_FEATURE (5.18) ---- */

#define KERNEL_FEATURE KERNEL_IOCTL(VFIO_BASE + 17)

enum {
    KERNEL_F_MIGRATION = 1,    /* u64 of VFMIG_FEATURE_* */
    KERNEL_F_DEVICE_STATE = 2, /* struct kernel_state */
    KERNEL_F_LOG_START = 6,    /* struct kernel_log_start (6.1) */
    KERNEL_F_LOG_STOP = 7,
    KERNEL_F_LOG_REPORT = 8, /* struct kernel_log_report */
    KERNEL_F_DATA_SIZE = 9,  /* u64 (6.2) */
    KERNEL_FEATURE_GET = 1 << 16,
    KERNEL_FEATURE_SET = 1 << 17,
    KERNEL_FEATURE_PROBE = 1 << 18,
};

struct kernel_feature {
    uint32_t argsz, flags;
};

struct kernel_state {
    uint32_t state;
    int32_t data_fd;
};

struct kernel_log_start {
    uint64_t page_size;
    uint32_t range_count, reserved;
    uint64_t ranges; /* of struct vfmig_iova_range */
};

struct kernel_log_report {
    uint64_t iova, size, page_size, bitmap;
};

/* ---- on the descriptor of the data (6.2) ---- */

#define KERNEL_PRECOPY_INFO KERNEL_IOCTL(VFIO_BASE + 21)

struct kernel_precopy_info {
    uint32_t argsz, flags;
    uint64_t initial_bytes, dirty_bytes;
};

/* ---- the migration region (5.8 to 5.17) ---- */

#define KERNEL_REGION_MIGRATION  3u /* type */
#define KERNEL_SUBTYPE_MIGRATION 1u
#define KERNEL_CAP_NDMA          6u /* proposed in 2021, with the RFC */

struct kernel_migration_region {
    uint32_t device_state, reserved;
    uint64_t pending_bytes, data_offset, data_size;
};

/* ---- character devices of VFIO (6.6) ---- */

#define KERNEL_BIND_IOMMUFD KERNEL_IOCTL(VFIO_BASE + 18)
#define KERNEL_ATTACH_PT    KERNEL_IOCTL(VFIO_BASE + 19)
#define KERNEL_DETACH_PT    KERNEL_IOCTL(VFIO_BASE + 20)

struct kernel_bind {
    uint32_t argsz, flags;
    int32_t iommufd;
    uint32_t ret_device;
};

struct kernel_attach {
    uint32_t argsz, flags, table; /* an IOAS or a HWPT */
};

/* ---- iommufd (6.2, logs 6.7) ---- */

#define IOMMUFD_DESTROY    KERNEL_IOCTL(0x80)
#define IOMMUFD_IOAS_ALLOC KERNEL_IOCTL(0x81)
#define IOMMUFD_IOAS_MAP   KERNEL_IOCTL(0x85)
#define IOMMUFD_IOAS_UNMAP KERNEL_IOCTL(0x86)
#define IOMMUFD_HWPT_ALLOC KERNEL_IOCTL(0x89)
#define IOMMUFD_HW_INFO    KERNEL_IOCTL(0x8a)
#define IOMMUFD_SET_LOG    KERNEL_IOCTL(0x8b)
#define IOMMUFD_GET_LOG    KERNEL_IOCTL(0x8c)

enum {
    IOMMUFD_MAP_FIXED = 1,
    IOMMUFD_MAP_WRITE = 2,
    IOMMUFD_MAP_READ = 4,
    IOMMUFD_HWPT_LOG = 2, /* HWPT_ALLOC: it can log */
    IOMMUFD_CAP_LOG = 1,  /* HW_INFO: the IOMMU can */
    IOMMUFD_LOG_ON = 1,   /* SET_LOG */
    IOMMUFD_LOG_KEEP = 1, /* GET_LOG: clear nothing, the range is unmapped next */
};

struct iommufd_destroy {
    uint32_t size, id;
};

struct iommufd_ioas_alloc {
    uint32_t size, flags, ret_id;
};

struct iommufd_map {
    uint32_t size, flags, ioas, reserved;
    uint64_t address, length, iova;
};

struct iommufd_unmap {
    uint32_t size, ioas;
    uint64_t iova, length; /* of what was unmapped, then */
};

struct iommufd_hwpt_alloc {
    uint32_t size, flags, device, parent, ret_id, reserved, data_type, data_size;
    uint64_t data;
};

struct iommufd_hw_info {
    uint32_t size, flags, device, data_size;
    uint64_t data;
    uint32_t data_type, reserved;
    uint64_t ret_capabilities;
};

struct iommufd_set_log {
    uint32_t size, flags, hwpt, reserved;
};

struct iommufd_get_log {
    uint32_t size, hwpt, flags, reserved;
    uint64_t iova, length, page_size, bitmap;
};

_Static_assert(sizeof(struct kernel_state) == 8 && sizeof(struct kernel_log_start) == 24 &&
                   sizeof(struct kernel_log_report) == 32 &&
                   sizeof(struct kernel_precopy_info) == 24 &&
                   sizeof(struct kernel_migration_region) == 32 &&
                   sizeof(struct kernel_bind) == 16 && sizeof(struct kernel_attach) == 12 &&
                   sizeof(struct iommufd_map) == 40 && sizeof(struct iommufd_unmap) == 24 &&
                   sizeof(struct iommufd_hwpt_alloc) == 40 &&
                   sizeof(struct iommufd_hw_info) == 40 && sizeof(struct iommufd_set_log) == 16 &&
                   sizeof(struct iommufd_get_log) == 48,
               "layouts of the kernel");

#endif
