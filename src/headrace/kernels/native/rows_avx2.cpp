#include "rows.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "vec_avx2.h"

#include "rows_kernel.h"

namespace headrace {

const RowOps *avx2_rows() {
    static const RowOps ops = row_ops("avx2");
    return &ops;
}

}  // namespace headrace

#else

const headrace::RowOps *headrace::avx2_rows() { return nullptr; }

#endif
