// What the machine can do at most: loops that only read, only multiply, or only add products of
// bytes or of bf16 pairs. They give other kernels' figures something to be a share of.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pool.h"

namespace headrace {

// Reads every byte of [data, data + bytes) once, spread over the team in stretches of 1 MiB.
// Returns a sum that depends on all of them, so that no read can be left out.
std::uint64_t read_all(Team &team, const void *data, std::size_t bytes);

// Multiply-adds in registers alone, `threads` strands of `steps` rounds each; how many FLOPs
// (two for each lane's multiply-add).
double multiply_floats(Team &team, int threads, std::int64_t steps);

// The same for products of unsigned and signed bytes added up in 32 bits; 0 where the processor
// has no instruction for it.
double multiply_bytes(Team &team, int threads, std::int64_t steps);

// The same for products of bf16 pairs added up in fp32.
double multiply_pairs(Team &team, int threads, std::int64_t steps);

}  // namespace headrace
