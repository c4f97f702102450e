// 16-bit weights on AMX tiles. fp32 activations are split into bf16 terms whose sum they are to
// 2^-18 (two terms) or exactly (three); fp16 weights into two. Products of terms are summed in
// fp32 by the tile unit, column pair by column pair, so a result is one chain along K.
//
// Weights are the left operand, tile rows as they lie in the checkpoint; activations the right
// one, packed in pairs of columns. A tile of results is [16 weight rows, 16 rows of x].
#include "engine.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)

#include "vec_avx512.h"

#include "epilogue.h"
#include "local.h"
#include "transpose16.h"

namespace headrace {
namespace {

constexpr int TERMS = 2;          // of an activation
constexpr int GRANULE = 16;       // rows of x in a tile
constexpr int STEP = 32;          // columns in a tile
constexpr int STEPS = 16;         // tiles along K that are packed at a time
constexpr int TILE = 1024;        // bytes
constexpr int SUM_TILES = 256;    // tiles of partial sums that a task may hold
constexpr std::int64_t K_BLOCK = STEP * STEPS;

std::int64_t steps_of(std::int64_t columns) { return (columns + STEP - 1) / STEP; }

void fence() { __asm__ volatile("" ::: "memory"); }  // tile intrinsics do not declare memory

// Eight full tiles for the life of the object.
struct Tiles {
    Tiles() {
        alignas(64) struct {
            std::uint8_t palette = 1, start = 0, reserved[14] = {};
            std::uint16_t row_bytes[16] = {};
            std::uint8_t rows[16] = {};
        } config;
        for (int i = 0; i < 8; ++i) {
            config.row_bytes[i] = 64;
            config.rows[i] = 16;
        }
        __asm__ volatile("" ::"r"(&config) : "memory");
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
};

// --- the panel: [granule][step][term] tiles of 16 column pairs x 16 rows ---

std::size_t granule_bytes(std::int64_t columns) {
    return static_cast<std::size_t>(steps_of(columns)) * TERMS * TILE;
}

std::size_t panel_bytes(std::int64_t rows, std::int64_t columns) {
    return static_cast<std::size_t>((rows + GRANULE - 1) / GRANULE) * granule_bytes(columns);
}

__m512 low_half(__m512i pairs) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(pairs)), 16));
}

__m512 high_half(__m512i pairs) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(pairs, 1)), 16));
}

// What bf16 left of a value; nothing of one that is not finite.
__m512 rest(__m512 value, __m512 taken) {
    return _mm512_maskz_sub_ps(_knot_mask16(_mm512_fpclass_ps_mask(taken, 0x99)), value, taken);
}

__mmask16 mask_of(std::int64_t lanes) {
    return lanes >= 16 ? 0xffff : lanes <= 0 ? 0 : static_cast<__mmask16>((1u << lanes) - 1);
}

void pack_step(const float *const *rows, int height, std::int64_t k, std::int64_t columns,
               char *to) {
    __m512i terms[TERMS][16];
    const __mmask16 first = mask_of(columns - k), second = mask_of(columns - k - 16);
    for (int m = 0; m < 16; ++m) {
        __m512 a = _mm512_setzero_ps(), b = a;
        if (m < height) {
            a = _mm512_maskz_loadu_ps(first, rows[m] + k);
            b = _mm512_maskz_loadu_ps(second, rows[m] + k + 16);
        }
        for (int t = 0; t < TERMS; ++t) {
            const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh(b, a);
            terms[t][m] = pairs;
            if (t + 1 < TERMS) {
                a = rest(a, low_half(pairs));
                b = rest(b, high_half(pairs));
            }
        }
    }
    for (int t = 0; t < TERMS; ++t) {
        transpose16(terms[t]);
        for (int pair = 0; pair < 16; ++pair) {
            _mm512_storeu_si512(to + t * TILE + pair * 64, terms[t][pair]);
        }
    }
}

void pack(const float *const *rows, std::int64_t count, std::int64_t columns, std::int64_t first,
          std::int64_t last, void *panel) {
    for (std::int64_t g = first; g < last; ++g) {
        char *to = static_cast<char *>(panel) + static_cast<std::size_t>(g) * granule_bytes(columns);
        const std::int64_t left = count - g * GRANULE;
        const int height = left < GRANULE ? static_cast<int>(left) : GRANULE;
        for (std::int64_t s = 0; s < steps_of(columns); ++s) {
            pack_step(rows + g * GRANULE, height, s * STEP, columns, to + s * TERMS * TILE);
        }
    }
}

// --- left operands ---

struct Local {
    alignas(64) float sums[SUM_TILES][256];             // [n][m] each
    alignas(64) char left[2][STEPS][2 * TILE];          // two operands, up to two terms
    alignas(64) float row[16][16];
};
static_assert(sizeof(Local) <= LOCAL_BYTES, "a task's memory");

// Sixteen weight rows over one block of K: terms of a step lie `term` bytes apart, steps `step`.
struct Left {
    const char *at;
    std::int64_t stride, step, term;
};

struct Bf16 {
    static constexpr int terms = 1;
    static void widen(__m512i pairs, char *to) { _mm512_storeu_si512(to, pairs); }
};

struct F16 {
    static constexpr int terms = 2;
    static void widen(__m512i halves, char *to) {
        const __m512 a = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
        const __m512 b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
        const __m512i head = (__m512i)_mm512_cvtne2ps_pbh(b, a);
        const __m512 a_rest = rest(a, low_half(head)), b_rest = rest(b, high_half(head));
        _mm512_storeu_si512(to, head);
        _mm512_storeu_si512(to + TILE, (__m512i)_mm512_cvtne2ps_pbh(b_rest, a_rest));
    }
};

// Weight rows n .. n + 16 (fewer at the end: zeros) over columns k .. k + K_BLOCK.
template <class F>
Left left_of(const Weight &w, std::int64_t n, std::int64_t n1, std::int64_t k, bool copy,
             char (&memory)[STEPS][2 * TILE]) {
    const std::int64_t height = n1 - n < 16 ? n1 - n : 16;
    const std::int64_t columns = w.columns - k < K_BLOCK ? w.columns - k : K_BLOCK;
    const bool whole = height == 16 && columns % STEP == 0;
    if (F::terms == 1 && whole && !copy) return {w.row(n) + 2 * k, 2 * w.columns, 64, 0};
    const std::int64_t steps = steps_of(columns);
    for (std::int64_t i = 0; i < 16; ++i) {
        const char *from = i < height ? w.row(n + i) + 2 * k : nullptr;
        for (std::int64_t s = 0; s < steps; ++s) {
            const std::int64_t left = from == nullptr ? 0 : columns - s * STEP;
            const __mmask32 mask = left >= STEP ? ~0u : (1u << left) - 1;
            const __m512i pairs = _mm512_maskz_loadu_epi16(mask, from + 64 * s);
            F::widen(pairs, memory[s] + 64 * i);
        }
    }
    return {memory[0], 64, 2 * TILE, TILE};
}

// --- tiles: sums in 0..3 (left 0: 0 and 2, left 1: 1 and 3), left in 4, 5, right in 6, 7 ---

template <int LEFT, int RIGHT>
void zero_sums() {
    _tile_zero(0);
    if (LEFT > 1) _tile_zero(1);
    if (RIGHT > 1) _tile_zero(2);
    if (LEFT > 1 && RIGHT > 1) _tile_zero(3);
}

template <int LEFT, int RIGHT>
void load_sums(float (*const (&at)[4])[256]) {
    _tile_loadd(0, at[0], 64);
    if (LEFT > 1) _tile_loadd(1, at[1], 64);
    if (RIGHT > 1) _tile_loadd(2, at[2], 64);
    if (LEFT > 1 && RIGHT > 1) _tile_loadd(3, at[3], 64);
}

template <int LEFT, int RIGHT>
void store_sums(float (*const (&at)[4])[256]) {
    _tile_stored(0, at[0], 64);
    if (LEFT > 1) _tile_stored(1, at[1], 64);
    if (RIGHT > 1) _tile_stored(2, at[2], 64);
    if (LEFT > 1 && RIGHT > 1) _tile_stored(3, at[3], 64);
    fence();
}

template <class F, int LEFT, int RIGHT>
void advance(const Left (&left)[2], const char *right0, const char *right1, std::int64_t steps) {
    fence();
    for (std::int64_t s = 0; s < steps; ++s) {
        for (int v = 0; v < F::terms; ++v) {
            _tile_loadd(4, left[0].at + s * left[0].step + v * left[0].term, left[0].stride);
            if (LEFT > 1) {
                _tile_loadd(5, left[1].at + s * left[1].step + v * left[1].term, left[1].stride);
            }
            for (int t = 0; t + v < TERMS; ++t) {
                _tile_loadd(6, right0 + t * TILE, 64);
                _tile_dpbf16ps(0, 4, 6);
                if (LEFT > 1) _tile_dpbf16ps(1, 5, 6);
                if (RIGHT > 1) {
                    _tile_loadd(7, right1 + t * TILE, 64);
                    _tile_dpbf16ps(2, 4, 7);
                    if (LEFT > 1) _tile_dpbf16ps(3, 5, 7);
                }
            }
        }
        right0 += TERMS * TILE;
        right1 += TERMS * TILE;
    }
}

}  // namespace
}  // namespace headrace

#include "amx_task.h"

namespace headrace {

const Engine *amx_engine(Format format) {
    static const Engine bf16 = engine<Bf16>(), f16 = engine<F16>();
    return format == Format::bf16 ? &bf16 : format == Format::f16 ? &f16 : nullptr;
}

}  // namespace headrace

#else

const headrace::Engine *headrace::amx_engine(Format) { return nullptr; }

#endif
