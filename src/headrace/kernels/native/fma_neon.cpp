#include "engine.h"

#if defined(__aarch64__)

#include "vec_neon.h"

#include "fma_engine.h"

namespace headrace {

const Engine *neon_engine(Format format) {
    return is_float(format) ? engine_of(format, "neon") : nullptr;
}

}  // namespace headrace

#else

const headrace::Engine *headrace::neon_engine(Format) { return nullptr; }

#endif
