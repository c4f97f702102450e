// Memory of the calling thread for packing and partial sums, kept between calls.
#pragma once

#include <cstddef>

namespace headrace {

constexpr std::size_t LOCAL_BYTES = 1 << 20;

// LOCAL_BYTES, aligned to a page. Throws std::bad_alloc.
void *local_memory();

}  // namespace headrace
