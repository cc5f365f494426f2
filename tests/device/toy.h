/* SPDX-License-Identifier: BSD-3-Clause */
/* A small device on the public interface whose every step a test can order and see. */
#ifndef VFMIG_TESTS_DEVICE_TOY_H
#define VFMIG_TESTS_DEVICE_TOY_H

#include "vfmig/device.h"

#define TOY_BAR_SIZE 0x10000u
#define TOY_TABLE    0x8000u
#define TOY_PBA      0x9000u
#define TOY_VECTORS  3u

/* Registers of BAR 0. */
#define TOY_SCRATCH 0x00u /* rw u64, state */
#define TOY_IRQ     0x08u /* w u32: raise this vector */
#define TOY_IOVA    0x10u /* rw u64 */
#define TOY_VALUE   0x18u /* rw u64 */
#define TOY_WRITE   0x20u /* w u32: DMA of VALUE to IOVA, at once; status says what came out */
#define TOY_BEGIN   0x24u /* w u32: begin an operation in flight */
#define TOY_END     0x28u /* w u32: DMA of VALUE to IOVA, raise vector 0, end the operation */
#define TOY_STATUS  0x2cu /* r i32: result of the last DMA */
#define TOY_ASYNC   0x30u /* w u32: like WRITE, asynchronous */
#define TOY_READ    0x34u /* w u32: DMA from IOVA to VALUE, asynchronous */
#define TOY_GATES   0x38u /* r u32: gate told shut (low half) and open (high half), counted */
#define TOY_MEMORY  0x1000u /* rw: state, logged by pages of 256 bytes while SR */
#define TOY_MEMORY_SIZE 0x4000u
#define TOY_PAGE    256u
#define TOY_PAGES   (TOY_MEMORY_SIZE / TOY_PAGE)

struct toy {
    struct vfmig_device *dev;
    uint64_t scratch, iova, value, read_value;
    int status;
    uint32_t gates;
    uint8_t memory[TOY_MEMORY_SIZE];
    uint64_t dirty;   /* pages changed since they were saved; a page is a bit */
    bool logging, final_done;
    bool in_flight;
    struct vfmig_dma dma;
    /* What a test asks for or looks at. */
    uint8_t *scribble; /* a window that is changed under our hands ... */
    size_t scribble_stride; /* ... at each save and load: the bytes of its frame, one stride */
    int fail_stop, fail_start, fail_save_begin, fail_load_end;
    unsigned dma_pages; /* written by TOY_WRITE */
    unsigned resets, stops, starts, loads, saves, precopy_bytes;
};

struct toy *toy_new(bool ndma, bool precopy, bool migratable, uint64_t drain_timeout_ns);
/* With NDMA and pre-copy. */
struct toy *toy_new_windows(uint32_t window_count, bool save_writes_only);
void toy_free(struct toy *toy);

#endif
