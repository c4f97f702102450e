// Activations as bytes: the columns that share a scale, one row at a time. Include after a vector
// layer. A row's bytes depend on the row alone.
#pragma once

#include "engine.h"

namespace headrace {
namespace {

struct Quantised {
    float scale;       // NaN when a value is not finite
    std::int32_t sum;  // of the bytes
};

// `columns` values (at most MOST_SHARED) to bytes in [-127, 127], zeros up to `padded` (a multiple
// of 32). With `halved`, the even columns of each 32 come before the odd ones, as nibbles lie.
inline Quantised quantise(const float *x, int columns, int padded, bool halved, std::int8_t *out) {
    const auto from = [&](int i) {  // zeros from `columns` on
        const int left = columns - i;
        return left >= Vec::width ? Vec::load(x + i) : Vec::load_some(x + i, left < 0 ? 0 : left);
    };
    Vec::T most = Vec::zero(), wrong = Vec::zero();
    for (int i = 0; i < columns; i += Vec::width) {
        const Vec::T value = from(i);
        most = Vec::max(most, Vec::max(value, Vec::sub(Vec::zero(), value)));
        wrong = Vec::fma(value, Vec::zero(), wrong);  // 0, or NaN if not finite
    }
    const float top = Vec::top(most), nan = Vec::total(wrong);
    const float inverse = top > 1e-36f ? 127.0f / top : 0.0f;
    std::int8_t bytes[MOST_SHARED + Vec::width];
    std::int8_t *to = halved ? bytes : out;
    Vec::T sum = Vec::zero();  // of whole numbers, far below 2^24: exact
    for (int i = 0; i < padded; i += Vec::width) {
        const Vec::T whole = Vec::nearest(Vec::mul(from(i), Vec::set(inverse)));
        Vec::store_i8(to + i, whole);
        sum = Vec::add(sum, whole);
    }
    if (halved) {
        for (int i = 0; i < padded; i += 32) {
            for (int j = 0; j < 16; ++j) out[i + j] = bytes[i + 2 * j];
            for (int j = 0; j < 16; ++j) out[i + 16 + j] = bytes[i + 2 * j + 1];
        }
    }
    const bool finite = nan == 0.0f;
    return {inverse == 0.0f ? nan : top / 127.0f + nan,
            finite ? static_cast<std::int32_t>(Vec::total(sum)) : 0};
}

}  // namespace
}  // namespace headrace
