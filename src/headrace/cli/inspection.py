"""What ``inspect`` says of a model, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headrace.cli.budgets import Budgets, budgets_of
from headrace.cli.model_source import find_model
from headrace.specs.model import ITEM_BYTES, ModelSpec
from headrace.specs.pages import Page


@dataclass(frozen=True)
class Inspection:
    """Everything that ``inspect`` prints. ``files`` is None for a registry entry."""

    name: str
    source: str
    model: ModelSpec
    pages: tuple[Page, ...]
    stored_bytes: int
    files: int | None = None
    runs: bool = True
    budgets: Budgets | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``; bytes and counts as integers."""
        model, pages = self.model, self.pages
        return {
            "name": self.name,
            "source": self.source,
            "architecture": model.architecture,
            "dtype": model.weight_dtype,
            "integers": None if model.integers is None else vars(model.integers),
            "parameters": model.parameters(),
            "active_parameters": model.active_parameters(),
            "stored_bytes": self.stored_bytes,
            "files": self.files,
            "runs": self.runs,
            "bytes_by_role": role_bytes(pages),
            "shape": shape_of(model),
            "max_positions": model.max_positions,
            "pages": len(pages),
            "largest_page_bytes": max(p.bytes for p in pages),
            "kv_bytes_per_token": {d: model.kv_bytes_per_token(d) for d in ITEM_BYTES},
            "budgets": None if self.budgets is None else vars(self.budgets),
        }


def inspect_model(name: str) -> Inspection:
    """Gather what is said of a model. Reads headers only; raises ModelError, UsageError."""
    source = find_model(name)
    pages, checkpoint = source.pages, source.checkpoint
    return Inspection(
        source.name,
        "registry" if checkpoint is None else "local folder",
        source.model,
        pages,
        sum(page.bytes for page in pages) if checkpoint is None else checkpoint.total_bytes,
        None if checkpoint is None else len(checkpoint.files),
        source.runs,
        budgets_of(source.model, pages),
    )


def role_bytes(pages: tuple[Page, ...]) -> dict[str, int]:
    """Bytes by what they are for, as stored; the values sum to all the weights of the model."""
    sizes = dict.fromkeys(("experts", "attention", "router", "norms", "embeddings", "head"), 0)
    for page in pages:
        for piece in page.slices:
            sizes[_role(page, piece.tensor)] += piece.nbytes
    return sizes


def _role(page: Page, tensor: str) -> str:
    if page.expert is not None:
        return "experts"
    if tensor.endswith("norm"):
        return "norms"
    return {"router": "router", "embed": "embeddings", "head": "head"}.get(tensor, "attention")


def shape_of(model: ModelSpec) -> dict[str, int]:
    """The dimensions, under the names that ``bench make-checkpoint`` takes."""
    return {
        "layers": model.layers,
        "hidden": model.hidden,
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "experts": model.experts,
        "top_k": model.top_k,
        "width": model.ffn_width,
        "vocab": model.vocab,
    }
