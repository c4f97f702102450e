"""A Hugging Face checkpoint folder as an index of byte ranges: headers only, no tensor loaded.

Safetensors, one file or shards, read where they lie: no conversion, no second copy, never
pickle. Starts without torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from headrace.errors import CheckpointError
from headrace.memory.folder import inside
from headrace.memory.headers import (
    MAX_CONFIG_BYTES,
    MAX_JSON_BYTES,
    Header,
    open_regular,
    read_header,
    read_json,
)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_FILES = 4096
"""Most shards accepted; each costs a descriptor."""

SAMPLED_TENSORS = 256
SAMPLE_BYTES = 64

_COSMETIC = frozenset({"_name_or_path", "transformers_version"})


class TensorEntry(NamedTuple):
    """Where one tensor lies: ``file`` indexes ``Checkpoint.files``, ``offset`` is in bytes from
    the start of that file. ``dtype`` is lower case: ``bf16``, ``f16``, ``f32``, ``i64``..."""

    file: int
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Files(Protocol):
    """Where the small files of a checkpoint come from: a folder, or a hub. Every method raises
    CheckpointError for what is malformed or not there; ``str()`` says where it is."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def document(self, name: str, most_bytes: int) -> dict[str, Any]:
        """The JSON object in a file of at most so many bytes."""
        ...

    def headers(self, names: Sequence[str]) -> tuple[Header, ...]:
        """The header of each of these safetensors files."""
        ...

    def listing(self) -> list[str]:
        """Names of all files, for a message."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """The index of one checkpoint folder. ``config`` is config.json as it stands."""

    folder: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    files: tuple[Path, ...]
    file_bytes: tuple[int, ...]
    tensors: Mapping[str, TensorEntry]
    headers: tuple[Header, ...] = field(repr=False, default=())

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Index ``folder``. Cost: its JSON files and one header per shard.

        Raises CheckpointError when something is missing, malformed or inconsistent.
        """
        root = Path(folder)
        if not root.is_dir():
            raise CheckpointError("not a checkpoint", expected="a folder", got=str(root))
        return cls.read(_Folder(root), root)

    @classmethod
    def read(cls, files: Files, root: Path) -> Checkpoint:
        """Index the checkpoint whose small files are ``files``; ``root`` is where the shards are,
        or will be. Raises as ``open``."""
        config = files.document("config.json", MAX_CONFIG_BYTES)
        weight_map = _weight_map(files)
        names = [SINGLE] if weight_map is None else sorted(set(weight_map.values()))
        headers = files.headers(names)
        generation = "generation_config.json"
        return cls(
            folder=root,
            config=config,
            generation_config=(
                files.document(generation, MAX_CONFIG_BYTES) if files.has(generation) else {}
            ),
            files=tuple(root / name for name in names),
            file_bytes=tuple(h.file_bytes for h in headers),
            tensors=_tensors(names, headers, weight_map),
            headers=headers,
        )

    @property
    def names_code(self) -> bool:
        """Whether config.json points to Python files (``auto_map``). They are never run."""
        return bool(self.config.get("auto_map"))

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def content_key(self) -> str:
        """Hash that tells checkpoints apart, for the signature of a run.

        Covers config, headers, and a sample of the data (two fine-tunes of one model have
        equal headers): 64 bytes from the middle of up to 256 tensors. Cost: as many small
        reads. Not a check of integrity. Raises CheckpointError.
        """
        digest = blake2b(digest_size=16)
        config = {k: v for k, v in self.config.items() if k not in _COSMETIC}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for header in self.headers:
            digest.update(header.digest)
        for piece in self._samples():
            digest.update(piece)
        return digest.hexdigest()

    def _samples(self) -> Iterable[bytes]:
        step = -(-len(self.tensors) // SAMPLED_TENSORS) or 1
        chosen = [self.tensors[name] for name in sorted(self.tensors)[::step]]
        for number, path in enumerate(self.files):
            with open_regular(path) as (descriptor, _):
                for entry in (t for t in chosen if t.file == number):
                    at = entry.offset + entry.nbytes // 2
                    yield os.pread(descriptor, min(SAMPLE_BYTES, entry.nbytes), at)
                    os.posix_fadvise(descriptor, at // 4096 * 4096, 8192, os.POSIX_FADV_DONTNEED)


class _Folder:
    """The files of a local folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, name: str) -> bool:
        return (self._root / name).exists()

    def document(self, name: str, most_bytes: int) -> dict[str, Any]:
        return read_json(inside(self._root, name), most_bytes)

    def headers(self, names: Sequence[str]) -> tuple[Header, ...]:
        return tuple(read_header(inside(self._root, name)) for name in names)

    def listing(self) -> list[str]:
        return sorted(p.name for p in self._root.iterdir())

    def __str__(self) -> str:
        return str(self._root)


def _weight_map(files: Files) -> dict[str, str] | None:
    """Tensor name -> shard name; None when there is a single file (which wins)."""
    if files.has(SINGLE):
        return None
    if not files.has(INDEX):
        raise CheckpointError(
            f"no weights in {files}",
            expected=f"{SINGLE} or {INDEX}",
            got=_what_is_there(files.listing()),
            hint="only safetensors is read; pickled weights (.bin, .pt) never are",
        )
    weight_map = files.document(INDEX, MAX_JSON_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"weight_map of {INDEX}", expected="tensor names and file names")
    shards = {_checked_name(shard) for shard in weight_map.values()}
    if len(shards) > MAX_FILES:
        raise CheckpointError("too many shards", expected=f"at most {MAX_FILES}", got=len(shards))
    for shard in shards:
        if not files.has(shard):
            raise CheckpointError(
                f"shard {shard!r} is missing from {files}", hint="download the checkpoint again"
            )
    return weight_map


def _checked_name(shard: object) -> str:
    """A plain file name: nothing that could leave the folder. Raises CheckpointError."""
    plain = isinstance(shard, str) and shard not in ("", ".", "..") and len(shard) < 256
    if not plain or any(c in shard for c in "/\\\0"):  # type: ignore[operator]
        raise CheckpointError(
            f"shard name in {INDEX}", expected="a file name inside the folder", got=repr(shard)[:99]
        )
    assert isinstance(shard, str)
    if not shard.endswith(".safetensors"):
        raise CheckpointError(f"shard name in {INDEX}", expected="*.safetensors", got=shard)
    return shard


def _tensors(
    names: list[str], headers: tuple[Header, ...], weight_map: dict[str, str] | None
) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for number, (file, header) in enumerate(zip(names, headers, strict=True)):
        for name, entry in header.tensors.items():
            if weight_map is None or weight_map.get(name) == file:
                found[name] = TensorEntry(number, entry.dtype.lower(), *entry[1:])
    missing = next((n for n in weight_map or () if n not in found), None)
    if missing is not None and weight_map is not None:
        raise CheckpointError(
            f"tensor {missing[:200]!r} is not in the shard that {INDEX} names",
            expected=f"in {weight_map[missing]}",
            hint="download the checkpoint again",
        )
    return found


def _what_is_there(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
