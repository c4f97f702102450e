// What happens to a result before it leaves: bias, activation, gate, store or add.
// Include after a vector layer; everything is local to the including file.
#pragma once

#include "matrix.h"

namespace headrace {
namespace {

// e^x within two units in the last place for x in [-87, 88]; infinity above, never below e^-87;
// NaN passes.
inline Vec::T exp_of(Vec::T x) {
    x = Vec::max(Vec::set(-87.0f), Vec::min(Vec::set(89.0f), x));
    const Vec::T n = Vec::nearest(Vec::mul(x, Vec::set(1.44269504088896341f)));
    Vec::T r = Vec::fma(n, Vec::set(-0.693359375f), x);
    r = Vec::fma(n, Vec::set(2.12194440e-4f), r);
    Vec::T p = Vec::set(1.9875691500e-4f);
    p = Vec::fma(p, r, Vec::set(1.3981999507e-3f));
    p = Vec::fma(p, r, Vec::set(8.3334519073e-3f));
    p = Vec::fma(p, r, Vec::set(4.1665795894e-2f));
    p = Vec::fma(p, r, Vec::set(1.6666665459e-1f));
    p = Vec::fma(p, r, Vec::set(5.0000001201e-1f));
    p = Vec::fma(Vec::mul(r, r), p, Vec::add(r, Vec::set(1.0f)));
    return Vec::mul(p, Vec::pow2(n));
}

// g sigmoid(alpha g) (u + shift), after clamping.
inline Vec::T activate(Vec::T g, Vec::T u, const Activation &a) {
    if (a.limit > 0.0f) {
        const Vec::T top = Vec::set(a.limit);
        g = Vec::min(top, g);
        u = Vec::max(Vec::set(-a.limit), Vec::min(top, u));
    }
    const Vec::T e = exp_of(Vec::mul(g, Vec::set(-a.alpha)));
    const Vec::T glu = Vec::div(g, Vec::add(Vec::set(1.0f), e));
    return Vec::mul(glu, a.shift == 0.0f ? u : Vec::add(u, Vec::set(a.shift)));
}

// `count` stored values from the first on, as fp32.
inline void floats_of(const Values &from, std::int64_t first, std::int64_t count, float *out) {
    const void *at = from.at(first);
    for (std::int64_t i = 0; i < count; i += Vec::width) {
        const int n = count - i < Vec::width ? static_cast<int>(count - i) : Vec::width;
        Vec::T value = Vec::zero();
        if (from.format == Format::f32) {
            value = Vec::load_some(static_cast<const float *>(at) + i, n);
        } else if (from.format == Format::bf16) {
            value = Vec::widen_bf16_some(static_cast<const std::uint16_t *>(at) + i, n);
        } else {
            value = Vec::widen_f16_some(static_cast<const std::uint16_t *>(at) + i, n);
        }
        Vec::store_some(out + i, value, n);
    }
}

// Bias of weight rows n0 .. n0 + count, zeros where there is none.
inline void bias_of(const Weight &w, std::int64_t n0, int count, float *out) {
    for (int i = 0; i < count; ++i) out[i] = 0.0f;
    if (w.bias.data != nullptr) floats_of(w.bias, n0, count, out);
}

// `count` neighbouring results of row i, from column n0 on.
inline void put(const Store &to, std::int64_t i, std::int64_t n0, const float *values, int count) {
    float *out = to.rows[i] + n0;
    const Vec::T gate = Vec::set(to.gates == nullptr ? 1.0f : to.gates[i]);
    for (int j = 0; j < count; j += Vec::width) {
        const int n = count - j < Vec::width ? count - j : Vec::width;
        Vec::T value = Vec::load_some(values + j, n);
        if (to.add) {
            value = Vec::fma(gate, value, Vec::load_some(out + j, n));
        } else if (to.gates != nullptr) {
            value = Vec::mul(gate, value);
        }
        Vec::store_some(out + j, value, n);
    }
}

}  // namespace
}  // namespace headrace
