// The register tile of fp32 multiply-add, and the panel it reads. Include after a vector layer.
#pragma once

#include <cstring>

#include "prefetch.h"
#include "rounded.h"
#include "tile_task.h"

namespace headrace {
namespace {

constexpr std::int64_t K_BLOCK = 1024;  // columns summed before the lanes are

// Few tiles of x meet weight rows from beginning to end. More: x is met in pieces of K that stay in
// the first-level cache while all weight rows of a task pass by, AT_ONCE tiles of it (0: all, in
// whole blocks of K, where a tile has so many weight rows that x may come from further away).
constexpr bool NARROW = Vec::registers == 16;
constexpr std::int64_t FEW_TILES = NARROW ? 1 : 4, AT_ONCE = NARROW ? 4 : 0;

constexpr std::int64_t piece_for(std::int64_t tiles) {
    return !NARROW || tiles == 1 ? K_BLOCK : tiles == 2 ? 512 : 256;
}

// A format: the items of a weight row, and how many vectors of floats one step of them gives, the
// V-th by `load<V>`. Where there are two, the first has the even columns of a step and the second the
// odd ones, and x lies in the panel likewise.
struct F32 {
    using Item = float;
    static constexpr int vectors = 1;
    static std::size_t bytes(std::int64_t columns) { return 4 * static_cast<size_t>(columns); }
    template <int V>
    static Vec::T load(const Item *p) {
        return Vec::load(p);
    }
};
struct F16 {
    using Item = std::uint16_t;
    static constexpr int vectors = 1;
    static std::size_t bytes(std::int64_t columns) { return 2 * static_cast<size_t>(columns); }
    template <int V>
    static Vec::T load(const Item *p) {
        return Vec::widen_f16(p);
    }
};
template <class Layer, int VECTORS>
struct Bf16Of {
    template <int V>
    static typename Layer::T load(const std::uint16_t *p) {
        return Layer::widen_bf16(p);
    }
};
template <class Layer>
struct Bf16Of<Layer, 2> {
    template <int V>
    static typename Layer::T load(const std::uint16_t *p) {
        return V == 0 ? Layer::even_bf16(p) : Layer::odd_bf16(p);
    }
};
struct Bf16 : Bf16Of<Vec, Vec::bf16_vectors> {
    using Item = std::uint16_t;
    static constexpr int vectors = Vec::bf16_vectors;
    static std::size_t bytes(std::int64_t columns) { return 2 * static_cast<size_t>(columns); }
};

// Tiles up to which weights are widened anew for each: to widen bf16 in registers costs nothing where
// two vectors come from one word.
template <class F>
constexpr std::int64_t STORED_TILES = NARROW &&(F::vectors == 2 || sizeof(typename F::Item) == 4)
                                          ? MAX_ROWS
                                          : 2;

// Columns of a step.
template <class F>
constexpr int STEP = F::vectors *Vec::width;

// --- the panel: tiles of MR rows (the last may have fewer), K padded with zeros, [vector][row] ---

constexpr int step_of(Format format) { return format == Format::bf16 ? STEP<Bf16> : Vec::width; }

std::size_t panel_bytes(std::int64_t rows, const Weight &w) {
    return static_cast<std::size_t>(rows * up_to(w.columns, step_of(w.format))) * sizeof(float);
}

float *tile_of(void *panel, std::int64_t tile, std::int64_t padded) {
    return static_cast<float *>(panel) + tile * MR * padded;
}

const float *tile_of(const void *panel, std::int64_t tile, std::int64_t padded) {
    return static_cast<const float *>(panel) + tile * MR * padded;
}

// Values of one row, a vector every `stride` floats.
template <class Kept, class Layer, int VECTORS>
struct Packing {
    static void row(const float *from, std::int64_t columns, std::int64_t stride, float *to) {
        std::int64_t c = 0;
        for (; c + Layer::width <= columns; c += Layer::width, to += stride) {
            Layer::store(to, Kept::of(Layer::load(from + c)));
        }
        if (c < columns) {
            const auto some = Layer::load_some(from + c, static_cast<int>(columns - c));
            Layer::store(to, Kept::of(some));
        }
    }
};
template <class Kept, class Layer>
struct Packing<Kept, Layer, 2> {
    static void row(const float *from, std::int64_t columns, std::int64_t stride, float *to) {
        constexpr int width = Layer::width, step = 2 * width;
        for (std::int64_t c = 0; c < columns; c += step, to += 2 * stride) {
            float padded[step] = {};
            const float *at = from + c;
            if (columns - c < step) {
                std::memcpy(padded, at, static_cast<std::size_t>(columns - c) * sizeof *at);
                at = padded;
            }
            typename Layer::T even = Kept::of(Layer::load(at)), odd = Kept::of(Layer::load(at + width));
            Layer::part(even, odd);
            Layer::store(to, even);
            Layer::store(to + stride, odd);
        }
    }
};

template <class Kept, int VECTORS>
void pack(const float *const *rows, std::int64_t count, const Weight &w, std::int64_t first,
          std::int64_t last, void *panel) {
    const std::int64_t padded = up_to(w.columns, VECTORS * Vec::width);
    for (std::int64_t tile = first; tile < last; ++tile) {
        const int height = tile_rows(tile, count);
        for (int m = 0; m < height; ++m) {
            Packing<Kept, Vec, VECTORS>::row(rows[tile * MR + m], w.columns, height * Vec::width,
                                             tile_of(panel, tile, padded) + m * Vec::width);
        }
    }
}

// --- the register tile ---

// Where sums of a tile go. A block of K may be met in pieces: between them the lanes' sums wait in
// `lanes`, [n][MR] vectors, and behind the last they are added up and go to `sums`, [n][MR].
struct Sums {
    float *lanes;
    bool first, last;  // piece of a block
    bool set;          // or add to what is there
    float *sums;

    // The same from the n-th weight row on.
    Sums from(int n) const { return {lanes + n * MR * Vec::width, first, last, set, sums + n * MR}; }
};

// acc[n][m] += the V-th vector of a step of weight row n, times row m of x. The loops are unrolled
// and the smaller side is held in registers: there are sixteen, and twelve hold sums.
template <class F, int V, int HEIGHT, int NR>
[[gnu::always_inline]] inline void meet(const float *x, const typename F::Item *const *w,
                                        std::int64_t at, Vec::T (&acc)[NR][HEIGHT]) {
    if constexpr (NR < HEIGHT) {
        Vec::T weight[NR];
#pragma GCC unroll 8
        for (int n = 0; n < NR; ++n) weight[n] = F::template load<V>(w[n] + at);
#pragma GCC unroll 8
        for (int m = 0; m < HEIGHT; ++m) {
            const Vec::T value = Vec::load(x + m * Vec::width);
#pragma GCC unroll 8
            for (int n = 0; n < NR; ++n) acc[n][m] = Vec::fma(value, weight[n], acc[n][m]);
        }
    } else {
        Vec::T value[HEIGHT];
#pragma GCC unroll 8
        for (int m = 0; m < HEIGHT; ++m) value[m] = Vec::load(x + m * Vec::width);
#pragma GCC unroll 8
        for (int n = 0; n < NR; ++n) {
            const Vec::T weight = F::template load<V>(w[n] + at);
#pragma GCC unroll 8
            for (int m = 0; m < HEIGHT; ++m) acc[n][m] = Vec::fma(value[m], weight, acc[n][m]);
        }
    }
}

// A whole step. Returns where x goes on.
template <class F, int HEIGHT, int NR>
[[gnu::always_inline]] inline const float *step(const float *x, const typename F::Item *const *w,
                                                std::int64_t at, Vec::T (&acc)[NR][HEIGHT]) {
    meet<F, 0>(x, w, at, acc);
    x += HEIGHT * Vec::width;
    if constexpr (F::vectors == 2) {
        meet<F, 1>(x, w, at, acc);
        x += HEIGHT * Vec::width;
    }
    return x;
}

// The products of HEIGHT rows of x and NR rows of w over a piece of a block of K: `steps` of them,
// STRIDE items apart in w. Beyond HEIGHT, sums repeat. Weights where they lie are asked for `ahead`
// items before they are used. Returns where x goes on.
template <class F, int HEIGHT, int NR, int STRIDE>
inline const float *tile(const float *x, const typename F::Item *const *w, std::int64_t steps,
                         const Sums &to, std::int64_t ahead = 0) {
    Vec::T acc[NR][HEIGHT];
#pragma GCC unroll 8
    for (int n = 0; n < NR; ++n) {
#pragma GCC unroll 8
        for (int m = 0; m < HEIGHT; ++m) {
            acc[n][m] = to.first ? Vec::zero() : Vec::load(to.lanes + (n * MR + m) * Vec::width);
        }
    }
    for (std::int64_t at = 0; at < steps * STRIDE; at += STRIDE) {
        if (STRIDE == STEP<F>) {
#pragma GCC unroll 8
            for (int n = 0; n < NR; ++n) prefetch_close(w[n] + at + ahead);
        }
        x = step<F>(x, w, at, acc);
    }
#pragma GCC unroll 8
    for (int n = 0; n < NR; ++n) {
        if (to.last) {
            constexpr int last = HEIGHT - 1;
            const Vec::Quad part = Vec::sum4(acc[n][0], acc[n][last < 1 ? last : 1],
                                             acc[n][last < 2 ? last : 2], acc[n][last]);
            float *out = to.sums + n * MR;
            Vec::store4(out, to.set ? part : Vec::add4(Vec::load4(out), part));
        } else {
#pragma GCC unroll 8
            for (int m = 0; m < HEIGHT; ++m) {
                Vec::store(to.lanes + (n * MR + m) * Vec::width, acc[n][m]);
            }
        }
    }
    return x;
}

// Weight rows in a register tile. Tall tiles are as wide as the registers allow, low ones wide
// enough to hide latency.
constexpr int ROWS[2][MR + 1] = {{0, 8, 4, 3, 3}, {0, 8, 8, 6, 6}};
constexpr const int (&NR)[MR + 1] = ROWS[Vec::registers == 32];
constexpr int WIDE_NR = NR[MR];
static_assert(N_BLOCK % WIDE_NR == 0, "a task is cut into whole register tiles");

// One group of WIDE_NR weight rows that were widened: vector by vector, padded with zeros.
template <int HEIGHT>
void wide_tile(const float *x, const float *w, std::int64_t vectors, const Sums &to) {
    const float *at[WIDE_NR];
    for (int i = 0; i < WIDE_NR; ++i) at[i] = w + i * Vec::width;
    tile<F32, HEIGHT, WIDE_NR, WIDE_NR * Vec::width>(x, at, vectors, to);
}

void wide_tile(int height, const float *x, const float *w, std::int64_t vectors, const Sums &to) {
    switch (height) {
        case 1: return wide_tile<1>(x, w, vectors, to);
        case 2: return wide_tile<2>(x, w, vectors, to);
        case 3: return wide_tile<3>(x, w, vectors, to);
        default: return wide_tile<4>(x, w, vectors, to);
    }
}

// Some steps, then one of `tail` columns.
template <class F, int HEIGHT, int NR>
[[gnu::noinline]] void last_tile(const float *x, const typename F::Item *const *w,
                                 std::int64_t steps, int tail, const Sums &to) {
    float lanes[NR * MR * Vec::width];
    Sums some{lanes, to.first, false, to.set, to.sums};
    if (!to.first) std::memcpy(lanes, to.lanes, sizeof lanes);
    x = tile<F, HEIGHT, NR, STEP<F>>(x, w, steps, some);
    typename F::Item padded[NR][STEP<F>] = {};
    const typename F::Item *at[NR];
    for (int n = 0; n < NR; ++n) {
        std::memcpy(padded[n], w[n] + steps * STEP<F>, sizeof padded[n][0] * static_cast<unsigned>(tail));
        at[n] = padded[n];
    }
    some.first = false;
    some.last = true;
    tile<F, HEIGHT, NR, STEP<F>>(x, at, 1, some);
}

// The same of `columns` columns of weight rows where they lie; the last step may lack some.
template <class F, int HEIGHT, int NR>
inline void stored_tile(const float *x, const typename F::Item *w, std::int64_t stride,
                        std::int64_t columns, std::int64_t ahead, const Sums &to) {
    const typename F::Item *at[NR];
    for (int i = 0; i < NR; ++i) at[i] = w + i * stride;
    const std::int64_t steps = columns / STEP<F>;
    if (columns % STEP<F> == 0) {
        tile<F, HEIGHT, NR, STEP<F>>(x, at, steps, to, ahead);
    } else {
        last_tile<F, HEIGHT, NR>(x, at, steps, static_cast<int>(columns % STEP<F>), to);
    }
}

// `rows` weight rows, or the first that fit a register tile; returns how many.
template <class F, int HEIGHT>
int stored_tile(const float *x, const typename F::Item *w, std::int64_t stride, int rows,
                std::int64_t columns, std::int64_t ahead, const Sums &to) {
    if (rows < NR[HEIGHT]) {
        stored_tile<F, HEIGHT, 1>(x, w, stride, columns, 0, to);
        return 1;
    }
    stored_tile<F, HEIGHT, NR[HEIGHT]>(x, w, stride, columns, ahead, to);
    return NR[HEIGHT];
}

template <class F>
int stored_tile(int height, const float *x, const typename F::Item *w, std::int64_t stride,
                int rows, std::int64_t columns, std::int64_t ahead, const Sums &to) {
    switch (height) {
        case 1: return stored_tile<F, 1>(x, w, stride, rows, columns, ahead, to);
        case 2: return stored_tile<F, 2>(x, w, stride, rows, columns, ahead, to);
        case 3: return stored_tile<F, 3>(x, w, stride, rows, columns, ahead, to);
        default: return stored_tile<F, 4>(x, w, stride, rows, columns, ahead, to);
    }
}

}  // namespace
}  // namespace headrace
