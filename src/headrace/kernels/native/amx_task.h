// Tasks on AMX tiles: tiles of results [16 weight rows, 16 rows of x], and their way out.
#pragma once

#include "vec_avx512.h"

#include "engine.h"
#include "epilogue.h"
#include "local.h"
#include "prefetch.h"
#include "transpose16.h"

namespace headrace {
namespace {

constexpr int GRANULE = 16;     // rows of x in a tile
constexpr int TILE = 1024;      // bytes
constexpr int SUM_TILES = 256;  // tiles of partial sums that a task may hold

inline void fence() { __asm__ volatile("" ::: "memory"); }  // tile intrinsics declare no memory

// Eight tiles for the life of the object: sums 0..3, left operands 4, 5 and right ones 6, 7.
struct Tiles {
    Tiles() {
        alignas(64) struct {
            std::uint8_t palette = 1, start = 0, reserved[14] = {};
            std::uint16_t row_bytes[16] = {};
            std::uint8_t rows[16] = {};
        } config;
        for (int i = 0; i < 8; ++i) {
            config.row_bytes[i] = 64;
            config.rows[i] = 16;
        }
        __asm__ volatile("" ::"r"(&config) : "memory");
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
};

using Sums = float (*)[256];  // results [n][m] of one left and one right operand

constexpr std::int64_t up_to_even(std::int64_t n) { return (n + 1) / 2 * 2; }

// Two neighbouring blocks of sixteen weight rows, or one of gate and the same of up.
struct Pair {
    const Weight *weights[2];
    std::int64_t rows[2];
    int size;
};

// Rows of x from a tile [n][m], `columns` of them wide, to where they belong.
void put_tile(__m512i (&tile)[16], std::int64_t g, std::int64_t count, std::int64_t n,
              std::int64_t n1, const Store &to) {
    transpose16(tile);
    const std::int64_t left = count - g * GRANULE, columns = n1 - n < 16 ? n1 - n : 16;
    const std::int64_t height = left < GRANULE ? left : GRANULE;
    for (std::int64_t m = 0; m < height; ++m) {
        alignas(64) float row[16];
        _mm512_store_si512(row, tile[m]);
        put(to, g * GRANULE + m, n, row, static_cast<int>(columns));
    }
}

// Bias of rows n .. n + 16, zeros where there is none.
void bias16(const Weight &w, std::int64_t n, std::int64_t n1, float (&bias)[16]) {
    for (float &value : bias) value = 0.0f;
    bias_of(w, n, static_cast<int>(n1 - n < 16 ? n1 - n : 16), bias);
}

// R says how products are summed: R::run(pairs, pair_of, panel, w, n1, g0, g1, finish) calls
// finish(pair, g, rights, sums) for every pair and one or two granules from g on.

template <class R>
void multiply(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0,
              std::int64_t n1, std::int64_t g0, std::int64_t g1, const Store &to) {
    const auto pair_of = [&](std::int64_t p) {
        const std::int64_t n = n0 + 32 * p;
        return Pair{{&w, &w}, {n, n + 16}, n + 16 < n1 ? 2 : 1};
    };
    const auto finish = [&](const Pair &pair, std::int64_t g, int rights, Sums const (&at)[4]) {
        for (int i = 0; i < pair.size; ++i) {
            float bias[16];
            bias16(w, pair.rows[i], n1, bias);
            for (int r = 0; r < rights; ++r) {
                __m512i tile[16];
                for (int n = 0; n < 16; ++n) {
                    const __m512 sum = _mm512_load_ps(*at[2 * r + i] + 16 * n);
                    tile[n] = _mm512_castps_si512(_mm512_add_ps(sum, _mm512_set1_ps(bias[n])));
                }
                put_tile(tile, g + r, count, pair.rows[i], n1, to);
            }
        }
    };
    R::run((n1 - n0 + 31) / 32, pair_of, panel, w, n1, g0, g1, finish);
}

template <class R>
void gated(const Weight &gate, const Weight &up, const void *panel, std::int64_t count,
           std::int64_t n0, std::int64_t n1, std::int64_t g0, std::int64_t g1,
           const Activation &activation, const Store &to) {
    const auto pair_of = [&](std::int64_t p) {
        return Pair{{&gate, &up}, {n0 + 16 * p, n0 + 16 * p}, 2};
    };
    const auto finish = [&](const Pair &pair, std::int64_t g, int rights, Sums const (&at)[4]) {
        float bias[2][16];
        bias16(gate, pair.rows[0], n1, bias[0]);
        bias16(up, pair.rows[1], n1, bias[1]);
        for (int r = 0; r < rights; ++r) {
            __m512i tile[16];
            for (int n = 0; n < 16; ++n) {
                const __m512 g_sum = _mm512_load_ps(*at[2 * r] + 16 * n);
                const __m512 u_sum = _mm512_load_ps(*at[2 * r + 1] + 16 * n);
                tile[n] = _mm512_castps_si512(
                    activate(_mm512_add_ps(g_sum, _mm512_set1_ps(bias[0][n])),
                             _mm512_add_ps(u_sum, _mm512_set1_ps(bias[1][n])), activation));
            }
            put_tile(tile, g + r, count, pair.rows[0], n1, to);
        }
    };
    R::run((n1 - n0 + 15) / 16, pair_of, panel, gate, n1, g0, g1, finish);
}

// As many weight rows as partial sums have room for when K takes several blocks: four tiles for
// each pair of sixteen rows and two granules.
inline std::int64_t amx_task_rows(std::int64_t rows, std::int64_t columns, int matrices,
                                  std::int64_t block) {
    const std::int64_t granules = (rows + GRANULE - 1) / GRANULE;
    if (granules <= 2 || columns <= block) return 64 / matrices;
    const std::int64_t room = SUM_TILES / up_to_even(granules) / 2 * (32 / matrices);
    return room < 256 ? room : 256;
}

}  // namespace
}  // namespace headrace
