/* SPDX-License-Identifier: BSD-3-Clause */
/* Device states: what each is called, what it needs, how to get from one to another. */
#ifndef VFMIG_CORE_STATE_H
#define VFMIG_CORE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "vfmig/state.h"

/* One row of tables/states.def. */
struct vfmig_state_info {
    const char *name;    /* the RFC's word: "PRE_COPY_NDMA" */
    const char *v1_name; /* register bits: "S|N|R", "{}" for none */
    const char *v2_name; /* uAPI: "PRE_COPY_P2P" */
    uint32_t bits;       /* v1 register value, without a redundant N */
    uint32_t features;   /* VFMIG_FEATURE_* that the state needs in the feature dialect */
    const char *meaning; /* one clause for the documents */
};

/* The one checked way into the table: NULL for anything that is not a state. */
const struct vfmig_state_info *vfmig_state_info(uint32_t state);

/* Never NULL: "invalid" for anything that is not a state. */
const char *vfmig_state_name(uint32_t state);

/* The flag sets that v2 knows: STOP_COPY always, NDMA and PRE_COPY each or not. */
bool vfmig_features_valid(uint32_t features);

/* True when a device with these features has the state in the feature dialect. */
bool vfmig_state_supported(uint32_t features, uint32_t state);

/* First arc on the way from cur to want, want itself when they are the same.
 * -EINVAL: either is not a state of a device with these features, want or cur is ERROR, or the
 * way is barred (STOP_COPY to PRE_COPY*). */
int vfmig_state_next(uint32_t features, uint32_t cur, uint32_t want, enum vfmig_state *ret_next);

/* v1 register value to state. N beside !R says nothing new (C34): 8, 10 and 12 are STOP,
 * STOP_COPY and RESUMING. -EINVAL: 5, 7, 13, 14, 15 or an unknown bit (X12). 6 is ERROR. */
int vfmig_state_from_bits(uint32_t bits, enum vfmig_state *ret_state);

/* State to v1 register value, without a redundant N. -EINVAL: not a state. */
int vfmig_state_to_bits(uint32_t state, uint32_t *ret_bits);

/* May a v1 client write this value to a device with these features? ERROR never, N only with
 * NDMA (C69), SR always (C22: without pre-copy its stream is empty). 0 or -EINVAL. */
int vfmig_state_check_bits(uint32_t features, uint32_t bits);

/* No DMA may start in these bits: N, or !R (C34), or ERROR. */
static inline bool vfmig_bits_quiet(uint32_t bits)
{
    return !(bits & VFMIG_V1_RUNNING) || (bits & VFMIG_V1_NDMA);
}

#endif
