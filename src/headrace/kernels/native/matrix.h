// Nouns of the matrix kernels: weights as stored, where results go, and the gated activation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

// i8: signed bytes. u8 and u4: unsigned, packed from the low bits of 32-bit words up.
enum class Format { f32, bf16, f16, i8, u8, u4 };

constexpr bool is_float(Format format) { return format <= Format::f16; }

// How a weight without zero points stores zero.
constexpr int zero_of(Format format) {
    return format == Format::u8 ? 128 : format == Format::u4 ? 8 : 0;
}

// A vector of floats as stored.
struct Values {
    const void *data = nullptr;
    Format format = Format::f32;

    const void *at(std::int64_t i) const {
        return static_cast<const char *>(data) + i * (format == Format::f32 ? 4 : 2);
    }
};

// A weight [rows, columns], rows `row_bytes` apart; bias [rows] or null. An integer q of row n
// and column c means scales[n, g] (q - zero), g = c / group. `zeros` holds a zero for each scale,
// as stored (null: the same for all): for i8 signed bytes [rows, groups], else packed along rows
// in 32-bit words [rows / per word, groups]. The first `turned` rows, whole groups of
// them, were rearranged, with their scales: see turned.h.
struct Weight {
    Format format = Format::f32;
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    std::size_t row_bytes = 0;
    const void *data = nullptr;
    Values bias;
    Values scales;
    const void *zeros = nullptr;
    std::int64_t group = 0;
    std::int64_t turned = 0;

    // Where row n begins; if turned, the group of rows that begins with it.
    const char *row(std::int64_t n) const {
        return static_cast<const char *>(data) + static_cast<std::size_t>(n) * row_bytes;
    }
    std::int64_t groups() const { return (columns + group - 1) / group; }

    int zero(std::int64_t n, std::int64_t g) const {
        if (zeros == nullptr) return zero_of(format);
        if (format == Format::i8) return static_cast<const std::int8_t *>(zeros)[n * groups() + g];
        const int bits = format == Format::u4 ? 4 : 8, per_word = 32 / bits;
        const std::uint32_t word =
            static_cast<const std::uint32_t *>(zeros)[n / per_word * groups() + g];
        return static_cast<int>(word >> n % per_word * bits & ((1u << bits) - 1));
    }
};

// Whether rows of x that were packed for one weight serve the other as well.
inline bool packed_alike(const Weight &a, const Weight &b) {
    return a.format == b.format && a.columns == b.columns && a.group == b.group &&
           (a.zeros == nullptr) == (b.zeros == nullptr);
}

// Columns of an activation row that share a scale on the integer path: those of a weight's group,
// but not more than this, so that one large value does not coarsen a whole row.
constexpr std::int64_t MOST_SHARED = 64;

inline std::int64_t shared_columns(const Weight &w) {
    return w.group < MOST_SHARED ? w.group : MOST_SHARED;
}

struct Engine;

// A panel of `count` rows that takes results as they are made, packed by `engine` for products with
// weights like `like`.
struct Onward {
    const Engine *engine = nullptr;
    const Weight *like = nullptr;
    std::int64_t count = 0;
    void *panel = nullptr;
};

// Result (i, n) goes to rows[i][n]: stored, or added with the row's gate (1 when null). From gated
// tasks that hand on (engine.h) it goes to a panel instead where there is one.
struct Store {
    float *const *rows = nullptr;
    const float *gates = nullptr;
    bool add = false;
    const Onward *onward = nullptr;
};

// silu(alpha g) g-wise: out = g sigmoid(alpha g) (u + shift), with g <= limit and |u| <= limit.
struct Activation {
    float alpha = 1.0f;
    float shift = 0.0f;
    float limit = 0.0f;  // 0: none
};

}  // namespace headrace
