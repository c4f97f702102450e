#include "vec_plain.h"

#include "fma_exact.h"
#include "int_plain.h"

#include "int_engine.h"

namespace headrace {

const Engine *plain_engine(Format format) {
    return is_float(format) ? engine_of(format, "plain") : int_engine_of(format, "plain");
}

const Engine *plain_exact_engine(Format format) {
    return is_float(format) ? nullptr : exact_engine_of(format, "exact_plain");
}

const Engine *plain_rounded_engine(Format format) {
    return rounded_engine_of(format, "rounded_plain");
}

}  // namespace headrace
