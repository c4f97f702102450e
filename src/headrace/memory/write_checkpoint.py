"""Writes a safetensors checkpoint tensor by tensor, never holding more than one of them.

A shard's header must stand before data whose names are not known yet, so room is left for it
and filled with spaces, which the format allows; data then starts on a disk block. Shards are
synced and dropped from the page cache as they grow, and get their final names at the end: a
folder with an index is a whole checkpoint.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from headrace.errors import CheckpointError, StorageError
from headrace.memory.checkpoint import INDEX, SINGLE
from headrace.memory.write_shard import write_whole
from headrace.specs.model import ITEM_BYTES

HEADER_ROOM = 64 << 10
"""Bytes before the data of a shard: names of some 500 tensors."""

_SYNC_BYTES = 64 << 20


class CheckpointWriter:
    """Use as a context manager: leaving it completes the checkpoint, an exception removes it.

    ``shard_bytes`` bounds the data of a shard (a single tensor may exceed it). Existing
    weights in ``folder`` are refused. Raises CheckpointError, or StorageError (a full disk).
    """

    def __init__(self, folder: str | Path, shard_bytes: int = 1_000_000_000) -> None:
        self.folder = Path(folder)
        self.shard_bytes = shard_bytes
        self.total_bytes = 0
        self._weight_map: dict[str, int] = {}
        self._shards: list[_Shard] = []
        self._index: Path | None = None
        self._closed = False
        with _storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for name in (SINGLE, INDEX):
            if (self.folder / name).exists():
                raise CheckpointError(
                    f"{self.folder} holds weights already", got=name, hint="choose another folder"
                )

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: Any) -> None:
        """Append one tensor. ``dtype`` is bf16, f16 or f32; ``data`` its bytes in C order:
        anything that ``memoryview`` takes (bytes, a NumPy array), or an iterable of such."""
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        if name in self._weight_map or self._closed:
            raise CheckpointError(f"tensor {name} cannot be added", hint="twice, or after the end?")
        with _storage_errors(self.folder):
            self._shard_for(name, nbytes).add(name, dtype, shape, nbytes, data)
        self._weight_map[name] = len(self._shards) - 1
        self.total_bytes += nbytes

    def close(self) -> None:
        """Finish the last shard, name the shards, write the index. Idempotent."""
        if self._closed:
            return
        with _storage_errors(self.folder):
            if self._shards:
                self._shards[-1].finish()
            count = len(self._shards)
            names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
            if count == 1:
                names = [SINGLE]
            for shard, name in zip(self._shards, names, strict=True):
                shard.path = shard.path.rename(self.folder / name)
            if count > 1:
                self._write_index(names)
            _sync_folder(self.folder)
        self._closed = True

    def discard(self) -> None:
        """Remove what was written. Idempotent."""
        for shard in self._shards:
            shard.remove()
        if self._index is not None:
            self._index.unlink(missing_ok=True)
        self._closed = True

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise

    def _shard_for(self, name: str, nbytes: int) -> _Shard:
        last = self._shards[-1] if self._shards else None
        if last is not None and last.has_room(name, nbytes, self.shard_bytes):
            return last
        if last is not None:
            last.finish()
        path = self.folder / f"model-{len(self._shards) + 1:05}.partial"
        self._shards.append(_Shard(path))
        return self._shards[-1]

    def _write_index(self, names: list[str]) -> None:
        index = {
            "metadata": {"total_size": self.total_bytes},
            "weight_map": {name: names[i] for name, i in sorted(self._weight_map.items())},
        }
        self._index = self.folder / f"{INDEX}.partial"
        with self._index.open("w") as file:
            json.dump(index, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        self._index = self._index.rename(self.folder / INDEX)


class _Shard:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, object]] = {}
        self.room = HEADER_ROOM - 8 - len(_header_text({}))
        self.nbytes = 0
        self.unsynced = 0
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def has_room(self, name: str, nbytes: int, shard_bytes: int) -> bool:
        return self.nbytes + nbytes <= shard_bytes and self.room >= _entry_room(name)

    def add(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        nbytes: int,
        data: Any,
    ) -> None:
        if _entry_room(name) > self.room:
            raise CheckpointError("tensor name is too long", got=name[:200])
        begin = self.nbytes
        for piece in _pieces(data):
            self._write(_flat(piece), begin + nbytes, name)
        if self.nbytes != begin + nbytes:
            raise CheckpointError(
                f"data of tensor {name}", expected=f"{nbytes} bytes", got=self.nbytes - begin
            )
        self.room -= _entry_room(name)
        self.entries[name] = {
            "dtype": dtype.upper(),
            "shape": list(shape),
            "data_offsets": [begin, self.nbytes],
        }

    def finish(self) -> None:
        if self.descriptor < 0:
            return
        text = _header_text(self.entries).ljust(HEADER_ROOM - 8)
        header = len(text).to_bytes(8, "little") + text
        write_whole(self.descriptor, header, 0)
        self._sync()
        os.close(self.descriptor)
        self.descriptor = -1

    def remove(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self.path.unlink(missing_ok=True)

    def _write(self, piece: memoryview, end: int, name: str) -> None:
        if self.nbytes + len(piece) > end:
            raise CheckpointError(f"data of tensor {name} is longer than its shape says")
        write_whole(self.descriptor, piece, HEADER_ROOM + self.nbytes)
        self.nbytes += len(piece)
        self.unsynced += len(piece)
        if self.unsynced >= _SYNC_BYTES:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self.descriptor)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self.unsynced = 0


class _storage_errors:  # noqa: N801 (used as a keyword)
    """Turns OSError of a write into StorageError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, fault: BaseException | None, __: object) -> None:
        if isinstance(fault, OSError):
            raise StorageError(f"writing to {self.folder} failed", got=fault.strerror) from fault


def _header_text(entries: dict[str, dict[str, object]]) -> bytes:
    document = {"__metadata__": {"format": "pt"}, **entries}
    return json.dumps(document, separators=(",", ":")).encode()


def _entry_room(name: str) -> int:
    """Bytes that a tensor's entry may take: its name, and numbers at their longest."""
    return len(json.dumps(name)) + 120


def _pieces(data: Any) -> Iterable[Any]:
    try:
        return (memoryview(data),)
    except TypeError:
        return data


def _flat(piece: Any) -> memoryview:
    view = memoryview(piece)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
