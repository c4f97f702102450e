#pragma once

#include <nanobind/nanobind.h>

// Adds attention and the cache of keys and values to the module.
void bind_attention(nanobind::module_ &module);
