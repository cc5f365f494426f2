/* SPDX-License-Identifier: BSD-3-Clause */
/* The vfio-user protocol: header, commands 1-18 and their payloads, in host byte order, packed.
 * Names are the project's own because released kernel headers disagree about several of them. */
#ifndef VFMIG_WIRE_PROTO_H
#define VFMIG_WIRE_PROTO_H

#include <stddef.h>
#include <stdint.h>

#define VFMIG_USER_MAJOR 0u
#define VFMIG_USER_MINOR 2u /* most we speak; the reply is the smaller of both */

enum vfmig_user_command {
    VFMIG_USER_VERSION = 1,
    VFMIG_USER_DMA_MAP = 2,
    VFMIG_USER_DMA_UNMAP = 3,
    VFMIG_USER_GET_INFO = 4,
    VFMIG_USER_GET_REGION_INFO = 5,
    VFMIG_USER_GET_REGION_IO_FDS = 6,
    VFMIG_USER_GET_IRQ_INFO = 7,
    VFMIG_USER_SET_IRQS = 8,
    VFMIG_USER_REGION_READ = 9,
    VFMIG_USER_REGION_WRITE = 10,
    VFMIG_USER_DMA_READ = 11,  /* server to client */
    VFMIG_USER_DMA_WRITE = 12, /* server to client */
    VFMIG_USER_RESET = 13,
    VFMIG_USER_DIRTY_PAGES = 14, /* v1 */
    VFMIG_USER_REGION_WRITE_MULTI = 15,
    VFMIG_USER_FEATURE = 16,        /* v2 */
    VFMIG_USER_MIG_DATA_READ = 17,  /* v2 */
    VFMIG_USER_MIG_DATA_WRITE = 18, /* v2 */
    VFMIG_USER_COMMAND_COUNT
};

/* Header flags. */
#define VFMIG_USER_TYPE_MASK  0x0fu
#define VFMIG_USER_TYPE_CMD   0x00u
#define VFMIG_USER_TYPE_REPLY 0x01u
#define VFMIG_USER_NO_REPLY   0x10u
#define VFMIG_USER_ERROR      0x20u
#define VFMIG_USER_FLAGS      (VFMIG_USER_TYPE_MASK | VFMIG_USER_NO_REPLY | VFMIG_USER_ERROR)

#define VFMIG_PACKED __attribute__((packed))
#define VFMIG_SIZE(type, size) _Static_assert(sizeof(struct type) == (size), #type)
#define VFMIG_AT(type, field, off) \
    _Static_assert(offsetof(struct type, field) == (off), #type "." #field)

struct vfmig_user_header {
    uint16_t id;
    uint16_t command;
    uint32_t size; /* whole message */
    uint32_t flags;
    uint32_t error; /* positive errno in an error reply */
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_header, 16);
VFMIG_AT(vfmig_user_header, error, 12);

struct vfmig_user_version { /* 1, both ways; JSON text with its NUL follows */
    uint16_t major;
    uint16_t minor;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_version, 4);

#define VFMIG_USER_DMA_F_READ  0x1u
#define VFMIG_USER_DMA_F_WRITE 0x2u

struct vfmig_user_dma_map { /* 2; header-only reply */
    uint32_t argsz;
    uint32_t flags;
    uint64_t offset; /* in the file */
    uint64_t address;
    uint64_t size;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_dma_map, 32);
VFMIG_AT(vfmig_user_dma_map, address, 16);

#define VFMIG_USER_UNMAP_F_BITMAP 0x1u
#define VFMIG_USER_UNMAP_F_ALL    0x2u

struct vfmig_user_dma_unmap { /* 3, both ways; with F_BITMAP a vfmig_user_bitmap follows */
    uint32_t argsz;
    uint32_t flags;
    uint64_t address;
    uint64_t size;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_dma_unmap, 24);

struct vfmig_user_bitmap { /* in 3 and 14; the bitmap follows in a reply */
    uint64_t pgsize;
    uint64_t size; /* bytes of bitmap */
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_bitmap, 16);

#define VFMIG_USER_INFO_F_RESET 0x1u
#define VFMIG_USER_INFO_F_PCI   0x2u

struct vfmig_user_device_info { /* 4, both ways */
    uint32_t argsz;
    uint32_t flags;
    uint32_t num_regions;
    uint32_t num_irqs;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_device_info, 16);

#define VFMIG_USER_REGION_F_READ  0x1u
#define VFMIG_USER_REGION_F_WRITE 0x2u
#define VFMIG_USER_REGION_F_MMAP  0x4u
#define VFMIG_USER_REGION_F_CAPS  0x8u

struct vfmig_user_region_info { /* 5, both ways; capabilities follow in a reply */
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t cap_offset; /* from the start of this struct, 0: none */
    uint64_t size;
    uint64_t offset; /* file offset for mmap only */
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_region_info, 32);
VFMIG_AT(vfmig_user_region_info, offset, 24);

#define VFMIG_USER_CAP_SPARSE_MMAP 1u
#define VFMIG_USER_CAP_TYPE        2u
#define VFMIG_USER_CAP_NDMA        6u /* RFC cover notes; header only, version 1 */

struct vfmig_user_cap { /* header of each region capability */
    uint16_t id;
    uint16_t version;
    uint32_t next; /* from the start of the info struct, 0: last */
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_cap, 8);

#define VFMIG_USER_REGION_TYPE_MIGRATION    3u
#define VFMIG_USER_REGION_SUBTYPE_MIGRATION 1u

struct vfmig_user_cap_type {
    struct vfmig_user_cap cap;
    uint32_t type;
    uint32_t subtype;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_cap_type, 16);

struct vfmig_user_sparse_area {
    uint64_t offset; /* in the region; in the file that of the info struct is added */
    uint64_t size;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_sparse_area, 16);

struct vfmig_user_cap_sparse { /* one area; others may follow */
    struct vfmig_user_cap cap;
    uint32_t count;
    uint32_t reserved;
    struct vfmig_user_sparse_area area;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_cap_sparse, 32);

struct vfmig_user_region_io_fds { /* 6, both ways; entries follow in a reply */
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t count;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_region_io_fds, 16);

#define VFMIG_USER_IO_FD_IOEVENTFD 0u

struct vfmig_user_ioeventfd { /* entry of 6 as in the specification's text */
    uint64_t offset;
    uint64_t size;
    uint32_t fd_index;
    uint32_t type;
    uint32_t flags;
    uint32_t padding;
    uint64_t datamatch;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_ioeventfd, 40);

#define VFMIG_USER_IRQ_F_EVENTFD  0x1u
#define VFMIG_USER_IRQ_F_MASKABLE 0x2u
#define VFMIG_USER_IRQ_F_NORESIZE 0x8u

struct vfmig_user_irq_info { /* 7, both ways */
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t count;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_irq_info, 16);

#define VFMIG_USER_IRQ_DATA_NONE      0x01u
#define VFMIG_USER_IRQ_DATA_BOOL      0x02u
#define VFMIG_USER_IRQ_DATA_EVENTFD   0x04u
#define VFMIG_USER_IRQ_DATA_MASK      0x07u
#define VFMIG_USER_IRQ_ACTION_MASK    0x08u
#define VFMIG_USER_IRQ_ACTION_UNMASK  0x10u
#define VFMIG_USER_IRQ_ACTION_TRIGGER 0x20u
#define VFMIG_USER_IRQ_ACTIONS        0x38u

struct vfmig_user_set_irqs { /* 8; count bytes follow with DATA_BOOL; header-only reply */
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t start;
    uint32_t count;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_set_irqs, 20);

struct vfmig_user_region_access { /* 9, 10, both ways; data follows */
    uint64_t offset;
    uint32_t region;
    uint32_t count;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_region_access, 16);

struct vfmig_user_dma_access { /* 11, 12, both ways; data follows */
    uint64_t address;
    uint64_t count;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_dma_access, 16);

#define VFMIG_USER_DIRTY_START 0x1u
#define VFMIG_USER_DIRTY_STOP  0x2u
#define VFMIG_USER_DIRTY_GET   0x4u

struct vfmig_user_dirty_pages { /* 14; with GET a vfmig_user_dirty_range follows */
    uint32_t argsz;
    uint32_t flags;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_dirty_pages, 8);

struct vfmig_user_dirty_range {
    uint64_t iova;
    uint64_t size;
    struct vfmig_user_bitmap bitmap;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_dirty_range, 32);

struct vfmig_user_write_multi { /* 15; entries follow */
    uint64_t count;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_write_multi, 8);

struct vfmig_user_write_entry {
    uint64_t offset;
    uint32_t region;
    uint32_t count;
    uint8_t data[8];
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_write_entry, 24);

#define VFMIG_USER_FEATURE_MASK  0xffffu
#define VFMIG_USER_FEATURE_GET   0x10000u
#define VFMIG_USER_FEATURE_SET   0x20000u
#define VFMIG_USER_FEATURE_PROBE 0x40000u
#define VFMIG_USER_FEATURE_FLAGS \
    (VFMIG_USER_FEATURE_MASK | VFMIG_USER_FEATURE_GET | VFMIG_USER_FEATURE_SET | \
     VFMIG_USER_FEATURE_PROBE)

enum vfmig_user_feature_id {
    VFMIG_USER_F_MIGRATION = 1,
    VFMIG_USER_F_DEVICE_STATE = 2,
    VFMIG_USER_F_LOG_START = 6,
    VFMIG_USER_F_LOG_STOP = 7,
    VFMIG_USER_F_LOG_REPORT = 8,
    VFMIG_USER_F_DATA_SIZE = 9, /* our own use of the kernel's number over vfio-user */

    /* Ours, at the end of the 16 bits; docs/vfio-user-extensions.md, docs/control.md. */
    VFMIG_USER_F_PRECOPY_INFO = 0xf000, /* GET: how much pre-copy data is left */
    VFMIG_USER_F_WINDOW_READ = 0xf001,  /* GET: MIG_DATA_READ into the shared window */
    VFMIG_USER_F_WINDOW_WRITE = 0xf002, /* SET: MIG_DATA_WRITE out of it */
    VFMIG_USER_F_HANDLES = 0xf003,      /* IMS and PASID: GET those in use, SET their values */
    VFMIG_USER_F_FREEZE = 0xf010,       /* control: NDMA, and accesses answered in S too */
    VFMIG_USER_F_DMA_MODE = 0xf011,     /* control: DMA by mapping or by message */
    VFMIG_USER_F_DIRTY_LIST = 0xf012,   /* control, GET: what the DMA log holds, as ranges */
    VFMIG_USER_F_PENDING = 0xf013,      /* control: pending interrupt causes */
    VFMIG_USER_F_HOLD = 0xf014,         /* control: the owner's accesses wait for the state */
    VFMIG_USER_F_DMA_MAP_LIST = 0xf015, /* control, GET: the owner's DMA_MAPs */
};

struct vfmig_user_feature { /* 16, both ways; the feature's data follows */
    uint32_t argsz;
    uint32_t flags;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature, 8);

struct vfmig_user_feature_migration {
    uint64_t flags; /* VFMIG_FEATURE_* of vfmig/state.h */
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_migration, 8);

struct vfmig_user_feature_state {
    uint32_t device_state; /* enum vfmig_state */
    uint32_t data_fd;      /* unused here */
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_state, 8);

struct vfmig_user_feature_log_start { /* ranges follow */
    uint64_t page_size;
    uint32_t num_ranges;
    uint32_t reserved;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_log_start, 16);

struct vfmig_user_log_range {
    uint64_t iova;
    uint64_t length;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_log_range, 16);

struct vfmig_user_feature_log_report { /* the bitmap follows in a reply */
    uint64_t iova;
    uint64_t length;
    uint64_t page_size;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_log_report, 24);

struct vfmig_user_feature_data_size {
    uint64_t stop_copy_length; /* bytes, an estimate, legal in any state */
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_data_size, 8);

/* As vfio_precopy_info without argsz; legal in SR and SNR. */
struct vfmig_user_feature_precopy {
    uint64_t initial_bytes; /* 0: an estimate of ours does not tell it from dirty_bytes */
    uint64_t dirty_bytes;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_precopy, 16);

/* WINDOW_READ, WINDOW_WRITE: bytes of the shared memory of VERSION. The reply to a read says how
 * many there are, less than asked for meaning what it means for MIG_DATA_READ. */
struct vfmig_user_feature_window {
    uint64_t offset;
    uint32_t size;
    uint32_t reserved; /* 0 */
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_window, 16);

/* HANDLES: count entries follow. value: VFMIG_HANDLE_UNMAPPED when there is none. */
struct vfmig_user_feature_handles {
    uint32_t count;
    uint32_t reserved; /* 0 */
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_handles, 8);

struct vfmig_user_handle {
    uint32_t kind; /* enum vfmig_handle_kind */
    uint32_t number;
    uint64_t value;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_handle, 16);

struct vfmig_user_window_message { /* the whole of one, both ways */
    struct vfmig_user_feature head;
    struct vfmig_user_feature_window place;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_window_message, 24);

/* FREEZE, HOLD: 0 or 1. DMA_MODE: 0 mapped, 1 by message. */
struct vfmig_user_feature_switch {
    uint32_t value;
    uint32_t reserved; /* 0 */
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_switch, 8);

/* PENDING: bit v is vector v. A SET adds causes. */
struct vfmig_user_feature_pending {
    uint32_t vectors;
    uint32_t reserved; /* 0 */
    uint64_t bits[4];
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_pending, 40);

/* DIRTY_LIST, DMA_MAP_LIST: the request says where to begin, the reply how many entries follow and
 * whether there are more (ask again from next). */
struct vfmig_user_feature_list {
    uint64_t next; /* IOVA */
    uint32_t count;
    uint32_t more;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_feature_list, 16);

#define VFMIG_USER_MAP_F_BY_MESSAGE 0x100u /* beside VFMIG_USER_DMA_F_* */

struct vfmig_user_map_entry {
    uint64_t iova;
    uint64_t size;
    uint32_t flags;
    uint32_t reserved;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_map_entry, 24);

struct vfmig_user_mig_data { /* 17, 18, and the reply of 17; data follows */
    uint32_t argsz;
    uint32_t size;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_mig_data, 8);

/* struct vfio_device_migration_info, the head of the v1 migration region. */
struct vfmig_user_mig_region {
    uint32_t device_state;
    uint32_t reserved;
    uint64_t pending_bytes;
    uint64_t data_offset;
    uint64_t data_size;
} VFMIG_PACKED;
VFMIG_SIZE(vfmig_user_mig_region, 32);
VFMIG_AT(vfmig_user_mig_region, data_size, 24);

/* PCI region and interrupt indexes; the migration region is ours after the fixed ones. */
enum vfmig_user_region {
    VFMIG_REGION_BAR0 = 0,
    VFMIG_REGION_BAR5 = 5,
    VFMIG_REGION_ROM = 6,
    VFMIG_REGION_CONFIG = 7,
    VFMIG_REGION_VGA = 8,
    VFMIG_REGION_MIGRATION = 9,
    VFMIG_REGION_COUNT
};

enum vfmig_user_irq {
    VFMIG_IRQ_INTX = 0,
    VFMIG_IRQ_MSI = 1,
    VFMIG_IRQ_MSIX = 2,
    VFMIG_IRQ_ERR = 3,
    VFMIG_IRQ_REQ = 4,
    VFMIG_IRQ_COUNT
};

#endif
