// From a row of logits to a token, without sorting the vocabulary.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "rows.h"

namespace headrace {

// The first of the largest logits; `finite` false when that is infinite or any is NaN,
// `all_finite` when any is either.
struct Best {
    std::int64_t token;
    float value;
    bool finite;
    bool all_finite;
};
Best best_token(const RowOps &ops, const float *x, std::int64_t vocab);

// How a token is drawn. No limit: top_k 0, top_p 1, min_p 0. `uniform` in [0, 1).
struct Draw {
    float temperature;
    float min_p;
    std::int64_t top_k;
    double top_p;
    double uniform;
};

// Inverts the cumulative distribution, in id order, of what min-p, then top-k, then top-p leave.
// Equal weights at the edge are kept in id order. `top` is the largest logit, a finite number.
std::int64_t draw_token(const RowOps &ops, const float *x, std::int64_t vocab, float top,
                        const Draw &draw);

// log sum e^x, and the `count` largest logits with their ids: best first, of equals the lower id.
struct Ranked {
    double log_sum;
    std::vector<std::pair<std::int64_t, float>> best;
};
Ranked rank_tokens(const RowOps &ops, const float *x, std::int64_t vocab, float top,
                   std::int64_t count);

}  // namespace headrace
