"""Write safetensors shards tensor by tensor: one tensor in memory, none left in the page cache.

Format: 8 bytes little-endian header length, a JSON header padded with spaces, then the bytes.
All names and shapes are known beforehand, so that each header can be written before its data.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

Shape = tuple[int, ...]


def write_shards(
    folder: Path,
    shapes: dict[str, Shape],
    tensors: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int,
) -> int:
    """Write bf16 ``tensors`` (name, uint16 bits), in the order of ``shapes``; the bytes written."""
    plan = split(shapes, shard_bytes)
    stream = iter(tensors)
    where: dict[str, str] = {}
    total = 0
    for number, names in enumerate(plan, start=1):
        file = folder / f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        _write_shard(file, {name: shapes[name] for name in names}, stream)
        where |= dict.fromkeys(names, file.name)
        total += sum(byte_count(shapes[name]) for name in names)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def split(shapes: dict[str, Shape], shard_bytes: int) -> list[list[str]]:
    """Names per shard: in order, a new shard once the next tensor would pass ``shard_bytes``."""
    plan: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        if plan[-1] and used + byte_count(shape) > shard_bytes:
            plan.append([])
            used = 0
        plan[-1].append(name)
        used += byte_count(shape)
    return plan


def byte_count(shape: Shape) -> int:
    """Bytes of a bf16 tensor."""
    return 2 * int(np.prod(shape))


def to_bf16(values: np.ndarray) -> np.ndarray:
    """fp32 -> bf16 bits (uint16), to nearest, ties to even. No NaN is expected."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """bf16 bits (uint16) -> fp32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _write_shard(
    file: Path, shapes: dict[str, Shape], stream: Iterator[tuple[str, np.ndarray]]
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + byte_count(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            got, bits = next(stream)
            if (got, bits.shape, bits.dtype) != (name, shape, np.uint16):
                raise ValueError(f"expected {name} {shape}, got {got} {bits.shape} {bits.dtype}")
            out.write(np.ascontiguousarray(bits).data)
        out.flush()
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
