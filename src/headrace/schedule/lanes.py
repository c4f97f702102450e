"""Names of lanes. A lane does one task at a time; several may share a roof."""

from __future__ import annotations

CPU = "cpu"
"""Arithmetic of the processor, and sampling; beside an accelerator, attention."""
HOST = "host"
"""What touches the requests: forming a batch, committing it."""
ROWS = "rows"
"""Embedding rows: on a lane of pages, they would wait behind them, or hold them up."""
GPU = "gpu"
"""Arithmetic of the accelerator."""
STAGE = "stage"
"""Copies from pageable memory into pinned slots, by a thread of the processor."""
H2D = "h2d"
"""Host to device, first in, first out."""
D2H = "d2h"
"""Device to host."""
PACKETS = "packets"
"""Weights to the device on a queue of their own: they share the link with H2D, not its order."""


def disk_lane(index: int) -> str:
    """Lane of one request in flight."""
    return f"disk{index}"
