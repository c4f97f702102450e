// The vector layer in plain C++: four lanes, no instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "narrow.h"
#include "widen.h"

namespace headrace {
namespace {

struct Vec {
    static constexpr int width = 4;
    static constexpr int registers = 16;
    static constexpr int bf16_vectors = 1;  // that a load of bf16 gives
    struct T {
        float v[4];
    };

    template <class F>
    static T each(const F &f) {
        T out;
        for (int i = 0; i < 4; ++i) out.v[i] = f(i);
        return out;
    }
    static T zero() { return set(0.0f); }
    static T set(float value) {
        return each([&](int) { return value; });
    }
    static T load(const float *p) {
        return each([&](int i) { return p[i]; });
    }
    static T load_some(const float *p, int n) {
        return each([&](int i) { return i < n ? p[i] : 0.0f; });
    }
    static void store(float *p, const T &a) { std::memcpy(p, a.v, sizeof a.v); }
    static void store_some(float *p, const T &a, int n) {
        for (int i = 0; i < n; ++i) p[i] = a.v[i];
    }
    static T add(const T &a, const T &b) {
        return each([&](int i) { return a.v[i] + b.v[i]; });
    }
    static T sub(const T &a, const T &b) {
        return each([&](int i) { return a.v[i] - b.v[i]; });
    }
    static T mul(const T &a, const T &b) {
        return each([&](int i) { return a.v[i] * b.v[i]; });
    }
    static T div(const T &a, const T &b) {
        return each([&](int i) { return a.v[i] / b.v[i]; });
    }
    // a b + c. Two roundings here, one where there is an instruction for it.
    static T fma(const T &a, const T &b, const T &c) {
        return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
    }
    // The second operand when either is NaN, as on x86.
    static T min(const T &a, const T &b) {
        return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    static T max(const T &a, const T &b) {
        return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    static T nearest(const T &a) {
        return each([&](int i) { return std::nearbyintf(a.v[i]); });
    }
    static T pow2(const T &a) {  // integers in [-126, 128]; anything for NaN
        return each([&](int i) {
            const int n = a.v[i] == a.v[i] ? static_cast<int>(a.v[i]) : 0;
            const std::uint32_t bits = static_cast<std::uint32_t>(n + 127) << 23;
            float value;
            std::memcpy(&value, &bits, sizeof value);
            return value;
        });
    }
    static T widen_bf16(const std::uint16_t *p) {
        T out;
        widen_bf16_plain(p, out.v, 4);
        return out;
    }
    static T widen_f16(const std::uint16_t *p) {
        T out;
        widen_fp16_plain(p, out.v, 4);
        return out;
    }
    static T widen_bf16_some(const std::uint16_t *p, int n) {
        T out = zero();
        widen_bf16_plain(p, out.v, static_cast<std::size_t>(n));
        return out;
    }
    static T widen_f16_some(const std::uint16_t *p, int n) {
        T out = zero();
        widen_fp16_plain(p, out.v, static_cast<std::size_t>(n));
        return out;
    }
    static T from_i8(const std::int8_t *p) {
        return each([&](int i) { return static_cast<float>(p[i]); });
    }
    static T from_u8(const std::uint8_t *p) {
        return each([&](int i) { return static_cast<float>(p[i]); });
    }
    // Whole numbers in [-127, 127]; anything for NaN.
    static void store_i8(std::int8_t *p, const T &a) {
        for (int i = 0; i < 4; ++i) {
            p[i] = a.v[i] == a.v[i] ? static_cast<std::int8_t>(a.v[i]) : std::int8_t{0};
        }
    }

    // 16-bit floats, rounded to nearest, ties to even.
    static void narrow_bf16(std::uint16_t *p, const T &a) { narrow_bf16_plain(a.v, p, 4); }
    static void narrow_f16(std::uint16_t *p, const T &a) { narrow_fp16_plain(a.v, p, 4); }
    static void transpose(T (&r)[4]) {
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < i; ++j) std::swap(r[i].v[j], r[j].v[i]);
        }
    }
    // Narrow rows are widened and transposed instead.
    static constexpr int TURNED = 0;
    // The largest lane, and the sum of all, by one tree.
    static float top(const T &a) {
        const float low = a.v[0] > a.v[2] ? a.v[0] : a.v[2];
        const float high = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
        return low > high ? low : high;
    }
    static float total(const T &a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }

    // Lane i: the sum of the lanes of the i-th, by the same tree for each.
    using Quad = T;
    static Quad sum4(const T &a, const T &b, const T &c, const T &d) {
        const T *all[] = {&a, &b, &c, &d};
        return each([&](int i) {
            const float *v = all[i]->v;
            return (v[0] + v[2]) + (v[1] + v[3]);
        });
    }
    static Quad load4(const float *p) { return load(p); }
    static void store4(float *p, const Quad &a) { store(p, a); }
    static Quad add4(const Quad &a, const Quad &b) { return add(a, b); }
};

}  // namespace
}  // namespace headrace
