"""Ask the planner which memory budgets a model needs."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.specs.model import ModelSpec
from headrace.specs.pages import Page

SEQUENCES, PROMPT_LEN, GEN_LEN = 32, 256, 256
"""The batch that budgets are stated for."""


@dataclass(frozen=True)
class Budgets:
    """Memory budgets in bytes: ``resident`` keeps everything, ``smallest`` just works.

    ``sequences`` and ``tokens`` are the batch that both were computed for.
    """

    resident: int
    smallest: int
    sequences: int
    tokens: int


def budgets_of(model: ModelSpec, pages: tuple[Page, ...]) -> Budgets | None:
    """The smallest budget that works, and the one that keeps all weights resident."""
    return None
