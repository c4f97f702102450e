#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

namespace headrace {
namespace {

constexpr std::int64_t BLOCK = 256;

std::int64_t blocks_of(std::int64_t vocab) { return (vocab + BLOCK - 1) / BLOCK; }

// Memory of this thread, kept between calls.
struct Room {
    std::vector<float> weights, tops, ordered, values;
};

Room &room(std::int64_t vocab) {
    static thread_local Room memory;
    memory.weights.resize(static_cast<std::size_t>(vocab));
    memory.tops.resize(static_cast<std::size_t>(blocks_of(vocab)));
    return memory;
}

// Use(i) for every i with x[i] >= least; blocks whose largest is below are not looked at.
template <class Use>
void at_least(const float *x, std::int64_t count, const std::vector<float> &tops, float least,
              const Use &use) {
    for (std::size_t b = 0; b < tops.size(); ++b) {
        if (!(tops[b] >= least)) continue;
        const std::int64_t first = static_cast<std::int64_t>(b) * BLOCK;
        const std::int64_t last = std::min(count, first + BLOCK);
        for (std::int64_t i = first; i < last; ++i) {
            if (x[i] >= least) use(i);
        }
    }
}

// A value that at least k of x reach: the k-th largest of the blocks' largest.
float reached_by(std::int64_t k, const std::vector<float> &tops, std::vector<float> &memory,
                 float lowest) {
    if (k > static_cast<std::int64_t>(tops.size())) return lowest;
    memory = tops;
    std::nth_element(memory.begin(), memory.begin() + (k - 1), memory.end(),
                     std::greater<float>());
    return memory[static_cast<std::size_t>(k - 1)];
}

// The smallest of the `kept` largest values, the fewest that hold `share` of the sum of all.
struct Edge {
    float value;
    std::size_t kept;
};

Edge by_mass(std::vector<float> &values, double wanted) {
    std::sort(values.begin(), values.end(), std::greater<float>());
    double held = 0.0;
    std::size_t kept = 0;
    while (kept < values.size()) {
        held += values[kept++];
        if (held >= wanted) break;
    }
    return {values[kept - 1], kept};
}

double total(const std::vector<float> &values) {
    double sum = 0.0;
    for (float v : values) sum += v;
    return sum;
}

// Positive floats are ordered as their bits are: those that share their upper bits lie together.
constexpr int SHIFT = 20;
constexpr std::size_t BUCKETS = (0x3f800000u >> SHIFT) + 1;  // up to 1
constexpr std::size_t LINES = 4;                             // sums that do not wait for each other

std::size_t bucket_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits >> SHIFT;
}

// As above, for all weights of at least `least`: whole buckets are added up, one is sorted.
Edge by_mass_of_many(const std::vector<float> &w, float least, double share,
                     std::vector<float> &memory) {
    std::vector<double> sums(BUCKETS * LINES, 0.0);
    std::vector<std::uint32_t> counts(BUCKETS * LINES, 0);
    for (std::size_t i = 0; i < w.size(); ++i) {
        if (w[i] < least) continue;
        const std::size_t at = bucket_of(w[i]) * LINES + i % LINES;
        sums[at] += w[i];
        ++counts[at];
    }
    const auto line_sum = [&](std::size_t bucket) {
        const double *s = &sums[bucket * LINES];
        return (s[0] + s[1]) + (s[2] + s[3]);
    };
    double all = 0.0;
    for (std::size_t b = 0; b < BUCKETS; ++b) all += line_sum(b);
    const double wanted = share * all;
    double held = 0.0;
    std::size_t above = 0, bucket = BUCKETS - 1;
    while (bucket > 0 && held + line_sum(bucket) < wanted) {
        held += line_sum(bucket);
        for (std::size_t j = 0; j < LINES; ++j) above += counts[bucket * LINES + j];
        --bucket;
    }
    memory.clear();
    for (float v : w) {
        if (v >= least && bucket_of(v) == bucket) memory.push_back(v);
    }
    if (memory.empty()) return {least, above};  // all of it, but for rounding of the sums
    const Edge edge = by_mass(memory, wanted - held);
    return {edge.value, above + edge.kept};
}

// Weights of tokens that may not be drawn become 0.
void truncate(Room &memory, const Draw &draw) {
    std::vector<float> &w = memory.weights, &values = memory.values;
    const auto vocab = static_cast<std::int64_t>(w.size());
    const float least = std::max(draw.min_p, std::numeric_limits<float>::min());
    Edge edge{least, w.size()};
    if (draw.top_k > 0 && draw.top_k < vocab) {
        const std::int64_t k = draw.top_k;
        const float reached = std::max(least, reached_by(k, memory.tops, memory.ordered, least));
        values.clear();
        at_least(w.data(), vocab, memory.tops, reached,
                 [&](std::int64_t i) { values.push_back(w[i]); });
        if (static_cast<std::size_t>(k) < values.size()) {
            std::nth_element(values.begin(), values.begin() + (k - 1), values.end(),
                             std::greater<float>());
            values.resize(static_cast<std::size_t>(k));
        }
        edge = by_mass(values, draw.top_p < 1.0 ? draw.top_p * total(values) : INFINITY);
    } else if (draw.top_p < 1.0) {
        edge = by_mass_of_many(w, least, draw.top_p, memory.ordered);
    }
    std::size_t above = 0, ties = 0;
    for (float &v : w) {
        above += v > edge.value;
        ties += v == edge.value;
        v = v < edge.value ? 0.0f : v;
    }
    // Of those at the edge, the first ids stay.
    for (std::size_t i = w.size(); above + ties > edge.kept && i-- > 0;) {
        if (w[i] == edge.value) {
            w[i] = 0.0f;
            --ties;
        }
    }
}

double block_sum(const float *w, std::int64_t first, std::int64_t last) {
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    std::int64_t i = first;
    for (; i + 4 <= last; i += 4) {
        for (int j = 0; j < 4; ++j) sums[j] += w[i + j];
    }
    for (; i < last; ++i) sums[0] += w[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The first token whose cumulative weight exceeds the share `uniform` of all.
std::int64_t inverted(const float *w, std::int64_t vocab, double uniform) {
    std::vector<double> until(static_cast<std::size_t>(blocks_of(vocab)) + 1, 0.0);
    for (std::size_t b = 0; b + 1 < until.size(); ++b) {
        const std::int64_t first = static_cast<std::int64_t>(b) * BLOCK;
        until[b + 1] = until[b] + block_sum(w, first, std::min(vocab, first + BLOCK));
    }
    const double target = uniform * until.back();
    std::int64_t last_possible = 0;
    std::size_t b = 0;
    while (b + 2 < until.size() && until[b + 1] <= target) ++b;
    double sum = until[b];
    for (std::int64_t i = static_cast<std::int64_t>(b) * BLOCK; i < vocab; ++i) {
        if (w[i] <= 0.0f) continue;
        last_possible = i;
        sum += w[i];
        if (sum > target) return i;
    }
    return last_possible;
}

}  // namespace

Best best_token(const RowOps &ops, const float *x, std::int64_t vocab) {
    std::vector<float> &tops = room(0).tops;
    tops.resize(static_cast<std::size_t>(blocks_of(vocab)));
    const bool plain = ops.tops(x, vocab, BLOCK, tops.data());
    if (!plain) {
        for (std::int64_t i = 0; i < vocab; ++i) {
            if (std::isnan(x[i])) return {i, x[i], false, false};
        }
    }
    const std::size_t b = static_cast<std::size_t>(
        std::max_element(tops.begin(), tops.end()) - tops.begin());
    std::int64_t i = static_cast<std::int64_t>(b) * BLOCK;
    while (x[i] != tops[b]) ++i;
    return {i, x[i], std::isfinite(x[i]), plain};
}

std::int64_t draw_token(const RowOps &ops, const float *x, std::int64_t vocab, float top,
                        const Draw &draw) {
    Room &memory = room(vocab);
    ops.weigh(x, vocab, top, draw.temperature, BLOCK, memory.weights.data(), memory.tops.data());
    if (draw.min_p > 0.0f || draw.top_k > 0 || draw.top_p < 1.0) truncate(memory, draw);
    return inverted(memory.weights.data(), vocab, draw.uniform);
}

Ranked rank_tokens(const RowOps &ops, const float *x, std::int64_t vocab, float top,
                   std::int64_t count) {
    Room &memory = room(vocab);
    Ranked found;
    ops.weigh(x, vocab, top, 1.0f, BLOCK, memory.weights.data(), memory.tops.data());
    double sum = 0.0;
    for (std::int64_t first = 0; first < vocab; first += BLOCK) {
        sum += block_sum(memory.weights.data(), first, std::min(vocab, first + BLOCK));
    }
    found.log_sum = static_cast<double>(top) + std::log(sum);
    count = std::min(count, vocab);
    if (count == 0) return found;
    ops.tops(x, vocab, BLOCK, memory.tops.data());
    const float least = reached_by(count, memory.tops, memory.ordered,
                                   -std::numeric_limits<float>::infinity());
    at_least(x, vocab, memory.tops, least,
             [&](std::int64_t i) { found.best.emplace_back(i, x[i]); });
    const auto ahead = [](const auto &a, const auto &b) {
        return a.second > b.second || (a.second == b.second && a.first < b.first);
    };
    std::partial_sort(found.best.begin(), found.best.begin() + count, found.best.end(), ahead);
    found.best.resize(static_cast<std::size_t>(count));
    return found;
}

}  // namespace headrace
