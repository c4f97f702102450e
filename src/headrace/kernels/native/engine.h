// One way of multiplying: a weight format on an instruction set. Chosen once, never by rows.
#pragma once

#include "matrix.h"

namespace headrace {

// Rows of x are packed into a panel, in granules; tasks multiply ranges of weight rows with
// ranges of granules. A result's bits depend on its row of x and its row of w alone.
struct Engine {
    const char *name;
    int granule;  // rows of x packed together
    int unit;     // weight rows below which a task is not cut

    // The panel of `rows` rows for products with weights like w.
    std::size_t (*panel_bytes)(std::int64_t rows, const Weight &w);

    // Packs granules first .. last of `count` rows of w.columns values.
    void (*pack)(const float *const *rows, std::int64_t count, const Weight &w,
                 std::int64_t first, std::int64_t last, void *panel);

    // Most weight rows, of each of `matrices`, that one task may take.
    std::int64_t (*task_rows)(std::int64_t rows, std::int64_t columns, int matrices);

    // x W^T for weight rows n0 .. n1 and granules g0 .. g1 of a panel of `count` rows.
    void (*multiply)(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0,
                     std::int64_t n1, std::int64_t g0, std::int64_t g1, const Store &to);

    // The same for gate and up, and the activation of both.
    void (*gated)(const Weight &gate, const Weight &up, const void *panel, std::int64_t count,
                  std::int64_t n0, std::int64_t n1, std::int64_t g0, std::int64_t g1,
                  const Activation &activation, const Store &to);

    // Whether weights may lie turned (turned.h).
    bool turned = false;

    // Whether `gated` packs its results for the product that follows when Store says so. Tasks then
    // begin at multiples of PART.
    bool hands_on = false;

    // The bytes of `pack` for columns n0 .. n1 of rows m0 .. m1 alone; row m0 begins at `values`, the
    // others `stride` values apart. n0 is a multiple of PART, and n1, unless it is like.columns.
    // Null where only whole rows are packed.
    void (*pack_part)(const float *values, std::int64_t stride, std::int64_t m0, std::int64_t m1,
                      std::int64_t n0, std::int64_t n1, const Onward &to) = nullptr;
};

// Columns of what lies between gate and up and down that are handed on at a time.
constexpr int PART = 64;

// Rows of x that fit the partial sums of one task.
constexpr std::int64_t MAX_ROWS = 512;

// One family per instruction set: floats by multiply-add, integers with activations quantised row
// by row. Null where it was not compiled in, or cannot do the format.
const Engine *plain_engine(Format format);
const Engine *neon_engine(Format format);
const Engine *avx2_engine(Format format);
const Engine *avx2_int_engine(Format format);  // what that one is for integers
const Engine *avx512_engine(Format format);
const Engine *avx_vnni_engine(Format format);     // integers only
const Engine *avx512_vnni_engine(Format format);  // integers only
const Engine *amx_engine(Format format);  // bf16 only

// Other arithmetic, for those who ask: activations to 2^-17 only, integers widened to fp32, and
// bf16 weights with activations rounded to bf16.
const Engine *amx_fast_engine(Format format);
const Engine *avx512_exact_engine(Format format);
const Engine *avx2_exact_engine(Format format);
const Engine *plain_exact_engine(Format format);
const Engine *amx_bf16_engine(Format format);
const Engine *avx512_bf16_engine(Format format);
const Engine *avx512_rounded_engine(Format format);
const Engine *avx2_rounded_engine(Format format);
const Engine *neon_rounded_engine(Format format);
const Engine *plain_rounded_engine(Format format);

// The engine for `format` on `path`: "auto" (the best that this processor has), "fast", "exact" or
// "bf16" (the best of the other arithmetic), or the name of a family, or of the next one below it.
// Throws std::invalid_argument for a path that is unknown or that this processor lacks.
const Engine &choose_engine(Format format, const char *path);

}  // namespace headrace
