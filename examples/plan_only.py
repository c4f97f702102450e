"""Plan a job for a model that is not here, on a machine that is not here either.

Dimensions come from the registry, rates from stock figures. Nothing is downloaded, nothing is
measured, and torch is never imported: planning is arithmetic on sizes and rates.

``python examples/plan_only.py [MODEL] [MACHINE] [MEMORY]``, say ``olmoe-1b-7b laptop-nvme 8GB``.
"""

from __future__ import annotations

import sys

from headrace.planner.plan import Plan
from headrace.planner.rules import make_plan
from headrace.specs.pages import page_layout
from headrace.specs.registry import known_hardware, known_model
from headrace.specs.units import format_bytes, format_seconds, parse_size
from headrace.specs.workload import Workload


def main(model: str = "mixtral-8x7b", machine: str = "laptop-nvme", memory: str = "16GB") -> None:
    """Print the plan for 500 prompts of 300 tokens, each answered with 100."""
    spec = known_model(model).spec
    plan = make_plan(
        spec,
        page_layout(spec),
        None,  # bytes of pages are estimated: there is no checkpoint to ask
        known_hardware(machine).hardware,
        Workload.uniform(requests=500, prompt_len=300, gen_len=100),
        parse_size(memory),
    )
    print(f"{model} on {machine}, {memory}")
    show(plan)
    print(f"torch imported: {'torch' in sys.modules}")


def show(plan: Plan) -> None:
    """The memory map, the choices that matter, and what they are expected to take."""
    for part, size in plan.memory.lines():
        print(f"  {part:17}{size:>10}")
    policy, expected = plan.policy, plan.prediction
    print(f"schedule {policy.schedule}, {policy.max_seqs} sequences in a sweep")
    print(
        f"{format_seconds(expected.seconds)} "
        f"({format_seconds(expected.low)} to {format_seconds(expected.high)}), "
        f"{format_bytes(expected.bytes_read)} read, bound by {plan.bound_by}"
    )
    for note in plan.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    main(*sys.argv[1:])
