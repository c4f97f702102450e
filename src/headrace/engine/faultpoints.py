"""Named points at which a test may make a job fail. Nothing happens at them by default.

``input.line``       before a line of the input is read
``output.write``     before a group of lines is written
``output.chunk``     after each part of the group (at most ``CHUNK`` bytes), not yet durable
``output.fsync``     all bytes written, not yet durable
``output.durable``   the group is durable, not yet counted
``replace.fsync``    a rewritten file is complete under its temporary name, not yet durable
``replace.rename``   durable under its temporary name, before it takes the place of the old one
"""

from __future__ import annotations

from collections.abc import Callable

Faults = Callable[[str], None]
"""Called with the name of a point; what it raises is what happened there."""


def no_faults(point: str) -> None:
    """The default: nothing fails."""
