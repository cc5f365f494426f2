/* SPDX-License-Identifier: BSD-3-Clause */
/* The programming interface of the paravirtual vIOMMU: one page of registers, a queue of commands
 * and a queue of page requests in guest memory. Shared by the VMM, the reference guest
 * (freestanding: only fixed-size integers here) and the tests. Everything is little-endian.
 *
 * A device behind the vIOMMU does its DMA at I/O virtual addresses. Where nothing is mapped the
 * access waits, and a page request asks the guest, which maps the page or not and then responds, as
 * late and in whichever order it likes. While the domain of a device is off all its DMA fails. */
#ifndef VFMIG_VMM_IOMMU_REGS_H
#define VFMIG_VMM_IOMMU_REGS_H

#include <stdint.h>

#define IOMMU_GPA       0xfe001000u /* the page of registers */
#define IOMMU_BYTES     0x1000u
#define IOMMU_PAGE      4096u
#define IOMMU_IOVA_BITS 39u
#define IOMMU_ENTRIES   1024u /* most of either queue; a power of two each */

/* Registers, 4 or 8 bytes at their natural alignment. What a queue is may be written while the
 * vIOMMU is disabled only. Counts run freely. */
#define IOMMU_REG_ID 0x00u /* ro u32: IOMMU_ID */
#define IOMMU_REG_CTRL                                                                             \
    0x04u                           /* rw u32: IOMMU_CTRL_ENABLE. Clearing it forgets all domains, \
                                     * mappings and requests; it reads 1 until that is done */
#define IOMMU_REG_CMD_BASE    0x08u /* rw u64: guest physical address, 64-byte aligned */
#define IOMMU_REG_CMD_ENTRIES 0x10u /* rw u32 */
#define IOMMU_REG_CMD_TAIL    0x14u /* rw u32: doorbell, commands queued */
#define IOMMU_REG_CMD_HEAD    0x18u /* ro u32: commands done */
#define IOMMU_REG_DEVICES     0x1cu /* ro u32: bit i: device i is behind the vIOMMU */
#define IOMMU_REG_PRQ_BASE    0x20u /* rw u64: as CMD_BASE */
#define IOMMU_REG_PRQ_ENTRIES 0x28u /* rw u32 */
#define IOMMU_REG_PRQ_HEAD    0x2cu /* rw u32: entries taken by the guest */
#define IOMMU_REG_PRQ_TAIL    0x30u /* ro u32: entries written */
#define IOMMU_REG_OPEN        0x34u /* ro u32: page requests without response */
#define IOMMU_REG_ERRORS      0x38u /* ro u32: register writes and commands that made no sense */
#define IOMMU_ID              0x4d4f4956u /* "VIOM" */
#define IOMMU_CTRL_ENABLE     1u

enum iommu_op {
    IOMMU_NOP = 0,
    IOMMU_DOMAIN = 1,  /* flags IOMMU_DOMAIN_ON or 0; either way it is empty afterwards */
    IOMMU_MAP = 2,     /* [iova, iova + size) of device is [gpa, gpa + size), whole pages */
    IOMMU_UNMAP = 3,   /* all mappings inside [iova, iova + size); done when no DMA uses them */
    IOMMU_RESPOND = 4, /* to page request id: IOMMU_RESPONSE_* in flags */
};

#define IOMMU_DOMAIN_ON        1u
#define IOMMU_MAP_READ         1u
#define IOMMU_MAP_WRITE        2u
#define IOMMU_RESPONSE_TRY     0u /* the page may be there: the access looks again */
#define IOMMU_RESPONSE_REFUSED 1u /* the access ends with EFAULT */

#define IOMMU_STATUS_DONE 0x80000000u /* low bits: 0 or a positive errno */

/* 64 bytes in guest memory, read once. Commands are done one after the other. */
struct iommu_command {
    uint32_t op;
    uint32_t device;
    uint64_t iova;
    uint64_t gpa;
    uint64_t size;
    uint32_t flags;
    uint32_t id;
    uint32_t status; /* written by the vIOMMU when it is done */
    uint32_t reserved[5];
};

#define IOMMU_REQUEST_WRITE 1u /* the device wants to write */
#define IOMMU_REQUEST_WITHDRAWN                                                                    \
    2u /* the request of this id is of no use any more, because the device                         \
        * has given up its DMA: it is to be responded to, with anything */

/* 64 bytes in guest memory, written by the vIOMMU. */
struct iommu_request {
    uint64_t iova; /* of the page */
    uint32_t device;
    uint32_t id;
    uint32_t flags;
    uint32_t turn; /* written last: number of this entry, from 1 */
    uint64_t reserved[5];
};

#endif
