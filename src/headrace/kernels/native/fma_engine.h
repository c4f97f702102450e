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
#include "prefetch.h"

namespace headrace {
namespace {

constexpr int MR = 4;                  // rows of x in a register tile
constexpr std::int64_t K_BLOCK = 1024;  // columns summed before the lanes are
constexpr int FEW_TILES = 4;             // up to which weights are widened again for each tile
constexpr int N_BLOCK = 96;            // most weight rows of one task

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

// --- one task: up to N_BLOCK weight rows, any tiles; sums [tile][n][4] ---

struct Local {
    float wide[WIDE_NR * K_BLOCK];
    float sums[2][MAX_ROWS * N_BLOCK];
};
static_assert(sizeof(Local) <= LOCAL_BYTES, "a task's memory");

template <class F>
void widen(const typename F::Item *from, std::int64_t stride, int rows, std::int64_t columns,
           float *to) {
    constexpr int width = Vec::width, group = WIDE_NR * width;
    const std::int64_t full = columns / width;
    const int tail = static_cast<int>(columns % width);
    for (int n = 0; n < rows; n += WIDE_NR) {
        for (int i = 0; i < WIDE_NR; ++i) {
            float *at = to + n * K_BLOCK + i * width;
            if (n + i >= rows) {
                for (std::int64_t s = 0; s < full + (tail != 0); ++s) {
                    Vec::store(at + s * group, Vec::zero());
                }
                continue;
            }
            const typename F::Item *row = from + (n + i) * stride;
            for (std::int64_t s = 0; s < full; ++s) {
                Vec::store(at + s * group, F::load(row + s * width));
            }
            if (tail != 0) Vec::store(at + full * group, F::load_some(row + full * width, tail));
        }
    }
}

// A block of K: its first column, columns, vectors, and columns in the last of them if not full.
struct Block {
    std::int64_t k, columns, steps;
    int tail;

    Block(std::int64_t k, std::int64_t K)
        : k(k),
          columns(K - k < K_BLOCK ? K - k : K_BLOCK),
          steps(up_to(columns, Vec::width) / Vec::width),
          tail(static_cast<int>(columns % Vec::width)) {}
};

// Few tiles: weights go straight from where they lie into registers, for one tile after another.
template <class F>
void sum_stored(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0, int rows,
                std::int64_t g0, std::int64_t g1, float *sums) {
    const std::int64_t K = w.columns, padded = up_to(K, Vec::width);
    const auto *first = reinterpret_cast<const typename F::Item *>(w.row(n0));
    const int group = NR[g1 - g0 > 1 ? MR : tile_rows(g0, count)];
    for (int n = 0; n < rows; n += group) {
        const int here = rows - n < group ? rows - n : group;
        for (std::int64_t k = 0; k < K; k += K_BLOCK) {
            const Block b(k, K);
            for (std::int64_t g = g0; g < g1; ++g) {
                const int height = tile_rows(g, count);
                const float *x = tile_of(panel, g, padded) + k * height;
                float *out = sums + (g - g0) * N_BLOCK * MR + n * MR;
                for (int i = 0; i < here;) {
                    i += stored_tile<F>(height, x, first + (n + i) * K + k, K, here - i,
                                        rows - n - i, b.steps, b.tail, k == 0, out + i * MR);
                }
            }
        }
    }
}

// Many tiles: a group of weight rows is widened into the first-level cache and meets all of them.
template <class F>
void sum_widened(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0, int rows,
                 std::int64_t g0, std::int64_t g1, float *wide, float *sums) {
    const std::int64_t K = w.columns, padded = up_to(K, Vec::width);
    const auto *first = reinterpret_cast<const typename F::Item *>(w.row(n0));
    for (std::int64_t k = 0; k < K; k += K_BLOCK) {
        const Block b(k, K);
        for (int n = 0; n < rows; n += WIDE_NR) {
            const int group = rows - n < WIDE_NR ? rows - n : WIDE_NR;
            widen<F>(first + n * K + k, K, group, b.columns, wide);
            const int next = rows - n - group < WIDE_NR ? rows - n - group : WIDE_NR;
            for (std::int64_t g = g0; g < g1; ++g) {
                const int height = tile_rows(g, count);
                prefetch_rows(first + (n + group) * K + k, K * sizeof *first, next,
                              b.columns * sizeof *first, g - g0, g1 - g0);
                wide_tile(height, tile_of(panel, g, padded) + k * height, wide, b.steps, k == 0,
                          sums + (g - g0) * N_BLOCK * MR + n * MR);
            }
        }
    }
}

// The same bits either way.
template <class F>
void sum_products(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0,
                  std::int64_t n1, std::int64_t g0, std::int64_t g1, float *wide, float *sums) {
    const int rows = static_cast<int>(n1 - n0);
    if (w.columns == 0) {
        std::memset(sums, 0, sizeof(float) * N_BLOCK * MR * static_cast<std::size_t>(g1 - g0));
    } else if (g1 - g0 > FEW_TILES) {
        sum_widened<F>(w, panel, count, n0, rows, g0, g1, wide, sums);
    } else {
        sum_stored<F>(w, panel, count, n0, rows, g0, g1, sums);
    }
}

// Result row m of a tile, bias added.
void row_of(const float *sums, int m, int rows, const float *bias, float *out) {
    for (int n = 0; n < rows; ++n) out[n] = sums[n * 4 + m] + bias[n];
}

template <class F>
void multiply(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0,
              std::int64_t n1, std::int64_t g0, std::int64_t g1, const Store &to) {
    Local &local = *static_cast<Local *>(local_memory());
    sum_products<F>(w, panel, count, n0, n1, g0, g1, local.wide, local.sums[0]);
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
    sum_products<F>(gate, panel, count, n0, n1, g0, g1, local.wide, local.sums[0]);
    sum_products<F>(up, panel, count, n0, n1, g0, g1, local.wide, local.sums[1]);
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
    return {name, MR, 2 * WIDE_NR, panel_bytes, pack, task_rows, multiply<F>, gated<F>};
}

inline const Engine *engine_of(Format format, const char *name) {
    static const Engine f32 = engine<F32>(name), bf16 = engine<Bf16>(name), f16 = engine<F16>(name);
    return format == Format::f32 ? &f32 : format == Format::bf16 ? &bf16 : &f16;
}

}  // namespace
}  // namespace headrace
