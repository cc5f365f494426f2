/* SPDX-License-Identifier: BSD-3-Clause */
/* The bulk device: registers, the writer that changes its state, and the digest of it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/crc32c.h"
#include "base/sabotage.h"
#include "devices/bulk_priv.h"

#define TIMER_WRITER   0u
#define TIMER_DIGEST   1u
#define WRITER_NS      5000000u   /* the writer looks at the clock this often */
#define WRITER_LATE_NS 100000000u /* and catches up with so much at most */
#define WRITER_BLOCKS  1024u      /* in a row, before the sockets are looked at again */
#define DIGEST_BLOCKS  1024u

/* ---- blocks ---------------------------------------------------------------------------------- */

static void make_words(uint64_t block, uint64_t sequence, uint32_t first, uint64_t *to,
                       uint32_t count)
{
    uint64_t seed = bulk_seed(block, sequence);
    uint32_t i = 0;

    for (; i < count && first + i < 2; i++)
        to[i] = bulk_word(block, sequence, first + i);
    for (; i < count; i++)
        to[i] = seed + (first + i) * BULK_STEP;
}

void bulk_block_copy(const struct bulk_device *b, uint64_t block, uint32_t offset, void *to,
                     uint32_t size)
{
    if (vfmig_bitmap_test(b->present, block))
        memcpy(to, b->memory + block * BULK_BLOCK + offset, size);
    else
        make_words(block, 0, offset / 8, to, size / 8);
}

static void restart_digest(struct bulk_device *b)
{
    b->digest_next = b->digest_sum = 0;
}

static void write_blocks(struct bulk_device *b, uint64_t count)
{
    for (; count; count--) {
        uint64_t sequence = ++b->regs.written, block = bulk_block_of(b->blocks, sequence);
        make_words(block, sequence, 0, (uint64_t *)(b->memory + block * BULK_BLOCK),
                   BULK_BLOCK_WORDS);
        vfmig_bitmap_set(b->present, block);
        if (!vfmig_sabotage("bulk-change-unlogged"))
            bulk_touch(b, block);
    }
    restart_digest(b);
}

/* ---- what happens in time -------------------------------------------------------------------- */

static bool writes(const struct bulk_device *b)
{
    return b->rate && (b->regs.ctrl & BULK_CTRL_RUN) && !(b->regs.status & BULK_STATUS_BUSY);
}

/* Timers from now on: after a reset, a start, and whatever lets the writer go on. */
void bulk_arm(struct bulk_device *b)
{
    b->writer_at = vfmig_device_now_ns();
    vfmig_device_timer(b->dev, TIMER_WRITER, writes(b) ? b->writer_at + WRITER_NS : UINT64_MAX);
    vfmig_device_timer(b->dev, TIMER_DIGEST, b->regs.status & BULK_STATUS_BUSY ? 0 : UINT64_MAX);
}

static void run_writer(struct bulk_device *b)
{
    uint64_t now = vfmig_device_now_ns(), elapsed = now - b->writer_at;

    if (!writes(b))
        return;
    elapsed = elapsed < WRITER_LATE_NS ? elapsed : WRITER_LATE_NS;
    b->credit += b->rate / 1000 * (elapsed / 1000) / 1000;
    b->writer_at = now;
    uint64_t due = b->credit / BULK_BLOCK;
    uint64_t count = due < WRITER_BLOCKS ? due : WRITER_BLOCKS;
    write_blocks(b, count);
    b->credit -= count * BULK_BLOCK;
    if (b->credit > b->rate / 10 + BULK_BLOCK) /* it cannot be so fast: what is late is forgotten */
        b->credit = b->rate / 10 + BULK_BLOCK;
    vfmig_device_timer(b->dev, TIMER_WRITER, due > count ? 0 : now + WRITER_NS);
}

/* The digest is of bytes as they are in memory, never of what they should be. */
static void run_digest(struct bulk_device *b)
{
    uint64_t bytes[BULK_BLOCK_WORDS];
    uint64_t end =
        b->blocks - b->digest_next < DIGEST_BLOCKS ? b->blocks : b->digest_next + DIGEST_BLOCKS;

    if (!(b->regs.status & BULK_STATUS_BUSY))
        return;
    for (; b->digest_next < end; b->digest_next++) {
        const void *block = b->memory + b->digest_next * BULK_BLOCK;
        if (!vfmig_bitmap_test(b->present, b->digest_next)) {
            bulk_block_copy(b, b->digest_next, 0, bytes, BULK_BLOCK);
            block = bytes;
        }
        b->digest_sum =
            bulk_digest_add(b->digest_sum, b->digest_next, vfmig_crc32c(0, block, BULK_BLOCK));
    }
    if (end < b->blocks) {
        vfmig_device_timer(b->dev, TIMER_DIGEST, 0);
        return;
    }
    b->regs.digest = b->digest_sum;
    b->regs.digest_at = b->regs.written;
    b->regs.status &= ~BULK_STATUS_BUSY;
    bulk_arm(b);
}

static void on_timer(void *user, uint32_t timer)
{
    if (timer == TIMER_WRITER)
        run_writer(user);
    else
        run_digest(user);
}

/* ---- registers ------------------------------------------------------------------------------- */

bool bulk_regs_valid(const struct bulk_device *b, const struct bulk_regs *r)
{
    return r->select < b->blocks && !(r->ctrl & ~BULK_CTRL_RUN) &&
           !(r->status & ~BULK_STATUS_BUSY) && r->digest_at <= r->written;
}

static uint64_t read_register(const struct bulk_device *b, uint64_t offset)
{
    const struct bulk_regs *r = &b->regs;

    switch (offset) {
    case BULK_REG_ID:
        return BULK_ID | (uint64_t)r->ctrl << 32;
    case BULK_REG_SIZE:
        return b->blocks * BULK_BLOCK;
    case BULK_REG_WRITTEN:
        return r->written;
    case BULK_REG_RATE:
        return b->rate;
    case BULK_REG_COMMAND:
        return (uint64_t)r->status << 32;
    case BULK_REG_DIGEST:
        return r->digest;
    case BULK_REG_DIGEST_AT:
        return r->digest_at;
    case BULK_REG_SELECT:
        return r->select;
    default:
        return 0;
    }
}

static int region_read(void *user, uint32_t bar, uint64_t offset, void *data, uint32_t size)
{
    const struct bulk_device *b = user;
    uint64_t word;

    memset(data, 0, size);
    if (size > 8 || (size & (size - 1)) || offset % size || (size < 4 && offset < BULK_WINDOW))
        return 0;
    if (offset >= BULK_WINDOW)
        bulk_block_copy(b, b->regs.select, (uint32_t)(offset - BULK_WINDOW) & ~7u, &word, 8);
    else
        word = read_register(b, offset & ~7ull);
    word >>= offset % 8 * 8;
    memcpy(data, &word, size);
    return 0;
}

static int region_write(void *user, uint32_t bar, uint64_t offset, const void *data, uint32_t size)
{
    struct bulk_device *b = user;
    uint64_t value = 0;

    if ((size != 4 && size != 8) || offset % size)
        return 0;
    memcpy(&value, data, size);
    switch (offset) {
    case BULK_REG_CTRL:
        b->regs.ctrl = (uint32_t)value & BULK_CTRL_RUN;
        bulk_arm(b);
        break;
    case BULK_REG_COMMAND:
        if ((uint32_t)value != BULK_COMMAND_DIGEST)
            break;
        b->regs.status |= BULK_STATUS_BUSY;
        restart_digest(b);
        bulk_arm(b);
        break;
    case BULK_REG_WRITE:
        value = (uint32_t)value;
        write_blocks(b, value < BULK_WRITE_MAX ? value : BULK_WRITE_MAX);
        break;
    case BULK_REG_SELECT:
        if (value < b->blocks)
            b->regs.select = value;
        break;
    }
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------ */

static void forget(struct bulk_device *b)
{
    memset(b->present, 0, vfmig_bitmap_words(b->blocks) * 8);
    b->regs = (struct bulk_regs){.ctrl = BULK_CTRL_RUN};
    b->credit = 0;
    restart_digest(b);
    bulk_state_reset(b);
}

/* The pages go back to the system. Should that fail they stay, which nobody can see. */
static void reset(void *user)
{
    struct bulk_device *b = user;

    madvise(b->memory, b->blocks * BULK_BLOCK, MADV_DONTNEED);
    forget(b);
    bulk_arm(b);
}

static void bulk_free(void *user)
{
    struct bulk_device *b = user;

    if (b->memory)
        munmap(b->memory, b->blocks * BULK_BLOCK);
    free(b->present);
    free(b->dirty);
    free(b->loaded);
    free(b);
}

static struct bulk_device *bulk_alloc(const struct vfmig_device_knobs *knobs)
{
    struct bulk_device *b = calloc(1, sizeof(*b));

    if (!b)
        return NULL;
    b->blocks = (knobs->state_bytes ? knobs->state_bytes : VFMIG_BULK_STATE_DEFAULT) / BULK_BLOCK;
    b->inverse = bulk_inverse(b->blocks);
    b->rate = knobs->dirty_rate;
    b->present = calloc(vfmig_bitmap_words(b->blocks), 8);
    b->dirty = calloc(vfmig_bitmap_words(b->blocks), 8);
    b->loaded = calloc(vfmig_bitmap_words(b->blocks), 8);
    /* Pages come with the first write to each, and are not reserved before. */
    void *memory = mmap(NULL, b->blocks * BULK_BLOCK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    b->memory = memory == MAP_FAILED ? NULL : memory;
    if (b->present && b->dirty && b->loaded && b->memory)
        return b;
    bulk_free(b);
    return NULL;
}

int vfmig_bulk_device_new(const struct vfmig_device_knobs *knobs, struct vfmig_device **ret_dev,
                          struct vfmig_error *reterr)
{
    struct vfmig_device_config config = VFMIG_DEVICE_CONFIG_INIT;
    struct vfmig_device_ops ops = VFMIG_DEVICE_OPS_INIT;

    if (knobs->state_bytes % BULK_BLOCK || knobs->state_bytes > VFMIG_BULK_STATE_MAX)
        return vfmig_error_set(reterr, -EINVAL, VFMIG_ORIGIN_LOCAL, 0,
                               "--state-size: the bulk device takes multiples of 4K up to 64G");
    struct bulk_device *b = bulk_alloc(knobs);
    if (!b)
        return vfmig_error_set(reterr, -ENOMEM, VFMIG_ORIGIN_LOCAL, 0,
                               "no memory for a state of %llu bytes",
                               (unsigned long long)knobs->state_bytes);
    forget(b);
    config.name = "bulk";
    config.pci_vendor = BULK_PCI_VENDOR;
    config.pci_device = BULK_PCI_DEVICE;
    config.bars[BULK_BAR].size = BULK_BAR_SIZE;
    config.answers_stopped = true; /* only the timers wait */
    config.state_version = 1;
    config.state_oldest = 1;
    ops.region_read = region_read;
    ops.region_write = region_write;
    ops.reset = reset;
    ops.timer = on_timer;
    ops.free = bulk_free;
    bulk_state_ops(&ops);
    int r = vfmig_device_new_with_knobs(knobs, &config, &ops, b, ret_dev, reterr);
    if (r < 0)
        return r;
    b->dev = *ret_dev;
    bulk_arm(b);
    return 0;
}
