// What happens to one row at a time: norms, rotations, scores, look-ups, draws.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace headrace {

// The vector part, one table per instruction set. A row's bits depend on that row alone.
struct RowOps {
    const char *name;

    // out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
    void (*norm)(const float *x, const Values &weight, std::int64_t count, float eps, float *out);

    // Every head's two halves are rotated against each other, in place; cos and sin [d / 2].
    void (*rotate)(float *x, std::int64_t heads, std::int64_t d, const float *cos,
                   const float *sin);

    // x is kept within [-limit, limit]; NaN stays.
    void (*clip)(float *x, std::int64_t count, float limit);

    // Stored floats as fp32.
    void (*widen)(const Values &from, std::int64_t first, std::int64_t count, float *out);

    // x = softmax(x), or x = 1 / (1 + e^-x).
    void (*softmax)(float *x, std::int64_t count);
    void (*sigmoid)(float *x, std::int64_t count);

    // The largest of each block of `width` values into tops (one per block); false where a value
    // is infinite or not a number.
    bool (*tops)(const float *x, std::int64_t count, std::int64_t width, float *tops);

    // out = e^((x - top) / temperature), and the largest of each block of it.
    void (*weigh)(const float *x, std::int64_t count, float top, float temperature,
                  std::int64_t width, float *out, float *tops);
};

const RowOps *plain_rows();
const RowOps *neon_rows();    // null where it was not compiled in
const RowOps *avx2_rows();    // as above
const RowOps *avx512_rows();  // as above

// "auto": the best that this processor has; or one by name. Throws std::invalid_argument for a
// path that is unknown or that this processor lacks.
const RowOps &choose_rows(const char *path);

}  // namespace headrace
