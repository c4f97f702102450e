#include "engine.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include "vec_avx512.h"

#include "turn_avx512.h"

#include "fma_turned.h"

namespace headrace {

const Engine *avx512_engine(Format format) {
    return is_float(format) ? engine_of(format, "avx512") : nullptr;
}

const Engine *avx512_rounded_engine(Format format) {
    return rounded_engine_of(format, "rounded_avx512");
}

}  // namespace headrace

#else

const headrace::Engine *headrace::avx512_engine(Format) { return nullptr; }
const headrace::Engine *headrace::avx512_rounded_engine(Format) { return nullptr; }

#endif
