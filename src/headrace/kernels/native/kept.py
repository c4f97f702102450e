"""What native calls must know of the objects that they are given again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOST = 512
"""Objects kept at once, a few kilobytes each."""


class Kept:
    """What was made of an object, as long as the same object comes again. For one thread.

    Objects are compared by identity and must not change while they are in use.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}

    def of(self, source: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` made when ``source`` came first."""
        found = self._made.get(id(source))
        if found is not None and found[0] is source:
            return found[1]
        if len(self._made) >= MOST:
            self._made.clear()
        made = make()
        self._made[id(source)] = source, made  # holding it, its id stays its own
        return made


def made_of(kept: Kept | None, source: Any, make: Callable[[], Any]) -> Any:
    """The same, or made anew where nothing is kept."""
    return make() if kept is None else kept.of(source, make)
