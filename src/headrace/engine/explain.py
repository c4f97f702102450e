"""Why logits are not finite: most often one tensor of the checkpoint, which a search finds."""

from __future__ import annotations

from collections.abc import Callable

from headrace.errors import HeadraceError, NumericsError
from headrace.memory.checkpoint import Checkpoint
from headrace.memory.nonfinite import find_nonfinite


class Explainer:
    """Adds to an error the tensor (layer, expert) that holds NaN or infinity, or that none does.

    The first call reads weights up to that tensor, at the disk's rate; later ones read nothing.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._reason = ""

    def __call__(self, error: NumericsError, pulse: Callable[[], None]) -> NumericsError:
        """``error`` with the reason. ``pulse`` is called for every megabyte read; what it raises
        ends the search."""
        self._reason = self._reason or self._search(pulse)
        return NumericsError(
            error.message,
            expected=error.expected,
            got=f"{error.got}; {self._reason}",
            hint="`headrace inspect MODEL --check-weights` lists every such tensor",
        )

    def _search(self, pulse: Callable[[], None]) -> str:
        try:
            found = next(find_nonfinite(self._checkpoint, pulse), None)
        except HeadraceError as fault:
            return f"the weights could not be searched: {fault.message}"
        if found is None:
            return "every stored weight is finite, so a sum overflowed or a file changed"
        return str(found)
