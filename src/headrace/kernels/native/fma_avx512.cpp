#include "engine.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include "vec_avx512.h"

#include "fma_engine.h"

namespace headrace {

const Engine *avx512_engine(Format format) { return engine_of(format, "avx512"); }

}  // namespace headrace

#else

const headrace::Engine *headrace::avx512_engine(Format) { return nullptr; }

#endif
