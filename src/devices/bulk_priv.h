/* SPDX-License-Identifier: BSD-3-Clause */
/* The bulk device's object, shared by its two files: registers and writer, and migration. */
#ifndef VFMIG_DEVICES_BULK_PRIV_H
#define VFMIG_DEVICES_BULK_PRIV_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bitmap.h"
#include "devices/bulk_regs.h"
#include "devices/devices.h"

#define BULK_NOWHERE UINT64_MAX

/* Registers: all of the device's state but the blocks. */
struct bulk_regs {
    uint64_t written;
    uint64_t select;
    uint64_t digest;
    uint64_t digest_at;
    uint32_t ctrl;
    uint32_t status;
};

struct bulk_device {
    struct vfmig_device *dev;
    uint64_t rate; /* bytes per second that it writes by itself */
    uint64_t blocks;
    uint64_t inverse; /* bulk_inverse(blocks) */
    struct bulk_regs regs;
    /* Address space for all blocks; pages exist for those in present. The others are as at power
     * on, which bulk_word() says. */
    uint8_t *memory;
    uint64_t *present;

    uint64_t credit; /* bytes that the writer owes, as of writer_at */
    uint64_t writer_at;
    uint64_t digest_next; /* block that the digest being made comes to next */
    uint64_t digest_sum;

    /* Saving. */
    uint64_t *dirty; /* blocks to be sent */
    uint64_t dirty_count;
    uint64_t cursor;    /* block where the search for a dirty one goes on */
    uint64_t save_next; /* byte where a block goes on that did not fit, or BULK_NOWHERE */
    bool logging, saving;
    bool size_saved, regs_saved;
    /* Loading. */
    uint64_t *loaded; /* blocks that came whole */
    uint64_t load_next; /* as save_next */
    bool size_loaded, regs_loaded;
};

/* bulk.c: bytes [offset, offset + size) of a block, multiples of 8, aligned. */
void bulk_block_copy(const struct bulk_device *b, uint64_t block, uint32_t offset, void *to,
                     uint32_t size);
void bulk_arm(struct bulk_device *b);
bool bulk_regs_valid(const struct bulk_device *b, const struct bulk_regs *regs);

/* bulk_state.c: the callbacks of a migration. */
void bulk_state_ops(struct vfmig_device_ops *ops);
void bulk_state_reset(struct bulk_device *b);

static inline void bulk_touch(struct bulk_device *b, uint64_t block)
{
    if (vfmig_bitmap_test(b->dirty, block))
        return;
    vfmig_bitmap_set(b->dirty, block);
    b->dirty_count++;
}

#endif
