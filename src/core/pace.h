/* SPDX-License-Identifier: BSD-3-Clause */
/* A limit of bytes per second: when the next bytes may be sent. Pure.
 *
 * In any span of time of length t at most rate * (t + VFMIG_PACE_CREDIT_NS) bytes are let through,
 * and the piece that begins last; whoever always has something to send gets exactly the rate in the
 * long run, because lateness of up to the credit is made up for and nothing is rounded away. */
#ifndef VFMIG_CORE_PACE_H
#define VFMIG_CORE_PACE_H

#include <stdint.h>

/* A sleep ends late by a fraction of this; more would be a burst that others on the link notice. */
#define VFMIG_PACE_CREDIT_NS UINT64_C(10000000)

struct vfmig_pace {
    uint64_t rate;    /* bytes per second; 0 is without limit */
    uint64_t next_ns; /* when the bytes let through so far have had their time */
    uint64_t rest;    /* of the division, in units of 1/rate ns */
};

/* Also while it is in use: what was let through keeps its time. */
void vfmig_pace_set(struct vfmig_pace *pace, uint64_t rate);
/* Lets bytes through: when they may be sent, at the earliest now_ns. */
uint64_t vfmig_pace_take(struct vfmig_pace *pace, uint64_t bytes, uint64_t now_ns);

#endif
