"""The C++ kernels, or NumPy in their place where they could not be built.

Arrays are passed without a copy (anything with DLPack or the buffer protocol: NumPy arrays,
CPU tensors) and the GIL is released while a kernel runs. Whether the module is there is found
out once, on import, and said once in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import numpy as np


def _load() -> Any:
    try:
        return import_module("headrace.kernels.native._native")
    except ImportError:
        logging.getLogger(__name__).warning(
            "headrace was installed without its native kernels (no C++ compiler); "
            "arithmetic runs on torch, which is slower on the CPU"
        )
        return None


_native = _load()

HalfFormat = Literal["bf16", "fp16"]
Path = Literal["auto", "plain", "avx2"]


def available() -> bool:
    """Whether the C++ module was built and loads."""
    return _native is not None


def native_module() -> Any:
    """The C++ module, for the wrappers. Raises RuntimeError where it was not built."""
    if _native is None:
        raise RuntimeError("headrace was installed without its native kernels")
    return _native


def cpu_features() -> frozenset[str]:
    """Instruction sets that processor and operating system offer, as ``avx2`` or ``f16c``.

    Empty without the native module: nothing here could use them.
    """
    return frozenset(_native.cpu_features()) if _native is not None else frozenset()


def read_together() -> Callable[[list[tuple[int, int, int, int, int]], int], int] | None:
    """What reads many small pieces of files at once, for ``DiskReader``; None if not built."""
    return None if _native is None else _native.read_together


def widen(source: Any, out: Any, form: HalfFormat, path: Path = "auto") -> None:
    """Write 16-bit floats as fp32: ``out[i] = float(source[i])``, exactly, for every bit pattern.

    ``source``: 1-D contiguous uint16, the raw bits of ``form``. ``out``: 1-D contiguous
    float32 of the same length. One thread, 6 bytes of memory traffic per element. A signalling
    NaN of fp16 becomes quiet; bf16 keeps its bits. ``path`` forces one implementation (tests).
    Raises ValueError for lengths that differ and TypeError for other types or layouts.
    """
    if _native is None:
        _widen_numpy(np.asarray(source), np.asarray(out), form)
    elif form == "bf16":
        _native.widen_bf16(source, out, path)
    else:
        _native.widen_fp16(source, out, path)


def _widen_numpy(source: np.ndarray, out: np.ndarray, form: HalfFormat) -> None:
    """The definition: what every native path must equal bit for bit."""
    if source.shape != out.shape:
        raise ValueError(f"widen: expected out of the same length, got {source.shape} {out.shape}")
    if source.dtype != np.uint16 or out.dtype != np.float32:
        raise TypeError(f"widen: expected uint16 and float32, got {source.dtype} {out.dtype}")
    if form == "bf16":
        np.left_shift(source, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        out[:] = source.view(np.float16)
        out.view(np.uint32)[np.isnan(out)] |= 0x0040_0000  # quiet, as the hardware does
