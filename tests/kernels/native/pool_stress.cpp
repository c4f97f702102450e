// The thread pool under stress, without Python: several callers at once, teams of every size,
// phases of no, one and many tasks, and of tasks that throw. Each task must run once, and see what
// the phase before wrote.
// Built and run by tools/check_native.py. Exits 1 at the first fault.
#include "pool.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

void fail(const char *what, long got, long wanted) {
    std::fprintf(stderr, "%s: expected %ld, got %ld\n", what, wanted, got);
    std::exit(1);
}

void phases(headrace::Team &team, std::int64_t count) {
    std::vector<int> runs(static_cast<std::size_t>(count)), doubled(runs.size());
    team.share(count, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
    team.share(count, [&](std::int64_t i) {  // what another thread wrote in the phase before
        const auto mirrored = static_cast<std::size_t>(count - 1 - i);
        doubled[static_cast<std::size_t>(i)] = 2 * runs[mirrored];
    });
    for (int value : doubled) {
        if (value != 2) fail("runs of a task, doubled", value, 2);
    }
}

// What a task throws reaches whoever runs the phase, once all of it is over.
void failing(headrace::Team &team, std::int64_t count) {
    std::atomic<std::int64_t> runs{0};
    bool told = false;
    try {
        team.share(count, [&](std::int64_t i) {
            ++runs;
            if (i % 7 == 3) throw std::runtime_error("a task");
        });
    } catch (const std::runtime_error &) {
        told = true;
    }
    if (!told) fail("failures told", 0, 1);
    if (team.threads() > 1 && runs != count) fail("runs of a phase that fails", runs, count);
}

void caller(int seed) {
    for (int i = 0; i < 150; ++i) {
        headrace::Team team((seed + i) % 4 + 1);
        for (std::int64_t count : {0, 1, 3, 64}) phases(team, count);
        failing(team, 64);
        phases(team, 64);
    }
}

}  // namespace

int main() {
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) callers.emplace_back(caller, i);
    for (std::thread &thread : callers) thread.join();
    std::puts("pool: every task ran once");
    return 0;
}
