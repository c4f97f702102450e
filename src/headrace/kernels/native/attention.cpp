#include "attention.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "features.h"

namespace headrace {
namespace {

constexpr std::int64_t UNIT_ROWS = 256;       // query rows that meet a tile of keys, at most
constexpr std::int64_t UNITS_PER_THREAD = 4;  // at least, so that threads end together

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Kind {
    const char *name;
    const AttentionKernel *(*kernel)();
    bool (*usable)();
};

bool has_avx2() { return features().avx2 && features().fma && features().f16c; }

// Best first.
const Kind kinds[] = {
    {"avx512", avx512_attention,
     [] { return has_avx2() && features().avx512f && features().avx512bw; }},
    {"avx2", avx2_attention, has_avx2},
    {"neon", neon_attention, [] { return features().neon; }},
    {"plain", plain_attention, [] { return true; }},
};

// How far each piece is cut.
struct Cut {
    std::int64_t rows;   // positions
    std::int64_t heads;  // KV heads
    std::int64_t group;  // query heads of a KV head
    bool splits;

    std::int64_t units(const Attention &a) const {
        std::int64_t count = 0;
        for (const Piece &p : a.pieces) count += ceil_div(p.rows, rows);
        return count * ceil_div(a.cache.heads, heads) * ceil_div(a.group, group);
    }
};

// Tall units for prefill, so that a tile of keys meets many rows; for decodes all KV heads, whose
// keys are neighbours in memory; less where threads would be left without work.
Cut cut_for(const Attention &a, int threads, std::int64_t most) {
    const std::int64_t target = std::min(UNIT_ROWS, most);
    std::int64_t longest = 1;
    for (const Piece &p : a.pieces) longest = std::max(longest, p.rows);
    Cut cut{};
    cut.group = std::min(a.group, target);
    cut.rows = std::clamp<std::int64_t>(target / cut.group, 1, longest);
    cut.heads = std::clamp<std::int64_t>(target / (cut.rows * cut.group), 1, a.cache.heads);
    const std::int64_t wanted = threads > 1 ? UNITS_PER_THREAD * threads : 1;
    while (cut.units(a) < wanted && cut.heads > 1) cut.heads = ceil_div(cut.heads, 2);
    while (cut.units(a) < wanted && cut.rows > 16) cut.rows = ceil_div(cut.rows, 2);
    cut.splits = threads > 1 && cut.units(a) < 2 * threads;
    return cut;
}

std::vector<Unit> units_of(const Attention &a, const Cut &cut) {
    std::vector<Unit> units;
    for (const Piece &p : a.pieces) {
        for (std::int64_t r = 0; r < p.rows; r += cut.rows) {
            const std::int64_t end = std::min(p.rows, r + cut.rows);
            const std::int64_t s0 = a.first(p.position + r) / KV_SPLIT;
            const std::int64_t s1 = ceil_div(a.last(p, p.position + end - 1), KV_SPLIT);
            for (std::int64_t h = 0; h < a.cache.heads; h += cut.heads) {
                for (std::int64_t g = 0; g < a.group; g += cut.group) {
                    units.push_back({&p, r, end, h, std::min(a.cache.heads, h + cut.heads), g,
                                     std::min(a.group, g + cut.group), s0, s1, nullptr});
                }
            }
        }
    }
    const auto cost = [](const Unit &u) {
        return (u.piece->position + u.r1) * u.rows() * u.heads();
    };
    std::stable_sort(units.begin(), units.end(),
                     [&](const Unit &x, const Unit &y) { return cost(x) > cost(y); });
    return units;
}

std::int64_t partial_floats(const Attention &a, const Unit &u) {
    return u.rows() * u.heads() * (a.dv + 2);
}

void run(Team &team, int threads, const AttentionKernel &kernel, const Attention &a,
         const std::vector<Unit> &units) {
    const auto count = static_cast<std::int64_t>(units.size());
    team.share(count, [&](std::int64_t i) {
        const std::int64_t next = i + threads;
        kernel.run(a, units[static_cast<std::size_t>(i)],
                   next < count ? &units[static_cast<std::size_t>(next)] : nullptr);
    });
}

// Every split is a unit of its own; false where `memory` does not hold their results.
bool run_splits(Team &team, int threads, const AttentionKernel &kernel, const Attention &a,
                const std::vector<Unit> &units, float *memory, std::size_t bytes) {
    std::vector<Unit> parts;
    std::vector<const float *> at;
    std::size_t used = 0;
    for (const Unit &u : units) {
        at.push_back(memory + used);
        for (std::int64_t s = u.s0; s < u.s1; ++s) {
            Unit part = u;
            part.s0 = s;
            part.s1 = s + 1;
            part.partial = memory + used;
            parts.push_back(part);
            used += static_cast<std::size_t>(partial_floats(a, u));
        }
    }
    if (used * sizeof(float) > bytes || parts.size() == units.size()) return false;
    run(team, threads, kernel, a, parts);
    team.share(static_cast<std::int64_t>(units.size()), [&](std::int64_t i) {
        const auto place = static_cast<std::size_t>(i);
        kernel.merge(a, units[place], at[place]);
    });
    return true;
}

}  // namespace

const AttentionKernel &choose_attention(const char *path) {
    const std::string wanted = path;
    for (const Kind &kind : kinds) {
        if ((wanted != "auto" && wanted != kind.name) || !kind.usable()) continue;
        if (const AttentionKernel *kernel = kind.kernel()) return *kernel;
    }
    throw std::invalid_argument("path: expected auto, avx512, avx2, neon or plain, and one that "
                                "this processor has, got " + wanted);
}

void attend(Team &team, int threads, const AttentionKernel &kernel, const Attention &a,
            float *memory, std::size_t bytes) {
    const std::int64_t most = kernel.most_rows(a);
    if (most == 0) {
        throw std::invalid_argument("heads: too wide for a thread's memory, " +
                                    std::to_string(a.d) + " columns");
    }
    const Cut cut = cut_for(a, threads, most);
    const std::vector<Unit> units = units_of(a, cut);
    if (cut.splits && run_splits(team, threads, kernel, a, units, memory, bytes)) return;
    run(team, threads, kernel, a, units);
}

void append(Team &team, const AttentionKernel &kernel, const Append &a) {
    constexpr std::int64_t few = 1 << 15;  // values, cheaper than waking anyone
    const std::int64_t values = a.rows * a.cache.heads * (a.d + a.dv);
    const std::int64_t parts = std::clamp<std::int64_t>(values / few, 1, a.rows > 0 ? a.rows : 1);
    team.share(parts, [&](std::int64_t i) {
        kernel.append(a, a.rows * i / parts, a.rows * (i + 1) / parts);
    });
}

}  // namespace headrace
