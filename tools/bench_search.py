"""Plan every registered model on every registered machine, in several sizes of job and memory.

    python tools/bench_search.py [--only MODEL] [--on MACHINE] [--every N] [--first K]
                                 [--formats any] [--quiet]

Prints, per case, the seconds of processor time that planning took, the plan and its expected job
time, then what a reader wants to know of all of them: how many plans, how many refusals, the
slowest, and whether any plan is slower than the best of its own baselines. With ``--formats``, as
of ``headrace plan``, formats are searched too, and the summary counts what was chosen.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.planner.candidates import Situation
from headrace.planner.formats import changes_in, plan_formats
from headrace.planner.plan import Plan
from headrace.planner.search import best_plan
from headrace.specs.pages import page_layout
from headrace.specs.registry import all_known_hardware, known_models
from headrace.specs.workload import Workload

JOBS = {
    "batch": Workload.uniform(1000, 256, 128),
    "long prompts": Workload.uniform(400, 1700, 64),
    "few": Workload.uniform(8, 100, 200),
}
"""Jobs by name: a file of questions, one of articles, a handful of requests."""

MEMORY = (0.85, 0.4)
"""Shares of the host's memory that plans may take."""


@dataclass(frozen=True)
class Case:
    """One planning problem."""

    model: str
    machine: str
    job: str
    memory: float

    def situation(self) -> Situation:
        """The problem as the planner takes it."""
        spec = known_models()[self.model].spec
        hardware = all_known_hardware()[self.machine].hardware
        budget = int(hardware.capacity["host"] * self.memory)
        return Situation(spec, page_layout(spec), None, hardware, JOBS[self.job], budget)


def cases() -> list[Case]:
    """All models on all machines with a batch; and every seventh of the other combinations."""
    models, machines = list(known_models()), list(all_known_hardware())
    all_of = [Case(m, h, "batch", MEMORY[0]) for m in models for h in machines]
    others = [
        Case(m, h, job, share)
        for m in models
        for h in machines
        for job in JOBS
        for share in MEMORY
        if (job, share) != ("batch", MEMORY[0])
    ]
    return all_of + others[::7]


@dataclass(frozen=True)
class Outcome:
    """What came of a case: a plan or a refusal, processor seconds of planning, and the formats that
    were chosen, if they were searched."""

    case: Case
    plan: Plan | None
    refusal: str
    seconds: float
    formats: str = ""

    @property
    def behind(self) -> float:
        """By how much of its own time the plan is slower than the best baseline; 0 if it is not."""
        if self.plan is None:
            return 0.0
        best = min(
            (b.prediction.seconds for b in self.plan.baselines if b.prediction), default=None
        )
        own = self.plan.prediction.seconds
        return max(0.0, own / best - 1.0) if best else 0.0


def run(case: Case, allowed: Sequence[str] = ()) -> Outcome:
    """Plan one case, in formats ``allowed`` beside those of the model. The layout of pages is part
    of it, reading the registry is not."""
    known_models(), all_known_hardware()
    start = time.process_time()
    plan: Plan | None = None
    refusal = formats = ""
    try:
        if allowed:
            chosen = plan_formats(case.situation(), allowed, lambda at: at).chosen
            plan, formats = chosen.plan, f"{chosen.weights}, KV {chosen.kv_dtype}"
        else:
            plan = best_plan(case.situation())
    except HeadraceError as error:
        refusal = str(error)
    return Outcome(case, plan, refusal, time.process_time() - start, formats)


def _lines(outcome: Outcome) -> Iterator[str]:
    case, plan = outcome.case, outcome.plan
    head = (
        f"{outcome.seconds:5.2f} s  {case.model:18} {case.machine:14} {case.job:12} {case.memory}"
    )
    if plan is None:
        yield f"{head}  refused: {outcome.refusal}"
        return
    policy, seconds = plan.policy, plan.prediction.seconds
    yield (
        f"{head}  {policy.compute}/{policy.schedule} S={policy.max_seqs} N={policy.max_rows} "
        f"M={policy.micro_batches} {seconds:.0f} s by {plan.prediction.bound_by} {plan.chosen} "
        f"{outcome.formats}"
    )


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one model's cases")
    parser.add_argument("--on", help="one machine's cases")
    parser.add_argument("--formats", help="search formats too: any, or a list")
    parser.add_argument("--every", type=int, default=1, help="one case of so many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--quiet", action="store_true", help="the summary only")
    asked = parser.parse_args()
    allowed = changes_in(asked.formats) if asked.formats else ()
    found = []
    for case in cases()[asked.first :: asked.every]:
        if asked.only in (None, case.model) and asked.on in (None, case.machine):
            found.append(run(case, allowed))
            if not asked.quiet:
                print("\n".join(_lines(found[-1])), flush=True)
    times = sorted(outcome.seconds for outcome in found)
    plans = [outcome for outcome in found if outcome.plan]
    print(f"cases {len(found)}, plans {len(plans)}, refusals {len(found) - len(plans)}")
    print(f"planning: median {times[len(times) // 2]:.2f} s, slowest {times[-1]:.2f} s,", end=" ")
    print(f"above 1 s: {sum(t > 1 for t in times)}")
    print(f"plans behind a baseline: {sum(o.behind > 0 for o in plans)}")
    print(f"plans that do not fit: {sum(not o.plan.memory.fits for o in plans if o.plan)}")
    on = [o.plan.policy.compute for o in plans if o.plan]
    print(f"on the accelerator {on.count('device')}, on the processor {on.count('host')}")
    if allowed:
        counts = Counter(outcome.formats for outcome in plans)
        print("; ".join(f"{formats}: {count}" for formats, count in counts.most_common()))
    print(f"baselines that won: {sum(bool(o.plan.chosen) for o in plans if o.plan)}")


if __name__ == "__main__":
    main()
