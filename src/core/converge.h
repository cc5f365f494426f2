/* SPDX-License-Identifier: BSD-3-Clause */
/* When to switch over: the downtime that a switchover right now would cost, from what was measured
 * so far. Pure. Better another round than an overshoot: whatever is not known yet is estimated
 * high, and what is dirtied on the way to the stop is counted in. */
#ifndef VFMIG_CORE_CONVERGE_H
#define VFMIG_CORE_CONVERGE_H

#include <stdbool.h>
#include <stdint.h>

/* What was measured; 0 means not known. */
struct vfmig_converge_input {
    uint64_t dirty_pages;          /* known dirty now, after the log was read */
    uint64_t dirty_pages_per_s;    /* between the last two reads */
    uint64_t bandwidth;            /* bytes per second on all channels together */
    uint64_t device_bytes;         /* what all devices together still have to say once stopped */
    uint64_t slowest_device_ns;    /* its remaining bytes at its own rate */
    uint64_t device_change_ns;     /* slowest state change of a device so far */
    uint64_t log_ns;               /* reading and clearing all logs */
    uint64_t vm_state_bytes;
    uint64_t journal_ns;           /* one durable record; the switchover writes four */
    uint64_t rtt_ns;
    uint32_t rounds;               /* while vCPUs ran, the first one included */
};

enum vfmig_converge_verdict {
    VFMIG_CONVERGE_AGAIN = 1,
    VFMIG_CONVERGE_GO,
    VFMIG_CONVERGE_GIVE_UP, /* the deadline has passed */
};

struct vfmig_converge {
    uint64_t limit_ns;    /* of the downtime */
    uint64_t deadline_ns; /* absolute, 0: none */
    bool force;           /* at the deadline: go whatever it costs */
};

#define VFMIG_CONVERGE_MIN_ROUNDS 2u /* one round says nothing about the dirty rate */

uint64_t vfmig_converge_predict(const struct vfmig_converge_input *input);
enum vfmig_converge_verdict vfmig_converge_decide(const struct vfmig_converge *converge,
                                                  const struct vfmig_converge_input *input,
                                                  uint64_t now_ns);

#endif
