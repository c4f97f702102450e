#include "rows.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include "vec_avx512.h"

#include "rows_kernel.h"

namespace headrace {

const RowOps *avx512_rows() {
    static const RowOps ops = row_ops("avx512");
    return &ops;
}

}  // namespace headrace

#else

const headrace::RowOps *headrace::avx512_rows() { return nullptr; }

#endif
