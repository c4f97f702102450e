// Weights turned once, where they lie: the same bytes in the order in which they are multiplied.
//
// Of every sixteen rows, their first 64 bytes come first, as sixteen vectors of 32-bit words: the
// first word of every row, the second of every row, and so on; then their next 64 bytes. A kernel
// with a lane for each row reads memory from beginning to end, and has nothing left to turn.
// Scales of the same rows lie in the same order: the first of every row, the second of every row.
// Zeros and bias stay as they are.
#pragma once

#include "matrix.h"
#include "pool.h"

namespace headrace {

constexpr std::int64_t TURNED_ROWS = 16;
constexpr std::size_t TURNED_BYTES = 64;

// Rows of a weight that can be turned: those in whole groups, if they are made of whole lines.
inline std::int64_t turnable(std::int64_t rows, std::size_t row_bytes) {
    return row_bytes % TURNED_BYTES == 0 ? rows / TURNED_ROWS * TURNED_ROWS : 0;
}

// Rearranges `data` and (unless null) `scales`, where those of w lie as stored. Takes memory for
// sixteen rows for each thread.
void turn(Team &team, const Weight &w, void *data, void *scales);

}  // namespace headrace
