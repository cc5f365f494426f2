/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest memory and the client's control of it: rings, maps, the log, interrupts, DMA by message
 * with answers of every kind. */
#include "devices.h"
#include "target.h"

const struct fuzz_target fuzz_target = {
    .name = "dma",
    .variants = {VARIANT_DMA, VARIANT_POOL, VARIANT_DMA_SLOW, VARIANT_POOL_PLAIN},
    .weights = {{[OP_SEND] = 24,
                 [OP_ANSWER] = 14,
                 [OP_POKE] = 10,
                 [OP_TRUNCATE] = 3,
                 [OP_TIME] = 3,
                 [OP_RECONNECT] = 1,
                 [OP_STATE] = 5,
                 [OP_SAVE] = 1,
                 [OP_BACK] = 1}},
    .must_reach = BIT(REACH_REPLIES) | BIT(REACH_REFUSALS) | BIT(REACH_MAPS) | BIT(REACH_UNMAPS) |
                  BIT(REACH_BITMAPS) | BIT(REACH_REPORTS) | BIT(REACH_DMA_MESSAGES) |
                  BIT(REACH_ANSWERS) | BIT(REACH_TWIN) | BIT(REACH_FDS) | BIT(REACH_GUEST_WRITES),
};
