// Register tiles of attention: keys turned, scores, weighted values. Include after a vector layer.
#pragma once

#include "attention_formats.h"
#include "prefetch.h"

#include <type_traits>

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

// Memory that will be read after this tile and head: asked for a few lines at a time, in the
// order in which it lies, so that memory is never idle and never asked for more than it gives.
class Ahead {
 public:
    static constexpr int LINE = 64;

    // Part `part` of `parts` of the next tile's keys and values: heads first_head on, `heads`.
    template <class Tile>
    Ahead(const KvCache &c, const Tile &next, std::int64_t first_head, std::int64_t heads,
          std::int64_t part, std::int64_t parts)
        : slot_(next.slots + next.keys * part / parts),
          end_(next.slots + next.keys * (part + 1) / parts),
          keys_(c.keys + first_head * c.head_bytes),
          values_(c.values + first_head * c.head_bytes),
          token_bytes_(c.token_bytes),
          row_bytes_(heads * c.head_bytes),
          lines_((end_ - slot_) * (keys_ == values_ ? 1 : 2) * ((row_bytes_ + LINE - 1) / LINE)) {}

    // Lines to ask for in each of `steps` steps that shall take a `share`-th of all.
    int per_step(std::int64_t share, std::int64_t steps) const {
        return static_cast<int>((lines_ + share * steps - 1) / (share * steps));
    }
    void step(int lines) {
        for (; lines > 0; --lines, at_ += LINE) {
            if (at_ >= row_end_ && !next_row()) return;
            __builtin_prefetch(at_, 0, 3);
        }
    }

 private:
    bool next_row() {
        if (slot_ == end_) return false;
        at_ = (in_values_ ? values_ : keys_) + *slot_ * token_bytes_;
        row_end_ = at_ + row_bytes_;
        if (in_values_ || keys_ == values_) ++slot_;
        in_values_ = !in_values_ && keys_ != values_;
        return true;
    }

    const std::int64_t *slot_, *end_;
    const char *keys_, *values_;
    std::int64_t token_bytes_, row_bytes_, lines_;
    const char *at_ = nullptr, *row_end_ = nullptr;
    bool in_values_ = false;
};

// --- keys, turned: [d, KV_TILE] ---

// Whether narrow formats are turned as they are, and widened later.
template <class F, class V>
constexpr bool turns_stored = V::TURNED > 0 && sizeof(typename F::Item) < sizeof(float);

constexpr int MOST_COLUMNS = 64;  // that are turned at once

// Rows of COUNT keys from the tile's `first` on; beyond its last key, that key once more.
template <class F, int COUNT>
struct KeyRows {
    const typename F::Item *at[COUNT];

    template <class Tile>
    KeyRows(const KvCache &c, const Tile &t, int first, std::int64_t head) {
        const char *base = c.keys + head * c.head_bytes;
        for (int i = 0; i < COUNT; ++i) {
            const int key = first + i < t.keys ? first + i : t.keys - 1;
            at[i] = reinterpret_cast<const typename F::Item *>(base + t.slots[key] * c.token_bytes);
        }
    }
};

template <class F, class V, class Tile>
void turn_stored(const Attention &a, const Tile &t, std::int64_t head, Ahead &ahead,
                 typename F::Item *to) {
    constexpr int rows = V::TURNED, columns = 64 / sizeof(typename F::Item);
    const int lines = ahead.per_step(4, KV_TILE / rows * ((a.d + columns - 1) / columns));
    for (int first = 0; first < t.keys; first += rows) {
        const KeyRows<F, rows> row(a.cache, t, first, head);
        for (std::int64_t k = 0; k < a.d; k += columns) {
            ahead.step(lines);
            const int n = a.d - k < columns ? static_cast<int>(a.d - k) : columns;
            V::turn(row.at, k, n, to + k * KV_TILE + first, KV_TILE);
        }
    }
}

template <class F, class Tile>
void turn_widened(const Attention &a, const Tile &t, std::int64_t head, Ahead &ahead, float *to) {
    constexpr int W = Vec::width;
    const int lines = ahead.per_step(4, KV_TILE / W * ((a.d + W - 1) / W));
    for (int first = 0; first < t.keys; first += W) {
        const KeyRows<F, W> row(a.cache, t, first, head);
        for (std::int64_t k = 0; k < a.d; k += W) {
            ahead.step(lines);
            Vec::T v[W];
            if (a.d - k >= W) {
                for (int i = 0; i < W; ++i) v[i] = F::load(row.at[i] + k);
            } else {
                const int n = static_cast<int>(a.d - k);
                for (int i = 0; i < W; ++i) v[i] = F::load_some(row.at[i] + k, n);
            }
            Vec::transpose(v);
            for (int i = 0; i < W; ++i) Vec::store(to + (k + i) * KV_TILE + first, v[i]);
        }
    }
}

// --- scores ---

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

template <class F, int HEIGHT>
void score_tile(const float *q, const typename F::Item *keys, std::int64_t d, Ahead &ahead,
                float *scores) {
    const int lines = ahead.per_step(4, KV_TILE / (ACROSS * Vec::width) * d);
    for (int n = 0; n < KV_TILE; n += ACROSS * Vec::width) {
        Vec::T acc[HEIGHT][ACROSS];
        for (int m = 0; m < HEIGHT; ++m) {
            for (int i = 0; i < ACROSS; ++i) acc[m][i] = Vec::zero();
        }
        for (std::int64_t k = 0; k < d; ++k) {
            ahead.step(lines);
            Vec::T key[ACROSS];
            for (int i = 0; i < ACROSS; ++i) {
                key[i] = F::load(keys + k * KV_TILE + n + i * Vec::width);
            }
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
template <class F>
int score_rows(const float *q, const typename F::Item *keys, std::int64_t d, std::int64_t left,
               Ahead &ahead, float *scores) {
    return by_height(left, [&](auto height) {
        score_tile<F, height()>(q, keys, d, ahead, scores);
    });
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
int weigh_stored(const Attention &a, const Tile &t, std::int64_t head, Ahead &ahead,
                 const Rows &rows, int lo, int hi) {
    using Item = typename F::Item;
    constexpr int W = Vec::width;
    const KvCache &c = a.cache;
    const char *base = c.values + head * c.head_bytes;
    const int lines = ahead.per_step(2, KV_TILE * ((a.dv + ACROSS * W - 1) / (ACROSS * W)));
    const auto row_of = [&](int key) {
        return reinterpret_cast<const Item *>(base + t.slots[key] * c.token_bytes);
    };
    return by_height(rows.left, [&](auto height) {
        std::int64_t at = 0;
        for (; at + ACROSS * W <= a.dv; at += ACROSS * W) {
            weigh_tile<height(), ACROSS>(rows, lo, hi, at, [&](int key, int i) {
                if (i == 0) ahead.step(lines);
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
