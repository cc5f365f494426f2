/* SPDX-License-Identifier: BSD-3-Clause */
/* Loading device state: frames with right checksums and hostile payloads, in both dialects. */
#include "devices.h"
#include "target.h"

const struct fuzz_target fuzz_target = {
    .name = "state",
    .variants = {VARIANT_DMA, VARIANT_NULL, VARIANT_BULK, VARIANT_DMA_PLAIN},
    .weights = {{[OP_SEND] = 3,
                 [OP_ANSWER] = 1,
                 [OP_POKE] = 1,
                 [OP_TIME] = 1,
                 [OP_RECONNECT] = 1,
                 [OP_STATE] = 10,
                 [OP_FRAME] = 14,
                 [OP_PAGES] = 6,
                 [OP_SAVE] = 4,
                 [OP_BACK] = 4}},
    .must_reach = BIT(REACH_REPLIES) | BIT(REACH_REFUSALS) | BIT(REACH_FRAMES) | BIT(REACH_LOADS) |
                  BIT(REACH_SAVES) | BIT(REACH_ERRORS),
};
