#include "vec_plain.h"

#include "rows_kernel.h"

namespace headrace {

const RowOps *plain_rows() {
    static const RowOps ops = row_ops("plain");
    return &ops;
}

}  // namespace headrace
