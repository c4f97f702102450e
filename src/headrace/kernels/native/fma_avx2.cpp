#include "engine.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "vec_avx2.h"

#include "fma_exact.h"

namespace headrace {

const Engine *avx2_engine(Format format) {
    return is_float(format) ? engine_of(format, "avx2") : avx2_int_engine(format);
}

const Engine *avx2_exact_engine(Format format) {
    return is_float(format) ? nullptr : exact_engine_of(format, "exact_avx2");
}

const Engine *avx2_rounded_engine(Format format) {
    return rounded_engine_of(format, "rounded_avx2");
}

}  // namespace headrace

#else

const headrace::Engine *headrace::avx2_engine(Format) { return nullptr; }
const headrace::Engine *headrace::avx2_exact_engine(Format) { return nullptr; }
const headrace::Engine *headrace::avx2_rounded_engine(Format) { return nullptr; }

#endif
