"""Weights as integers with scales, as compressed-tensors checkpoints store them.

``int-quantized``: int8 [N, K], scales [N, groups], zero points int8 [N, groups] if asymmetric.
``pack-quantized``: 4 or 8 bits, unsigned, packed along K from the low bits of int32 words up;
zero points packed the same way along N. A weight is ``scale (integer - zero point)``.
Source: the documentation and format of github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MOST_SHARED = 128
"""Columns of a row of activations that share a scale, at most."""

SHRINKS = tuple(1 - i / 50 for i in range(1, 17))
"""Parts of the full range that the search for scales tries: 0.98, 0.96, ... 0.68."""

_UNSIGNED_BIAS = {4: 8, 8: 128}


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight [N, K] in ``bits`` (4 or 8) bits.

    ``values``: int8 [N, K], or int32 words [N, ceil(K bits / 32)]. ``scale``: floats [N, groups],
    where groups is 1 (one scale per row) or K / group, a group being 32, 64 or a multiple of 128
    columns. ``zero_point`` as stored, or None for symmetric weights. Raises ValueError for
    shapes that do not fit each other.
    """

    values: Tensor
    scale: Tensor
    columns: int
    bits: int = 8
    zero_point: Tensor | None = None

    def __post_init__(self) -> None:
        rows, groups = self.scale.shape
        words = -(-self.columns * self.bits // 32)
        wanted = (rows, words) if self.packed else (rows, self.columns)
        zeros = None if self.zero_point is None else tuple(self.zero_point.shape)
        zeros_wanted = (-(-rows * self.bits // 32) if self.packed else rows, groups)
        if (
            tuple(self.values.shape) != wanted
            or self.columns % groups
            or zeros not in (None, zeros_wanted)
            or self.bits not in _UNSIGNED_BIAS
            or (not self.packed and self.bits != 8)
        ):
            raise ValueError(
                f"quantized weight: expected values {wanted}, groups that divide {self.columns} "
                f"columns and zero points {zeros_wanted} or none, got values "
                f"{tuple(self.values.shape)}, {groups} groups, zero points {zeros}"
            )

    @property
    def packed(self) -> bool:
        """Whether the integers are packed into words."""
        return self.values.dtype == torch.int32

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K] of the weight that is stored."""
        return self.scale.shape[0], self.columns

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.columns // self.scale.shape[1]

    def dequantized(self) -> Tensor:
        """The weight in fp32 [N, K]: the definition."""
        rows, groups = self.scale.shape
        integers = self.values.float()
        zeros = torch.zeros(rows, groups)
        if self.packed:
            integers = _unpacked(self.values, self.bits)[:, : self.columns].float()
            zeros.fill_(_UNSIGNED_BIAS[self.bits])
        if self.zero_point is not None:
            stored = self.zero_point
            zeros = (_unpacked(stored.T, self.bits).T[:rows] if self.packed else stored).float()
        grouped = integers.reshape(rows, groups, -1)
        return ((grouped - zeros[..., None]) * self.scale.float()[..., None]).view(self.shape)

    def __getitem__(self, rows: slice) -> QuantizedWeight:
        """Some of the rows; packed zero points need bounds that are multiples of a word."""
        start, stop, _ = rows.indices(self.shape[0])
        zeros = self.zero_point
        if zeros is not None:
            per = 32 // self.bits if self.packed else 1
            if start % per or (stop % per and stop != self.shape[0]):
                raise ValueError(f"rows of packed zero points: expected multiples of {per}")
            zeros = zeros[start // per : -(-stop // per)]
        return QuantizedWeight(
            self.values[start:stop], self.scale[start:stop], self.columns, self.bits, zeros
        )


def quantize(
    weight: Tensor, bits: int = 8, group: int | None = None, *, packed: bool | None = None,
    symmetric: bool = True, scale_dtype: torch.dtype = torch.float32, search: bool = False,
) -> QuantizedWeight:  # fmt: skip
    """Round ``weight`` [N, K] to the nearest integers: one scale per row, or per ``group``.

    4-bit integers are packed, 8-bit ones only when ``packed``. A scale lets the largest value
    of its group fit; with ``search`` it is the one of SHRINKS times that which leaves the least
    squared error, the largest value clipped if need be. No calibration.
    """
    rows, columns = weight.shape
    grouped = weight.float().view(rows, -1, group or columns)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    best = _round(grouped, low, high, bits, symmetric, scale_dtype)
    if search:
        least, shrunk = best.error, torch.ones_like(high)
        for shrink in SHRINKS:
            tried = _round(grouped, low * shrink, high * shrink, bits, symmetric, scale_dtype)
            shrunk.masked_fill_(tried.error < least, shrink)
            least = torch.minimum(least, tried.error)
        best = _round(grouped, low * shrunk, high * shrunk, bits, symmetric, scale_dtype)
    integers = best.integers.to(torch.int8).view(rows, columns)
    zeros = best.zero.to(torch.int8)
    if bits == 4 if packed is None else packed:
        integers = _packed(integers, bits)
        zeros = _packed(zeros.T, bits).T.contiguous()
    return QuantizedWeight(integers, best.scale, columns, bits, None if symmetric else zeros)


class _Rounding(NamedTuple):
    """Integers [N, groups, group] in fp32, and per group: scale, zero point, squared error."""

    integers: Tensor
    scale: Tensor
    zero: Tensor
    error: Tensor


def _round(
    grouped: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool, dtype: torch.dtype
) -> _Rounding:
    """Round with scales by which ``low`` to ``high`` fits the integers."""
    top = float(2 ** (bits - 1) - 1)
    scale = (high / top if symmetric else (high - low) / (2 * top + 1)).to(dtype)
    divisor = _divisor(scale)
    integers = (grouped / divisor[..., None]).round_()
    if symmetric:
        zero = torch.zeros_like(divisor)
        integers.clamp_(-top - 1, top)
        error = integers * scale.float()[..., None]
    else:
        zero = (-top - 1 - low / divisor).round().clamp(-top - 1, top)
        integers.add_(zero[..., None]).clamp_(-top - 1, top)
        error = (integers - zero[..., None]).mul_(scale.float()[..., None])
    return _Rounding(integers, scale, zero, error.sub_(grouped).square_().sum(-1))


def rounded(x: Tensor, group: int) -> Tensor:
    """``x`` [rows, K] as the integer path sees it: 8 bits for each row and each block of
    ``group`` columns, at most MOST_SHARED; in fp32. A row with NaN or infinity is NaN."""
    rows, columns = x.shape
    block = min(group, MOST_SHARED)
    padded = functional.pad(x, (0, -columns % block)).view(rows, -1, block)
    top = padded.abs().amax(-1, keepdim=True)
    inverse = torch.where(top > 1e-36, 127 / top, torch.where(top.isnan(), top, 0.0))
    return ((padded * inverse).round_() * (top / 127)).view(rows, -1)[:, :columns]


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale.float())


def _packed(integers: Tensor, bits: int) -> Tensor:
    """Signed integers, packed along the last dimension: the first in the lowest bits (memory is
    little-endian wherever this runs)."""
    per = 32 // bits
    padded = functional.pad(integers, (0, -integers.shape[1] % per), value=-_UNSIGNED_BIAS[bits])
    fields = (padded.to(torch.int16) + _UNSIGNED_BIAS[bits]).to(torch.uint8)
    if bits == 4:
        fields = fields[:, ::2] | fields[:, 1::2] << 4
    return fields.reshape(-1).view(torch.int32).view(len(fields), -1)


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Unsigned integers, unpacked along the last dimension."""
    fields = words.reshape(-1).view(torch.uint8).view(len(words), -1)
    if bits == 4:
        fields = torch.stack((fields & 15, fields >> 4), -1).view(len(fields), -1)
    return fields
