/* SPDX-License-Identifier: BSD-3-Clause */
/* The `dma` device of this project (src/devices/dma_regs.h): a ring of descriptors in memory. The
 * few registers are given here again: what is judged does not write the judge's facts. */
#include "check/rule.h"

#define VENDOR      0x1b36u
#define DEVICE      0x7fd0u
#define BAR         0u
#define REG_CTRL    0x004u
#define REG_RING    0x008u
#define REG_ENTRIES 0x010u
#define REG_TAIL    0x014u
#define REG_HEAD    0x018u
#define REG_SCRATCH 0x020u
#define SRAM        0x10000u
#define SRAM_SIZE   0x10000u
#define ENTRIES     64u
#define OP_FILL     2u
#define FLAG_IRQ    1u

struct descriptor {
    uint32_t op, flags;
    uint64_t src, dst;
    uint32_t length, vector;
    uint64_t pattern;
    uint32_t status, result;
    uint64_t serial, cookie;
};
_Static_assert(sizeof(struct descriptor) == 64, "descriptor");

static bool fits(const struct check_facts *facts)
{
    return facts->pci_vendor == VENDOR && facts->pci_device == DEVICE;
}

static int put(struct check *c, uint64_t offset, uint64_t value, uint32_t size)
{
    int r = check_write(c, BAR, offset, &value, size);

    return r < 0 ? r : 0;
}

static int get32(struct check *c, uint64_t offset, uint32_t *ret_value)
{
    int r = check_read(c, BAR, offset, ret_value, 4);

    return r < 0 ? r : 0;
}

static int set_up(struct check *c)
{
    int r = check_map(c, CHECK_WORKLOAD_IOVA, CHECK_WORKLOAD_SIZE, CHECK_WORKLOAD_OFFSET, false);

    check_fill(c, CHECK_WORKLOAD_OFFSET, ENTRIES * sizeof(struct descriptor), 0);
    if (r == 0)
        r = put(c, REG_CTRL, 0, 4);
    if (r == 0)
        r = put(c, REG_RING, CHECK_WORKLOAD_IOVA, 8);
    if (r == 0)
        r = put(c, REG_ENTRIES, ENTRIES, 4);
    if (r == 0)
        r = put(c, REG_CTRL, 1, 4);
    return r;
}

static int queue(struct check *c, struct descriptor d)
{
    uint32_t tail = 0;
    int r = get32(c, REG_TAIL, &tail);

    if (r < 0)
        return r;
    struct check_step step = {
        .kind = CHECK_STEP_MEMORY_PUT,
        .arg = {CHECK_WORKLOAD_OFFSET + tail % ENTRIES * sizeof(d), sizeof(d)},
        .data = &d};
    check_do(c, &step);
    return put(c, REG_TAIL, tail + 1, 4);
}

static int dma_start(struct check *c, uint64_t iova, uint32_t size, uint64_t pattern)
{
    return queue(
        c, (struct descriptor){.op = OP_FILL, .dst = iova, .length = size, .pattern = pattern});
}

static int dma_start_irq(struct check *c, uint64_t iova, uint32_t size, uint64_t pattern,
                         uint32_t vector)
{
    return queue(c, (struct descriptor){.op = OP_FILL,
                                        .flags = FLAG_IRQ,
                                        .dst = iova,
                                        .length = size,
                                        .vector = vector,
                                        .pattern = pattern});
}

static int dma_done(struct check *c, uint64_t *ret_count)
{
    uint32_t head = 0;
    int r = get32(c, REG_HEAD, &head);

    *ret_count = head;
    return r;
}

static int dma_write(struct check *c, uint64_t iova, uint32_t size, uint64_t pattern)
{
    uint32_t tail = 0, head = 0;
    uint64_t begin = 0;
    int r = dma_start(c, iova, size, pattern);

    if (r == 0)
        r = get32(c, REG_TAIL, &tail);
    while (r == 0) {
        r = get32(c, REG_HEAD, &head);
        if (r < 0 || head == tail)
            return r;
        if (!check_wait(c, &begin))
            return -ETIMEDOUT;
    }
    return r;
}

static int change(struct check *c, uint64_t seed)
{
    uint64_t words[64];
    int r = put(c, REG_SCRATCH, seed * 0x9e3779b97f4a7c15ull, 8);

    for (unsigned i = 0; i < 64; i++)
        words[i] = (seed + i) * 0xbf58476d1ce4e5b9ull;
    for (uint32_t at = 0; r >= 0 && at < SRAM_SIZE; at += SRAM_SIZE / 8)
        r = check_write(c, BAR, SRAM + at + seed % 16 * 64, words, sizeof(words));
    return r < 0 ? r : 0;
}

static uint64_t mix(uint64_t digest, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        digest = (digest ^ bytes[i]) * 0x100000001b3ull;
    return digest;
}

static int digest(struct check *c, uint64_t *ret_digest)
{
    uint8_t bytes[4096];
    uint64_t value = 0xcbf29ce484222325ull;
    int r = check_read(c, BAR, REG_SCRATCH, bytes, 8);

    if (r >= 0)
        value = mix(value, bytes, 8);
    for (uint32_t at = 0; r >= 0 && at < SRAM_SIZE; at += sizeof(bytes)) {
        r = check_read(c, BAR, SRAM + at, bytes, sizeof(bytes));
        value = mix(value, bytes, sizeof(bytes));
    }
    *ret_digest = value;
    return r < 0 ? r : 0;
}

const struct check_workload check_workload_dma = {
    .name = "dma",
    .help = "vfmig device dma: descriptors in a ring, SRAM as internal state",
    .fits = fits,
    .set_up = set_up,
    .dma_write = dma_write,
    .dma_start = dma_start,
    .dma_start_irq = dma_start_irq,
    .dma_done = dma_done,
    .change = change,
    .digest = digest,
    .peer_region = BAR,
    .peer_offset = SRAM,
    .peer_size = SRAM_SIZE,
    .logs_changes = true,
};
