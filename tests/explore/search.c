/* SPDX-License-Identifier: BSD-3-Clause */
#include "search.h"

#include <stdlib.h>
#include <string.h>

static void *room_for(size_t count, size_t size)
{
    void *room = calloc(count, size);

    if (!room) {
        fprintf(stderr, "no memory\n");
        exit(2);
    }
    return room;
}

static uint64_t hash(const uint8_t *bytes, unsigned size)
{
    uint64_t h = UINT64_C(0x9e3779b97f4a7c15), word;

    for (unsigned i = 0; i < size; i += 8) {
        word = 0;
        memcpy(&word, bytes + i, size - i < 8 ? size - i : 8);
        h = (h ^ word) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 32;
    }
    return h;
}

/* Its index; a new one is added. The whole world is compared, the hash only finds it. */
static uint32_t find(struct search *x, const uint8_t *packed, uint32_t parent,
                     const struct move *by)
{
    uint32_t slot = (uint32_t)(hash(packed, x->size) & (x->slots - 1));

    for (; x->table[slot]; slot = (slot + 1) & (x->slots - 1))
        if (!memcmp(x->worlds + (size_t)(x->table[slot] - 1) * x->size, packed, x->size))
            return x->table[slot] - 1;
    if (x->count == x->scope->room) {
        x->broken = "room: more worlds than the scope has room for";
        return 0;
    }
    memcpy(x->worlds + (size_t)x->count * x->size, packed, x->size);
    x->parent[x->count] = parent;
    x->by[x->count] = *by;
    x->table[slot] = ++x->count;
    return x->count - 1;
}

static void add_edge(struct search *x, uint32_t to)
{
    if (x->edge_count == x->edge_room) {
        x->edge_room = x->edge_room ? x->edge_room * 2 : 1u << 16;
        x->edges = realloc(x->edges, (size_t)x->edge_room * sizeof(*x->edges));
        if (!x->edges) {
            fprintf(stderr, "no memory\n");
            exit(2);
        }
    }
    x->edges[x->edge_count++] = to;
}

static void found(struct search *x, const struct world *w, uint32_t at, const struct move *by)
{
    x->broken = w->broken;
    memcpy(x->detail, w->detail, sizeof(x->detail));
    x->broken_at = at;
    if (by)
        x->broken_by = *by;
    x->broken_by_move = by != NULL;
}

static void look_at_end(struct search *x, struct world *w, uint32_t at, uint8_t *is_end)
{
    if (!world_ended(w))
        return;
    is_end[at] = 1;
    x->ends++;
    x->outcomes[w->side[SRC].h.outcome][w->side[DST].h.outcome]++;
    check_end(w, x->scope);
    if (w->broken)
        found(x, w, at, NULL);
}

static void expand(struct search *x, uint32_t at, uint8_t *is_end)
{
    struct world w, next;
    struct move moves[MOVES_MAX];
    uint8_t packed[PACKED_MAX] = {0};
    unsigned count;

    world_unpack(&w, x->scope, x->worlds + (size_t)at * x->size);
    x->first_edge[at] = x->edge_count;
    look_at_end(x, &w, at, is_end);
    count = x->broken ? 0 : world_moves(&w, x->scope, moves);
    for (unsigned i = 0; i < count && !x->broken; i++) {
        next = w;
        x->transitions++;
        if (!world_move(&next, &moves[i])) {
            found(x, &next, at, &moves[i]);
            return;
        }
        world_pack(&next, packed);
        uint32_t to = find(x, packed, at, &moves[i]);
        if (to != at && !move_is_fault(&moves[i]))
            add_edge(x, to);
    }
}

/* Marks, backwards from the ends, whatever reaches one without another fault. */
static void look_for_dead_ends(struct search *x, uint8_t *reaches)
{
    uint32_t *first = room_for((size_t)x->count + 1, sizeof(*first));
    uint32_t *from = room_for((size_t)x->edge_count + 1, sizeof(*from));
    uint32_t *queue = room_for((size_t)x->count + 1, sizeof(*queue));
    uint32_t head = 0, tail = 0;

    for (uint32_t i = 0; i < x->edge_count; i++)
        first[x->edges[i]]++;
    for (uint32_t i = 0, sum = 0; i <= x->count; i++) {
        sum += i < x->count ? first[i] : 0;
        first[i] = sum; /* the end of its list, which is filled from there */
    }
    for (uint32_t at = 0; at < x->count; at++)
        for (uint32_t i = x->first_edge[at]; i < x->first_edge[at + 1]; i++)
            from[--first[x->edges[i]]] = at;
    for (uint32_t at = 0; at < x->count; at++)
        if (reaches[at])
            queue[tail++] = at;
    while (head < tail) {
        uint32_t to = queue[head++];
        for (uint32_t i = first[to]; i < first[to + 1]; i++) {
            if (!reaches[from[i]]) {
                reaches[from[i]] = 1;
                queue[tail++] = from[i];
            }
        }
    }
    for (uint32_t at = 0; at < x->count && !x->broken; at++) {
        struct world w = {0};
        if (reaches[at])
            continue;
        broke(&w, "dead-end: from everywhere an end is reached", "");
        if (w.broken)
            found(x, &w, at, NULL);
        break;
    }
    free(first);
    free(from);
    free(queue);
}

static uint32_t depth_of(const struct search *x, uint32_t at)
{
    uint32_t depth = 0;

    for (; at; at = x->parent[at])
        depth++;
    return depth;
}

bool search_run(struct search *x, const struct scope *scope)
{
    static const struct move none;
    uint8_t packed[PACKED_MAX] = {0}, *is_end = room_for(scope->room, 1);
    struct world start;

    memset(x, 0, sizeof(*x));
    x->scope = scope;
    world_start(&start, scope);
    if (start.broken)
        found(x, &start, 0, NULL);
    x->size = world_pack(&start, packed);
    for (x->slots = 1; x->slots < 2 * scope->room;)
        x->slots *= 2;
    x->worlds = room_for(scope->room, x->size);
    x->parent = room_for(scope->room, sizeof(*x->parent));
    x->by = room_for(scope->room, sizeof(*x->by));
    x->table = room_for(x->slots, sizeof(*x->table));
    x->first_edge = room_for((size_t)scope->room + 1, sizeof(*x->first_edge));
    find(x, packed, 0, &none);
    for (uint32_t at = 0; at < x->count && !x->broken; at++)
        expand(x, at, is_end);
    x->first_edge[x->count] = x->edge_count;
    x->depth = depth_of(x, x->count - 1);
    if (!x->broken)
        look_for_dead_ends(x, is_end);
    free(is_end);
    return !x->broken;
}

static void print_way_to(const struct search *x, uint32_t at, unsigned *number)
{
    struct world w;

    if (!at)
        return;
    print_way_to(x, x->parent[at], number);
    world_unpack(&w, x->scope, x->worlds + (size_t)x->parent[at] * x->size);
    printf("%4u  ", ++*number);
    move_print(&w, &x->by[at]);
}

void search_print_way(const struct search *x)
{
    unsigned number = 0;
    struct world w;

    print_way_to(x, x->broken_at, &number);
    world_unpack(&w, x->scope, x->worlds + (size_t)x->broken_at * x->size);
    if (x->broken_by_move) {
        printf("%4u  ", ++number);
        move_print(&w, &x->broken_by);
        world_move(&w, &x->broken_by);
    }
    world_print(&w);
}

void search_done(struct search *x)
{
    free(x->worlds);
    free(x->parent);
    free(x->by);
    free(x->table);
    free(x->edges);
    free(x->first_edge);
}
