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
    """The smallest budget for one request of that size, and one that keeps all weights resident
    with SEQUENCES of them; None where the planner cannot say. Budgets count bytes, not rates,
    so no machine is measured."""
    from headrace.errors import HeadraceError
    from headrace.planner.candidates import Situation, smallest
    from headrace.planner.plan import Overrides
    from headrace.specs.hardware import Hardware
    from headrace.specs.workload import Workload

    length = PROMPT_LEN + GEN_LEN
    workload = Workload.uniform(SEQUENCES, PROMPT_LEN, GEN_LEN)
    nowhere = Hardware("no machine", {})

    def least(overrides: Overrides) -> int:
        at = Situation(model, pages, None, nowhere, workload, 0, overrides)
        return at.map_of(smallest(at)).total_bytes

    try:
        blocks = SEQUENCES * -(-length // Overrides.kv_block)
        everything = Overrides(
            "resident", max_seqs=SEQUENCES, max_rows=SEQUENCES + PROMPT_LEN, kv_blocks=blocks
        )
        return Budgets(least(everything), least(Overrides()), SEQUENCES, length)
    except HeadraceError:
        return None
