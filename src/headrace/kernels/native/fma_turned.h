// fp32 multiply-add with turned weights: a group of weight rows is widened to fp32, one vector per
// column, and meets every row of x, one column broadcast at a time.
//
// A result is a sum over blocks of K_BLOCK columns, in order; a block is summed in order of
// columns. So neither the tile that a row falls in, nor how many rows there are, can change a bit.
#pragma once

#include <cstring>

#include "rounded.h"
#include "turned_task.h"

namespace headrace {
namespace {

constexpr std::int64_t K_BLOCK = 128;
constexpr std::size_t LONG_ROW = 4096;  // bytes; two times sixteen rows of as many overflow a core's L1

// --- the panel: [block of K][row of x][K_BLOCK] ---

std::size_t panel_bytes(std::int64_t rows, const Weight &w) {
    return static_cast<std::size_t>(rows * up_to(w.columns, K_BLOCK)) * sizeof(float);
}

template <class Kept>
void pack(const float *const *rows, std::int64_t count, const Weight &w, std::int64_t first,
          std::int64_t last, void *panel) {
    const std::int64_t end = last * TALL < count ? last * TALL : count;
    for (std::int64_t m = first * TALL; m < end; ++m) {
        for (std::int64_t k = 0; k < w.columns; k += K_BLOCK) {
            const std::int64_t columns = w.columns - k < K_BLOCK ? w.columns - k : K_BLOCK;
            float *to = static_cast<float *>(panel) + k * count + m * K_BLOCK;
            for (std::int64_t c = 0; c < columns; c += Vec::width) {
                const auto left = static_cast<int>(columns - c < Vec::width ? columns - c : Vec::width);
                Vec::store(to + c, Kept::of(Vec::load_some(rows[m] + k + c, left)));
            }
        }
    }
}

// --- the register tile ---

// Adds to (or sets) sums[m][N_BLOCK] the products of H rows of x [K_BLOCK] and `columns` columns
// of V vectors of weight rows. Asks for LINES lines with every column.
template <int H, int V, int LINES>
void tile(const float *x, const float *w, std::int64_t columns, bool set, Ahead &ahead,
          float *sums) {
    Vec::T acc[H][V];
    for (int m = 0; m < H; ++m) {
        for (int v = 0; v < V; ++v) acc[m][v] = Vec::zero();
    }
    for (std::int64_t k = 0; k < columns; ++k, w += V * Vec::width) {
        if constexpr (LINES > 0) ahead.ask(LINES);
        Vec::T weight[V];
        for (int v = 0; v < V; ++v) weight[v] = Vec::load(w + v * Vec::width);
        for (int m = 0; m < H; ++m) {
            const Vec::T value = Vec::set(x[m * K_BLOCK + k]);
            for (int v = 0; v < V; ++v) acc[m][v] = Vec::fma(value, weight[v], acc[m][v]);
        }
    }
    for (int m = 0; m < H; ++m) {
        for (int v = 0; v < V; ++v) {
            float *to = sums + m * N_BLOCK + v * Vec::width;
            Vec::store(to, set ? acc[m][v] : Vec::add(Vec::load(to), acc[m][v]));
        }
    }
}

// The same for COUNT whole blocks at once. A sum over one row of x is a chain in which every
// multiply-add waits for the one before it; blocks do not wait for each other. So a line of each is
// turned and kept, and one column of each is multiplied in turn. `next` is how far x of the next
// block lies. A function of its own: inlined, its sums do not stay in registers.
template <class F, int H, int V, int COUNT>
[[gnu::noinline]] void blocks(const Rows<V> &rows, std::int64_t k, const float *x,
                              std::int64_t next, bool set, Ahead &ahead, float *sums) {
    constexpr int per_word = 4 / F::size, columns = Turn::words * per_word;
    typename Turn::T words[COUNT][Turn::words][V];
    Vec::T acc[COUNT][H][V];
    for (int b = 0; b < COUNT; ++b) {
        for (int m = 0; m < H; ++m) {
            for (int v = 0; v < V; ++v) acc[b][m][v] = Vec::zero();
        }
    }
    for (std::int64_t at = 0; at < K_BLOCK; at += columns) {
        for (int b = 0; b < COUNT; ++b) {
            for (int v = 0; v < V; ++v) {
                typename Turn::T line[Turn::words];
                rows.line(v, static_cast<std::size_t>((k + b * K_BLOCK + at) * F::size), line);
                for (int j = 0; j < Turn::words; ++j) words[b][j][v] = line[j];
            }
        }
#pragma GCC unroll 2
        for (int j = 0; j < Turn::words; ++j) {
            ahead.ask(COUNT * V);
#pragma GCC unroll 4
            for (int b = 0; b < COUNT; ++b) {
#pragma GCC unroll 2
                for (int c = 0; c < per_word; ++c) {
                    const float *values = x + b * next + at + j * per_word + c;
                    Vec::T weight[V];
                    for (int v = 0; v < V; ++v) weight[v] = F::column(words[b][j][v], c);
#pragma GCC unroll 8
                    for (int m = 0; m < H; ++m) {
                        const Vec::T value = Vec::set(values[m * K_BLOCK]);
                        for (int v = 0; v < V; ++v) {
                            acc[b][m][v] = Vec::fma(value, weight[v], acc[b][m][v]);
                        }
                    }
                }
            }
        }
    }
    for (int m = 0; m < H; ++m) {
        for (int v = 0; v < V; ++v) {
            float *to = sums + m * N_BLOCK + v * Vec::width;
            Vec::T sum = set ? acc[0][m][v] : Vec::add(Vec::load(to), acc[0][m][v]);
            for (int b = 1; b < COUNT; ++b) sum = Vec::add(sum, acc[b][m][v]);
            Vec::store(to, sum);
        }
    }
}

// The same for one row of x and the whole blocks of sixteen long weight rows, one after the other:
// memory is slower than the one chain. What is asked for are the lines that these loads meet next, a
// few steps ahead, so that they are still in the first-level cache when they are met; the next rows
// as a whole would not fit it. `then`: the sixteen rows that follow, or null.
template <class F>
[[gnu::noinline]] void stream(const Weight &w, const Rows<1> &rows, const float *x,
                              std::int64_t count, const char *then, float *sums) {
    constexpr int columns = Turn::words * 4 / F::size;
    constexpr std::size_t ahead = 4 * LINE;
    const std::size_t whole = static_cast<std::size_t>(w.columns / K_BLOCK * K_BLOCK * F::size);
    for (std::int64_t k = 0; k + K_BLOCK <= w.columns; k += K_BLOCK) {
        Vec::T acc = Vec::zero();
        for (std::int64_t at = 0; at < K_BLOCK; at += columns) {
            const std::size_t offset = static_cast<std::size_t>((k + at) * F::size);
            const char *next = offset + ahead < whole ? rows.at[0] + offset + ahead
                               : then != nullptr      ? then + (offset + ahead - whole)
                                                      : rows.at[0] + offset;
            typename Turn::T words[Turn::words];
            Turn::line(rows.at, offset, words);
            const float *values = x + k * count + at;
#pragma GCC unroll 16
            for (int j = 0; j < Turn::words; ++j) {
                prefetch_close(next + static_cast<std::size_t>(j) * w.row_bytes);
#pragma GCC unroll 2
                for (int c = 0; c < 4 / F::size; ++c, ++values) {
                    acc = Vec::fma(Vec::set(*values), F::column(words[j], c), acc);
                }
            }
        }
        Vec::store(sums, k == 0 ? acc : Vec::add(Vec::load(sums), acc));
    }
}

// As many as make eight chains or so.
constexpr int blocks_at_once(int rows) { return rows <= 2 ? 4 : rows <= 4 ? 2 : 1; }

template <class F>
struct Products {
    static constexpr int FEW = 4;
    static constexpr int MANY = PAIR;
    using Memory = float[K_BLOCK * N_BLOCK];

    template <int V>
    static void sum(const Weight &w, const Part &p, int n, Ahead &ahead, Memory &wide,
                    float *sums) {
        if (w.columns == 0) {
            std::memset(sums, 0, sizeof(float) * N_BLOCK * static_cast<std::size_t>(p.m1 - p.m0));
            return;
        }
        const Rows<V> rows(w, p.n0 + n, p.rows - n);
        std::int64_t k = p.m1 - p.m0 <= TALL ? whole_blocks<V>(w, p, rows, ahead, sums + n) : 0;
        for (; k < w.columns; k += K_BLOCK) {
            const std::int64_t columns = w.columns - k < K_BLOCK ? w.columns - k : K_BLOCK;
            widen<F>(rows, k, columns, wide);
            const float *x = static_cast<const float *>(p.panel) + k * p.count;
            for (std::int64_t m = p.m0; m < p.m1; m += TALL) {
                with_height(p.m1 - m, [&](auto height) {
                    if constexpr (V == PAIR || height.value <= FEW) {
                        constexpr int lines = V * F::size < 4 ? 1 : V * F::size / 4;
                        const auto meet = m == p.m0 ? tile<height.value, V, lines>
                                                    : tile<height.value, V, 0>;
                        meet(x + m * K_BLOCK, wide, columns, k == 0, ahead,
                             sums + (m - p.m0) * N_BLOCK + n);
                    }
                });
            }
        }
    }

 private:
    // COUNT whole blocks at once, as long as there are so many.
    template <int H, int V, int COUNT>
    static std::int64_t some_blocks(const Weight &w, const Part &p, const Rows<V> &rows,
                                    Ahead &ahead, float *sums) {
        std::int64_t k = 0;
        for (; k + COUNT * K_BLOCK <= w.columns; k += COUNT * K_BLOCK) {
            const float *x = static_cast<const float *>(p.panel) + k * p.count + p.m0 * K_BLOCK;
            blocks<F, H, V, COUNT>(rows, k, x, K_BLOCK * p.count, k == 0, ahead, sums);
        }
        return k;
    }

    // Up to TALL rows of x. Returns the columns that were summed.
    template <int V>
    static std::int64_t whole_blocks(const Weight &w, const Part &p, const Rows<V> &rows,
                                     Ahead &ahead, float *sums) {
        std::int64_t k = 0;
        if constexpr (V == 1) {
            if (p.m1 - p.m0 == 1 && w.row_bytes >= LONG_ROW && !rows.turned[0]) {
                const float *x = static_cast<const float *>(p.panel) + p.m0 * K_BLOCK;
                stream<F>(w, rows, x, p.count, ahead.take(), sums);
                return w.columns / K_BLOCK * K_BLOCK;
            }
        }
        with_height(p.m1 - p.m0, [&](auto height) {
            if constexpr ((V == 1) == (height.value <= FEW)) {
                constexpr int count = blocks_at_once(height.value);
                if (w.turned > 0) {  // read as they lie: one block after the other
                    k = some_blocks<height.value, V, 1>(w, p, rows, ahead, sums);
                } else {
                    k = some_blocks<height.value, V, count>(w, p, rows, ahead, sums);
                }
            }
        });
        return k;
    }
};

template <class F, class Kept = AsIs>
constexpr Engine engine(const char *name) {
    using S = Products<F>;
    return {name,      TALL,        PAIR * Vec::width, panel_bytes, pack<Kept>,
            task_rows, multiply<S>, gated<S>,          true};
}

inline const Engine *engine_of(Format format, const char *name) {
    static const Engine f32 = engine<F32>(name), bf16 = engine<Bf16>(name),
                        f16 = engine<F16>(name);
    return format == Format::f32 ? &f32 : format == Format::bf16 ? &bf16 : &f16;
}

inline const Engine *rounded_engine_of(Format format, const char *name) {
    static const Engine bf16 = engine<Bf16, Rounded>(name);
    return format == Format::bf16 ? &bf16 : nullptr;
}

}  // namespace
}  // namespace headrace
