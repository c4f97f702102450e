// The vector layer on AVX-512 (F, BW, DQ, VL): sixteen lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

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
