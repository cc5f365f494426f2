/* SPDX-License-Identifier: BSD-3-Clause */
/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), in hardware where the CPU has it. */
#ifndef VFMIG_BASE_CRC32C_H
#define VFMIG_BASE_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Continues crc (0 to start) over size bytes; the result of one piece feeds the next. */
uint32_t vfmig_crc32c(uint32_t crc, const void *data, size_t size);

/* The forms behind it, for the tests; false when this CPU lacks one or size is too small for it. */
enum vfmig_crc32c_form {
    VFMIG_CRC32C_PORTABLE,
    VFMIG_CRC32C_SSE42,
    VFMIG_CRC32C_PCLMUL,  /* from 64 bytes */
    VFMIG_CRC32C_VPCLMUL, /* from 256 bytes */
    VFMIG_CRC32C_FORM_COUNT
};
bool vfmig_crc32c_by(enum vfmig_crc32c_form form, uint32_t crc, const void *data, size_t size,
                     uint32_t *ret_crc);

#endif
