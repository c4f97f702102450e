// Products on aarch64, for an emulator: the NEON family against a sum in double, its bits the same
// for one row as among many, and against the plain family of the same formats.
// Built and run by tools/check_native.py neon. Exits 1 at the first fault.
#include "linear.h"
#include "roofs.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using namespace headrace;

namespace {

unsigned state = 1;
float draw() {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
}

std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<std::uint16_t>(bits >> 16);
}

float from_bf16(std::uint16_t half) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

std::vector<float> product(const char *path, const std::vector<float> &x, std::int64_t rows,
                           const Weight &w) {
    std::vector<float> out(static_cast<std::size_t>(rows * w.rows));
    std::vector<char> memory(8 << 20);
    std::vector<const float *> from;
    std::vector<float *> to;
    for (std::int64_t i = 0; i < rows; ++i) {
        from.push_back(x.data() + i * w.columns);
        to.push_back(out.data() + i * w.rows);
    }
    Team team(2);
    linear(team, choose_engine(w.format, path), from.data(), rows, w, {to.data(), nullptr, false},
           {memory.data(), memory.size()});
    return out;
}

void check(Format format, std::int64_t rows, std::int64_t n, std::int64_t k) {
    const auto count = static_cast<std::size_t>(n * k);
    std::vector<float> wide(count), x(static_cast<std::size_t>(rows * k));
    std::vector<std::uint16_t> halves(count);
    for (float &value : x) value = draw();
    for (std::size_t i = 0; i < count; ++i) {
        halves[i] = to_bf16(draw());
        wide[i] = from_bf16(halves[i]);
    }
    const bool narrow = format == Format::bf16;
    Weight w;
    w.format = format;
    w.rows = n;
    w.columns = k;
    w.row_bytes = static_cast<std::size_t>(k) * (narrow ? 2 : 4);
    w.data = narrow ? static_cast<const void *>(halves.data()) : wide.data();
    const std::vector<float> many = product("neon", x, rows, w), plain = product("plain", x, rows, w);
    for (std::int64_t i = 0; i < rows; ++i) {
        const std::vector<float> row(x.begin() + i * k, x.begin() + (i + 1) * k);
        const std::vector<float> alone = product("neon", row, 1, w);
        for (std::int64_t j = 0; j < n; ++j) {
            double wanted = 0;
            for (std::int64_t c = 0; c < k; ++c) {
                wanted += static_cast<double>(row[static_cast<std::size_t>(c)]) *
                          static_cast<double>(wide[static_cast<std::size_t>(j * k + c)]);
            }
            const auto at = static_cast<std::size_t>(i * n + j);
            const bool near = std::fabs(many[at] - wanted) < 1e-4 * std::sqrt(double(k)) &&
                              std::fabs(plain[at] - wanted) < 1e-4 * std::sqrt(double(k));
            if (!near || std::memcmp(&many[at], &alone[static_cast<std::size_t>(j)], 4) != 0) {
                std::fprintf(stderr, "format %d, %ld x %ld x %ld at (%ld, %ld): %g, alone %g, plain %g, "
                             "expected %g\n", static_cast<int>(format), long(rows), long(n), long(k),
                             long(i), long(j), double(many[at]),
                             double(alone[static_cast<std::size_t>(j)]), double(plain[at]), wanted);
                std::exit(1);
            }
        }
    }
}

}  // namespace

int main() {
    for (Format format : {Format::f32, Format::bf16}) {
        for (std::int64_t rows : {1, 3, 17}) check(format, rows, 37, 131);
        check(format, 33, 64, 256);
    }
    std::vector<char> bytes(3 << 20, 1);
    Team team(2);
    if (read_all(team, bytes.data(), bytes.size()) != 0x0101010101010101ull * (bytes.size() / 8)) {
        std::fprintf(stderr, "read_all left bytes out\n");
        return 1;
    }
    if (multiply_floats(team, 2, 10) <= 0) return 1;
    std::puts("neon: products agree, and do not depend on the rows beside them");
    return 0;
}
