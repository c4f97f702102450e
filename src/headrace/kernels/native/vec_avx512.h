// The vector layer on AVX-512 (F, BW, DQ, VL): sixteen lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "transpose16.h"

namespace headrace {
namespace {

struct Vec {
    static constexpr int width = 16;
    static constexpr int registers = 32;
    static constexpr int bf16_vectors = 1;  // that a load of bf16 gives
    using T = __m512;

    static T zero() { return _mm512_setzero_ps(); }
    static T set(float value) { return _mm512_set1_ps(value); }
    static T load(const float *p) { return _mm512_loadu_ps(p); }
    static T load_some(const float *p, int n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
    static void store(float *p, T a) { _mm512_storeu_ps(p, a); }
    static void store_some(float *p, T a, int n) { _mm512_mask_storeu_ps(p, lanes(n), a); }
    static T add(T a, T b) { return _mm512_add_ps(a, b); }
    static T sub(T a, T b) { return _mm512_sub_ps(a, b); }
    static T mul(T a, T b) { return _mm512_mul_ps(a, b); }
    static T div(T a, T b) { return _mm512_div_ps(a, b); }
    static T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
    static T min(T a, T b) { return _mm512_min_ps(a, b); }
    static T max(T a, T b) { return _mm512_max_ps(a, b); }
    static T nearest(T a) {
        return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    static T pow2(T a) {
        const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
        return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
    }
    static T widen_bf16(const std::uint16_t *p) {
        return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static T widen_f16(const std::uint16_t *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static T widen_bf16_some(const std::uint16_t *p, int n) {
        return from_bf16(_mm256_maskz_loadu_epi16(lanes(n), p));
    }
    static T widen_f16_some(const std::uint16_t *p, int n) {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes(n), p));
    }
    static T from_i8(const std::int8_t *p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(p)));
    }
    static T from_u8(const std::uint8_t *p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(p)));
    }
    // Whole numbers in [-127, 127]; anything for NaN.
    static void store_i8(std::int8_t *p, T a) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                         _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)));
    }

    // 16-bit floats, rounded to nearest, ties to even.
    static void narrow_bf16(std::uint16_t *p, T a) {
        const __m512i bits = _mm512_castps_si512(a);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
        const __m512i whole = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(whole, 16)));
    }
    static void narrow_f16(std::uint16_t *p, T a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p),
                            _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    static void transpose(T (&r)[16]) {
        __m512i t[16];
        for (int i = 0; i < 16; ++i) t[i] = _mm512_castps_si512(r[i]);
        transpose16(t);
        for (int i = 0; i < 16; ++i) r[i] = _mm512_castsi512_ps(t[i]);
    }
    // Turns TURNED rows of a line (64 bytes), `n` items of them at `rows[i] + k` (the rest are
    // zeros), so that those of one column lie together, `stride` items from those of the next.
    static constexpr int TURNED = 16;
    static void turn(const std::uint16_t *const *rows, std::int64_t k, int n, std::uint16_t *to,
                     std::int64_t stride) {
        __m512i r[16];
        turn_words(rows, k, n == 32 ? ~0ull : (1ull << 2 * n) - 1, r);
        for (int i = 0; i < 16; ++i) {
            std::uint16_t *at = to + column_of(i) * stride;
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(at), _mm512_castsi512_si256(r[i]));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(at + 8 * stride),
                                _mm512_extracti64x4_epi64(r[i], 1));
        }
    }
    static void turn(const std::int8_t *const *rows, std::int64_t k, int n, std::int8_t *to,
                     std::int64_t stride) {
        __m512i r[16];
        turn_words(rows, k, n == 64 ? ~0ull : (1ull << n) - 1, r);
        const __m512i apart = _mm512_broadcast_i32x4(
            _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
        const __m512i together = _mm512_setr_epi64(0, 2, 1, 3, 4, 6, 5, 7);
        for (int i = 0; i < 16; ++i) {
            const __m512i both =
                _mm512_permutexvar_epi64(together, _mm512_shuffle_epi8(r[i], apart));
            std::int8_t *at = to + 2 * column_of(i) * stride;
            const auto store = [&](std::int64_t column, __m128i keys) {
                _mm_storeu_si128(reinterpret_cast<__m128i *>(at + column * stride), keys);
            };
            store(0, _mm512_castsi512_si128(both));
            store(1, _mm512_extracti64x2_epi64(both, 1));
            store(16, _mm512_extracti64x2_epi64(both, 2));
            store(17, _mm512_extracti64x2_epi64(both, 3));
        }
    }
    // The largest lane, and the sum of all, by one tree.
    static float top(T a) {
        const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
        const __m128 q = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        const __m128 pair = _mm_max_ps(q, _mm_movehl_ps(q, q));
        return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
    }
    static float total(T a) {
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
        const __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        const __m128 pair = _mm_add_ps(q, _mm_movehl_ps(q, q));
        return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
    }

    // Lane i: the sum of the lanes of the i-th, by the same tree for each.
    using Quad = __m128;
    static Quad sum4(T a, T b, T c, T d) {
        const T ab = halves(a, b), cd = halves(c, d);  // two quarters of each
        const T quarters = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88),
                                         _mm512_shuffle_f32x4(ab, cd, 0xdd));  // a, b, c, d
        const T pairs = _mm512_add_ps(quarters, _mm512_permute_ps(quarters, 0x4e));
        const T sums = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
        const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        return _mm512_castps512_ps128(_mm512_permutexvar_ps(first, sums));
    }
    static Quad load4(const float *p) { return _mm_loadu_ps(p); }
    static void store4(float *p, Quad a) { _mm_storeu_ps(p, a); }
    static Quad add4(Quad a, Quad b) { return _mm_add_ps(a, b); }

 private:
    // Which column of 32 words r[i] begins with; it ends with the eighth after it.
    static std::int64_t column_of(int i) { return i < 8 ? i : 8 + i; }

    // Columns of 16 rows of 32 words. Bytes of a row beyond `mask` count as zeros.
    template <class Item>
    static void turn_words(const Item *const *rows, std::int64_t k, std::uint64_t mask,
                           __m512i (&r)[16]) {
        __m512i t[16];
        for (int i = 0; i < 16; ++i) {
            r[i] = mask == ~0ull ? _mm512_loadu_si512(rows[i] + k)
                                 : _mm512_maskz_loadu_epi8(mask, rows[i] + k);
        }
        for (int i = 0; i < 8; ++i) {
            t[2 * i] = _mm512_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
        }
        for (int i = 0; i < 4; ++i) {  // four rows each: columns 0 1, 2 3, 4 5, 6 7 of a quarter
            const __m512i *a = t + 4 * i;
            r[4 * i] = _mm512_unpacklo_epi32(a[0], a[2]);
            r[4 * i + 1] = _mm512_unpackhi_epi32(a[0], a[2]);
            r[4 * i + 2] = _mm512_unpacklo_epi32(a[1], a[3]);
            r[4 * i + 3] = _mm512_unpackhi_epi32(a[1], a[3]);
        }
        for (int i = 0; i < 2; ++i) {  // eight rows each: column j of every quarter
            for (int j = 0; j < 4; ++j) {
                t[8 * i + 2 * j] = _mm512_unpacklo_epi64(r[8 * i + j], r[8 * i + 4 + j]);
                t[8 * i + 2 * j + 1] = _mm512_unpackhi_epi64(r[8 * i + j], r[8 * i + 4 + j]);
            }
        }
        const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
        const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        for (int j = 0; j < 8; ++j) {
            r[j] = _mm512_permutex2var_epi64(t[j], low, t[8 + j]);
            r[8 + j] = _mm512_permutex2var_epi64(t[j], high, t[8 + j]);
        }
    }
    static __mmask16 lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
    static __m128i bytes(const void *p) {
        return _mm_loadu_si128(static_cast<const __m128i *>(p));
    }
    static T halves(T a, T b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    static T from_bf16(__m256i narrow) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
    }
};

}  // namespace
}  // namespace headrace
