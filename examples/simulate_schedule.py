"""Watch two schedules of the same model run, on a machine that has nothing but a clock.

A schedule is a list of tasks; the virtual machine knows what each costs and when it may start.
Two sweeps are appended, so that the seam between them can be seen: under ``stream`` the second
one's reads begin in the first one's tail, under ``one_by_one`` nothing overlaps.

``python examples/simulate_schedule.py``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.machines.trace import SweepTrace, utilisation
from headrace.machines.virtual import Virtual
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.task import Op, Task
from headrace.schedule.work import WorkModel
from headrace.schedule.work_vector import Work
from headrace.specs.hardware import Hardware
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Role, page_layout
from headrace.specs.policy import Policy
from headrace.specs.units import format_seconds

MODEL = ModelSpec(
    "mixtral", layers=2, hidden=256, heads=8, kv_heads=2, head_dim=32, ffn_width=1024,
    vocab=2048, experts=4, top_k=2,
)  # fmt: skip
MACHINE = Hardware("toy", {"cpu_flops": 20e9, "dram": 20e9, "disk": 0.5e9, "host": 1.0})
SEQUENCES, CONTEXT = 32, 64
WIDTH = 72
MARKS = {Op.READ_PAGE: "r", Op.EXPERT: "E", Op.ATTN: "a", Op.LOGITS: "h", Op.SAMPLE: "s"}


def main() -> None:
    """Print both timelines, on one time axis."""
    runs = {name: simulate(name) for name in ("one_by_one", "stream")}
    end = max(traces[-1].end for traces in runs.values())
    for name, traces in runs.items():
        print(f"{name}: two sweeps in {format_seconds(traces[-1].end)}")
        draw(traces, end)
    print("r read  E expert  a attention  h head  s sample  . other work")


def simulate(schedule: str) -> list[SweepTrace]:
    """Two sweeps of SEQUENCES decodes; experts stream through four slots, the rest stays."""
    pages = page_layout(MODEL)
    streamed = {page.id: page.bytes for page in pages if page.role is Role.EXPERT}
    policy = Policy(
        schedule=schedule,
        max_rows=SEQUENCES,
        max_seqs=SEQUENCES,
        resident=frozenset(page.id for page in pages) - streamed.keys(),
        ring_slots=4,
        slot_bytes=max(streamed.values()),
        disk_lanes=2,
        kv_blocks=SEQUENCES * CONTEXT // 16,
    )
    work = WorkModel(MODEL, pages, policy)

    def work_of(task: Task, binding: Any) -> Work:
        return work.work(task, binding)

    machine = Virtual(work_of, MACHINE)
    binding = Binding(((Extent(1, CONTEXT),) * SEQUENCES,), (SEQUENCES,))
    first = generate(MODEL, pages, policy)
    second = generate(MODEL, pages, policy, next_phase(pages, policy))
    tickets = [machine.append(sweep, binding) for sweep in (first, second)]
    return [ticket.wait() for ticket in tickets]


def draw(traces: Sequence[SweepTrace], end: float) -> None:
    """One row of characters per lane, WIDTH of them for ``end`` seconds; its busy share."""
    rows: dict[str, list[str]] = {}
    for trace in traces:
        for index, start, stop in trace.spans:
            task = trace.schedule.tasks[index]
            row = rows.setdefault(task.lane, [" "] * WIDTH)
            for column in range(round(start / end * WIDTH), round(stop / end * WIDTH)):
                row[column] = MARKS.get(task.op, ".")
    shares = utilisation(traces)
    for lane in sorted(rows):
        print(f"{lane:>6} |{''.join(rows[lane])}| {shares[lane]:.0%}")


if __name__ == "__main__":
    main()
