/* SPDX-License-Identifier: BSD-3-Clause */
/* Little-endian numbers at any address. */
#ifndef VFMIG_BASE_LE_H
#define VFMIG_BASE_LE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline void vfmig_le16_put(uint8_t *at, uint16_t value)
{
    value = htole16(value);
    memcpy(at, &value, sizeof(value));
}

static inline void vfmig_le32_put(uint8_t *at, uint32_t value)
{
    value = htole32(value);
    memcpy(at, &value, sizeof(value));
}

static inline void vfmig_le64_put(uint8_t *at, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, sizeof(value));
}

static inline uint16_t vfmig_le16_get(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof(value));
    return le16toh(value);
}

static inline uint32_t vfmig_le32_get(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return le32toh(value);
}

static inline uint64_t vfmig_le64_get(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof(value));
    return le64toh(value);
}

#endif
