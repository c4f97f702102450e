"""KV blocks: who holds which. A block is the unit of KV memory, ``block`` tokens of all layers."""

from __future__ import annotations


class BlockPool:
    """``count`` block ids, each free or held by one sequence. Last given is first taken."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """Number of blocks nobody holds."""
        return len(self._free)

    def take(self, count: int) -> tuple[int, ...]:
        """``count`` blocks (the caller has checked ``free``)."""
        assert count <= len(self._free), "more blocks taken than are free"
        start = len(self._free) - count
        taken = tuple(reversed(self._free[start:]))
        del self._free[start:]
        return taken

    def give(self, blocks: tuple[int, ...]) -> None:
        """Take ``blocks`` back."""
        self._free.extend(reversed(blocks))


def blocks_for(tokens: int, block: int) -> int:
    """Blocks that hold ``tokens`` tokens."""
    return -(-tokens // block)
