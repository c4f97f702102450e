// Register tiles of attention: keys turned, scores, weighted values. Include after a vector layer.
#pragma once

#include "attention_formats.h"
#include "prefetch.h"

namespace headrace {
namespace {

// Vectors beside each other in a register tile, and query rows above each other.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ACROSS = 4, DOWN = 6;
#else
constexpr int ACROSS = 2, DOWN = 6;
#endif
static_assert(KV_TILE % (ACROSS * Vec::width) == 0, "a tile of keys is whole register tiles");

// How many of `left` rows come next: register tiles of about equal height.
inline int height_of(std::int64_t left) {
    const std::int64_t tiles = (left + DOWN - 1) / DOWN;
    return static_cast<int>((left + tiles - 1) / tiles);
}

inline void prefetch_row(const char *row, std::int64_t bytes) {
    for (std::int64_t i = 0; i < bytes; i += 64) prefetch(row + i);
}

// --- keys, turned: [d, KV_TILE] ---

template <class F, class Tile>
void pack_keys(const Attention &a, const Tile &t, const Tile &next, std::int64_t head, float *to) {
    using Item = typename F::Item;
    constexpr int W = Vec::width;
    const KvCache &c = a.cache;
    const char *base = c.keys + head * c.head_bytes;
    const std::int64_t bytes = a.d * static_cast<std::int64_t>(sizeof(Item));
    for (int first = 0; first < t.keys; first += W) {
        const Item *row[W];
        for (int i = 0; i < W; ++i) {  // beyond the last key, the last once more
            const int key = first + i < t.keys ? first + i : t.keys - 1;
            row[i] = reinterpret_cast<const Item *>(base + t.slots[key] * c.token_bytes);
        }
        for (std::int64_t k = 0; k < a.d; k += W) {
            const std::int64_t ahead = first + k * W / a.d, until = first + (k + W) * W / a.d;
            for (std::int64_t i = ahead; i < until && i < next.keys; ++i) {
                prefetch_row(base + next.slots[i] * c.token_bytes, bytes);
            }
            Vec::T v[W];
            if (a.d - k >= W) {
                for (int i = 0; i < W; ++i) v[i] = F::load(row[i] + k);
            } else {
                const int n = static_cast<int>(a.d - k);
                for (int i = 0; i < W; ++i) v[i] = F::load_some(row[i] + k, n);
            }
            Vec::transpose(v);
            for (int i = 0; i < W; ++i) Vec::store(to + (k + i) * KV_TILE + first, v[i]);
        }
    }
}

// --- scores ---

template <int HEIGHT>
void score_tile(const float *q, const float *keys, std::int64_t d, float *scores) {
    for (int n = 0; n < KV_TILE; n += ACROSS * Vec::width) {
        Vec::T acc[HEIGHT][ACROSS];
        for (int m = 0; m < HEIGHT; ++m) {
            for (int i = 0; i < ACROSS; ++i) acc[m][i] = Vec::zero();
        }
        for (std::int64_t k = 0; k < d; ++k) {
            Vec::T key[ACROSS];
            for (int i = 0; i < ACROSS; ++i) key[i] = Vec::load(keys + k * KV_TILE + n + i * Vec::width);
            for (int m = 0; m < HEIGHT; ++m) {
                const Vec::T value = Vec::set(q[m * d + k]);
                for (int i = 0; i < ACROSS; ++i) acc[m][i] = Vec::fma(value, key[i], acc[m][i]);
            }
        }
        for (int m = 0; m < HEIGHT; ++m) {
            for (int i = 0; i < ACROSS; ++i) {
                Vec::store(scores + m * KV_TILE + n + i * Vec::width, acc[m][i]);
            }
        }
    }
}

// Some of `left` rows with all keys of the tile; returns how many.
inline int score_rows(const float *q, const float *keys, std::int64_t d, std::int64_t left,
                      float *scores) {
    const int height = height_of(left);
    switch (height) {
        case 1: score_tile<1>(q, keys, d, scores); break;
        case 2: score_tile<2>(q, keys, d, scores); break;
        case 3: score_tile<3>(q, keys, d, scores); break;
        case 4: score_tile<4>(q, keys, d, scores); break;
        case 5: score_tile<5>(q, keys, d, scores); break;
        default: score_tile<6>(q, keys, d, scores); break;
    }
    return height;
}

// --- weighted values ---

// Neighbouring query rows: weights [KV_TILE] each, sums `stride` apart.
struct Rows {
    const float *weights;
    const float *rescale;
    float *sums;
    std::int64_t stride;
    std::int64_t left;
};

// sums = rescale sums + weights V over keys lo .. hi, for ACROSS_ vectors of columns;
// value_at(key, i) is the i-th vector of that key.
template <int HEIGHT, int ACROSS_, class Value>
inline void weigh_tile(const Rows &rows, int lo, int hi, std::int64_t column, const Value &value_at) {
    constexpr int W = Vec::width;
    Vec::T acc[HEIGHT][ACROSS_];
    for (int m = 0; m < HEIGHT; ++m) {
        const Vec::T by = Vec::set(rows.rescale[m]);
        for (int i = 0; i < ACROSS_; ++i) {
            acc[m][i] = Vec::mul(Vec::load(rows.sums + m * rows.stride + column + i * W), by);
        }
    }
    for (int key = lo; key < hi; ++key) {
        Vec::T value[ACROSS_];
        for (int i = 0; i < ACROSS_; ++i) value[i] = value_at(key, i);
        for (int m = 0; m < HEIGHT; ++m) {
            const Vec::T weight = Vec::set(rows.weights[m * KV_TILE + key]);
            for (int i = 0; i < ACROSS_; ++i) acc[m][i] = Vec::fma(weight, value[i], acc[m][i]);
        }
    }
    for (int m = 0; m < HEIGHT; ++m) {
        for (int i = 0; i < ACROSS_; ++i) {
            Vec::store(rows.sums + m * rows.stride + column + i * W, acc[m][i]);
        }
    }
}

// Calls f with the height as a constant.
template <class Call>
int by_height(std::int64_t left, const Call &f) {
    const int height = height_of(left);
    switch (height) {
        case 1: f(std::integral_constant<int, 1>()); break;
        case 2: f(std::integral_constant<int, 2>()); break;
        case 3: f(std::integral_constant<int, 3>()); break;
        case 4: f(std::integral_constant<int, 4>()); break;
        case 5: f(std::integral_constant<int, 5>()); break;
        default: f(std::integral_constant<int, 6>()); break;
    }
    return height;
}

// Values widened before: [KV_TILE, stride].
inline int weigh_packed(const float *values, const Rows &rows, int lo, int hi) {
    constexpr int W = Vec::width;
    return by_height(rows.left, [&](auto height) {
        std::int64_t c = 0;
        for (; c + ACROSS * W <= rows.stride; c += ACROSS * W) {
            weigh_tile<height(), ACROSS>(rows, lo, hi, c, [&](int key, int i) {
                return Vec::load(values + key * rows.stride + c + i * W);
            });
        }
        for (; c < rows.stride; c += W) {
            weigh_tile<height(), 1>(rows, lo, hi, c, [&](int key, int) {
                return Vec::load(values + key * rows.stride + c);
            });
        }
    });
}

// Values where they lie.
template <class F, class Tile>
int weigh_stored(const Attention &a, const Tile &t, const Tile &next, std::int64_t head,
                 const Rows &rows, int lo, int hi) {
    using Item = typename F::Item;
    constexpr int W = Vec::width;
    const KvCache &c = a.cache;
    const char *base = c.values + head * c.head_bytes;
    const std::int64_t bytes = a.dv * static_cast<std::int64_t>(sizeof(Item));
    const auto row_of = [&](int key) {
        return reinterpret_cast<const Item *>(base + t.slots[key] * c.token_bytes);
    };
    return by_height(rows.left, [&](auto height) {
        std::int64_t at = 0;
        for (; at + ACROSS * W <= a.dv; at += ACROSS * W) {
            weigh_tile<height(), ACROSS>(rows, lo, hi, at, [&](int key, int i) {
                if (i == 0 && at == 0 && key < next.keys) {
                    prefetch_row(base + next.slots[key] * c.token_bytes, bytes);
                }
                return F::load(row_of(key) + at + i * W);
            });
        }
        for (; at + W <= a.dv; at += W) {
            weigh_tile<height(), 1>(rows, lo, hi, at,
                                    [&](int key, int) { return F::load(row_of(key) + at); });
        }
        if (at < a.dv) {
            const int n = static_cast<int>(a.dv - at);
            weigh_tile<height(), 1>(rows, lo, hi, at, [&](int key, int) {
                return F::load_some(row_of(key) + at, n);
            });
        }
    });
}

template <class F, class Tile>
void pack_values(const Attention &a, const Tile &t, std::int64_t head, float *to,
                 std::int64_t stride) {
    using Item = typename F::Item;
    constexpr int W = Vec::width;
    const KvCache &c = a.cache;
    for (int key = 0; key < t.keys; ++key, to += stride) {
        const auto *row = reinterpret_cast<const Item *>(c.values + head * c.head_bytes +
                                                         t.slots[key] * c.token_bytes);
        std::int64_t at = 0;
        for (; at + W <= a.dv; at += W) Vec::store(to + at, F::load(row + at));
        if (at < a.dv) Vec::store(to + at, F::load_some(row + at, static_cast<int>(a.dv - at)));
    }
}

}  // namespace
}  // namespace headrace
