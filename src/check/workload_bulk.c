/* SPDX-License-Identifier: BSD-3-Clause */
/* The `bulk` device of this project (src/devices/bulk_regs.h): blocks of state, a register that
 * writes some of them, a digest of them all. An example of a workload; the device has no DMA. */
#include "check/rule.h"

#define VENDOR         0x1b36u
#define DEVICE         0x7fd2u
#define BAR            0u
#define REG_COMMAND    0x20u
#define REG_STATUS     0x24u
#define REG_DIGEST     0x28u
#define REG_WRITE      0x38u
#define COMMAND_DIGEST 1u
#define STATUS_BUSY    1u
#define BLOCKS         61u /* written by a change, at most */

/* Which devices the workload is for. */
static bool fits(const struct check_facts *facts)
{
    return facts->pci_vendor == VENDOR && facts->pci_device == DEVICE;
}

/* The device can work at once. */
static int set_up(struct check *c)
{
    (void)c;
    return 0;
}

static int write32(struct check *c, uint64_t offset, uint32_t value)
{
    int r = check_write(c, BAR, offset, &value, sizeof(value));

    return r < 0 ? r : 0;
}

/* What a block becomes depends on how many were written before it: each write is a change. */
static int change(struct check *c, uint64_t seed)
{
    return write32(c, REG_WRITE, 1 + (uint32_t)(seed % BLOCKS));
}

/* The device makes the digest in its own time, so it is waited for. */
static int digest(struct check *c, uint64_t *ret_digest)
{
    uint32_t status = STATUS_BUSY;
    uint64_t begin = 0;
    int r = write32(c, REG_COMMAND, COMMAND_DIGEST);

    while (r >= 0) {
        r = check_read(c, BAR, REG_STATUS, &status, sizeof(status));
        if (!(status & STATUS_BUSY))
            break;
        if (r >= 0 && !check_wait(c, &begin))
            r = -ETIMEDOUT;
    }
    if (r >= 0)
        r = check_read(c, BAR, REG_DIGEST, ret_digest, sizeof(*ret_digest));
    return r < 0 ? r : 0;
}

const struct check_workload check_workload_bulk = {
    .name = "bulk",
    .help = "vfmig device bulk: blocks that are written, and a digest of them",
    .fits = fits,
    .set_up = set_up,
    .change = change,
    .digest = digest,
    .logs_changes = true,
};
