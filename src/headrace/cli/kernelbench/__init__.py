"""``bench kernels``: kernels over their shapes, beside this machine's roofs and torch."""
