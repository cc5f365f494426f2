/* SPDX-License-Identifier: BSD-3-Clause */
/* Three forms of one polynomial division, picked by what the CPU has.
 *
 * The folding forms use that a message A || B of polynomials has the remainder of
 * (A * x^|B| mod P) xor B: 16 bytes of A are multiplied (carry-less) by x^D mod P and added to the
 * 16 bytes that lie D bits further on, until 16 bytes are left, which the crc32 instruction
 * divides. In reflected order the low quadword holds the higher powers, so the two constants of a
 * distance D are x^(D+32) mod P for it and x^(D-32) mod P for the high one, both reflected and
 * shifted left by one (the product of reflected numbers is short of one bit). */
#include "base/crc32c.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define POLYNOMIAL UINT32_C(0x82f63b78) /* reflected */

static uint32_t crc_portable(uint32_t crc, const uint8_t *data, size_t size)
{
    while (size--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (POLYNOMIAL & (0u - (crc & 1)));
    }
    return crc;
}

#if defined(__x86_64__)
/* x^(D+32), x^(D-32) mod P for D = 2048, 512, 128; tests compare the forms. */
#define FOLD_2048 0x0dcb17aa4LL, 0x0b9e02b86LL
#define FOLD_512  0x0740eef02LL, 0x09e4addf8LL
#define FOLD_128  0x0f20c0dfeLL, 0x14cd00bd6LL

__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const uint8_t *data,
                                                            size_t size)
{
    uint64_t wide = crc;

    for (; size >= 8; size -= 8, data += 8) {
        uint64_t word;
        memcpy(&word, data, sizeof(word));
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    while (size--)
        crc = __builtin_ia32_crc32qi(crc, *data++);
    return crc;
}

__attribute__((target("sse4.2,pclmul"))) static inline __m128i fold_16(__m128i acc, __m128i next,
                                                                      long long low, long long high)
{
    const __m128i by = _mm_set_epi64x(high, low);

    return _mm_xor_si128(next, _mm_xor_si128(_mm_clmulepi64_si128(acc, by, 0x00),
                                             _mm_clmulepi64_si128(acc, by, 0x11)));
}

/* What four neighbouring groups of 16 bytes have been folded into, and the rest of the data. */
__attribute__((target("sse4.2,pclmul"))) static uint32_t finish(const __m128i acc[4],
                                                                const uint8_t *rest, size_t size)
{
    __m128i one = acc[0];
    uint8_t bytes[16];

    for (int i = 1; i < 4; i++)
        one = fold_16(one, acc[i], FOLD_128);
    _mm_storeu_si128((__m128i *)bytes, one);
    return crc_sse42(crc_sse42(0, bytes, sizeof(bytes)), rest, size);
}

/* size is at least 64. */
__attribute__((target("sse4.2,pclmul"))) static uint32_t crc_pclmul(uint32_t crc,
                                                                    const uint8_t *data, size_t size)
{
    __m128i acc[4];

    for (int i = 0; i < 4; i++)
        acc[i] = _mm_loadu_si128((const __m128i *)data + i);
    acc[0] = _mm_xor_si128(acc[0], _mm_cvtsi32_si128((int)crc));
    for (data += 64, size -= 64; size >= 64; data += 64, size -= 64)
        for (int i = 0; i < 4; i++)
            acc[i] = fold_16(acc[i], _mm_loadu_si128((const __m128i *)data + i), FOLD_512);
    return finish(acc, data, size);
}

#define WIDE __attribute__((target("sse4.2,pclmul,avx512f,avx512bw,vpclmulqdq")))

WIDE static inline __m512i fold_64(__m512i acc, __m512i next, long long low, long long high)
{
    const __m512i by = _mm512_broadcast_i32x4(_mm_set_epi64x(high, low));

    return _mm512_ternarylogic_epi64(next, _mm512_clmulepi64_epi128(acc, by, 0x00),
                                     _mm512_clmulepi64_epi128(acc, by, 0x11), 0x96 /* xor */);
}

/* size is at least 256. */
WIDE static uint32_t crc_vpclmul(uint32_t crc, const uint8_t *data, size_t size)
{
    __m512i acc[4];
    __m128i last[4];

    for (int i = 0; i < 4; i++)
        acc[i] = _mm512_loadu_si512(data + 64 * i);
    acc[0] = _mm512_xor_si512(acc[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (data += 256, size -= 256; size >= 256; data += 256, size -= 256)
        for (int i = 0; i < 4; i++)
            acc[i] = fold_64(acc[i], _mm512_loadu_si512(data + 64 * i), FOLD_2048);
    for (int i = 1; i < 4; i++)
        acc[i] = fold_64(acc[i - 1], acc[i], FOLD_512);
    for (; size >= 64; data += 64, size -= 64)
        acc[3] = fold_64(acc[3], _mm512_loadu_si512(data), FOLD_512);
    _mm512_storeu_si512(last, acc[3]);
    return finish(last, data, size);
}
#endif

bool vfmig_crc32c_by(enum vfmig_crc32c_form form, uint32_t crc, const void *data, size_t size,
                     uint32_t *ret_crc)
{
    crc = ~crc;
    switch (form) {
    case VFMIG_CRC32C_PORTABLE:
        crc = crc_portable(crc, data, size);
        break;
#if defined(__x86_64__)
    case VFMIG_CRC32C_SSE42:
        if (!__builtin_cpu_supports("sse4.2"))
            return false;
        crc = crc_sse42(crc, data, size);
        break;
    case VFMIG_CRC32C_PCLMUL:
        if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul") || size < 64)
            return false;
        crc = crc_pclmul(crc, data, size);
        break;
    case VFMIG_CRC32C_VPCLMUL:
        if (!__builtin_cpu_supports("vpclmulqdq") || !__builtin_cpu_supports("avx512bw") ||
            size < 256)
            return false;
        crc = crc_vpclmul(crc, data, size);
        break;
#endif
    default:
        return false;
    }
    *ret_crc = ~crc;
    return true;
}

uint32_t vfmig_crc32c(uint32_t crc, const void *data, size_t size)
{
    uint32_t result = 0;
    int form = VFMIG_CRC32C_VPCLMUL;

    while (!vfmig_crc32c_by((enum vfmig_crc32c_form)form, crc, data, size, &result))
        form--;
    return result;
}
