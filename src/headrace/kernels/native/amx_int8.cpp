// Integer weights on AMX tiles, activations quantised row by row. A block (the columns that share
// both scales) is summed exactly in the tile; its scaled sums are added up in fp32, block by block
// along K. Weights are the left operand, bytes as they lie in the checkpoint or nibbles spread to
// bytes; activations the right one, packed in fours of columns.
#include "engine.h"

#if defined(__AMX_INT8__) && defined(__AVX512BW__)

#include "amx_task.h"
#include "quantise.h"

namespace headrace {
namespace {

constexpr std::int64_t K_CHUNK = 1024;  // columns of weights that are copied at a time

// How columns are cut: `block` of them share a scale and are padded to `bytes` = steps x step.
struct Shape {
    std::int64_t block, blocks;
    int bytes, step, steps;

    explicit Shape(const Weight &w)
        : block(shared_columns(w)),
          blocks((w.columns + block - 1) / block),
          bytes(static_cast<int>((block + 31) / 32 * 32)),
          step(bytes % 64 == 0 ? 64 : 32),
          steps(bytes / step) {}

    // Scales and starts of sixteen rows, then tiles [column / 4][row][4].
    std::size_t block_bytes() const { return 128 + 16 * static_cast<std::size_t>(bytes); }
    std::size_t granule_bytes() const { return static_cast<std::size_t>(blocks) * block_bytes(); }
};

std::size_t panel_bytes(std::int64_t rows, const Weight &w) {
    return static_cast<std::size_t>((rows + GRANULE - 1) / GRANULE) * Shape(w).granule_bytes();
}

void pack(const float *const *rows, std::int64_t count, const Weight &w, std::int64_t first,
          std::int64_t last, void *panel) {
    const Shape shape(w);
    const int zero = w.zeros != nullptr ? 1 : zero_of(w.format);
    for (std::int64_t g = first; g < last; ++g) {
        char *at = static_cast<char *>(panel) + static_cast<std::size_t>(g) *
                                                    shape.granule_bytes();
        const std::int64_t left = count - g * GRANULE;
        const int height = left < GRANULE ? static_cast<int>(left) : GRANULE;
        for (std::int64_t b = 0; b < shape.blocks; ++b, at += shape.block_bytes()) {
            auto *scales = reinterpret_cast<float *>(at);
            auto *starts = reinterpret_cast<std::int32_t *>(at + 64);
            auto *tiles = reinterpret_cast<std::int32_t *>(at + 128);
            const std::int64_t k = b * shape.block, rest = w.columns - k;
            const int columns = static_cast<int>(rest < shape.block ? rest : shape.block);
            for (int m = 0; m < GRANULE; ++m) {
                alignas(64) std::int8_t bytes[MOST_SHARED] = {};
                Quantised q{0.0f, 0};
                if (m < height) {
                    q = quantise(rows[g * GRANULE + m] + k, columns, shape.bytes,
                                 w.format == Format::u4, bytes);
                }
                scales[m] = q.scale;
                starts[m] = -zero * q.sum;
                const auto *fours = reinterpret_cast<const std::int32_t *>(bytes);
                for (int i = 0; i < shape.bytes / 4; ++i) tiles[16 * i + m] = fours[i];
            }
        }
    }
}

// --- left operands ---

struct Local {
    alignas(64) float sums[SUM_TILES][256];           // [n][m] each
    alignas(64) std::int32_t parts[2][4][256];        // of one block, and of the one before
    alignas(64) char left[2][16 * K_CHUNK];           // [block][step][row][column]
    alignas(64) float scales[2][16][K_CHUNK / 32];    // of a chunk's blocks
    alignas(64) std::int32_t zeros[2][16][K_CHUNK / 32];
};
static_assert(sizeof(Local) <= LOCAL_BYTES, "a task's memory");

// Sixteen weight rows over a chunk of K: bytes from one row, step and block to the next.
struct Left {
    const char *at;
    std::int64_t stride, step, block;
};

// Bytes of one row's block, zeros from `columns` to shape.bytes.
template <Format F>
void spread(const char *from, int columns, const Shape &shape, char (&to)[MOST_SHARED]) {
    for (int k = 0; k < shape.bytes; k += 64) {
        const int left = columns - k;
        if (F != Format::u4) {
            const __mmask64 mask = left >= 64 ? ~0ull : left <= 0 ? 0 : (1ull << left) - 1;
            _mm512_storeu_si512(to + k, _mm512_maskz_loadu_epi8(mask, from + k));
            continue;
        }
        const int pairs = (left + 1) / 2;
        const __mmask32 mask = pairs >= 32 ? ~0u : pairs <= 0 ? 0 : (1u << pairs) - 1;
        const __m256i packed = _mm256_maskz_loadu_epi8(mask, from + k / 2);
        // Sixteen bytes make 32: their low nibbles, then their high ones.
        const __m512i twice = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3),
                                                       _mm512_castsi256_si512(packed));
        const __m512i moved =
            _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
        _mm512_storeu_si512(to + k, _mm512_and_si512(moved, _mm512_set1_epi8(15)));
    }
}

// Weight rows n .. n + 16 (fewer at the end: zeros) over blocks b0 .. b1.
template <Format F>
Left left_of(const Weight &w, const Shape &shape, std::int64_t n, std::int64_t n1,
             std::int64_t b0, std::int64_t b1, bool copy, char *memory) {
    const std::int64_t height = n1 - n < 16 ? n1 - n : 16, first = b0 * shape.block;
    const bool whole = height == 16 && b1 * shape.block <= w.columns && shape.block == shape.bytes;
    if (F != Format::u4 && whole && !copy) {
        return {w.row(n) + first, static_cast<std::int64_t>(w.row_bytes), shape.step, shape.block};
    }
    for (std::int64_t b = b0; b < b1; ++b) {
        const std::int64_t k = b * shape.block, rest = w.columns - k;
        const int columns = static_cast<int>(rest < shape.block ? rest : shape.block);
        char *to = memory + (b - b0) * 16 * shape.bytes;
        for (std::int64_t i = 0; i < 16; ++i) {
            alignas(64) char row[MOST_SHARED] = {};
            if (i < height) spread<F>(w.row(n + i) + (F == Format::u4 ? k / 2 : k), columns, shape, row);
            for (int s = 0; s < shape.steps; ++s) {
                __builtin_memcpy(to + (s * 16 + i) * shape.step, row + s * shape.step,
                                 static_cast<std::size_t>(shape.step));
            }
        }
    }
    return {memory, shape.step, 16 * shape.step, 16 * shape.bytes};
}

// Scales and zeros of weight rows n .. n + 16 for blocks b0 .. b1.
void factors(const Weight &w, const Shape &shape, std::int64_t n, std::int64_t n1,
             std::int64_t b0, std::int64_t b1, int i, Local &local) {
    for (std::int64_t row = 0; row < 16; ++row) {
        for (std::int64_t b = b0; b < b1; ++b) {
            float &scale = local.scales[i][row][b - b0];
            scale = 0.0f;
            if (n + row >= n1) continue;
            const std::int64_t g = b * shape.block / w.group;
            const bool same = b > b0 && g == (b - 1) * shape.block / w.group;
            if (same) {
                scale = (&scale)[-1];
            } else {
                floats_of(w.scales, (n + row) * w.groups() + g, 1, &scale);
            }
            if (w.zeros != nullptr) local.zeros[i][row][b - b0] = w.zero(n + row, g);
        }
    }
}

// --- one block of one to four tiles ---

// Tile numbers are part of the instruction's name: a function could not pass them on.
#define HEADRACE_DOT(sum, left, right)        \
    if constexpr (F == Format::i8) {          \
        _tile_dpbssd(sum, left, right);       \
    } else {                                  \
        _tile_dpbusd(sum, left, right);       \
    }

template <Format F>
void block(int lefts, int rights, const Left (&left)[2], std::int64_t b, const char *right0,
           const char *right1, const Shape &shape, std::int32_t (&parts)[4][256]) {
    fence();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int s = 0; s < shape.steps; ++s) {
        _tile_loadd(4, left[0].at + b * left[0].block + s * left[0].step, left[0].stride);
        _tile_loadd(6, right0 + 128 + s * shape.step * 16, 64);
        HEADRACE_DOT(0, 4, 6)
        if (lefts == 2) {
            _tile_loadd(5, left[1].at + b * left[1].block + s * left[1].step, left[1].stride);
            HEADRACE_DOT(1, 5, 6)
        }
        if (rights == 2) {
            _tile_loadd(7, right1 + 128 + s * shape.step * 16, 64);
            HEADRACE_DOT(2, 4, 7)
            if (lefts == 2) {
                HEADRACE_DOT(3, 5, 7)
            }
        }
    }
    _tile_stored(0, parts[0], 64);
    if (lefts == 2) _tile_stored(1, parts[1], 64);
    if (rights == 2) _tile_stored(2, parts[2], 64);
    if (lefts == 2 && rights == 2) _tile_stored(3, parts[3], 64);
    fence();
}

#undef HEADRACE_DOT

// sums (+)= scale of w x (scale of x x exact sum).
void add_block(const std::int32_t (&part)[256], const char *right, const float *scales,
               const std::int32_t *zeros, bool fresh, float *sums) {
    constexpr int stride = K_CHUNK / 32;
    const __m512 by = _mm512_loadu_ps(right);
    const __m512i start = _mm512_loadu_si512(right + 64);
    for (int n = 0; n < 16; ++n) {
        const __m512i from =
            zeros == nullptr ? start
                             : _mm512_mullo_epi32(start, _mm512_set1_epi32(zeros[n * stride]));
        const __m512i exact = _mm512_add_epi32(_mm512_load_si512(part + 16 * n), from);
        const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), by);
        const __m512 before = fresh ? _mm512_setzero_ps() : _mm512_load_ps(sums + 16 * n);
        _mm512_store_ps(sums + 16 * n,
                        _mm512_fmadd_ps(value, _mm512_set1_ps(scales[n * stride]), before));
    }
}

template <Format F>
struct IntProducts {
    template <class PairOf, class Finish>
    static void run(std::int64_t pairs, const PairOf &pair_of, const void *panel, const Weight &w,
                    std::int64_t n1, std::int64_t g0, std::int64_t g1, const Finish &finish) {
        Local &local = *static_cast<Local *>(local_memory());
        const Shape shape(w);
        const Tiles tiles(shape.step);
        const bool few = g1 - g0 <= 2;  // weights are used where they lie
        const std::int64_t chunk = K_CHUNK / shape.bytes;
        const std::int64_t chunks = (shape.blocks + chunk - 1) / chunk;
        const auto visit = [&](std::int64_t p, std::int64_t c) {
            const Pair pair = pair_of(p);
            const std::int64_t b0 = c * chunk;
            const std::int64_t b1 = shape.blocks - b0 < chunk ? shape.blocks : b0 + chunk;
            Left left[2] = {};
            for (int i = 0; i < pair.size; ++i) {
                const Weight &weight = *pair.weights[i];
                left[i] = left_of<F>(weight, shape, pair.rows[i], n1, b0, b1, !few, local.left[i]);
                factors(weight, shape, pair.rows[i], n1, b0, b1, i, local);
            }
            const Pair next = pair_of(p + 1);
            for (std::int64_t g = g0; g < g1; g += 2) {
                for (int i = 0; !few && i < 2 && next.rows[i] < n1; ++i) {
                    prefetch_block(*next.weights[i], shape, next.rows[i], n1, b0, b1, g - g0,
                                   g1 - g0 + 1);
                }
                const int rights = g1 - g < 2 ? 1 : 2;
                const std::int64_t slot =
                    chunks == 1 || few ? 0 : 2 * (p * up_to_even(g1 - g0) + g - g0);
                Sums const at[4] = {local.sums + slot, local.sums + slot + 1,
                                    local.sums + slot + 2, local.sums + slot + 3};
                const char *right = static_cast<const char *>(panel) +
                                    static_cast<std::size_t>(g) * shape.granule_bytes() +
                                    static_cast<std::size_t>(b0) * shape.block_bytes();
                for (std::int64_t b = b0; b < b1; ++b, right += shape.block_bytes()) {
                    const char *rights_at[2] = {right, right + shape.granule_bytes()};
                    auto &parts = local.parts[b & 1];
                    block<F>(pair.size, rights, left, b - b0, rights_at[0], rights_at[1], shape,
                             parts);
                    for (int r = 0; r < rights; ++r) {
                        for (int i = 0; i < pair.size; ++i) {
                            add_block(parts[2 * r + i], rights_at[r],
                                      &local.scales[i][0][b - b0],
                                      w.zeros == nullptr ? nullptr : &local.zeros[i][0][b - b0],
                                      b == 0, *at[2 * r + i]);
                        }
                    }
                }
                if (c + 1 == chunks) finish(pair, g, rights, at);
            }
        };
        if (few) {
            for (std::int64_t p = 0; p < pairs; ++p) {
                for (std::int64_t c = 0; c < chunks; ++c) visit(p, c);
            }
        } else {
            for (std::int64_t c = 0; c < chunks; ++c) {
                for (std::int64_t p = 0; p < pairs; ++p) visit(p, c);
            }
        }
    }

 private:
    static void prefetch_block(const Weight &w, const Shape &shape, std::int64_t n,
                               std::int64_t n1, std::int64_t b0, std::int64_t b1,
                               std::int64_t part, std::int64_t parts) {
        const std::int64_t per_byte = F == Format::u4 ? 2 : 1;
        prefetch_rows(w.row(n) + b0 * shape.block / per_byte, w.row_bytes,
                      (n + 16 < n1 ? n + 16 : n1) - n,
                      static_cast<std::size_t>((b1 - b0) * shape.block / per_byte), part, parts);
    }
};

std::int64_t task_rows(std::int64_t rows, std::int64_t columns, int matrices) {
    return amx_task_rows(rows, columns, matrices, K_CHUNK);
}

template <Format F>
Engine engine() {
    return {"amx_int", GRANULE, 32, panel_bytes, pack, task_rows, multiply<IntProducts<F>>,
            gated<IntProducts<F>>};
}

}  // namespace

const Engine *amx_int_engine(Format format) {
    static const Engine i8 = engine<Format::i8>(), u8 = engine<Format::u8>(),
                        u4 = engine<Format::u4>();
    if (is_float(format)) return nullptr;
    return format == Format::i8 ? &i8 : format == Format::u8 ? &u8 : &u4;
}

}  // namespace headrace

#else

const headrace::Engine *headrace::amx_int_engine(Format) { return nullptr; }

#endif
