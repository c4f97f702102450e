// Formats of the cache of keys and values, read and written by vectors. Include after a vector
// layer.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "attention.h"

namespace headrace {
namespace {

struct CacheF32 {
    using Item = float;
    static constexpr bool scaled = false;
    static Vec::T load(const Item *p) { return Vec::load(p); }
    static Vec::T load_some(const Item *p, int n) { return Vec::load_some(p, n); }
    static void store(Item *p, Vec::T a) { Vec::store(p, a); }
};
struct CacheBf16 {
    using Item = std::uint16_t;
    static constexpr bool scaled = false;
    static Vec::T load(const Item *p) { return Vec::widen_bf16(p); }
    static Vec::T load_some(const Item *p, int n) { return Vec::widen_bf16_some(p, n); }
    static void store(Item *p, Vec::T a) { Vec::narrow_bf16(p, a); }
};
struct CacheF16 {
    using Item = std::uint16_t;
    static constexpr bool scaled = false;
    static Vec::T load(const Item *p) { return Vec::widen_f16(p); }
    static Vec::T load_some(const Item *p, int n) { return Vec::widen_f16_some(p, n); }
    static void store(Item *p, Vec::T a) { Vec::narrow_f16(p, a); }
};
struct CacheI8 {
    using Item = std::int8_t;
    static constexpr bool scaled = true;
    static Vec::T load(const Item *p) { return Vec::from_i8(p); }
    static Vec::T load_some(const Item *p, int n) {
        Item padded[Vec::width] = {};
        std::memcpy(padded, p, static_cast<std::size_t>(n));
        return load(padded);
    }
    static void store(Item *p, Vec::T a) { Vec::store_i8(p, a); }
};

// 127 / (largest magnitude), or 0 where that is too small; NaN when a value is not finite.
inline float inverse_scale(const float *x, std::int64_t count, float &scale) {
    Vec::T most = Vec::zero(), wrong = Vec::zero();
    for (std::int64_t i = 0; i < count; i += Vec::width) {
        const int n = count - i < Vec::width ? static_cast<int>(count - i) : Vec::width;
        const Vec::T value = Vec::load_some(x + i, n);
        most = Vec::max(most, Vec::max(value, Vec::sub(Vec::zero(), value)));
        wrong = Vec::fma(value, Vec::zero(), wrong);  // 0, or NaN if not finite
    }
    const float top = Vec::top(most), nan = Vec::total(wrong);
    const bool usable = top > 1e-36f;
    scale = (usable ? top / 127.0f : 0.0f) + nan;
    return usable ? 127.0f / top : 0.0f;
}

// `count` values of one token and head, rounded to nearest, ties to even, `stride` items apart.
template <class F>
inline void store_row(const float *x, std::int64_t count, typename F::Item *to,
                      std::int64_t stride, float *scale) {
    float inverse = 1.0f;
    if (F::scaled) inverse = inverse_scale(x, count, *scale);
    for (std::int64_t i = 0; i < count; i += Vec::width) {
        const int n = count - i < Vec::width ? static_cast<int>(count - i) : Vec::width;
        Vec::T value = Vec::load_some(x + i, n);
        if (F::scaled) value = Vec::nearest(Vec::mul(value, Vec::set(inverse)));
        if (n == Vec::width && stride == 1) {
            F::store(to + i, value);
        } else {
            typename F::Item padded[Vec::width];
            F::store(padded, value);
            for (int k = 0; k < n; ++k) to[(i + k) * stride] = padded[k];
        }
    }
}

template <class F>
void append_rows(const Append &a, std::int64_t first, std::int64_t last) {
    using Item = typename F::Item;
    const KvCache &c = a.cache;
    for (std::int64_t r = first; r < last; ++r) {
        const Place place{a.slots[r] / c.block, a.slots[r] % c.block};
        for (std::int64_t h = 0; h < c.heads; ++h) {
            const std::int64_t head = h * c.head_bytes(), scale = c.scale(place, h);
            const std::int64_t key = head + (c.turned ? c.column(place) : c.row(place));
            store_row<F>(a.k + r * a.k_stride + h * a.d, a.d,
                         reinterpret_cast<Item *>(c.keys + key), c.turned ? c.block : 1,
                         c.key_scales + scale);
            if (a.dv == 0) continue;
            store_row<F>(a.v + r * a.v_stride + h * a.dv, a.dv,
                         reinterpret_cast<Item *>(c.values + head + c.row(place)), 1,
                         c.value_scales + scale);
        }
    }
}

}  // namespace
}  // namespace headrace
