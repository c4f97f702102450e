// Integer products: weights as stored, activations quantised row by row and block by block.
// Written once against a vector layer and the integer layer that goes with it (`Ints`).
//
// A block (the columns that share both scales) is summed exactly in 32-bit lanes, the blocks in
// fp32 lanes in order of columns, and the lanes by one fixed tree.
#pragma once

#include <cstring>

#include "prefetch.h"
#include "quantise.h"
#include "tile_task.h"

namespace headrace {
namespace {

constexpr int CHUNK = 32;  // columns of one load

// --- the panel: tile by tile, block by block: MR scales; for each row Vec::width integers that a
// sum starts from, in lane 0 minus the sum of bytes (times the zero, if all have the same); then
// the bytes, [chunk][row][32] ---

struct Shape {
    std::int64_t block, blocks;
    int chunks;

    explicit Shape(const Weight &w)
        : block(shared_columns(w)),
          blocks((w.columns + block - 1) / block),
          chunks(static_cast<int>(up_to(block, CHUNK) / CHUNK)) {}

    std::size_t start_bytes(int height) const {
        return static_cast<std::size_t>(height) * Vec::width * sizeof(std::int32_t);
    }
    std::size_t block_bytes(int height) const {
        return MR * sizeof(float) + start_bytes(height) +
               static_cast<std::size_t>(height * chunks) * CHUNK;
    }
    std::size_t tile_bytes(int height) const {
        return static_cast<std::size_t>(blocks) * block_bytes(height);
    }
};

std::size_t int_panel_bytes(std::int64_t rows, const Weight &w) {
    return static_cast<std::size_t>((rows + MR - 1) / MR) * Shape(w).tile_bytes(MR);
}

void int_pack(const float *const *rows, std::int64_t count, const Weight &w, std::int64_t first,
              std::int64_t last, void *panel) {
    const Shape shape(w);
    const int zero = w.zeros != nullptr ? 1 : zero_of(w.format) + Ints::shift(w.format);
    for (std::int64_t tile = first; tile < last; ++tile) {
        const int height = tile_rows(tile, count);
        char *at = static_cast<char *>(panel) + static_cast<std::size_t>(tile) *
                                                    shape.tile_bytes(MR);
        for (std::int64_t b = 0; b < shape.blocks; ++b, at += shape.block_bytes(height)) {
            auto *scales = reinterpret_cast<float *>(at);
            auto *starts = reinterpret_cast<std::int32_t *>(scales + MR);
            auto *bytes = reinterpret_cast<std::int8_t *>(starts) + shape.start_bytes(height);
            const std::int64_t k = b * shape.block, left = w.columns - k;
            const int columns = static_cast<int>(left < shape.block ? left : shape.block);
            for (int m = 0; m < height; ++m) {
                std::int8_t row[MOST_SHARED];
                const Quantised q = quantise(rows[tile * MR + m] + k, columns,
                                             shape.chunks * CHUNK, w.format == Format::u4, row);
                scales[m] = q.scale;
                for (int i = 0; i < Vec::width; ++i) starts[m * Vec::width + i] = 0;
                starts[m * Vec::width] = -zero * q.sum;
                for (int c = 0; c < shape.chunks; ++c) {
                    std::memcpy(bytes + (c * height + m) * CHUNK, row + c * CHUNK, CHUNK);
                }
            }
        }
    }
}

// --- the register tile ---

// Weight rows of a tile: bytes, fp32 scales and, where there are some, zeros by block of K.
struct Rows {
    const char *at;
    std::size_t stride;
    const float *scales;
    const int *zeros;
    std::int64_t scale_stride;
};

template <Format F>
constexpr int bytes_of(int columns) {
    return F == Format::u4 ? (columns + 1) / 2 : columns;
}

// sums[n][MR] of HEIGHT rows of x and NR weight rows over all of K.
template <Format F, int HEIGHT, int NR>
void int_tile(const char *panel, const Shape &shape, std::int64_t K, const Rows &w, float *sums,
              std::int64_t ahead) {
    Vec::T acc[NR][HEIGHT];
    for (int n = 0; n < NR; ++n) {
        for (int m = 0; m < HEIGHT; ++m) acc[n][m] = Vec::zero();
    }
    for (std::int64_t b = 0; b < shape.blocks; ++b) {
        const auto *scales = reinterpret_cast<const float *>(panel);
        const auto *starts = reinterpret_cast<const std::int32_t *>(scales + MR);
        const auto *x = reinterpret_cast<const std::int8_t *>(starts) + shape.start_bytes(HEIGHT);
        Ints::T sum[NR][HEIGHT];
        for (int m = 0; m < HEIGHT; ++m) {
            const Ints::T start = Ints::load(starts + m * Vec::width);
            for (int n = 0; n < NR; ++n) {
                sum[n][m] = w.zeros == nullptr
                                ? start
                                : Ints::times(start, w.zeros[n * w.scale_stride + b]);
            }
        }
        const std::int64_t left = K - b * shape.block;
        const int columns = static_cast<int>(left < shape.block ? left : shape.block);
        const char *from = w.at + bytes_of<F>(static_cast<int>(shape.block)) * b;
        const auto meet = [&](const char *chunk, std::size_t stride) {
            typename Ints::W weight[NR];
            for (int n = 0; n < NR; ++n) {
                weight[n] = Ints::weights<F>(chunk + static_cast<std::size_t>(n) * stride);
            }
            for (int m = 0; m < HEIGHT; ++m, x += CHUNK) {
                for (int n = 0; n < NR; ++n) sum[n][m] = Ints::dot<F>(sum[n][m], weight[n], x);
            }
        };
        int k = 0;
        for (; k + CHUNK <= columns; k += CHUNK, from += bytes_of<F>(CHUNK)) {
            for (int n = 0; n < NR; ++n) {
                prefetch(from + static_cast<std::size_t>(n) * w.stride + ahead);
            }
            meet(from, w.stride);
        }
        if (k < columns) {
            char padded[NR][CHUNK] = {};
            for (int n = 0; n < NR; ++n) {
                std::memcpy(padded[n], from + static_cast<std::size_t>(n) * w.stride,
                            static_cast<std::size_t>(bytes_of<F>(columns - k)));
            }
            meet(padded[0], CHUNK);
        }
        for (int n = 0; n < NR; ++n) {
            const Vec::T by = Vec::set(w.scales[n * w.scale_stride + b]);
            for (int m = 0; m < HEIGHT; ++m) {
                const Vec::T part = Vec::mul(Ints::to_float(sum[n][m]), Vec::set(scales[m]));
                acc[n][m] = Vec::fma(part, by, acc[n][m]);
            }
        }
        panel += shape.block_bytes(HEIGHT);
    }
    for (int n = 0; n < NR; ++n) {
        constexpr int last = HEIGHT - 1;
        Vec::store4(sums + n * MR, Vec::sum4(acc[n][0], acc[n][last < 1 ? last : 1],
                                             acc[n][last < 2 ? last : 2], acc[n][last]));
    }
}

template <Format F, int HEIGHT>
int int_tile(int rows, int left, const char *panel, const Shape &shape, std::int64_t K,
             const Rows &w, float *sums) {
    if (rows < Ints::NR) {
        int_tile<F, HEIGHT, 1>(panel, shape, K, w, sums, 0);
        return 1;
    }
    // The next rows of the task: to the processor they are new streams.
    const auto ahead = static_cast<std::int64_t>(Ints::NR * w.stride);
    int_tile<F, HEIGHT, Ints::NR>(panel, shape, K, w, sums, left < 2 * Ints::NR ? 0 : ahead);
    return Ints::NR;
}

// --- sums of products ---

constexpr std::int64_t MOST_BLOCKS = 4096;  // of K, times the rows of a register tile

template <Format F>
struct IntProducts {
    struct Memory {
        float scales[MOST_BLOCKS], stored[MOST_BLOCKS];
        int zeros[MOST_BLOCKS];
    };

    static void sum(const Weight &w, const Part &p, Memory &memory, float *sums) {
        const Shape shape(w);
        for (int n = 0; n < p.rows; n += Ints::NR) {
            const int here = p.rows - n < Ints::NR ? p.rows - n : Ints::NR;
            for (int i = 0; i < here; ++i) factors(w, p.n0 + n + i, shape, i, memory);
            for (std::int64_t g = p.g0; g < p.g1; ++g) {
                const char *panel = static_cast<const char *>(p.panel) +
                                    static_cast<std::size_t>(g) * shape.tile_bytes(MR);
                float *out = sums + (g - p.g0) * N_BLOCK * MR + n * MR;
                for (int i = 0; i < here;) {
                    const Rows rows{w.row(p.n0 + n + i), w.row_bytes,
                                    memory.scales + i * shape.blocks,
                                    w.zeros == nullptr ? nullptr : memory.zeros + i * shape.blocks,
                                    shape.blocks};
                    i += tile(tile_rows(g, p.count), here - i, p.rows - n - i, panel, shape,
                              w.columns, rows, out + i * MR);
                }
            }
        }
    }

 private:
    // Scales and zeros of a weight row, one for each block.
    static void factors(const Weight &w, std::int64_t n, const Shape &shape, int i,
                        Memory &memory) {
        floats_of(w.scales, n * w.groups(), w.groups(), memory.stored);
        for (std::int64_t b = 0; b < shape.blocks; ++b) {
            const std::int64_t g = b * shape.block / w.group;
            memory.scales[i * shape.blocks + b] = memory.stored[g];
            if (w.zeros != nullptr) {
                memory.zeros[i * shape.blocks + b] = w.zero(n, g) + Ints::shift(F);
            }
        }
    }

    static int tile(int height, int rows, int left, const char *panel, const Shape &shape,
                    std::int64_t K, const Rows &w, float *sums) {
        switch (height) {
            case 1: return int_tile<F, 1>(rows, left, panel, shape, K, w, sums);
            case 2: return int_tile<F, 2>(rows, left, panel, shape, K, w, sums);
            case 3: return int_tile<F, 3>(rows, left, panel, shape, K, w, sums);
            default: return int_tile<F, 4>(rows, left, panel, shape, K, w, sums);
        }
    }
};

template <Format F>
constexpr Engine int_engine(const char *name) {
    using S = IntProducts<F>;
    return {name, MR, 4 * Ints::NR, int_panel_bytes, int_pack, task_rows, multiply<S>, gated<S>};
}

inline const Engine *int_engine_of(Format format, const char *name) {
    static const Engine i8 = int_engine<Format::i8>(name), u8 = int_engine<Format::u8>(name),
                        u4 = int_engine<Format::u4>(name);
    return format == Format::i8 ? &i8 : format == Format::u8 ? &u8 : &u4;
}

}  // namespace
}  // namespace headrace
