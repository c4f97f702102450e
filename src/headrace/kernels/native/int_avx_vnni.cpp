#include "engine.h"

#if defined(__AVXVNNI__)

#include "vec_avx2.h"

#include "int_vnni.h"

#include "int_engine.h"

namespace headrace {

const Engine *avx_vnni_engine(Format format) {
    return is_float(format) ? nullptr : int_engine_of(format, "avx_vnni");
}

}  // namespace headrace

#else

const headrace::Engine *headrace::avx_vnni_engine(Format) { return nullptr; }

#endif
