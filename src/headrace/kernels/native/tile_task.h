// Tasks of the engines that keep accumulators along K: register tiles of up to MR rows of x, sums
// of products as [tile][n][MR], and what follows them. Include after a vector layer.
#pragma once

#include "engine.h"
#include "epilogue.h"
#include "local.h"

namespace headrace {
namespace {

constexpr int MR = 4;        // rows of x in a register tile
constexpr int N_BLOCK = 96;  // most weight rows of one task

constexpr std::int64_t up_to(std::int64_t value, std::int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

int tile_rows(std::int64_t tile, std::int64_t count) {
    const std::int64_t left = count - tile * MR;
    return left < MR ? static_cast<int>(left) : MR;
}

// The part of a task: weight rows n0 .. n0 + rows, tiles g0 .. g1 of a panel of `count` rows.
struct Part {
    const void *panel;
    std::int64_t count, n0;
    int rows;
    std::int64_t g0, g1;
};

// S says how products are summed: S::Memory it works in, S::sum(weight, part, memory, sums).
template <class S>
struct Local {
    typename S::Memory memory;
    float sums[2][MAX_ROWS * N_BLOCK];
};

// Result row m of a tile, bias added.
void row_of(const float *sums, int m, int rows, const float *bias, float *out) {
    for (int n = 0; n < rows; ++n) out[n] = sums[n * MR + m] + bias[n];
}

template <class S>
void multiply(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0,
              std::int64_t n1, std::int64_t g0, std::int64_t g1, const Store &to) {
    static_assert(sizeof(Local<S>) <= LOCAL_BYTES, "a task's memory");
    auto &local = *static_cast<Local<S> *>(local_memory());
    const int rows = static_cast<int>(n1 - n0);
    S::sum(w, Part{panel, count, n0, rows, g0, g1}, local.memory, local.sums[0]);
    float bias[N_BLOCK], row[N_BLOCK];
    bias_of(w, n0, rows, bias);
    for (std::int64_t g = g0; g < g1; ++g) {
        for (int m = 0; m < tile_rows(g, count); ++m) {
            row_of(local.sums[0] + (g - g0) * N_BLOCK * MR, m, rows, bias, row);
            put(to, g * MR + m, n0, row, rows);
        }
    }
}

template <class S>
void gated(const Weight &gate, const Weight &up, const void *panel, std::int64_t count,
           std::int64_t n0, std::int64_t n1, std::int64_t g0, std::int64_t g1,
           const Activation &activation, const Store &to) {
    auto &local = *static_cast<Local<S> *>(local_memory());
    const int rows = static_cast<int>(n1 - n0);
    const Part part{panel, count, n0, rows, g0, g1};
    S::sum(gate, part, local.memory, local.sums[0]);
    S::sum(up, part, local.memory, local.sums[1]);
    float bias[2][N_BLOCK], g_row[N_BLOCK] = {}, u_row[N_BLOCK] = {};
    bias_of(gate, n0, rows, bias[0]);
    bias_of(up, n0, rows, bias[1]);
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

}  // namespace
}  // namespace headrace
