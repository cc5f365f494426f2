/* SPDX-License-Identifier: BSD-3-Clause */
/* The program of the interop guest: what its files share. It runs as the first process of a Linux
 * guest, prints one line for each fact that it has verified ("guest: ok: ..."), and stops the run
 * at the first that does not hold ("guest: FAILED: ..."). */
#ifndef VFMIG_TESTS_INTEROP_GUEST_H
#define VFMIG_TESTS_INTEROP_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "devices/dma_regs.h"

#define HUGE_PAGE    (2u << 20)
#define RING_ENTRIES 64u

/* A PCI function, by its folder in sysfs. */
struct function {
    char folder[256];
    char name[32]; /* 0000:01:00.0 */
};

/* The dma device and the memory that it is given: huge pages, each of them in one piece. */
struct driver {
    struct function fn;
    volatile uint8_t *bar;
    struct dma_descriptor *ring;
    uint8_t *src, *dst, *model; /* model: what dst must hold */
    uint64_t ring_gpa, src_gpa, dst_gpa;
    uint32_t tail;
    uint64_t serial, chain, random;
    uint64_t irqs[DMA_VECTORS]; /* that must have come since the module was loaded */
};

void ok(const char *format, ...) __attribute__((format(printf, 1, 2)));
void failed(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* sysfs.c */
bool function_find(struct function *fn, uint32_t vendor, uint32_t device);
void function_write(const struct function *fn, const char *file, const char *text);
void function_read(const struct function *fn, const char *file, char *text, size_t size);
uint32_t config_read(const struct function *fn, unsigned offset, unsigned bytes);
void config_write(const struct function *fn, unsigned offset, uint32_t value, unsigned bytes);
unsigned find_capability(const struct function *fn, unsigned id);
volatile uint8_t *bar_map(const struct function *fn, unsigned bar, size_t size);
void file_write(const char *path, const char *text);
void module_load(const char *path);
uint8_t *huge_page(uint64_t *ret_gpa);

/* dma.c */
uint32_t reg32(const struct driver *d, uint32_t offset);
void reg32_write(const struct driver *d, uint32_t offset, uint32_t value);
uint64_t reg64(const struct driver *d, uint32_t offset);
void reg64_write(const struct driver *d, uint32_t offset, uint64_t value);
uint64_t now_ms(void);
void driver_fresh(const struct driver *d, const char *when);
void driver_start(struct driver *d);
void driver_queue(struct driver *d, struct dma_descriptor desc);
void driver_ring(const struct driver *d);
void driver_collect(struct driver *d, uint32_t count, uint32_t want_status);
void driver_run(struct driver *d, struct dma_descriptor desc);
void check_dma(struct driver *d);

/* irq.c */
void check_irqs(struct driver *d);
void check_irq_counts(const struct driver *d, const char *when);
void check_masks(struct driver *d);

#endif
