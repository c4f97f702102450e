"""What ``inspect`` says of a model, as tables."""

from __future__ import annotations

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from headrace.cli.inspection import Inspection, role_bytes
from headrace.specs.model import ModelSpec
from headrace.specs.units import format_bytes, size_argument


def print_inspection(found: Inspection, console: Console) -> None:
    """Facts, then bytes by role."""
    console.print(Group(_facts(found), _roles(found)))


def _facts(found: Inspection) -> Table:
    model, pages = found.model, found.pages
    table = Table(title=found.name, title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    can = "" if found.runs else ", can be planned, not run yet"
    integers = "" if model.integers is None else f"{model.integers.label} and "
    kind = f"{model.architecture}, {integers}{model.weight_dtype}, {found.source}{can}"
    table.add_row("architecture", kind)
    count = f"{_billions(model.parameters())}, {_billions(model.active_parameters())} active"
    table.add_row("parameters", f"{count} per token")
    table.add_row("shape", _shape_line(model))
    files = "" if found.files is None else f" in {found.files} file{'s' * (found.files != 1)}"
    table.add_row("weights", f"{format_bytes(found.stored_bytes)}{files}")
    largest = format_bytes(max(p.bytes for p in pages))
    table.add_row("pages", f"{len(pages)}, at most {largest} each")
    kv = ", ".join(
        f"{format_bytes(model.kv_bytes_per_token(d))} {d}" for d in ("int8", "f16", "f32")
    )
    table.add_row("KV per token", kv)
    table.add_row("context", f"{model.max_positions} tokens")
    if found.budgets is not None:
        b = found.budgets
        batch = f"{b.sequences} sequences of {b.tokens} tokens"
        table.add_row("all resident", f"--memory {size_argument(b.resident)} and up ({batch})")
        table.add_row("smallest", f"--memory {size_argument(b.smallest)}")
    if found.names_code:
        table.add_row("code", "config.json names Python files (auto_map); they are never run")
    for bad in found.nonfinite or ():
        table.add_row("not finite", escape(str(bad)))
    if found.nonfinite == ():
        table.add_row("not finite", "nothing: all weights were read")
    return table


def _roles(found: Inspection) -> Table:
    sizes = role_bytes(found.model, found.pages)
    total = sum(sizes.values())
    table = Table("role", "bytes", "share", box=None, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for role, size in sizes.items():
        if role == "head" and found.model.tied_embeddings:
            table.add_row("head", "", "is the embedding table")
        elif size:
            table.add_row(role, format_bytes(size), f"{size / total:.1%}")
    return table


def _shape_line(model: ModelSpec) -> str:
    heads = f"{model.heads}/{model.kv_heads} heads of {model.head_dim}"
    experts = f"{model.experts} experts of {model.ffn_width}, top {model.top_k}"
    ffn = experts if model.is_moe else f"width {model.ffn_width}"
    return f"{model.layers} layers of {model.hidden}, {heads}, {ffn}, vocabulary {model.vocab}"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
