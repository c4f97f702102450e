"""What the garbage collector need not look at while a long run lasts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def standing_objects_spared() -> Iterator[None]:
    """Leave out of collections whatever is there by now, and look at it again afterwards: libraries
    make a quarter of a million objects, and to look for cycles among them keeps the interpreter
    from every lane, 140 ms each time. Not where anything is frozen already: this would thaw it, or
    freeze a little more with every run.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
