// fp32 multiply-add: weights widened in registers, accumulators along K. Written once against the
// vector layer included before it; each instruction set compiles its own copy.
//
// A result is a sum over blocks of K_BLOCK columns; a block is summed in `width` lanes, column
// c in lane c mod width, and the lanes by one fixed tree. So neither the tile that a row falls
// in, nor how many rows there are, can change a bit.
#pragma once

#include <cstring>

#include "engine.h"
#include "epilogue.h"
#include "local.h"

namespace headrace {
namespace {

constexpr int MR = 4;                  // rows of x in a register tile
constexpr std::int64_t K_BLOCK = 1024;  // columns summed before the lanes are
constexpr int N_BLOCK = 48;            // weight rows of one task, widened at a time

constexpr std::int64_t up_to(std::int64_t value, std::int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

struct F32 {
    using Item = float;
    static Vec::T load(const Item *p) { return Vec::load(p); }
    static Vec::T load_some(const Item *p, int n) { return Vec::load_some(p, n); }
};
struct Bf16 {
    using Item = std::uint16_t;
    static Vec::T load(const Item *p) { return Vec::widen_bf16(p); }
    static Vec::T load_some(const Item *p, int n) { return Vec::widen_bf16_some(p, n); }
};
struct F16 {
    using Item = std::uint16_t;
    static Vec::T load(const Item *p) { return Vec::widen_f16(p); }
    static Vec::T load_some(const Item *p, int n) { return Vec::widen_f16_some(p, n); }
};

// --- the panel: tiles of MR rows (the last may have fewer), K padded with zeros, step by step ---

std::size_t panel_bytes(std::int64_t rows, std::int64_t columns) {
    return static_cast<std::size_t>(rows * up_to(columns, Vec::width)) * sizeof(float);
}

float *tile_of(void *panel, std::int64_t tile, std::int64_t padded) {
    return static_cast<float *>(panel) + tile * MR * padded;
}

const float *tile_of(const void *panel, std::int64_t tile, std::int64_t padded) {
    return static_cast<const float *>(panel) + tile * MR * padded;
}

int tile_rows(std::int64_t tile, std::int64_t count) {
    const std::int64_t left = count - tile * MR;
    return left < MR ? static_cast<int>(left) : MR;
}

void pack(const float *const *rows, std::int64_t count, std::int64_t columns, std::int64_t first,
          std::int64_t last, void *panel) {
    const std::int64_t padded = up_to(columns, Vec::width), full = columns / Vec::width;
    const int tail = static_cast<int>(columns % Vec::width);
    for (std::int64_t tile = first; tile < last; ++tile) {
        const int height = tile_rows(tile, count);
        for (int m = 0; m < height; ++m) {
            const float *from = rows[tile * MR + m];
            float *to = tile_of(panel, tile, padded) + m * Vec::width;
            for (std::int64_t s = 0; s < full; ++s) {
                Vec::store(to + s * height * Vec::width, Vec::load(from + s * Vec::width));
            }
            if (tail != 0) {
                Vec::store(to + full * height * Vec::width,
                           Vec::load_some(from + full * Vec::width, tail));
            }
        }
    }
}

// --- the register tile ---

// Adds to (or sets) sums[n][4] the products of HEIGHT rows of x and NR rows of w over one block
// of K: `steps` vectors, the last of `tail` columns when not 0. Beyond HEIGHT, sums repeat.
template <class F, int HEIGHT, int NR>
inline void tile(const float *x, const typename F::Item *const *w, std::int64_t steps, int tail,
                 bool set, float *sums) {
    Vec::T acc[NR][HEIGHT];
    for (int n = 0; n < NR; ++n) {
        for (int m = 0; m < HEIGHT; ++m) acc[n][m] = Vec::zero();
    }
    const std::int64_t whole = tail == 0 ? steps : steps - 1;
    for (std::int64_t s = 0; s < whole; ++s) {
        Vec::T value[HEIGHT];
        for (int m = 0; m < HEIGHT; ++m) value[m] = Vec::load(x + m * Vec::width);
        for (int n = 0; n < NR; ++n) {
            const Vec::T weight = F::load(w[n] + s * Vec::width);
            for (int m = 0; m < HEIGHT; ++m) acc[n][m] = Vec::fma(value[m], weight, acc[n][m]);
        }
        x += HEIGHT * Vec::width;
    }
    if (tail != 0) {
        for (int n = 0; n < NR; ++n) {
            const Vec::T weight = F::load_some(w[n] + whole * Vec::width, tail);
            for (int m = 0; m < HEIGHT; ++m) {
                acc[n][m] = Vec::fma(Vec::load(x + m * Vec::width), weight, acc[n][m]);
            }
        }
    }
    for (int n = 0; n < NR; ++n) {
        const auto row = [&](int m) { return acc[n][m < HEIGHT ? m : HEIGHT - 1]; };
        float part[4];
        Vec::sum4(row(0), row(1), row(2), row(3), part);
        for (int m = 0; m < 4; ++m) sums[n * 4 + m] = set ? part[m] : sums[n * 4 + m] + part[m];
    }
}

template <class F, int HEIGHT, int NR>
void tiles(const float *x, const typename F::Item *w, std::int64_t stride, int rows,
           std::int64_t steps, int tail, bool set, float *sums) {
    int n = 0;
    for (; n + NR <= rows; n += NR) {
        const typename F::Item *at[NR];
        for (int i = 0; i < NR; ++i) at[i] = w + (n + i) * stride;
        tile<F, HEIGHT, NR>(x, at, steps, tail, set, sums + n * 4);
    }
    for (; n < rows; ++n) {
        const typename F::Item *at[1] = {w + n * stride};
        tile<F, HEIGHT, 1>(x, at, steps, tail, set, sums + n * 4);
    }
}

// Tall tiles are as wide as the registers allow; low ones wide enough to hide latency.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int NR[MR + 1] = {0, 8, 8, 6, 6};
#else
constexpr int NR[MR + 1] = {0, 8, 4, 3, 3};
#endif

template <class F>
void tiles(int height, const float *x, const typename F::Item *w, std::int64_t stride, int rows,
           std::int64_t steps, int tail, bool set, float *sums) {
    switch (height) {
        case 1: return tiles<F, 1, NR[1]>(x, w, stride, rows, steps, tail, set, sums);
        case 2: return tiles<F, 2, NR[2]>(x, w, stride, rows, steps, tail, set, sums);
        case 3: return tiles<F, 3, NR[3]>(x, w, stride, rows, steps, tail, set, sums);
        default: return tiles<F, 4, NR[4]>(x, w, stride, rows, steps, tail, set, sums);
    }
}

// --- one task: up to N_BLOCK weight rows, any tiles; sums [tile][n][4] ---

struct Local {
    float wide[N_BLOCK * K_BLOCK];
    float sums[2][MAX_ROWS * N_BLOCK];
};
static_assert(sizeof(Local) <= LOCAL_BYTES, "a task's memory");

template <class F>
void widen(const typename F::Item *from, std::int64_t stride, int rows, std::int64_t columns,
           float *to) {
    const std::int64_t full = columns / Vec::width * Vec::width;
    for (int n = 0; n < rows; ++n, from += stride, to += K_BLOCK) {
        for (std::int64_t k = 0; k < full; k += Vec::width) Vec::store(to + k, F::load(from + k));
        if (full < columns) {
            Vec::store(to + full, F::load_some(from + full, static_cast<int>(columns - full)));
        }
    }
}

template <class F>
void sum_products(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0,
                  std::int64_t n1, std::int64_t g0, std::int64_t g1, Local &local, float *sums) {
    const std::int64_t K = w.columns, padded = up_to(K, Vec::width);
    const int rows = static_cast<int>(n1 - n0);
    const auto *first = reinterpret_cast<const typename F::Item *>(w.row(n0));
    const bool widened = g1 - g0 > 2;  // worth a copy; the arithmetic is the same
    for (std::int64_t k = 0; k < K; k += K_BLOCK) {
        const std::int64_t columns = K - k < K_BLOCK ? K - k : K_BLOCK;
        const std::int64_t steps = up_to(columns, Vec::width) / Vec::width;
        const int tail = static_cast<int>(columns % Vec::width);
        if (widened) widen<F>(first + k, K, rows, columns, local.wide);
        for (std::int64_t g = g0; g < g1; ++g) {
            const int height = tile_rows(g, count);
            const float *x = tile_of(panel, g, padded) + k * height;
            float *out = sums + (g - g0) * N_BLOCK * MR;
            if (widened) {
                tiles<F32>(height, x, local.wide, K_BLOCK, rows, steps, 0, k == 0, out);
            } else {
                tiles<F>(height, x, first + k, K, rows, steps, tail, k == 0, out);
            }
        }
    }
    if (K == 0) std::memset(sums, 0, sizeof local.sums[0]);
}

// Result row m of a tile, bias added.
void row_of(const float *sums, int m, int rows, const float *bias, float *out) {
    for (int n = 0; n < rows; ++n) out[n] = sums[n * 4 + m] + bias[n];
}

template <class F>
void multiply(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0,
              std::int64_t n1, std::int64_t g0, std::int64_t g1, const Store &to) {
    Local &local = *static_cast<Local *>(local_memory());
    sum_products<F>(w, panel, count, n0, n1, g0, g1, local, local.sums[0]);
    const int rows = static_cast<int>(n1 - n0);
    float bias[N_BLOCK] = {}, row[N_BLOCK];
    if (w.bias != nullptr) bias_of(w, n0, rows, bias);
    for (std::int64_t g = g0; g < g1; ++g) {
        for (int m = 0; m < tile_rows(g, count); ++m) {
            row_of(local.sums[0] + (g - g0) * N_BLOCK * MR, m, rows, bias, row);
            put(to, g * MR + m, n0, row, rows);
        }
    }
}

template <class F>
void gated(const Weight &gate, const Weight &up, const void *panel, std::int64_t count,
           std::int64_t n0, std::int64_t n1, std::int64_t g0, std::int64_t g1,
           const Activation &activation, const Store &to) {
    Local &local = *static_cast<Local *>(local_memory());
    sum_products<F>(gate, panel, count, n0, n1, g0, g1, local, local.sums[0]);
    sum_products<F>(up, panel, count, n0, n1, g0, g1, local, local.sums[1]);
    const int rows = static_cast<int>(n1 - n0);
    float bias[2][N_BLOCK] = {}, g_row[N_BLOCK] = {}, u_row[N_BLOCK] = {};
    if (gate.bias != nullptr) bias_of(gate, n0, rows, bias[0]);
    if (up.bias != nullptr) bias_of(up, n0, rows, bias[1]);
    for (std::int64_t g = g0; g < g1; ++g) {
        const std::int64_t at = (g - g0) * N_BLOCK * MR;
        for (int m = 0; m < tile_rows(g, count); ++m) {
            row_of(local.sums[0] + at, m, rows, bias[0], g_row);
            row_of(local.sums[1] + at, m, rows, bias[1], u_row);
            for (int n = 0; n < N_BLOCK; n += Vec::width) {
                Vec::store(g_row + n, activate(Vec::load(g_row + n), Vec::load(u_row + n),
                                               activation));
            }
            put(to, g * MR + m, n0, g_row, rows);
        }
    }
}

std::int64_t task_rows(std::int64_t, std::int64_t, int) { return N_BLOCK; }

template <class F>
constexpr Engine engine(const char *name) {
    return {name, MR, N_BLOCK / 4, panel_bytes, pack, task_rows, multiply<F>, gated<F>};
}

inline const Engine *engine_of(Format format, const char *name) {
    static const Engine f32 = engine<F32>(name), bf16 = engine<Bf16>(name), f16 = engine<F16>(name);
    return format == Format::f32 ? &f32 : format == Format::bf16 ? &bf16 : &f16;
}

}  // namespace
}  // namespace headrace
