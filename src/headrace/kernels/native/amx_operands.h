// Operands of the 16-bit AMX engine: bf16 terms of activations and of weights. See amx_bf16.cpp.
#pragma once

#include "amx_task.h"

namespace headrace {
namespace {

constexpr int STEP = 32;      // columns in a tile
constexpr int STEPS = 16;     // tiles along K that are packed at a time
constexpr int FEW_STEPS = 4;  // the same where each is used once: stays in the first cache

std::int64_t steps_of(std::int64_t columns) { return (columns + STEP - 1) / STEP; }

__mmask16 mask_of(std::int64_t lanes) {
    return lanes >= 16 ? 0xffff : lanes <= 0 ? 0 : static_cast<__mmask16>((1u << lanes) - 1);
}

// What a term left of a value; nothing of one that is not finite.
__m512 rest(__m512 value, __m512 taken) {
    return _mm512_maskz_sub_ps(_knot_mask16(_mm512_fpclass_ps_mask(taken, 0x99)), value, taken);
}

__m512 widened(__m256i bf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}

// Formats: how many terms a weight and an activation have, the order of a step's 32 columns, and
// how weights become terms. Columns a are the first sixteen of a step, b the others.

template <int TERMS>
struct Bf16 {
    static constexpr int terms = 1, right_terms = TERMS;

    // Pairs of neighbours, as weights lie: a0 a1, a2 a3, ... b0 b1, ...
    static __m512i pair(__m256i a, __m256i b) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    }
    static void store(__m512i weights, char *to) { _mm512_storeu_si512(to, weights); }
};

template <int TERMS>
struct F16 {
    static constexpr int terms = 2, right_terms = TERMS;

    // a0 b0, a1 b1, ...: cheap to make of two registers.
    static __m512i pair(__m256i a, __m256i b) {
        return _mm512_or_si512(_mm512_cvtepu16_epi32(a),
                               _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
    }
    // Eleven bits: the first eight, and the rest, which is exact.
    static void store(__m512i weights, char *to) {
        const __m512i a = _mm512_castps_si512(_mm512_cvtph_ps(_mm512_castsi512_si256(weights)));
        const __m512i b =
            _mm512_castps_si512(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(weights, 1)));
        _mm512_storeu_si512(to, upper_halves(a, b));
        _mm512_storeu_si512(to + TILE, upper_halves(below(a), below(b)));
    }

 private:
    static constexpr int UPPER = static_cast<int>(0xffff0000);

    static __m512i below(__m512i value) {
        const __m512i head = _mm512_and_si512(value, _mm512_set1_epi32(UPPER));
        return _mm512_castps_si512(
            _mm512_sub_ps(_mm512_castsi512_ps(value), _mm512_castsi512_ps(head)));
    }
    static __m512i upper_halves(__m512i a, __m512i b) {  // (a >> 16) | (b & UPPER)
        return _mm512_ternarylogic_epi32(_mm512_srli_epi32(a, 16), b, _mm512_set1_epi32(UPPER),
                                         0xf8);
    }
};

// --- the panel: [granule][step][term] tiles of 16 column pairs x 16 rows ---

template <class F>
std::size_t granule_bytes(std::int64_t columns) {
    return static_cast<std::size_t>(steps_of(columns)) * F::right_terms * TILE;
}

template <class F>
std::size_t panel_bytes(std::int64_t rows, const Weight &w) {
    return static_cast<std::size_t>((rows + GRANULE - 1) / GRANULE) * granule_bytes<F>(w.columns);
}

template <class F>
void pack_step(const float *const *rows, int height, std::int64_t k, std::int64_t columns,
               char *to) {
    __m512i terms[F::right_terms][16];
    const __mmask16 first = mask_of(columns - k), second = mask_of(columns - k - 16);
    for (int m = 0; m < 16; ++m) {
        __m512 a = _mm512_setzero_ps(), b = a;
        if (m < height) {
            a = _mm512_maskz_loadu_ps(first, rows[m] + k);
            b = _mm512_maskz_loadu_ps(second, rows[m] + k + 16);
        }
        for (int t = 0; t < F::right_terms; ++t) {
            const auto head_a = (__m256i)_mm512_cvtneps_pbh(a);
            const auto head_b = (__m256i)_mm512_cvtneps_pbh(b);
            terms[t][m] = F::pair(head_a, head_b);
            if (t + 1 < F::right_terms) {
                a = rest(a, widened(head_a));
                b = rest(b, widened(head_b));
            }
        }
    }
    for (int t = 0; t < F::right_terms; ++t) {
        transpose16(terms[t]);
        for (int pair = 0; pair < 16; ++pair) {
            _mm512_storeu_si512(to + t * TILE + pair * 64, terms[t][pair]);
        }
    }
}

template <class F>
void pack(const float *const *rows, std::int64_t count, const Weight &w, std::int64_t first,
          std::int64_t last, void *panel) {
    const std::size_t granule = granule_bytes<F>(w.columns);
    for (std::int64_t g = first; g < last; ++g) {
        char *to = static_cast<char *>(panel) + static_cast<std::size_t>(g) * granule;
        const std::int64_t left = count - g * GRANULE;
        const int height = left < GRANULE ? static_cast<int>(left) : GRANULE;
        for (std::int64_t s = 0; s < steps_of(w.columns); ++s) {
            pack_step<F>(rows + g * GRANULE, height, s * STEP, w.columns,
                         to + s * F::right_terms * TILE);
        }
    }
}

// --- left operands ---

struct Local {
    alignas(64) float sums[SUM_TILES][256];     // [n][m] each
    alignas(64) char left[2][STEPS][2 * TILE];  // two operands, up to two terms
};
static_assert(sizeof(Local) <= LOCAL_BYTES, "a task's memory");

// Sixteen weight rows over one block of K: terms of a step lie `term` bytes apart, steps `step`.
struct Left {
    const char *at;
    std::int64_t stride, step, term;
};

// Weight rows n .. n + 16 (fewer at the end: zeros) over `columns` columns from k on.
template <class F>
Left left_of(const Weight &w, std::int64_t n, std::int64_t n1, std::int64_t k,
             std::int64_t columns, bool copy, char (&memory)[STEPS][2 * TILE]) {
    const std::int64_t height = n1 - n < 16 ? n1 - n : 16;
    const bool whole = height == 16 && columns % STEP == 0;
    if (F::terms == 1 && whole && !copy) return {w.row(n) + 2 * k, 2 * w.columns, 64, 0};
    const std::int64_t steps = steps_of(columns);
    for (std::int64_t i = 0; i < 16; ++i) {
        const char *from = i < height ? w.row(n + i) + 2 * k : nullptr;
        for (std::int64_t s = 0; s < steps; ++s) {
            const std::int64_t left = from == nullptr ? 0 : columns - s * STEP;
            const __mmask32 mask = left >= STEP ? ~0u : (1u << left) - 1;
            F::store(_mm512_maskz_loadu_epi16(mask, from + 64 * s), memory[s] + 64 * i);
        }
    }
    return {memory[0], 64, 2 * TILE, TILE};
}

}  // namespace
}  // namespace headrace
