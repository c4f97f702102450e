"""A checkpoint folder, opened: headers, dimensions, pages, tokenizer. No weights yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from headrace.engine.tokenizer import Tokenizer
from headrace.errors import ModelError
from headrace.kernels.native import read_together
from headrace.memory.checkpoint import Checkpoint
from headrace.memory.disk import DiskReader
from headrace.memory.pages import PageTable
from headrace.models.load import architecture, checkpoint_pages, checkpoint_spec
from headrace.specs.faults import Faults, no_faults
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page


@dataclass(frozen=True)
class Loaded:
    """A model ready to be planned for. ``page_bytes`` is the memory each page takes."""

    folder: Path
    checkpoint: Checkpoint
    model: ModelSpec
    pages: tuple[Page, ...]
    reader: DiskReader
    table: PageTable

    @classmethod
    def open(
        cls, folder: str | Path, direct: bool | None = None, faults: Faults = no_faults
    ) -> Loaded:
        """Open a local checkpoint folder; reads headers only.

        Raises ModelError and its kinds when it cannot be used.
        """
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise ModelError(
                "no such checkpoint folder",
                got=str(folder),
                hint="a folder with config.json and *.safetensors",
            )
        checkpoint = Checkpoint.open(path)
        model = checkpoint_spec(checkpoint)
        pages = checkpoint_pages(checkpoint, model)
        names = architecture(checkpoint.config).tensor_name
        reader = DiskReader(checkpoint.files, direct, faults, read_together())
        try:
            table = PageTable(pages, checkpoint, names, model, reader)
        except ModelError:
            reader.close()
            raise
        return cls(path, checkpoint, model, pages, reader, table)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer, loaded when first asked for."""
        return Tokenizer.load(self.folder)

    @cached_property
    def page_bytes(self) -> dict[int, int]:
        """Page id -> bytes of memory it takes."""
        return {page.id: self.table.slot_bytes(page.id) for page in self.pages}

    def first_layers(self, count: int) -> tuple[ModelSpec, PageTable]:
        """The model cut down to ``count`` layers, on the same files: enough to time every op."""
        model = replace(self.model, layers=count)
        names = architecture(self.checkpoint.config).tensor_name
        pages = checkpoint_pages(self.checkpoint, model)
        return model, PageTable(pages, self.checkpoint, names, model, self.reader)

    def close(self) -> None:
        """Close the files, end the tokenizer's process."""
        if "tokenizer" in self.__dict__:
            self.tokenizer.close()
        self.table.close()
        self.reader.close()

    def identity(self) -> dict[str, Any]:
        """What of the checkpoint decides a run's results."""
        return {
            "weights": self.checkpoint.content_key(),
            "tokenizer": self.tokenizer.content_key(),
            "chat_template": self.tokenizer.template_key(),
        }
