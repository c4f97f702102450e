// The drivers: what is packed when, and how a call is cut into tasks.
#pragma once

#include <vector>

#include "engine.h"
#include "pool.h"

namespace headrace {

// Memory lent by the caller.
struct Scratch {
    char *at;
    std::size_t bytes;
};

// to = x W^T + bias for rows of w.columns values each. Throws std::invalid_argument when scratch
// does not hold one granule of rows.
void linear(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
            const Weight &w, const Store &to, Scratch scratch);

// One weight of several that meet the same rows.
struct Product {
    const Weight *w;
    Store to;
};

// The same for several weights that share packed rows (see packed_alike): their tasks are shared
// out together, so that small ones neither wait for each other nor are cut into small pieces.
void linear_all(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
                const std::vector<Product> &products, Scratch scratch);

// to = act(gate x) * up x: the first half, for expert parts.
void gated(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
           const Weight &gate, const Weight &up, const Activation &activation, const Store &to,
           Scratch scratch);

// Gate and up are multiplied by one engine, down perhaps by another.
struct ExpertWeights {
    Weight gate, up, down;
};

// The rows that visit one expert, and where its results go.
struct Visit {
    const ExpertWeights *weights;
    const Engine *in, *out;
    const float *const *x;
    std::int64_t rows;
    Store to;
};

// to = down(act(gate x) * up x), row by row with its gate, for one expert after the other: a row
// gets their results in that order. Experts that fit scratch together are multiplied together, so
// that those with few rows keep all threads busy. The bits are the same either way.
void experts(Team &team, const std::vector<Visit> &visits, const Activation &activation,
             Scratch scratch);

}  // namespace headrace
