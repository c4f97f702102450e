"""The compressed-tensors layout: ``quantization_config`` of config.json, and stored integers.

Names and fields are those of github.com/vllm-project/compressed-tensors 0.20: the matrix
``x.weight`` is stored as ``x.weight`` (int8) or ``x.weight_packed``, with ``x.weight_scale`` and,
when asymmetric, ``x.weight_zero_point``. How a tensor is stored is read from the headers; the
config is only asked whether it means what we compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headrace.errors import CheckpointError, UnsupportedModelError
from headrace.memory.checkpoint import Checkpoint, TensorEntry
from headrace.specs.forms import FLOATS, MATRICES, Form, Forms
from headrace.specs.model import ModelSpec

FORMATS = ("int-quantized", "pack-quantized")
"""Formats of compressed-tensors that run."""

TensorName = Callable[[str, int | None, int | None], str]

_MAY_BE_INTEGERS = frozenset((*MATRICES, "head"))
_SHAPED = ("", "_packed", "_scale", "_zero_point")


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a ``quantization_config`` whose weights are not plain integers times scales.

    Raises UnsupportedModelError, CheckpointError.
    """
    found = quantization_of(config)
    if found is None:
        return
    method = found.get("quant_method", "compressed-tensors" if "config_groups" in found else None)
    if method != "compressed-tensors":
        raise UnsupportedModelError(
            "quantization method", expected="compressed-tensors", got=str(method)[:80]
        )
    groups = found.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise CheckpointError("quantization_config: config_groups", expected="at least one group")
    for group in groups.values():
        _check_group(group, found.get("format"))
    for name in ("sparsity_config", "transform_config", "kv_cache_scheme"):
        if found.get(name):
            raise UnsupportedModelError(f"quantization_config: {name}", expected="none")


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ``quantization_config`` of a config.json; None where weights are floats."""
    found = config.get("quantization_config") or config.get("compression_config")
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise CheckpointError("config.json: quantization_config", expected="an object")
    return found


def stored_forms(checkpoint: Checkpoint, name_of: TensorName, model: ModelSpec) -> Forms:
    """How each tensor of ``model`` is stored, from the headers. Raises CheckpointError and
    UnsupportedModelError when asked for one that does not run."""
    tensors = checkpoint.tensors
    rest = model.layer_tensors() | model.global_tensors()
    if quantization_of(checkpoint.config) is None:
        return lambda logical, layer, expert: _float(tensors, name_of(logical, layer, expert))

    def form(logical: str, layer: int | None, expert: int | None) -> Form:
        name = name_of(logical, layer, expert)
        plain = tensors.get(name)
        if f"{name}_packed" not in tensors and (plain is None or plain.dtype != "i8"):
            return _float(tensors, name)
        if logical not in _MAY_BE_INTEGERS:
            raise UnsupportedModelError(f"integers in {name}", expected="bf16, f16 or f32")
        shapes = rest if layer is None or expert is None else model.expert_tensors(layer, expert)
        return _integers(tensors, name, shapes[logical])

    return form


def quantization_config(form: Form, ignore: list[str], version: str) -> dict[str, Any]:
    """What config.json says of a checkpoint whose Linear modules but ``ignore`` are ``form``.

    One scale per row of bytes is what engines multiply with activations of 8 bits, rounded
    row by row as they come; everything else they widen.
    """
    per_row = form.group is None
    weights = _arguments(form.bits, "channel" if per_row else "group", not form.zeros)
    weights |= {"group_size": form.group, "dynamic": False, "observer": "minmax"}
    rounded = _arguments(8, "token", True) | {"group_size": None, "dynamic": True}
    activations = None if form.packed else rounded | {"observer": None}
    kind = "pack-quantized" if form.packed else "int-quantized"
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ignore,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": activations,
                "output_activations": None,
                "format": kind,
            }
        },
        "version": version,
    }


def _arguments(bits: int, strategy: str, symmetric: bool) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
    }


def _check_group(group: object, default_format: object) -> None:
    where = "quantization_config: config_groups"
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        raise CheckpointError(where, expected="groups with weights")
    kind = group.get("format") or default_format
    if kind not in FORMATS:
        raise UnsupportedModelError(
            f"{where}: format", expected=" or ".join(FORMATS), got=str(kind)[:80]
        )
    weights, activations = group["weights"], group.get("input_activations")
    _check(weights, where, "type", "int", default="int")
    _check(weights, where, "num_bits", 4, 8)
    _check(weights, where, "strategy", "channel", "group", default="group")
    _check(weights, where, "actorder", None, False, "weight", "static")
    _check(weights, where, "dynamic", False, default=False)
    if group.get("output_activations"):
        raise UnsupportedModelError(f"{where}: output_activations", expected="none")
    if isinstance(activations, Mapping):
        _check(activations, where, "type", "int", default="int")
        _check(activations, where, "num_bits", 8)
        _check(activations, where, "dynamic", True)


def _check(
    values: Mapping[str, Any], where: str, name: str, *accepted: object, default: object = None
) -> None:
    value = values.get(name, default)
    if value not in accepted:
        raise UnsupportedModelError(
            f"{where}: {name}", expected=" or ".join(map(str, accepted)), got=str(value)[:80]
        )


def _float(tensors: Mapping[str, TensorEntry], name: str) -> Form:
    """Formats that do not run, and tensors that are missing, are named when pages are read."""
    entry = tensors.get(name)
    return Form(entry.dtype if entry is not None and entry.dtype in FLOATS else "bf16")


def _integers(tensors: Mapping[str, TensorEntry], name: str, shape: tuple[int, ...]) -> Form:
    parts = {suffix: tensors.get(name + suffix) for suffix in _SHAPED}
    if f"{name}_g_idx" in tensors:
        raise UnsupportedModelError(f"{name}: columns in another order (g_idx)")
    scale, packed = parts["_scale"], parts["_packed"]
    if scale is None or len(scale.shape) != 2 or not scale.shape[1]:
        raise CheckpointError(
            f"scales of {name}",
            expected="a matrix [rows, groups]",
            got=None if scale is None else list(scale.shape),
        )
    columns, groups = shape[1], scale.shape[1]
    group = None if groups == 1 else columns // groups
    if group is not None and (columns % groups or (group % 128 and group not in (32, 64))):
        raise UnsupportedModelError(
            f"groups of {name}", expected="32, 64 or a multiple of 128 columns", got=group
        )
    dtype = "i8"
    if packed is not None:
        wide = len(packed.shape) == 2 and packed.shape[1] == -(-columns // 4)
        dtype = "u8" if wide else "u4"
    return Form(dtype, group, scale.dtype, parts["_zero_point"] is not None)
