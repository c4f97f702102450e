"""``bench peers``: this engine and others in turn, on one machine, one workload, one bound."""
