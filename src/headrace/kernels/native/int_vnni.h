// Sums of products of bytes, 32 at a time, by VNNI in its AVX or its AVX-512 encoding. Goes with
// vec_avx2.h. The instruction takes unsigned by signed bytes: signed weights are moved up by 128.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "engine.h"

namespace headrace {
namespace {

struct Ints {
#if defined(__AVX512VNNI__)
    static constexpr int NR = 4;  // weight rows in a register tile
#else
    static constexpr int NR = 2;
#endif
    using T = __m256i;
    using W = __m256i;

    static T load(const std::int32_t *p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    }
    static T times(T a, int b) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(b)); }
    static Vec::T to_float(T a) { return _mm256_cvtepi32_ps(a); }

    // What is added to a stored integer (and so to its zero) when it is loaded.
    static constexpr int shift(Format format) { return format == Format::i8 ? 128 : 0; }

    template <Format F>
    static W weights(const void *p) {
        if (F == Format::u4) return spread(p);
        const __m256i value = _mm256_loadu_si256(static_cast<const __m256i *>(p));
        return F == Format::i8 ? _mm256_xor_si256(value, _mm256_set1_epi8(-128)) : value;
    }
    template <Format F>
    static T dot(T sum, W w, const std::int8_t *at) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
#if defined(__AVX512VNNI__)
        return _mm256_dpbusd_epi32(sum, w, x);
#else
        return _mm256_dpbusd_avx_epi32(sum, w, x);
#endif
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
