#include "engine.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include "vec_avx512.h"

#include "fma_exact.h"

namespace headrace {

const Engine *avx512_exact_engine(Format format) {
    return is_float(format) ? nullptr : exact_engine_of(format, "exact_avx512");
}

}  // namespace headrace

#else

const headrace::Engine *headrace::avx512_exact_engine(Format) { return nullptr; }

#endif
