// 16-bit weights on AMX tiles. fp32 activations are split into bf16 terms: three, whose sum they
// are exactly, two, to 2^-17, or one, for those who ask for bf16 activations. fp16 weights are two bf16 terms. Products of terms are summed in
// fp32 by the tile unit, column pair by column pair, so a result is one chain along K. Products
// below the last bit of fp32 are left out.
//
// Weights are the left operand, tile rows as they lie in the checkpoint; activations the right
// one, packed in pairs of columns. A tile of results is [16 weight rows, 16 rows of x].
#include "engine.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)

#include "amx_operands.h"

namespace headrace {
namespace {

// --- tiles: sums in 0..3 (left 0: 0 and 2, left 1: 1 and 3), left in 4, 5, right in 6, 7 ---

template <int LEFT, int RIGHT>
void zero_sums() {
    _tile_zero(0);
    if (LEFT > 1) _tile_zero(1);
    if (RIGHT > 1) _tile_zero(2);
    if (LEFT > 1 && RIGHT > 1) _tile_zero(3);
}

template <int LEFT, int RIGHT>
void load_sums(float (*const (&at)[4])[256]) {
    _tile_loadd(0, at[0], 64);
    if (LEFT > 1) _tile_loadd(1, at[1], 64);
    if (RIGHT > 1) _tile_loadd(2, at[2], 64);
    if (LEFT > 1 && RIGHT > 1) _tile_loadd(3, at[3], 64);
}

template <int LEFT, int RIGHT>
void store_sums(float (*const (&at)[4])[256]) {
    _tile_stored(0, at[0], 64);
    if (LEFT > 1) _tile_stored(1, at[1], 64);
    if (RIGHT > 1) _tile_stored(2, at[2], 64);
    if (LEFT > 1 && RIGHT > 1) _tile_stored(3, at[3], 64);
    fence();
}

template <class F, int LEFT, int RIGHT>
void advance(const Left (&left)[2], const char *right0, const char *right1, std::int64_t steps) {
    fence();
    for (std::int64_t s = 0; s < steps; ++s) {
        for (int v = 0; v < F::terms; ++v) {
            _tile_loadd(4, left[0].at + s * left[0].step + v * left[0].term, left[0].stride);
            if (LEFT > 1) {
                _tile_loadd(5, left[1].at + s * left[1].step + v * left[1].term, left[1].stride);
            }
            for (int t = 0; t + v < F::right_terms; ++t) {
                _tile_loadd(6, right0 + t * TILE, 64);
                _tile_dpbf16ps(0, 4, 6);
                if (LEFT > 1) _tile_dpbf16ps(1, 5, 6);
                if (RIGHT > 1) {
                    _tile_loadd(7, right1 + t * TILE, 64);
                    _tile_dpbf16ps(2, 4, 7);
                    if (LEFT > 1) _tile_dpbf16ps(3, 5, 7);
                }
            }
        }
        right0 += F::right_terms * TILE;
        right1 += F::right_terms * TILE;
    }
}

template <class F, int LEFT, int RIGHT>
void block(const Left (&left)[2], const char *right, std::size_t granule, std::int64_t steps,
           bool fresh, Sums const (&at)[4], bool keep) {
    if (fresh) {
        zero_sums<LEFT, RIGHT>();
    } else if (!keep) {
        load_sums<LEFT, RIGHT>(at);
    }
    advance<F, LEFT, RIGHT>(left, right, right + granule, steps);
}

template <class F>
void block(int lefts, int rights, const Left (&left)[2], const char *right, std::size_t granule,
           std::int64_t steps, bool fresh, Sums const (&at)[4], bool keep) {
    if (lefts == 2) {
        if (rights == 2) return block<F, 2, 2>(left, right, granule, steps, fresh, at, keep);
        return block<F, 2, 1>(left, right, granule, steps, fresh, at, keep);
    }
    if (rights == 2) return block<F, 1, 2>(left, right, granule, steps, fresh, at, keep);
    return block<F, 1, 1>(left, right, granule, steps, fresh, at, keep);
}

void store(int lefts, int rights, Sums const (&at)[4]) {
    if (lefts == 2) return rights == 2 ? store_sums<2, 2>(at) : store_sums<2, 1>(at);
    return rights == 2 ? store_sums<1, 2>(at) : store_sums<1, 1>(at);
}

// Runs `pairs` over granules g0 .. g1 and hands every finished set of sums to `finish(pair, g,
// rights, sums)`. Weight rows at n1 and beyond do not exist.
template <class F, class PairOf, class Finish>
void run(std::int64_t pairs, const PairOf &pair_of, const void *panel, std::int64_t K,
         std::int64_t n1, std::int64_t g0, std::int64_t g1, const Finish &finish) {
    Local &local = *static_cast<Local *>(local_memory());
    const Tiles tiles;
    const std::size_t granule = granule_bytes<F>(K);
    const bool few = g1 - g0 <= 2;  // sums stay in tiles, 16-bit weights are used where they lie
    const std::int64_t k_block = STEP * (few && F::terms > 1 ? FEW_STEPS : STEPS);
    const std::int64_t blocks = K == 0 ? 1 : (K + k_block - 1) / k_block;
    const auto visit = [&](std::int64_t p, std::int64_t b) {
        const Pair pair = pair_of(p);
        const std::int64_t k = b * k_block, columns = K - k < k_block ? K - k : k_block;
        const std::int64_t steps = steps_of(columns);
        Left left[2] = {};
        for (int i = 0; i < pair.size; ++i) {
            left[i] = left_of<F>(*pair.weights[i], pair.rows[i], n1, k, columns, !few, local.left[i]);
        }
        // What is met next: of many granules the same columns of the next pair, of few the next
        // columns.
        const bool stays = few && b + 1 < blocks;
        const Pair next = stays ? pair : pair_of(p + 1);
        const std::int64_t ask = !few ? k : stays ? k + k_block : 0;
        const std::int64_t asked = K - ask < k_block ? K - ask : k_block;
        for (std::int64_t g = g0; g < g1; g += 2) {
            for (int i = 0; i < 2 && next.rows[i] < n1; ++i) {
                const std::int64_t last = next.rows[i] + 16;
                prefetch_rows(next.weights[i]->row(next.rows[i]) + 2 * ask,
                              static_cast<std::size_t>(2 * K),
                              (last < n1 ? last : n1) - next.rows[i],
                              static_cast<std::size_t>(2 * asked), g - g0,
                              few ? 1 : g1 - g0 + 1);
            }
            const int rights = g1 - g < 2 ? 1 : 2;
            const std::int64_t slot =
                blocks == 1 || few ? 0 : 2 * (p * up_to_even(g1 - g0) + g - g0);
            Sums const at[4] = {local.sums + slot, local.sums + slot + 1, local.sums + slot + 2,
                                local.sums + slot + 3};
            const char *right = static_cast<const char *>(panel) +
                                static_cast<std::size_t>(g) * granule +
                                static_cast<std::size_t>(k / STEP) * F::right_terms * TILE;
            block<F>(pair.size, rights, left, right, granule, steps, b == 0, at, few);
            if (!few || b + 1 == blocks) store(pair.size, rights, at);
            if (b + 1 == blocks) finish(pair, g, rights, at);
        }
    };
    if (few) {
        for (std::int64_t p = 0; p < pairs; ++p) {
            for (std::int64_t b = 0; b < blocks; ++b) visit(p, b);
        }
    } else {
        for (std::int64_t b = 0; b < blocks; ++b) {
            for (std::int64_t p = 0; p < pairs; ++p) visit(p, b);
        }
    }
}

template <class F>
struct Products {
    template <class PairOf, class Finish>
    static void run(std::int64_t pairs, const PairOf &pair_of, const void *panel, const Weight &w,
                    std::int64_t n1, std::int64_t g0, std::int64_t g1, const Finish &finish) {
        headrace::run<F>(pairs, pair_of, panel, w.columns, n1, g0, g1, finish);
    }
};

std::int64_t task_rows(std::int64_t rows, std::int64_t columns, int matrices) {
    return amx_task_rows(rows, columns, matrices, STEP * STEPS);
}

template <class F>
Engine engine(const char *name) {
    return {name, GRANULE, 32, panel_bytes<F>, pack<F>, task_rows, multiply<Products<F>>,
            gated<Products<F>>};
}

}  // namespace

const Engine *amx_engine(Format format) {
    static const Engine bf16 = engine<Bf16<3>>("amx");
    return format == Format::bf16 ? &bf16 : nullptr;
}

const Engine *amx_fast_engine(Format format) {
    static const Engine bf16 = engine<Bf16<2>>("amx_fast"), f16 = engine<F16<2>>("amx_fast");
    return format == Format::bf16 ? &bf16 : format == Format::f16 ? &f16 : nullptr;
}

const Engine *amx_bf16_engine(Format format) {
    static const Engine bf16 = engine<Bf16<1>>("amx_bf16");
    return format == Format::bf16 ? &bf16 : nullptr;
}

}  // namespace headrace

#else

const headrace::Engine *headrace::amx_engine(Format) { return nullptr; }
const headrace::Engine *headrace::amx_fast_engine(Format) { return nullptr; }
const headrace::Engine *headrace::amx_bf16_engine(Format) { return nullptr; }

#endif
