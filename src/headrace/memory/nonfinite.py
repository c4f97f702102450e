"""Looks for NaN and infinity in stored weights: they poison every logit, and no header shows them.

Checked on the bits (all ones in the exponent), so that every format costs the same: one pass over
the file at the disk's rate, a megabyte at a time, past the page cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import StorageError
from headrace.memory.checkpoint import Checkpoint, TensorEntry
from headrace.memory.headers import open_regular

CHUNK_BYTES = 1 << 20


class _Bits(NamedTuple):
    """Unsigned type of one element, and the bits that are all set in NaN and infinity."""

    kind: str
    mask: int


_FORMATS: Mapping[str, _Bits] = {
    "f64": _Bits("<u8", 0x7FF << 52),
    "f32": _Bits("<u4", 0xFF << 23),
    "bf16": _Bits("<u2", 0xFF << 7),
    "f16": _Bits("<u2", 0x1F << 10),
    "f8_e5m2": _Bits("<u1", 0x1F << 2),
    "f8_e4m3": _Bits("<u1", 0x7F),
}
"""Formats that can hold NaN; integers cannot."""


@dataclass(frozen=True, slots=True)
class NonFinite:
    """A tensor that holds ``count`` values that are NaN or infinite, the first at ``index``."""

    tensor: str
    count: int
    index: tuple[int, ...]

    @property
    def layer(self) -> int | None:
        """Number in the tensor's name; None outside the layers."""
        return _number("layers", self.tensor)

    @property
    def expert(self) -> int | None:
        """Number in the tensor's name; None outside the experts."""
        return _number("experts", self.tensor)

    def __str__(self) -> str:
        parts = (("layer", self.layer), ("expert", self.expert))
        where = ", ".join(f"{name} {number}" for name, number in parts if number is not None)
        name = self.tensor[:200] + (f" ({where})" if where else "")
        return f"tensor {name} holds {self.count} NaN or infinite values, first at {[*self.index]}"


def find_nonfinite(
    checkpoint: Checkpoint, pulse: Callable[[], None] = lambda: None
) -> Iterator[NonFinite]:
    """Tensors of ``checkpoint`` with NaN or infinity, in the order of the files.

    ``pulse`` is called before every chunk is read. Cost: reading everything up to where the
    caller stops. Raises CheckpointError, StorageError.
    """
    for number, path in enumerate(checkpoint.files):
        with open_regular(path) as (descriptor, _):
            for name, entry in checkpoint.tensors.items():
                bits = _FORMATS.get(entry.dtype)
                if entry.file == number and bits is not None:
                    count, first = _scan(descriptor, entry, bits, path.name, pulse)
                    if count:
                        index = tuple(int(i) for i in np.unravel_index(first, entry.shape or (1,)))
                        yield NonFinite(name, count, index)


def _number(kind: str, tensor: str) -> int | None:
    match = re.search(rf"\b{kind}\.(\d{{1,9}})\b", tensor)
    return int(match[1]) if match else None


def _scan(
    descriptor: int, entry: TensorEntry, bits: _Bits, file: str, pulse: Callable[[], None]
) -> tuple[int, int]:
    """(how many, flat index of the first) in one tensor."""
    count = first = 0
    size = np.dtype(bits.kind).itemsize
    for done in range(0, entry.nbytes, CHUNK_BYTES):
        pulse()
        data = _read(descriptor, entry.offset + done, min(CHUNK_BYTES, entry.nbytes - done), file)
        values: NDArray[np.unsignedinteger] = np.frombuffer(data, bits.kind)
        bad = (values & values.dtype.type(bits.mask)) == bits.mask
        found = int(np.count_nonzero(bad))
        if found and not count:
            first = done // size + int(bad.argmax())
        count += found
    return count, first


def _read(descriptor: int, offset: int, nbytes: int, file: str) -> bytes:
    try:
        data = os.pread(descriptor, nbytes, offset)
    except OSError as fault:
        raise StorageError(f"reading {file}", got=fault.strerror) from None
    start = offset // 4096 * 4096
    os.posix_fadvise(descriptor, start, offset + nbytes - start, os.POSIX_FADV_DONTNEED)
    if len(data) < nbytes:
        raise StorageError(
            f"{file} became shorter while it was read", expected=nbytes, got=len(data)
        )
    return data
