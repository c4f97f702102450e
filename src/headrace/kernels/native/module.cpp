// Python's view of the kernels: checks shapes, picks a path, releases the GIL. No arithmetic here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bind_attention.h"
#include "bind_matrix.h"
#include "bind_roofs.h"
#include "bind_rows.h"
#include "features.h"
#include "gather.h"
#include "widen.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Halves = nb::ndarray<const std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<std::string> cpu_features() {
    const headrace::Features &f = headrace::features();
    std::vector<std::string> names;
    if (f.avx2) names.emplace_back("avx2");
    if (f.fma) names.emplace_back("fma");
    if (f.f16c) names.emplace_back("f16c");
    if (f.avx512f) names.emplace_back("avx512f");
    if (f.avx512bw) names.emplace_back("avx512bw");
    if (f.avx512_vnni) names.emplace_back("avx512_vnni");
    if (f.avx_vnni) names.emplace_back("avx_vnni");
    if (f.avx512_bf16) names.emplace_back("avx512_bf16");
    if (f.amx_bf16) names.emplace_back("amx_bf16");
    if (f.neon) names.emplace_back("neon");
    return names;
}

headrace::Widen choose(const std::string &path, bool usable, headrace::Widen fast,
                       headrace::Widen plain) {
    if (path == "auto") return usable ? fast : plain;
    if (path == "plain") return plain;
    if (path == "avx2" && usable) return fast;
    throw std::invalid_argument("path: expected auto, plain or a path this processor has, got " +
                                path);
}

void widen(const Halves &source, const Floats &out, headrace::Widen kernel) {
    if (source.shape(0) != out.shape(0)) {
        throw std::invalid_argument("widen: expected out of the same length, got " +
                                    std::to_string(source.shape(0)) + " and " +
                                    std::to_string(out.shape(0)));
    }
    const std::uint16_t *from = source.data();
    float *to = out.data();
    const std::size_t count = source.shape(0);
    nb::gil_scoped_release release;
    kernel(from, to, count);
}

void widen_bf16(const Halves &source, const Floats &out, const std::string &path) {
    widen(source, out,
          choose(path, headrace::features().avx2, headrace::widen_bf16_avx2,
                 headrace::widen_bf16_plain));
}

void widen_fp16(const Halves &source, const Floats &out, const std::string &path) {
    const headrace::Features &f = headrace::features();
    widen(source, out,
          choose(path, f.avx2 && f.f16c, headrace::widen_fp16_avx2, headrace::widen_fp16_plain));
}

}  // namespace

NB_MODULE(_native, module) {
    bind_matrix(module);
    bind_rows(module);
    bind_attention(module);
    bind_roofs(module);
    bind_gather(module);
    module.def("cpu_features", &cpu_features);
    module.def("widen_bf16", &widen_bf16, "source"_a.noconvert(), "out"_a.noconvert(),
               "path"_a = "auto");
    module.def("widen_fp16", &widen_fp16, "source"_a.noconvert(), "out"_a.noconvert(),
               "path"_a = "auto");
}
