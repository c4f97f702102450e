"""The study: checkpoints made; then, case by case, the machine is measured as it is before every
run, the job predicted, and run several times.

A run is kept as soon as it has ended: the same command goes on where it was cut.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from headrace.cli.prediction.draw import Case, draw_cases
from headrace.cli.prediction.kept import Kept, Measured, Predicted, Request
from headrace.cli.prediction.others import Others
from headrace.cli.prediction.verdict import Outcome
from headrace.errors import BudgetError, UsageError
from headrace.planner.interval import bias
from headrace.specs.sampling import SamplingParams
from headrace.specs.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.engine.answers import Prompt
    from headrace.engine.llm import LLM
    from headrace.engine.loaded import Loaded
    from headrace.planner.plan import Plan
    from headrace.planner.profile import Profile

PILOTS, PILOT_SECONDS = 14, 20.0
"""Runs of another seed that come first, and their length at most: they are the earlier runs of this
machine that predictions of the others and their intervals count with. They are in no table."""

ROOMY = 1.25, 1_500_000_000
"""Budget of a run whose model is to fit: times its weights, and bytes beside."""

CLOSE = 1.25
"""How near to the seconds asked for a job is made."""

MOST_TRIES = 6

KV_DTYPE = "f16"

DISTURBED, ATTEMPTS = 0.08, 2
"""Share of a core that other programs may take during a run; what is disturbed more is run once
more, and the less disturbed counts."""

MEASURING_ATTEMPTS = 8
"""The same for the seconds in which the machine is measured: the prediction rests on them."""


class Study:
    """A study in a folder. ``said`` hears of each step; ``clock`` times the runs. The machine is
    measured for ``measure_seconds`` before each case: as long as ``run-batch`` does, if None."""

    def __init__(
        self,
        folder: Path,
        request: Request,
        clock: Callable[[], float],
        said: Callable[[str], None],
        *,
        fresh: bool = False,
        measure_seconds: float | None = None,
        pilots: int = PILOTS,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._attempts = attempts
        self._measure_seconds = measure_seconds
        self._pilot_runs = pilots
        self.folder = folder
        self.request = request
        self._clock = clock
        self._said = said
        how = {"measured": "before each case", "predicted": "counting with pilots"}
        self._kept = Kept(folder, {**request.to_dict(), **how}, fresh)
        self._residuals: tuple[float, ...] = ()
        self._headers: dict[str, Loaded] = {}

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        for loaded in self._headers.values():
            loaded.close()

    def about(self) -> str:
        """Machine, versions, seed and command, for the table's first line."""
        from headrace.engine.profiles import this_machine

        asked, machine = self.request, this_machine()
        made = sorted(profile.made for profile in self._kept.measured.values())
        return (
            f"`headrace bench prediction --runs {asked.runs} --seed {asked.seed} --repeats "
            f"{asked.repeats} --run-seconds {asked.run_seconds:g}`; {machine['processor']}, "
            f"{machine['threads']} threads, kernels {machine['kernels']}, headrace "
            f"{machine['headrace']}; machine measured right before each case, from "
            f"{made[0]} to {made[-1]}"
        )

    def prepare(self) -> None:
        """Make the checkpoints that are not there yet."""
        from headrace.cli.make_checkpoint import make_checkpoint, shape_spec

        for name, shape in self.request.shapes.items():
            folder = self._checkpoint(name)
            if not (folder / "config.json").is_file():
                self._said(f"making checkpoint {name}")
                spec = shape_spec(
                    shape.arch, None, shape.dtype, {**shape.sizes, "max_positions": 4096}
                )
                make_checkpoint(spec, folder)

    def run(self) -> list[tuple[Predicted, Outcome]]:
        """All that is left to do; every case with its outcome."""
        self.prepare()
        self._residuals = self._pilot_residuals()
        for case in self._cases():
            predicted = self._predicted("case", case, self.request.run_seconds)
            for repeat in range(self.request.repeats):
                if (case.index, repeat) not in self._kept.runs:
                    self._kept.add("run", self._undisturbed(predicted, repeat).__dict__)
        return self.outcomes()

    def outcomes(self) -> list[tuple[Predicted, Outcome]]:
        """The cases with at least one run, as far as the study has come."""
        found = []
        for predicted in self._kept.cases["case"].values():
            seconds = self._kept.seconds_of(predicted.case.index)
            if seconds:
                expected = predicted.seconds, predicted.low, predicted.high
                found.append((predicted, Outcome(*expected, seconds, predicted.bias)))
        return found

    def _cases(self) -> list[Case]:
        return draw_cases(self.request.seed, self.request.runs, self.request.shapes)

    def _pilots(self) -> list[Case]:
        drawn = draw_cases(self.request.seed + 1, self._pilot_runs, self.request.shapes)
        return [replace(case, index=-1 - case.index) for case in drawn]

    # -- measuring the machine -----------------------------------------------------------

    def _measured_alone(self, case: Case) -> Profile:
        """The machine as a run of ``case`` would find it, while nobody else works on it."""
        tried: list[tuple[float, Profile]] = []
        most = MEASURING_ATTEMPTS * (self._attempts - 1) + 1  # one where none is repeated
        while len(tried) < most and (not tried or tried[-1][0] > DISTURBED):
            others, began = Others(), self._clock()
            found = self._measured(case)
            tried.append((others.share(self._clock() - began), found))
            if tried[-1][0] > DISTURBED:
                self._said(f"other programs took {tried[-1][0]:.0%} of a core meanwhile")
        return min(tried, key=lambda each: each[0])[1]

    def _measured(self, case: Case) -> Profile:
        """What ``run-batch`` without a profile measures when it starts."""
        from headrace.engine.probe import SECONDS, measure_machine, usable_threads
        from headrace.engine.profiles import dated, machine_profile
        from headrace.planner.profile import ShapeCurves

        loaded, memory = self._loaded(case.shape), self._budget(case)
        hardware = measure_machine(
            loaded,
            self._clock,
            threads=usable_threads(),
            kv_dtype=KV_DTYPE,
            capacity_bytes=memory,
            seconds=SECONDS if self._measure_seconds is None else self._measure_seconds,
        )
        gc.collect()  # objects in cycles still hold what the rehearsal took: the run needs it
        streams = sum(loaded.page_bytes.values()) > memory
        shape = ShapeCurves.of(loaded.model, KV_DTYPE, streams, hardware)
        return machine_profile([hardware], [shape], dated(time.time()))

    def _pilot_residuals(self) -> tuple[float, ...]:
        """ln(measured / played) of runs that are in no table."""
        residuals = []
        length = min(self.request.run_seconds, PILOT_SECONDS)
        for pilot in self._pilots():
            predicted = self._predicted("pilot", pilot, length)
            index = predicted.case.index
            if (index, 0) not in self._kept.runs:
                self._kept.add("run", self._undisturbed(predicted, 0).__dict__)
            (seconds,) = self._kept.seconds_of(index)
            residuals.append(math.log(seconds / predicted.seconds))
        return tuple(residuals)

    # -- predicting ----------------------------------------------------------------------

    def _predicted(self, kind: str, case: Case, seconds: float) -> Predicted:
        known = self._kept.cases[kind]
        if case.index not in known:
            profile = self._measured_alone(case).to_dict()
            self._kept.add("measured", {"index": case.index, "profile": profile})
            self._kept.add(kind, self._predict(case, seconds).to_dict())
        return known[case.index]

    def _predict(self, case: Case, wanted: float) -> Predicted:
        """Size the job: requests until it is predicted to last ``wanted`` seconds, shorter outputs
        where a single batch would last much longer."""
        requests = max(1, case.batch)
        for _ in range(MOST_TRIES):
            plan, memory = self._plan(case, case.workload(requests))
            seconds = plan.prediction.seconds
            fitting = max(1, round(requests * wanted / seconds))
            if wanted / CLOSE <= seconds <= wanted * CLOSE or fitting == requests:
                break
            if fitting < case.batch:
                shorter = max(2, round(case.gen_len * fitting / case.batch))
                prompt = max(8, round(case.prompt_len * max(0.5, fitting / case.batch)))
                if (shorter, prompt, case.batch) == (case.gen_len, case.prompt_len, requests):
                    break
                case = replace(case, gen_len=shorter, prompt_len=prompt)
            requests = max(fitting, case.batch)
        else:  # the last plan was of another job
            plan, memory = self._plan(case, case.workload(requests))
        found = plan.prediction
        self._said(
            f"{_name(case)}: {requests} requests, predicted {found.seconds:.1f} s "
            f"({plan.policy.schedule}, bound by {plan.bound_by})"
        )
        return Predicted(
            case, requests, memory, plan.policy.schedule, plan.bound_by, found.seconds, found.low,
            found.high, bias(self._residuals),
        )  # fmt: skip

    def _plan(self, case: Case, workload: Workload) -> tuple[Plan, int]:
        """The plan within the case's budget, or the least that works."""
        memory = self._budget(case)
        try:
            with closing(self._open(case, memory)) as llm:
                return llm.plan(workload), memory
        except BudgetError as error:
            memory = (error.smallest_bytes or memory) + (1 << 20)
        with closing(self._open(case, memory)) as llm:
            return llm.plan(workload), memory

    def _budget(self, case: Case) -> int:
        weights = sum(self._loaded(case.shape).page_bytes.values())
        times, beside = ROOMY
        return int(weights * times) + beside if case.budget is None else int(weights * case.budget)

    # -- running -------------------------------------------------------------------------

    def _undisturbed(self, predicted: Predicted, repeat: int) -> Measured:
        """A run while nobody else worked on this machine, or the less disturbed of two."""
        tried: list[Measured] = []
        while len(tried) < self._attempts and (not tried or tried[-1].others > DISTURBED):
            tried.append(self._measure(predicted, repeat))
            if tried[-1].others > DISTURBED:
                self._said(f"other programs took {tried[-1].others:.0%} of a core meanwhile")
        return min(tried, key=lambda run: run.others)

    def _measure(self, predicted: Predicted, repeat: int) -> Measured:
        from headrace.engine.summary import summarise

        case = predicted.case
        workload = case.workload(predicted.requests)
        with closing(self._open(case, predicted.memory)) as llm:
            plan = llm.plan(workload)
            record = llm.new_record()
            prompts = list(_prompts(case, workload, llm.loaded.model.vocab))
            llm.session  # noqa: B018 (taken and loaded before the clock starts)
            others = Others()
            began = self._clock()
            for _ in llm.events(prompts, record):
                pass
            wall = self._clock() - began
            disturbed = others.share(wall)
            lines = {"lines": len(prompts), "done": len(prompts), "failed": 0}
            summary = summarise(llm, record, wall, workload, lines)
        said = f"{_name(case)}, repeat {repeat + 1}: {wall:.1f} s"
        error = predicted.seconds / wall - 1
        self._said(f"{said}, predicted {predicted.seconds:.1f} s ({error:+.1%})")
        if not math.isclose(plan.prediction.seconds, predicted.seconds, rel_tol=1e-6):
            raise UsageError(
                "a plan changed between prediction and run",
                expected=f"{predicted.seconds:.3f} s",
                got=f"{plan.prediction.seconds:.3f} s",
            )
        ops = {
            op: (both.get("predicted_seconds", 0.0), both["seconds"])
            for op, both in summary.ops.items()
        }
        return Measured(case.index, repeat, wall, disturbed, summary.lanes, ops)

    def _open(self, case: Case, memory: int) -> LLM:
        from headrace.engine.llm import LLM

        loaded = self._loaded(case.shape)
        streams = sum(loaded.page_bytes.values()) > memory
        profile = self._kept.measured[case.index].with_residuals(self._residuals)
        return LLM(
            self._checkpoint(case.shape),
            memory=memory,
            schedule=case.schedule,
            max_seqs=case.batch,
            kv_dtype=KV_DTYPE,
            hardware=profile.hardware_for(loaded.model, KV_DTYPE, streams),
        )

    def _loaded(self, name: str) -> Loaded:
        """A checkpoint's headers, opened once."""
        from headrace.engine.loaded import Loaded

        if name not in self._headers:
            self._headers[name] = Loaded.open(self._checkpoint(name))
        return self._headers[name]

    def _checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / name


def _prompts(case: Case, workload: Workload, vocab: int) -> Iterator[Prompt]:
    """Random tokens of the workload's lengths, outputs that do not end early."""
    from headrace.engine.answers import Prompt

    draw = Random(f"{case.seed} tokens")
    pairs = zip(workload.prompt_lens, workload.gen_lens, strict=True)
    for i, (length, most) in enumerate(pairs):
        params = SamplingParams(temperature=0, max_tokens=most, ignore_eos=True)
        yield Prompt(str(i), tuple(draw.randrange(3, vocab) for _ in range(length)), params)


def _name(case: Case) -> str:
    return f"pilot {-case.index}" if case.index < 0 else f"run {case.index + 1}"
