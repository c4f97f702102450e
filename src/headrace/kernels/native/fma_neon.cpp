#include "engine.h"

#if defined(__aarch64__)

#include "vec_neon.h"

#include "fma_engine.h"

namespace headrace {

const Engine *neon_engine(Format format) {
    return is_float(format) ? engine_of(format, "neon") : nullptr;
}

const Engine *neon_rounded_engine(Format format) {
    return rounded_engine_of(format, "rounded_neon");
}

}  // namespace headrace

#else

const headrace::Engine *headrace::neon_engine(Format) { return nullptr; }
const headrace::Engine *headrace::neon_rounded_engine(Format) { return nullptr; }

#endif
