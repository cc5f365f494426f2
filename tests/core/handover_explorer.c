/* SPDX-License-Identifier: BSD-3-Clause */
#include "handover_explorer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t hash_world(const struct world *w)
{
    const unsigned char *p = (const unsigned char *)w;
    uint64_t h = 1469598103934665603u;

    for (size_t i = 0; i + 8 <= sizeof(*w); i += 8) {
        uint64_t word;
        memcpy(&word, p + i, 8);
        h = (h ^ word) * 1099511628211u;
        h ^= h >> 29;
    }
    return h;
}

static void add_world(struct explorer *x, const struct world *w, uint32_t parent)
{
    uint32_t slot = (uint32_t)(hash_world(w) & (x->slots - 1));

    for (; x->table[slot]; slot = (slot + 1) & (x->slots - 1))
        if (!memcmp(&x->worlds[x->table[slot] - 1], w, sizeof(*w)))
            return;
    if (x->count == x->room)
        x->broken = "more worlds than there is room for";
    if (x->broken)
        return;
    x->worlds[x->count] = *w;
    x->parent[x->count] = parent;
    x->table[slot] = ++x->count;
}

void world_print(const struct world *w)
{
    for (unsigned side = 0; side < 2; side++) {
        const struct side *me = &w->side[side];
        printf("  %s %-12s rec=%s pend=%s disk=%s e=%u mem=%u run=%u out=%s |",
               me->alive ? "alive" : "dead ", vfmig_ho_state_name(me->h.state),
               vfmig_ho_record_name(me->h.record), vfmig_ho_record_name(me->h.pending),
               vfmig_ho_record_name(me->disk), me->h.epoch, me->h.memory, me->runs,
               vfmig_ho_outcome_name(me->h.outcome));
    }
    printf("\n");
}

void explorer_print(const struct explorer *x, uint32_t at)
{
    if (at)
        explorer_print(x, x->parent[at]);
    world_print(&x->worlds[at]);
}

bool explorer_run(struct explorer *x, uint32_t room, const struct limits *limits)
{
    struct world start;

    memset(x, 0, sizeof(*x));
    x->limits = *limits;
    x->room = room;
    for (x->slots = 1; x->slots < 2 * room;)
        x->slots *= 2;
    x->worlds = calloc(room, sizeof(*x->worlds));
    x->parent = calloc(room, sizeof(*x->parent));
    x->table = calloc(x->slots, sizeof(*x->table));
    world_start(&start, limits);
    add_world(x, &start, 0);
    for (uint32_t at = 0; at < x->count && !x->broken; at++) {
        struct move moves[MOVES_MAX];
        unsigned count = world_moves(&x->worlds[at], limits, moves);
        for (unsigned i = 0; i < count && !x->broken; i++) {
            struct world next = x->worlds[at];
            const char *broken = world_make(&next, &moves[i]);
            if (broken) {
                char text[80];
                explorer_print(x, at);
                world_print(&next);
                printf("  by %s\n", move_text(&moves[i], text, sizeof(text)));
                x->broken = broken;
            }
            add_world(x, &next, at);
        }
    }
    return !x->broken;
}

void explorer_done(struct explorer *x)
{
    free(x->worlds);
    free(x->parent);
    free(x->table);
}

void world_each(const struct limits *limits, void (*visit)(const struct world *w, void *opaque),
                void *opaque)
{
    struct explorer x;

    if (!explorer_run(&x, /* room= */ 100000, limits))
        exit(1);
    for (uint32_t i = 0; i < x.count; i++)
        visit(&x.worlds[i], opaque);
    explorer_done(&x);
}
