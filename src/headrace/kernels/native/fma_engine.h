// fp32 multiply-add: weights widened in registers, accumulators along K. Written once against the
// vector layer included before it; each instruction set compiles its own copy.
//
// A result is a sum over blocks of K_BLOCK columns; a block is summed in `width` lanes, column
// c in lane c mod width, and the lanes by one fixed tree. So neither the tile that a row falls
// in, nor how many rows there are, can change a bit.
#pragma once

#include <cstring>

#include "fma_tile.h"

namespace headrace {
namespace {

// Some columns of a block of K: the first, how many, vectors of them in the panel, and whether they
// are the first and the last of their block.
struct Piece {
    std::int64_t k, columns, vectors;
    bool first, last;

    Piece(std::int64_t k, std::int64_t end, std::int64_t most, int step)
        : k(k),
          columns(end - k < most ? end - k : most),
          vectors(up_to(columns, step) / Vec::width),
          first(k % K_BLOCK == 0),
          last((k + columns) % K_BLOCK == 0 || k + columns == end) {}

    Sums to(float *lanes, float *sums) const { return {lanes, first, last, k < K_BLOCK, sums}; }
};

// Columns of one weight row, a vector every `stride` floats.
template <class F>
void widen_row(F, const Weight &w, std::int64_t n, const Piece &p, int stride, float *to) {
    const auto *from = reinterpret_cast<const typename F::Item *>(w.row(n)) + p.k;
    const auto put = [&](const typename F::Item *at) {
        Vec::store(to, F::template load<0>(at));
        if constexpr (F::vectors == 2) Vec::store(to + stride, F::template load<1>(at));
        to += F::vectors * stride;
    };
    std::int64_t c = 0;
    for (; c + STEP<F> <= p.columns; c += STEP<F>) put(from + c);
    if (c < p.columns) {
        typename F::Item padded[STEP<F>] = {};
        std::memcpy(padded, from + c, static_cast<std::size_t>(p.columns - c) * sizeof *from);
        put(padded);
    }
}

// Groups of WIDE_NR weight rows as fp32, [vector][row][width]; rows beyond the last are zeros.
template <class F>
void widen(const Weight &w, std::int64_t n, int rows, const Piece &p, float *to) {
    constexpr int width = Vec::width, group = WIDE_NR * width;
    for (int i = 0; i < WIDE_NR; ++i, to += width) {
        if (i < rows) {
            widen_row(F(), w, n + i, p, group, to);
        } else {
            for (std::int64_t s = 0; s < p.vectors; ++s) Vec::store(to + s * group, Vec::zero());
        }
    }
}

// A task's memory: one group of weight rows widened, and sums that wait for their next piece.
struct Waiting {
    float wide[WIDE_NR * K_BLOCK];
    alignas(64) float lanes[AT_ONCE == 0 ? 1 : AT_ONCE * N_BLOCK * MR * Vec::width];
};

// Some tiles of x, a piece of K: a group of weight rows is widened into the first-level cache and
// meets all of them.
template <class F>
void meet_widened(const Weight &w, const Part &p, const Piece &piece, Waiting &memory, float *sums) {
    const std::int64_t padded = up_to(w.columns, STEP<F>);
    for (int n = 0; n < p.rows; n += WIDE_NR) {
        const int group = p.rows - n < WIDE_NR ? p.rows - n : WIDE_NR;
        widen<F>(w, p.n0 + n, group, piece, memory.wide);
        const int next = p.rows - n - group < WIDE_NR ? p.rows - n - group : WIDE_NR;
        for (std::int64_t g = p.g0; g < p.g1; ++g) {
            const int height = tile_rows(g, p.count);
            prefetch_rows(w.row(p.n0 + n + group) + F::bytes(piece.k), w.row_bytes, next,
                          F::bytes(piece.columns), g - p.g0, p.g1 - p.g0);
            const std::int64_t at = (g - p.g0) * N_BLOCK * MR;
            wide_tile(height, tile_of(p.panel, g, padded) + piece.k * height, memory.wide,
                      piece.vectors, piece.to(memory.lanes + at * Vec::width, sums + at).from(n));
        }
    }
}

// The same, and weights go straight from where they lie into registers, for one tile after another.
// What is asked for are the next weight rows: to the processor new streams.
template <class F>
void meet_stored(const Weight &w, const Part &p, const Piece &piece, int n, int group, float *lanes,
                 float *sums) {
    const std::int64_t K = w.columns, padded = up_to(K, STEP<F>);
    const auto *first = reinterpret_cast<const typename F::Item *>(w.row(p.n0)) + piece.k;
    const int here = p.rows - n < group ? p.rows - n : group;
    const std::int64_t ahead = p.rows - n < 2 * group ? 0 : group * K;
    for (std::int64_t g = p.g0; g < p.g1; ++g) {
        const int height = tile_rows(g, p.count);
        const float *x = tile_of(p.panel, g, padded) + piece.k * height;
        const std::int64_t at = (g - p.g0) * N_BLOCK * MR;
        const Sums to = piece.to(lanes + at * Vec::width, sums + at);
        if (height == MR && here == WIDE_NR) {
            stored_tile<F, MR, WIDE_NR>(x, first + n * K, K, piece.columns, ahead, to.from(n));
            continue;
        }
        for (int i = 0; i < here;) {
            i += stored_tile<F>(height, x, first + (n + i) * K, K, here - i, piece.columns, ahead,
                                to.from(n + i));
        }
    }
}

// Many tiles of x.
template <class F, bool WIDEN>
void sum_pieces(const Weight &w, const Part &p, Waiting &memory, float *sums) {
    const std::int64_t tiles = AT_ONCE == 0 ? p.g1 - p.g0 : AT_ONCE;
    for (Part some = p; some.g0 < p.g1; some.g0 = some.g1) {
        some.g1 = some.g0 + tiles < p.g1 ? some.g0 + tiles : p.g1;
        const std::int64_t most = piece_for(some.g1 - some.g0);
        float *out = sums + (some.g0 - p.g0) * N_BLOCK * MR;
        for (std::int64_t k = 0; k < w.columns;) {
            const Piece piece(k, w.columns, most, STEP<F>);
            if constexpr (WIDEN) {
                meet_widened<F>(w, some, piece, memory, out);
            } else {
                for (int n = 0; n < p.rows; n += WIDE_NR) {
                    meet_stored<F>(w, some, piece, n, WIDE_NR, memory.lanes, out);
                }
            }
            k += piece.columns;
        }
    }
}

// Few tiles: weight rows from beginning to end.
template <class F>
void sum_rows(const Weight &w, const Part &p, float *sums) {
    const int group = NR[p.g1 - p.g0 > 1 ? MR : tile_rows(p.g0, p.count)];
    for (int n = 0; n < p.rows; n += group) {
        for (std::int64_t k = 0; k < w.columns; k += K_BLOCK) {
            meet_stored<F>(w, p, Piece(k, w.columns, K_BLOCK, STEP<F>), n, group, nullptr, sums);
        }
    }
}

// The same bits either way.
template <class F>
struct Products {
    using Memory = Waiting;

    static void sum(const Weight &w, const Part &p, Memory &memory, float *sums) {
        const std::int64_t tiles = p.g1 - p.g0;
        if (w.columns == 0) {
            std::memset(sums, 0, sizeof(float) * N_BLOCK * MR * static_cast<size_t>(tiles));
        } else if (tiles <= FEW_TILES) {
            sum_rows<F>(w, p, sums);
        } else if (tiles <= STORED_TILES<F>) {
            sum_pieces<F, false>(w, p, memory, sums);
        } else {
            sum_pieces<F, true>(w, p, memory, sums);
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
