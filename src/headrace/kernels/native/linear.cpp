#include "linear.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace headrace {
namespace {

constexpr std::int64_t TASKS = 6;  // at least, so that threads end together

std::size_t aligned(std::size_t size) { return (size + 63) / 64 * 64; }

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Rows of x at a time: what scratch holds, in granules.
std::int64_t block_rows(const Engine &engine, std::int64_t rows, std::size_t bytes,
                        std::size_t per_granule, std::size_t fixed) {
    const std::size_t usable = bytes > fixed ? bytes - fixed : 0;
    const auto granules = static_cast<std::int64_t>(usable / per_granule);
    if (granules == 0) {
        throw std::invalid_argument("scratch: expected at least " +
                                    std::to_string(per_granule + fixed) + " bytes, got " +
                                    std::to_string(bytes));
    }
    return std::min({rows, MAX_ROWS, granules * engine.granule});
}

struct Panel {
    const Engine &engine;
    const float *const *x;
    std::int64_t rows;
    const Weight &like;  // w.columns values a row, packed for weights like this one
    void *at;

    std::int64_t granules() const { return ceil_div(rows, engine.granule); }
};

void pack(Team &team, const Panel &p) {
    const auto task = [&](std::int64_t g) {
        p.engine.pack(p.x, p.rows, p.like, g, g + 1, p.at);
    };
    if (p.rows * p.like.columns < 32 * 1024) {  // cheaper than waking anyone
        for (std::int64_t g = 0; g < p.granules(); ++g) task(g);
    } else {
        team.share(p.granules(), task);
    }
}

// Cuts `n` weight rows (and granules, where weight rows are few) into tasks.
template <class Work>
void cut(Team &team, const Panel &p, std::int64_t n, std::int64_t most, const Work &work) {
    const std::int64_t unit = p.engine.unit, granules = p.granules();
    const std::int64_t fair = ceil_div(ceil_div(n, TASKS), unit) * unit;
    const std::int64_t height = std::max<std::int64_t>(std::min(most, fair), 1);
    const std::int64_t down = ceil_div(n, height);
    const std::int64_t across = std::clamp<std::int64_t>(TASKS / std::max<std::int64_t>(down, 1),
                                                         1, ceil_div(granules, 2));
    const std::int64_t width = ceil_div(ceil_div(granules, across), 2) * 2;
    const std::int64_t columns = ceil_div(granules, width);
    team.share(down * columns, [&](std::int64_t i) {
        const std::int64_t n0 = i / columns * height, g0 = i % columns * width;
        work(n0, std::min(n, n0 + height), g0, std::min(granules, g0 + width));
    });
}

void multiply(Team &team, const Panel &p, const Weight &w, const Store &to) {
    const std::int64_t most = p.engine.task_rows(p.rows, p.like.columns, 1);
    cut(team, p, w.rows, most, [&](auto n0, auto n1, auto g0, auto g1) {
        p.engine.multiply(w, p.at, p.rows, n0, n1, g0, g1, to);
    });
}

void gate_and_up(Team &team, const Panel &p, const Weight &gate, const Weight &up,
                 const Activation &activation, const Store &to) {
    const std::int64_t most = p.engine.task_rows(p.rows, p.like.columns, 2);
    cut(team, p, gate.rows, most, [&](auto n0, auto n1, auto g0, auto g1) {
        p.engine.gated(gate, up, p.at, p.rows, n0, n1, g0, g1, activation, to);
    });
}

Store from(const Store &to, std::int64_t first) {
    return {to.rows + first, to.gates == nullptr ? nullptr : to.gates + first, to.add};
}

}  // namespace

void linear(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
            const Weight &w, const Store &to, Scratch scratch) {
    const std::int64_t most = block_rows(engine, rows, scratch.bytes,
                                         engine.panel_bytes(engine.granule, w) + 64, 0);
    for (std::int64_t first = 0; first < rows; first += most) {
        const Panel panel{engine, x + first, std::min(most, rows - first), w, scratch.at};
        pack(team, panel);
        multiply(team, panel, w, from(to, first));
    }
}

void gated(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
           const Weight &gate, const Weight &up, const Activation &activation, const Store &to,
           Scratch scratch) {
    const std::int64_t most = block_rows(engine, rows, scratch.bytes,
                                         engine.panel_bytes(engine.granule, gate) + 64, 0);
    for (std::int64_t first = 0; first < rows; first += most) {
        const Panel panel{engine, x + first, std::min(most, rows - first), gate, scratch.at};
        pack(team, panel);
        gate_and_up(team, panel, gate, up, activation, from(to, first));
    }
}

void expert(Team &team, const Engine &engine, const float *const *x, std::int64_t rows,
            const ExpertWeights &w, const Activation &activation, const Store &to,
            Scratch scratch) {
    const std::int64_t W = w.gate.rows;
    const auto inter_bytes = [&](std::int64_t m) {
        return aligned(static_cast<std::size_t>(m * W) * sizeof(float));
    };
    const std::size_t panels = std::max(engine.panel_bytes(engine.granule, w.gate),
                                        engine.panel_bytes(engine.granule, w.down));
    const std::int64_t most = block_rows(engine, rows, scratch.bytes,
                                         panels + inter_bytes(engine.granule), 128);
    // The second panel overwrites the first: x is not needed once inter is there.
    for (std::int64_t first = 0; first < rows; first += most) {
        const std::int64_t m = std::min(most, rows - first);
        auto *inter = reinterpret_cast<float *>(scratch.at);
        void *panel_memory = scratch.at + inter_bytes(m);
        std::vector<float *> inter_rows(static_cast<std::size_t>(m));
        for (std::int64_t i = 0; i < m; ++i) inter_rows[i] = inter + i * W;

        const Panel in{engine, x + first, m, w.gate, panel_memory};
        pack(team, in);
        gate_and_up(team, in, w.gate, w.up, activation, {inter_rows.data(), nullptr, false});

        const Panel middle{engine, inter_rows.data(), m, w.down, panel_memory};
        pack(team, middle);
        multiply(team, middle, w.down, from(to, first));
    }
}

}  // namespace headrace
