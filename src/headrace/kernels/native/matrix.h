// Nouns of the matrix kernels: weights as stored, where results go, and the gated activation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

enum class Format { f32, bf16, f16 };

constexpr std::size_t item_bytes(Format format) { return format == Format::f32 ? 4 : 2; }

// A weight [rows, columns], rows one behind the other; bias [rows] or null.
struct Weight {
    Format format = Format::f32;
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    const void *data = nullptr;
    const void *bias = nullptr;
    Format bias_format = Format::f32;

    const char *row(std::int64_t n) const {
        return static_cast<const char *>(data) +
               static_cast<std::size_t>(n) * static_cast<std::size_t>(columns) *
                   item_bytes(format);
    }
};

// Result (i, n) goes to rows[i][n]: stored, or added with the row's gate (1 when null).
struct Store {
    float *const *rows = nullptr;
    const float *gates = nullptr;
    bool add = false;
};

// silu(alpha g) g-wise: out = g sigmoid(alpha g) (u + shift), with g <= limit and |u| <= limit.
struct Activation {
    float alpha = 1.0f;
    float shift = 0.0f;
    float limit = 0.0f;  // 0: none
};

}  // namespace headrace
