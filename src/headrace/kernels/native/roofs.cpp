#include "roofs.h"

#include <atomic>
#include <cstring>

#include "features.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace headrace {
namespace {

constexpr std::size_t STRETCH = 1 << 20;
constexpr int CHAINS = 12;  // independent, so that latency hides; with operands they fit registers

// A strand's rounds of CHAINS multiply-adds; returns a value that depends on all of them.
using Strand = float (*)(std::int64_t steps);

struct Burner {
    Strand strand;
    int flops;  // of one multiply-add
};

std::uint64_t read_plain(const char *at, std::size_t bytes) {
    std::uint64_t sums[8] = {};
    std::size_t i = 0;
    for (; i + 64 <= bytes; i += 64) {
        std::uint64_t words[8];
        std::memcpy(words, at + i, 64);
        for (int k = 0; k < 8; ++k) sums[k] += words[k];
    }
    std::uint64_t sum = 0;
    for (; i < bytes; ++i) sum += static_cast<unsigned char>(at[i]);
    for (std::uint64_t s : sums) sum += s;
    return sum;
}

[[maybe_unused]] float burn_plain(std::int64_t steps) {
    float chains[CHAINS] = {};
    volatile float given = 0.5f;
    const float factor = given, term = given;
    for (std::int64_t i = 0; i < steps; ++i) {
        for (float &chain : chains) chain = chain * factor + term;
    }
    float sum = 0;
    for (float chain : chains) sum += chain;
    return sum;
}

#if defined(__x86_64__)

#define HEADRACE_TARGET(set) __attribute__((target(set)))

HEADRACE_TARGET("avx512f")
std::uint64_t read_avx512(const char *at, std::size_t bytes) {
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    std::size_t i = 0;
    for (; i + 256 <= bytes; i += 256) {
        a = _mm512_add_epi64(a, _mm512_loadu_si512(at + i));
        b = _mm512_add_epi64(b, _mm512_loadu_si512(at + i + 64));
        c = _mm512_add_epi64(c, _mm512_loadu_si512(at + i + 128));
        d = _mm512_add_epi64(d, _mm512_loadu_si512(at + i + 192));
    }
    std::uint64_t words[8], sum = read_plain(at + i, bytes - i);
    _mm512_storeu_si512(words, _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d)));
    for (std::uint64_t word : words) sum += word;
    return sum;
}

HEADRACE_TARGET("avx512f")
float burn_avx512(std::int64_t steps) {
    __m512 chains[CHAINS];
    volatile float given = 0.5f;
    const __m512 factor = _mm512_set1_ps(given), term = factor;
    for (__m512 &chain : chains) chain = term;
    for (std::int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; ++k) chains[k] = _mm512_fmadd_ps(chains[k], factor, term);
    }
    float values[16], sum = 0;
    for (const __m512 &chain : chains) {
        _mm512_storeu_ps(values, chain);
        sum += values[0];
    }
    return sum;
}

HEADRACE_TARGET("avx2,fma")
float burn_avx2(std::int64_t steps) {
    __m256 chains[CHAINS];
    volatile float given = 0.5f;
    const __m256 factor = _mm256_set1_ps(given), term = factor;
    for (__m256 &chain : chains) chain = term;
    for (std::int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; ++k) chains[k] = _mm256_fmadd_ps(chains[k], factor, term);
    }
    float sum = 0;
    for (const __m256 &chain : chains) sum += _mm256_cvtss_f32(chain);
    return sum;
}

HEADRACE_TARGET("avx512f,avx512vnni")
float dot_avx512(std::int64_t steps) {
    __m512i chains[CHAINS];
    volatile int given = 0x01010101;
    const __m512i bytes = _mm512_set1_epi32(given);
    for (__m512i &chain : chains) chain = bytes;
    for (std::int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; ++k) chains[k] = _mm512_dpbusd_epi32(chains[k], bytes, bytes);
    }
    std::int32_t values[16];
    float sum = 0;
    for (const __m512i &chain : chains) {
        _mm512_storeu_si512(values, chain);
        sum += static_cast<float>(values[0]);
    }
    return sum;
}

HEADRACE_TARGET("avx512f,avx512bf16")
float dot_bf16(std::int64_t steps) {
    __m512 chains[CHAINS];
    volatile int given = 0x3c003c00;  // two small numbers
    const auto pairs = (__m512bh)_mm512_set1_epi32(given);
    for (__m512 &chain : chains) chain = _mm512_setzero_ps();
    for (std::int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; ++k) chains[k] = _mm512_dpbf16_ps(chains[k], pairs, pairs);
    }
    float values[16], sum = 0;
    for (const __m512 &chain : chains) {
        _mm512_storeu_ps(values, chain);
        sum += values[0];
    }
    return sum;
}

Burner floats() {
    const Features &f = features();
    if (f.avx512f) return {burn_avx512, 32};
    if (f.avx2 && f.fma) return {burn_avx2, 16};
    return {burn_plain, 2};
}

Burner bytes() {
    if (features().avx512_vnni) return {dot_avx512, 128};
    return {nullptr, 0};
}

Burner pairs() {
    if (features().avx512_bf16) return {dot_bf16, 64};
    return {nullptr, 0};
}

std::uint64_t read(const char *at, std::size_t count) {
    return features().avx512f ? read_avx512(at, count) : read_plain(at, count);
}

#elif defined(__aarch64__)

float burn_neon(std::int64_t steps) {
    float32x4_t chains[CHAINS];
    volatile float given = 0.5f;
    const float32x4_t factor = vdupq_n_f32(given), term = factor;
    for (float32x4_t &chain : chains) chain = term;
    for (std::int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
        for (int k = 0; k < CHAINS; ++k) chains[k] = vfmaq_f32(term, chains[k], factor);
    }
    float sum = 0;
    for (const float32x4_t &chain : chains) sum += vgetq_lane_f32(chain, 0);
    return sum;
}

Burner floats() { return {burn_neon, 8}; }
Burner bytes() { return {nullptr, 0}; }
Burner pairs() { return {nullptr, 0}; }
std::uint64_t read(const char *at, std::size_t count) { return read_plain(at, count); }

#else

Burner floats() { return {burn_plain, 2}; }
Burner bytes() { return {nullptr, 0}; }
Burner pairs() { return {nullptr, 0}; }
std::uint64_t read(const char *at, std::size_t count) { return read_plain(at, count); }

#endif

double burn(Team &team, int threads, std::int64_t steps, const Burner &burner) {
    if (burner.strand == nullptr) return 0;
    team.share(threads, [&](std::int64_t) {
        volatile float kept = burner.strand(steps);
        (void)kept;
    });
    return static_cast<double>(burner.flops) * CHAINS * static_cast<double>(steps) * threads;
}

}  // namespace

std::uint64_t read_all(Team &team, const void *data, std::size_t bytes) {
    const auto *first = static_cast<const char *>(data);
    const auto stretches = static_cast<std::int64_t>((bytes + STRETCH - 1) / STRETCH);
    std::atomic<std::uint64_t> sum{0};
    team.share(stretches, [&](std::int64_t i) {
        const std::size_t start = static_cast<std::size_t>(i) * STRETCH;
        sum += read(first + start, bytes - start < STRETCH ? bytes - start : STRETCH);
    });
    return sum;
}

double multiply_floats(Team &team, int threads, std::int64_t steps) {
    return burn(team, threads, steps, floats());
}

double multiply_bytes(Team &team, int threads, std::int64_t steps) {
    return burn(team, threads, steps, bytes());
}

double multiply_pairs(Team &team, int threads, std::int64_t steps) {
    return burn(team, threads, steps, pairs());
}

}  // namespace headrace
