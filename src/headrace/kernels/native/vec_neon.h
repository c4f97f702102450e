// The vector layer on AArch64 NEON: four lanes. Compile-checked only; no such machine was at hand.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace headrace {
namespace {

struct Vec {
    static constexpr int width = 4;
    static constexpr int registers = 32;
    static constexpr int bf16_vectors = 1;  // that a load of bf16 gives
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

    // 16-bit floats, rounded to nearest, ties to even.
    static void narrow_bf16(std::uint16_t *p, T a) {
        const uint32x4_t bits = vreinterpretq_u32_f32(a);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
        const uint32x4_t whole = vbslq_u32(vceqq_f32(a, a), up, vdupq_n_u32(0x7fc00000));
        vst1_u16(p, vshrn_n_u32(whole, 16));
    }
    static void narrow_f16(std::uint16_t *p, T a) {
        vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a)));
    }
    static void transpose(T (&r)[4]) {
        const float32x4x2_t ab = vtrnq_f32(r[0], r[1]), cd = vtrnq_f32(r[2], r[3]);
        r[0] = vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
        r[1] = vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
        r[2] = vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
        r[3] = vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
    }
    // Narrow rows are widened and transposed instead.
    static constexpr int TURNED = 0;
    // The largest lane, and the sum of all, by one tree.
    static float top(T a) { return vmaxvq_f32(a); }
    static float total(T a) { return vaddvq_f32(a); }

    // Lane i: the sum of the lanes of the i-th, by the same tree for each.
    using Quad = float32x4_t;
    static Quad sum4(T a, T b, T c, T d) { return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)); }
    static Quad load4(const float *p) { return load(p); }
    static void store4(float *p, Quad a) { store(p, a); }
    static Quad add4(Quad a, Quad b) { return add(a, b); }
};

}  // namespace
}  // namespace headrace
