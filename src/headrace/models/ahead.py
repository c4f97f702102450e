"""Which weights the next task reads, told to the kernels as soon as a task ends.

Between two tasks Python decides what to call, and memory is idle for some tens of microseconds: at
one row a tenth to a third of a sweep. Helper threads ask for what comes next meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from headrace.models.weights import Weight, Weights
from headrace.specs.pages import Page, Role


class Ahead:
    """Hints for resident ``pages`` that were used before; of all others nothing is said, since
    they may not be where they will be read. Results do not depend on a hint.
    """

    def __init__(
        self,
        pages: Sequence[Page],
        resident: Collection[int],
        weights: Weights,
        fetch: Callable[[Weight], object],
    ) -> None:
        self._weights = weights
        self._fetch = fetch
        self._depth = 1 + max(page.layer or 0 for page in pages)
        self._parts = sum(page.role is Role.HEAD for page in pages)
        here = [page for page in pages if page.id in resident]
        self._layers = {p.layer: p for p in here if p.role is Role.LAYER}
        self._experts = {(p.layer, p.expert): p for p in here if p.role is Role.EXPERT}
        self._head = {p.part: p for p in here if p.role is Role.HEAD}

    def output(self, layer: int) -> None:
        """The projection after attention comes next."""
        self._ask(self._layers.get(layer), "o")

    def expert(self, layer: int, expert: int) -> None:
        """An expert comes next."""
        self._ask(self._experts.get((layer, expert)), "gate")

    def layer(self, layer: int) -> None:
        """A layer's first projection comes next; behind the last layer, the head."""
        if layer == self._depth:
            self.head(0)
        else:
            self._ask(self._layers.get(layer), "q")

    def head(self, part: int) -> None:
        """A part of the head comes next; behind the last, the first layer of the next sweep."""
        if part == self._parts:
            self.layer(0)
        else:
            page = self._head.get(part)
            self._ask(page, "" if page is None else page.slices[0].tensor)

    def _ask(self, page: Page | None, tensor: str) -> None:
        known = None if page is None else self._weights.known(page.id)
        if known is not None:
            self._fetch(known[tensor])
