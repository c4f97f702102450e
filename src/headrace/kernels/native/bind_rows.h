#pragma once

#include <nanobind/nanobind.h>

// Adds the row kernels to the module. After bind_matrix, whose weights they take.
void bind_rows(nanobind::module_ &module);
