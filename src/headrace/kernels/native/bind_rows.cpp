// Python's view of the row kernels, and of what runs between two products of a layer in one call.
// Tensors arrive as addresses and strides; the wrappers in rows.py and draws.py have checked them.
#include "bind_rows.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "address.h"
#include "linear.h"
#include "router.h"
#include "sample.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace headrace;

namespace {

Values values(Address data, const std::string &format) {
    for (const auto &[name, form] : {std::pair{"f32", Format::f32}, std::pair{"bf16", Format::bf16},
                                     std::pair{"f16", Format::f16}}) {
        if (format == name) return {at<const void>(data), form};
    }
    throw std::invalid_argument("format: expected f32, bf16 or f16, got " + format);
}

// A matrix of fp32 rows.
struct Matrix {
    Address data;
    std::int64_t stride;

    float *row(std::int64_t i) const { return at<float>(data) + i * stride; }

    std::vector<float *> rows(std::int64_t count) const {
        std::vector<float *> all(static_cast<std::size_t>(count));
        for (std::int64_t i = 0; i < count; ++i) all[i] = row(i);
        return all;
    }
};

// How a call runs; memory is lent to it.
struct Lent {
    int threads;
    std::string path;  // of products
    std::string rows;  // of what happens to single rows
    Address scratch;
    std::size_t bytes;

    // `count` floats from the front, aligned; what is left is for products.
    float *take(std::int64_t count) {
        const std::size_t size = (static_cast<std::size_t>(count) * sizeof(float) + 63) / 64 * 64;
        if (size > bytes) {
            throw std::invalid_argument("scratch: expected at least " + std::to_string(size) +
                                        " bytes, got " + std::to_string(bytes));
        }
        float *taken = at<float>(scratch);
        scratch += size;
        bytes -= size;
        return taken;
    }
    Scratch rest() const { return {at<char>(scratch), bytes}; }
};

constexpr std::int64_t LONG = 1 << 17;  // values that take some ten microseconds

// Lets other Python threads run during a call over `values` values, where it lasts. One that is
// over at once keeps the GIL: to get it back would take longer, up to a switch interval.
class Unlocked {
 public:
    explicit Unlocked(std::int64_t values) {
        if (values >= LONG) release_.emplace();
    }

 private:
    std::optional<nb::gil_scoped_release> release_;
};

constexpr std::int64_t SHARE = 1 << 15;  // values that are worth a task of their own

// Calls use(i) for rows 0 .. count of `width` values each, on the team where it pays.
template <class Use>
void each_row(Team &team, std::int64_t count, std::int64_t width, const Use &use) {
    const std::int64_t step = std::max<std::int64_t>(1, SHARE / std::max<std::int64_t>(1, width));
    team.share((count + step - 1) / step, [&](std::int64_t i) {
        for (std::int64_t row = i * step; row < std::min(count, (i + 1) * step); ++row) use(row);
    });
}

int wanted_threads(int threads, std::int64_t count, std::int64_t width) {
    return count < 2 || count * width < 2 * SHARE ? 1 : threads;
}

void multiply(Team &team, const std::vector<const float *> &x, const Weight &w, const Matrix &out,
              bool add, const Lent &lent) {
    const auto rows = static_cast<std::int64_t>(x.size());
    const std::vector<float *> to = out.rows(rows);
    linear(team, choose_engine(w.format, lent.path.c_str()), x.data(), rows, w,
           {to.data(), nullptr, add}, lent.rest());
}

// Several products of the same rows; at once, where they share what is packed.
struct Output {
    const Weight &w;
    const Matrix &out;
};

void multiply_all(Team &team, const std::vector<const float *> &x,
                  std::initializer_list<Output> outputs, const Lent &lent) {
    const Weight &like = outputs.begin()->w;
    const auto rows = static_cast<std::int64_t>(x.size());
    std::vector<std::vector<float *>> to;
    std::vector<Product> products;
    for (const Output &o : outputs) {
        if (!packed_alike(like, o.w)) {
            for (const Output &each : outputs) multiply(team, x, each.w, each.out, false, lent);
            return;
        }
        to.push_back(o.out.rows(rows));
        products.push_back({&o.w, {to.back().data(), nullptr, false}});
    }
    linear_all(team, choose_engine(like.format, lent.path.c_str()), x.data(), rows, products,
               lent.rest());
}

// -- norms ---------------------------------------------------------------------------------------

// Row i of out = norm of row index[i] (or i) of x. Both may be the same memory without an index.
void run_norm(const Matrix &x, Address index, std::int64_t rows, std::int64_t width,
              Address weight, const std::string &format, float eps, const Matrix &out,
              int threads, const std::string &path) {
    const RowOps &ops = choose_rows(path.c_str());
    const Values w = values(weight, format);
    Unlocked unlocked(rows * width);
    Team team(wanted_threads(threads, rows, width));
    const auto *places = at<const std::int64_t>(index);
    each_row(team, rows, width, [&](std::int64_t i) {
        ops.norm(x.row(places == nullptr ? i : places[i]), w, width, eps, out.row(i));
    });
}

// -- rotary embedding ----------------------------------------------------------------------------

void run_rope(const Matrix &x, std::int64_t rows, std::int64_t heads, std::int64_t d, Address cos,
              Address sin, int threads, const std::string &path) {
    const RowOps &ops = choose_rows(path.c_str());
    Unlocked unlocked(rows * heads * d);
    Team team(wanted_threads(threads, rows, heads * d));
    each_row(team, rows, heads * d, [&](std::int64_t i) {
        ops.rotate(x.row(i), heads, d, at<const float>(cos) + i * (d / 2),
                   at<const float>(sin) + i * (d / 2));
    });
}

void run_rope_tables(Address positions, std::int64_t rows, Address frequencies, std::int64_t half,
                     float scale, Address cos, Address sin, int threads) {
    Unlocked unlocked(32 * rows * half);
    Team team(wanted_threads(threads, rows, 32 * half));
    const auto *place = at<const std::int64_t>(positions);
    const auto *frequency = at<const float>(frequencies);
    each_row(team, rows, 32 * half, [&](std::int64_t i) {
        float *c = at<float>(cos) + i * half, *s = at<float>(sin) + i * half;
        for (std::int64_t j = 0; j < half; ++j) {
            const double angle = static_cast<float>(place[i]) * frequency[j];  // rounded to fp32
            c[j] = static_cast<float>(std::cos(angle)) * scale;
            s[j] = static_cast<float>(std::sin(angle)) * scale;
        }
    });
}

// -- around attention ----------------------------------------------------------------------------

// What a layer does before attention: norm, q, k, v, their norms, clipping, rotation.
struct AttentionInputs {
    Values norm;
    Weight q, k, v;
    Values q_norm, k_norm;  // null, or of `q_width` and `k_width` values: a head, or the whole row
    std::int64_t q_width, k_width;
    std::int64_t head_dim;
    float eps;
    float clip;  // 0: none
};

void run_attention_inputs(const AttentionInputs &in, const Matrix &hidden, std::int64_t rows,
                          Address cos, Address sin, const Matrix &q, const Matrix &k,
                          const Matrix &v, Lent lent) {
    const RowOps &ops = choose_rows(lent.rows.c_str());
    Unlocked unlocked((in.q.rows + 2 * in.k.rows) * in.q.columns);
    const std::int64_t D = in.q.columns, half = in.head_dim / 2;
    const Matrix x{reinterpret_cast<Address>(lent.take(rows * D)), D};
    std::vector<const float *> normed(static_cast<std::size_t>(rows));
    for (std::int64_t i = 0; i < rows; ++i) normed[i] = x.row(i);
    Team team(lent.threads);
    each_row(team, rows, D, [&](std::int64_t i) {
        ops.norm(hidden.row(i), in.norm, D, in.eps, x.row(i));
    });
    multiply_all(team, normed, {{in.q, q}, {in.k, k}, {in.v, v}}, lent);
    const auto finish = [&](float *row, std::int64_t size, const Values &norm,
                            std::int64_t width, std::int64_t i) {
        for (std::int64_t j = 0; norm.data != nullptr && j < size; j += width) {
            ops.norm(row + j, norm, width, in.eps, row + j);
        }
        if (in.clip > 0.0f) ops.clip(row, size, in.clip);
        ops.rotate(row, size / in.head_dim, in.head_dim, at<const float>(cos) + i * half,
                   at<const float>(sin) + i * half);
    };
    each_row(team, rows, in.q.rows + 2 * in.k.rows, [&](std::int64_t i) {
        finish(q.row(i), in.q.rows, in.q_norm, in.q_width, i);
        finish(k.row(i), in.k.rows, in.k_norm, in.k_width, i);
        if (in.clip > 0.0f) ops.clip(v.row(i), in.v.rows, in.clip);
    });
}

// hidden += attended o^T; normed = norm(hidden).
struct AttentionOutput {
    Weight o;
    Values norm;
    float eps;
};

void run_attention_output(const AttentionOutput &to, const Matrix &attended, std::int64_t rows,
                          const Matrix &hidden, const Matrix &normed, const Lent &lent) {
    const RowOps &ops = choose_rows(lent.rows.c_str());
    Unlocked unlocked(to.o.rows * to.o.columns);
    Team team(lent.threads);
    std::vector<const float *> x(static_cast<std::size_t>(rows));
    for (std::int64_t i = 0; i < rows; ++i) x[i] = attended.row(i);
    multiply(team, x, to.o, hidden, true, lent);
    each_row(team, rows, to.o.rows, [&](std::int64_t i) {
        ops.norm(hidden.row(i), to.norm, to.o.rows, to.eps, normed.row(i));
    });
}

// -- router --------------------------------------------------------------------------------------

RoutingTables tables_of(const std::vector<Address> &t) {
    return {at<std::int32_t>(t.at(0)), at<float>(t.at(1)), at<std::int32_t>(t.at(2)),
            at<float>(t.at(3)), at<std::int64_t>(t.at(4))};
}

void run_route(const Weight &router, const RouterRule &rule, const Matrix &normed,
               std::int64_t rows, std::int64_t k, const std::vector<Address> &tables, Lent lent) {
    const RowOps &ops = choose_rows(lent.rows.c_str());
    Unlocked unlocked(rows * router.rows * router.columns / 4);
    const RoutingTables to = tables_of(tables);
    const std::int64_t E = router.rows;
    const Matrix scores{reinterpret_cast<Address>(lent.take(rows * E)), E};
    std::vector<const float *> x(static_cast<std::size_t>(rows));
    for (std::int64_t i = 0; i < rows; ++i) x[i] = normed.row(i);
    Team team(wanted_threads(lent.threads, rows * E, router.columns));
    multiply(team, x, router, scores, false, lent);
    each_row(team, rows, 16 * E, [&](std::int64_t i) {
        choose_experts(ops, rule, scores.row(i), E, k, to.ids + i * k, to.gates + i * k);
    });
    sort_by_expert(to, rows, k, E);
}

RouterRule make_rule(bool sigmoid, bool renormalise, std::int64_t groups, std::int64_t kept,
                     std::int64_t per_group, float scale, Address bias) {
    return {sigmoid, renormalise, groups, kept, per_group, scale, at<const float>(bias)};
}

// -- embedding -----------------------------------------------------------------------------------

// out row i = table row tokens[i] - first, for tokens in [first, first + count); without tokens,
// table row i. Rows of `width` values.
void run_embed(Address tokens, std::int64_t rows, Address table, const std::string &format,
               std::int64_t first, std::int64_t count, std::int64_t width, const Matrix &out,
               int threads, const std::string &path) {
    const RowOps &ops = choose_rows(path.c_str());
    const Values stored = values(table, format);
    Unlocked unlocked(rows * width);
    Team team(wanted_threads(threads, rows, width));
    const auto *token = at<const std::int64_t>(tokens);
    each_row(team, rows, width, [&](std::int64_t i) {
        const std::int64_t row = token == nullptr ? i : token[i] - first;
        if (row >= 0 && row < count) ops.widen(stored, row * width, width, out.row(i));
    });
}

// -- sampling ------------------------------------------------------------------------------------

using BestRow = std::tuple<std::int64_t, float, bool, bool>;

std::vector<BestRow> run_best(const Matrix &logits, std::int64_t rows, std::int64_t vocab,
                              int threads, const std::string &path) {
    const RowOps &ops = choose_rows(path.c_str());
    std::vector<BestRow> found(static_cast<std::size_t>(rows));
    Unlocked unlocked(rows * vocab / 4);
    Team team(wanted_threads(threads, rows, vocab));
    each_row(team, rows, vocab, [&](std::int64_t i) {
        const Best best = best_token(ops, logits.row(i), vocab);
        found[i] = {best.token, best.value, best.finite, best.all_finite};
    });
    return found;
}

// Per row: its number, its largest logit, temperature, min-p, top-k, top-p, uniform.
using DrawRow = std::tuple<std::int64_t, float, float, float, std::int64_t, double, double>;

std::vector<std::int64_t> run_draw(const Matrix &logits, std::int64_t vocab,
                                   const std::vector<DrawRow> &rows, int threads,
                                   const std::string &path) {
    const RowOps &ops = choose_rows(path.c_str());
    std::vector<std::int64_t> tokens(rows.size());
    const auto count = static_cast<std::int64_t>(rows.size());
    Unlocked unlocked(count * vocab);
    Team team(wanted_threads(threads, count, vocab));
    each_row(team, count, vocab, [&](std::int64_t i) {
        const auto &[row, top, temperature, min_p, top_k, top_p, uniform] = rows[i];
        tokens[i] = draw_token(ops, logits.row(row), vocab, top,
                               {temperature, min_p, top_k, top_p, uniform});
    });
    return tokens;
}

// Per row: its number, its largest logit, how many of the likeliest.
using RankRow = std::tuple<std::int64_t, float, std::int64_t>;
using RankedRow = std::tuple<double, std::vector<std::pair<std::int64_t, float>>>;

std::vector<RankedRow> run_rank(const Matrix &logits, std::int64_t vocab,
                                const std::vector<RankRow> &rows, int threads,
                                const std::string &path) {
    const RowOps &ops = choose_rows(path.c_str());
    std::vector<RankedRow> found(rows.size());
    {
        const auto count = static_cast<std::int64_t>(rows.size());
        Unlocked unlocked(count * vocab);
        Team team(wanted_threads(threads, count, vocab));
        each_row(team, count, vocab, [&](std::int64_t i) {
            const auto &[row, top, most] = rows[i];
            Ranked ranked = rank_tokens(ops, logits.row(row), vocab, top, most);
            found[i] = {ranked.log_sum, std::move(ranked.best)};
        });
    }
    return found;
}

std::string rows_path(const std::string &path) { return choose_rows(path.c_str()).name; }

}  // namespace

void bind_rows(nb::module_ &module) {
    nb::class_<Matrix>(module, "Matrix")
        .def("__init__", [](Matrix *self, Address data, std::int64_t stride) {
            new (self) Matrix{data, stride};
        });
    nb::class_<Lent>(module, "Lent")
        .def("__init__", [](Lent *self, int threads, const std::string &path,
                            const std::string &rows, Address scratch, std::size_t bytes) {
            new (self) Lent{threads, path, rows, scratch, bytes};
        });
    nb::class_<RouterRule>(module, "RouterRule").def_static("make", &make_rule);
    nb::class_<AttentionInputs>(module, "AttentionInputs")
        .def("__init__", [](AttentionInputs *self, Address norm, const std::string &norm_format,
                            const Weight &q, const Weight &k, const Weight &v, Address q_norm,
                            const std::string &q_format, std::int64_t q_width, Address k_norm,
                            const std::string &k_format, std::int64_t k_width,
                            std::int64_t head_dim, float eps, float clip) {
            new (self) AttentionInputs{values(norm, norm_format), q, k, v,
                                       values(q_norm, q_format), values(k_norm, k_format),
                                       q_width, k_width, head_dim, eps, clip};
        });
    nb::class_<AttentionOutput>(module, "AttentionOutput")
        .def("__init__", [](AttentionOutput *self, const Weight &o, Address norm,
                            const std::string &format, float eps) {
            new (self) AttentionOutput{o, values(norm, format), eps};
        });
    module.def("norm", &run_norm);
    module.def("rope", &run_rope);
    module.def("rope_tables", &run_rope_tables);
    module.def("attention_inputs", &run_attention_inputs);
    module.def("attention_output", &run_attention_output);
    module.def("route", &run_route);
    module.def("embed", &run_embed);
    module.def("best_tokens", &run_best);
    module.def("draw_tokens", &run_draw);
    module.def("rank_tokens", &run_rank);
    module.def("rows_path", &rows_path, "path"_a = "auto");
}
