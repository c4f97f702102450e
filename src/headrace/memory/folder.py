"""Which files belong to a checkpoint folder: those in it, and the hub cache's blobs behind it.

A checkpoint may come from an archive or a repository that a stranger made, links included. A
link must not make Headrace read what the user never named.
"""

from __future__ import annotations

import os
from pathlib import Path

from headrace.errors import CheckpointError


def inside(root: Path, name: str) -> Path:
    """``root / name``, which need not exist.

    A symbolic link counts when it ends inside ``root`` (itself resolved: the user chose it), or
    in the ``blobs`` of the same repository when ``root`` is a snapshot of the Hugging Face
    cache (``models--org--name/snapshots/REVISION``). Raises CheckpointError for any other.
    """
    path = root / name
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(place) for place in _places(root)):
        raise CheckpointError(
            f"{name!r} is a symbolic link that leaves the folder {root}",
            expected="files inside the folder, or a snapshot of the Hugging Face cache",
            got=f"a link to {target}",
            hint="name the folder that holds the files, or link them hard",
        )
    return path


def _places(root: Path) -> list[Path]:
    real = Path(os.path.realpath(root))
    if real.parent.name != "snapshots":
        return [real]
    return [real, real.parent.parent / "blobs"]  # unless that is a link itself
