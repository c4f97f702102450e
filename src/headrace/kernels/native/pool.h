// A pool of helper threads that join whoever calls, for one phase of work at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headrace {

struct Region;
struct Helper;

// One call's hold on the pool. The caller runs phases one after the other; helpers take tasks
// from the phase at hand. A helper that wakes late is never waited for: whoever is awake does
// the work. Destroying the team lets the helpers go; they look out for the next call for some tens
// of microseconds, yielding their core to whoever needs it, then sleep.
class Team {
 public:
    // At most `threads` threads, the caller included; fewer where helpers are taken by others.
    // Helpers run on `cores` when given (Linux), else wherever they last ran.
    explicit Team(int threads, const std::vector<int> &cores = {});
    ~Team();
    Team(const Team &) = delete;
    Team &operator=(const Team &) = delete;

    int threads() const { return 1 + static_cast<int>(helpers_.size()); }

    // Calls task(i) once for every i in [0, count), in any order, on any thread of the team;
    // returns when all are done. Memory written by a phase is seen by the next one.
    template <class Task>
    void share(std::int64_t count, const Task &task) {
        run(count, [](const void *context, std::int64_t i) {
            (*static_cast<const Task *>(context))(i);
        }, &task);
    }

 private:
    using Call = void (*)(const void *context, std::int64_t i);
    void run(std::int64_t count, Call call, const void *context);
    void run_phase(std::int64_t count, Call call, const void *context);

    Region *region_;  // null: run inline
    std::vector<Helper *> helpers_;
};

// Memory that the next call will read, for helpers that still look out for it: until it comes they
// ask for it, into their caches, while the caller is elsewhere and memory would be idle. A hint:
// whoever sleeps is not woken, and any address will do. At most `threads` - 1 helpers take part.
void fetch(const void *data, std::size_t bytes, int threads);

}  // namespace headrace
