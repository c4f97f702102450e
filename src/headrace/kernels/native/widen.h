// 16-bit weights -> fp32. Every path gives the same bits for every one of the 65536 inputs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

using Widen = void (*)(const std::uint16_t *source, float *out, std::size_t count);

void widen_bf16_plain(const std::uint16_t *source, float *out, std::size_t count);
void widen_fp16_plain(const std::uint16_t *source, float *out, std::size_t count);

// Present on every build, callable only where features() says avx2 (and f16c for fp16).
void widen_bf16_avx2(const std::uint16_t *source, float *out, std::size_t count);
void widen_fp16_avx2(const std::uint16_t *source, float *out, std::size_t count);

}  // namespace headrace
