/* SPDX-License-Identifier: BSD-3-Clause */
/* A guest that does not converge: notices it, and says how far its vCPUs are to be slowed down.
 * Pure; zeroed before use but for max_percent.
 *
 * A round that brings the downtime which must be reckoned with at least an eighth below the least
 * so far is progress. After VFMIG_STUCK_ROUNDS rounds without it the guest is stuck. Then, if it may
 * be throttled, it is, by VFMIG_THROTTLE_FIRST and further steps; each step has two rounds to show
 * what it does. A throttle is never loosened during a migration: what made it necessary is there. */
#ifndef VFMIG_CORE_THROTTLE_H
#define VFMIG_CORE_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>

#define VFMIG_STUCK_ROUNDS   3u
#define VFMIG_THROTTLE_FIRST 20u /* percent of the time that vCPUs do not run */
#define VFMIG_THROTTLE_STEP  10u
#define VFMIG_THROTTLE_LIMIT 99u /* the most that may be asked for: the guest must get on */

struct vfmig_throttle {
    uint32_t max_percent; /* 0: not at all */
    uint32_t percent;     /* in force */
    uint32_t stuck;       /* rounds in a row without progress */
    uint32_t patience;    /* rounds until the next step */
    uint64_t least_ns;    /* bound of the best round so far, 0: none */
};

/* Another round was not enough; true: percent has changed. */
bool vfmig_throttle_round(struct vfmig_throttle *throttle, uint64_t bound_ns);
/* No progress, and nothing left that could be done about it. */
bool vfmig_throttle_is_stuck(const struct vfmig_throttle *throttle);

#endif
