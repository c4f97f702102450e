"""``bench kernels``: every kernel over its shapes, beside this machine's roofs and torch."""
