// The register tile of fp32 multiply-add, and the panel it reads. Include after a vector layer.
#pragma once

#include <cstring>

#include "prefetch.h"
#include "rounded.h"
#include "tile_task.h"

namespace headrace {
namespace {

constexpr std::int64_t K_BLOCK = 1024;  // columns summed before the lanes are

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

constexpr std::int64_t FEW_TILES = 4;  // up to which weights are widened again for each

// Columns of a step.
template <class F>
constexpr int STEP = F::vectors * Vec::width;

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
            const auto left = static_cast<int>(columns - c < step ? columns - c : step);
            typename Layer::T even = Kept::of(Layer::load_some(from + c, left)), odd = Layer::zero();
            if (left > width) odd = Kept::of(Layer::load_some(from + c + width, left - width));
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

// Adds to (or sets) sums[n][MR] the products of HEIGHT rows of x and NR rows of w over one block of
// K: `steps` of them, STRIDE items apart in w, then one of `some` where it is not null. Beyond
// HEIGHT, sums repeat. Weights where they lie are asked for `ahead` items before they are used.
template <class F, int HEIGHT, int NR, int STRIDE, bool SOME = false>
inline void tile(const float *x, const typename F::Item *const *w, std::int64_t steps, bool set,
                 float *sums, std::int64_t ahead = 0, const typename F::Item *const *some = nullptr) {
    Vec::T acc[NR][HEIGHT];
#pragma GCC unroll 8
    for (int n = 0; n < NR; ++n) {
#pragma GCC unroll 8
        for (int m = 0; m < HEIGHT; ++m) acc[n][m] = Vec::zero();
    }
    for (std::int64_t at = 0; at < steps * STRIDE; at += STRIDE) {
        if (STRIDE == STEP<F>) {
#pragma GCC unroll 8
            for (int n = 0; n < NR; ++n) prefetch_close(w[n] + at + ahead);
        }
        x = step<F>(x, w, at, acc);
    }
    if constexpr (SOME) step<F>(x, some, 0, acc);
#pragma GCC unroll 8
    for (int n = 0; n < NR; ++n) {
        constexpr int last = HEIGHT - 1;
        const Vec::Quad part = Vec::sum4(acc[n][0], acc[n][last < 1 ? last : 1],
                                         acc[n][last < 2 ? last : 2], acc[n][last]);
        float *to = sums + n * MR;
        Vec::store4(to, set ? part : Vec::add4(Vec::load4(to), part));
    }
}

// Weight rows in a register tile. Tall tiles are as wide as the registers allow, low ones wide
// enough to hide latency.
constexpr int ROWS[2][MR + 1] = {{0, 8, 4, 3, 3}, {0, 8, 8, 6, 6}};
constexpr const int (&NR)[MR + 1] = ROWS[Vec::registers == 32];
constexpr int WIDE_NR = NR[MR];
static_assert(N_BLOCK % WIDE_NR == 0, "a task is cut into whole register tiles");

// One group of WIDE_NR weight rows that were widened: vector by vector, padded with zeros.
template <int HEIGHT>
void wide_tile(const float *x, const float *w, std::int64_t vectors, bool set, float *sums) {
    const float *at[WIDE_NR];
    for (int i = 0; i < WIDE_NR; ++i) at[i] = w + i * Vec::width;
    tile<F32, HEIGHT, WIDE_NR, WIDE_NR * Vec::width>(x, at, vectors, set, sums);
}

void wide_tile(int height, const float *x, const float *w, std::int64_t vectors, bool set,
               float *sums) {
    switch (height) {
        case 1: return wide_tile<1>(x, w, vectors, set, sums);
        case 2: return wide_tile<2>(x, w, vectors, set, sums);
        case 3: return wide_tile<3>(x, w, vectors, set, sums);
        default: return wide_tile<4>(x, w, vectors, set, sums);
    }
}

// The last step of NR weight rows lacks some columns.
template <class F, int HEIGHT, int NR>
[[gnu::noinline]] void last_tile(const float *x, const typename F::Item *const *w,
                                 std::int64_t columns, bool set, float *sums) {
    const std::int64_t whole = columns / STEP<F>, left = columns % STEP<F>;
    typename F::Item padded[NR][STEP<F>] = {};
    const typename F::Item *some[NR];
    for (int n = 0; n < NR; ++n) {
        std::memcpy(padded[n], w[n] + whole * STEP<F>,
                    static_cast<std::size_t>(left) * sizeof padded[n][0]);
        some[n] = padded[n];
    }
    tile<F, HEIGHT, NR, STEP<F>, true>(x, w, whole, set, sums, 0, some);
}

template <class F, int HEIGHT, int NR>
void stored_tile(const float *x, const typename F::Item *w, std::int64_t stride,
                 std::int64_t columns, bool set, float *sums, std::int64_t ahead) {
    const typename F::Item *at[NR];
    for (int i = 0; i < NR; ++i) at[i] = w + i * stride;
    if (columns % STEP<F> != 0) return last_tile<F, HEIGHT, NR>(x, at, columns, set, sums);
    tile<F, HEIGHT, NR, STEP<F>>(x, at, columns / STEP<F>, set, sums, ahead);
}

// HEIGHT rows of x with `rows` weight rows where they lie, or the first that fit a register tile;
// returns how many. `left` more lie behind them: to the processor new streams, so ask for them.
template <class F, int HEIGHT>
int stored_tile(const float *x, const typename F::Item *w, std::int64_t stride, int rows, int left,
                std::int64_t columns, bool set, float *sums) {
    constexpr int most = NR[HEIGHT];
    if (rows < most) {
        stored_tile<F, HEIGHT, 1>(x, w, stride, columns, set, sums, 0);
        return 1;
    }
    stored_tile<F, HEIGHT, most>(x, w, stride, columns, set, sums,
                                 left < 2 * most ? 0 : most * stride);
    return most;
}

template <class F>
int stored_tile(int height, const float *x, const typename F::Item *w, std::int64_t stride,
                int rows, int left, std::int64_t columns, bool set, float *sums) {
    switch (height) {
        case 1: return stored_tile<F, 1>(x, w, stride, rows, left, columns, set, sums);
        case 2: return stored_tile<F, 2>(x, w, stride, rows, left, columns, set, sums);
        case 3: return stored_tile<F, 3>(x, w, stride, rows, left, columns, set, sums);
        default: return stored_tile<F, 4>(x, w, stride, rows, left, columns, set, sums);
    }
}

}  // namespace
}  // namespace headrace
