// Register tiles of attention: keys turned, scores, weighted values. Include after a vector layer.
#pragma once

#include "attention_formats.h"

#include <type_traits>
#include <utility>

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

// Memory that will be read after this tile: asked for two lines at a time, so that memory is
// never idle and never asked for more than it gives; in the order in which it lies, keys and values
// of a block side by side.
class Ahead {
 public:
    // The next tile's keys and values of heads [h0, h1), while ask() can be called `steps` times.
    template <class Tile>
    Ahead(const KvCache &c, const Tile &next, std::int64_t d, std::int64_t h0, std::int64_t h1,
          std::int64_t steps)
        : cache_(c), next_(next.places), end_(next.places + next.keys), d_(d), h0_(h0), h1_(h1) {
        std::int64_t asks = 0;
        for (const Place *p = next_; p < end_; p = after(p)) {
            for (const Stretches &s : {first(p), second(p)}) {
                asks += s.count * ((s.bytes + s.advance() - 1) / s.advance());
            }
        }
        if (asks > 0 && steps > asks) every_ = static_cast<int>(steps / asks);
        more();
    }

    int every() const { return every_; }  // steps between asking and asking again
    void ask() {
        if (at_ == nullptr) return;
        __builtin_prefetch(at_, 0, 3);
        __builtin_prefetch(at_ + beside_, 0, 3);
        at_ += advance_;
        if (at_ >= stop_) more();
    }
    // As often as items of that size need, when each has a lane of its own.
    template <class Item>
    void ask_for() {
        for (std::size_t i = 0; i < asks_of<Item>(); ++i) ask();
    }
    template <class Item>
    static constexpr std::size_t asks_of() {
        return sizeof(Item) > 2 ? sizeof(Item) / 2 : 1;
    }

 private:
    static constexpr std::int64_t LINE = 64;

    // `count` stretches of `bytes`, `stride` bytes apart; and as many `beside` them, or, where that
    // is LINE, none.
    struct Stretches {
        const char *at = nullptr;
        std::int64_t count = 0, stride = 0, bytes = 0, beside = LINE;

        std::int64_t advance() const { return beside == LINE ? 2 * LINE : LINE; }
    };

    // Where the keys end that lie in the same block.
    const Place *after(const Place *p) const {
        const std::int64_t left = cache_.block - p->within;
        return left < end_ - p ? p + left : end_;
    }
    // Keys and values of a whole block, of all heads at once; parts, where a block is longer than a
    // tile: first keys, then values. Keys that are not turned are the values.
    bool whole() const { return cache_.block <= KV_TILE; }
    Stretches first(const Place *p) const {
        const KvCache &c = cache_;
        const char *keys = c.keys + h0_ * c.head_bytes();
        if (whole()) {
            return {keys + p->block * c.block_bytes(), 1, 0, (h1_ - h0_) * c.head_bytes(),
                    c.turned ? c.values - c.keys : LINE};
        }
        if (!c.turned) return {};
        return {keys + c.column(*p), (h1_ - h0_) * d_, c.block * c.item_bytes,
                (after(p) - p) * c.item_bytes, LINE};
    }
    Stretches second(const Place *p) const {
        const KvCache &c = cache_;
        if (whole()) return {};
        return {c.values + h0_ * c.head_bytes() + c.row(*p), h1_ - h0_, c.head_bytes(),
                (after(p) - p) * c.row_bytes, LINE};
    }
    // To the next stretch; rare, and kept out of the loops that ask.
    __attribute__((noinline)) void more() {
        at_ = nullptr;
        if (now_.count == 0) std::swap(now_, then_);
        if (now_.count == 0) {
            if (next_ == end_) return;
            now_ = first(next_);
            then_ = second(next_);
            next_ = after(next_);
            if (now_.count == 0) std::swap(now_, then_);
        }
        at_ = now_.at;
        stop_ = at_ + now_.bytes;
        beside_ = now_.beside;
        advance_ = now_.advance();
        now_.at += now_.stride;
        --now_.count;
    }

    const KvCache &cache_;
    const Place *next_, *end_;
    std::int64_t d_, h0_, h1_;
    Stretches now_, then_;
    const char *at_ = nullptr, *stop_ = nullptr;
    std::int64_t beside_ = 0, advance_ = 0;
    int every_ = 1;
};

// --- keys, turned ---

// Keys of a tile, column by column: of column k, vector i lies `k * stride` items from at[i].
template <class Item>
struct Columns {
    const Item *at[KV_TILE / Vec::width];
    std::int64_t stride;

    static Columns packed(const Item *keys) {
        Columns c;
        for (int i = 0; i < KV_TILE / Vec::width; ++i) c.at[i] = keys + i * Vec::width;
        c.stride = KV_TILE;
        return c;
    }
};

// Whether vectors of keys lie together in turned blocks.
inline bool in_vectors(const KvCache &c) { return c.block % Vec::width == 0; }

// Keys where they lie; vectors without a key are the first one again.
template <class F, class Tile>
Columns<typename F::Item> columns_of(const KvCache &c, const Tile &t, std::int64_t head) {
    Columns<typename F::Item> found;
    for (int i = 0; i < KV_TILE / Vec::width; ++i) {
        const Place p = t.places[i * Vec::width < t.keys ? i * Vec::width : 0];
        found.at[i] = reinterpret_cast<const typename F::Item *>(
            c.keys + head * c.head_bytes() + c.column(p));
    }
    found.stride = c.block;
    return found;
}

// Turned keys that are not in_vectors, together: [d, KV_TILE].
template <class F, class Tile>
void gather(const Attention &a, const Tile &t, std::int64_t head, typename F::Item *to) {
    const KvCache &c = a.cache;
    for (int key = 0; key < t.keys; ++key) {
        const auto *from = reinterpret_cast<const typename F::Item *>(
            c.keys + head * c.head_bytes() + c.column(t.places[key]));
        for (std::int64_t k = 0; k < a.d; ++k) to[k * KV_TILE + key] = from[k * c.block];
    }
}

// Whether narrow formats are turned as they are, and widened later.
template <class F, class V>
constexpr bool turns_stored = V::TURNED > 0 && sizeof(typename F::Item) < sizeof(float);

constexpr int MOST_COLUMNS = 64;  // that are turned at once

// Rows, not turned, of COUNT keys from the tile's `first` on; beyond its last key, that key once more.
template <class F, int COUNT>
struct KeyRows {
    const typename F::Item *at[COUNT];

    template <class Tile>
    KeyRows(const KvCache &c, const Tile &t, int first, std::int64_t head) {
        const char *base = c.keys + head * c.head_bytes();
        for (int i = 0; i < COUNT; ++i) {
            const int key = first + i < t.keys ? first + i : t.keys - 1;
            at[i] = reinterpret_cast<const typename F::Item *>(base + t.rows[key]);
        }
    }
};

template <class F, class V, class Tile>
void turn_stored(const Attention &a, const Tile &t, std::int64_t head, typename F::Item *to) {
    constexpr int rows = V::TURNED, columns = 64 / sizeof(typename F::Item);
    for (int first = 0; first < t.keys; first += rows) {
        const KeyRows<F, rows> row(a.cache, t, first, head);
        for (std::int64_t k = 0; k < a.d; k += columns) {
            const int n = a.d - k < columns ? static_cast<int>(a.d - k) : columns;
            V::turn(row.at, k, n, to + k * KV_TILE + first, KV_TILE);
        }
    }
}

template <class F, class Tile>
void turn_widened(const Attention &a, const Tile &t, std::int64_t head, float *to) {
    constexpr int W = Vec::width;
    for (int first = 0; first < t.keys; first += W) {
        const KeyRows<F, W> row(a.cache, t, first, head);
        for (std::int64_t k = 0; k < a.d; k += W) {
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
void score_tile(const float *q, const Columns<typename F::Item> &keys, std::int64_t d,
                Ahead &ahead, float *scores) {
    for (int n = 0; n < KV_TILE; n += ACROSS * Vec::width) {
        const typename F::Item *at[ACROSS];
        for (int i = 0; i < ACROSS; ++i) at[i] = keys.at[n / Vec::width + i];
        Vec::T acc[HEIGHT][ACROSS];
        for (int m = 0; m < HEIGHT; ++m) {
            for (int i = 0; i < ACROSS; ++i) acc[m][i] = Vec::zero();
        }
        for (std::int64_t k = 0, stop; k < d; k = stop) {
            ahead.ask_for<typename F::Item>();
            stop = d - k < ahead.every() ? d : k + ahead.every();
            for (std::int64_t c = k; c < stop; ++c) {
                Vec::T key[ACROSS];
                for (int i = 0; i < ACROSS; ++i) key[i] = F::load(at[i] + c * keys.stride);
                for (int m = 0; m < HEIGHT; ++m) {
                    const Vec::T value = Vec::set(q[m * d + c]);
                    for (int i = 0; i < ACROSS; ++i) acc[m][i] = Vec::fma(value, key[i], acc[m][i]);
                }
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
int score_rows(const float *q, const Columns<typename F::Item> &keys, std::int64_t d,
               std::int64_t left, Ahead &ahead, float *scores) {
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
// value_at(key, i) is the i-th vector of that key; ask() is called every so many keys.
template <int HEIGHT, int ACROSS_, class Value, class Ask>
inline void weigh_tile(const Rows &rows, int lo, int hi, std::int64_t column, const Value &value_at,
                       int every, const Ask &ask) {
    constexpr int W = Vec::width;
    Vec::T acc[HEIGHT][ACROSS_];
    for (int m = 0; m < HEIGHT; ++m) {
        const Vec::T by = Vec::set(rows.rescale[m]);
        for (int i = 0; i < ACROSS_; ++i) {
            acc[m][i] = Vec::mul(Vec::load(rows.sums + m * rows.stride + column + i * W), by);
        }
    }
    for (int from = lo, stop; from < hi; from = stop) {
        ask();
        stop = hi - from < every ? hi : from + every;
        for (int key = from; key < stop; ++key) {
            Vec::T value[ACROSS_];
            for (int i = 0; i < ACROSS_; ++i) value[i] = value_at(key, i);
            for (int m = 0; m < HEIGHT; ++m) {
                const Vec::T weight = Vec::set(rows.weights[m * KV_TILE + key]);
                for (int i = 0; i < ACROSS_; ++i) acc[m][i] = Vec::fma(weight, value[i], acc[m][i]);
            }
        }
    }
    for (int m = 0; m < HEIGHT; ++m) {
        for (int i = 0; i < ACROSS_; ++i) {
            Vec::store(rows.sums + m * rows.stride + column + i * W, acc[m][i]);
        }
    }
}

constexpr auto ASK_NOTHING = [] {};

// Values widened before: [KV_TILE, stride].
inline int weigh_packed(const float *values, const Rows &rows, int lo, int hi) {
    constexpr int W = Vec::width;
    return by_height(rows.left, [&](auto height) {
        std::int64_t c = 0;
        for (; c + ACROSS * W <= rows.stride; c += ACROSS * W) {
            weigh_tile<height(), ACROSS>(rows, lo, hi, c, [&](int key, int i) {
                return Vec::load(values + key * rows.stride + c + i * W);
            }, KV_TILE, ASK_NOTHING);
        }
        for (; c < rows.stride; c += W) {
            weigh_tile<height(), 1>(rows, lo, hi, c, [&](int key, int) {
                return Vec::load(values + key * rows.stride + c);
            }, KV_TILE, ASK_NOTHING);
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
    const char *base = c.values + head * c.head_bytes();
    const auto row_of = [&](int key) {
        return reinterpret_cast<const Item *>(base + t.rows[key]);
    };
    return by_height(rows.left, [&](auto height) {
        std::int64_t at = 0;
        for (; at + ACROSS * W <= a.dv; at += ACROSS * W) {
            weigh_tile<height(), ACROSS>(rows, lo, hi, at, [&](int key, int i) {
                return F::load(row_of(key) + at + i * W);
            }, ahead.every(), [&] { ahead.ask_for<Item>(); });
        }
        for (; at + W <= a.dv; at += W) {
            weigh_tile<height(), 1>(rows, lo, hi, at, [&](int key, int) {
                return F::load(row_of(key) + at);
            }, KV_TILE, ASK_NOTHING);
        }
        if (at < a.dv) {
            const int n = static_cast<int>(a.dv - at);
            weigh_tile<height(), 1>(rows, lo, hi, at, [&](int key, int) {
                return F::load_some(row_of(key) + at, n);
            }, KV_TILE, ASK_NOTHING);
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
        const auto *row =
            reinterpret_cast<const Item *>(c.values + head * c.head_bytes() + t.rows[key]);
        std::int64_t at = 0;
        for (; at + W <= a.dv; at += W) Vec::store(to + at, F::load(row + at));
        if (at < a.dv) Vec::store(to + at, F::load_some(row + at, static_cast<int>(a.dv - at)));
    }
}

}  // namespace
}  // namespace headrace
