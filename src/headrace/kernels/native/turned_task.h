// Tasks of the engines that turn weights: lanes along weight rows, so that a sum along K needs no
// other lane. Sums of products as [row of x][weight row]. Include after a vector layer and its
// Turn.
#pragma once

#include "engine.h"
#include "epilogue.h"
#include "local.h"
#include "prefetch.h"

namespace headrace {
namespace {

// A register tile is TALL rows of x (LOW, of integers) by PAIR vectors of weight rows. For the few rows
// of x that an engine names, weights come from memory as fast as they can: one vector of rows at a time.
constexpr int TALL = Turn::tall, LOW = Turn::low, PAIR = 2;
constexpr int N_BLOCK = 64;                    // weight rows whose results are kept together
constexpr int LONG_TASK = 10 * N_BLOCK;        // most weight rows of a task, up to ...
constexpr std::int64_t LONG_FOR = 64;          // ... so many rows of x; above, N_BLOCK
constexpr std::int64_t ROWS_AHEAD = 2;         // of x, asked for while one is packed
constexpr std::size_t LINE = 4 * Turn::words;  // bytes of a row that are turned at a time
constexpr std::size_t LINES_AHEAD = 1;         // asked for while one is turned
constexpr std::int64_t SCALES_AHEAD = 1024;    // bytes, where scales are met with the weights

static_assert(Turn::rows == Vec::width, "a vector holds one word of every row");
static_assert(N_BLOCK % PART == 0 && LONG_TASK % PART == 0, "tasks hand on whole parts");

constexpr std::int64_t up_to(std::int64_t value, std::int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

// The part of a task: weight rows n0 .. n0 + rows, rows m0 .. m1 of a panel of `count` rows.
struct Part {
    const void *panel;
    std::int64_t count, n0;
    int rows;
    std::int64_t m0, m1;
};

// Memory that is read next, asked for line by line in the order in which it lies while what came
// before is multiplied: rows are read side by side, and short rows are gone before the processor
// follows them by itself. A few lines at a time: more wait for each other, and whatever is loaded
// waits behind them.
class Ahead {
  public:
    Ahead(const Weight &w, std::int64_t row, std::int64_t rows)
        : at_(w.row(row)), end_(at_ + static_cast<std::size_t>(rows < 0 ? 0 : rows) * w.row_bytes) {}

    // Of weights that lie in the order in which they are met, only the near: what is left of `here`
    // beyond a distance, then the first of `then`.
    static Ahead near(Ahead here, const Ahead &then) {
        here.at_ += DISTANCE;
        here.then_ = then.at_;
        here.then_end_ = then.nearest().end_;
        if (here.at_ >= here.end_) here.go_on();
        return here;
    }
    Ahead nearest() const {
        Ahead some = *this;
        if (end_ - at_ > DISTANCE) some.end_ = at_ + DISTANCE;
        return some;
    }

    void ask(int lines) {
        if (at_ >= end_) return;
        for (int i = 0; i < lines; ++i) prefetch_close(at_ + i * LINE_BYTES);
        at_ += lines * LINE_BYTES;
        if (at_ >= end_) go_on();
    }
    void ask_all() {
        while (at_ < end_) ask(1);
    }

    // Where it begins, null when there is none; who takes it asks for it himself.
    const char *take() {
        const char *first = at_ < end_ ? at_ : nullptr;
        at_ = end_;
        return first;
    }

    // The same of what comes behind it, where it is `near`.
    const char *take_then() {
        const char *first = then_ < then_end_ ? then_ : nullptr;
        take();
        return first;
    }

    static constexpr std::ptrdiff_t DISTANCE = 4096;
    static constexpr int LINE_BYTES = 64;  // that are asked for at once

  private:
    const char *at_, *end_, *then_ = nullptr, *then_end_ = nullptr;

    void go_on() {
        at_ = then_;
        end_ = then_end_;
        then_ = then_end_ = nullptr;
    }
};

// V vectors of rows, `row_bytes` apart or turned, that are read side by side from beginning to end.
// Rows beyond the last repeat it; only their results may not be used where the last is turned.
template <int V>
struct Rows {
    static constexpr int size = V * Vec::width;

    const char *at[size];
    bool turned[V] = {};

    Rows(const Weight &w, std::int64_t n, int rows) : Rows(w.row(n), rows, w.row_bytes) {
        for (int v = 0; v < V; ++v) turned[v] = n + (v + 1) * Vec::width <= w.turned;
    }

    Rows(const char *first, int rows, std::size_t row_bytes) {
        for (int i = 0; i < size; ++i) {
            at[i] = first + static_cast<std::size_t>(i < rows ? i : rows - 1) * row_bytes;
        }
    }

    // The words of LINE bytes at `offset`, a multiple of them, of the v-th vector of rows.
    void line(int v, std::size_t offset, typename Turn::T (&words)[Turn::words]) const {
        if (turned[v]) {
            Turn::turned(at[v * Vec::width] + offset * Vec::width, words);
        } else {
            Turn::line(at + v * Vec::width, offset, words);
        }
    }

    // Asks for what `line` reads after `offset`, if turned: for many rows of x it was asked for
    // long before, and lies in the second-level cache by now.
    void ask_after(int v, std::size_t offset) const {
        if (!turned[v]) return;
        const char *next = at[v * Vec::width] + (offset + LINES_AHEAD * LINE) * Vec::width;
        for (std::size_t i = 0; i < LINE * Vec::width; i += 64) prefetch_close(next + i);
    }

    // Calls to(v, word, j) for the words of columns at `offset` .. `offset + bytes`: the j-th of
    // the v-th vector of rows.
    template <class To>
    void turn(std::size_t offset, std::size_t bytes, const To &to) const {
        for (std::size_t b = 0; b < bytes; b += LINE) {
            for (int v = 0; v < V; ++v) {
                typename Turn::T words[Turn::words];
                ask_after(v, offset + b);
                if (bytes - b < LINE && !turned[v]) {
                    Turn::last_line(at + v * Vec::width, offset + b, bytes - b, words);
                } else {
                    line(v, offset + b, words);
                }
                const auto first = static_cast<int>(b / 4);
                const auto count = static_cast<int>((bytes - b + 3) / 4);
                if (count < Turn::words) {
                    for (int j = 0; j < count; ++j) to(v, words[j], first + j);
                } else {
                    for (int j = 0; j < Turn::words; ++j) to(v, words[j], first + j);
                }
            }
        }
    }
};

// --- float formats ---

// Column c of a word as floats, and of how many bytes a column is.
struct F32 {
    static constexpr int size = 4;
    static Vec::T column(Turn::T word, int) { return Turn::f32(word); }
};
struct Bf16 {
    static constexpr int size = 2;
    static Vec::T column(Turn::T word, int c) { return Turn::bf16(word, c); }
};
struct F16 {
    static constexpr int size = 2;
    static Vec::T column(Turn::T word, int c) { return Turn::f16(word, c); }
};

// Columns k .. k + columns as fp32 [column][V vectors of rows]; may write one column more.
template <class F, int V>
void widen(const Rows<V> &rows, std::int64_t k, std::int64_t columns, float *to) {
    constexpr int stride = Rows<V>::size, per_word = 4 / F::size;
    rows.turn(static_cast<std::size_t>(k * F::size), static_cast<std::size_t>(columns * F::size),
              [&](int v, Turn::T word, int j) {
                  float *at = to + j * per_word * stride + v * Vec::width;
                  for (int c = 0; c < per_word; ++c) Vec::store(at + c * stride, F::column(word, c));
              });
}

// --- tasks ---

template <int N>
struct Constant {
    static constexpr int value = N;
};

// Calls f(Constant<rows>), of TALL at most.
template <class F>
void with_height(std::int64_t rows, const F &f) {
    switch (rows) {
        case 1: return f(Constant<1>());
        case 2: return f(Constant<2>());
        case 3: return f(Constant<3>());
        case 4: return f(Constant<4>());
        default: break;
    }
    if constexpr (TALL > 4) {
        switch (rows) {
            case 5: return f(Constant<5>());
            case 6: return f(Constant<6>());
            case 7: return f(Constant<7>());
            default: break;
        }
    }
    f(Constant<TALL>());
}

// S says how products are summed: S::FEW rows of x are few, S::MANY vectors of weight rows meet more
// of them at a time, S::Memory it works in, S::sum<V>(weight, part, n, ahead, memory, sums) for the V
// vectors of weight rows from the n-th of the part on.
template <class S>
struct Local {
    typename S::Memory memory;
    float sums[2][MAX_ROWS * N_BLOCK];
};

// Weight rows that are read side by side.
template <class S>
constexpr int side_by_side(const Part &p) {
    return p.m1 - p.m0 <= S::FEW ? Vec::width : S::MANY * Vec::width;
}

// Whether memory is met from beginning to end: turned, a vector of rows at a time. Engines that meet
// rows as stored in order say so themselves.
template <class S>
bool in_order(const Weight &w, const Part &p) {
    return w.turned > 0 && side_by_side<S>(p) == Vec::width;
}

// Those of a part from its n-th on.
template <class S>
Ahead rows_of(const Weight &w, const Part &p, int n) {
    const int left = p.rows - n, most = side_by_side<S>(p);
    return {w, p.n0 + n, left < most ? left : most};
}

// `then` is what is read after this; the part's first rows were asked for before.
template <class S>
void sum(const Weight &w, const Part &p, Ahead then, typename S::Memory &memory, float *sums) {
    const int step = side_by_side<S>(p);
    for (int n = 0; n < p.rows; n += step) {
        Ahead next = n + step < p.rows ? rows_of<S>(w, p, n + step) : then;
        if (in_order<S>(w, p)) next = Ahead::near(rows_of<S>(w, p, n), next);
        if (step == Vec::width) {
            S::template sum<1>(w, p, n, next, memory, sums);
        } else {
            S::template sum<S::MANY>(w, p, n, next, memory, sums);
        }
        next.ask_all();
    }
}

// Some rows of gate's and up's sums to results, in gate's place.
inline void activate_rows(float *gate, const float *up, std::int64_t rows,
                          const float (&bias)[2][N_BLOCK], const Activation &activation) {
    for (std::int64_t i = 0; i < rows * N_BLOCK; i += N_BLOCK) {
        for (int n = 0; n < N_BLOCK; n += Vec::width) {
            const Vec::T g = Vec::add(Vec::load(gate + i + n), Vec::load(bias[0] + n));
            const Vec::T u = Vec::add(Vec::load(up + i + n), Vec::load(bias[1] + n));
            Vec::store(gate + i + n, activate(g, u, activation));
        }
    }
}

inline void add_bias(float *row, const float *bias) {
    for (int n = 0; n < N_BLOCK; n += Vec::width) {
        Vec::store(row + n, Vec::add(Vec::load(row + n), Vec::load(bias + n)));
    }
}

// Calls work(part, next) for N_BLOCK weight rows of a task after the other; `next` is the part that
// follows, of no rows at the end.
template <class Work>
void in_parts(const void *panel, std::int64_t count, std::int64_t n0, std::int64_t n1,
              std::int64_t g0, std::int64_t g1, const Work &work) {
    const std::int64_t m1 = g1 * TALL < count ? g1 * TALL : count;
    const auto from = [&](std::int64_t n) {
        const std::int64_t left = n < n1 ? n1 - n : 0;
        return Part{panel, count, n, static_cast<int>(left < N_BLOCK ? left : N_BLOCK), g0 * TALL, m1};
    };
    for (std::int64_t n = n0; n < n1; n += N_BLOCK) work(from(n), from(n + N_BLOCK));
}

// Scales, a little beside the weights but waited for as long: those of a part, or, where they are
// met with the weights, the first of them. All at once would be in the way of the weights.
template <class S>
void ask_scales(const Weight &w, const Part &p) {
    if (w.scales.data == nullptr || p.rows <= 0) return;
    const auto *at = static_cast<const char *>(w.scales.at(p.n0 * w.groups()));
    const auto *end = static_cast<const char *>(w.scales.at((p.n0 + p.rows) * w.groups()));
    if (in_order<S>(w, p) && end - at > SCALES_AHEAD) end = at + SCALES_AHEAD;
    for (; at < end; at += 64) prefetch_close(at);
}

// Of the part that follows, unless what comes before it asks for them.
template <class S>
void ask_next_scales(const Weight &w, const Part &p) {
    if (!in_order<S>(w, p)) ask_scales<S>(w, p);
}

template <class S>
void ask_first(const Weight &w, const Part &p) {
    ask_scales<S>(w, p);
    Ahead rows = rows_of<S>(w, p, 0);
    if (in_order<S>(w, p)) rows = rows.nearest();
    rows.ask_all();
}

template <class S>
void multiply(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0,
              std::int64_t n1, std::int64_t g0, std::int64_t g1, const Store &to) {
    static_assert(sizeof(Local<S>) <= LOCAL_BYTES, "a task's memory");
    auto &local = *static_cast<Local<S> *>(local_memory());
    in_parts(panel, count, n0, n1, g0, g1, [&](const Part &part, const Part &next) {
        if (part.n0 == n0) ask_first<S>(w, part);
        ask_next_scales<S>(w, next);
        sum<S>(w, part, rows_of<S>(w, next, 0), local.memory, local.sums[0]);
        float bias[N_BLOCK] = {};
        bias_of(w, part.n0, part.rows, bias);
        for (std::int64_t m = part.m0; m < part.m1; ++m) {
            float *row = local.sums[0] + (m - part.m0) * N_BLOCK;
            add_bias(row, bias);
            put(to, m, part.n0, row, part.rows);
        }
    });
}

template <class S>
void gated(const Weight &gate, const Weight &up, const void *panel, std::int64_t count,
           std::int64_t n0, std::int64_t n1, std::int64_t g0, std::int64_t g1,
           const Activation &activation, const Store &to) {
    auto &local = *static_cast<Local<S> *>(local_memory());
    in_parts(panel, count, n0, n1, g0, g1, [&](const Part &part, const Part &next) {
        if (part.n0 == n0) {
            ask_first<S>(gate, part);
            ask_scales<S>(up, part);
        }
        ask_next_scales<S>(gate, next);
        ask_next_scales<S>(up, next);
        sum<S>(gate, part, rows_of<S>(up, part, 0), local.memory, local.sums[0]);
        sum<S>(up, part, rows_of<S>(gate, next, 0), local.memory, local.sums[1]);
        float bias[2][N_BLOCK] = {};
        bias_of(gate, part.n0, part.rows, bias[0]);
        bias_of(up, part.n0, part.rows, bias[1]);
        for (std::int64_t m = part.m0; m < part.m1; m += TALL) {
            const std::int64_t end = m + TALL < part.m1 ? m + TALL : part.m1;
            float *results = local.sums[0] + (m - part.m0) * N_BLOCK;
            activate_rows(results, local.sums[1] + (m - part.m0) * N_BLOCK, end - m, bias,
                          activation);
            if (to.onward != nullptr) {
                to.onward->engine->pack_part(results, N_BLOCK, m, end, part.n0, part.n0 + part.rows,
                                             *to.onward);
                continue;
            }
            for (std::int64_t i = m; i < end; ++i, results += N_BLOCK) {
                put(to, i, part.n0, results, part.rows);
            }
        }
    });
}

// Where memory is the limit, a thread reads one long stretch of it.
std::int64_t task_rows(std::int64_t rows, std::int64_t, int) {
    return rows <= LONG_FOR ? LONG_TASK : N_BLOCK;
}

}  // namespace
}  // namespace headrace
