// Python's view of the matrix kernels. Tensors arrive as addresses and strides: the wrappers in
// matrix.py have checked types, shapes and layouts, which costs less there than an exchange of
// array descriptors here.
#include "bind_matrix.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "address.h"
#include "linear.h"
#include "turned.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace headrace;

namespace {

constexpr const char *NAMES[] = {"f32", "bf16", "f16", "i8", "u8", "u4"};

Format format_of(const std::string &name) {
    for (int i = 0; i < 6; ++i) {
        if (name == NAMES[i]) return static_cast<Format>(i);
    }
    throw std::invalid_argument("format: expected f32, bf16, f16, i8, u8 or u4, got " + name);
}

Weight make_weight(Address data, std::int64_t rows, std::int64_t columns,
                   const std::string &format, Address bias, const std::string &bias_format,
                   bool turned) {
    Weight w;
    w.format = format_of(format);
    w.rows = rows;
    w.columns = columns;
    w.row_bytes = static_cast<std::size_t>(columns) * (w.format == Format::f32 ? 4 : 2);
    w.data = at<const void>(data);
    w.bias = {at<const void>(bias), format_of(bias_format)};
    w.turned = turned ? turnable(rows, w.row_bytes) : 0;
    return w;
}

constexpr std::int64_t MOST_QUANTISED = 1 << 17;

Weight make_quantised(Address data, std::int64_t rows, std::int64_t columns,
                      std::size_t row_bytes, const std::string &format, Address scales,
                      const std::string &scale_format, Address zeros, std::int64_t group,
                      Address bias, const std::string &bias_format, bool turned) {
    Weight w = make_weight(data, rows, columns, format, bias, bias_format, false);
    w.row_bytes = row_bytes;
    w.turned = turned ? turnable(rows, row_bytes) : 0;
    w.scales = {at<const void>(scales), format_of(scale_format)};
    w.zeros = at<const void>(zeros);
    w.group = group;
    const bool shared = group >= columns || group == 32 || group == 64 || group % 128 == 0;
    if (columns > MOST_QUANTISED) {  // tables of a task's scales hold as many
        throw std::invalid_argument("columns of integers: expected at most " +
                                    std::to_string(MOST_QUANTISED) + ", got " +
                                    std::to_string(columns));
    }
    if (columns < 1 || group < 1 || !shared || w.groups() > 1024) {
        throw std::invalid_argument("group: expected 32, 64, a multiple of 128 or all columns, got " +
                                    std::to_string(group));
    }
    return w;
}

// Gate and up share the packed rows of x.
void check_pair(const Weight &gate, const Weight &up) {
    if (!packed_alike(gate, up) || gate.rows != up.rows) {
        throw std::invalid_argument(
            "gate and up: expected one format, shape, group and kind of zeros");
    }
}

// What lies between has as many values for gate and up as for down, and what comes out as what
// goes in.
void check_expert(const ExpertWeights &w) {
    check_pair(w.gate, w.up);
    if (w.gate.rows != w.down.columns || w.gate.columns != w.down.rows) {
        throw std::invalid_argument("expert: expected down [" + std::to_string(w.gate.columns) +
                                    ", " + std::to_string(w.gate.rows) + "], as gate turned, got [" +
                                    std::to_string(w.down.rows) + ", " +
                                    std::to_string(w.down.columns) + "]");
    }
}

// How a call runs: threads, path, and memory lent to it.
struct Setting {
    int threads;
    std::string path;
    Address scratch;
    std::size_t scratch_bytes;

    Scratch memory() const { return {at<char>(scratch), scratch_bytes}; }
};

void run_linear(Address x, std::int64_t rows, std::int64_t x_stride, const Weight &w, Address out,
                std::int64_t out_stride, bool add, const Setting &setting) {
    const Engine &engine = choose_engine(w.format, setting.path.c_str());
    nb::gil_scoped_release release;
    std::vector<const float *> from(static_cast<std::size_t>(rows));
    std::vector<float *> to(static_cast<std::size_t>(rows));
    for (std::int64_t i = 0; i < rows; ++i) {
        from[i] = at<const float>(x) + i * x_stride;
        to[i] = at<float>(out) + i * out_stride;
    }
    Team team(setting.threads);
    linear(team, engine, from.data(), rows, w, {to.data(), nullptr, add}, setting.memory());
}

// One micro-batch: x and hidden [count, D] with strides; routed rows and gates sorted by expert
// with their starts, or nulls where every row visits the one expert.
using MicroBatch = std::tuple<Address, std::int64_t, Address, std::int64_t, Address, Address,
                              Address, std::int64_t>;

// The rows that visit one expert.
struct Visitors {
    std::vector<const float *> x;
    std::vector<float *> hidden;
    std::vector<float> gates;
    bool dense = false;

    void gather(const std::vector<MicroBatch> &batches, std::int64_t expert) {
        x.clear();
        hidden.clear();
        gates.clear();
        for (const auto &[from, stride, to, to_stride, rows, weights, starts, count] : batches) {
            dense = starts == 0;
            const std::int64_t first = dense ? 0 : at<const std::int64_t>(starts)[expert];
            const std::int64_t last = dense ? count : at<const std::int64_t>(starts)[expert + 1];
            for (std::int64_t i = first; i < last; ++i) {
                const std::int64_t row = dense ? i : at<const std::int32_t>(rows)[i];
                x.push_back(at<const float>(from) + row * stride);
                hidden.push_back(at<float>(to) + row * to_stride);
                if (!dense) gates.push_back(at<const float>(weights)[i]);
            }
        }
    }
    std::int64_t count() const { return static_cast<std::int64_t>(x.size()); }
    Store store() const { return {hidden.data(), dense ? nullptr : gates.data(), true}; }
};

// Experts of one page or of a whole layer; gate and up of an expert are stored alike. A class of
// its own, so that a call does not copy them.
struct ExpertList {
    std::vector<ExpertWeights> all;
};

// `rows` of each micro-batch, whatever its own count.
void run_experts(std::vector<MicroBatch> batches, const std::vector<std::int64_t> &rows,
                 std::int64_t first, const ExpertList &weights, const Activation &activation,
                 const Setting &setting) {
    nb::gil_scoped_release release;
    for (std::size_t i = 0; i < batches.size(); ++i) std::get<7>(batches[i]) = rows.at(i);
    std::vector<Visitors> visitors(weights.all.size());
    std::vector<Visit> visits;
    for (std::size_t e = 0; e < weights.all.size(); ++e) {
        const ExpertWeights &w = weights.all[e];
        visitors[e].gather(batches, first + static_cast<std::int64_t>(e));
        if (visitors[e].count() == 0) continue;
        visits.push_back({&w, &choose_engine(w.gate.format, setting.path.c_str()),
                          &choose_engine(w.down.format, setting.path.c_str()),
                          visitors[e].x.data(), visitors[e].count(), visitors[e].store()});
    }
    Team team(setting.threads);
    experts(team, visits, activation, setting.memory());
}

// inter [visitors, width of the part] at `inter` with its stride.
void run_expert_up(const std::vector<MicroBatch> &batches, std::int64_t number,
                   const Weight &gate, const Weight &up, Address inter, std::int64_t stride,
                   const Activation &activation, const Setting &setting) {
    check_pair(gate, up);
    const Engine &engine = choose_engine(gate.format, setting.path.c_str());
    nb::gil_scoped_release release;
    Team team(setting.threads);
    Visitors visitors;
    visitors.gather(batches, number);
    std::vector<float *> to(visitors.x.size());
    for (std::size_t i = 0; i < to.size(); ++i) {
        to[i] = at<float>(inter) + static_cast<std::int64_t>(i) * stride;
    }
    gated(team, engine, visitors.x.data(), visitors.count(), gate, up, activation,
          {to.data(), nullptr, false}, setting.memory());
}

void run_expert_down(const std::vector<MicroBatch> &batches, std::int64_t number,
                     Address inter, std::int64_t stride, const Weight &down,
                     const Setting &setting) {
    const Engine &engine = choose_engine(down.format, setting.path.c_str());
    nb::gil_scoped_release release;
    Team team(setting.threads);
    Visitors visitors;
    visitors.gather(batches, number);
    std::vector<const float *> from(visitors.x.size());
    for (std::size_t i = 0; i < from.size(); ++i) {
        from[i] = at<const float>(inter) + static_cast<std::int64_t>(i) * stride;
    }
    linear(team, engine, from.data(), visitors.count(), down, visitors.store(),
           setting.memory());
}

// Turns a weight where it lies, unless its shape or the path's engine cannot. Says whether it did.
bool run_turn(Address data, Address scales, const Weight &w, const std::string &path,
              int threads) {
    if (!choose_engine(w.format, path.c_str()).turned) return false;
    if (turnable(w.rows, w.row_bytes) == 0) return false;
    nb::gil_scoped_release release;
    Team team(threads);
    turn(team, w, at<void>(data), at<void>(scales));
    return true;
}

std::string path_of(const std::string &format, const std::string &path) {
    return choose_engine(format_of(format), path.c_str()).name;
}

}  // namespace

void bind_matrix(nb::module_ &module) {
    nb::class_<Weight>(module, "Weight").def_static(
        "make", &make_weight, "data"_a, "rows"_a, "columns"_a, "format"_a, "bias"_a = 0,
        "bias_format"_a = "f32", "turned"_a = false).def_static(
        "quantised", &make_quantised);
    nb::class_<ExpertWeights>(module, "ExpertWeights")
        .def("__init__", [](ExpertWeights *self, const Weight &gate, const Weight &up,
                            const Weight &down) { new (self) ExpertWeights{gate, up, down}; });
    nb::class_<ExpertList>(module, "ExpertList")
        .def("__init__", [](ExpertList *self, const std::vector<ExpertWeights> &all) {
            for (const ExpertWeights &w : all) {
                check_expert(w);
                if (w.gate.columns != all.front().gate.columns) {
                    throw std::invalid_argument("experts: expected one width of what goes in");
                }
            }
            new (self) ExpertList{all};
        });
    nb::class_<Activation>(module, "Activation")
        .def("__init__", [](Activation *self, float alpha, float shift, float limit) {
            new (self) Activation{alpha, shift, limit};
        });
    nb::class_<Setting>(module, "Setting")
        .def("__init__", [](Setting *self, int threads, const std::string &path, Address scratch,
                            std::size_t bytes) {
            new (self) Setting{threads, path, scratch, bytes};
        });
    module.def("path_of", &path_of, "format"_a, "path"_a = "auto");
    module.def("fetch", [](Address data, std::size_t bytes, int threads) {
        fetch(at<const void>(data), bytes, threads);
    });
    module.def("turn", &run_turn);
    module.def("linear", &run_linear);
    module.def("experts", &run_experts);
    module.def("expert_up", &run_expert_up);
    module.def("expert_down", &run_expert_down);
}
