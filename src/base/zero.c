/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/zero.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define GROUP 256u

static bool is_zero_portable(const uint8_t *data, size_t size)
{
    for (const uint8_t *end = data + size; data < end; data += GROUP) {
        uint64_t words[GROUP / 8], any = 0;
        memcpy(words, data, GROUP);
        for (size_t i = 0; i < GROUP / 8; i++)
            any |= words[i];
        if (any)
            return false;
    }
    return true;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static bool is_zero_avx2(const uint8_t *data, size_t size)
{
    for (const uint8_t *end = data + size; data < end; data += GROUP) {
        __m256i any = _mm256_setzero_si256();
        for (size_t i = 0; i < GROUP; i += 32)
            any = _mm256_or_si256(any, _mm256_loadu_si256((const __m256i *)(data + i)));
        if (!_mm256_testz_si256(any, any))
            return false;
    }
    return true;
}

__attribute__((target("avx512f"))) static bool is_zero_avx512(const uint8_t *data, size_t size)
{
    for (const uint8_t *end = data + size; data < end; data += GROUP) {
        __m512i any = _mm512_setzero_si512();
        for (size_t i = 0; i < GROUP; i += 64)
            any = _mm512_or_si512(any, _mm512_loadu_si512(data + i));
        if (_mm512_test_epi64_mask(any, any))
            return false;
    }
    return true;
}
#endif

bool vfmig_is_zero_by(unsigned form, const void *data, size_t size, bool *ret_supported)
{
    *ret_supported = true;
    if (form == 0)
        return is_zero_portable(data, size);
#if defined(__x86_64__)
    if (form == 1 && __builtin_cpu_supports("avx2"))
        return is_zero_avx2(data, size);
    if (form == 2 && __builtin_cpu_supports("avx512f"))
        return is_zero_avx512(data, size);
#endif
    *ret_supported = false;
    return false;
}

bool vfmig_is_zero(const void *data, size_t size)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return is_zero_avx512(data, size);
    if (__builtin_cpu_supports("avx2"))
        return is_zero_avx2(data, size);
#endif
    return is_zero_portable(data, size);
}
