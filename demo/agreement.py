"""Does a quantized demo model begin its answers as the original does?

``python -m demo.agreement .demo/model DIR...`` asks every bundled prompt for one greedy token and
compares; each DIR is asked with both kinds of activations. Prints a table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from demo.measure import chat_prompts
from headrace.engine.llm import LLM
from headrace.specs.policy import WITH_INTEGERS
from headrace.specs.sampling import SamplingParams

MEMORY = "2GB"


class Agreement(NamedTuple):
    """``equal`` of the first tokens to ``prompts`` prompts are the original's."""

    model: str
    activations: str
    equal: int
    prompts: int


def agreements(original: Path, folders: list[Path]) -> Iterator[Agreement]:
    """One for every folder and kind of activations."""
    wanted = first_tokens(original, None)
    for folder in folders:
        for activations in WITH_INTEGERS:
            found = first_tokens(folder, activations)
            equal = sum(a == b for a, b in zip(wanted, found, strict=True))
            yield Agreement(folder.name, activations, equal, len(wanted))


def first_tokens(folder: Path, activations: str | None) -> list[int]:
    """The likeliest first token of the answer to each prompt."""
    params = SamplingParams(temperature=0.0, max_tokens=1)
    with LLM(folder, memory=MEMORY, activations=activations) as llm:
        return [output.outputs[0].token_ids[0] for output in llm.chat(chat_prompts(), params)]


if __name__ == "__main__":
    print("| model | activations | equal first tokens |\n|---|---|---|")
    for row in agreements(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]]):
        print(f"| {row.model} | {row.activations} | {row.equal} of {row.prompts} |")
