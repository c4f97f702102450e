#include <cstring>

#include "widen.h"

namespace headrace {
namespace {

float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// IEEE half -> float. Subnormals are made exact by one subtraction of normal numbers.
float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
    const std::uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) {  // infinity, or NaN made quiet as the hardware does
        const std::uint32_t quiet = magnitude > 0x7c00u ? 0x00400000u : 0u;
        return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 | quiet);
    }
    if (magnitude < 0x0400u) {
        const float value = from_bits(0x38800000u | magnitude << 13) - from_bits(0x38800000u);
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return from_bits(bits | sign);
    }
    return from_bits(sign | ((magnitude << 13) + 0x38000000u));
}

}  // namespace

void widen_bf16_plain(const std::uint16_t *source, float *out, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = from_bits(static_cast<std::uint32_t>(source[i]) << 16);
    }
}

void widen_fp16_plain(const std::uint16_t *source, float *out, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) out[i] = half_to_float(source[i]);
}

}  // namespace headrace
