// From scores to who goes where.
#pragma once

#include <cstdint>

#include "rows.h"

namespace headrace {

// How scores become gates. `bias` [experts] shifts the choice, never the gates.
struct RouterRule {
    bool sigmoid = false;      // else softmax over all experts
    bool renormalise = false;  // gates divided by their sum
    std::int64_t groups = 1;   // experts in equal groups, of which `kept` take part:
    std::int64_t kept = 1;     // the best by the sum of their `per_group` best
    std::int64_t per_group = 1;
    float scale = 1.0f;
    const float *bias = nullptr;
};

// Routing of `mu` rows at most, as kernels/routed.py describes it.
struct RoutingTables {
    std::int32_t *ids;
    float *gates;
    std::int32_t *rows;
    float *weights;
    std::int64_t *starts;  // [experts + 1]
};

// Ids and gates of one row, best first (a tie: the lower id); `scores` [experts] is overwritten.
void choose_experts(const RowOps &ops, const RouterRule &rule, float *scores,
                    std::int64_t experts, std::int64_t k, std::int32_t *ids, float *gates);

// The rest of the tables from ids and gates [rows, k]: by ascending expert, then row.
void sort_by_expert(const RoutingTables &tables, std::int64_t rows, std::int64_t k,
                    std::int64_t experts);

}  // namespace headrace
