"""Find the model that a command names: a local checkpoint folder, or an entry of the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import ModelError
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page, page_layout

if TYPE_CHECKING:
    from headrace.memory.checkpoint import Checkpoint


@dataclass(frozen=True)
class Source:
    """A model and where its numbers come from. ``checkpoint`` is None for the registry."""

    name: str
    model: ModelSpec
    pages: tuple[Page, ...]
    checkpoint: Checkpoint | None = None
    runs: bool = True


def find_model(text: str) -> Source:
    """Headers of a local folder, else the registry. Raises ModelError or UsageError."""
    folder = Path(text).expanduser()
    if folder.is_dir():
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
    return registry_model(text)


def local_model(folder: Path) -> Source:
    """Read config.json and the safetensors headers, no weights, and find every tensor that a
    run needs, in shape. Raises ModelError."""
    from headrace.memory.checkpoint import Checkpoint
    from headrace.memory.pages import PageTable
    from headrace.models.load import architecture, checkpoint_pages, checkpoint_spec

    checkpoint = Checkpoint.open(folder)
    model = checkpoint_spec(checkpoint)
    names = architecture(checkpoint.config).tensor_name
    pages = checkpoint_pages(checkpoint, model)
    PageTable(pages, checkpoint, names, model).close()
    return Source(str(folder), model, pages, checkpoint)


def registry_model(name: str) -> Source:
    """An entry of the registry, by name or repo id, any case. Raises UsageError."""
    from headrace.specs.registry import known_model

    known = known_model(name)
    name = f"{known.name} ({known.repo})"
    return Source(name, known.spec, page_layout(known.spec), runs=known.runs)
