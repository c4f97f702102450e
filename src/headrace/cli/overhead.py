"""What Python costs per sweep: a schedule's list built, its waits derived, its tasks started.

The bodies do nothing, so the wall time of a sweep is the machine's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headrace.schedule.task import Op
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Role, page_layout
from headrace.specs.policy import SCHEDULES, Policy

if TYPE_CHECKING:
    from rich.table import Table

Clock = Callable[[], float]

SHAPES = ("olmoe-1b-7b", "mixtral-8x7b")
"""Registry names: many small experts, and few large ones (cut into parts)."""


@dataclass(frozen=True)
class Overhead:
    """Seconds of Python of one sweep of ``schedule``. ``bound_seconds`` is what the sweep takes
    at least on the hardware that the share is stated for."""

    shape: str
    schedule: str
    tasks: int
    waits: int
    generate_seconds: float
    waits_seconds: float
    sweep_seconds: float
    bound_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the derived figures."""
        return {
            **vars(self),
            "seconds_per_task": self.sweep_seconds / self.tasks,
            "share_of_sweep": self.sweep_seconds / self.bound_seconds,
        }


def measure_all(
    shapes: dict[str, ModelSpec], clock: Clock, sweeps: int, hardware: Any
) -> Iterator[Overhead]:
    """Every schedule for every shape."""
    for name, model in shapes.items():
        for schedule in SCHEDULES:
            yield measure(name, model, schedule, clock, sweeps, hardware)


def measure(
    shape: str, model: ModelSpec, schedule_name: str, clock: Clock, sweeps: int, hardware: Any
) -> Overhead:
    """Build one schedule, derive its waits, and run it ``sweeps`` times with empty bodies."""
    from headrace.schedule.generate import generate
    from headrace.schedule.waits import Hazards

    pages = page_layout(model)
    policy = policy_for(model, schedule_name)
    began = clock()
    schedule = generate(model, pages, policy)
    generated = clock()
    waits = Hazards().append(schedule)
    derived = clock()
    return Overhead(
        shape=shape,
        schedule=schedule_name,
        tasks=len(schedule.tasks),
        waits=sum(map(len, waits)),
        generate_seconds=generated - began,
        waits_seconds=derived - generated,
        sweep_seconds=_run(schedule, clock, sweeps),
        bound_seconds=_bound(model, pages, policy, schedule, hardware),
    )


def policy_for(model: ModelSpec, schedule: str) -> Policy:
    """A policy of ordinary size: 256 tokens of 64 sequences, nothing but small pages resident
    (all of them under ``resident``)."""
    pages = page_layout(model)
    small = (Role.FINAL, Role.LAYER)
    kept = pages if schedule == "resident" else [p for p in pages if p.role in small]
    policy = Policy(
        schedule=schedule,
        max_rows=256,
        max_seqs=64,
        micro_batches=4,
        resident=frozenset(p.id for p in kept),
        kv_blocks=64 * 16,
    )
    if schedule == "resident":
        return policy
    return replace(policy, ring_slots=8, slot_bytes=max(p.bytes for p in pages) + 8192)


def overhead_table(rows: list[dict[str, Any]], hardware: str) -> Table:
    """One row per shape and schedule."""
    from rich.table import Table

    table = Table(
        *("shape", "schedule", "tasks", "waits", "generate", "derive waits", "run a sweep"),
        *("per task", f"of a sweep on {hardware}"),
        box=None,
    )
    for column in table.columns[:2]:
        column.no_wrap, column.overflow = True, "ignore"
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["shape"],
            row["schedule"],
            str(row["tasks"]),
            str(row["waits"]),
            f"{row['generate_seconds'] * 1e3:.1f} ms",
            f"{row['waits_seconds'] * 1e3:.1f} ms",
            f"{row['sweep_seconds'] * 1e3:.1f} ms",
            f"{row['seconds_per_task'] * 1e6:.1f} us",
            f"{row['share_of_sweep']:.2%}",
        )
    return table


def _run(schedule: Any, clock: Clock, sweeps: int) -> float:
    """Seconds per sweep, two in flight as in the engine, the first not counted."""
    from headrace.machines.threads import Threads

    machine = Threads(
        dict.fromkeys(Op, _nothing), lambda buffer: None, clock, inline={"host": "cpu"}
    )
    try:
        machine.append(schedule, None).wait()
        began = clock()
        tickets = [machine.append(schedule, None)]
        for _ in range(sweeps - 1):
            tickets.append(machine.append(schedule, None))
            tickets.pop(0).wait()
        tickets.pop().wait()
        return (clock() - began) / sweeps
    finally:
        machine.close()


def _nothing(task: object, views: object, sweep: object) -> None:
    pass


def _bound(model: ModelSpec, pages: Any, policy: Policy, schedule: Any, hardware: Any) -> float:
    """The least time of a sweep of full rows: 64 decodes at context 256 and the rest prefill."""
    from headrace.schedule.binding import Binding, Extent
    from headrace.schedule.work import WorkModel

    each = policy.max_seqs // policy.micro_batches
    rest = policy.mu - each
    extents = tuple(
        (*[Extent(1, 256)] * each, Extent(rest, rest)) for _ in range(policy.micro_batches)
    )
    binding = Binding(extents, (each,) * policy.micro_batches)
    return WorkModel(model, pages, policy).bound_seconds(schedule, [binding], hardware)
