"""Writes one safetensors file whose tensors are known before their bytes, piece by piece.

The file grows under a temporary name; ``publish`` gives it its own once it is durable.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import StorageError

ITEM_BYTES: Mapping[str, int] = {"f32": 4, "bf16": 2, "f16": 2, "i8": 1, "i32": 4, "i64": 8}
"""Bytes per element of what is written."""

PARTIAL = ".partial"
"""Added to a file's name until it is whole and durable."""

_SYNC_BYTES = 64 << 20


def write_whole(descriptor: int, data: Any, at: int) -> None:
    """All of ``data`` (as memoryview takes bytes) from byte ``at`` on. Raises OSError: a disk that
    is nearly full takes a part first, and says so only when asked for the rest."""
    left = memoryview(data)
    while left:
        done = os.pwrite(descriptor, left, at)
        left, at = left[done:], at + done


class ShardWriter:
    """``tensors``: name -> (format, shape), in the order in which they lie in the file.

    An existing file of the temporary name is replaced. ``write`` may be called from several
    threads at once. Raises StorageError.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self.path = path
        self._partial = path.with_name(path.name + PARTIAL)
        header, self._offsets = _layout(tensors)
        self._start = len(header)
        self._unsynced, self._descriptor = 0, -1
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._descriptor = os.open(self._partial, flags, 0o644)
            write_whole(self._descriptor, header, 0)
        except OSError as error:
            self.close()
            raise StorageError(f"writing {path}", got=error.strerror) from error

    def write(self, name: str, offset: int, data: Any) -> None:
        """Bytes of tensor ``name`` from byte ``offset`` of it; ``data`` as memoryview takes it."""
        view = memoryview(data).cast("B")
        at = self._start + self._offsets[name] + offset
        try:
            write_whole(self._descriptor, view, at)
            self._unsynced += len(view)
            if self._unsynced >= _SYNC_BYTES:
                self.sync()
        except OSError as error:
            raise StorageError(
                f"writing {self.path}",
                got=error.strerror,
                hint="free some space and start again: finished shards are kept",
            ) from error

    def sync(self) -> None:
        """Make what was written durable, and leave nothing of it in the page cache."""
        os.fsync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self._unsynced = 0

    def publish(self) -> None:
        """Give the file, durable by now, its name."""
        self.close()
        os.replace(self._partial, self.path)

    def close(self) -> None:
        """Close the file; unpublished, it keeps its temporary name. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _layout(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
) -> tuple[bytes, dict[str, int]]:
    """Length and header, padded to 8 bytes; where each tensor's data starts after it."""
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * ITEM_BYTES[dtype]
        document[name] = {"dtype": dtype.upper(), "shape": list(shape), "data_offsets": [at, end]}
        offsets[name], at = at, end
    text = json.dumps(document, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text, offsets
