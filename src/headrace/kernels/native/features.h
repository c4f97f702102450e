// What the processor and the operating system can do, asked once per process.
#pragma once

namespace headrace {

struct Features {
    bool avx2 = false;
    bool fma = false;
    bool f16c = false;
    bool avx512f = false;
    bool avx512_bf16 = false;
    bool amx_bf16 = false;
    bool neon = false;
};

const Features &features();

}  // namespace headrace
