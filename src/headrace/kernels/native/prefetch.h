// Asking for memory before it is needed. Only hints: any address will do.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {
namespace {

inline void prefetch(const void *at) { __builtin_prefetch(at, 0, 2); }

// Into the first-level cache: for what is used at once.
inline void prefetch_close(const void *at) { __builtin_prefetch(at, 0, 3); }

// `count` values of a row.
inline void ask_row(const float *row, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += 16) prefetch_close(row + i);
}

// Part `part` of `parts` of `rows` stretches of `bytes`, `stride` bytes apart.
inline void prefetch_rows(const void *first, std::size_t stride, std::int64_t rows,
                          std::size_t bytes, std::int64_t part, std::int64_t parts) {
    const auto lines = static_cast<std::int64_t>((bytes + 63) / 64);
    const std::int64_t begin = rows * lines * part / parts;
    std::int64_t left = rows * lines * (part + 1) / parts - begin;
    if (left <= 0) return;
    const auto *row =
        static_cast<const char *>(first) + static_cast<std::size_t>(begin / lines) * stride;
    for (std::int64_t line = begin % lines; left > 0; --left, ++line) {
        if (line == lines) {
            line = 0;
            row += stride;
        }
        prefetch(row + line * 64);
    }
}

}  // namespace
}  // namespace headrace
