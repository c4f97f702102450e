// One task of the AMX engine: blocks of K outermost, so that the panel's slice of a block stays in
// the second-level cache while all weight rows of the task pass by. Part of amx_bf16.cpp.
#pragma once

namespace headrace {
namespace {

std::int64_t up_to_even(std::int64_t n) { return (n + 1) / 2 * 2; }

using Sums = float (*)[256];  // results [n][m] of one left and one right operand

// Two neighbouring blocks of sixteen weight rows, or one of gate and the same of up.
struct Pair {
    const Weight *weights[2];
    std::int64_t rows[2];
    int size;
};

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
         std::int64_t n1, std::int64_t g0, std::int64_t g1, Local &local, const Finish &finish) {
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
        const Pair next = pair_of(p + 1);
        for (std::int64_t g = g0; g < g1; g += 2) {
            for (int i = 0; !few && i < 2 && next.rows[i] < n1; ++i) {
                const std::int64_t last = next.rows[i] + 16;
                prefetch_rows(next.weights[i]->row(next.rows[i]) + 2 * k,
                              static_cast<std::size_t>(2 * K),
                              (last < n1 ? last : n1) - next.rows[i],
                              static_cast<std::size_t>(64 * steps), g - g0, g1 - g0 + 1);
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

// Rows of x from a tile [n][m], `columns` of them wide, to where they belong.
void put_tile(__m512i (&tile)[16], std::int64_t g, std::int64_t count, std::int64_t n,
              std::int64_t n1, const Store &to, Local &local) {
    transpose16(tile);
    const std::int64_t left = count - g * GRANULE, columns = n1 - n < 16 ? n1 - n : 16;
    const std::int64_t height = left < GRANULE ? left : GRANULE;
    for (std::int64_t m = 0; m < height; ++m) {
        _mm512_store_si512(local.row[m], tile[m]);
        put(to, g * GRANULE + m, n, local.row[m], static_cast<int>(columns));
    }
}

// Bias of rows n .. n + 16, zeros where there is none.
void bias16(const Weight &w, std::int64_t n, std::int64_t n1, float (&bias)[16]) {
    for (float &value : bias) value = 0.0f;
    if (w.bias != nullptr) bias_of(w, n, static_cast<int>(n1 - n < 16 ? n1 - n : 16), bias);
}

template <class F>
void multiply(const Weight &w, const void *panel, std::int64_t count, std::int64_t n0,
              std::int64_t n1, std::int64_t g0, std::int64_t g1, const Store &to) {
    Local &local = *static_cast<Local *>(local_memory());
    const auto pair_of = [&](std::int64_t p) {
        const std::int64_t n = n0 + 32 * p;
        return Pair{{&w, &w}, {n, n + 16}, n + 16 < n1 ? 2 : 1};
    };
    const auto finish = [&](const Pair &pair, std::int64_t g, int rights, Sums const (&at)[4]) {
        for (int i = 0; i < pair.size; ++i) {
            float bias[16];
            bias16(w, pair.rows[i], n1, bias);
            for (int r = 0; r < rights; ++r) {
                __m512i tile[16];
                for (int n = 0; n < 16; ++n) {
                    const __m512 sum = _mm512_load_ps(*at[2 * r + i] + 16 * n);
                    tile[n] = _mm512_castps_si512(_mm512_add_ps(sum, _mm512_set1_ps(bias[n])));
                }
                put_tile(tile, g + r, count, pair.rows[i], n1, to, local);
            }
        }
    };
    run<F>((n1 - n0 + 31) / 32, pair_of, panel, w.columns, n1, g0, g1, local, finish);
}

template <class F>
void gated(const Weight &gate, const Weight &up, const void *panel, std::int64_t count,
           std::int64_t n0, std::int64_t n1, std::int64_t g0, std::int64_t g1,
           const Activation &activation, const Store &to) {
    Local &local = *static_cast<Local *>(local_memory());
    const auto pair_of = [&](std::int64_t p) {
        return Pair{{&gate, &up}, {n0 + 16 * p, n0 + 16 * p}, 2};
    };
    const auto finish = [&](const Pair &pair, std::int64_t g, int rights, Sums const (&at)[4]) {
        float bias[2][16];
        bias16(gate, pair.rows[0], n1, bias[0]);
        bias16(up, pair.rows[1], n1, bias[1]);
        for (int r = 0; r < rights; ++r) {
            __m512i tile[16];
            for (int n = 0; n < 16; ++n) {
                const __m512 g_sum = _mm512_load_ps(*at[2 * r] + 16 * n);
                const __m512 u_sum = _mm512_load_ps(*at[2 * r + 1] + 16 * n);
                tile[n] = _mm512_castps_si512(
                    activate(_mm512_add_ps(g_sum, _mm512_set1_ps(bias[0][n])),
                             _mm512_add_ps(u_sum, _mm512_set1_ps(bias[1][n])), activation));
            }
            put_tile(tile, g + r, count, pair.rows[0], n1, to, local);
        }
    };
    run<F>((n1 - n0 + 15) / 16, pair_of, panel, gate.columns, n1, g0, g1, local, finish);
}

// As many weight rows as partial sums have room for when K takes several blocks.
std::int64_t task_rows(std::int64_t rows, std::int64_t columns, int matrices) {
    const std::int64_t granules = (rows + GRANULE - 1) / GRANULE;
    if (granules <= 2 || columns <= STEP * STEPS) return 64 / matrices;
    const std::int64_t room = SUM_TILES / up_to_even(granules) / matrices * 16;
    return room < 256 ? room : 256;
}

template <class F>
Engine engine(const char *name) {
    return {name, GRANULE, 32, panel_bytes<F>, pack<F>, task_rows, multiply<F>, gated<F>};
}

}  // namespace
}  // namespace headrace
