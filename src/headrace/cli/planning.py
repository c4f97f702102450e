"""What ``plan`` does, apart from the command line: gather, plan, and say all of it as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli.hardware_source import Machine, find_machine, usable_cores
from headrace.cli.model_source import Source, find_model
from headrace.cli.workload_source import Lengths, lengths_of, lengths_said
from headrace.errors import UsageError
from headrace.specs.model import KV_FORMATS
from headrace.specs.units import parse_size
from headrace.specs.workload import Workload

if TYPE_CHECKING:
    from headrace.planner.candidates import Situation
    from headrace.planner.formats import FormatSearch
    from headrace.planner.plan import Overrides, Plan
    from headrace.planner.what_if import Priced

PROMPT_LEN, GEN_LEN, REQUESTS = 512, 128, 1000
"""The job that is planned for when nobody says which."""


@dataclass(frozen=True)
class Request:
    """What was asked for, as on the command line; sizes in bytes, None where nothing was said.
    ``formats`` are the changes that ``--formats`` allows."""

    model: str
    hardware: str = "auto"
    input: Path | None = None
    prompt_len: str | None = None
    gen_len: str | None = None
    requests: int | None = None
    seed: int = 0
    max_tokens: int = 1024
    memory: str | None = None
    device_memory: str | None = None
    revision: str | None = None
    overrides: Mapping[str, Any] | None = None
    formats: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Planned:
    """A plan with all that it was made from. ``what_if`` is empty and ``formats`` None unless asked
    for; ``commands`` are what to type for formats that are not those in use."""

    source: Source
    machine: Machine
    lengths: Lengths
    at: Situation
    plan: Plan
    what_if: tuple[Priced, ...] = ()
    formats: FormatSearch | None = None
    commands: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``; SI units."""
        from headrace.planner.plan_file import (
            baseline_documents,
            memory_document,
            policy_document,
            prediction_document,
            workload_document,
        )
        from headrace.planner.what_if import advice

        plan, machine = self.plan, self.machine
        found: dict[str, Any] = {
            "model": {
                "name": self.source.name,
                "source": self.source.kind,
                "runs": self.source.runs,
            },
            "hardware": {
                "name": machine.hardware.name,
                "source": machine.source,
                "measured": machine.hardware.measured,
            },
            "workload": workload_document(self.at.workload),
            "schedule": plan.policy.schedule,
            "policy": policy_document(plan.policy),
            "on_demand_rows": plan.on_demand_rows,
            "prediction": prediction_document(plan),
            "memory": memory_document(plan),
            "smallest_bytes": plan.smallest_bytes,
            "chosen": plan.chosen or None,
            "baselines": baseline_documents(plan),
            "notes": list(plan.notes),
        }
        if self.formats is not None:
            found["formats"] = {**self.formats.to_dict(), "commands": list(self.commands)}
        if self.what_if:
            found["what_if"] = [each.to_dict() for each in self.what_if]
            found["advice"] = advice(self.what_if)
        return found


def make(request: Request, what_if: bool = False) -> Planned:
    """Plan what was asked for. Raises ModelError, UsageError, BudgetError, InputFileError."""
    source, machine = find_model(request.model, request.revision), find_machine(request.hardware)
    lengths = _lengths(request, source)
    at, budget_note = situation(request, source, machine, lengths.workload)
    found = _planned(request, source, machine, lengths, at)
    plan = found.plan
    notes = (*budget_note, *lengths.notes, *plan.notes)
    plan = replace(plan, notes=notes, prediction=_wider(plan, lengths.error))
    priced: Sequence[Priced] = ()
    if what_if:
        from headrace.planner.what_if import price_changes

        priced = price_changes(found.at, plan)
    return replace(found, plan=plan, what_if=tuple(priced))


def _planned(
    request: Request, source: Source, machine: Machine, lengths: Lengths, at: Situation
) -> Planned:
    """The best plan for ``at`` in the formats in use, or in any that may be chosen."""
    if request.formats is None:
        from headrace.planner.search import best_plan

        at = machine.meeting(at)
        return Planned(source, machine, lengths, at, best_plan(at))
    from headrace.cli.format_choice import commands, rates_notes
    from headrace.planner.formats import plan_formats

    found = plan_formats(at, request.formats, machine.meeting)
    at, plan = found.chosen.at, found.chosen.plan
    assert plan is not None, "what is chosen has a plan"
    plan = replace(plan, notes=(*rates_notes(found, machine), *plan.notes))
    typed = commands(found, source, request.model, request.revision)
    return Planned(source, machine, lengths, at, plan, formats=found, commands=tuple(typed))


def situation(
    request: Request, source: Source, machine: Machine, workload: Workload
) -> tuple[Situation, tuple[str, ...]]:
    """All that the plan depends on, and where the budget comes from if nobody said."""
    from headrace.planner.candidates import Situation

    memory = None if request.memory is None else parse_size(request.memory)
    device = None if request.device_memory is None else parse_size(request.device_memory)
    if device is not None and not machine.hardware.has_device:
        raise UsageError("--device-memory", got=f"{machine.hardware.name}, without an accelerator")
    note = () if memory is not None else (machine.budget_note(),)
    at = Situation(
        source.model,
        source.pages,
        source.page_bytes,
        machine.hardware,
        workload,
        machine.host_bytes() if memory is None else memory,
        _overrides(request, source, machine),
        device_bytes=device,
    )
    return at, note


def _overrides(request: Request, source: Source, machine: Machine) -> Overrides:
    from headrace.planner.plan import Overrides, activations_for

    given = {name: v for name, v in (request.overrides or {}).items() if v is not None}
    if given.get("kv_dtype", "f16") not in KV_FORMATS:
        raise UsageError("--kv-cache-dtype", expected=" | ".join(KV_FORMATS), got=given["kv_dtype"])
    given["activations"] = activations_for(given.get("activations"), source.model)
    if machine.here:
        from headrace.kernels.native import available

        given = {"threads": usable_cores()} | given
        given["kernels"] = "native" if available() else "reference"
    return Overrides(**given)


def _lengths(request: Request, source: Source) -> Lengths:
    context = source.model.max_positions
    said = {
        "prompt-len": request.prompt_len,
        "gen-len": request.gen_len,
        "requests": request.requests,
    }
    if request.input is not None:
        if any(size is not None for size in said.values()):
            raise UsageError(
                "--input gives the lengths", got="--prompt-len, --gen-len or --requests"
            )
        return lengths_of(request.input, source.folder, context, request.max_tokens)
    usual = {"prompt-len": PROMPT_LEN, "gen-len": GEN_LEN, "requests": REQUESTS}
    assumed = {name: usual[name] for name, size in said.items() if size is None}
    job = {name: str(size) for name, size in (said | assumed).items()}
    found = lengths_said(
        job["prompt-len"], job["gen-len"], int(job["requests"]), context, request.seed
    )
    if not assumed:
        return found
    guess = ", ".join(f"--{name} {size}" for name, size in assumed.items())
    return replace(found, notes=(f"the job is assumed: {guess}", *found.notes))


def _wider(plan: Plan, error: float) -> Any:
    """The prediction with an interval that also covers the error of the prompt lengths."""
    found = plan.prediction
    tokens = max(1, found.prompt_tokens + found.gen_tokens)
    share = error * found.prompt_tokens / tokens
    return replace(found, low=found.low * (1 - share), high=found.high * (1 + share))
