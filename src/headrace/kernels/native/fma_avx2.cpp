#include "engine.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "vec_avx2.h"

#include "fma_engine.h"

namespace headrace {

const Engine *avx2_engine(Format format) { return engine_of(format, "avx2"); }

}  // namespace headrace

#else

const headrace::Engine *headrace::avx2_engine(Format) { return nullptr; }

#endif
