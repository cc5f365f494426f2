/* SPDX-License-Identifier: BSD-3-Clause */
/* The programming interface of the `dma` device: a PCI function with one 128 KiB memory BAR.
 * Shared by the device, the reference guest (freestanding: only fixed-size integers here) and
 * the tests. All registers are little-endian. */
#ifndef VFMIG_DEVICES_DMA_REGS_H
#define VFMIG_DEVICES_DMA_REGS_H

#include <stdint.h>

#define DMA_PCI_VENDOR   0x1b36u /* with a device number nobody uses: experimental */
#define DMA_PCI_DEVICE   0x7fd0u
#define DMA_BAR          0u
#define DMA_BAR_SIZE     0x20000u
#define DMA_VECTORS      4u

/* Registers, 4 or 8 bytes at their natural alignment. */
#define DMA_REG_ID       0x000u /* ro u32: DMA_ID */
#define DMA_REG_CTRL     0x004u /* rw u32: DMA_CTRL_ENABLE; clearing it resets head and tail */
#define DMA_REG_RING     0x008u /* rw u64: IOVA of the ring, 64-byte aligned */
#define DMA_REG_ENTRIES  0x010u /* rw u32: descriptors in the ring, a power of two, at most 1024 */
#define DMA_REG_TAIL     0x014u /* rw u32: doorbell, free-running count of descriptors queued */
#define DMA_REG_HEAD     0x018u /* ro u32: free-running count of descriptors completed */
#define DMA_REG_ERRORS   0x01cu /* ro u32: descriptors completed with an error */
#define DMA_REG_SCRATCH  0x020u /* rw u64: holds what was written */
#define DMA_REG_IRQS     0x028u /* ro u64: interrupts raised since reset, latched ones included */
#define DMA_REG_CHAIN    0x030u /* ro u64: dma_chain() over all completions since reset */
#define DMA_REG_PASID    0x038u /* rw u32: handle of the address space of all the ring's DMA, 0: none;
                                   only while the ring is disabled. See dma_tagged() */
#define DMA_REG_IMS      0x040u /* rw u32: handle of the interrupt message of all the ring's interrupts, 0: they
                                   are MSI-X; only while the ring is disabled. See DMA_IMS_AT */
#define DMA_ID           0x414d4456u /* "VDMA" */
#define DMA_CTRL_ENABLE  1u
#define DMA_MSIX_TABLE   0x8000u  /* in the BAR: 16 bytes a vector */
#define DMA_MSIX_PBA     0x9000u
#define DMA_SRAM         0x10000u /* 64 KiB of internal state, rw at any size */
#define DMA_SRAM_SIZE    0x10000u
#define DMA_MAX_LENGTH   (1u << 20) /* bytes of one descriptor */

enum dma_op {
    DMA_OP_NOP = 0,
    DMA_OP_COPY = 1,       /* dst[0..length) = src[0..length) */
    DMA_OP_FILL = 2,       /* dst as 8-byte words: word i = pattern + i */
    DMA_OP_CRC = 3,        /* result = CRC-32C of src */
    DMA_OP_SRAM_LOAD = 4,  /* SRAM at dst (offset) = src */
    DMA_OP_SRAM_STORE = 5, /* memory at dst = SRAM at src (offset) */
};

#define DMA_FLAG_IRQ        0x1u      /* raise `vector` when done */
#define DMA_STATUS_DONE     0x80000000u /* low bits: 0 or a positive errno */

/* 64 bytes in guest memory. The device reads it when it starts the operation, and writes
 * status, result and serial back when it is done, before the interrupt. */
struct dma_descriptor {
    uint32_t op;
    uint32_t flags;
    uint64_t src;
    uint64_t dst;
    uint32_t length;
    uint32_t vector;
    uint64_t pattern;
    uint32_t status;  /* written by the device, last */
    uint32_t result;
    uint64_t serial;  /* number of this completion since reset, from 1 */
    uint64_t cookie;  /* the guest's */
};

/* A device with an interrupt message store (IMS) sends each interrupt as a write of four bytes, the host's
 * value of its handle, to where x86 has its interrupts; under no PASID. What takes it there knows by the
 * value whose it is: the device knows no vector of the guest, and the guest no value of the host. */
#define DMA_IMS_AT 0xfee00000u

/* vfio-user's DMA has no field for a PASID: the device puts the host's value of its handle (20 bits)
 * above the 44 bits of an IOVA, so that a client maps an address space at its value. */
#define DMA_PASID_SHIFT 44u
#define DMA_PASID_NONE  0xfffffu /* what a handle stands for that stands for nothing: no client maps it */
static inline uint64_t dma_tagged(uint64_t pasid, uint64_t iova)
{
    return pasid << DMA_PASID_SHIFT | iova;
}

/* One more completion: a device that repeats, loses or reorders one ends with another value. */
static inline uint64_t dma_chain(uint64_t chain, uint64_t serial, uint32_t status, uint32_t result,
                                 uint64_t cookie)
{
    chain = (chain << 7 | chain >> 57) ^ serial ^ cookie ^ ((uint64_t)status << 32 | result);
    return chain * UINT64_C(0x9e3779b97f4a7c15);
}

#endif
