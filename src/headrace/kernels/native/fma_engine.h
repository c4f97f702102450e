// fp32 multiply-add: weights widened in registers, accumulators along K. Written once against the
// vector layer included before it; each instruction set compiles its own copy.
//
// A result is a sum over blocks of K_BLOCK columns; a block is summed in `width` lanes, column
// c in lane c mod width (where two vectors come from one word: c / 2 mod width, even columns of a step
// before odd ones), and the lanes by one fixed tree. So neither the tile that a row falls
// in, nor how many rows there are, can change a bit.
#pragma once

#include <cstring>

#include "fma_tile.h"

namespace headrace {
namespace {

// A block of K: its first column, columns, and vectors of them in a panel whose rows are padded to
// whole steps.
struct Block {
    std::int64_t k, columns, vectors;

    Block(std::int64_t k, std::int64_t K, int step)
        : k(k),
          columns(K - k < K_BLOCK ? K - k : K_BLOCK),
          vectors(up_to(columns, step) / Vec::width) {}
};

// A step of one weight row, a vector every `stride` floats.
template <class F>
inline void widen_step(const typename F::Item *from, int stride, float *to) {
    Vec::store(to, F::template load<0>(from));
    if constexpr (F::vectors == 2) Vec::store(to + stride, F::template load<1>(from));
}

// Columns of one weight row.
template <class F>
void widen_row(F, const Weight &w, std::int64_t n, const Block &b, int stride, float *to) {
    const auto *from = reinterpret_cast<const typename F::Item *>(w.row(n)) + b.k;
    const std::int64_t steps = b.columns / STEP<F>, left = b.columns % STEP<F>;
    for (std::int64_t s = 0; s < steps; ++s) {
        widen_step<F>(from + s * STEP<F>, stride, to + s * F::vectors * stride);
    }
    if (left != 0) {
        typename F::Item padded[STEP<F>] = {};
        std::memcpy(padded, from + steps * STEP<F>, static_cast<std::size_t>(left) * sizeof *from);
        widen_step<F>(padded, stride, to + steps * F::vectors * stride);
    }
}

// Groups of WIDE_NR weight rows as fp32, [vector][row][width]; rows beyond the last are zeros.
template <class F>
void widen(const Weight &w, std::int64_t n, int rows, const Block &b, float *to) {
    constexpr int width = Vec::width, group = WIDE_NR * width;
    for (int i = 0; i < WIDE_NR; ++i, to += width) {
        if (i < rows) {
            widen_row(F(), w, n + i, b, group, to);
        } else {
            for (std::int64_t s = 0; s < b.vectors; ++s) Vec::store(to + s * group, Vec::zero());
        }
    }
}

// Many tiles: a group of weight rows is widened into the first-level cache and meets all of them.
template <class F>
void sum_widened(const Weight &w, const Part &p, float *wide, float *sums) {
    const std::int64_t padded = up_to(w.columns, STEP<F>);
    for (std::int64_t k = 0; k < w.columns; k += K_BLOCK) {
        const Block b(k, w.columns, STEP<F>);
        for (int n = 0; n < p.rows; n += WIDE_NR) {
            const int group = p.rows - n < WIDE_NR ? p.rows - n : WIDE_NR;
            widen<F>(w, p.n0 + n, group, b, wide);
            const int next = p.rows - n - group < WIDE_NR ? p.rows - n - group : WIDE_NR;
            for (std::int64_t g = p.g0; g < p.g1; ++g) {
                const int height = tile_rows(g, p.count);
                prefetch_rows(w.row(p.n0 + n + group) + F::bytes(k), w.row_bytes, next,
                              F::bytes(b.columns), g - p.g0, p.g1 - p.g0);
                wide_tile(height, tile_of(p.panel, g, padded) + k * height, wide, b.vectors, k == 0,
                          sums + (g - p.g0) * N_BLOCK * MR + n * MR);
            }
        }
    }
}

// Few tiles: weights go straight from where they lie into registers, for one tile after another.
template <class F>
void sum_stored(const Weight &w, const Part &p, float *sums) {
    const std::int64_t K = w.columns, padded = up_to(K, STEP<F>);
    const auto *first = reinterpret_cast<const typename F::Item *>(w.row(p.n0));
    const int group = NR[p.g1 - p.g0 > 1 ? MR : tile_rows(p.g0, p.count)];
    for (int n = 0; n < p.rows; n += group) {
        const int here = p.rows - n < group ? p.rows - n : group;
        for (std::int64_t k = 0; k < K; k += K_BLOCK) {
            const Block b(k, K, STEP<F>);
            for (std::int64_t g = p.g0; g < p.g1; ++g) {
                const int height = tile_rows(g, p.count);
                const float *x = tile_of(p.panel, g, padded) + k * height;
                float *out = sums + (g - p.g0) * N_BLOCK * MR + n * MR;
                for (int i = 0; i < here;) {
                    i += stored_tile<F>(height, x, first + (n + i) * K + k, K, here - i,
                                        p.rows - n - i, b.columns, k == 0, out + i * MR);
                }
            }
        }
    }
}

// The same bits either way.
template <class F>
struct Products {
    using Memory = float[WIDE_NR * K_BLOCK];

    static void sum(const Weight &w, const Part &p, Memory &wide, float *sums) {
        if (w.columns == 0) {
            std::memset(sums, 0, sizeof(float) * N_BLOCK * MR * static_cast<size_t>(p.g1 - p.g0));
        } else if (p.g1 - p.g0 > FEW_TILES) {
            sum_widened<F>(w, p, wide, sums);
        } else {
            sum_stored<F>(w, p, sums);
        }
    }
};

template <class S, class Kept = AsIs, int VECTORS = 1>
constexpr Engine engine(const char *name) {
    return {name,      MR,          2 * WIDE_NR, panel_bytes, pack<Kept, VECTORS>,
            task_rows, multiply<S>, gated<S>};
}

inline const Engine *engine_of(Format format, const char *name) {
    static const Engine f32 = engine<Products<F32>>(name), f16 = engine<Products<F16>>(name),
                        bf16 = engine<Products<Bf16>, AsIs, Bf16::vectors>(name);
    return format == Format::f32 ? &f32 : format == Format::bf16 ? &bf16 : &f16;
}

inline const Engine *rounded_engine_of(Format format, const char *name) {
    static const Engine bf16 = engine<Products<Bf16>, Rounded, Bf16::vectors>(name);
    return format == Format::bf16 ? &bf16 : nullptr;
}

}  // namespace
}  // namespace headrace
