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
    return {to.rows + first, to.gates == nullptr ? nullptr : to.gates + first, to.add, nullptr};
}

// How `n` weight rows (and granules, where weight rows are few) are cut into tasks.
struct Cut {
    std::int64_t n, granules, height, width;

    // `shared`: weight rows of all that is cut at once, of which these are a part.
    Cut(const Panel &p, std::int64_t n, std::int64_t most, std::int64_t shared)
        : Cut(p, n, most, shared, p.engine.unit) {}

    // `unit`: weight rows that stay in one task.
    Cut(const Panel &p, std::int64_t n, std::int64_t most, std::int64_t shared, std::int64_t unit)
        : n(n), granules(p.granules()) {
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

Cut gated_cut(const Panel &p, std::int64_t n, std::int64_t shared, const Store &to) {
    const std::int64_t unit = to.onward == nullptr ? 1 : PART;
    return Cut(p, n, p.engine.task_rows(p.rows, p.like.columns, 2), shared,
               std::max<std::int64_t>(p.engine.unit, unit));
}

void gate_and_up(Team &team, const Panel &p, const Weight &gate, const Weight &up,
                 const Activation &activation, const Store &to) {
    const Cut cut = gated_cut(p, gate.rows, gate.rows, to);
    team.share(cut.tasks(), [&](std::int64_t i) {
        cut.run(i, [&](auto n0, auto n1, auto g0, auto g1) {
            p.engine.gated(gate, up, p.at, p.rows, n0, n1, g0, g1, activation, to);
        });
    });
}

// --- experts ---

// Whether what lies between is packed for down as it is made. Else it is kept as rows of fp32, and
// packed when there is all of it. The bits are the same.
bool handed_on(const Visit &v) { return v.in->hands_on && v.out->pack_part != nullptr; }

// Of what lies between, as gate and up leave it.
std::size_t inter_bytes(const Visit &v, std::int64_t rows) {
    return aligned(handed_on(v)
                       ? v.out->panel_bytes(rows, v.weights->down)
                       : static_cast<std::size_t>(rows * v.weights->gate.rows) * sizeof(float));
}

// Of x, and later, unless handed on, of what lies between; the second overwrites the first.
std::size_t panel_bytes(const Visit &v, std::int64_t rows) {
    const std::size_t x = v.in->panel_bytes(rows, v.weights->gate);
    return aligned(handed_on(v) ? x : std::max(x, v.out->panel_bytes(rows, v.weights->down)));
}

// What one expert works on: some rows of a visit, in memory of their own.
struct Place {
    Visit visit;
    std::vector<float *> inter;  // none when handed on
    void *panel;
    Onward onward;

    Place(const Visit &v, char *at) : visit(v), panel(at + inter_bytes(v, v.rows)) {
        if (handed_on(v)) {
            onward = {v.out, &v.weights->down, v.rows, at};
            return;
        }
        for (std::int64_t i = 0; i < v.rows; ++i) {
            inter.push_back(reinterpret_cast<float *>(at) + i * v.weights->gate.rows);
        }
    }

    Panel in() const { return {*visit.in, visit.x, visit.rows, visit.weights->gate, panel}; }
    Store between() const {
        return {inter.data(), nullptr, false, onward.panel == nullptr ? nullptr : &onward};
    }
    // What is multiplied by down; to be packed unless it was handed on.
    Panel middle() const {
        void *at = onward.panel == nullptr ? panel : onward.panel;
        return {*visit.out, inter.data(), visit.rows, visit.weights->down, at};
    }
    bool to_pack() const { return onward.panel == nullptr; }
};

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
        const Place place({&w, v.in, v.out, v.x + first, m, from(v.to, first)}, scratch.at);
        pack(team, place.in());
        gate_and_up(team, place.in(), w.gate, w.up, activation, place.between());
        if (place.to_pack()) pack(team, place.middle());
        multiply(team, place.middle(), w.down, place.visit.to);
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

std::vector<Place> places(const Visit *first, const Visit *last, Scratch scratch) {
    std::vector<Place> out;
    for (const Visit *v = first; v < last; ++v) {
        out.emplace_back(*v, scratch.at);
        scratch.at += inter_bytes(*v, v->rows) + panel_bytes(*v, v->rows);
    }
    return out;
}

void pack_all(Team &team, const std::vector<Panel> &panels) {
    const auto task = [&](std::int64_t i) {
        const Panel &p = panels[static_cast<std::size_t>(i)];
        p.pack(0, p.granules());
    };
    std::int64_t values = 0;
    for (const Panel &p : panels) values += p.rows * p.like.columns;
    const auto count = static_cast<std::int64_t>(panels.size());
    if (values < SMALL) {
        for (std::int64_t i = 0; i < count; ++i) task(i);
    } else {
        team.share(count, task);
    }
}

// The tasks of all experts in one row: as few as there are experts, because each begins with a wait
// for memory, but four for each thread.
void all_gated(Team &team, const std::vector<Place> &all, const Activation &activation) {
    std::int64_t rows = 0;
    for (const Place &place : all) rows += place.visit.weights->gate.rows;
    const std::int64_t tasks = std::max<std::int64_t>(TASKS, 4 * team.threads());
    const std::int64_t shared = ceil_div(TASKS * rows, tasks);
    Cuts cuts;
    for (const Place &place : all) {
        cuts.add(gated_cut(place.in(), place.visit.weights->gate.rows, shared, place.between()));
    }
    team.share(cuts.tasks(), [&](std::int64_t i) {
        cuts.run(i, [&](auto c, auto n0, auto n1, auto g0, auto g1) {
            const Place &place = all[c];
            const ExpertWeights &w = *place.visit.weights;
            place.visit.in->gated(w.gate, w.up, place.panel, place.visit.rows, n0, n1, g0, g1,
                                  activation, place.between());
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
            const Panel p = place.middle();
            p.engine.multiply(p.like, p.at, p.rows, n0, n1, 0, p.granules(), place.visit.to);
        }
    });
}

void together(Team &team, const Visit *first, const Visit *last, const Activation &activation,
              Scratch scratch) {
    const std::vector<Place> all = places(first, last, scratch);
    std::vector<Panel> in, middle;
    for (const Place &place : all) {
        in.push_back(place.in());
        if (place.to_pack()) middle.push_back(place.middle());
    }
    pack_all(team, in);
    all_gated(team, all, activation);
    pack_all(team, middle);
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
