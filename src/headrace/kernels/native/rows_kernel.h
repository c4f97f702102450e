// The row kernels, written once. Include after a vector layer; everything is local to the
// including file. Sums run over four accumulators in one fixed order.
#pragma once

#include <cmath>

#include "epilogue.h"
#include "rows.h"

namespace headrace {
namespace {

struct AsF32 {
    const float *at;
    explicit AsF32(const void *p) : at(static_cast<const float *>(p)) {}
    Vec::T load(std::int64_t i) const { return Vec::load(at + i); }
    Vec::T some(std::int64_t i, int n) const { return Vec::load_some(at + i, n); }
};

struct AsBf16 {
    const std::uint16_t *at;
    explicit AsBf16(const void *p) : at(static_cast<const std::uint16_t *>(p)) {}
    Vec::T load(std::int64_t i) const { return Vec::widen_bf16(at + i); }
    Vec::T some(std::int64_t i, int n) const { return Vec::widen_bf16_some(at + i, n); }
};

struct AsF16 {
    const std::uint16_t *at;
    explicit AsF16(const void *p) : at(static_cast<const std::uint16_t *>(p)) {}
    Vec::T load(std::int64_t i) const { return Vec::widen_f16(at + i); }
    Vec::T some(std::int64_t i, int n) const { return Vec::widen_f16_some(at + i, n); }
};

template <class Use>
void with_format(const Values &values, std::int64_t first, const Use &use) {
    const void *at = values.at(first);
    if (values.format == Format::f32) {
        use(AsF32(at));
    } else if (values.format == Format::bf16) {
        use(AsBf16(at));
    } else {
        use(AsF16(at));
    }
}

// whole(i) for every full vector from i on, some(i, n) for what is left.
template <class Whole, class Some>
void by_vector(std::int64_t count, const Whole &whole, const Some &some) {
    std::int64_t i = 0;
    for (; i + Vec::width <= count; i += Vec::width) whole(i);
    if (i < count) some(i, static_cast<int>(count - i));
}

float total_of(Vec::T a, Vec::T b, Vec::T c, Vec::T d) {
    float sums[4];
    Vec::store4(sums, Vec::sum4(a, b, c, d));
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

float sum_of_squares(const float *x, std::int64_t count) {
    constexpr int W = Vec::width;
    Vec::T sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    std::int64_t i = 0;
    for (; i + 4 * W <= count; i += 4 * W) {
        for (int j = 0; j < 4; ++j) {
            const Vec::T v = Vec::load(x + i + j * W);
            sums[j] = Vec::fma(v, v, sums[j]);
        }
    }
    for (int j = 0; i < count; ++j, i += W) {
        const int n = count - i < W ? static_cast<int>(count - i) : W;
        const Vec::T v = Vec::load_some(x + i, n);
        sums[j] = Vec::fma(v, v, sums[j]);
    }
    return total_of(sums[0], sums[1], sums[2], sums[3]);
}

void norm(const float *x, const Values &weight, std::int64_t count, float eps, float *out) {
    const float mean = sum_of_squares(x, count) / static_cast<float>(count);
    const Vec::T scale = Vec::set(1.0f / std::sqrt(mean + eps));
    with_format(weight, 0, [&](const auto w) {
        by_vector(
            count,
            [&](std::int64_t i) {
                Vec::store(out + i, Vec::mul(Vec::mul(Vec::load(x + i), scale), w.load(i)));
            },
            [&](std::int64_t i, int n) {
                const Vec::T v = Vec::mul(Vec::load_some(x + i, n), scale);
                Vec::store_some(out + i, Vec::mul(v, w.some(i, n)), n);
            });
    });
}

void rotate(float *x, std::int64_t heads, std::int64_t d, const float *cos, const float *sin) {
    const std::int64_t half = d / 2;
    for (std::int64_t head = 0; head < heads; ++head) {
        float *low = x + head * d, *high = low + half;
        by_vector(
            half,
            [&](std::int64_t i) {
                const Vec::T a = Vec::load(low + i), b = Vec::load(high + i);
                const Vec::T c = Vec::load(cos + i), s = Vec::load(sin + i);
                Vec::store(low + i, Vec::sub(Vec::mul(a, c), Vec::mul(b, s)));
                Vec::store(high + i, Vec::add(Vec::mul(b, c), Vec::mul(a, s)));
            },
            [&](std::int64_t i, int n) {
                const Vec::T a = Vec::load_some(low + i, n), b = Vec::load_some(high + i, n);
                const Vec::T c = Vec::load_some(cos + i, n), s = Vec::load_some(sin + i, n);
                Vec::store_some(low + i, Vec::sub(Vec::mul(a, c), Vec::mul(b, s)), n);
                Vec::store_some(high + i, Vec::add(Vec::mul(b, c), Vec::mul(a, s)), n);
            });
    }
}

void clip(float *x, std::int64_t count, float limit) {
    const Vec::T top = Vec::set(limit), bottom = Vec::set(-limit);
    const auto kept = [&](Vec::T v) { return Vec::max(bottom, Vec::min(top, v)); };
    by_vector(
        count, [&](std::int64_t i) { Vec::store(x + i, kept(Vec::load(x + i))); },
        [&](std::int64_t i, int n) {
            Vec::store_some(x + i, kept(Vec::load_some(x + i, n)), n);
        });
}

void widen(const Values &from, std::int64_t first, std::int64_t count, float *out) {
    with_format(from, first, [&](const auto w) {
        by_vector(
            count, [&](std::int64_t i) { Vec::store(out + i, w.load(i)); },
            [&](std::int64_t i, int n) { Vec::store_some(out + i, w.some(i, n), n); });
    });
}

float largest(const float *x, std::int64_t count) {
    float top = x[0];
    for (std::int64_t i = 1; i < count; ++i) top = x[i] > top ? x[i] : top;
    return top;
}

// Few values: one vector's tail is padded with what changes nothing.
void softmax(float *x, std::int64_t count) {
    constexpr int W = Vec::width;
    const Vec::T top = Vec::set(largest(x, count));
    float total = 0.0f;
    for (std::int64_t i = 0; i < count; i += W) {
        const int n = count - i < W ? static_cast<int>(count - i) : W;
        float e[W];
        Vec::store(e, exp_of(Vec::sub(Vec::load_some(x + i, n), top)));
        for (int j = 0; j < n; ++j) total += e[j];
        Vec::store_some(x + i, Vec::load(e), n);
    }
    const Vec::T sum = Vec::set(total);
    for (std::int64_t i = 0; i < count; i += W) {
        const int n = count - i < W ? static_cast<int>(count - i) : W;
        Vec::store_some(x + i, Vec::div(Vec::load_some(x + i, n), sum), n);
    }
}

void sigmoid(float *x, std::int64_t count) {
    constexpr int W = Vec::width;
    const Vec::T one = Vec::set(1.0f);
    for (std::int64_t i = 0; i < count; i += W) {
        const int n = count - i < W ? static_cast<int>(count - i) : W;
        const Vec::T e = exp_of(Vec::sub(Vec::zero(), Vec::load_some(x + i, n)));
        Vec::store_some(x + i, Vec::div(one, Vec::add(one, e)), n);
    }
}

float top_of(Vec::T a) {
    float lanes[Vec::width];
    Vec::store(lanes, a);
    return largest(lanes, Vec::width);
}

// Calls block(first, last, index) for stretches of `width` values.
template <class Block>
void by_block(std::int64_t count, std::int64_t width, const Block &block) {
    for (std::int64_t b = 0, first = 0; first < count; ++b, first += width) {
        block(first, first + width < count ? first + width : count, b);
    }
}

bool tops(const float *x, std::int64_t count, std::int64_t width, float *out) {
    Vec::T odd = Vec::zero();  // x - x: 0, or NaN for infinities and NaN
    float odd_tail = 0.0f;
    by_block(count, width, [&](std::int64_t first, std::int64_t last, std::int64_t b) {
        float top = x[first];
        Vec::T best = Vec::set(top);
        std::int64_t i = first;
        for (; i + Vec::width <= last; i += Vec::width) {
            const Vec::T v = Vec::load(x + i);
            best = Vec::max(v, best);
            odd = Vec::add(odd, Vec::sub(v, v));
        }
        top = top_of(best);
        for (; i < last; ++i) {
            top = x[i] > top ? x[i] : top;
            odd_tail += x[i] - x[i];
        }
        out[b] = top;
    });
    return total_of(odd, odd, odd, odd) == 0.0f && odd_tail == 0.0f;
}

void weigh(const float *x, std::int64_t count, float top, float temperature, std::int64_t width,
           float *out, float *tops) {
    const Vec::T shift = Vec::set(top), divisor = Vec::set(temperature);
    const auto weight = [&](Vec::T v) {
        const Vec::T power = Vec::div(Vec::sub(v, shift), divisor);
        // 1 where e^power is a normal number, 0 below: a token ruled out must weigh nothing.
        const Vec::T room = Vec::mul(Vec::add(power, Vec::set(87.0f)), Vec::set(1e30f));
        const Vec::T in = Vec::min(Vec::set(1.0f), Vec::max(Vec::zero(), room));
        return Vec::mul(exp_of(power), in);
    };
    by_block(count, width, [&](std::int64_t first, std::int64_t last, std::int64_t b) {
        Vec::T best = Vec::zero();
        std::int64_t i = first;
        for (; i + Vec::width <= last; i += Vec::width) {
            const Vec::T w = weight(Vec::load(x + i));
            Vec::store(out + i, w);
            best = Vec::max(w, best);
        }
        if (i < last) {
            float rest[Vec::width];
            for (int j = 0; j < Vec::width; ++j) rest[j] = i + j < last ? x[i + j] : -INFINITY;
            const Vec::T w = weight(Vec::load(rest));
            Vec::store_some(out + i, w, static_cast<int>(last - i));
            best = Vec::max(w, best);
        }
        tops[b] = top_of(best);
    });
}

RowOps row_ops(const char *name) {
    return {name, norm, rotate, clip, widen, softmax, sigmoid, tops, weigh};
}

}  // namespace
}  // namespace headrace
