// What an older processor runs, for an emulator of one: everything is chosen as the package does,
// and each choice works a little. A table made with instructions that are not there, or a roof
// measured with them, ends the program.
// Built and run by tools/check_native.py older. Exits 1 at the first fault.
#include "attention.h"
#include "linear.h"
#include "roofs.h"
#include "rows.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using namespace headrace;

namespace {

void expect(bool holds, const char *what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

// Weights of ones, x of ones: every product is K.
void multiply(Format format, const char *path) {
    constexpr std::int64_t rows = 5, n = 40, k = 96;
    std::vector<char> stored(n * k * 4);
    const float one = 1.0f;
    const std::uint16_t bf16 = 0x3f80, f16 = 0x3c00;
    for (std::int64_t i = 0; i < n * k; ++i) {
        if (format == Format::f32) std::memcpy(&stored[static_cast<std::size_t>(4 * i)], &one, 4);
        const std::uint16_t half = format == Format::bf16 ? bf16 : f16;
        if (format == Format::bf16 || format == Format::f16) {
            std::memcpy(&stored[static_cast<std::size_t>(2 * i)], &half, 2);
        }
    }
    Weight w;
    w.format = format;
    w.rows = n;
    w.columns = k;
    w.row_bytes = k * (format == Format::f32 ? 4 : 2);
    w.data = stored.data();
    std::vector<float> x(rows * k, 1.0f), out(rows * n);
    std::vector<char> memory(8 << 20);
    std::vector<const float *> from;
    std::vector<float *> to;
    for (std::int64_t i = 0; i < rows; ++i) {
        from.push_back(x.data() + i * k);
        to.push_back(out.data() + i * n);
    }
    Team team(2);
    linear(team, choose_engine(format, path), from.data(), rows, w, {to.data(), nullptr, false},
           {memory.data(), memory.size()});
    for (float value : out) expect(std::fabs(value - k) < 1e-3f, "a product is wrong");
}

void rows_and_roofs() {
    const RowOps &ops = choose_rows("auto");
    std::vector<float> x(100, 2.0f);
    ops.softmax(x.data(), 100);
    expect(std::fabs(x[99] - 0.01f) < 1e-6f, "a softmax is wrong");
    ops.sigmoid(x.data(), 100);
    std::vector<char> bytes(3 << 20, 1);
    Team team(2);
    expect(read_all(team, bytes.data(), bytes.size()) == 0x0101010101010101ull * (bytes.size() / 8),
           "read_all left bytes out");
    expect(multiply_floats(team, 2, 10) > 0, "no rate of multiply-adds");
    std::printf("%s products, %s attention, %s rows\n", choose_engine(Format::bf16, "auto").name,
                choose_attention("auto").name, ops.name);
}

}  // namespace

int main() {
    for (const char *path : {"auto", "fast", "exact", "bf16"}) {
        for (Format format : {Format::f32, Format::bf16, Format::f16}) multiply(format, path);
        for (Format format : {Format::i8, Format::u8, Format::u4}) choose_engine(format, path);
    }
    rows_and_roofs();
    return 0;
}
