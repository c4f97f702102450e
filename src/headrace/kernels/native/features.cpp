#include "features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headrace {
namespace {

#if defined(__x86_64__)

// Which register files the operating system saves (XCR0); an instruction set without it faults.
unsigned long long saved_state() {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<unsigned long long>(high) << 32) | low;
}

bool bit(unsigned value, int index) { return (value >> index) & 1u; }

Features detect() {
    Features found;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return found;  // OSXSAVE
    const unsigned long long state = saved_state();
    const bool ymm = (state & 0x6) == 0x6;
    const bool zmm = (state & 0xe6) == 0xe6;
    const bool tiles = (state & 0x60000) == 0x60000;
    found.fma = ymm && bit(c, 12);
    found.f16c = ymm && bit(c, 29);
    unsigned a7 = 0, b7 = 0, c7 = 0, d7 = 0;
    if (!__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return found;
    found.avx2 = ymm && bit(b7, 5);
    found.avx512f = zmm && bit(b7, 16);
    found.avx512bw = found.avx512f && bit(b7, 30) && bit(b7, 17) && bit(b7, 31);
    found.avx512_vnni = found.avx512bw && bit(c7, 11);
    found.amx_bf16 = tiles && bit(d7, 22);
    if (a7 >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        found.avx512_bf16 = zmm && bit(a, 5);
        found.avx_vnni = ymm && bit(a, 4);
    }
    return found;
}

#else

Features detect() {
    Features found;
#if defined(__aarch64__)
    found.neon = true;
#endif
    return found;
}

#endif

}  // namespace

const Features &features() {
    static const Features found = detect();
    return found;
}

bool amx_allowed() {
#if defined(__x86_64__) && defined(__linux__)
    static const bool allowed = [] {
        constexpr long request_permission = 0x1023, tile_data = 18;
        const Features &f = features();
        if (!f.amx_bf16 || !f.avx512_bf16 || !f.avx512bw) return false;
        return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    }();
    return allowed;
#else
    return false;
#endif
}

}  // namespace headrace
