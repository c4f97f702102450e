// Softmax(q K^T) V by tiles of keys. Written once against the vector layer included before it;
// each instruction set compiles its own copy.
//
// A score is a sum along d, one multiply-add after the other, in its key's lane. A tile's weights
// are summed by one tree; its values are added key after key to what came before, rescaled to the
// new top score (Milakov and Gimelshein 2018, arXiv 1805.02867). Every row goes its own way
// through this: neither the rows beside it nor the thread can change a bit.
#pragma once

#include <algorithm>

#include "attention_formats.h"
#include "attention_tiles.h"
#include "epilogue.h"
#include "local.h"

namespace headrace {
namespace {

constexpr std::int64_t DIRECT_ROWS = 12;  // up to which values are widened anew for every few rows

// One row's softmax over the keys met so far; `mass` 0: none yet.
struct Softmax {
    float top = -std::numeric_limits<float>::infinity();
    float mass = 0.0f;
};

constexpr std::int64_t padded(std::int64_t count) {
    return (count + Vec::width - 1) / Vec::width * Vec::width;
}

// A thread's memory, carved for one unit.
struct Work {
    std::int64_t dv;   // padded
    float *keys;       // [d, KV_TILE]
    void *turned;      // the same as stored, for at most two bytes each
    float *values;     // [KV_TILE, dv]
    float *key_scales, *value_scales;  // [KV_TILE]
    float *weights;    // [rows, KV_TILE]: scores, then weights
    float *rescale;    // [rows]
    float *queries;    // [heads, rows, d], scaled
    float *sums;       // [heads, rows, dv]
    Softmax *split;    // [heads, rows]
    Softmax *whole;    // [heads, rows]

    static std::int64_t fixed(const Attention &a) {
        const std::int64_t turned = (a.d + MOST_COLUMNS) / 2;
        return KV_TILE * (padded(a.d) + turned + padded(a.dv) + 2) + 12 * 16;
    }
    static std::int64_t per_row(const Attention &a) {
        return KV_TILE + 1 + a.d + padded(a.dv) + 4;
    }

    Work(const Attention &a, const Unit &u) : dv(padded(a.dv)) {
        auto *at = static_cast<float *>(local_memory());
        const auto take = [&](std::int64_t count) {
            float *piece = at;
            at += (count + 15) / 16 * 16;
            return piece;
        };
        const std::int64_t rows = u.rows(), all = rows * u.heads();
        keys = take(KV_TILE * padded(a.d));
        turned = take(KV_TILE * ((a.d + MOST_COLUMNS) / 2));
        values = take(KV_TILE * dv);
        key_scales = take(KV_TILE);
        value_scales = take(KV_TILE);
        weights = take(rows * KV_TILE);
        rescale = take(rows);
        sums = take(all * dv);
        split = reinterpret_cast<Softmax *>(take(2 * all));
        whole = reinterpret_cast<Softmax *>(take(2 * all));
        queries = take(all * a.d);
    }
};

std::int64_t most_rows(const Attention &a) {
    const auto floats = static_cast<std::int64_t>(LOCAL_BYTES / sizeof(float));
    const std::int64_t left = floats - Work::fixed(a);
    return left < 0 ? 0 : left / Work::per_row(a);
}

float *out_of(const Attention &a, const Unit &u, std::int64_t row, std::int64_t head) {
    const std::int64_t position = u.r0 + row / u.group(), g = u.g0 + row % u.group();
    return a.out + (u.piece->row + position) * a.out_stride + (head * a.group + g) * a.dv;
}

void load_queries(const Attention &a, const Unit &u, const Work &w) {
    float *to = w.queries;
    for (std::int64_t h = u.h0; h < u.h1; ++h) {
        for (std::int64_t r = u.r0; r < u.r1; ++r) {
            const float *from =
                a.q + (u.piece->row + r) * a.q_stride + (h * a.group + u.g0) * a.d;
            for (std::int64_t i = 0; i < u.group() * a.d; ++i) *to++ = from[i] * a.scale;
        }
    }
}

// --- softmax over splits ---

// exp(x) for a few x.
inline void exps(float *x, int count) {
    for (int i = 0; i < count; i += Vec::width) {
        const int n = count - i < Vec::width ? count - i : Vec::width;
        Vec::store_some(x + i, exp_of(Vec::load_some(x + i, n)), n);
    }
}

// What scores are taken relative to: the top one, unless all are -inf.
inline float shift_of(float top) {
    return top == -std::numeric_limits<float>::infinity() ? 0.0f : top;
}

// Takes one split's sums into the row's; `out` holds the row's.
void join(Softmax &row, float *out, const Softmax &part, const float *sums, std::int64_t count) {
    if (part.mass == 0.0f) return;
    if (row.mass == 0.0f) {
        row = part;
        std::memcpy(out, sums, static_cast<std::size_t>(count) * sizeof(float));
        return;
    }
    const float top = row.top > part.top ? row.top : part.top, shift = shift_of(top);
    float factors[2] = {row.top - shift, part.top - shift};
    exps(factors, 2);
    row.top = top;
    row.mass = row.mass * factors[0] + part.mass * factors[1];
    const Vec::T mine = Vec::set(factors[0]), theirs = Vec::set(factors[1]);
    for (std::int64_t i = 0; i < count; i += Vec::width) {
        const int n = count - i < Vec::width ? static_cast<int>(count - i) : Vec::width;
        const Vec::T old = Vec::mul(Vec::load_some(out + i, n), mine);
        Vec::store_some(out + i, Vec::fma(Vec::load_some(sums + i, n), theirs, old), n);
    }
}

// Divides by the mass, the sink's included. A row whose scores are all -inf has no softmax.
void finish(const Attention &a, Softmax row, std::int64_t query_head, float *out) {
    float factors[2] = {0.0f, 0.0f}, factor = 1.0f;
    if (a.sinks != nullptr) {
        const float sink = a.sinks[query_head], top = row.top > sink ? row.top : sink;
        factors[0] = row.top - shift_of(top);
        factors[1] = sink - shift_of(top);
        exps(factors, 2);
        factor = factors[0];
        row.mass = row.mass * factors[0] + factors[1];
    } else if (row.top == -std::numeric_limits<float>::infinity()) {
        row.mass = std::numeric_limits<float>::quiet_NaN();
    }
    const Vec::T by = Vec::set(factor / row.mass);
    for (std::int64_t i = 0; i < a.dv; i += Vec::width) {
        const int n = a.dv - i < Vec::width ? static_cast<int>(a.dv - i) : Vec::width;
        Vec::store_some(out + i, Vec::mul(Vec::load_some(out + i, n), by), n);
    }
}

std::int64_t query_head(const Attention &a, const Unit &u, std::int64_t row, std::int64_t head) {
    return head * a.group + u.g0 + row % u.group();
}

// Partial results of a unit: [heads, rows, dv + 2].
void keep_partial(const Attention &a, const Unit &u, const Work &w) {
    for (std::int64_t i = 0; i < u.rows() * u.heads(); ++i) {
        float *to = u.partial + i * (a.dv + 2);
        to[0] = w.split[i].top;
        to[1] = w.split[i].mass;
        std::memcpy(to + 2, w.sums + i * w.dv, static_cast<std::size_t>(a.dv) * sizeof(float));
    }
}

void join_split(const Attention &a, const Unit &u, const Work &w) {
    std::int64_t i = 0;
    for (std::int64_t h = u.h0; h < u.h1; ++h) {
        for (std::int64_t r = 0; r < u.rows(); ++r, ++i) {
            join(w.whole[i], out_of(a, u, r, h), w.split[i], w.sums + i * w.dv, a.dv);
        }
    }
}

void finish_rows(const Attention &a, const Unit &u, const Softmax *rows) {
    for (std::int64_t h = u.h0; h < u.h1; ++h) {
        for (std::int64_t r = 0; r < u.rows(); ++r) {
            finish(a, *rows++, query_head(a, u, r, h), out_of(a, u, r, h));
        }
    }
}

void merge(const Attention &a, const Unit &u, const float *partial) {
    const std::int64_t all = u.rows() * u.heads(), stride = a.dv + 2;
    for (std::int64_t h = u.h0, i = 0; h < u.h1; ++h) {
        for (std::int64_t r = 0; r < u.rows(); ++r, ++i) {
            Softmax row;
            float *out = out_of(a, u, r, h);
            for (std::int64_t s = u.s0; s < u.s1; ++s) {
                const float *from = partial + ((s - u.s0) * all + i) * stride;
                join(row, out, Softmax{from[0], from[1]}, from + 2, a.dv);
            }
            finish(a, row, query_head(a, u, r, h), out);
        }
    }
}

// --- one tile ---

// Keys [lo, hi) of a tile that a row sees.
struct Seen {
    int lo, hi;

    bool none() const { return hi <= lo; }
    bool all() const { return lo == 0 && hi == KV_TILE; }
    bool operator==(const Seen &o) const { return lo == o.lo && hi == o.hi; }
};

// Where the keys of a tile lie, as far as a row of the unit sees them.
struct Keys {
    std::int64_t first = 0;
    int keys = 0;
    Place places[KV_TILE];
    std::int64_t rows[KV_TILE];  // bytes before each one's row of head 0

    void find(const Attention &a, const Unit &u, std::int64_t from) {
        const std::int64_t end = a.last(*u.piece, u.piece->position + u.r1 - 1);
        first = from;
        keys = static_cast<int>(end - from < KV_TILE ? end - from : KV_TILE);
        if (keys < 0) keys = 0;
        const std::int64_t block = a.cache.block;
        std::int64_t entry = first / block, within = first % block;
        for (int i = 0; i < keys; ++i) {
            places[i] = {u.piece->table[entry], within};
            rows[i] = a.cache.row(places[i]);
            if (++within == block) {
                within = 0;
                ++entry;
            }
        }
    }
};

// The tile at hand: what each position of the unit sees of it. Positions p0 .. p1 see some.
struct Tile : Keys {
    std::int64_t p0 = 0, p1 = 0;
    Seen seen[UNIT_ROWS];

    void see(const Attention &a, const Unit &u) {
        for (std::int64_t r = u.r0; r < u.r1; ++r) {
            const std::int64_t position = u.piece->position + r;
            const std::int64_t from = a.first(position) - first;
            const std::int64_t to = a.last(*u.piece, position) - first;
            Seen &s = seen[r - u.r0];
            s.lo = from > 0 ? static_cast<int>(from < KV_TILE ? from : KV_TILE) : 0;
            s.hi = to > 0 ? static_cast<int>(to < KV_TILE ? to : KV_TILE) : 0;
        }
        p0 = 0;
        p1 = u.r1 - u.r0;
        while (p0 < p1 && seen[p0].none()) ++p0;
        while (p0 < p1 && seen[p1 - 1].none()) --p1;
    }
};

constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

// Scores final, keys that are not seen at -inf; the row's new top, and by how much it rose.
template <bool SCALED>
inline void raise_top(const Work &w, float *s, Seen seen, Softmax &row, float &rise) {
    if (SCALED) {
        for (int i = 0; i < KV_TILE; i += Vec::width) {
            Vec::store(s + i, Vec::mul(Vec::load(s + i), Vec::load(w.key_scales + i)));
        }
    }
    if (!seen.all()) {
        for (int i = 0; i < seen.lo; ++i) s[i] = MINUS_INFINITY;
        for (int i = seen.hi; i < KV_TILE; ++i) s[i] = MINUS_INFINITY;
    }
    Vec::T best = Vec::load(s);
    for (int i = Vec::width; i < KV_TILE; i += Vec::width) best = Vec::max(best, Vec::load(s + i));
    const float here = Vec::top(best), top = row.top > here ? row.top : here;
    rise = row.top - shift_of(top);
    row.top = top;
}

// Scores to weights, in place, and their sum to the row's mass.
template <bool SCALED>
inline void soften(const Work &w, float *s, Seen seen, Softmax &row, float rescale) {
    constexpr int count = KV_TILE / Vec::width;
    const Vec::T shift = Vec::set(shift_of(row.top));
    Vec::T p[count];
    for (int i = 0; i < count; ++i) {
        p[i] = exp_of(Vec::sub(Vec::load(s + i * Vec::width), shift));
    }
    if (!seen.all()) {
        for (int i = 0; i < count; ++i) Vec::store(s + i * Vec::width, p[i]);
        for (int i = 0; i < seen.lo; ++i) s[i] = 0.0f;
        for (int i = seen.hi; i < KV_TILE; ++i) s[i] = 0.0f;
        for (int i = 0; i < count; ++i) p[i] = Vec::load(s + i * Vec::width);
    }
    for (int i = 0; i < count; ++i) {
        const int at = i * Vec::width;
        Vec::store(s + at, SCALED ? Vec::mul(p[i], Vec::load(w.value_scales + at)) : p[i]);
    }
    for (int half = count / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) p[i] = Vec::add(p[i], p[i + half]);
    }
    row.mass = row.mass * rescale + Vec::total(p[0]);
}

// Scales of the tile's keys; beyond them 0.
void load_scales(const Attention &a, const Keys &t, std::int64_t head, const Work &w) {
    const KvCache &c = a.cache;
    for (int i = 0, n; i < t.keys; i += n) {
        const std::int64_t left = c.block - t.places[i].within, at = c.scale(t.places[i], head);
        n = left < t.keys - i ? static_cast<int>(left) : t.keys - i;
        const auto bytes = static_cast<std::size_t>(n) * sizeof(float);
        std::memcpy(w.key_scales + i, c.key_scales + at, bytes);
        std::memcpy(w.value_scales + i, c.value_scales + at, bytes);
    }
    for (int i = t.keys; i < KV_TILE; ++i) w.key_scales[i] = w.value_scales[i] = 0.0f;
}

// Keys of the tile as columns, as stored: where they lie, or turned into the thread's memory.
template <class F>
Columns<typename F::Item> stored_columns(const Attention &a, const Tile &t, std::int64_t head,
                                         const Work &w) {
    if (a.cache.turned && in_vectors(a.cache)) return columns_of<F>(a.cache, t, head);
    void *memory = sizeof(typename F::Item) < sizeof(float) ? w.turned : w.keys;
    auto *to = static_cast<typename F::Item *>(memory);
    if (a.cache.turned) {
        gather<F>(a, t, head, to);
    } else if constexpr (turns_stored<F, Vec>) {
        turn_stored<F, Vec>(a, t, head, to);
    }
    return Columns<typename F::Item>::packed(to);
}

template <class F>
void score(const Attention &a, const Tile &t, std::int64_t head, Ahead &ahead, const Work &w,
           const float *q, std::int64_t r0, std::int64_t r1) {
    const auto rows = [&](auto format, const auto &keys) {
        using Stored = decltype(format);
        for (std::int64_t r = r0; r < r1;) {
            r += score_rows<Stored>(q + r * a.d, keys, a.d, r1 - r, ahead, w.weights + r * KV_TILE);
        }
    };
    if (a.cache.turned || turns_stored<F, Vec>) {
        const auto keys = stored_columns<F>(a, t, head, w);
        if (r1 - r0 <= DIRECT_ROWS) return rows(F(), keys);
        for (std::int64_t k = 0; k < a.d; ++k) {
            for (int i = 0; i < KV_TILE / Vec::width; ++i) {
                Vec::store(w.keys + k * KV_TILE + i * Vec::width,
                           F::load(keys.at[i] + k * keys.stride));
            }
        }
    } else {
        turn_widened<F>(a, t, head, w.keys);
    }
    rows(CacheF32(), Columns<float>::packed(w.keys));
}

template <class F>
void weigh(const Attention &a, const Unit &u, const Tile &t, std::int64_t head, Ahead &ahead,
           const Work &w, float *sums) {
    const std::int64_t group = u.group();
    const bool direct = (t.p1 - t.p0) * group <= DIRECT_ROWS;
    if (!direct) pack_values<F>(a, t, head, w.values, w.dv);
    for (std::int64_t p = t.p0, end; p < t.p1; p = end) {
        const Seen seen = t.seen[p];
        for (end = p + 1; end < t.p1 && t.seen[end] == seen;) ++end;
        for (std::int64_t r = p * group; r < end * group;) {
            const Rows rows{w.weights + r * KV_TILE, w.rescale + r, sums + r * w.dv, w.dv,
                            end * group - r};
            r += direct ? weigh_stored<F>(a, t, head, ahead, rows, seen.lo, seen.hi)
                        : weigh_packed(w.values, rows, seen.lo, seen.hi);
        }
    }
}

// Steps of a register tile at which memory is asked for, in scores and in weighted values.
std::int64_t steps_of(const Attention &a) {
    constexpr std::int64_t across = ACROSS * Vec::width;
    return KV_TILE / across * a.d + KV_TILE * (a.dv / across);
}

template <class F>
void attend_tile(const Attention &a, const Unit &u, const Tile &t, std::int64_t head,
                 Ahead &ahead, const Work &w) {
    const std::int64_t group = u.group(), base = (head - u.h0) * u.rows();
    const std::int64_t r0 = t.p0 * group, r1 = t.p1 * group;
    Softmax *state = w.split + base;
    score<F>(a, t, head, ahead, w, w.queries + base * a.d, r0, r1);
    if (F::scaled) load_scales(a, t, head, w);
    const auto each = [&](const auto &call) {
        for (std::int64_t p = t.p0, r = r0; p < t.p1; ++p) {
            for (std::int64_t g = 0; g < group; ++g, ++r) call(r, t.seen[p]);
        }
    };
    each([&](std::int64_t r, Seen seen) {
        raise_top<F::scaled>(w, w.weights + r * KV_TILE, seen, state[r], w.rescale[r]);
    });
    exps(w.rescale + r0, static_cast<int>(r1 - r0));
    each([&](std::int64_t r, Seen seen) {
        soften<F::scaled>(w, w.weights + r * KV_TILE, seen, state[r], w.rescale[r]);
    });
    weigh<F>(a, u, t, head, ahead, w, w.sums + base * w.dv);
}

// --- one unit ---

void begin_split(const Unit &u, const Work &w) {
    const std::int64_t all = u.rows() * u.heads();
    for (std::int64_t i = 0; i < all; ++i) w.split[i] = Softmax{};
    std::memset(w.sums, 0, static_cast<std::size_t>(all * w.dv) * sizeof(float));
}

// The tile that follows the one at `first`, or the first one of the unit that is likely to.
void find_next(const Attention &a, const Unit &u, const Unit *after, std::int64_t first,
               std::int64_t end, Keys &next) {
    if (first + KV_TILE < end) return next.find(a, u, first + KV_TILE);
    next.keys = 0;
    if (after == nullptr) return;
    const std::int64_t seen = a.first(after->piece->position + after->r0);
    const std::int64_t start = std::max(seen, after->s0 * KV_SPLIT);
    next.find(a, *after, start / KV_TILE * KV_TILE);
}

template <class F>
void run(const Attention &a, const Unit &u, const Unit *after) {
    const Work w(a, u);
    load_queries(a, u, w);
    for (std::int64_t i = 0; i < u.rows() * u.heads(); ++i) w.whole[i] = Softmax{};
    const std::int64_t begin = a.first(u.piece->position + u.r0) / KV_TILE * KV_TILE;
    const std::int64_t end =
        std::min(u.s1 * KV_SPLIT, a.last(*u.piece, u.piece->position + u.r1 - 1));
    Tile tile;
    Keys next;
    for (std::int64_t s = u.s0; s < u.s1; ++s) {
        begin_split(u, w);
        const std::int64_t to = std::min((s + 1) * KV_SPLIT, end);
        for (std::int64_t at = std::max(s * KV_SPLIT, begin); at < to; at += KV_TILE) {
            tile.find(a, u, at);
            tile.see(a, u);
            if (tile.p0 == tile.p1) continue;
            find_next(a, u, after, at, end, next);
            constexpr std::int64_t asks = Ahead::asks_of<typename F::Item>();
            Ahead ahead(a.cache, next, a.d, u.h0, u.h1, u.heads() * asks * steps_of(a));
            for (std::int64_t h = u.h0; h < u.h1; ++h) attend_tile<F>(a, u, tile, h, ahead, w);
        }
        if (u.partial != nullptr) {
            keep_partial(a, u, w);
        } else {
            join_split(a, u, w);
        }
    }
    if (u.partial == nullptr) finish_rows(a, u, w.whole);
}

void run_any(const Attention &a, const Unit &u, const Unit *after) {
    switch (a.cache.format) {
        case KvFormat::f32: return run<CacheF32>(a, u, after);
        case KvFormat::bf16: return run<CacheBf16>(a, u, after);
        case KvFormat::f16: return run<CacheF16>(a, u, after);
        default: return run<CacheI8>(a, u, after);
    }
}

void append_any(const Append &a, std::int64_t first, std::int64_t last) {
    switch (a.cache.format) {
        case KvFormat::f32: return append_rows<CacheF32>(a, first, last);
        case KvFormat::bf16: return append_rows<CacheBf16>(a, first, last);
        case KvFormat::f16: return append_rows<CacheF16>(a, first, last);
        default: return append_rows<CacheI8>(a, first, last);
    }
}

inline const AttentionKernel *attention_of(const char *name) {
    static const AttentionKernel kernel{name, most_rows, run_any, merge, append_any};
    return &kernel;
}

}  // namespace
}  // namespace headrace
