// Integer weights with fp32 activations: scaled to fp32 as they are widened, then as floats.
// Include after a vector layer.
#pragma once

#include "fma_engine.h"

namespace headrace {
namespace {

struct I8 {
    static constexpr int vectors = 1;
    static std::size_t bytes(std::int64_t columns) { return static_cast<std::size_t>(columns); }
    static void spread(const char *from, std::int64_t columns, std::uint8_t *to) {
        std::memcpy(to, from, static_cast<std::size_t>(columns));
    }
    static Vec::T load(const std::uint8_t *p) {
        return Vec::from_i8(reinterpret_cast<const std::int8_t *>(p));
    }
};

struct U8 : I8 {
    static Vec::T load(const std::uint8_t *p) { return Vec::from_u8(p); }
};

struct U4 {
    static constexpr int vectors = 1;
    static std::size_t bytes(std::int64_t columns) { return static_cast<std::size_t>(columns) / 2; }
    static void spread(const char *from, std::int64_t columns, std::uint8_t *to) {
        const auto *pairs = reinterpret_cast<const std::uint8_t *>(from);
        for (std::int64_t i = 0; i < (columns + 1) / 2; ++i) {
            to[2 * i] = pairs[i] & 15;
            to[2 * i + 1] = pairs[i] >> 4;
        }
    }
    static Vec::T load(const std::uint8_t *p) { return Vec::from_u8(p); }
};

// Integer columns of one weight row: scale (q - zero). Found by argument, as for floats.
template <class F>
void widen_integers(const Weight &w, std::int64_t n, const Block &b, int stride, float *to) {
    std::uint8_t integers[K_BLOCK + Vec::width] = {};
    F::spread(w.row(n) + F::bytes(b.k), b.columns, integers);
    for (std::int64_t first = b.k; first < b.k + b.columns;) {
        const std::int64_t g = first / w.group;
        std::int64_t last = (g + 1) * w.group;
        if (last > b.k + b.columns) last = b.k + b.columns;
        float scale = 0.0f;
        floats_of(w.scales, n * w.groups() + g, 1, &scale);
        const Vec::T by = Vec::set(scale), zero = Vec::set(static_cast<float>(w.zero(n, g)));
        for (std::int64_t k = first; k < last; k += Vec::width) {
            const Vec::T value = Vec::sub(F::load(integers + (k - b.k)), zero);
            Vec::store(to + (k - b.k) / Vec::width * stride, Vec::mul(value, by));
        }
        first = last;
    }
}

void widen_row(I8, const Weight &w, std::int64_t n, const Block &b, int stride, float *to) {
    widen_integers<I8>(w, n, b, stride, to);
}
void widen_row(U8, const Weight &w, std::int64_t n, const Block &b, int stride, float *to) {
    widen_integers<U8>(w, n, b, stride, to);
}
void widen_row(U4, const Weight &w, std::int64_t n, const Block &b, int stride, float *to) {
    widen_integers<U4>(w, n, b, stride, to);
}

template <class F>
struct ExactProducts {
    using Memory = float[WIDE_NR * K_BLOCK];

    static void sum(const Weight &w, const Part &p, Memory &wide, float *sums) {
        sum_widened<F>(w, p, wide, sums);
    }
};

inline const Engine *exact_engine_of(Format format, const char *name) {
    static const Engine i8 = engine<ExactProducts<I8>>(name), u8 = engine<ExactProducts<U8>>(name),
                        u4 = engine<ExactProducts<U4>>(name);
    return format == Format::i8 ? &i8 : format == Format::u8 ? &u8 : &u4;
}

}  // namespace
}  // namespace headrace
