#include "linear.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "prefetch.h"

namespace headrace {
namespace {

constexpr std::int64_t TASKS = 8;          // at least: long ones, and most matrices divide evenly
constexpr std::size_t FIRST_BYTES = 4096;  // of a weight, asked for while the one before is read
constexpr std::int64_t SMALL = 32 << 10;   // values that are packed before anyone has woken up

std::size_t aligned(std::size_t size) { return (size + 63) / 64 * 64; }

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

void check_layout(const Engine &engine, const Weight &w) {
    if (w.turned > 0 && !engine.turned) {
        throw std::invalid_argument(std::string("weight: expected rows as stored for ") +
                                    engine.name + ", got turned ones");
    }
}

// Rows of x at a time: what scratch holds, in granules, in blocks about as large as each other. A
// small rest would read all weights once more for a few rows.
std::int64_t block_rows(const Engine &engine, std::int64_t rows, std::size_t bytes,
                        std::size_t per_granule, std::size_t fixed) {
    const std::size_t usable = bytes > fixed ? bytes - fixed : 0;
    const auto granules = static_cast<std::int64_t>(usable / per_granule);
    if (granules == 0) {
        throw std::invalid_argument("scratch: expected at least " +
                                    std::to_string(per_granule + fixed) + " bytes, got " +
                                    std::to_string(bytes));
    }
    const std::int64_t most = std::min({rows, MAX_ROWS, granules * engine.granule});
    if (most == 0) return 0;
    const std::int64_t even = ceil_div(rows, ceil_div(rows, most));
    return std::min(most, ceil_div(even, engine.granule) * engine.granule);
}

struct Panel {
    const Engine &engine;
    const float *const *x;
    std::int64_t rows;
    const Weight &like;  // w.columns values a row, packed for weights like this one
    void *at;

    std::int64_t granules() const { return ceil_div(rows, engine.granule); }

    void pack(std::int64_t first, std::int64_t last) const {
        engine.pack(x, rows, like, first, last, at);
    }
};

void pack(Team &team, const Panel &p) {
    if (p.rows * p.like.columns < SMALL) {
        p.pack(0, p.granules());
    } else {
        team.share(p.granules(), [&](std::int64_t g) { p.pack(g, g + 1); });
    }
}

Store from(const Store &to, std::int64_t first) {
    return {to.rows + first, to.gates == nullptr ? nullptr : to.gates + first, to.add};
}

// How `n` weight rows (and granules, where weight rows are few) are cut into tasks.
struct Cut {
    std::int64_t n, granules, height, width;

    // `shared`: weight rows of all that is cut at once, of which these are a part.
    Cut(const Panel &p, std::int64_t n, std::int64_t most, std::int64_t shared)
        : n(n), granules(p.granules()) {
        const std::int64_t unit = p.engine.unit;
        const std::int64_t fair = ceil_div(ceil_div(shared, TASKS), unit) * unit;
        height = std::max<std::int64_t>(std::min(most, fair), 1);
        const std::int64_t down =
            std::max<std::int64_t>(ceil_div(std::max(n, shared), height), 1);
        const std::int64_t across =
            std::clamp<std::int64_t>(TASKS / down, 1, ceil_div(granules, 2));
        width = ceil_div(ceil_div(granules, across), 2) * 2;
    }

    std::int64_t across() const { return ceil_div(granules, width); }
    std::int64_t tasks() const { return ceil_div(n, height) * across(); }

    // Calls work(n0, n1, g0, g1) for task i.
    template <class Work>
    void run(std::int64_t i, const Work &work) const {
        const std::int64_t n0 = i / across() * height, g0 = i % across() * width;
        work(n0, std::min(n, n0 + height), g0, std::min(granules, g0 + width));
    }
};

// Several cuts whose tasks are shared out as one row.
struct Cuts {
    std::vector<Cut> all;
    std::vector<std::int64_t> ends;

    void add(const Cut &cut) {
        all.push_back(cut);
        ends.push_back(tasks() + cut.tasks());
    }
    std::int64_t tasks() const { return ends.empty() ? 0 : ends.back(); }

    // Calls work(c, n0, n1, g0, g1) for task i, one of the c-th cut.
    template <class Work>
    void run(std::int64_t i, const Work &work) const {
        const auto c = static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), i) -
                                                ends.begin());
        all[c].run(i - (c == 0 ? 0 : ends[c - 1]), [&](auto n0, auto n1, auto g0, auto g1) {
            work(c, n0, n1, g0, g1);
        });
    }
};

void multiply(Team &team, const Panel &p, const Weight &w, const Store &to) {
    const Cut cut(p, w.rows, p.engine.task_rows(p.rows, p.like.columns, 1), w.rows);
    team.share(cut.tasks(), [&](std::int64_t i) {
        cut.run(i, [&](auto n0, auto n1, auto g0, auto g1) {
            p.engine.multiply(w, p.at, p.rows, n0, n1, g0, g1, to);
        });
    });
}

void multiply_all(Team &team, const Panel &p, const std::vector<Product> &products,
                  std::int64_t first) {
    std::int64_t shared = 0;
    for (const Product &product : products) shared += product.w->rows;
    Cuts cuts;
    for (const Product &product : products) {
        cuts.add({p, product.w->rows, p.engine.task_rows(p.rows, p.like.columns, 1), shared});
    }
    team.share(cuts.tasks(), [&](std::int64_t i) {
        cuts.run(i, [&](auto c, auto n0, auto n1, auto g0, auto g1) {
            p.engine.multiply(*products[c].w, p.at, p.rows, n0, n1, g0, g1,
                              from(products[c].to, first));
        });
    });
}

Cut gated_cut(const Panel &p, std::int64_t n, std::int64_t shared) {
    return Cut(p, n, p.engine.task_rows(p.rows, p.like.columns, 2), shared);
}

void gate_and_up(Team &team, const Panel &p, const Weight &gate, const Weight &up,
                 const Activation &activation, const Store &to) {
    const Cut cut = gated_cut(p, gate.rows, gate.rows);
    team.share(cut.tasks(), [&](std::int64_t i) {
        cut.run(i, [&](auto n0, auto n1, auto g0, auto g1) {
            p.engine.gated(gate, up, p.at, p.rows, n0, n1, g0, g1, activation, to);
        });
    });
}

// --- experts ---

std::size_t inter_bytes(const Visit &v, std::int64_t rows) {
    return aligned(static_cast<std::size_t>(rows * v.weights->gate.rows) * sizeof(float));
}

// Of x, and later of what lies between; the second overwrites the first.
std::size_t panel_bytes(const Visit &v, std::int64_t rows) {
    return aligned(std::max(v.in->panel_bytes(rows, v.weights->gate),
                            v.out->panel_bytes(rows, v.weights->down)));
}

std::vector<float *> rows_of(float *first, std::int64_t count, std::int64_t width) {
    std::vector<float *> rows(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) rows[i] = first + i * width;
    return rows;
}

// One expert, in as many blocks of rows as scratch asks for.
void alone(Team &team, const Visit &v, const Activation &activation, Scratch scratch) {
    const ExpertWeights &w = *v.weights;
    const std::int64_t granule = std::max(v.in->granule, v.out->granule);
    const std::int64_t most = block_rows(*v.in, v.rows, scratch.bytes,
                                         ceil_div(granule, v.in->granule) *
                                             (panel_bytes(v, granule) + inter_bytes(v, granule)),
                                         128);
    for (std::int64_t first = 0; first < v.rows; first += most) {
        const std::int64_t m = std::min(most, v.rows - first);
        const auto inter =
            rows_of(reinterpret_cast<float *>(scratch.at), m, w.gate.rows);
        void *panel = scratch.at + inter_bytes(v, m);

        const Panel in{*v.in, v.x + first, m, w.gate, panel};
        pack(team, in);
        gate_and_up(team, in, w.gate, w.up, activation, {inter.data(), nullptr, false});

        const Panel middle{*v.out, inter.data(), m, w.down, panel};
        pack(team, middle);
        multiply(team, middle, w.down, from(v.to, first));
    }
}

// How many visits from `first` on fit scratch, each as one block of rows; 0 when not even one.
std::size_t fitting(const std::vector<Visit> &visits, std::size_t first, Scratch scratch) {
    std::size_t bytes = 0, next = first;
    for (; next < visits.size() && visits[next].rows <= MAX_ROWS; ++next) {
        bytes += inter_bytes(visits[next], visits[next].rows) +
                 panel_bytes(visits[next], visits[next].rows);
        if (bytes > scratch.bytes) break;
    }
    return next - first;
}

// What one expert of several works on.
struct Place {
    const Visit &visit;
    std::vector<float *> inter;
    void *panel;

    Panel in() const { return {*visit.in, visit.x, visit.rows, visit.weights->gate, panel}; }
    Panel middle() const {
        return {*visit.out, inter.data(), visit.rows, visit.weights->down, panel};
    }
};

std::vector<Place> places(const Visit *first, const Visit *last, Scratch scratch) {
    std::vector<Place> out;
    for (const Visit *v = first; v < last; ++v) {
        auto *inter = reinterpret_cast<float *>(scratch.at);
        scratch.at += inter_bytes(*v, v->rows);
        out.push_back({*v, rows_of(inter, v->rows, v->weights->gate.rows), scratch.at});
        scratch.at += panel_bytes(*v, v->rows);
    }
    return out;
}

template <class PanelOf>
void pack_all(Team &team, const std::vector<Place> &all, const PanelOf &panel_of) {
    const auto task = [&](std::int64_t i) {
        const Panel p = panel_of(all[static_cast<std::size_t>(i)]);
        p.pack(0, p.granules());
    };
    std::int64_t values = 0;
    for (const Place &place : all) values += place.visit.rows * panel_of(place).like.columns;
    const auto count = static_cast<std::int64_t>(all.size());
    if (values < SMALL) {
        for (std::int64_t i = 0; i < count; ++i) task(i);
    } else {
        team.share(count, task);
    }
}

// The tasks of all experts in one row: few, because each begins with a wait for memory, but four
// for each thread where there are as many.
void all_gated(Team &team, const std::vector<Place> &all, const Activation &activation) {
    std::int64_t rows = 0;
    for (const Place &place : all) rows += place.visit.weights->gate.rows;
    const std::int64_t tasks = std::max<std::int64_t>(TASKS, 4 * team.threads());
    const std::int64_t shared = ceil_div(TASKS * rows, tasks);
    Cuts cuts;
    for (const Place &place : all) {
        cuts.add(gated_cut(place.in(), place.visit.weights->gate.rows, shared));
    }
    team.share(cuts.tasks(), [&](std::int64_t i) {
        cuts.run(i, [&](auto c, auto n0, auto n1, auto g0, auto g1) {
            const Place &place = all[c];
            const ExpertWeights &w = *place.visit.weights;
            place.visit.in->gated(w.gate, w.up, place.panel, place.visit.rows, n0, n1, g0, g1,
                                  activation, {place.inter.data(), nullptr, false});
        });
    });
}

// Asks for what is read first of a weight's rows from n on, while others are multiplied.
void ask_first(const Weight &w, std::int64_t n) {
    prefetch_rows(w.row(n), FIRST_BYTES, 1, FIRST_BYTES, 0, 1);
    if (w.scales.data != nullptr) {
        prefetch_rows(w.scales.at(n * w.groups()), FIRST_BYTES, 1, FIRST_BYTES / 2, 0, 1);
    }
}

// A task takes some columns of the results through all experts, in order.
void all_down(Team &team, const std::vector<Place> &all) {
    const std::int64_t n = all.front().visit.weights->down.rows;
    std::int64_t unit = 1, height = n;
    for (const Place &place : all) {
        const Panel p = place.middle();
        unit = std::max<std::int64_t>(unit, p.engine.unit);
        height = std::min(height, p.engine.task_rows(p.rows, p.like.columns, 1));
    }
    height = std::max<std::int64_t>(std::min(height, ceil_div(ceil_div(n, TASKS), unit) * unit), 1);
    team.share(ceil_div(n, height), [&](std::int64_t i) {
        const std::int64_t n0 = i * height, n1 = std::min(n, n0 + height);
        for (std::size_t e = 0; e < all.size(); ++e) {
            const Place &place = all[e];
            if (e + 1 < all.size()) ask_first(all[e + 1].visit.weights->down, n0);
            place.visit.out->multiply(place.visit.weights->down, place.panel, place.visit.rows,
                                      n0, n1, 0, place.middle().granules(), place.visit.to);
        }
    });
}

void together(Team &team, const Visit *first, const Visit *last, const Activation &activation,
              Scratch scratch) {
    const std::vector<Place> all = places(first, last, scratch);
    pack_all(team, all, [](const Place &place) { return place.in(); });
    all_gated(team, all, activation);
    pack_all(team, all, [](const Place &place) { return place.middle(); });
    all_down(team, all);
}

}  // namespace

void linear(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
            const Weight &w, const Store &to, Scratch scratch) {
    check_layout(engine, w);
    const std::int64_t most = block_rows(engine, rows, scratch.bytes,
                                         engine.panel_bytes(engine.granule, w) + 64, 0);
    for (std::int64_t first = 0; first < rows; first += most) {
        const Panel panel{engine, x + first, std::min(most, rows - first), w, scratch.at};
        pack(team, panel);
        multiply(team, panel, w, from(to, first));
    }
}

void linear_all(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
                const std::vector<Product> &products, Scratch scratch) {
    for (const Product &product : products) check_layout(engine, *product.w);
    const Weight &like = *products.front().w;
    const std::int64_t most = block_rows(engine, rows, scratch.bytes,
                                         engine.panel_bytes(engine.granule, like) + 64, 0);
    for (std::int64_t first = 0; first < rows; first += most) {
        const Panel panel{engine, x + first, std::min(most, rows - first), like, scratch.at};
        pack(team, panel);
        multiply_all(team, panel, products, first);
    }
}

void gated(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
           const Weight &gate, const Weight &up, const Activation &activation, const Store &to,
           Scratch scratch) {
    check_layout(engine, gate);
    check_layout(engine, up);
    const std::int64_t most = block_rows(engine, rows, scratch.bytes,
                                         engine.panel_bytes(engine.granule, gate) + 64, 0);
    for (std::int64_t first = 0; first < rows; first += most) {
        const Panel panel{engine, x + first, std::min(most, rows - first), gate, scratch.at};
        pack(team, panel);
        gate_and_up(team, panel, gate, up, activation, from(to, first));
    }
}

void experts(Team &team, const std::vector<Visit> &visits, const Activation &activation,
             Scratch scratch) {
    for (const Visit &v : visits) {
        check_layout(*v.in, v.weights->gate);
        check_layout(*v.in, v.weights->up);
        check_layout(*v.out, v.weights->down);
    }
    for (std::size_t i = 0; i < visits.size();) {
        const std::size_t count = fitting(visits, i, scratch);
        if (count > 1) {
            together(team, &visits[i], &visits[i] + count, activation, scratch);
        } else {
            alone(team, visits[i], activation, scratch);
        }
        i += count > 1 ? count : 1;
    }
}

}  // namespace headrace
