"""Answer prompts with a model twice as large as the memory it gets.

The checkpoint is made on the fly from random numbers, so that no network is needed: the answers
are noise, everything else is real. With a real model, give its folder or repo id to ``LLM``.

``python examples/generate.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from headrace import LLM, SamplingParams
from headrace.cli.make_checkpoint import make_checkpoint, small_spec
from headrace.specs.registry import known_hardware
from headrace.specs.units import format_bytes

PROMPTS = ["Why is the sky blue?", "Name three rivers.", "What is a sweep?"]


def main() -> None:
    """Make a model, answer PROMPTS in a batch, then one of them piece by piece."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        size = make_checkpoint(small_spec("mixtral", "bf16", {}), model)
        answer(model, size)


def answer(model: Path, size: int) -> None:
    """Within 14 MB. ``hardware`` spares the measurement, at the price of a worse prediction."""
    stock = known_hardware("cpu-2core").hardware
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with LLM(model, memory=14_000_000, hardware=stock) as llm:
        outputs = llm.generate(PROMPTS, greedy)
        plan = llm.current_plan
        print(f"{format_bytes(size)} of weights in {format_bytes(plan.memory.total_bytes)}")
        print(f"schedule {plan.policy.schedule}, {plan.policy.ring_slots} ring slots")
        for out in outputs:
            first = out.outputs[0]
            print(f"{out.prompt!r}: {len(first.token_ids)} tokens, {first.finish_reason}")
        text = "".join(llm.stream(PROMPTS[0], greedy))
        print(f"streamed text is the same: {text == outputs[0].outputs[0].text}")


if __name__ == "__main__":
    main()
