#include "rows.h"

#if defined(__aarch64__)

#include "vec_neon.h"

#include "rows_kernel.h"

namespace headrace {

const RowOps *neon_rows() {
    static const RowOps ops = row_ops("neon");
    return &ops;
}

}  // namespace headrace

#else

const headrace::RowOps *headrace::neon_rows() { return nullptr; }

#endif
