#include "engine.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "vec_avx2.h"

#include "turn_avx2.h"

#include <cstring>

namespace headrace {
namespace {

// Bytes that four at a time are multiplied and added to a lane of sums.
//
// The instruction takes unsigned by signed bytes and adds neighbours in 16 bits, saturating: so
// signed weights go in as their absolute values, with their signs moved to x (both at most 127 in
// size, or 128 by 127: the pair fits), and nibbles as they are. Written as assembly, so that the
// compiler does not begin all products of a step before it ends one: it has no registers for that.
struct Ints {
    using W = __m256i;
    using T = __m256i;

    // What is added to a stored integer, and so to its zero; the format that is moved by `Turn`.
    static constexpr Format moved = Format::u8;
    static constexpr int shift(Format format) { return format == moved ? -128 : 0; }

    // Sums that need not wait for each other: an addition takes no longer than its turn.
    static constexpr int chains(int) { return 1; }

    static T set(std::int32_t value) { return _mm256_set1_epi32(value); }
    static T load(const std::int32_t *p) { return Turn::load(p); }
    static T times(T a, T b) { return _mm256_mullo_epi32(a, b); }
    static T add(T a, T b) { return _mm256_add_epi32(a, b); }
    static Vec::T to_float(T a) { return _mm256_cvtepi32_ps(a); }

    static W words(const std::uint8_t *p) { return Turn::load(p); }
    static W four(const std::int8_t *p) {
        std::int32_t word;
        std::memcpy(&word, p, sizeof word);
        return _mm256_set1_epi32(word);
    }

    template <Format F>
    static T dot(T sum, W w, W x) {
        const T ones = _mm256_set1_epi16(1);
        T pairs;
        if (F == Format::u4) {
            __asm__("vpmaddubsw %2, %3, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
                    : "+x"(sum), "=&x"(pairs)
                    : "x"(x), "x"(w), "x"(ones));
        } else {
            __asm__("vpsignb %2, %3, %1\n\tvpmaddubsw %1, %4, %1\n\tvpmaddwd %5, %1, %1\n\t"
                    "vpaddd %1, %0, %0"
                    : "+x"(sum), "=&x"(pairs)
                    : "x"(w), "x"(x), "x"(_mm256_abs_epi8(w)), "x"(ones));
        }
        return sum;
    }
    template <Format F>
    static T dot_four(T sum, W w, const std::int8_t *x) {
        return dot<F>(sum, w, four(x));
    }

    // Pairs of nibbles by bytes are so small (2 x 15 x 127) that eight of them add up in 16 bits.
    static constexpr bool narrow(Format format) { return format == Format::u4; }
    static constexpr int NARROW_STEPS = 8;
    static T dot_narrow(T sum, W w, W x) {
        T pairs;
        __asm__("vpmaddubsw %2, %3, %1\n\tvpaddw %1, %0, %0"
                : "+x"(sum), "=&x"(pairs)
                : "x"(x), "x"(w));
        return sum;
    }
    static T widened(T narrow) { return _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)); }
};

}  // namespace
}  // namespace headrace

#include "int_turned.h"

namespace headrace {

const Engine *avx2_int_engine(Format format) {
    return is_float(format) ? nullptr : int_engine_of(format, "avx2");
}

}  // namespace headrace

#else

const headrace::Engine *headrace::avx2_int_engine(Format) { return nullptr; }

#endif
