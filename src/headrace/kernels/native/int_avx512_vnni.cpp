#include "engine.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

#include "vec_avx512.h"

#include "turn_avx512.h"

#include <cstring>

namespace headrace {
namespace {

// Bytes that four at a time are multiplied and added to a lane of sums.
struct Ints {
    using W = __m512i;
    // Sums in the type that the instruction adds to: as __m512i, which counts as eight longs, GCC
    // copies every sum into another register and back at every step.
    using T = std::int32_t __attribute__((vector_size(64)));

    // What is added to a stored integer, and so to its zero; the format that is moved by `Turn`.
    static constexpr Format moved = Format::i8;
    static constexpr int shift(Format format) { return format == moved ? 128 : 0; }
    static constexpr bool narrow(Format) { return false; }

    // Sums that need not wait for each other, where there are few rows of x.
    static constexpr int chains(int rows) { return rows > 4 ? 1 : rows > 2 ? 2 : 4; }

    static T set(std::int32_t value) { return (T)_mm512_set1_epi32(value); }
    static T load(const std::int32_t *p) { return (T)_mm512_loadu_si512(p); }
    static T times(T a, T b) { return (T)_mm512_mullo_epi32((W)a, (W)b); }
    static T add(T a, T b) { return a + b; }
    static Vec::T to_float(T a) { return _mm512_cvtepi32_ps((W)a); }

    static W words(const std::uint8_t *p) { return _mm512_loadu_si512(p); }
    static W four(const std::int8_t *p) {
        std::int32_t word;
        std::memcpy(&word, p, sizeof word);
        return _mm512_set1_epi32(word);
    }
    template <Format>
    static T dot(T sum, W w, W x) { return (T)_mm512_dpbusd_epi32((W)sum, w, x); }

    // The same with four bytes of x for all lanes, as the instruction reads them itself. GCC 12 loads
    // them into other registers first, which costs as much as the product.
    template <Format>
    static T dot_four(T sum, W w, const std::int8_t *x) {
        using Bytes = std::int32_t __attribute__((may_alias, aligned(1)));
        __asm__("vpdpbusd %2%{1to16%}, %1, %0"
                : "+v"(sum)
                : "v"(w), "m"(*reinterpret_cast<const Bytes *>(x)));
        return sum;
    }
};

}  // namespace
}  // namespace headrace

#include "int_turned.h"

namespace headrace {

const Engine *avx512_vnni_engine(Format format) {
    return is_float(format) ? nullptr : int_engine_of(format, "avx512_vnni");
}

}  // namespace headrace

#else

const headrace::Engine *headrace::avx512_vnni_engine(Format) { return nullptr; }

#endif
