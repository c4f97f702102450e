// The vector layer on AVX2, FMA and F16C: eight lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace headrace {
namespace {

struct Vec {
    static constexpr int width = 8;
    static constexpr int registers = 16;
    static constexpr int bf16_vectors = 2;  // that a load of bf16 gives
    using T = __m256;

    static T zero() { return _mm256_setzero_ps(); }
    static T set(float value) { return _mm256_set1_ps(value); }
    static T load(const float *p) { return _mm256_loadu_ps(p); }
    static T load_some(const float *p, int n) {
        return n >= width ? load(p) : _mm256_maskload_ps(p, lanes(n));
    }
    static void store(float *p, T a) { _mm256_storeu_ps(p, a); }
    // Some processors take forty times as long to store under a mask.
    static void store_some(float *p, T a, int n) {
        if (n >= width) {
            store(p, a);
        } else {
            _mm256_maskstore_ps(p, lanes(n), a);
        }
    }
    static T add(T a, T b) { return _mm256_add_ps(a, b); }
    static T sub(T a, T b) { return _mm256_sub_ps(a, b); }
    static T mul(T a, T b) { return _mm256_mul_ps(a, b); }
    static T div(T a, T b) { return _mm256_div_ps(a, b); }
    static T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
    static T min(T a, T b) { return _mm256_min_ps(a, b); }
    static T max(T a, T b) { return _mm256_max_ps(a, b); }
    static T nearest(T a) {
        return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    static T pow2(T a) {
        const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    }
    static T widen_bf16(const std::uint16_t *p) { return from_bf16(halves(p)); }
    // Sixteen columns: a word holds two, the first in its low half. As assembly the odd ones are loaded
    // where they are met: else the compiler keeps words, and the mask, in registers that sums need.
    static T even_bf16(const std::uint16_t *p) {
        const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    }
    static T odd_bf16(const std::uint16_t *p) {
        T out;
        __asm__("vmovups %1, %0\n\tvandps %2, %0, %0"
                : "=x"(out)
                : "m"(*reinterpret_cast<const __m256i_u *>(p)), "m"(high_halves));
        return out;
    }
    // Sixteen floats in order to the even and the odd ones of them.
    static void part(T &low, T &high) {
        const T even = _mm256_shuffle_ps(low, high, 0x88), odd = _mm256_shuffle_ps(low, high, 0xdd);
        low = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8));
        high = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xd8));
    }
    static T widen_f16(const std::uint16_t *p) { return _mm256_cvtph_ps(halves(p)); }
    static T widen_bf16_some(const std::uint16_t *p, int n) { return from_bf16(some(p, n)); }
    static T widen_f16_some(const std::uint16_t *p, int n) { return _mm256_cvtph_ps(some(p, n)); }
    static T from_i8(const std::int8_t *p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(p)));
    }
    static T from_u8(const std::uint8_t *p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(p)));
    }
    // Whole numbers in [-127, 127]; anything for NaN.
    static void store_i8(std::int8_t *p, T a) {
        const __m256i wide = _mm256_cvtps_epi32(a);
        const __m128i halves =
            _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(halves, halves));
    }

    // 16-bit floats, rounded to nearest, ties to even.
    static void narrow_bf16(std::uint16_t *p, T a) {
        const __m256i bits = _mm256_castps_si256(a);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
        const __m256i whole = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), nan);
        const __m256i high = _mm256_srli_epi32(whole, 16);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                         _mm_packus_epi32(_mm256_castsi256_si128(high),
                                          _mm256_extracti128_si256(high, 1)));
    }
    static void narrow_f16(std::uint16_t *p, T a) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                         _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    static void transpose(T (&r)[8]) {
        T t[8];
        for (int i = 0; i < 4; ++i) {
            t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for (int i = 0; i < 2; ++i) {
            const T *from = t + 4 * i;
            r[4 * i] = _mm256_shuffle_ps(from[0], from[2], 0x44);
            r[4 * i + 1] = _mm256_shuffle_ps(from[0], from[2], 0xee);
            r[4 * i + 2] = _mm256_shuffle_ps(from[1], from[3], 0x44);
            r[4 * i + 3] = _mm256_shuffle_ps(from[1], from[3], 0xee);
        }
        for (int i = 0; i < 4; ++i) {
            const T low = r[i], high = r[i + 4];
            r[i] = _mm256_permute2f128_ps(low, high, 0x20);
            r[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
        }
    }
    // Narrow rows are widened and transposed instead.
    static constexpr int TURNED = 0;
    // The largest lane, and the sum of all, by one tree.
    static float top(T a) {
        const __m128 q = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 pair = _mm_max_ps(q, _mm_movehl_ps(q, q));
        return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
    }
    static float total(T a) {
        const __m128 q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 pair = _mm_add_ps(q, _mm_movehl_ps(q, q));
        return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
    }

    // Lane i: the sum of the lanes of the i-th, by the same tree for each.
    using Quad = __m128;
    static Quad sum4(T a, T b, T c, T d) {
        const T pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
    }
    static Quad load4(const float *p) { return _mm_loadu_ps(p); }
    static void store4(float *p, Quad a) { _mm_storeu_ps(p, a); }
    static Quad add4(Quad a, Quad b) { return _mm_add_ps(a, b); }

 private:
    alignas(32) static constexpr std::uint32_t high_halves[width] = {
        0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
        0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};

    static __m256i lanes(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static __m128i halves(const std::uint16_t *p) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    }
    static __m128i bytes(const void *p) {
        return _mm_loadl_epi64(static_cast<const __m128i *>(p));
    }
    static __m128i some(const std::uint16_t *p, int n) {
        std::uint16_t padded[8] = {};
        for (int i = 0; i < n; ++i) padded[i] = p[i];
        return halves(padded);
    }
    static T from_bf16(__m128i narrow) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
    }
};

}  // namespace
}  // namespace headrace
