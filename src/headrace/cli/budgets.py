"""Ask the planner which memory budgets a model needs."""

from __future__ import annotations

from headrace.cli.inspection import Budgets
from headrace.specs.model import ModelSpec

SEQUENCES, PROMPT_LEN, GEN_LEN = 32, 256, 256
"""The batch that budgets are stated for."""


def budgets_of(model: ModelSpec) -> Budgets | None:
    """The smallest budget that works, and the one that keeps all weights resident."""
    return None
