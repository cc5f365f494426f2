/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/samples.h"

void vfmig_samples_add(struct vfmig_samples *samples, uint64_t value)
{
    samples->value[samples->count % VFMIG_SAMPLES] = value;
    samples->count++;
    /* The counter must not come back to "none yet". */
    if (samples->count == 2 * VFMIG_SAMPLES)
        samples->count = VFMIG_SAMPLES;
}

uint64_t vfmig_samples_quantile(const struct vfmig_samples *samples, uint32_t percent,
                                uint64_t otherwise)
{
    uint32_t count = samples->count < VFMIG_SAMPLES ? samples->count : VFMIG_SAMPLES;
    uint64_t sorted[VFMIG_SAMPLES];

    if (!count)
        return otherwise;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = i;
        for (; at && sorted[at - 1] > samples->value[i]; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = samples->value[i];
    }
    /* ceil(count * percent / 100) of them are at most this. */
    uint32_t rank = (count * (percent < 100 ? percent : 100) + 99) / 100;
    return sorted[rank ? rank - 1 : 0];
}
