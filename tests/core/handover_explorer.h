/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef TESTS_CORE_HANDOVER_EXPLORER_H
#define TESTS_CORE_HANDOVER_EXPLORER_H

#include <stdbool.h>

#include "handover_world.h"

/* Breadth first over all reachable worlds. */
struct explorer {
    struct limits limits;
    struct world *worlds;
    uint32_t *parent;
    uint32_t *table; /* hash table of index + 1 */
    uint32_t count, room, slots;
    const char *broken; /* the property that was broken, if one was */
};

/* False when a property is broken; the way there has been printed. Call done in any case. */
bool explorer_run(struct explorer *x, uint32_t room, const struct limits *limits);
void explorer_done(struct explorer *x);
void explorer_print(const struct explorer *x, uint32_t at);
void world_print(const struct world *w);

#endif
