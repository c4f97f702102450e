// How a value of x is kept in a panel of floats: as it is, or rounded to bf16. Include after a
// vector layer.
#pragma once

#include <cstdint>

namespace headrace {
namespace {

struct AsIs {
    static Vec::T of(Vec::T value) { return value; }
};

// To nearest, ties to even: where no instruction multiplies bf16, floats of as few bits do.
struct Rounded {
    static Vec::T of(Vec::T value) {
        std::uint16_t narrow[Vec::width];
        Vec::narrow_bf16(narrow, value);
        return Vec::widen_bf16(narrow);
    }
};

}  // namespace
}  // namespace headrace
