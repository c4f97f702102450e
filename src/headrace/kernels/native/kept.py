"""What native calls must know of the objects that they are given again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOST = 512
"""Calls remembered at once, a few kilobytes each."""


class Kept:
    """What was made of some objects, as long as the same objects come again. For one thread.

    Objects are compared by identity and must not change while they are in use.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def of(self, sources: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What ``make`` made when these ``sources`` came first."""
        key = tuple(map(id, sources))
        found = self._made.get(key)
        if found is not None:
            return found[1]
        if len(self._made) >= MOST:
            self._made.clear()
        made = make()
        self._made[key] = sources, made  # holding them, their ids stay their own
        return made


def made_of(kept: Kept | None, sources: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """The same, or made anew where nothing is kept."""
    return make() if kept is None else kept.of(sources, make)
