#include "router.h"

#include <cmath>
#include <limits>
#include <vector>

namespace headrace {
namespace {

constexpr float NEVER = -std::numeric_limits<float>::infinity();

// NaN ranks above all, as in the reference: it must not pass unseen.
bool above(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

// The `count` best of `values`, best first, the first of equals first.
void best_of(const float *values, std::int64_t n, std::int64_t count, std::int32_t *places) {
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        std::int64_t at = found;
        while (at > 0 && above(values[i], values[places[at - 1]])) --at;
        if (at == count) continue;
        if (found < count) ++found;
        for (std::int64_t j = found - 1; j > at; --j) places[j] = places[j - 1];
        places[at] = static_cast<std::int32_t>(i);
    }
}

// Experts outside the best groups can no longer be chosen.
void keep_groups(const RouterRule &rule, float *choice, std::int64_t experts) {
    const std::int64_t size = experts / rule.groups;
    std::vector<float> scores(static_cast<std::size_t>(rule.groups));
    std::vector<std::int32_t> places(static_cast<std::size_t>(experts));
    for (std::int64_t g = 0; g < rule.groups; ++g) {
        best_of(choice + g * size, size, rule.per_group, places.data());
        scores[g] = 0.0f;
        for (std::int64_t i = 0; i < rule.per_group; ++i) {
            scores[g] += choice[g * size + places[i]];
        }
    }
    best_of(scores.data(), rule.groups, rule.kept, places.data());
    std::vector<char> in(static_cast<std::size_t>(rule.groups), 0);
    for (std::int64_t i = 0; i < rule.kept; ++i) in[places[i]] = 1;
    for (std::int64_t e = 0; e < experts; ++e) {
        if (!in[e / size]) choice[e] = NEVER;
    }
}

}  // namespace

void choose_experts(const RowOps &ops, const RouterRule &rule, float *scores,
                    std::int64_t experts, std::int64_t k, std::int32_t *ids, float *gates) {
    (rule.sigmoid ? ops.sigmoid : ops.softmax)(scores, experts);
    std::vector<float> shifted;
    float *choice = scores;
    if (rule.bias != nullptr || rule.groups > 1) {
        shifted.assign(scores, scores + experts);
        choice = shifted.data();
        for (std::int64_t e = 0; rule.bias != nullptr && e < experts; ++e) {
            choice[e] += rule.bias[e];
        }
    }
    if (rule.groups > 1) keep_groups(rule, choice, experts);
    best_of(choice, experts, k, ids);
    float total = 0.0f;
    for (std::int64_t i = 0; i < k; ++i) total += gates[i] = scores[ids[i]];
    for (std::int64_t i = 0; i < k; ++i) {
        if (rule.renormalise) gates[i] /= total + 1e-20f;
        gates[i] *= rule.scale;
    }
}

void sort_by_expert(const RoutingTables &t, std::int64_t rows, std::int64_t k,
                    std::int64_t experts) {
    for (std::int64_t e = 0; e <= experts; ++e) t.starts[e] = 0;
    for (std::int64_t i = 0; i < rows * k; ++i) ++t.starts[t.ids[i] + 1];
    for (std::int64_t e = 0; e < experts; ++e) t.starts[e + 1] += t.starts[e];
    std::vector<std::int64_t> next(t.starts, t.starts + experts);
    for (std::int64_t i = 0; i < rows * k; ++i) {
        const std::int64_t place = next[t.ids[i]]++;
        t.rows[place] = static_cast<std::int32_t>(i / k);
        t.weights[place] = t.gates[i];
    }
}

}  // namespace headrace
