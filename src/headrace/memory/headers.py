"""Small files of a checkpoint, read with suspicion: JSON documents and safetensors headers.

Everything here came from a stranger. Sizes are bounded before a byte is allocated, only
regular files are opened, and every fault is a CheckpointError that names the file. Reads do
not leave the file in the page cache. Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from headrace.errors import CheckpointError

MAX_JSON_BYTES = 16 << 20
"""Largest index accepted: room for a hundred thousand tensors."""

MAX_CONFIG_BYTES = 4 << 20
"""Largest config.json or generation_config.json accepted; published ones have a few kilobytes."""

MAX_DEPTH = 32
"""Deepest nesting accepted in a JSON file: what follows may walk it by recursion."""

MAX_HEADER_BYTES = 16 << 20
"""Largest safetensors header accepted (the library's own bound is 100 MB)."""

MAX_DIMENSIONS = 8

DTYPE_BITS: Mapping[str, int] = (
    {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32}
    | {"F16": 16, "BF16": 16, "I16": 16, "U16": 16, "BOOL": 8, "I8": 8, "U8": 8}
    | {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
    | {"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
)
"""Bits per element of every safetensors format; which of them run is decided elsewhere."""


class HeaderEntry(NamedTuple):
    """One tensor of a header. ``offset`` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A validated safetensors header: tensors in file order, the file's size, a digest."""

    tensors: Mapping[str, HeaderEntry]
    file_bytes: int
    digest: bytes

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors: the rest of the file is header."""
        return sum(entry.nbytes for entry in self.tensors.values())


Read = Callable[[int, int], bytes]
"""(nbytes, offset) -> the bytes there, all of them, or an error."""


def read_header(path: Path) -> Header:
    """Parse and validate the header of one safetensors file; the data is not touched.

    Raises CheckpointError as ``parse_header`` does."""
    with open_regular(path) as (descriptor, size):
        header = parse_header(lambda n, at: _pread(descriptor, n, at, path), size, path.name)
        _forget(descriptor, size - header.data_bytes)
    return header


def parse_header(read: Read, size: int, name: str) -> Header:
    """The header of a safetensors file of ``size`` bytes called ``name``; ``read`` fetches two
    pieces of it, its length and its text.

    Tensors must tile the data section exactly: no hole, no overlap, no byte left over, as
    the safetensors library demands. Raises CheckpointError.
    """
    if size < 8:
        raise CheckpointError(f"{name} is truncated", expected=">= 8 bytes", got=size)
    length = int.from_bytes(read(8, 0), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"header of {name} is too long",
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            got=length,
            hint="the file may not be safetensors, or be damaged; download it again",
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{name} is truncated inside its header",
            expected=f">= {8 + length} bytes",
            got=size,
            hint="download the file again",
        )
    text = read(length, 8)
    tensors = _entries(parse_object(text, name), 8 + length, name)
    _check_tiling(tensors, 8 + length, size, name)
    return Header(tensors, size, blake2b(text, digest_size=16).digest())


def read_json(path: Path, most_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a small file, at most MAX_DEPTH deep. Raises CheckpointError."""
    with open_regular(path) as (descriptor, size):
        if size > most_bytes:
            raise CheckpointError(
                f"{path.name} is too large", expected=f"at most {most_bytes} bytes", got=size
            )
        text = _pread(descriptor, size, 0, path)
    return parse_document(text, path.name)


def parse_document(text: bytes, name: str) -> dict[str, Any]:
    """A JSON object at most MAX_DEPTH deep, as ``parse_object``. Raises CheckpointError."""
    value = parse_object(text, name)
    if depth_of(value, MAX_DEPTH) > MAX_DEPTH:
        raise CheckpointError(f"{name} is nested too deeply", expected=f"{MAX_DEPTH} levels")
    return value


def parse_object(text: bytes, name: str) -> dict[str, Any]:
    """A JSON object without repeated keys, NaN or infinities (``1e999`` included).

    Raises CheckpointError naming ``name``.
    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=refuse_constant,
            parse_float=finite_float,
        )
    except CheckpointError as fault:
        raise CheckpointError(f"{name}: {fault.message}") from None
    except (ValueError, RecursionError) as fault:
        raise CheckpointError(f"{name} is not valid JSON", got=str(fault)[:200]) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}", expected="a JSON object", got=type(value).__name__)
    return value


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, int]]:
    """(descriptor, size) of a regular file. Symbolic links are followed: ``folder.inside`` says
    where to. Pipes and devices are refused without blocking. Raises CheckpointError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        raise CheckpointError(f"cannot open {path.name!r} in {path.parent}", got=reason) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path.name!r} in {path.parent}", expected="a regular file")
        # No read-ahead: what follows a header is gigabytes that nobody asked for.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def _entries(document: dict[str, Any], start: int, file: str) -> dict[str, HeaderEntry]:
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"__metadata__ of {file}", expected="an object of strings")
    entries = [(name, _entry(name, value, start, file)) for name, value in document.items()]
    return dict(sorted(entries, key=lambda item: (item[1].offset, item[1].nbytes)))


def _entry(name: str, value: object, start: int, file: str) -> HeaderEntry:
    where = f"tensor {name[:200]!r} of {file}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(where, expected="dtype, shape and data_offsets", got=_short(value))
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(
            f"dtype of {where}", expected="a safetensors dtype", got=_short(dtype)
        )
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"shape of {where}", expected="sizes from 0 to 2^63 - 1", got=_short(shape)
        )
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"data_offsets of {where}", expected="[begin, end]", got=_short(offsets)
        )
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
    nbytes = offsets[1] - offsets[0]
    if bits != 8 * nbytes:
        raise CheckpointError(
            f"size of {where}",
            expected=f"{bits / 8:g} bytes for {dtype} {_short(shape)}",
            got=f"{nbytes} bytes",
        )
    return HeaderEntry(dtype, tuple(shape), start + offsets[0], nbytes)


def _check_tiling(
    tensors: Mapping[str, HeaderEntry], start: int, file_bytes: int, file: str
) -> None:
    end = start
    for name, entry in tensors.items():
        if entry.offset != end:
            fault = "overlaps the tensor before it" if entry.offset < end else "leaves a hole"
            raise CheckpointError(
                f"tensor {name[:200]!r} of {file} {fault}",
                expected=f"offset {end} in the file",
                got=entry.offset,
            )
        end += entry.nbytes
    if end != file_bytes:
        fault = "is truncated" if end > file_bytes else "has bytes that belong to no tensor"
        raise CheckpointError(
            f"{file} {fault}",
            expected=f"{end} bytes",
            got=f"{file_bytes} bytes",
            hint="download the file again",
        )


def refuse_constant(name: str) -> None:
    """For ``json.loads``: NaN and Infinity are not JSON. Raises ValueError."""
    raise ValueError(f"{name} is not a JSON number")


def finite_float(text: str) -> float:
    """For ``json.loads``: a number that a float can hold. Raises ValueError."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is out of range")
    return value


def depth_of(value: object, most: int) -> int:
    """Levels of lists and objects in parsed JSON; counts no further than ``most`` + 1."""
    level: list[Any] = [value]
    depth = 0
    while depth <= most:
        level = [v for v in level if isinstance(v, list | dict)]
        if not level:
            break
        depth += 1
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v)]
    return depth


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise CheckpointError(f"key {twice[:200]!r} stands twice")
    return result


def _pread(descriptor: int, nbytes: int, offset: int, path: Path) -> bytes:
    pieces = []
    while nbytes:
        try:
            piece = os.pread(descriptor, nbytes, offset)
        except OSError as fault:
            raise CheckpointError(f"cannot read {path}", got=fault.strerror) from None
        if not piece:
            raise CheckpointError(f"{path} became shorter while it was read")
        pieces.append(piece)
        nbytes -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def _forget(descriptor: int, nbytes: int) -> None:
    os.posix_fadvise(descriptor, 0, -(-nbytes // 4096) * 4096, os.POSIX_FADV_DONTNEED)


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, (dict, list)) or len(value) < 20 else "too long"
    return text if len(text) <= 120 else text[:117] + "..."
