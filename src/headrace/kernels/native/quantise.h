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
    Vec::T most = Vec::zero(), wrong = Vec::zero();
    for (int i = 0; i < columns; i += Vec::width) {
        const int n = columns - i < Vec::width ? columns - i : Vec::width;
        const Vec::T value = Vec::load_some(x + i, n);
        most = Vec::max(most, Vec::max(value, Vec::sub(Vec::zero(), value)));
        wrong = Vec::fma(value, Vec::zero(), wrong);  // 0, or NaN if not finite
    }
    float lanes[2][Vec::width], top = 0.0f, nan = 0.0f;
    Vec::store(lanes[0], most);
    Vec::store(lanes[1], wrong);
    for (int i = 0; i < Vec::width; ++i) {
        top = lanes[0][i] > top ? lanes[0][i] : top;
        nan += lanes[1][i];
    }
    const float inverse = top > 1e-36f ? 127.0f / top : 0.0f;
    std::int8_t bytes[MOST_SHARED + Vec::width];
    for (int i = 0; i < padded; i += Vec::width) {
        const int n = columns - i < Vec::width ? (columns - i < 0 ? 0 : columns - i) : Vec::width;
        const Vec::T scaled = Vec::mul(Vec::load_some(x + i, n), Vec::set(inverse));
        Vec::store_i8(bytes + i, Vec::nearest(scaled));
    }
    std::int32_t sum = 0;
    for (int i = 0; i < padded; ++i) sum += bytes[i];
    for (int i = 0; i < padded; ++i) {
        const int within = i % 32, from = within < 16 ? 2 * within : 2 * within - 31;
        out[i] = bytes[halved ? i - within + from : i];
    }
    return {inverse == 0.0f ? nan : top / 127.0f + nan, sum};
}

}  // namespace
}  // namespace headrace
