// Nouns of attention over paged keys and values, and the call that runs one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pool.h"

namespace headrace {

// Keys are met in tiles at fixed absolute positions, and the softmax of each split (whole tiles)
// is finished before it joins those of the splits before it. So a row's sums have one order.
constexpr int KV_TILE = 64;
constexpr std::int64_t KV_SPLIT = 1024;

constexpr std::int64_t UNIT_ROWS = 256;  // query rows that meet a tile of keys, at most

// i8: an integer q of token t and head h means scales[t, h] q.
enum class KvFormat { f32, bf16, f16, i8 };

// Where token `t` of a sequence lies: block table[t / block], there t % block.
struct Place {
    std::int64_t block = 0;
    std::int64_t within = 0;
};

// Keys and values of one layer, [blocks, heads, block, columns]; scales lie as [blocks, heads,
// block]. `turned`: keys lie as [blocks, heads, columns, block], so that one column of neighbouring
// keys fills a vector. Otherwise keys and values are the same memory.
struct KvCache {
    KvFormat format = KvFormat::f32;
    char *keys = nullptr;
    char *values = nullptr;
    float *key_scales = nullptr;
    float *value_scales = nullptr;
    std::int64_t block = 0;
    std::int64_t heads = 0;
    std::int64_t item_bytes = 0;
    std::int64_t row_bytes = 0;  // of a token and head
    bool turned = true;

    std::int64_t head_bytes() const { return block * row_bytes; }
    std::int64_t block_bytes() const { return heads * head_bytes(); }
    // Of head 0: bytes before a token's row, and before its first column among turned keys.
    std::int64_t row(Place p) const { return p.block * block_bytes() + p.within * row_bytes; }
    std::int64_t column(Place p) const { return p.block * block_bytes() + p.within * item_bytes; }
    std::int64_t scale(Place p, std::int64_t head) const {
        return (p.block * heads + head) * block + p.within;
    }
};

// `rows` consecutive query rows from `row` at `position` of the sequence whose blocks are `table`.
struct Piece {
    std::int64_t row = 0;
    std::int64_t rows = 0;
    std::int64_t position = 0;
    const std::int32_t *table = nullptr;
};

// out = softmax(scale q K^T) V. q rows [heads, group, d], out rows [heads, group, dv]; keys have d
// columns, values dv. `window` 0: none. `sinks` null, or a logit per query head that takes part in
// the softmax and has no value. Not causal: every row sees all keys of its piece.
struct Attention {
    KvCache cache;
    const float *q = nullptr;
    float *out = nullptr;
    std::int64_t q_stride = 0;
    std::int64_t out_stride = 0;
    std::int64_t group = 1;
    std::int64_t d = 0;
    std::int64_t dv = 0;
    float scale = 1.0f;
    std::int64_t window = 0;
    bool causal = true;
    const float *sinks = nullptr;
    std::vector<Piece> pieces;

    // Keys [first, last) that the row at `position` sees.
    std::int64_t first(std::int64_t position) const {
        return window > 0 && position >= window ? position - window + 1 : 0;
    }
    std::int64_t last(const Piece &p, std::int64_t position) const {
        return causal ? position + 1 : p.position + p.rows;
    }
};

// What one thread does at a time: rows [r0, r1) of a piece, KV heads [h0, h1), of each the query
// heads [g0, g1), over splits [s0, s1). Results go to `out`; or, when `partial` is given, as they
// are after that one split: a top score, a mass and dv sums for each row and head.
struct Unit {
    const Piece *piece = nullptr;
    std::int64_t r0 = 0, r1 = 0;
    std::int64_t h0 = 0, h1 = 0;
    std::int64_t g0 = 0, g1 = 0;
    std::int64_t s0 = 0, s1 = 0;
    float *partial = nullptr;

    std::int64_t heads() const { return h1 - h0; }
    std::int64_t group() const { return g1 - g0; }
    std::int64_t rows() const { return (r1 - r0) * group(); }  // of one KV head
};

// Rows [rows, heads, d] to the slots of a cache, rounded to its format.
struct Append {
    KvCache cache;
    const float *k = nullptr;
    const float *v = nullptr;
    std::int64_t k_stride = 0;
    std::int64_t v_stride = 0;
    std::int64_t rows = 0;
    std::int64_t d = 0;
    std::int64_t dv = 0;  // 0: there are no values
    const std::int64_t *slots = nullptr;
};

// Attention on an instruction set; null where it was not compiled in.
struct AttentionKernel {
    const char *name;
    std::int64_t (*most_rows)(const Attention &a);  // of a unit, over its KV heads; 0: too wide
    // `next`: the unit that this thread will probably be given after this one, or null.
    void (*run)(const Attention &a, const Unit &unit, const Unit *next);
    // Finishes the rows of `unit` from the partial results of its splits, one behind the other.
    void (*merge)(const Attention &a, const Unit &unit, const float *partial);
    void (*append)(const Append &a, std::int64_t first, std::int64_t last);
};

const AttentionKernel *plain_attention();
const AttentionKernel *neon_attention();
const AttentionKernel *avx2_attention();
const AttentionKernel *avx512_attention();

// "auto": the best that this processor has, or the one of that name. Throws std::invalid_argument.
const AttentionKernel &choose_attention(const char *path);

// Uses `memory` of `bytes`, where it suffices, to share one sequence among threads by its keys.
void attend(Team &team, int threads, const AttentionKernel &kernel, const Attention &a,
            float *memory, std::size_t bytes);

void append(Team &team, const AttentionKernel &kernel, const Append &a);

}  // namespace headrace
