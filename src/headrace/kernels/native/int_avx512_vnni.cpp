#include "engine.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

#include "vec_avx512.h"

#include "turn_avx512.h"

#include <cstring>

namespace headrace {
namespace {

// Bytes that four at a time are multiplied and added to a lane.
struct Ints {
    using T = __m512i;

    static T set(std::int32_t value) { return _mm512_set1_epi32(value); }
    static T load(const void *p) { return _mm512_loadu_si512(p); }
    static T four(const std::int8_t *p) {
        std::int32_t word;
        std::memcpy(&word, p, sizeof word);
        return set(word);
    }
    static T times(T a, T b) { return _mm512_mullo_epi32(a, b); }
    static T dot(T sum, T w, T x) { return _mm512_dpbusd_epi32(sum, w, x); }
    static Vec::T to_float(T a) { return _mm512_cvtepi32_ps(a); }
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
