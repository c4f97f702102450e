// The vector layer on AArch64 NEON: four lanes. Compile-checked only; no such machine was at hand.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace headrace {
namespace {

struct Vec {
    static constexpr int width = 4;
    using T = float32x4_t;

    static T zero() { return vdupq_n_f32(0.0f); }
    static T set(float value) { return vdupq_n_f32(value); }
    static T load(const float *p) { return vld1q_f32(p); }
    static T load_some(const float *p, int n) {
        float padded[4] = {};
        for (int i = 0; i < n; ++i) padded[i] = p[i];
        return load(padded);
    }
    static void store(float *p, T a) { vst1q_f32(p, a); }
    static void store_some(float *p, T a, int n) {
        float all[4];
        store(all, a);
        for (int i = 0; i < n; ++i) p[i] = all[i];
    }
    static T add(T a, T b) { return vaddq_f32(a, b); }
    static T sub(T a, T b) { return vsubq_f32(a, b); }
    static T mul(T a, T b) { return vmulq_f32(a, b); }
    static T div(T a, T b) { return vdivq_f32(a, b); }
    static T fma(T a, T b, T c) { return vfmaq_f32(c, a, b); }
    static T min(T a, T b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
    static T max(T a, T b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
    static T nearest(T a) { return vrndnq_f32(a); }
    static T pow2(T a) {
        const int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(a), vdupq_n_s32(127));
        return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
    }
    static T widen_bf16(const std::uint16_t *p) {
        return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
    }
    static T widen_f16(const std::uint16_t *p) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
    }
    static T widen_bf16_some(const std::uint16_t *p, int n) {
        std::uint16_t padded[4] = {};
        for (int i = 0; i < n; ++i) padded[i] = p[i];
        return widen_bf16(padded);
    }
    static T widen_f16_some(const std::uint16_t *p, int n) {
        std::uint16_t padded[4] = {};
        for (int i = 0; i < n; ++i) padded[i] = p[i];
        return widen_f16(padded);
    }
    static T from_i8(const std::int8_t *p) {
        const float all[4] = {float(p[0]), float(p[1]), float(p[2]), float(p[3])};
        return load(all);
    }
    static T from_u8(const std::uint8_t *p) {
        const float all[4] = {float(p[0]), float(p[1]), float(p[2]), float(p[3])};
        return load(all);
    }
    // Whole numbers in [-127, 127]; anything for NaN.
    static void store_i8(std::int8_t *p, T a) {
        std::int32_t all[4];
        vst1q_s32(all, vcvtnq_s32_f32(a));
        for (int i = 0; i < 4; ++i) p[i] = static_cast<std::int8_t>(all[i]);
    }

    // Lane i: the sum of the lanes of the i-th, by the same tree for each.
    using Quad = float32x4_t;
    static Quad sum4(T a, T b, T c, T d) { return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)); }
    static Quad load4(const float *p) { return load(p); }
    static void store4(float *p, Quad a) { store(p, a); }
    static Quad add4(Quad a, Quad b) { return add(a, b); }
};

}  // namespace
}  // namespace headrace
