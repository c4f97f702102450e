#include "gather.h"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <exception>
#include <thread>
#include <tuple>
#include <vector>

#include "address.h"

namespace nb = nanobind;

namespace headrace {
namespace {

// Descriptor, offset, bytes that must come and that may, and where they go.
using SmallRead = std::tuple<int, std::int64_t, std::size_t, std::size_t, Address>;

// Bytes read, -1 when a read failed or brought too little.
std::int64_t read_one(const SmallRead &read) {
    const auto &[file, offset, least, most, to] = read;
    for (;;) {
        const ssize_t got = pread(file, at<void>(to), most, offset);
        if (got >= 0) return static_cast<std::size_t>(got) >= least ? got : -1;
        if (errno != EINTR) return -1;
    }
}

// The sum of what all of them brought, -1 when one failed. One thread per request in flight, started
// here: they sleep, and a few dozen reads take as long as starting them.
std::int64_t read_together(const std::vector<SmallRead> &reads, int in_flight) {
    nb::gil_scoped_release release;
    std::atomic<std::size_t> next{0};
    std::atomic<std::int64_t> total{0};
    std::atomic<bool> failed{false};
    const auto work = [&] {
        for (std::size_t i; !failed && (i = next++) < reads.size();) {
            const std::int64_t got = read_one(reads[i]);
            if (got < 0) failed = true;
            total += got;
        }
    };
    std::vector<std::thread> threads;
    const std::size_t most = std::min(reads.size(), static_cast<std::size_t>(std::max(in_flight, 1)));
    threads.reserve(most);
    try {
        for (std::size_t i = 1; i < most; ++i) threads.emplace_back(work);
    } catch (const std::exception &) {  // no more threads, or no memory for them: fewer do it
    }
    work();
    for (std::thread &thread : threads) thread.join();
    return failed ? -1 : total.load();
}

}  // namespace
}  // namespace headrace

void bind_gather(nb::module_ &module) { module.def("read_together", &headrace::read_together); }
