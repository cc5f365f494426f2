/* SPDX-License-Identifier: BSD-3-Clause */
/* Chains of capabilities behind an info, as VFIO and vfio-user both have them: {u16 id, u16 version,
 * u32 next}, next from the beginning of the info. */
#ifndef VFMIG_BASE_CAPS_H
#define VFMIG_BASE_CAPS_H

#include <stdint.h>

/* The first capability id in a chain that starts at first, in an info of size bytes; *ret_size: its bytes up
 * to the end of the info. NULL: none, or a chain that leads back or outside. */
const void *vfmig_find_cap(const void *info, uint32_t size, uint32_t first, uint16_t id,
                           uint32_t *ret_size);

#endif
