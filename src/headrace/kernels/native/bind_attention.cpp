// Python's view of attention. Tensors arrive as addresses and strides: attention.py has checked
// types, shapes and layouts.
#include "bind_attention.h"

#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "address.h"
#include "attention.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace headrace;

namespace {

constexpr const char *NAMES[] = {"f32", "bf16", "f16", "i8"};
constexpr std::int64_t ITEM_BYTES[] = {4, 2, 2, 1};

KvFormat format_of(const std::string &name) {
    for (int i = 0; i < 4; ++i) {
        if (name == NAMES[i]) return static_cast<KvFormat>(i);
    }
    throw std::invalid_argument("format: expected f32, bf16, f16 or i8, got " + name);
}

KvCache make_cache(const std::string &format, Address keys, Address values, Address key_scales,
                   Address value_scales, std::int64_t block, std::int64_t heads,
                   std::int64_t width) {
    const KvFormat stored = format_of(format);
    const std::int64_t item = ITEM_BYTES[static_cast<int>(stored)];
    return {stored, at<char>(keys), at<char>(values), at<float>(key_scales),
            at<float>(value_scales), block, heads, item, width * item, keys != values};
}

Attention make_attention(const KvCache &cache, Address q, std::int64_t q_stride, Address out,
                         std::int64_t out_stride, std::int64_t group, std::int64_t d,
                         std::int64_t dv) {
    Attention a;
    a.cache = cache;
    a.q = at<const float>(q);
    a.q_stride = q_stride;
    a.out = at<float>(out);
    a.out_stride = out_stride;
    a.group = group;
    a.d = d;
    a.dv = dv;
    return a;
}

// `pieces` int64 [count, 4]: first row, rows, position, first entry of `tables`.
void run_attend(Attention &a, Address pieces, std::int64_t count, Address tables, double scale,
                std::int64_t window, bool causal, Address sinks, Address memory,
                std::size_t bytes, int threads, const std::string &path) {
    const AttentionKernel &kernel = choose_attention(path.c_str());
    a.scale = static_cast<float>(scale);
    a.window = window;
    a.causal = causal;
    a.sinks = at<const float>(sinks);
    nb::gil_scoped_release release;
    a.pieces.clear();
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t *p = at<const std::int64_t>(pieces) + 4 * i;
        a.pieces.push_back({p[0], p[1], p[2], at<const std::int32_t>(tables) + p[3]});
    }
    Team team(threads);
    attend(team, threads, kernel, a, at<float>(memory), bytes);
}

void run_append(const KvCache &cache, Address k, std::int64_t k_stride, Address v,
                std::int64_t v_stride, std::int64_t rows, std::int64_t d, std::int64_t dv,
                Address slots, std::int64_t capacity, int threads, const std::string &path) {
    const AttentionKernel &kernel = choose_attention(path.c_str());
    for (std::int64_t i = 0; i < rows; ++i) {
        const std::int64_t slot = at<const std::int64_t>(slots)[i];
        if (slot < 0 || slot >= capacity) {
            throw std::invalid_argument("slots: expected numbers below " +
                                        std::to_string(capacity) + ", got " + std::to_string(slot));
        }
    }
    nb::gil_scoped_release release;
    const Append a{cache,    at<const float>(k), at<const float>(v),          k_stride,
                   v_stride, rows,               d,                           dv,
                   at<const std::int64_t>(slots)};
    Team team(threads);
    append(team, kernel, a);
}

}  // namespace

void bind_attention(nb::module_ &module) {
    nb::class_<KvCache>(module, "KvCache").def_static("make", &make_cache);
    nb::class_<Attention>(module, "Attention").def_static("make", &make_attention);
    module.def("attend", &run_attend);
    module.def("append", &run_append);
    module.def(
        "attention_path",
        [](const std::string &path) { return std::string(choose_attention(path.c_str()).name); },
        "path"_a = "auto");
}
