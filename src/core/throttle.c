/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/throttle.h"

#include "base/sabotage.h"

#define PATIENCE_AFTER_STEP 2u

static bool is_progress(const struct vfmig_throttle *t, uint64_t bound_ns)
{
    return !t->least_ns || bound_ns < t->least_ns - t->least_ns / 8;
}

bool vfmig_throttle_round(struct vfmig_throttle *t, uint64_t bound_ns)
{
    if (is_progress(t, bound_ns)) {
        t->least_ns = bound_ns ? bound_ns : 1;
        t->stuck = 0;
        t->patience = VFMIG_STUCK_ROUNDS;
        return false;
    }
    t->stuck += t->stuck < UINT32_MAX;
    t->patience -= t->patience > 0;
    if (t->patience || t->percent >= t->max_percent || vfmig_sabotage("throttle-never"))
        return false;
    t->percent += t->percent ? VFMIG_THROTTLE_STEP : VFMIG_THROTTLE_FIRST;
    if (t->percent > t->max_percent)
        t->percent = t->max_percent;
    t->patience = PATIENCE_AFTER_STEP;
    return true;
}

bool vfmig_throttle_is_stuck(const struct vfmig_throttle *t)
{
    return t->stuck >= VFMIG_STUCK_ROUNDS && t->percent >= t->max_percent;
}
