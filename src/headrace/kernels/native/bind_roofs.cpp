#include "bind_roofs.h"

#include "roofs.h"

namespace nb = nanobind;

void bind_roofs(nb::module_ &module) {
    module.def("read_all", [](std::uintptr_t data, std::size_t bytes, int threads) {
        nb::gil_scoped_release release;
        headrace::Team team(threads);
        return headrace::read_all(team, reinterpret_cast<const void *>(data), bytes);
    });
    module.def("multiply_floats", [](int threads, std::int64_t steps) {
        nb::gil_scoped_release release;
        headrace::Team team(threads);
        return headrace::multiply_floats(team, threads, steps);
    });
    module.def("multiply_bytes", [](int threads, std::int64_t steps) {
        nb::gil_scoped_release release;
        headrace::Team team(threads);
        return headrace::multiply_bytes(team, threads, steps);
    });
    module.def("multiply_pairs", [](int threads, std::int64_t steps) {
        nb::gil_scoped_release release;
        headrace::Team team(threads);
        return headrace::multiply_pairs(team, threads, steps);
    });
}
