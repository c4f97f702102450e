"""Find the model that a command names: a local folder, an entry of the registry, or a repo id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import ModelError, UsageError
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, page_layout

if TYPE_CHECKING:
    from headrace.memory.checkpoint import Checkpoint


@dataclass(frozen=True)
class Source:
    """A model and where its numbers come from: ``kind`` says it in words.

    ``checkpoint`` is None for the registry; ``folder`` is where its files are, None when they are
    not here. ``page_bytes`` is the memory that each page takes.
    """

    name: str
    model: ModelSpec
    pages: tuple[Page, ...]
    checkpoint: Checkpoint | None = None
    runs: bool = True
    kind: str = "registry"
    folder: Path | None = None
    page_bytes: Mapping[int, int] | None = None


def find_model(text: str, revision: str | None = None) -> Source:
    """Headers of a local folder; else the registry, by name or repo id; else a repo id, of which
    headers and configuration are fetched. Raises ModelError or UsageError."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError("--revision is for repo ids", got=f"the local folder {text}")
        return local_model(folder)
    if folder.is_file():
        raise ModelError(
            "not a checkpoint folder",
            expected="the folder that holds config.json and *.safetensors",
            got=text,
            hint=str(folder.parent),
        )
    if text.startswith((".", "/", "~")):
        raise ModelError("no such checkpoint folder", got=text)
    if revision is None and (is_known(text) or not is_repo_id(text)):
        return registry_model(text)
    if not is_repo_id(text):
        raise UsageError("--revision is for repo ids", got=text)
    return hub_model(text, revision)


def is_repo_id(text: str) -> bool:
    """Whether ``text`` looks like org/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text) is not None


def is_known(text: str) -> bool:
    """Whether the registry has a model of that name or repo id."""
    from headrace.specs.registry import known_models

    names = (name.lower() for m in known_models().values() for name in (m.name, m.repo))
    return text.lower() in names


def local_model(folder: Path) -> Source:
    """Read config.json and the safetensors headers, no weights, and find every tensor that a
    run needs, in shape. Raises ModelError."""
    from headrace.memory.checkpoint import Checkpoint

    return _of_checkpoint(str(folder), Checkpoint.open(folder), "local folder", folder)


def hub_model(repo: str, revision: str | None = None) -> Source:
    """The same of a repository on the hub, or of what the cache holds of it. Raises ModelError."""
    from headrace.engine.hub import hub_checkpoint

    checkpoint, here = hub_checkpoint(repo, revision)
    if here:
        return _of_checkpoint(repo, checkpoint, "Hugging Face cache", checkpoint.folder)
    return _of_checkpoint(repo, checkpoint, "hub, headers only", None)


def _of_checkpoint(name: str, checkpoint: Checkpoint, kind: str, folder: Path | None) -> Source:
    from headrace.memory.disk import DiskReader
    from headrace.memory.pages import PageTable
    from headrace.models.load import architecture, checkpoint_pages, checkpoint_spec

    model = checkpoint_spec(checkpoint)
    names = architecture(checkpoint.config).tensor_name
    pages = checkpoint_pages(checkpoint, model)
    reader = DiskReader(checkpoint.files if folder else ())
    try:
        table = PageTable(pages, checkpoint, names, model, reader)
        sizes = {page.id: table.slot_bytes(page.id) for page in pages}
    finally:
        reader.close()
    return Source(name, model, pages, checkpoint, True, kind, folder, sizes)


def registry_model(name: str) -> Source:
    """An entry of the registry, by name or repo id, any case. Raises UsageError."""
    from headrace.specs.registry import known_model

    known = known_model(name)
    name = f"{known.name} ({known.repo})"
    return Source(name, known.spec, page_layout(known.spec), runs=known.runs)
