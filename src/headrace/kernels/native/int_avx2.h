// Sums of products of bytes, 32 at a time, on AVX2. Goes with vec_avx2.h.
//
// The instruction takes unsigned by signed bytes and adds neighbours in 16 bits, saturating: so
// signed weights go in as their absolute values, with their signs moved to x (both at most 127 in
// size, or 128 by 127: the pair fits), and nibbles as they are.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "engine.h"

namespace headrace {
namespace {

struct Ints {
    static constexpr int NR = 2;  // weight rows in a register tile
    using T = __m256i;
    struct W {
        __m256i size, value;
    };

    static T load(const std::int32_t *p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    }
    static T times(T a, int b) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(b)); }
    static Vec::T to_float(T a) { return _mm256_cvtepi32_ps(a); }

    // What is added to a stored integer (and so to its zero) when it is loaded.
    static constexpr int shift(Format format) { return format == Format::u8 ? -128 : 0; }

    template <Format F>
    static W weights(const void *p) {
        if (F == Format::u4) {
            const __m256i nibbles = spread(p);
            return {nibbles, nibbles};
        }
        __m256i value = _mm256_loadu_si256(static_cast<const __m256i *>(p));
        if (F == Format::u8) value = _mm256_xor_si256(value, _mm256_set1_epi8(-128));
        return {_mm256_abs_epi8(value), value};
    }
    template <Format F>
    static T dot(T sum, const W &w, const std::int8_t *at) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
        const __m256i pairs =
            _mm256_maddubs_epi16(w.size, F == Format::u4 ? x : _mm256_sign_epi8(x, w.value));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }

 private:
    // Sixteen bytes: the low nibbles of all, then the high ones.
    static __m256i spread(const void *p) {
        const __m256i twice =
            _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i *>(p)));
        const __m256i moved = _mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4));
        return _mm256_and_si256(moved, _mm256_set1_epi8(15));
    }
};

}  // namespace
}  // namespace headrace
