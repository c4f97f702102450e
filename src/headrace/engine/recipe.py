"""What ``quantize`` is asked to do, and what that makes of every tensor of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from headrace.errors import UnsupportedModelError, UsageError
from headrace.memory.checkpoint import Checkpoint, TensorEntry
from headrace.memory.write_shard import ITEM_BYTES
from headrace.models.load import architecture
from headrace.specs.forms import MATRICES, Form
from headrace.specs.model import ModelSpec

BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
GROUPS = (32, 64, 128)

Stored = tuple[str, tuple[int, ...]]
"""Format and shape of one stored tensor."""


@dataclass(frozen=True)
class Recipe:
    """``weights`` is int8 or int4. ``group`` columns share a scale; None: a whole row of int8, the
    largest of GROUPS that divides every row of int4. ``search`` looks for the scale of least
    squared error (None: for int4 only). ``head`` makes integers of the output head as well.
    """

    weights: str
    group: int | None = None
    symmetric: bool = True
    search: bool | None = None
    head: bool = False

    def __post_init__(self) -> None:
        if self.weights not in BITS:
            raise UsageError("--weights", expected=" | ".join(BITS), got=self.weights)
        if self.group not in (None, *GROUPS):
            raise UsageError("--group", expected=" | ".join(map(str, GROUPS)), got=self.group)

    @property
    def bits(self) -> int:
        """Bits of an integer."""
        return BITS[self.weights]

    @property
    def searches(self) -> bool:
        """Whether scales are searched for."""
        return self.bits == 4 if self.search is None else self.search


@dataclass(frozen=True)
class Item:
    """One tensor of the source and what becomes of it: itself (``form`` None), or integers.

    ``stored``: name in the output -> format and shape. ``layer`` and ``role`` say whom its error
    is counted for.
    """

    name: str
    entry: TensorEntry
    form: Form | None
    stored: Mapping[str, Stored]
    layer: int | None = None
    role: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the output."""
        return sum(math.prod(shape) * ITEM_BYTES[dtype] for dtype, shape in self.stored.values())


def form_of(recipe: Recipe, model: ModelSpec) -> Form:
    """The form that ``recipe`` gives to matrices of ``model``; scales in the model's own format.

    Raises UsageError where groups do not divide rows, or the model has integers already.
    """
    if model.integers is not None:
        raise UsageError(
            "the weights are integers already", got=model.integers.label,
            hint="start from the checkpoint in 16 bits",
        )  # fmt: skip
    if recipe.head and model.tied_embeddings:
        raise UsageError("--lm-head", got="a model whose head is its embedding table")
    columns = sorted({model.hidden, model.q_size, model.ffn_width})
    group = recipe.group
    if group is None and recipe.bits == 4:
        group = next((g for g in reversed(GROUPS) if not any(c % g for c in columns)), GROUPS[0])
    odd = [c for c in columns if group is not None and c % group]
    if odd:
        fitting = [str(g) for g in GROUPS if not any(c % g for c in columns)]
        hint = f"--group {fitting[-1]}" if fitting else "--weights int8, one scale per row"
        raise UsageError(
            f"groups of {group} columns", expected=f"a divisor of {odd[0]}, the length of a row",
            got=group, hint=hint,
        )  # fmt: skip
    dtype = "u4" if recipe.bits == 4 else "i8" if group is None else "u8"
    return Form(dtype, group, model.weight_dtype, not recipe.symmetric)


def items_of(checkpoint: Checkpoint, model: ModelSpec, form: Form, head: bool) -> list[Item]:
    """Every tensor of the checkpoint, those of one page side by side and in order of use; what
    the model does not use comes last, as it is."""
    name_of = architecture(checkpoint.config).tensor_name
    items = {}
    for logical, layer, expert in _logical(model):
        name = name_of(logical, layer, expert)
        entry = checkpoint.tensors[name]
        integer = logical in MATRICES or (head and logical == "head")
        if integer and entry.dtype not in ("f32", "bf16", "f16"):
            raise UnsupportedModelError(f"format of {name}", got=entry.dtype)
        role = "experts" if expert is not None else "head" if layer is None else "attention"
        items[name] = _item(name, entry, form if integer else None, layer, role)
    rest = sorted(set(checkpoint.tensors) - set(items))
    return [*items.values(), *(_item(n, checkpoint.tensors[n], None) for n in rest)]


def split(items: Sequence[Item], shard_bytes: int) -> list[list[Item]]:
    """Shards of at most ``shard_bytes`` (a single tensor may exceed it), in order."""
    shards: list[list[Item]] = [[]]
    room = shard_bytes
    for item in items:
        if item.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(item)
        room -= item.nbytes
    return shards


def ignored(model: ModelSpec, checkpoint: Checkpoint, head: bool) -> list[str]:
    """Linear modules that stay floats, as ``quantization_config`` lists them."""
    name_of = architecture(checkpoint.config).tensor_name
    names = [] if head else ["lm_head"]
    if model.is_moe:
        routers = (name_of("router", layer, None) for layer in range(model.layers))
        names += [name.removesuffix(".weight") for name in routers]
    return names


def _logical(model: ModelSpec) -> Iterator[tuple[str, int | None, int | None]]:
    rest = model.global_tensors()
    yield "embed", None, None
    for layer in range(model.layers):
        yield from ((name, layer, None) for name in model.layer_tensors())
        for expert in range(model.experts):
            yield from ((name, layer, expert) for name in model.expert_tensors())
    yield from ((name, None, None) for name in rest if name != "embed")


def _item(
    name: str, entry: TensorEntry, form: Form | None, layer: int | None = None, role: str = ""
) -> Item:
    if form is None:
        return Item(name, entry, None, {name: (entry.dtype, entry.shape)}, layer, role)
    parts = form.parts(entry.shape)
    stored = {name + suffix: (part.dtype, part.shape) for suffix, part in parts.items()}
    if form.packed:
        stored[f"{name}_shape"] = ("i64", (2,))
    return Item(name, entry, form, stored, layer, role)
