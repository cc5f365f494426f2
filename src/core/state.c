/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/state.h"

#include <errno.h>
#include <stddef.h>

#include "base/sabotage.h"

static const struct vfmig_state_info infos[VFMIG_STATE_COUNT] = {
#define STATE(name, v1, v2, bits, features, meaning)                                               \
    [VFMIG_STATE_##name] = {#name, v1, v2, bits, features, meaning},
#include "tables/states.def"
};

static const uint8_t next_hops[VFMIG_STATE_COUNT][VFMIG_STATE_COUNT] = {
#define HOP(name) VFMIG_STATE_##name
#define NEXT_HOP(from, e, s, r, c, z, n, p, q)                                                     \
    [VFMIG_STATE_##from] = {HOP(e), HOP(s), HOP(r), HOP(c), HOP(z), HOP(n), HOP(p), HOP(q)},
#include "tables/next_hop.def"
};

const struct vfmig_state_info *vfmig_state_info(uint32_t state)
{
    if (vfmig_sabotage("state-accessor-bound"))
        return &infos[state % VFMIG_STATE_COUNT];
    return state < VFMIG_STATE_COUNT ? &infos[state] : NULL;
}

const char *vfmig_state_name(uint32_t state)
{
    const struct vfmig_state_info *info = vfmig_state_info(state);

    return info ? info->name : "invalid";
}

bool vfmig_features_valid(uint32_t features)
{
    uint32_t known = VFMIG_FEATURE_STOP_COPY | VFMIG_FEATURE_NDMA | VFMIG_FEATURE_PRE_COPY;

    return (features & VFMIG_FEATURE_STOP_COPY) && !(features & ~known);
}

bool vfmig_state_supported(uint32_t features, uint32_t state)
{
    const struct vfmig_state_info *info = vfmig_state_info(state);

    if (info && vfmig_sabotage("state-hidden-offered"))
        return true;
    return info && vfmig_features_valid(features) && (info->features & ~features) == 0;
}

int vfmig_state_next(uint32_t features, uint32_t cur, uint32_t want, enum vfmig_state *ret_next)
{
    if (cur == VFMIG_STATE_ERROR || want == VFMIG_STATE_ERROR ||
        !vfmig_state_supported(features, cur) || !vfmig_state_supported(features, want))
        return -EINVAL;
    uint32_t hop = next_hops[cur][want];
    /* Each look-up is one hop nearer to want, which is supported: the loop ends. */
    while (!vfmig_state_supported(features, hop))
        hop = next_hops[hop][want];
    if (hop == VFMIG_STATE_ERROR)
        return -EINVAL;
    *ret_next = (enum vfmig_state)hop;
    return 0;
}

int vfmig_state_from_bits(uint32_t bits, enum vfmig_state *ret_state)
{
    if (bits == (VFMIG_V1_NDMA | VFMIG_V1_ERROR))
        return -EINVAL; /* 14: ERROR is 6 exactly */
    if (!(bits & VFMIG_V1_RUNNING))
        bits &= ~VFMIG_V1_NDMA;
    for (uint32_t state = 0; state < VFMIG_STATE_COUNT; state++) {
        if (infos[state].bits == bits) {
            *ret_state = (enum vfmig_state)state;
            return 0;
        }
    }
    return -EINVAL;
}

int vfmig_state_to_bits(uint32_t state, uint32_t *ret_bits)
{
    const struct vfmig_state_info *info = vfmig_state_info(state);

    if (!info)
        return -EINVAL;
    *ret_bits = info->bits;
    return 0;
}

int vfmig_state_check_bits(uint32_t features, uint32_t bits)
{
    enum vfmig_state state;

    if (vfmig_sabotage("state-mask-unknown"))
        bits &= VFMIG_V1_MASK;
    if (vfmig_state_from_bits(bits, &state) != 0 || state == VFMIG_STATE_ERROR)
        return -EINVAL;
    if ((bits & VFMIG_V1_NDMA) && !(features & VFMIG_FEATURE_NDMA) &&
        !vfmig_sabotage("state-n-always"))
        return -EINVAL;
    return 0;
}
