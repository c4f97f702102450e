// In place of features.cpp: what the processor has, and AVX-512 as its emulation (not VNNI, which is
// written in assembly).
#define features features_of_the_processor
#include "../../../../src/headrace/kernels/native/features.cpp"
#undef features

namespace headrace {

const Features &features() {
    static const Features found = [] {
        Features f = features_of_the_processor();
        f.avx512f = f.avx512bw = f.avx512_bf16 = true;
        return f;
    }();
    return found;
}

}  // namespace headrace
