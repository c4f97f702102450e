// Small reads from files, many at once: rows of a table. Each waits for the disk's latency, or behind a
// page that is being read; threads of the interpreter would wait for it as well, before and after.
#pragma once

#include <nanobind/nanobind.h>

void bind_gather(nanobind::module_ &module);
