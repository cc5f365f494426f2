/* SPDX-License-Identifier: BSD-3-Clause */
/* Is this page all zero? With the widest vectors that the CPU has. */
#ifndef VFMIG_BASE_ZERO_H
#define VFMIG_BASE_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/* size is a multiple of 256. Returns at the first group of 256 bytes that is not zero. */
bool vfmig_is_zero(const void *data, size_t size);

/* The forms behind it, for the tests: 0 portable, 1 AVX2, 2 AVX-512; false in *ret_supported when
 * this CPU lacks it. */
bool vfmig_is_zero_by(unsigned form, const void *data, size_t size, bool *ret_supported);

#endif
