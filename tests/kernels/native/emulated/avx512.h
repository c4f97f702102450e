// The AVX-512 intrinsics that the kernels use, for a compiler that may only use AVX2: SIMDe's, and
// what it lacks. Included before everything else, with the flags of AVX-512 taken away.
#pragma once

#include <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cstdint>
#include <cstring>

namespace emulated {

template <class To, class From>
To as(const From &value) {
    static_assert(sizeof(To) == sizeof(From));
    To same;
    std::memcpy(&same, &value, sizeof same);
    return same;
}

template <class Half>
struct Halves {
    Half low, high;
};

template <class Whole, class Half>
Whole whole(Half low, Half high) {
    return as<Whole>(Halves<Half>{low, high});
}

template <class Half, class Whole>
Halves<Half> halves(const Whole &value) {
    return as<Halves<Half>>(value);
}

// Items of a masked load, or zeros.
template <class Vector, class Item>
Vector some(unsigned long long mask, const void *from) {
    Item items[sizeof(Vector) / sizeof(Item)] = {};
    for (std::size_t i = 0; i < sizeof(Vector) / sizeof(Item); ++i) {
        if ((mask >> i) & 1u) {
            std::memcpy(&items[i], static_cast<const char *>(from) + i * sizeof(Item), sizeof(Item));
        }
    }
    return as<Vector>(items);
}

// Sixteen small items as 32-bit words.
template <class Item, class From>
__m512i to_words(const From &from) {
    Item items[16];
    std::memcpy(items, &from, sizeof items);
    std::int32_t words[16];
    for (int i = 0; i < 16; ++i) words[i] = items[i];
    return as<__m512i>(words);
}

// bf16 nearest to a float, ties to even; NaN stays one.
inline std::uint16_t to_bf16(float value) {
    const auto bits = as<std::uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline __m512i two_to_bf16(const __m512 &high, const __m512 &low) {
    float from[32];
    std::memcpy(from, &low, 64);
    std::memcpy(from + 16, &high, 64);
    std::uint16_t to[32];
    for (int i = 0; i < 32; ++i) to[i] = to_bf16(from[i]);
    return as<__m512i>(to);
}

inline __m512 from_halves(const __m256i &from) {
    return whole<__m512>(_mm256_cvtph_ps(_mm256_castsi256_si128(from)),
                         _mm256_cvtph_ps(_mm256_extracti128_si256(from, 1)));
}

inline __m512 to_floats(const __m512i &from) {
    const auto half = halves<__m256i>(from);
    return whole<__m512>(_mm256_cvtepi32_ps(half.low), _mm256_cvtepi32_ps(half.high));
}

inline __m512i to_integers(const __m512 &from) {
    const auto half = halves<__m256>(from);
    return whole<__m512i>(_mm256_cvtps_epi32(half.low), _mm256_cvtps_epi32(half.high));
}

inline __m256i truncated(const __m512i &from) {
    std::int32_t words[16];
    std::memcpy(words, &from, sizeof words);
    std::int16_t items[16];
    for (int i = 0; i < 16; ++i) items[i] = static_cast<std::int16_t>(words[i]);
    return as<__m256i>(items);
}

inline void store_some(float *to, unsigned mask, const __m512 &from) {
    float items[16];
    std::memcpy(items, &from, sizeof items);
    for (int i = 0; i < 16; ++i) {
        if ((mask >> i) & 1u) to[i] = items[i];
    }
}

template <class Part, class From>
Part part(const From &from, int which) {
    Part taken;
    std::memcpy(&taken, reinterpret_cast<const char *>(&from) + sizeof(Part) * which, sizeof taken);
    return taken;
}

}  // namespace emulated

#define _mm512_maskz_loadu_ps(mask, from) emulated::some<__m512, float>(mask, from)
#define _mm512_maskz_loadu_epi8(mask, from) emulated::some<__m512i, std::uint8_t>(mask, from)
#define _mm512_maskz_loadu_epi16(mask, from) emulated::some<__m512i, std::uint16_t>(mask, from)
#define _mm256_maskz_loadu_epi16(mask, from) emulated::some<__m256i, std::uint16_t>(mask, from)
#define _mm512_mask_storeu_ps(to, mask, from) emulated::store_some(to, mask, from)
#define _mm512_extracti64x2_epi64(from, which) emulated::part<__m128i>(from, which)
#define _mm512_extractf32x8_ps(from, which) emulated::part<__m256>(from, which)
#define _mm512_cvtph_ps(from) emulated::from_halves(from)
#define _mm512_cvtps_ph(from, rounding)                                                       \
    emulated::whole<__m256i>(_mm256_cvtps_ph(emulated::part<__m256>(from, 0), rounding),      \
                             _mm256_cvtps_ph(emulated::part<__m256>(from, 1), rounding))
#define _mm512_cvtepi32_ps(from) emulated::to_floats(from)
#define _mm512_cvtps_epi32(from) emulated::to_integers(from)
#define _mm512_permute_ps(from, how)                                                          \
    emulated::whole<__m512>(_mm256_permute_ps(emulated::part<__m256>(from, 0), how),          \
                            _mm256_permute_ps(emulated::part<__m256>(from, 1), how))
#define _mm512_shuffle_f32x4(a, b, how) simde_mm512_shuffle_f32x4(a, b, how)
#define _mm512_cvtepu8_epi32(from) emulated::to_words<std::uint8_t>(from)
#define _mm512_cvtepi8_epi32(from) emulated::to_words<std::int8_t>(from)
#define _mm512_cvtepu16_epi32(from) emulated::to_words<std::uint16_t>(from)
#define _mm512_cvtepi32_epi16(from) emulated::truncated(from)
#define _mm512_cvtne2ps_pbh(high, low) emulated::as<__m512bh>(emulated::two_to_bf16(high, low))

// Only now: SIMDe would take them for the processor's own.
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#define __AVX512BF16__ 1
