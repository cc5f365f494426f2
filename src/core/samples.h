/* SPDX-License-Identifier: BSD-3-Clause */
/* The last few measurements of one thing, and what can be expected of the next one. A single late
 * answer says little on a busy machine, the last one alone even less. Pure; zeroed before use. */
#ifndef VFMIG_CORE_SAMPLES_H
#define VFMIG_CORE_SAMPLES_H

#include <stdint.h>

#define VFMIG_SAMPLES 16u /* older ones are forgotten: the machine may have become another */

struct vfmig_samples {
    uint64_t value[VFMIG_SAMPLES];
    uint32_t count; /* ever added; the newest is value[(count - 1) % VFMIG_SAMPLES] */
};

void vfmig_samples_add(struct vfmig_samples *samples, uint64_t value);
/* The smallest kept value that `percent` of the kept ones do not exceed: 50 is the (lower) median,
 * 0 the smallest, 100 the largest. `otherwise` when there is none. */
uint64_t vfmig_samples_quantile(const struct vfmig_samples *samples, uint32_t percent,
                                uint64_t otherwise);

#endif
