/* SPDX-License-Identifier: BSD-3-Clause */
/* A control client beside the owner, both hostile: rights, sessions that end and are taken over, freeze,
 * hold, lists; and memory shared with either that is written at any time. */
#include "devices.h"
#include "target.h"

const struct fuzz_target fuzz_target = {
    .name = "control",
    .variants = {VARIANT_DMA_CONTROL, VARIANT_BULK_CONTROL, VARIANT_SLOW_CONTROL,
                 VARIANT_POOL_CONTROL},
    .weights = {{[OP_SEND] = 10,
                 [OP_ANSWER] = 6,
                 [OP_POKE] = 4,
                 [OP_TIME] = 2,
                 [OP_RECONNECT] = 1,
                 [OP_STATE] = 3,
                 [OP_SAVE] = 1,
                 [OP_BACK] = 1,
                 [OP_CONTROL] = 5,
                 [OP_ASIDE] = 24,
                 [OP_WINDOW] = 3}},
    .must_reach = BIT(REACH_REPLIES) | BIT(REACH_REFUSALS) | BIT(REACH_SESSIONS) | BIT(REACH_ENDED) |
                  BIT(REACH_ASIDE) | BIT(REACH_LISTS) | BIT(REACH_FROZEN) | BIT(REACH_WINDOWS) |
                  BIT(REACH_WINDOW_DATA) | BIT(REACH_DMA_MESSAGES) | BIT(REACH_ANSWERS),
};
