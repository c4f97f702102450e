"""How a tensor lies in a checkpoint: as floats, or as integers with scales.

N rows, K columns. Integers are those of compressed-tensors: ``i8`` one to a byte; ``u8`` and
``u4`` packed along K into 32-bit words, their zero points packed along N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from headrace.errors import UnsupportedModelError

FLOATS: Mapping[str, int] = {"f32": 4, "bf16": 2, "f16": 2}
"""Bytes per element of the floating formats in which weights may be stored."""

INTEGERS: Mapping[str, int] = {"i8": 8, "u8": 8, "u4": 4}
"""Bits per element of the integer formats."""

PLANNED: Mapping[str, float] = {"f8": 8, "mxfp4": 4.25}
"""Bits per weight of formats that can be planned for but not run, scales included."""

STORED_BYTES: Mapping[str, int] = {**FLOATS, "i8": 1, "i32": 4}
"""Bytes per element of what the parts of a tensor are made of."""


class Part(NamedTuple):
    """One stored piece of a tensor: element format, shape, and how many rows of the tensor a
    row of the piece speaks for."""

    dtype: str
    shape: tuple[int, ...]
    rows_each: int = 1

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """Rows of the piece that hold rows ``start:stop`` of the tensor."""
        return start // self.rows_each, -(-stop // self.rows_each)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the piece."""
        columns = self.shape[1] if len(self.shape) > 1 else 1
        return columns * STORED_BYTES[self.dtype]


@dataclass(frozen=True)
class Form:
    """The form of one tensor. ``dtype`` is a float format, or one of INTEGERS or PLANNED.

    Integers have one scale (of format ``scale``) per row, or per ``group`` columns of a row;
    with ``zeros`` also a zero point each. Raises UnsupportedModelError for what does not run.
    """

    dtype: str
    group: int | None = None
    scale: str = "f32"
    zeros: bool = False

    def __post_init__(self) -> None:
        known = (*FLOATS, *INTEGERS, *PLANNED)
        if self.dtype not in known:
            raise UnsupportedModelError(
                "weight format", expected=", ".join(known), got=self.dtype[:80]
            )
        if self.scale not in FLOATS:
            raise UnsupportedModelError(
                "format of scales", expected=", ".join(FLOATS), got=self.scale[:80]
            )

    @property
    def integer(self) -> bool:
        """Whether integers with scales are stored."""
        return self.dtype in INTEGERS

    @property
    def bits(self) -> int:
        """Bits of an integer, scales apart."""
        return INTEGERS[self.dtype]

    @property
    def packed(self) -> bool:
        """Whether several integers share a word."""
        return self.dtype in ("u8", "u4")

    @property
    def row_multiple(self) -> int:
        """Rows are cut at multiples of this: packed zero points share words along rows."""
        return 32 // self.bits if self.packed and self.zeros else 1

    @property
    def label(self) -> str:
        """Short name, as ``bf16``, ``int8`` or ``int4 in groups of 32``."""
        if not self.integer:
            return self.dtype
        groups = "" if self.group is None else f" in groups of {self.group}"
        return f"int{self.bits}{groups}{', asymmetric' if self.zeros else ''}"

    def parts(self, shape: tuple[int, ...]) -> dict[str, Part]:
        """Suffix of the tensor's name in the checkpoint -> what is stored under it.

        The values come first; their suffix is empty unless they are packed.
        """
        if not self.integer:
            return {"": Part(self.dtype, shape)}
        rows, columns = shape
        groups = columns // self.group if self.group else 1
        per = 32 // self.bits
        values = Part("i32", (rows, -(-columns // per))) if self.packed else Part("i8", shape)
        parts = {"_packed" if self.packed else "": values}
        parts["_scale"] = Part(self.scale, (rows, groups))
        if self.zeros and self.packed:
            parts["_zero_point"] = Part("i32", (-(-rows // per), groups), per)
        elif self.zeros:
            parts["_zero_point"] = Part("i8", (rows, groups))
        return parts

    def nbytes(self, start: int, stop: int, columns: int) -> int:
        """Bytes of rows ``start:stop`` of a matrix of ``columns`` (a vector when 0)."""
        if not self.integer:
            elements = (stop - start) * max(columns, 1)
            if self.dtype in PLANNED:
                return math.ceil(elements * PLANNED[self.dtype] / 8)
            return elements * FLOATS[self.dtype]
        total = 0
        for part in self.parts((stop, columns)).values():
            first, last = part.rows(start, stop)
            total += (last - first) * part.row_bytes
        return total


Forms = Callable[[str, int | None, int | None], Form]
"""``forms(logical, layer, expert)``: how that tensor is stored."""

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""Logical names of the matrices that quantising turns into integers."""

PART_NAMES: Mapping[str, str] = {"_scale": ".scale", "_zero_point": ".zeros"}
"""Suffix in the checkpoint -> what is added to the logical name; values keep the name itself."""
