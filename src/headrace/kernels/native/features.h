// What the processor and the operating system can do, asked once per process.
#pragma once

namespace headrace {

struct Features {
    bool avx2 = false;
    bool fma = false;
    bool f16c = false;
    bool avx512f = false;
    bool avx512bw = false;  // with dq and vl
    bool avx512_vnni = false;
    bool avx_vnni = false;
    bool avx512_bf16 = false;
    bool amx_bf16 = false;
    bool neon = false;
};

const Features &features();

// Whether this process may use AMX tiles: the processor has them (bf16) and the kernel
// granted the state. Asks for it the first time.
bool amx_allowed();

}  // namespace headrace
