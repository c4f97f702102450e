#include <cstring>

#include "narrow.h"

namespace headrace {
namespace {

std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Subnormal halves are rounded by one addition to a number whose last place is theirs.
std::uint32_t half_of(float magnitude) {
    const std::uint32_t bits = bits_of(magnitude);
    if (bits > 0x7f800000u) return 0x7e00u;   // NaN
    if (bits >= 0x477ff000u) return 0x7c00u;  // from 65520 on: infinity
    if (bits < 0x38800000u) return bits_of(magnitude + 0.5f) - bits_of(0.5f);
    return (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
}

}  // namespace

void narrow_bf16_plain(const float *source, std::uint16_t *out, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t bits = bits_of(source[i]);
        const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
        out[i] = nan ? std::uint16_t{0x7fc0}
                     : static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
}

void narrow_fp16_plain(const float *source, std::uint16_t *out, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t sign = bits_of(source[i]) >> 16 & 0x8000u;
        float magnitude;
        const std::uint32_t bits = bits_of(source[i]) & 0x7fffffffu;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        out[i] = static_cast<std::uint16_t>(sign | half_of(magnitude));
    }
}

}  // namespace headrace
