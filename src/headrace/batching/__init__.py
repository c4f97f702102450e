"""Which tokens go into the next sweep: requests, admission, micro-batches, blocks of the cache."""
