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

// to = down(act(gate x) * up x), row by row with its gate.
struct ExpertWeights {
    Weight gate, up, down;
};
void expert(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
            const ExpertWeights &w, const Activation &activation, const Store &to,
            Scratch scratch);

// to = act(gate x) * up x: the first half, for expert parts.
void gated(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
           const Weight &gate, const Weight &up, const Activation &activation, const Store &to,
           Scratch scratch);

}  // namespace headrace
