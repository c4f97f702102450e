"""Reads config.json with suspicion: types, ranges, and features that would change the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import CheckpointError, UnsupportedModelError
from headrace.specs.model import Rope

_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_STRETCHING = {
    "linear": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": (),
}
_YARN_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


class Fields:
    """Typed access to ``config``. Wrong types and ranges raise CheckpointError, features that
    do not run UnsupportedModelError. A missing key takes ``default``; None means required."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def integer(self, name: str, high: int, default: int | None = None) -> int:
        """An integer in 1 .. ``high`` (null counts as missing)."""
        value = self.config.get(name)
        if value is None:
            value = default
        if type(value) is not int or not 1 <= value <= high:
            raise CheckpointError(
                f"config.json: {name}", expected=f"an integer from 1 to {high}", got=_short(value)
            )
        return value

    def optional_integer(self, name: str, high: int, default: int | None = None) -> int | None:
        """The same, or None for null."""
        value = self.config.get(name, default)
        return None if value is None else self.integer(name, high, default)

    def number(self, name: str, default: float) -> float:
        """A positive finite number."""
        return _positive(self.config.get(name, default), f"config.json: {name}")

    def optional_number(self, name: str) -> float | None:
        """The same, or None when missing or null."""
        return None if self.config.get(name) is None else self.number(name, 1.0)

    def boolean(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.config.get(name, default)
        if type(value) is not bool:
            raise CheckpointError(
                f"config.json: {name}", expected="true or false", got=_short(value)
            )
        return value

    def refuse_unless(self, name: str, *accepted: object) -> None:
        """``name`` is missing or one of ``accepted``; anything else changes results."""
        if name in self.config and self.config[name] not in accepted:
            raise UnsupportedModelError(
                f"config.json: {name}",
                expected=" or ".join(map(repr, accepted)),
                got=_short(self.config[name]),
            )

    def dtype(self) -> str:
        """Format that the config announces (``dtype``, formerly ``torch_dtype``); f32 if none."""
        value = self.config.get("dtype", self.config.get("torch_dtype")) or "float32"
        text = str(value).removeprefix("torch.")
        if text not in _DTYPES:
            raise UnsupportedModelError(
                "config.json: dtype", expected=", ".join(_DTYPES), got=_short(value)
            )
        return _DTYPES[text]

    def rope(self, max_positions: int, default_theta: float = 10000.0) -> Rope:
        """``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (4)."""
        parameters: dict[str, Any] = {}
        for name in ("rope_scaling", "rope_parameters"):
            part = self.config.get(name)
            if part is not None and not isinstance(part, dict):
                raise CheckpointError(
                    f"config.json: {name}", expected="an object", got=_short(part)
                )
            parameters |= part or {}
        if any(isinstance(value, dict) for value in parameters.values()):
            raise UnsupportedModelError("rotary embeddings that differ between layers")
        theta = parameters.get("rope_theta") or self.config.get("rope_theta") or default_theta
        factor = parameters.get(
            "partial_rotary_factor", self.config.get("partial_rotary_factor", 1.0)
        )
        if factor != 1.0:
            raise UnsupportedModelError("partial rotary embedding", expected="1.0", got=factor)
        kind = parameters.get("rope_type", parameters.get("type")) or "default"
        theta = _positive(theta, "config.json: rope_theta")
        if kind == "yarn" and theta <= 1:  # it divides by the logarithm
            raise CheckpointError(
                "config.json: rope_theta with yarn", expected="a number above 1", got=theta
            )
        scaling = () if kind == "default" else self._scaling(kind, parameters, max_positions)
        return Rope(theta, scaling)

    def _scaling(
        self, kind: object, parameters: dict[str, Any], max_positions: int
    ) -> tuple[tuple[str, object], ...]:
        if not isinstance(kind, str) or kind not in _STRETCHING:
            raise UnsupportedModelError(
                "rope scaling", expected=", ".join(("default", *_STRETCHING)), got=_short(kind)
            )
        original = self.config.get("original_max_position_embeddings") or parameters.get(
            "original_max_position_embeddings", max_positions
        )
        scaling: dict[str, object] = {"rope_type": kind}
        if kind != "linear":
            scaling["original_max_position_embeddings"] = _number(original, kind)
        factor = parameters.get("factor")
        if factor is None and kind == "yarn":
            factor = max_positions / _number(original, kind)
        scaling["factor"] = _number(factor, f"{kind} factor")
        for name in _STRETCHING[kind]:
            scaling[name] = _number(parameters.get(name), f"{kind} {name}")
        if kind == "llama3" and scaling["high_freq_factor"] == scaling["low_freq_factor"]:
            raise CheckpointError("rope scaling: low_freq_factor equals high_freq_factor")
        if kind == "yarn":
            given = {n: parameters[n] for n in _YARN_OPTIONS if parameters.get(n) is not None}
            scaling |= {n: _number(v, f"yarn {n}") for n, v in given.items()}
            scaling["truncate"] = bool(parameters.get("truncate", True))
        return tuple(scaling.items())


def _number(value: object, name: str) -> float:
    return _positive(value, f"config.json: rope scaling: {name}")


def _positive(value: object, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e18:
        return value
    raise CheckpointError(name, expected="a positive number", got=_short(value))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
