/* SPDX-License-Identifier: BSD-3-Clause */
/* How fast many pieces went, each by itself, weighted by their bytes: on a machine whose CPUs are
 * wanted by others some pieces wait and some do not, and their mean says neither. Pure; zeroed before
 * use. */
#ifndef VFMIG_CORE_RATES_H
#define VFMIG_CORE_RATES_H

#include <stdint.h>

#define VFMIG_RATES_OCTAVE 8u   /* steps of an octave: within 4.5 percent */
#define VFMIG_RATES_STEPS  208u /* from 64 KiB/s on, 26 octaves */

struct vfmig_rates {
    uint64_t bytes[VFMIG_RATES_STEPS];
    uint64_t total;
};

void vfmig_rates_add(struct vfmig_rates *rates, uint64_t bytes, uint64_t ns);
void vfmig_rates_merge(struct vfmig_rates *to, const struct vfmig_rates *from);
/* The rate, in bytes per second, that `percent` of the bytes did not exceed; 0 when there are none. */
uint64_t vfmig_rates_quantile(const struct vfmig_rates *rates, uint32_t percent);

#endif
