// bf16 weights with activations rounded to bf16: one instruction multiplies two neighbouring
// columns of a weight row with those of a row of x and adds both products to an fp32 lane.
//
// Weights are used where they lie, with lanes along K: nothing is widened or turned, and rows are
// read from beginning to end, a thousand columns at a time. A result is a sum over blocks of K_BLOCK columns, in order; a block
// is summed in sixteen lanes, in order of columns, and the lanes by one fixed tree. So neither the
// tile that a row falls in, nor how many rows there are, can change a bit.
#include "engine.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include <algorithm>
#include <cstring>

#include "vec_avx512.h"

#include "turn_avx512.h"

#include "turned_task.h"

namespace headrace {
namespace {

constexpr std::int64_t K_BLOCK = 1024;
constexpr int STEP = 32;  // columns in a vector
constexpr int STEP_BYTES = 64;
constexpr int SUMS = 16;  // of a register tile, at most: a vector of results
constexpr std::int64_t ONE_BY_ONE = 4;  // rows of x, at most, that weight rows meet in order

// --- the panel: tiles of TALL rows (the last may have fewer), step by step, K padded with zeros ---

std::size_t panel_bytes(std::int64_t rows, const Weight &w) {
    return static_cast<std::size_t>(rows * up_to(w.columns, STEP)) * sizeof(std::uint16_t);
}

// Rows of x in the tile that begins with the m-th.
int height_of(std::int64_t m, std::int64_t count) {
    return count - m < TALL ? static_cast<int>(count - m) : TALL;
}

__mmask16 lanes(std::int64_t n) {
    return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
}

// A step of a row, of `columns` at most.
void pack_step(const float *from, std::int64_t columns, std::uint16_t *to) {
    const __m512 low = _mm512_maskz_loadu_ps(lanes(columns), from);
    const __m512 high = _mm512_maskz_loadu_ps(lanes(columns - 16), from + 16);
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// Where row m of `columns` begins in a panel; its steps are as many apart as its tile has rows.
std::uint16_t *packed_row(void *panel, std::int64_t columns, std::int64_t m) {
    const std::int64_t tile = m / TALL * TALL;
    return static_cast<std::uint16_t *>(panel) + tile * up_to(columns, STEP) + (m - tile) * STEP;
}

// Routed rows lie anywhere in memory: those that follow are asked for while one is packed.
void pack(const float *const *rows, std::int64_t count, const Weight &w, std::int64_t first,
          std::int64_t last, void *panel) {
    const std::int64_t end = last * TALL < count ? last * TALL : count;
    for (std::int64_t m = first * TALL; m < end; ++m) {
        const std::int64_t stride = height_of(m / TALL * TALL, count) * STEP;
        const float *later = rows[m + ROWS_AHEAD < count ? m + ROWS_AHEAD : m];
        auto *to = packed_row(panel, w.columns, m);
        for (std::int64_t k = 0; k < w.columns; k += STEP, to += stride) {
            ask_row(later + k, w.columns - k < STEP ? w.columns - k : STEP);
            pack_step(rows[m] + k, w.columns - k, to);
        }
    }
}

void pack_part(const float *values, std::int64_t stride, std::int64_t m0, std::int64_t m1,
               std::int64_t n0, std::int64_t n1, const Onward &onward) {
    static_assert(PART % STEP == 0, "whole steps");
    for (std::int64_t m = m0; m < m1; ++m, values += stride) {
        const std::int64_t height = height_of(m / TALL * TALL, onward.count);
        auto *to = packed_row(onward.panel, onward.like->columns, m) + n0 * height;
        for (std::int64_t n = n0; n < n1; n += STEP, to += height * STEP) {
            pack_step(values + n - n0, n1 - n, to);
        }
    }
}

// --- the register tile ---

// Lane i: the sum of the lanes of the i-th, by the same tree for each.
[[gnu::always_inline]] inline Vec::T sum_of_each(const Vec::T (&a)[SUMS]) {
    Vec::T halves[8], quarters[4], pairs[2];
    for (int i = 0; i < 8; ++i) {  // quarters 0 + 2 and 1 + 3 of i (or i + 4 above 3) and its next
        const int at = i % 4 + i / 4 * 8;
        halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[at], a[at + 4], 0x44),
                                  _mm512_shuffle_f32x4(a[at], a[at + 4], 0xee));
    }
    for (int i = 0; i < 4; ++i) {  // a quarter each of i, i + 4, i + 8 and i + 12
        quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(halves[i], halves[i + 4], 0x88),
                                    _mm512_shuffle_f32x4(halves[i], halves[i + 4], 0xdd));
    }
    for (int i = 0; i < 2; ++i) {
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(quarters[2 * i], quarters[2 * i + 1]),
                                 _mm512_unpackhi_ps(quarters[2 * i], quarters[2 * i + 1]));
    }
    const __m512d low = _mm512_castps_pd(pairs[0]), high = _mm512_castps_pd(pairs[1]);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
}

// Weight rows that meet H rows of x in one tile, and how many of them are read side by side where
// they are not read one after the other: the processor follows four streams, and sums of the next
// four begin while these end.
template <int H>
constexpr int WIDE = H == 1 ? 16 : H == 2 ? 8 : H <= 4 ? 4 : 2;
template <int H>
constexpr int SIDE = WIDE<H> < 4 ? WIDE<H> : 4;

// Whether rows are read one after the other, memory thus from beginning to end. Few sums go on at
// once then: for up to four rows of x memory is slower still.
bool one_by_one(const Weight &w, const Part &p) {
    return w.columns <= K_BLOCK && p.m1 - p.m0 <= ONE_BY_ONE;
}

__m512bh pairs_at(const void *p) { return (__m512bh)_mm512_loadu_si512(p); }

// Adds to (or sets) sums[H][WIDE] the products of a tile of x with weight rows from `offset` on,
// `steps` vectors of which the last has the columns in `tail`. Asks for LINES lines of memory for
// each vector of SIDE rows. A function of its own: inlined, its sums do not stay in registers.
template <int H, int LINES>
[[gnu::noinline]] void tile(const std::uint16_t *x, const char *const *rows, std::size_t offset,
                            std::int64_t steps, __mmask32 tail, bool set, Ahead &ahead,
                            float *sums) {
    constexpr int wide = WIDE<H>, side = SIDE<H>;
    Vec::T acc[SUMS];  // [row of x][weight row]
#pragma GCC unroll 16
    for (int i = 0; i < SUMS; ++i) acc[i] = Vec::zero();
#pragma GCC unroll 16
    for (int first = 0; first < wide; first += side) {
        const char *w[side];
        for (int n = 0; n < side; ++n) w[n] = rows[first + n] + offset;
        const auto step = [&](std::int64_t s, const __m512bh(&weight)[side]) {
#pragma GCC unroll 8
            for (int m = 0; m < H; ++m) {
                const __m512bh value = pairs_at(x + (s * H + m) * STEP);
#pragma GCC unroll 16
                for (int n = 0; n < side; ++n) {
                    Vec::T &sum = acc[m * wide + first + n];
                    sum = _mm512_dpbf16_ps(sum, weight[n], value);
                }
            }
        };
        __m512bh weight[side];
        for (std::int64_t s = 0; s + 1 < steps; ++s) {
            if constexpr (LINES > 0) ahead.ask(LINES);
#pragma GCC unroll 16
            for (int n = 0; n < side; ++n) weight[n] = pairs_at(w[n] + s * STEP_BYTES);
            step(s, weight);
        }
        if constexpr (LINES > 0) ahead.ask(LINES);
#pragma GCC unroll 16
        for (int n = 0; n < side; ++n) {
            weight[n] = (__m512bh)_mm512_maskz_loadu_epi16(tail, w[n] + (steps - 1) * STEP_BYTES);
        }
        step(steps - 1, weight);
    }
    const Vec::T sum = sum_of_each(acc);
    Vec::store(sums, set ? sum : Vec::add(Vec::load(sums), sum));
}

// The same for whole weight rows, one after the other; sets sums. While a row is met, the one at its
// place in `later` is asked for.
template <int H>
[[gnu::noinline]] void tile_in_order(const std::uint16_t *x, const char *const *rows,
                                     const char *const *later, std::int64_t steps, __mmask32 tail,
                                     float *sums) {
    constexpr int wide = WIDE<H>;
    Vec::T acc[SUMS];  // [row of x][weight row]
#pragma GCC unroll 16
    for (int i = 0; i < SUMS; ++i) acc[i] = Vec::zero();
#pragma GCC unroll 16
    for (int n = 0; n < wide; ++n) {
        const char *w = rows[n], *next = later[n];
        const auto step = [&](std::int64_t s, __m512bh weight) {
#pragma GCC unroll 8
            for (int m = 0; m < H; ++m) {
                Vec::T &sum = acc[m * wide + n];
                sum = _mm512_dpbf16_ps(sum, weight, pairs_at(x + (s * H + m) * STEP));
            }
        };
        for (std::int64_t s = 0; s + 1 < steps; ++s) {
            prefetch_close(next + s * STEP_BYTES);
            step(s, pairs_at(w + s * STEP_BYTES));
        }
        const std::int64_t last = (steps - 1) * STEP_BYTES;
        prefetch_close(next + last);
        step(steps - 1, (__m512bh)_mm512_maskz_loadu_epi16(tail, w + last));
    }
    Vec::store(sums, sum_of_each(acc));
}

// --- sums of products ---

struct Products {
    static constexpr int FEW = LONG_FOR;  // above, a pass over x meets twice as many weight rows
    static constexpr int MANY = PAIR;

    // Of every tile of x: results as its register tiles leave them.
    using TileSums = float[Rows<PAIR>::size / WIDE<TALL>][SUMS];
    using Memory = TileSums[MAX_ROWS / TALL];

    template <int V>
    static void sum(const Weight &w, const Part &p, int n, Ahead &ahead, Memory &memory,
                    float *sums) {
        const Rows<V> rows(w, p.n0 + n, p.rows - n);
        if (w.columns > 0 && one_by_one(w, p)) {
            with_height(p.count - p.m0, [&](auto height) {
                whole_rows<height.value, V>(w, p, n, rows, ahead.take_then(), memory[0]);
            });
        } else {
            blocks(w, p, rows, ahead, memory);
        }
        for (std::int64_t m = p.m0; m < p.m1; m += TALL) {
            with_height(p.count - m, [&](auto height) {
                put_tile<height.value, V>(memory[(m - p.m0) / TALL], w.columns == 0,
                                          sums + (m - p.m0) * N_BLOCK + n);
            });
        }
    }

 private:
    // A block of weight rows stays in the cache while all tiles of x meet it.
    template <int V>
    static void blocks(const Weight &w, const Part &p, const Rows<V> &rows, Ahead &ahead,
                       Memory &memory) {
        for (std::int64_t k = 0; k < w.columns; k += K_BLOCK) {
            for (std::int64_t m = p.m0; m < p.m1; m += TALL) {
                with_height(p.count - m, [&](auto height) {
                    constexpr int H = height.value;
                    const auto meet = m == p.m0 ? block<H, SIDE<H>, V> : block<H, 0, V>;
                    meet(w, p, rows, k, m, ahead, memory[(m - p.m0) / TALL]);
                });
            }
        }
    }

    // The tile of x that begins with its m-th row, columns from the k-th on.
    template <int H, int LINES, int V>
    static void block(const Weight &w, const Part &p, const Rows<V> &rows, std::int64_t k,
                      std::int64_t m, Ahead &ahead, TileSums &sums) {
        const std::int64_t columns = w.columns - k < K_BLOCK ? w.columns - k : K_BLOCK;
        const std::int64_t steps = up_to(columns, STEP) / STEP;
        const auto tail = static_cast<__mmask32>(0xffffffffu >> (steps * STEP - columns));
        const auto *x = static_cast<const std::uint16_t *>(p.panel) +
                        m * up_to(w.columns, STEP) + k * H;
        for (int i = 0; i < Rows<V>::size / WIDE<H>; ++i) {
            tile<H, LINES>(x, rows.at + i * WIDE<H>, static_cast<std::size_t>(2 * k), steps, tail,
                           k == 0, ahead, sums[i]);
        }
    }

    // The only tile of x, all columns. Behind the last weight row of the part, those from `then` on
    // are met next. These are hints: where the part ends between two vectors some ask in vain.
    template <int H, int V>
    static void whole_rows(const Weight &w, const Part &p, int n, const Rows<V> &rows,
                           const char *then, TileSums &sums) {
        const std::int64_t steps = up_to(w.columns, STEP) / STEP, left = p.rows - n;
        const auto tail = static_cast<__mmask32>(0xffffffffu >> (steps * STEP - w.columns));
        const auto *x = static_cast<const std::uint16_t *>(p.panel) + p.m0 * up_to(w.columns, STEP);
        const auto row_bytes = static_cast<std::int64_t>(w.row_bytes);
        const std::int64_t skipped = std::max<std::int64_t>(Ahead::DISTANCE / row_bytes, 1);
        const char *later[Rows<V>::size];
        for (std::int64_t i = 0; i < Rows<V>::size; ++i) {
            const std::int64_t at = i + skipped - left;  // of those that follow
            later[i] = at < 0            ? w.row(p.n0 + n + i + skipped)
                       : then != nullptr ? then + at * row_bytes
                                         : rows.at[i];
        }
        for (int i = 0; i < Rows<V>::size / WIDE<H>; ++i) {
            tile_in_order<H>(x, rows.at + i * WIDE<H>, later + i * WIDE<H>, steps, tail, sums[i]);
        }
    }

    // Results to their rows.
    template <int H, int V>
    static void put_tile(const TileSums &from, bool none, float *sums) {
        constexpr int wide = WIDE<H>;
        for (int m = 0; m < H; ++m) {
            for (int i = 0; i < Rows<V>::size / wide; ++i) {
                float *to = sums + m * N_BLOCK + i * wide;
                if (none) {
                    std::memset(to, 0, wide * sizeof(float));
                } else {
                    std::memcpy(to, from[i] + m * wide, wide * sizeof(float));
                }
            }
        }
    }
};

template <>
bool in_order<Products>(const Weight &w, const Part &p) {
    return one_by_one(w, p);
}

}  // namespace

const Engine *avx512_bf16_engine(Format format) {
    static const Engine bf16{"avx512_bf16", TALL, PAIR * Vec::width, panel_bytes, pack, task_rows,
                             multiply<Products>, gated<Products>, false, true, pack_part};
    return format == Format::bf16 ? &bf16 : nullptr;
}

}  // namespace headrace

#else

const headrace::Engine *headrace::avx512_bf16_engine(Format) { return nullptr; }

#endif
