// Integer products with turned weights: four neighbouring bytes of a weight row to a lane, as many
// rows as there are lanes to a vector, and four bytes of a row of x broadcast to all lanes. Include
// after a vector layer, its Turn and its Ints.
//
// A block (the columns that share both scales) is summed exactly in 32 bits, the blocks in fp32 in
// order of columns. Weights of one format are moved by 128 to what the instructions take
// (Ints::moved), and each sum starts from what that (or the zero) is worth.
#pragma once

#include "quantise.h"
#include "turned_task.h"

namespace headrace {
namespace {

constexpr std::size_t bytes_of(Format format, std::int64_t columns) {
    return static_cast<std::size_t>(format == Format::u4 ? (columns + 1) / 2 : columns);
}

// Columns that a block takes up in the panel: 32, 64 or MOST_SHARED.
constexpr int room_of(std::int64_t block) {
    return block <= 32 ? 32 : block <= 64 ? 64 : static_cast<int>(MOST_SHARED);
}

// --- the panel: tiles of TALL rows (the last may have fewer), each with its bytes as
// [block][row][room]; then, in the same order, scales, and what sums start from: minus the sum of
// bytes, times the zero if all weights have the same ---

struct Panel {
    std::int64_t block, blocks, count;
    int room;
    std::int8_t *bytes;
    float *scales;
    std::int32_t *starts;

    Panel(const Weight &w, std::int64_t count, const void *at)
        : block(shared_columns(w)),
          blocks((w.columns + block - 1) / block),
          count(count),
          room(room_of(block)),
          bytes(static_cast<std::int8_t *>(const_cast<void *>(at))),
          scales(reinterpret_cast<float *>(bytes + blocks * count * room)),
          starts(reinterpret_cast<std::int32_t *>(scales + blocks * count)) {}

    // Rows in the tile that begins with the m-th.
    std::int64_t height(std::int64_t m) const { return count - m < TALL ? count - m : TALL; }

    // Where block b of row m is, in rows of a block; the rows of a tile follow each other.
    std::int64_t at(std::int64_t m, std::int64_t b) const {
        const std::int64_t tile = m / TALL * TALL;
        return tile * blocks + b * height(tile) + m - tile;
    }

    int columns(std::int64_t b, std::int64_t K) const {
        return static_cast<int>(K - b * block < block ? K - b * block : block);
    }
};

std::size_t int_panel_bytes(std::int64_t rows, const Weight &w) {
    const Panel panel(w, rows, nullptr);
    return static_cast<std::size_t>(panel.blocks * rows) *
           (static_cast<std::size_t>(panel.room) + sizeof(float) + sizeof(std::int32_t));
}

// Block b of row m, whose values begin at x.
inline void pack_block(const Panel &panel, const Weight &w, std::int64_t m, std::int64_t b,
                       const float *x) {
    const int zero = w.zeros != nullptr ? 1 : zero_of(w.format) + Ints::shift(w.format);
    const std::int64_t i = panel.at(m, b);
    const Quantised q = quantise(x, panel.columns(b, w.columns), panel.room,
                                 w.format == Format::u4, panel.bytes + i * panel.room);
    panel.scales[i] = q.scale;
    panel.starts[i] = -zero * q.sum;
}

// Routed rows lie anywhere in memory: those that follow are asked for while one is packed.
void int_pack(const float *const *rows, std::int64_t count, const Weight &w, std::int64_t first,
              std::int64_t last, void *at) {
    const Panel panel(w, count, at);
    const std::int64_t end = last * TALL < count ? last * TALL : count;
    for (std::int64_t m = first * TALL; m < end; ++m) {
        const float *later = rows[m + ROWS_AHEAD < count ? m + ROWS_AHEAD : m];
        for (std::int64_t b = 0; b < panel.blocks; ++b) {
            ask_row(later + b * panel.block, panel.columns(b, w.columns));
            pack_block(panel, w, m, b, rows[m] + b * panel.block);
        }
    }
}

// A block has 32 or 64 columns, or all: parts are whole ones.
void int_pack_part(const float *values, std::int64_t stride, std::int64_t m0, std::int64_t m1,
                   std::int64_t n0, std::int64_t n1, const Onward &to) {
    static_assert(PART % MOST_SHARED == 0, "whole blocks");
    const Panel panel(*to.like, to.count, to.panel);
    for (std::int64_t m = m0; m < m1; ++m, values += stride) {
        for (std::int64_t n = n0; n < n1; n += panel.block) {
            pack_block(panel, *to.like, m, n / panel.block, values + n - n0);
        }
    }
}

// --- the register tile ---

// Blocks b0 .. b1 of some vectors of weight rows: words [quad of columns][vector]; scales and (or
// null) zeros as [group of columns][vector].
struct Stretch {
    std::int64_t b0, b1;
    const std::uint8_t *words;
    const float *scales;
    const std::int32_t *zeros;
};

// Adds to (or, from the first block on, sets) sums[H][N_BLOCK] the products of H rows of x from the
// m-th on with V vectors, from the n-th weight row on, of a stretch of OF. Asks for LINES lines with
// every quad.
template <Format F, int ROOM, int H, int V, int OF, int LINES, class I = Ints>
void int_tile(const Panel &panel, std::int64_t m, const Weight &w, const Stretch &s, int n,
              Ahead &ahead, float *sums) {
    constexpr int group = OF * Vec::width;
    const std::uint8_t *words = s.words + 4 * n;
    for (std::int64_t b = s.b0; b < s.b1; ++b) {
        const std::int64_t i = panel.at(m, b), g = b * panel.block / w.group * group + n;
        const std::int8_t *x = panel.bytes + i * ROOM;
        Ints::T acc[H][V];
#pragma GCC unroll 16
        for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                acc[h][v] = Ints::set(panel.starts[i + h]);
                if (s.zeros != nullptr) {
                    acc[h][v] = Ints::times(acc[h][v], Ints::load(s.zeros + g + v * Vec::width));
                }
            }
        }
        const int quads = static_cast<int>(up_to(panel.columns(b, w.columns), 32) / 4);
        if constexpr (I::narrow(F)) {
            for (int q = 0; q < quads; q += I::NARROW_STEPS) {
                Ints::T some[H][V] = {};
                for (int i = 0; i < I::NARROW_STEPS; ++i, words += 4 * group) {
                    if constexpr (LINES > 0) ahead.ask(LINES);
                    Ints::W weight[V];
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) weight[v] = Ints::words(words + 4 * v * Vec::width);
#pragma GCC unroll 16
                    for (int h = 0; h < H; ++h) {
                        const Ints::W value = Ints::four(x + h * ROOM + 4 * (q + i));
#pragma GCC unroll 4
                        for (int v = 0; v < V; ++v) {
                            some[h][v] = I::dot_narrow(some[h][v], weight[v], value);
                        }
                    }
                }
#pragma GCC unroll 16
                for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) {
                        acc[h][v] = Ints::add(acc[h][v], I::widened(some[h][v]));
                    }
                }
            }
        } else {
            for (int q = 0; q < quads; ++q, words += 4 * group) {
                if constexpr (LINES > 0) ahead.ask(LINES);
                Ints::W weight[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) weight[v] = Ints::words(words + 4 * v * Vec::width);
#pragma GCC unroll 16
                for (int h = 0; h < H; ++h) {
                    const Ints::W value = Ints::four(x + h * ROOM + 4 * q);
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) {
                        acc[h][v] = Ints::template dot<F>(acc[h][v], weight[v], value);
                    }
                }
            }
        }
#pragma GCC unroll 16
        for (int h = 0; h < H; ++h) {
            const Vec::T by = Vec::set(panel.scales[i + h]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                float *to = sums + h * N_BLOCK + v * Vec::width;
                const Vec::T before = b == 0 ? Vec::zero() : Vec::load(to);
                const Vec::T part = Vec::mul(Ints::to_float(acc[h][v]), by);
                Vec::store(to, Vec::fma(part, Vec::load(s.scales + g + v * Vec::width), before));
            }
        }
    }
}

// --- sums of products ---

constexpr std::int64_t MOST_GROUPS = 1024;  // of a weight row
constexpr std::int64_t STRETCH = 128;       // columns that are multiplied as they are turned
constexpr std::int64_t TURNED = 256;        // columns that are turned at a time, for many rows
constexpr int UNIT = 32;                    // columns that every block is a multiple of
constexpr int UNIT_QUADS = UNIT / 4;

// The same, hidden from the compiler, which else keeps an address of its own in memory for each word
// that is read near it.
inline const std::int8_t *one_address(const std::int8_t *at) {
    __asm__("" : "+r"(at));
    return at;
}

template <Format F>
struct IntProducts {
    static constexpr int FEW = TALL;
    static constexpr int MANY = N_BLOCK / Vec::width;  // a tile of x meets them all: it is read once

    // Bytes of four columns of a vector of rows; units of columns in a turned line.
    static constexpr int QUAD_BYTES = Vec::width * (F == Format::u4 ? 2 : 4);
    static constexpr int UNITS_OF_LINE = static_cast<int>(LINE) * (F == Format::u4 ? 2 : 1) / UNIT;

    struct Memory {
        alignas(64) std::uint8_t words[TURNED * MANY * Vec::width];
        float scales[(MOST_GROUPS + 1) * N_BLOCK];  // [group of columns][weight row]
        std::int32_t zeros[MOST_GROUPS * N_BLOCK];
    };

    template <int V>
    static void sum(const Weight &w, const Part &p, int n, Ahead &ahead, Memory &memory,
                    float *sums) {
        constexpr int group = V * Vec::width;
        const Panel panel(w, p.count, p.panel);
        const int rows = p.rows - n < group ? p.rows - n : group;
        const Rows<V> values(w, p.n0 + n, rows);
        const bool in_place = V == 1 && values.turned[0] && stretched(w, panel) == w.columns;
        if (!in_place) scales<V>(w, p.n0 + n, rows, memory.scales);
        if (w.zeros != nullptr) zeros<group>(w, p.n0 + n, rows, memory.zeros);
        std::int64_t k = 0;
        if constexpr (V == 1) {
            k = whole_stretches(w, p, panel, n, values, ahead, memory, sums + n);
        }
        for (; k < w.columns; k += TURNED) {
            const std::int64_t end = k + TURNED < w.columns ? k + TURNED : w.columns;
            spread(values, k, end - k, memory.words);
            const Stretch stretch{k / panel.block, (end + panel.block - 1) / panel.block,
                                  memory.words, memory.scales,
                                  w.zeros == nullptr ? nullptr : memory.zeros};
            switch (panel.room) {
                case 32: meet<32, V>(panel, p, w, stretch, rows, ahead, sums + n); break;
                case 64: meet<64, V>(panel, p, w, stretch, rows, ahead, sums + n); break;
                default: meet<MOST_SHARED, V>(panel, p, w, stretch, rows, ahead, sums + n);
            }
        }
    }

 private:
    // Few rows of x: columns in whole stretches of whole blocks.
    static std::int64_t stretched(const Weight &w, const Panel &panel) {
        return panel.block == panel.room ? w.columns / STRETCH * STRETCH : 0;
    }

    // They are multiplied as they are turned. Returns the columns that were.
    static std::int64_t whole_stretches(const Weight &w, const Part &p, const Panel &panel, int n,
                                        const Rows<1> &values, Ahead &ahead, const Memory &memory,
                                        float *sums) {
        const std::int64_t columns = stretched(w, panel);
        if (columns == 0) return 0;
        with_height(p.m1 - p.m0, [&](auto height) {
            if constexpr (height.value <= FEW) {
                if (panel.room == 32) {
                    few_rows<32, height.value>(w, p, panel, columns, n, values, ahead, memory, sums);
                } else {
                    few_rows<64, height.value>(w, p, panel, columns, n, values, ahead, memory, sums);
                }
            }
        });
        return columns;
    }

    template <int ROOM, int H>
    static void few_rows(const Weight &w, const Part &p, const Panel &panel, std::int64_t columns,
                         int n, const Rows<1> &values, Ahead &ahead, const Memory &memory,
                         float *sums) {
        if (values.turned[0]) {
            few_turned<ROOM, H>(w, p, panel, columns, p.n0 + n, ahead, memory.zeros, sums);
        } else {
            few<ROOM, H>(w, p, panel, columns, values, ahead, memory, sums);
        }
    }

    // As `few`, of weights from row n on that lie turned: every word and scale is loaded where it is
    // met, and scales are asked for as weights are, a few lines ahead. A function of its own: among
    // others, the compiler puts sums into memory.
    template <int ROOM, int H>
    [[gnu::noinline]] static void few_turned(const Weight &w, const Part &p, const Panel &panel,
                                             std::int64_t columns, std::int64_t n, Ahead &ahead,
                                             const std::int32_t *zeros, float *sums) {
        constexpr int chains = Ints::chains(H);
        constexpr int line_words = F == Format::u4 ? UNIT_QUADS / 2 : UNIT_QUADS;  // of a unit
        const std::int64_t first = panel.at(p.m0, 0), height = panel.height(p.m0);
        const std::int64_t blocks = columns / ROOM, in_group = w.group / ROOM;
        const std::int8_t *x = panel.bytes + first * ROOM;
        const float *by = panel.scales + first;
        const std::int32_t *start = panel.starts + first;
        const char *words = w.row(n);
        const auto *scale = static_cast<const char *>(w.scales.at(n * w.groups()));
        const std::int64_t scale_bytes = bytes_of_scales(w.scales.format);
        if (w.zeros == nullptr) zeros = nullptr;
        Ahead next = ahead;  // in registers
        Vec::T total[H];
        for (int m = 0; m < H; ++m) total[m] = Vec::zero();
        for (std::int64_t b = 0, left = in_group; b < blocks; ++b) {
            Ints::T acc[H][chains];
            for (int m = 0; m < H; ++m) {
                acc[m][0] = Ints::set(start[m]);
                if (zeros != nullptr) acc[m][0] = Ints::times(acc[m][0], Ints::load(zeros));
                for (int c = 1; c < chains; ++c) acc[m][c] = Ints::set(0);
            }
            const std::int8_t *at = one_address(x);
#pragma GCC unroll 2
            for (int u = 0; u < ROOM / UNIT; ++u, at += UNIT) {
                const auto meet = [&](int q, Ints::W weight) {
                    for (int m = 0; m < H; ++m) {
                        Ints::T &sum = acc[m][q % chains];
                        sum = Ints::template dot_four<F>(sum, weight, at + m * ROOM + 4 * q);
                    }
                };
#pragma GCC unroll 8
                for (int j = 0; j < line_words; ++j, words += sizeof(Turn::T)) {
                    next.ask(1);
                    const Turn::T word = Turn::load(words);
                    if constexpr (F == Format::u4) {
                        meet(j, Turn::low_nibbles(word));
                        meet(j + line_words, Turn::high_nibbles(word));
                    } else {
                        meet(j, F == Ints::moved ? Turn::shifted(word) : word);
                    }
                }
            }
            const Vec::T by_row = scales_at(w.scales.format, scale);
            for (int m = 0; m < H; ++m) {
                for (int c = 1; c < chains; ++c) acc[m][0] = Ints::add(acc[m][0], acc[m][c]);
                const Vec::T part = Vec::mul(Ints::to_float(acc[m][0]), Vec::set(by[m]));
                total[m] = Vec::fma(part, by_row, total[m]);
            }
            x += height * ROOM;
            by += height;
            start += height;
            if (--left > 0) continue;
            left = in_group;
            prefetch_close(scale + SCALES_AHEAD);
            scale += scale_bytes;
            if (zeros != nullptr) zeros += Vec::width;
        }
        for (int m = 0; m < H; ++m) Vec::store(sums + m * N_BLOCK, total[m]);
        ahead = next;
    }

    // Sums of H rows of x are kept in registers; integers are summed exactly, so in any order, and in
    // several chains, which need not wait for each other.
    template <int ROOM, int H>
    static void few(const Weight &w, const Part &p, const Panel &panel, std::int64_t columns,
                    const Rows<1> &values, Ahead &ahead, const Memory &memory, float *sums) {
        constexpr int chains = Ints::chains(H);
        constexpr int units = ROOM / UNIT, line_units = UNITS_OF_LINE;
        Vec::T total[H];
        Ints::T acc[H][chains];
        Ints::W words[Turn::words];
        for (int m = 0; m < H; ++m) total[m] = Vec::zero();
        for (std::int64_t k = 0; k < columns; k += STRETCH) {
#pragma GCC unroll 4
            for (int u = 0; u < STRETCH / UNIT; ++u) {
                const std::int64_t b = (k + u * UNIT) / ROOM, i = panel.at(p.m0, b);
                const std::int64_t g = b * ROOM / w.group * Vec::width;
                if (u % line_units == 0) {
                    values.line(0, bytes_of(F, k + u * UNIT), words);
                }
                if (u % units == 0) {
                    for (int m = 0; m < H; ++m) {
                        acc[m][0] = Ints::set(panel.starts[i + m]);
                        if (w.zeros != nullptr) {
                            acc[m][0] = Ints::times(acc[m][0], Ints::load(memory.zeros + g));
                        }
                        for (int c = 1; c < chains; ++c) acc[m][c] = Ints::set(0);
                    }
                }
                const std::int8_t *x = one_address(panel.bytes + i * ROOM + u % units * UNIT);
#pragma GCC unroll 8
                for (int q = 0; q < UNIT_QUADS; ++q) {
                    if (q * QUAD_BYTES % Ahead::LINE_BYTES == 0) ahead.ask(1);
                    const Ints::W weight = quad(words, u % line_units, q);
                    for (int m = 0; m < H; ++m) {
                        Ints::T &sum = acc[m][q % chains];
                        sum = Ints::template dot_four<F>(sum, weight, x + m * ROOM + 4 * q);
                    }
                }
                if (u % units < units - 1) continue;
                const Vec::T scale = Vec::load(memory.scales + g);
                for (int m = 0; m < H; ++m) {
                    for (int c = 1; c < chains; ++c) acc[m][0] = Ints::add(acc[m][0], acc[m][c]);
                    const Vec::T by = Vec::set(panel.scales[i + m]);
                    total[m] = Vec::fma(Vec::mul(Ints::to_float(acc[m][0]), by), scale, total[m]);
                }
            }
        }
        for (int m = 0; m < H; ++m) Vec::store(sums + m * N_BLOCK, total[m]);
    }

    // Four columns of every row: the q-th of unit u of a turned line.
    static Ints::W quad(const Turn::T (&words)[Turn::words], int u, int q) {
        if constexpr (F == Format::u4) {
            const Turn::T word = words[4 * u + q % 4];
            return q < 4 ? Turn::low_nibbles(word) : Turn::high_nibbles(word);
        }
        const Turn::T word = words[UNIT_QUADS * u + q];
        return F == Ints::moved ? Turn::shifted(word) : word;
    }

    template <int ROOM, int V>
    static void meet(const Panel &panel, const Part &p, const Weight &w, const Stretch &stretch,
                     int rows, Ahead &ahead, float *sums) {
        constexpr int wide = V < PAIR ? V : PAIR, bytes = wide * QUAD_BYTES;
        constexpr int lines = bytes < Ahead::LINE_BYTES ? 1 : bytes / Ahead::LINE_BYTES;
        for (std::int64_t m = p.m0; m < p.m1; m += LOW, sums += LOW * N_BLOCK) {
            with_height(p.m1 - m < LOW ? p.m1 - m : LOW, [&](auto height) {
                if constexpr (height.value <= LOW) {
                    const auto tile = m == p.m0 ? int_tile<F, ROOM, height.value, wide, V, lines>
                                                : int_tile<F, ROOM, height.value, wide, V, 0>;
                    for (int n = 0; n < rows; n += wide * Vec::width) {
                        tile(panel, m, w, stretch, n, ahead, sums + n);
                    }
                }
            });
        }
    }

    // Columns k .. k + columns. Four words of nibbles make eight: the low nibbles of all, then the
    // high ones, as x lies in the panel.
    template <int V>
    static void spread(const Rows<V> &rows, std::int64_t k, std::int64_t columns,
                       std::uint8_t *words) {
        constexpr int stride = 4 * V * Vec::width;
        rows.turn(bytes_of(F, k), bytes_of(F, columns), [&](int v, Turn::T word, int j) {
            std::uint8_t *to = words + 4 * v * Vec::width;
            if constexpr (F == Format::u4) {
                to += (j / 4 * 8 + j % 4) * stride;
                Turn::store(to, Turn::low_nibbles(word));
                Turn::store(to + 4 * stride, Turn::high_nibbles(word));
            } else {
                Turn::store(to + j * stride, F == Ints::moved ? Turn::shifted(word) : word);
            }
        });
    }

    // Scales of V vectors of rows, as [group of columns][row].
    template <int V>
    static void scales(const Weight &w, std::int64_t n, int rows, float *to) {
        constexpr int stride = V * Vec::width;
        if (n >= w.turned) return turn_scales<V>(w, n, rows, to);
        for (int v = 0; v < V && v * Vec::width < rows; ++v) {
            const std::int64_t first = n + v * Vec::width;
            if (first + Vec::width <= w.turned) {
                turned_scales(w, first, stride, to + v * Vec::width);
            } else {
                some_scales(w, first, rows - v * Vec::width, stride, to + v * Vec::width);
            }
        }
    }

    // Of a vector of rows that lie turned.
    static void turned_scales(const Weight &w, std::int64_t n, int stride, float *to) {
        const auto *at = static_cast<const char *>(w.scales.at(n * w.groups()));
        const std::int64_t bytes = bytes_of_scales(w.scales.format);
        for (std::int64_t g = 0; g < w.groups(); ++g, at += bytes, to += stride) {
            Vec::store(to, scales_at(w.scales.format, at));
        }
    }

    // The same, of one group of columns.
    static Vec::T scales_at(Format format, const char *at) {
        switch (format) {
            case Format::f32: return Vec::load(reinterpret_cast<const float *>(at));
            case Format::bf16: return Vec::widen_bf16(reinterpret_cast<const std::uint16_t *>(at));
            default: return Vec::widen_f16(reinterpret_cast<const std::uint16_t *>(at));
        }
    }
    static constexpr std::int64_t bytes_of_scales(Format format) {
        return Vec::width * (format == Format::f32 ? 4 : 2);
    }

    // Of the rows behind the last turned ones, fewer than a vector.
    static void some_scales(const Weight &w, std::int64_t n, int rows, int stride, float *to) {
        const std::int64_t groups = w.groups();
        for (std::int64_t g = 0; g < groups; ++g, to += stride) {
            for (int i = 0; i < rows; ++i) floats_of(w.scales, (n + i) * groups + g, 1, to + i);
            for (int i = rows; i < Vec::width; ++i) to[i] = 0.0f;
        }
    }

    // Of rows as stored.
    template <int V>
    static void turn_scales(const Weight &w, std::int64_t n, int rows, float *to) {
        const std::int64_t groups = w.groups();
        const auto *at = static_cast<const char *>(w.scales.at(n * groups));
        const auto row_bytes = static_cast<std::size_t>(groups) *
                               (w.scales.format == Format::f32 ? 4 : 2);
        const Rows<V> stored(at, rows, row_bytes);
        switch (w.scales.format) {
            case Format::f32: return widen<F32>(stored, 0, groups, to);
            case Format::bf16: return widen<Bf16>(stored, 0, groups, to);
            default: return widen<F16>(stored, 0, groups, to);
        }
    }

    template <int GROUP>
    static void zeros(const Weight &w, std::int64_t n, int rows, std::int32_t *to) {
        for (std::int64_t g = 0; g < w.groups(); ++g) {
            for (int i = 0; i < rows; ++i) to[g * GROUP + i] = w.zero(n + i, g) + Ints::shift(F);
        }
    }
};

template <Format F>
constexpr Engine int_engine(const char *name) {
    using S = IntProducts<F>;
    return {name,        TALL,     PAIR * Vec::width, int_panel_bytes, int_pack,     task_rows,
            multiply<S>, gated<S>, Turn::kept,        true,            int_pack_part};
}

inline const Engine *int_engine_of(Format format, const char *name) {
    static const Engine i8 = int_engine<Format::i8>(name), u8 = int_engine<Format::u8>(name),
                        u4 = int_engine<Format::u4>(name);
    return format == Format::i8 ? &i8 : format == Format::u8 ? &u8 : &u4;
}

}  // namespace
}  // namespace headrace
