/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/pace.h"

#define SECOND_NS UINT64_C(1000000000)

void vfmig_pace_set(struct vfmig_pace *pace, uint64_t rate)
{
    if (rate == pace->rate)
        return;
    pace->rate = rate;
    pace->rest = 0;
}

uint64_t vfmig_pace_take(struct vfmig_pace *pace, uint64_t bytes, uint64_t now_ns)
{
    uint64_t oldest = now_ns > VFMIG_PACE_CREDIT_NS ? now_ns - VFMIG_PACE_CREDIT_NS : 0;
    uint64_t take_ns;

    if (!pace->rate)
        return now_ns;
    if (pace->next_ns < oldest) {
        pace->next_ns = oldest;
        pace->rest = 0;
    }
    take_ns = pace->next_ns > now_ns ? pace->next_ns : now_ns;
    unsigned __int128 due = (unsigned __int128)bytes * SECOND_NS + pace->rest;
    unsigned __int128 next = pace->next_ns + due / pace->rate;
    pace->rest = (uint64_t)(due % pace->rate);
    pace->next_ns = next > UINT64_MAX ? UINT64_MAX : (uint64_t)next;
    return take_ns;
}
