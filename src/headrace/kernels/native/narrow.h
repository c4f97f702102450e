// fp32 -> 16-bit floats, rounded to nearest, ties to even; NaN stays NaN.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

void narrow_bf16_plain(const float *source, std::uint16_t *out, std::size_t count);
void narrow_fp16_plain(const float *source, std::uint16_t *out, std::size_t count);

}  // namespace headrace
