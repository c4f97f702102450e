// Sums of products of bytes, 32 at a time, in plain C++. Goes with vec_plain.h.
#pragma once

#include <cstdint>

#include "engine.h"

namespace headrace {
namespace {

struct Ints {
    static constexpr int NR = 2;  // weight rows in a register tile
    struct T {
        std::int32_t v[Vec::width];
    };
    struct W {
        std::int16_t v[32];
    };

    static T load(const std::int32_t *p) {
        T out;
        for (int i = 0; i < Vec::width; ++i) out.v[i] = p[i];
        return out;
    }
    static T times(const T &a, int b) {
        T out;
        for (int i = 0; i < Vec::width; ++i) out.v[i] = a.v[i] * b;
        return out;
    }
    static Vec::T to_float(const T &a) {
        return Vec::each([&](int i) { return static_cast<float>(a.v[i]); });
    }

    // What is added to a stored integer (and so to its zero) when it is loaded.
    static constexpr int shift(Format) { return 0; }

    template <Format F>
    static W weights(const void *p) {
        W out;
        for (int i = 0; i < 32; ++i) {
            const auto *bytes = static_cast<const std::uint8_t *>(p);
            if (F == Format::i8) out.v[i] = static_cast<const std::int8_t *>(p)[i];
            if (F == Format::u8) out.v[i] = bytes[i];
            if (F == Format::u4) {
                out.v[i] = static_cast<std::int16_t>(i < 16 ? bytes[i] & 15 : bytes[i - 16] >> 4);
            }
        }
        return out;
    }
    template <Format F>
    static T dot(T sum, const W &w, const std::int8_t *x) {
        for (int i = 0; i < 32; ++i) sum.v[i % Vec::width] += w.v[i] * x[i];
        return sum;
    }
};

}  // namespace
}  // namespace headrace
