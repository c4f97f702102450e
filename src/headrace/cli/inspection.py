"""What ``inspect`` says of a model, as data, and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from headrace.specs.model import ITEM_BYTES, ModelSpec
from headrace.specs.pages import page_layout
from headrace.specs.units import format_bytes


@dataclass(frozen=True)
class Budgets:
    """Memory budgets in bytes: ``resident`` keeps everything, ``smallest`` just works.

    ``sequences`` and ``tokens`` are the batch that both were computed for.
    """

    resident: int
    smallest: int
    sequences: int
    tokens: int


@dataclass(frozen=True)
class Inspection:
    """Everything that ``inspect`` prints. ``files`` is None for a registry entry."""

    name: str
    source: str
    model: ModelSpec
    stored_bytes: int
    files: int | None = None
    budgets: Budgets | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``; bytes and counts as integers."""
        model, pages = self.model, page_layout(self.model)
        return {
            "name": self.name,
            "source": self.source,
            "architecture": model.architecture,
            "dtype": model.weight_dtype,
            "parameters": model.parameters(),
            "active_parameters": model.active_parameters(),
            "stored_bytes": self.stored_bytes,
            "files": self.files,
            "bytes_by_role": role_bytes(model),
            "shape": shape_of(model),
            "max_positions": model.max_positions,
            "pages": len(pages),
            "largest_page_bytes": max(p.bytes for p in pages),
            "kv_bytes_per_token": {d: model.kv_bytes_per_token(d) for d in ITEM_BYTES},
            "budgets": None if self.budgets is None else vars(self.budgets),
        }


def role_bytes(model: ModelSpec) -> dict[str, int]:
    """Bytes by what they are for; the values sum to all the weights of the model."""
    item, layers = ITEM_BYTES[model.weight_dtype], model.layers

    def size(shapes: Mapping[str, tuple[int, ...]]) -> int:
        return item * sum(s[0] * (s[1] if len(s) > 1 else 1) for s in shapes.values())

    layer, rest = model.layer_tensors(), model.global_tensors()
    router = {n: s for n, s in layer.items() if n == "router"}
    norms = {n: s for n, s in layer.items() if n.endswith("norm")}
    attention = {n: s for n, s in layer.items() if n not in router and n not in norms}
    return {
        "experts": layers * model.experts * size(model.expert_tensors()),
        "attention": layers * size(attention),
        "router": layers * size(router),
        "norms": layers * size(norms) + size({"final_norm": rest["final_norm"]}),
        "embeddings": size({"embed": rest["embed"]}),
        "head": size({"head": rest["head"]}) if "head" in rest else 0,
    }


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


def print_inspection(found: Inspection, console: Console) -> None:
    """The same as tables."""
    console.print(Group(_facts(found), _roles(found)))


def _facts(found: Inspection) -> Table:
    model, pages = found.model, page_layout(found.model)
    table = Table(title=found.name, title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("architecture", f"{model.architecture}, {model.weight_dtype}, {found.source}")
    count = f"{_billions(model.parameters())}, {_billions(model.active_parameters())} active"
    table.add_row("parameters", f"{count} per token")
    table.add_row("shape", _shape_line(model))
    files = "" if found.files is None else f" in {found.files} file{'s' * (found.files != 1)}"
    table.add_row("weights", f"{format_bytes(found.stored_bytes)}{files}")
    largest = format_bytes(max(p.bytes for p in pages))
    table.add_row("pages", f"{len(pages)}, at most {largest} each")
    kv = ", ".join(f"{format_bytes(model.kv_bytes_per_token(d))} {d}" for d in ("f16", "f32"))
    table.add_row("KV per token", kv)
    table.add_row("context", f"{model.max_positions} tokens")
    if found.budgets is not None:
        b = found.budgets
        batch = f"{b.sequences} sequences of {b.tokens} tokens"
        table.add_row("all resident", f"--memory {format_bytes(b.resident)} and up ({batch})")
        table.add_row("smallest", f"--memory {format_bytes(b.smallest)}")
    return table


def _roles(found: Inspection) -> Table:
    sizes = role_bytes(found.model)
    total = sum(sizes.values())
    table = Table("role", "bytes", "share", box=None, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for role, size in sizes.items():
        table.add_row(role, format_bytes(size), f"{size / total:.1%}")
    if found.model.tied_embeddings:
        table.caption, table.caption_justify = "the head is the embedding table", "left"
    return table


def _shape_line(model: ModelSpec) -> str:
    heads = f"{model.heads}/{model.kv_heads} heads of {model.head_dim}"
    experts = f"{model.experts} experts of {model.ffn_width}, top {model.top_k}"
    ffn = experts if model.is_moe else f"width {model.ffn_width}"
    return f"{model.layers} layers of {model.hidden}, {heads}, {ffn}, vocabulary {model.vocab}"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
