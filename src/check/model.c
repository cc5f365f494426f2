/* SPDX-License-Identifier: BSD-3-Clause */
/* What the v2 uAPI says about arcs, worked out anew from the list of arcs that a driver has and the
 * rule behind the kernel's table: the shortest path, saving states only as ends, except that
 * PRE_COPY reaches STOP_COPY through PRE_COPY_P2P. It is not the table that our devices use. */
#include "check/rule.h"

struct arc {
    uint8_t from, to;
    uint8_t with, without; /* features that it needs, that it must not have */
};

#define P2P VFMIG_FEATURE_NDMA
#define PRE VFMIG_FEATURE_PRE_COPY
static const struct arc arcs[] = {
    {VFMIG_STATE_RESUMING, VFMIG_STATE_STOP, 0, 0},
    {VFMIG_STATE_STOP, VFMIG_STATE_RESUMING, 0, 0},
    {VFMIG_STATE_STOP, VFMIG_STATE_STOP_COPY, 0, 0},
    {VFMIG_STATE_STOP_COPY, VFMIG_STATE_STOP, 0, 0},
    {VFMIG_STATE_RUNNING, VFMIG_STATE_STOP, 0, P2P},
    {VFMIG_STATE_STOP, VFMIG_STATE_RUNNING, 0, P2P},
    {VFMIG_STATE_RUNNING, VFMIG_STATE_RUNNING_NDMA, P2P, 0},
    {VFMIG_STATE_RUNNING_NDMA, VFMIG_STATE_RUNNING, P2P, 0},
    {VFMIG_STATE_RUNNING_NDMA, VFMIG_STATE_STOP, P2P, 0},
    {VFMIG_STATE_STOP, VFMIG_STATE_RUNNING_NDMA, P2P, 0},
    {VFMIG_STATE_RUNNING, VFMIG_STATE_PRE_COPY, PRE, 0},
    {VFMIG_STATE_PRE_COPY, VFMIG_STATE_RUNNING, PRE, 0},
    {VFMIG_STATE_PRE_COPY, VFMIG_STATE_STOP_COPY, PRE, P2P},
    {VFMIG_STATE_PRE_COPY, VFMIG_STATE_PRE_COPY_NDMA, P2P | PRE, 0},
    {VFMIG_STATE_PRE_COPY_NDMA, VFMIG_STATE_PRE_COPY, P2P | PRE, 0},
    {VFMIG_STATE_PRE_COPY_NDMA, VFMIG_STATE_RUNNING_NDMA, P2P | PRE, 0},
    {VFMIG_STATE_RUNNING_NDMA, VFMIG_STATE_PRE_COPY_NDMA, P2P | PRE, 0},
    {VFMIG_STATE_PRE_COPY_NDMA, VFMIG_STATE_STOP_COPY, P2P | PRE, 0},
};
#define ARC_COUNT (sizeof(arcs) / sizeof(arcs[0]))

static bool saving(unsigned state)
{
    return state == VFMIG_STATE_PRE_COPY || state == VFMIG_STATE_PRE_COPY_NDMA ||
           state == VFMIG_STATE_STOP_COPY;
}

static bool pre_copy(unsigned state)
{
    return state == VFMIG_STATE_PRE_COPY || state == VFMIG_STATE_PRE_COPY_NDMA;
}

static bool exists(uint64_t features, unsigned state)
{
    if (state == VFMIG_STATE_ERROR || state >= VFMIG_STATE_COUNT)
        return false;
    if ((state == VFMIG_STATE_RUNNING_NDMA || state == VFMIG_STATE_PRE_COPY_NDMA) &&
        !(features & P2P))
        return false;
    return !pre_copy(state) || features & PRE;
}

/* Arcs from state to the end, where the states between are allowed; UINT32_MAX: no way. */
static unsigned distance(uint64_t features, unsigned state, unsigned to, unsigned depth)
{
    unsigned best = UINT32_MAX;

    if (state == to)
        return 0;
    if (depth == 0)
        return best;
    for (size_t i = 0; i < ARC_COUNT; i++) {
        const struct arc *arc = &arcs[i];
        if (arc->from != state || (features & arc->with) != arc->with || features & arc->without)
            continue;
        bool inside = arc->to == to || !saving(arc->to) ||
                      (arc->to == VFMIG_STATE_PRE_COPY_NDMA && state == VFMIG_STATE_PRE_COPY &&
                       to == VFMIG_STATE_STOP_COPY);
        if (!inside)
            continue;
        unsigned rest = distance(features, arc->to, to, depth - 1);
        if (rest != UINT32_MAX && rest + 1 < best)
            best = rest + 1;
    }
    return best;
}

unsigned check_model_next(uint64_t features, unsigned from, unsigned to)
{
    unsigned best = UINT32_MAX, next = CHECK_STATE_NONE;

    if (!exists(features, from) || !exists(features, to))
        return CHECK_STATE_NONE;
    if (from == to)
        return to;
    if (from == VFMIG_STATE_STOP_COPY && pre_copy(to))
        return CHECK_STATE_NONE; /* a stream that goes backwards */
    for (unsigned via = 0; via < VFMIG_STATE_COUNT; via++) {
        bool arc = false;
        for (size_t i = 0; i < ARC_COUNT; i++)
            arc =
                arc || (arcs[i].from == from && arcs[i].to == via &&
                        (features & arcs[i].with) == arcs[i].with && !(features & arcs[i].without));
        bool inside = via == to || !saving(via) ||
                      (via == VFMIG_STATE_PRE_COPY_NDMA && from == VFMIG_STATE_PRE_COPY &&
                       to == VFMIG_STATE_STOP_COPY);
        if (!arc || !inside)
            continue;
        unsigned rest = distance(features, via, to, 5);
        if (rest < best) {
            best = rest;
            next = via;
        }
    }
    return next;
}

bool check_model_on_path(uint64_t features, unsigned from, unsigned to, unsigned state)
{
    for (unsigned hops = 0; hops < VFMIG_STATE_COUNT; hops++) {
        if (state == from)
            return true;
        if (from == to)
            return false;
        from = check_model_next(features, from, to);
        if (from == CHECK_STATE_NONE)
            return false;
    }
    return false;
}
