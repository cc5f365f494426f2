/* SPDX-License-Identifier: BSD-3-Clause */
/* Drives the dma device from the interop guest: registers, ring, every operation, and a model of
 * the memory that it writes to. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "interop/guest.h"

#define STRIDE    UINT64_C(0x9e3779b97f4a7c15)
#define WAIT_MS   30000u /* a bound for a guest under emulation, not an expectation */
#define ROUNDS    4u
#define MAX_PIECE (64u << 10)
#define NO_MEMORY (UINT64_C(1) << 45) /* an address where no guest here has memory */

uint32_t reg32(const struct driver *d, uint32_t offset)
{
    return *(volatile uint32_t *)(d->bar + offset);
}

void reg32_write(const struct driver *d, uint32_t offset, uint32_t value)
{
    *(volatile uint32_t *)(d->bar + offset) = value;
}

uint64_t reg64(const struct driver *d, uint32_t offset)
{
    return *(volatile uint64_t *)(d->bar + offset);
}

void reg64_write(const struct driver *d, uint32_t offset, uint64_t value)
{
    *(volatile uint64_t *)(d->bar + offset) = value;
}

uint64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static uint64_t next_random(struct driver *d)
{
    uint64_t x = d->random += STRIDE;

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* The registers are those of a device that nobody has used yet. */
void driver_fresh(const struct driver *d, const char *when)
{
    static const uint32_t zero[] = {
        DMA_REG_CTRL,     DMA_REG_RING,   DMA_REG_RING + 4,  DMA_REG_ENTRIES,     DMA_REG_TAIL,
        DMA_REG_HEAD,     DMA_REG_ERRORS, DMA_REG_SCRATCH,   DMA_REG_SCRATCH + 4, DMA_REG_IRQS,
        DMA_REG_IRQS + 4, DMA_REG_CHAIN,  DMA_REG_CHAIN + 4, DMA_MSIX_PBA,        DMA_MSIX_PBA + 4};

    if (reg32(d, DMA_REG_ID) != DMA_ID)
        failed("%s: the id register reads %#x", when, reg32(d, DMA_REG_ID));
    for (size_t i = 0; i < sizeof(zero) / sizeof(zero[0]); i++)
        if (reg32(d, zero[i]))
            failed("%s: register %#x reads %#x", when, zero[i], reg32(d, zero[i]));
    for (uint32_t at = 0; at < DMA_SRAM_SIZE; at += 8)
        if (reg64(d, DMA_SRAM + at))
            failed("%s: SRAM at %#x is not zero", when, at);
}

void driver_start(struct driver *d)
{
    memset(d->ring, 0, RING_ENTRIES * sizeof(d->ring[0]));
    d->tail = 0;
    reg64_write(d, DMA_REG_RING, d->ring_gpa);
    reg32_write(d, DMA_REG_ENTRIES, RING_ENTRIES);
    reg32_write(d, DMA_REG_CTRL, DMA_CTRL_ENABLE);
    if (reg64(d, DMA_REG_RING) != d->ring_gpa || reg32(d, DMA_REG_CTRL) != DMA_CTRL_ENABLE)
        failed("the ring cannot be set up");
}

void driver_queue(struct driver *d, struct dma_descriptor desc)
{
    desc.cookie = next_random(d);
    d->ring[d->tail++ % RING_ENTRIES] = desc;
}

void driver_ring(const struct driver *d)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    reg32_write(d, DMA_REG_TAIL, d->tail);
}

/* The last count descriptors complete, each with the next serial number. */
void driver_collect(struct driver *d, uint32_t count, uint32_t want_status)
{
    uint64_t end = now_ms() + WAIT_MS;

    for (uint32_t i = 0; i < count; i++) {
        struct dma_descriptor *desc = &d->ring[(d->tail - count + i) % RING_ENTRIES];
        while (!(__atomic_load_n(&desc->status, __ATOMIC_ACQUIRE) & DMA_STATUS_DONE))
            if (now_ms() > end)
                failed("descriptor %u of %u (operation %u) does not complete", i, count, desc->op);
        if (desc->status != (DMA_STATUS_DONE | want_status))
            failed("operation %u ended with status %#x, not %#x", desc->op, desc->status,
                   DMA_STATUS_DONE | want_status);
        if (desc->serial != ++d->serial)
            failed("completion %llu has serial number %llu", (unsigned long long)d->serial,
                   (unsigned long long)desc->serial);
        d->chain = dma_chain(d->chain, desc->serial, desc->status, desc->result, desc->cookie);
    }
    /* The status is written before the device counts: what it counts is there at the next read
     * of a register at the latest. */
    while (reg32(d, DMA_REG_HEAD) != d->tail)
        if (now_ms() > end)
            failed("%u descriptors were queued, the device counts %u", d->tail,
                   reg32(d, DMA_REG_HEAD));
    if (reg64(d, DMA_REG_CHAIN) != d->chain)
        failed("the device's chain of completions is not the guest's");
}

void driver_run(struct driver *d, struct dma_descriptor desc)
{
    driver_queue(d, desc);
    driver_ring(d);
    driver_collect(d, 1, 0);
}

static void put_random(struct driver *d, uint8_t *at, size_t size)
{
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = next_random(d);
        memcpy(at + i, &word, 8);
    }
}

static void compare(const struct driver *d, const char *what)
{
    if (memcmp(d->dst, d->model, HUGE_PAGE) == 0)
        return;
    size_t at = 0;
    while (d->dst[at] == d->model[at])
        at++;
    failed("%s: byte %#zx of the target is %#x, not %#x", what, at, d->dst[at], d->model[at]);
}

static void model_fill(uint8_t *at, uint64_t pattern, uint32_t length)
{
    for (uint32_t i = 0; i < length; i += 8) {
        uint64_t word = pattern + i / 8;
        memcpy(at + i, &word, length - i < 8 ? length - i : 8);
    }
}

static uint32_t crc32c(const uint8_t *at, size_t size)
{
    uint32_t crc = UINT32_MAX;

    for (size_t i = 0; i < size; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

/* Each operation alone, as long as it may be, at addresses that are not aligned. */
static void check_operations(struct driver *d)
{
    const uint32_t most = DMA_MAX_LENGTH, odd = 4096 + 3;

    put_random(d, d->src, HUGE_PAGE);
    put_random(d, d->dst, HUGE_PAGE);
    memcpy(d->model, d->dst, HUGE_PAGE);
    driver_run(d, (struct dma_descriptor){.op = DMA_OP_NOP});
    compare(d, "nop");
    driver_run(
        d, (struct dma_descriptor){
               .op = DMA_OP_COPY, .src = d->src_gpa + 1, .dst = d->dst_gpa + odd, .length = most});
    memcpy(d->model + odd, d->src + 1, most);
    compare(d, "copy");
    driver_run(d, (struct dma_descriptor){
                      .op = DMA_OP_FILL, .dst = d->dst_gpa + 5, .length = most, .pattern = STRIDE});
    model_fill(d->model + 5, STRIDE, most);
    compare(d, "fill");
    driver_run(d, (struct dma_descriptor){.op = DMA_OP_CRC, .src = d->src_gpa + 7, .length = most});
    if (d->ring[(d->tail - 1) % RING_ENTRIES].result != crc32c(d->src + 7, most))
        failed("the CRC of %u bytes is not the guest's", most);
    ok("DMA: copy, fill and CRC of 1 MiB at unaligned addresses, no byte beside them changed");

    driver_run(d, (struct dma_descriptor){
                      .op = DMA_OP_SRAM_LOAD, .src = d->src_gpa + 64, .length = DMA_SRAM_SIZE});
    for (uint32_t at = 0; at < DMA_SRAM_SIZE; at += 8) {
        uint64_t want;
        memcpy(&want, d->src + 64 + at, 8);
        if (reg64(d, DMA_SRAM + at) != want)
            failed("SRAM at %#x is not what DMA loaded", at);
    }
    for (uint32_t at = 0; at < DMA_SRAM_SIZE; at += 8)
        reg64_write(d, DMA_SRAM + at, ~STRIDE * at);
    driver_run(d, (struct dma_descriptor){
                      .op = DMA_OP_SRAM_STORE, .dst = d->dst_gpa + 64, .length = DMA_SRAM_SIZE});
    for (uint32_t at = 0; at < DMA_SRAM_SIZE; at += 8) {
        uint64_t word = ~STRIDE * at;
        memcpy(d->model + 64 + at, &word, 8);
    }
    compare(d, "SRAM store");
    ok("DMA and BAR: 64 KiB loaded by DMA read back in the BAR, written in the BAR stored by DMA");
}

static struct dma_descriptor any_copy(struct driver *d)
{
    uint32_t length = 1 + (uint32_t)(next_random(d) % MAX_PIECE);
    uint64_t from = next_random(d) % (HUGE_PAGE - length),
             to = next_random(d) % (HUGE_PAGE - length);
    struct dma_descriptor desc = {.dst = d->dst_gpa + to, .length = length};

    if (next_random(d) % 2) {
        desc.op = DMA_OP_COPY;
        desc.src = d->src_gpa + from;
        memcpy(d->model + to, d->src + from, length);
    } else {
        desc.op = DMA_OP_FILL;
        desc.pattern = next_random(d);
        model_fill(d->model + to, desc.pattern, length);
    }
    return desc;
}

static void check_batches(struct driver *d)
{
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < RING_ENTRIES; i++)
            driver_queue(d, any_copy(d));
        driver_ring(d);
        driver_collect(d, RING_ENTRIES, 0);
        compare(d, "a full ring");
    }
    ok("DMA: %u copies and fills of random place and length, %u queued at a time, in order, all "
       "memory as the model says",
       ROUNDS * RING_ENTRIES, RING_ENTRIES);
}

/* What cannot be reached ends that descriptor, and no other. */
static void check_faults(struct driver *d)
{
    uint32_t before = reg32(d, DMA_REG_ERRORS);

    driver_queue(d, (struct dma_descriptor){
                        .op = DMA_OP_COPY, .src = NO_MEMORY, .dst = d->dst_gpa, .length = 4096});
    driver_ring(d);
    driver_collect(d, 1, EFAULT);
    driver_queue(d, (struct dma_descriptor){
                        .op = DMA_OP_COPY, .src = d->src_gpa, .dst = NO_MEMORY, .length = 4096});
    driver_ring(d);
    driver_collect(d, 1, EFAULT);
    if (reg32(d, DMA_REG_ERRORS) != before + 2)
        failed("2 faults, the device counts %u", reg32(d, DMA_REG_ERRORS) - before);
    compare(d, "faults");
    driver_run(d, any_copy(d));
    compare(d, "after faults");
    ok("DMA: addresses without memory end their descriptor with EFAULT, the next one works");
}

void check_dma(struct driver *d)
{
    check_operations(d);
    check_batches(d);
    check_faults(d);
}
