/* SPDX-License-Identifier: BSD-3-Clause */
/* The programming interface of the `bulk` device: a PCI function whose only purpose is to have much
 * internal state, and to change it by itself. Shared by the device, the reference guest
 * (freestanding: only fixed-size integers here) and the tests. All registers are little-endian.
 *
 * The state is BULK_REG_SIZE bytes in blocks of 4096. It is written block by block in a fixed order
 * that meets every block once before it meets one again; the n-th write since reset leaves
 * bulk_word() of sequence n in its block. So the number of writes alone says what every byte must
 * be: a block that a migration lost, or brought from an earlier moment, shows. */
#ifndef VFMIG_DEVICES_BULK_REGS_H
#define VFMIG_DEVICES_BULK_REGS_H

#include <stdint.h>

#define BULK_PCI_VENDOR  0x1b36u /* with a device number nobody uses: experimental */
#define BULK_PCI_DEVICE  0x7fd2u
#define BULK_BAR         0u
#define BULK_BAR_SIZE    0x2000u
#define BULK_BLOCK       4096u
#define BULK_BLOCK_WORDS (BULK_BLOCK / 8)

/* Registers, 4 or 8 bytes at their natural alignment. */
#define BULK_REG_ID        0x00u /* ro u32: BULK_ID */
#define BULK_REG_CTRL      0x04u /* rw u32: BULK_CTRL_RUN, the device writes by itself; set by reset */
#define BULK_REG_SIZE      0x08u /* ro u64: bytes of state */
#define BULK_REG_WRITTEN   0x10u /* ro u64: blocks written since reset */
#define BULK_REG_RATE      0x18u /* ro u64: bytes it writes each second by itself; no state */
#define BULK_REG_COMMAND   0x20u /* wo u32: BULK_COMMAND_DIGEST */
#define BULK_REG_STATUS    0x24u /* ro u32: BULK_STATUS_BUSY: a digest is being made; no own writes */
#define BULK_REG_DIGEST    0x28u /* ro u64: bulk_digest_add() over all blocks, when last made */
#define BULK_REG_DIGEST_AT 0x30u /* ro u64: WRITTEN at that time */
#define BULK_REG_WRITE     0x38u /* wo u32: write so many blocks now, BULK_WRITE_MAX at most */
#define BULK_REG_SELECT    0x40u /* rw u64: block that the window shows */
#define BULK_WINDOW        0x1000u /* ro: the bytes of that block, at 1, 2, 4, 8 bytes */
#define BULK_ID             0x4b4c4256u /* "VBLK" */
#define BULK_CTRL_RUN       1u
#define BULK_COMMAND_DIGEST 1u
#define BULK_STATUS_BUSY    1u
#define BULK_WRITE_MAX      4096u

/* A prime above every number of blocks, so that its multiples meet each block once. */
#define BULK_STRIDE UINT64_C(4294967291)

/* Block of write number `sequence` (from 1) among `blocks` (at most 2^31). */
static inline uint64_t bulk_block_of(uint64_t blocks, uint64_t sequence)
{
    return (sequence - 1) % blocks * (BULK_STRIDE % blocks) % blocks;
}

/* The number that times BULK_STRIDE is 1, modulo blocks: finds a block's place in the order. */
static inline uint64_t bulk_inverse(uint64_t blocks)
{
    int64_t r = (int64_t)blocks, next_r = (int64_t)(BULK_STRIDE % blocks), t = 0, next_t = 1;

    while (next_r) {
        int64_t q = r / next_r, keep = next_r;
        next_r = r - q * next_r;
        r = keep;
        keep = next_t;
        next_t = t - q * next_t;
        t = keep;
    }
    return blocks == 1 ? 0 : (uint64_t)(t < 0 ? t + (int64_t)blocks : t);
}

/* Sequence of the last write to a block after `written` writes; 0: never. inverse: bulk_inverse. */
static inline uint64_t bulk_sequence(uint64_t blocks, uint64_t inverse, uint64_t block,
                                     uint64_t written)
{
    uint64_t place = block * inverse % blocks, cycles = written / blocks;

    if (place < written % blocks)
        cycles++;
    return cycles ? (cycles - 1) * blocks + place + 1 : 0;
}

static inline uint64_t bulk_mix(uint64_t x)
{
    x = (x ^ (x >> 32)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 29)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 32);
}

/* Words 2 and on of a block are bulk_seed() + i * BULK_STEP; words 0 and 1 say who it is. */
#define BULK_STEP UINT64_C(0x9e3779b97f4a7c15)

static inline uint64_t bulk_seed(uint64_t block, uint64_t sequence)
{
    return bulk_mix(bulk_mix(block) ^ sequence);
}

/* Word `i` of a block after its write number `sequence` (0: as at power on). */
static inline uint64_t bulk_word(uint64_t block, uint64_t sequence, uint32_t i)
{
    return i == 0 ? block : i == 1 ? sequence : bulk_seed(block, sequence) + i * BULK_STEP;
}

/* The digest with one more block, whose bytes have this CRC-32C. Any order will do. */
static inline uint64_t bulk_digest_add(uint64_t digest, uint64_t block, uint32_t crc)
{
    return digest + bulk_mix(bulk_mix(block) ^ crc);
}

#endif
