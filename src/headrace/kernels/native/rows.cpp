#include "rows.h"

#include <stdexcept>
#include <string>

#include "features.h"

namespace headrace {

const RowOps &choose_rows(const char *path) {
    const Features &f = features();
    const bool avx2 = f.avx2 && f.fma && f.f16c;
    const struct {
        const char *name;
        const RowOps *(*ops)();  // called only where usable: to fill the table takes its instructions
        bool usable;
    } all[] = {
        {"avx512", avx512_rows, avx2 && f.avx512f && f.avx512bw},
        {"avx2", avx2_rows, avx2},
        {"neon", neon_rows, f.neon},
        {"plain", plain_rows, true},
    };
    const std::string wanted = path;
    for (const auto &each : all) {
        if (!each.usable || (wanted != "auto" && wanted != each.name)) continue;
        if (const RowOps *ops = each.ops()) return *ops;
    }
    throw std::invalid_argument("path: expected auto, plain or a path this processor has, got " +
                                wanted);
}

}  // namespace headrace
