"""Headrace runs Mixture-of-Experts language models larger than memory.

``from headrace import LLM, SamplingParams`` is the offline API; the command ``headrace`` is the
rest. Importing this package loads neither torch nor numpy: names arrive when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.engine.llm import LLM
    from headrace.specs.sampling import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]

_HOMES = {"LLM": "headrace.engine.llm", "SamplingParams": "headrace.specs.sampling"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
