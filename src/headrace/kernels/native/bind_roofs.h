// Registers the loops of roofs.h with the Python module.
#pragma once

#include <nanobind/nanobind.h>

void bind_roofs(nanobind::module_ &module);
