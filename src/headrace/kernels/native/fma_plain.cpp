#include "vec_plain.h"

#include "fma_engine.h"

namespace headrace {

const Engine *plain_engine(Format format) { return engine_of(format, "plain"); }

}  // namespace headrace
