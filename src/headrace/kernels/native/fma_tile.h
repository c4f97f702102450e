// The register tile of fp32 multiply-add, and the panel it reads. Include after a vector layer.
#pragma once

#include "prefetch.h"
#include "rounded.h"
#include "tile_task.h"

namespace headrace {
namespace {

constexpr std::int64_t K_BLOCK = 1024;  // columns summed before the lanes are

// Tiles up to which weights are widened again for each: fewer where a tile has fewer weight rows.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int FEW_TILES = 4;
#else
constexpr int FEW_TILES = 2;
#endif

struct F32 {
    using Item = float;
    static std::size_t bytes(std::int64_t columns) { return 4 * static_cast<size_t>(columns); }
    static Vec::T load(const Item *p) { return Vec::load(p); }
    static Vec::T load_some(const Item *p, int n) { return Vec::load_some(p, n); }
};
struct Bf16 {
    using Item = std::uint16_t;
    static std::size_t bytes(std::int64_t columns) { return 2 * static_cast<size_t>(columns); }
    static Vec::T load(const Item *p) { return Vec::widen_bf16(p); }
    static Vec::T load_some(const Item *p, int n) { return Vec::widen_bf16_some(p, n); }
};
struct F16 {
    using Item = std::uint16_t;
    static std::size_t bytes(std::int64_t columns) { return 2 * static_cast<size_t>(columns); }
    static Vec::T load(const Item *p) { return Vec::widen_f16(p); }
    static Vec::T load_some(const Item *p, int n) { return Vec::widen_f16_some(p, n); }
};

// --- the panel: tiles of MR rows (the last may have fewer), K padded with zeros, step by step ---

std::size_t panel_bytes(std::int64_t rows, const Weight &w) {
    return static_cast<std::size_t>(rows * up_to(w.columns, Vec::width)) * sizeof(float);
}

float *tile_of(void *panel, std::int64_t tile, std::int64_t padded) {
    return static_cast<float *>(panel) + tile * MR * padded;
}

const float *tile_of(const void *panel, std::int64_t tile, std::int64_t padded) {
    return static_cast<const float *>(panel) + tile * MR * padded;
}

template <class Kept>
void pack(const float *const *rows, std::int64_t count, const Weight &w, std::int64_t first,
          std::int64_t last, void *panel) {
    const std::int64_t padded = up_to(w.columns, Vec::width), full = w.columns / Vec::width;
    const int tail = static_cast<int>(w.columns % Vec::width);
    for (std::int64_t tile = first; tile < last; ++tile) {
        const int height = tile_rows(tile, count);
        for (int m = 0; m < height; ++m) {
            const float *from = rows[tile * MR + m];
            float *to = tile_of(panel, tile, padded) + m * Vec::width;
            for (std::int64_t s = 0; s < full; ++s) {
                Vec::store(to + s * height * Vec::width, Kept::of(Vec::load(from + s * Vec::width)));
            }
            if (tail != 0) {
                Vec::store(to + full * height * Vec::width,
                           Kept::of(Vec::load_some(from + full * Vec::width, tail)));
            }
        }
    }
}

// --- the register tile ---

// Adds to (or sets) sums[n][4] the products of HEIGHT rows of x and NR rows of w over one block
// of K: `steps` vectors, STRIDE apart in w, the last of `tail` columns when not 0. Beyond HEIGHT,
// sums repeat. Weights where they lie are asked for `ahead` items before they are used.
template <class F, int HEIGHT, int NR, int STRIDE>
inline void tile(const float *x, const typename F::Item *const *w, std::int64_t steps, int tail,
                 bool set, float *sums, std::int64_t ahead = 0) {
    Vec::T acc[NR][HEIGHT];
    for (int n = 0; n < NR; ++n) {
        for (int m = 0; m < HEIGHT; ++m) acc[n][m] = Vec::zero();
    }
    const std::int64_t whole = tail == 0 ? steps : steps - 1;
    for (std::int64_t s = 0; s < whole; ++s) {
        if (STRIDE == Vec::width) {
            for (int n = 0; n < NR; ++n) prefetch(w[n] + s * STRIDE + ahead);
        }
        const auto x_at = [&](int m) { return Vec::load(x + m * Vec::width); };
        const auto w_at = [&](int n) { return F::load(w[n] + s * STRIDE); };
        if constexpr (NR < HEIGHT) {  // the smaller side is held in registers
            Vec::T weight[NR];
            for (int n = 0; n < NR; ++n) weight[n] = w_at(n);
            for (int m = 0; m < HEIGHT; ++m) {
                const Vec::T value = x_at(m);
                for (int n = 0; n < NR; ++n) acc[n][m] = Vec::fma(value, weight[n], acc[n][m]);
            }
        } else {
            Vec::T value[HEIGHT];
            for (int m = 0; m < HEIGHT; ++m) value[m] = x_at(m);
            for (int n = 0; n < NR; ++n) {
                const Vec::T weight = w_at(n);
                for (int m = 0; m < HEIGHT; ++m) acc[n][m] = Vec::fma(value[m], weight, acc[n][m]);
            }
        }
        x += HEIGHT * Vec::width;
    }
    if (tail != 0) {
        for (int n = 0; n < NR; ++n) {
            const Vec::T weight = F::load_some(w[n] + whole * STRIDE, tail);
            for (int m = 0; m < HEIGHT; ++m) {
                acc[n][m] = Vec::fma(Vec::load(x + m * Vec::width), weight, acc[n][m]);
            }
        }
    }
    for (int n = 0; n < NR; ++n) {
        constexpr int last = HEIGHT - 1;
        const Vec::Quad part = Vec::sum4(acc[n][0], acc[n][last < 1 ? last : 1],
                                         acc[n][last < 2 ? last : 2], acc[n][last]);
        float *to = sums + n * 4;
        Vec::store4(to, set ? part : Vec::add4(Vec::load4(to), part));
    }
}

// Weight rows in a register tile. Tall tiles are as wide as the registers allow, low ones wide
// enough to hide latency.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int NR[MR + 1] = {0, 8, 8, 6, 6};
#else
constexpr int NR[MR + 1] = {0, 8, 4, 3, 3};
#endif
constexpr int WIDE_NR = NR[MR];
static_assert(N_BLOCK % WIDE_NR == 0, "a task is cut into whole register tiles");

// One group of WIDE_NR weight rows that were widened: step by step, padded with zeros.
template <int HEIGHT>
void wide_tile(const float *x, const float *w, std::int64_t steps, bool set, float *sums) {
    const float *at[WIDE_NR];
    for (int i = 0; i < WIDE_NR; ++i) at[i] = w + i * Vec::width;
    tile<F32, HEIGHT, WIDE_NR, WIDE_NR * Vec::width>(x, at, steps, 0, set, sums);
}

void wide_tile(int height, const float *x, const float *w, std::int64_t steps, bool set,
               float *sums) {
    switch (height) {
        case 1: return wide_tile<1>(x, w, steps, set, sums);
        case 2: return wide_tile<2>(x, w, steps, set, sums);
        case 3: return wide_tile<3>(x, w, steps, set, sums);
        default: return wide_tile<4>(x, w, steps, set, sums);
    }
}

// HEIGHT rows of x with `rows` weight rows where they lie, or the first that fit a register tile;
// returns how many. `left` more lie behind them: to the processor new streams, so ask for them.
template <class F, int HEIGHT>
int stored_tile(const float *x, const typename F::Item *w, std::int64_t stride, int rows,
                int left, std::int64_t steps, int tail, bool set, float *sums) {
    constexpr int most = NR[HEIGHT];
    const typename F::Item *at[most];
    for (int i = 0; i < most; ++i) at[i] = w + i * stride;
    if (rows < most) {
        tile<F, HEIGHT, 1, Vec::width>(x, at, steps, tail, set, sums);
        return 1;
    }
    const std::int64_t ahead = left < 2 * most ? 0 : most * stride;
    tile<F, HEIGHT, most, Vec::width>(x, at, steps, tail, set, sums, ahead);
    return most;
}

template <class F>
int stored_tile(int height, const float *x, const typename F::Item *w, std::int64_t stride,
                int rows, int left, std::int64_t steps, int tail, bool set, float *sums) {
    switch (height) {
        case 1: return stored_tile<F, 1>(x, w, stride, rows, left, steps, tail, set, sums);
        case 2: return stored_tile<F, 2>(x, w, stride, rows, left, steps, tail, set, sums);
        case 3: return stored_tile<F, 3>(x, w, stride, rows, left, steps, tail, set, sums);
        default: return stored_tile<F, 4>(x, w, stride, rows, left, steps, tail, set, sums);
    }
}

}  // namespace
}  // namespace headrace
