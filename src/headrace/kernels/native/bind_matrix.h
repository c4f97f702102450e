#pragma once

#include <nanobind/nanobind.h>

// Adds the matrix kernels to the module.
void bind_matrix(nanobind::module_ &module);
