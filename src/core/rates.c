/* SPDX-License-Identifier: BSD-3-Clause */
#include "core/rates.h"

#define SECOND_NS    UINT64_C(1000000000)
#define LOWEST_SHIFT 16u /* 64 KiB/s */

/* 2^(i/8) and, between them, where one step ends, in 1/65536. */
static const uint32_t step_of_octave[VFMIG_RATES_OCTAVE] = {65536, 71468, 77936, 84990,
                                                            92682, 101070, 110218, 120194};

static uint32_t step_of(uint64_t rate)
{
    if (rate >> LOWEST_SHIFT == 0)
        return 0;
    uint32_t shift = 63 - (uint32_t)__builtin_clzll(rate);
    uint64_t head = shift > 16 ? rate >> (shift - 16) : rate << (16 - shift); /* 65536 .. 131071 */
    uint32_t part = 0;

    while (part + 1 < VFMIG_RATES_OCTAVE && head >= step_of_octave[part + 1])
        part++;
    uint32_t step = (shift - LOWEST_SHIFT) * VFMIG_RATES_OCTAVE + part;
    return step < VFMIG_RATES_STEPS ? step : VFMIG_RATES_STEPS - 1;
}

/* The middle of a step: half a step above its beginning, which is a factor of 1.0443. */
static uint64_t rate_of(uint32_t step)
{
    uint32_t shift = step / VFMIG_RATES_OCTAVE;
    unsigned __int128 begin = (unsigned __int128)step_of_octave[step % VFMIG_RATES_OCTAVE] << shift;

    return (uint64_t)(begin * 10443 / 10000);
}

void vfmig_rates_add(struct vfmig_rates *rates, uint64_t bytes, uint64_t ns)
{
    unsigned __int128 rate = (unsigned __int128)bytes * SECOND_NS / (ns ? ns : 1);

    rates->bytes[step_of(rate > UINT64_MAX ? UINT64_MAX : (uint64_t)rate)] += bytes;
    rates->total += bytes;
}

void vfmig_rates_merge(struct vfmig_rates *to, const struct vfmig_rates *from)
{
    for (uint32_t i = 0; i < VFMIG_RATES_STEPS; i++)
        to->bytes[i] += from->bytes[i];
    to->total += from->total;
}

uint64_t vfmig_rates_quantile(const struct vfmig_rates *rates, uint32_t percent)
{
    unsigned __int128 wanted = (unsigned __int128)rates->total * (percent < 100 ? percent : 100) / 100;
    uint64_t sum = 0;

    if (!rates->total)
        return 0;
    for (uint32_t i = 0; i < VFMIG_RATES_STEPS; i++) {
        sum += rates->bytes[i];
        if (rates->bytes[i] && sum >= wanted)
            return rate_of(i);
    }
    return rate_of(VFMIG_RATES_STEPS - 1);
}
