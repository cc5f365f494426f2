/* SPDX-License-Identifier: BSD-3-Clause */
/* Breadth first over all worlds of a scope: the first world that breaks a property is one of those
 * with the fewest moves. Then backwards from the ends: a world from which no end is reached without
 * another fault is a dead end. */
#ifndef TESTS_EXPLORE_SEARCH_H
#define TESTS_EXPLORE_SEARCH_H

#include <stdio.h>

#include "world.h"

struct search {
    const struct scope *scope;
    unsigned size;    /* bytes of a packed world */
    uint8_t *worlds;  /* packed, in the order of their discovery */
    uint32_t *parent; /* the world that it was first reached from */
    struct move *by;  /* and the move */
    uint32_t *table;  /* hash table of index + 1 */
    uint32_t slots;
    uint32_t count;
    uint32_t *edges; /* moves that are no faults: their worlds, in the order of `first_edge` */
    uint32_t *first_edge;
    uint32_t edge_count, edge_room;
    uint64_t transitions;
    uint32_t ends, depth;
    uint32_t outcomes[VFMIG_HO_OUTCOME_COUNT]
                     [VFMIG_HO_OUTCOME_COUNT]; /* of ends: source, destination */
    const char *broken;                        /* NULL: every property holds */
    char detail[96];
    uint32_t broken_at;
    struct move broken_by;
    bool broken_by_move;
};

/* False when a property is broken, or there is no room. */
bool search_run(struct search *x, const struct scope *scope);
void search_print_way(const struct search *x);
void search_done(struct search *x);

#endif
