// Weights turned: 64 bytes of each of sixteen rows become sixteen vectors, one lane per row.
#pragma once

#include "transpose16.h"

namespace headrace {
namespace {

struct Turn {
    static constexpr int rows = 16;
    static constexpr int words = 16;  // of each row at a time
    static constexpr int tall = 8;    // rows of x in a register tile: there are 32 registers
    static constexpr int low = tall;  // the same, of integers that many rows of x meet
    static constexpr bool kept = true;  // weights may lie turned (turned.h)
    using T = __m512i;

    // out[j]: the j-th 32-bit word of every row. Each row is touched once: rows a multiple of
    // 4 KiB apart share a set of the first-level cache, which holds fewer than sixteen lines.
    static void line(const char *const *row, std::size_t offset, T (&out)[words]) {
        for (int i = 0; i < rows; ++i) out[i] = _mm512_loadu_si512(row[i] + offset);
        transpose16(out);
    }

    // The same of weights that lie turned (turned.h), from where their line begins.
    static void turned(const char *at, T (&out)[words]) {
        for (int i = 0; i < words; ++i) out[i] = _mm512_loadu_si512(at + 64 * i);
    }

    // The same where only `bytes` < 64 are left; zeros behind them.
    static void last_line(const char *const *row, std::size_t offset, std::size_t bytes,
                          T (&out)[words]) {
        const __mmask64 there = (1ull << bytes) - 1;
        for (int i = 0; i < rows; ++i) out[i] = _mm512_maskz_loadu_epi8(there, row[i] + offset);
        transpose16(out);
    }

    // Loaded once, even for two uses: loads are what few rows of x are short of.
    static T load(const void *p) {
        T a = _mm512_loadu_si512(p);
        __asm__("" : "+v"(a));
        return a;
    }
    static T shifted(T a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); }  // i8 to u8
    static T low_nibbles(T a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
    static T high_nibbles(T a) { return low_nibbles(_mm512_srli_epi32(a, 4)); }
    static void store(void *p, T a) { _mm512_storeu_si512(p, a); }

    // Column c of a word as floats.
    static __m512 f32(T a) { return _mm512_castsi512_ps(a); }
    static __m512 bf16(T a, int c) {
        const T high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
        return f32(c == 0 ? _mm512_slli_epi32(a, 16) : _mm512_and_si512(a, high));
    }
    static __m512 f16(T a, int c) {
        alignas(64) static constexpr short EVEN_ODD[32] = {
            0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
            1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
        const T halves = _mm512_permutexvar_epi16(_mm512_load_si512(EVEN_ODD), a);
        return _mm512_cvtph_ps(c == 0 ? _mm512_castsi512_si256(halves)
                                      : _mm512_extracti64x4_epi64(halves, 1));
    }
};

}  // namespace
}  // namespace headrace
