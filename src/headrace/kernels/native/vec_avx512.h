// The vector layer on AVX-512 (F, BW, DQ, VL): sixteen lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "transpose16.h"

namespace headrace {
namespace {

struct Vec {
    static constexpr int width = 16;
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
