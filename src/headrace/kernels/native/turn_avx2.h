// Weights turned: 32 bytes of each of eight rows become eight vectors, one lane per row. Goes with
// vec_avx2.h.
#pragma once

#include <cstddef>
#include <cstring>

namespace headrace {
namespace {

struct Turn {
    static constexpr int rows = 8;
    static constexpr int words = 8;  // of each row at a time
    // Up to eight rows of x meet one vector of weight rows as it is turned; of more, four meet two
    // vectors: there are sixteen registers.
    static constexpr int tall = 8, low = 4;
    static constexpr bool kept = false;  // memory is slower than turning
    using T = __m256i;

    // out[j]: the j-th 32-bit word of every row.
    static void line(const char *const *row, std::size_t offset, T (&out)[words]) {
        __m256 r[rows];
        for (int i = 0; i < rows; ++i) r[i] = _mm256_castsi256_ps(load(row[i] + offset));
        Vec::transpose(r);
        for (int i = 0; i < words; ++i) out[i] = _mm256_castps_si256(r[i]);
    }

    // The same of weights that lie turned, from where their line begins.
    static void turned(const char *at, T (&out)[words]) {
        for (int i = 0; i < words; ++i) out[i] = load(at + 32 * i);
    }

    // The same where only `bytes` < 32 are left; zeros behind them.
    static void last_line(const char *const *row, std::size_t offset, std::size_t bytes,
                          T (&out)[words]) {
        char padded[rows][32] = {};
        const char *at[rows];
        for (int i = 0; i < rows; ++i) {
            std::memcpy(padded[i], row[i] + offset, bytes);
            at[i] = padded[i];
        }
        line(at, 0, out);
    }

    static T load(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
    static void store(void *p, T a) { _mm256_storeu_si256(static_cast<__m256i *>(p), a); }
    static T shifted(T a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-128)); }  // u8 to i8
    static T low_nibbles(T a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
    static T high_nibbles(T a) { return low_nibbles(_mm256_srli_epi32(a, 4)); }

    // Column c of a word as floats.
    static __m256 f32(T a) { return _mm256_castsi256_ps(a); }
    static __m256 bf16(T a, int c) {
        const T high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
        return f32(c == 0 ? _mm256_slli_epi32(a, 16) : _mm256_and_si256(a, high));
    }
    static __m256 f16(T a, int c) {
        const T low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
        const T half = c == 0 ? low : _mm256_srli_epi32(a, 16);
        const T packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0xd8);
        return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
    }
};

}  // namespace
}  // namespace headrace
