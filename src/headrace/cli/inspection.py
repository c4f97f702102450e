"""What ``inspect`` says of a model, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.cli.budgets import Budgets, budgets_of
from headrace.cli.model_source import find_model
from headrace.errors import UsageError
from headrace.specs.model import KV_FORMATS, ModelSpec
from headrace.specs.pages import Page

if TYPE_CHECKING:
    from headrace.memory.checkpoint import Checkpoint
    from headrace.memory.nonfinite import NonFinite


@dataclass(frozen=True)
class Inspection:
    """Everything that ``inspect`` prints. ``files`` is None for a registry entry, ``nonfinite``
    (tensors that hold NaN or infinity) when nobody looked."""

    name: str
    source: str
    model: ModelSpec
    pages: tuple[Page, ...]
    stored_bytes: int
    files: int | None = None
    runs: bool = True
    budgets: Budgets | None = None
    nonfinite: tuple[NonFinite, ...] | None = None
    names_code: bool = False

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
            "bytes_by_role": role_bytes(model, pages),
            "shape": shape_of(model),
            "max_positions": model.max_positions,
            "pages": len(pages),
            "largest_page_bytes": max(p.bytes for p in pages),
            "kv_bytes_per_token": {d: model.kv_bytes_per_token(d) for d in KV_FORMATS},
            "budgets": None if self.budgets is None else vars(self.budgets),
            "names_code": self.names_code,
            "nonfinite": None if self.nonfinite is None else [_told(n) for n in self.nonfinite],
        }


def inspect_model(
    name: str, check_weights: bool = False, revision: str | None = None
) -> Inspection:
    """Gather what is said of a model. Reads headers, and all weights when they are to be
    checked; raises ModelError, UsageError, StorageError."""
    source = find_model(name, revision)
    checkpoint = source.checkpoint
    if source.folder is None and check_weights:
        raise UsageError("--check-weights", expected="a checkpoint folder", got=name)
    pages = source.pages
    return Inspection(
        source.name,
        source.kind,
        source.model,
        pages,
        sum(page.bytes for page in pages) if checkpoint is None else checkpoint.total_bytes,
        None if checkpoint is None else len(checkpoint.files),
        source.runs,
        budgets_of(source.model, pages),
        _nonfinite(checkpoint) if checkpoint is not None and check_weights else None,
        checkpoint is not None and checkpoint.names_code,
    )


def _nonfinite(checkpoint: Checkpoint) -> tuple[NonFinite, ...]:
    from headrace.memory.nonfinite import find_nonfinite

    return tuple(find_nonfinite(checkpoint))


def _told(found: NonFinite) -> dict[str, Any]:
    place = {"tensor": found.tensor, "layer": found.layer, "expert": found.expert}
    return {**place, "count": found.count, "index": [*found.index]}


def role_bytes(model: ModelSpec, pages: tuple[Page, ...]) -> dict[str, int]:
    """Bytes by what they are for, as stored; the values sum to all the weights of the model."""
    roles = ("experts", "shared", "attention", "router", "norms", "embeddings", "head")
    sizes = dict.fromkeys(roles, 0)
    for page in pages:
        if page.layer is not None and page.expert is not None:
            all_visit = model.is_moe and model.visited_by_all(page.layer, page.expert)
            sizes["shared" if all_visit else "experts"] += page.bytes
            continue
        for piece in page.slices:
            sizes[_role(piece.tensor)] += piece.nbytes
    return sizes


_ROUTING = ("router", "router_bias", "shared_gate")


def _role(tensor: str) -> str:
    if tensor.endswith("norm"):
        return "norms"
    if tensor in _ROUTING:
        return "router"
    return {"embed": "embeddings", "head": "head"}.get(tensor, "attention")


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
