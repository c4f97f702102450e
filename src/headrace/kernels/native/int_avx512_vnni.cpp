#include "engine.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)

#include "vec_avx2.h"

#include "int_vnni.h"

#include "int_engine.h"

namespace headrace {

const Engine *avx512_vnni_engine(Format format) {
    return is_float(format) ? nullptr : int_engine_of(format, "avx512_vnni");
}

}  // namespace headrace

#else

const headrace::Engine *headrace::avx512_vnni_engine(Format) { return nullptr; }

#endif
