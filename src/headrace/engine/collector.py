"""What the garbage collector need not look at while a run lasts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def standing_objects_spared() -> Iterator[None]:
    """Leave out of collections whatever is there by now: libraries make a quarter of a million
    objects, and to look for cycles among them keeps the interpreter from every lane, 140 ms each
    time. Afterwards they are looked at as before, unless the caller had frozen objects of its own.
    """
    frozen_before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()
