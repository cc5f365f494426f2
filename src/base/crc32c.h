/* SPDX-License-Identifier: BSD-3-Clause */
/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), in hardware where the CPU has it. */
#ifndef VFMIG_BASE_CRC32C_H
#define VFMIG_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continues crc (0 to start) over size bytes; the result of one piece feeds the next. */
uint32_t vfmig_crc32c(uint32_t crc, const void *data, size_t size);

#endif
