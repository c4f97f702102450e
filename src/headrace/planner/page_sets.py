"""Sets of page ids as text that a person can read and edit: ``0-12 15 20-40/4``.

``a-b`` are all ids from a to b, ``a-b/s`` every s-th of them. Pages that stay are mostly runs, or
spread evenly over the experts, so thousands take a few hundred characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from headrace.errors import DocumentError

_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?:/([0-9]{1,9}))?)?")
_FORM = "text as '0-12 15 20-40/4'"
_LEAST_RUN = 3  # a shorter run is no shorter as text


def compact(pages: Iterable[int]) -> str:
    """The text for ``pages``; '' for none."""
    return " ".join(_text(*run) for run in _runs(sorted(pages)))


def expand(text: object, pages: int) -> frozenset[int]:
    """The ids that ``text`` stands for, ascending, each below ``pages``. Raises DocumentError.

    Parts do not overlap, so however long the text, no more than ``pages`` ids are made."""
    if not isinstance(text, str | int) or isinstance(text, bool):
        raise DocumentError(
            "a set of pages", expected="text as '0-12 15 20-40/4'", got=_short(text)
        )
    found: set[int] = set()
    least = 0
    for part in str(text).split():
        match = _PART.fullmatch(part)
        if match is None:
            raise DocumentError("a set of pages", expected=_FORM, got=_short(part))
        start, end, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if not least <= start <= end < pages or step < 1:
            raise DocumentError(
                "pages that the model does not have",
                expected=f"ids of 0 to {pages - 1}, ascending",
                got=_short(part),
            )
        found.update(range(start, end + 1, step))
        least = end + 1
    return frozenset(found)


def _runs(ids: list[int]) -> Iterator[tuple[int, int, int]]:
    """(first, last, step) of the longest runs of equal steps, from the left."""
    at = 0
    while at < len(ids):
        end = at + 1
        step = ids[end] - ids[at] if end < len(ids) else 1
        while end + 1 < len(ids) and ids[end + 1] - ids[end] == step:
            end += 1
        last = min(end, len(ids) - 1)
        if last - at + 1 < _LEAST_RUN:
            last, step = at, 1
        yield ids[at], ids[last], step
        at = last + 1


def _text(first: int, last: int, step: int) -> str:
    if first == last:
        return str(first)
    return f"{first}-{last}" if step == 1 else f"{first}-{last}/{step}"


def _short(value: object) -> str:
    return repr(value)[:80]
