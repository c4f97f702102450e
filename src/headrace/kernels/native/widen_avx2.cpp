#include "widen.h"

#if defined(__AVX2__) && defined(__F16C__)

#include <immintrin.h>

namespace headrace {

void widen_bf16_avx2(const std::uint16_t *source, float *out, std::size_t count) {
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i *>(source + i));
        const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
        _mm256_storeu_ps(out + i, _mm256_castsi256_ps(wide));
    }
    widen_bf16_plain(source + i, out + i, count - i);
}

void widen_fp16_avx2(const std::uint16_t *source, float *out, std::size_t count) {
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i *>(source + i));
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(narrow));
    }
    widen_fp16_plain(source + i, out + i, count - i);
}

}  // namespace headrace

#else

namespace headrace {

void widen_bf16_avx2(const std::uint16_t *source, float *out, std::size_t count) {
    widen_bf16_plain(source, out, count);
}

void widen_fp16_avx2(const std::uint16_t *source, float *out, std::size_t count) {
    widen_fp16_plain(source, out, count);
}

}  // namespace headrace

#endif
