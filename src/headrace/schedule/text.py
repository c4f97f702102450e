"""A schedule as text that a reviewer can read."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.schedule.task import Buffer, Schedule
from headrace.schedule.waits import Hazards


def as_text(*schedules: Schedule) -> str:
    """One line per task of ``schedules`` appended: lane and place in it, task, what it reads and
    writes, and behind ``after`` the waits that lane order does not imply."""
    hazards = Hazards()
    places: dict[str, int] = {}
    lines = []
    for schedule in schedules:
        lines.append(f"# {schedule.name}: {len(schedule.tasks)} tasks")
        for task, waits in zip(schedule.tasks, hazards.append(schedule), strict=True):
            place = places[task.lane] = places.get(task.lane, -1) + 1
            line = f"{task.lane}:{place} ".ljust(9) + task.label.ljust(22)
            line += f"{_names(task.reads)} -> {_names(task.writes)}"
            after = " ".join(f"{wait.lane}:{wait.position}" for wait in waits)
            lines.append(f"{line}  after {after}" if after else line)
    return "\n".join(lines) + "\n"


def _names(buffers: Iterable[Buffer]) -> str:
    """``hidden[0] hidden[1]`` as ``hidden[0,1]``, an only one without its index."""
    indices: dict[str, list[int]] = {}
    for buffer in buffers:
        indices.setdefault(buffer.name, []).append(buffer.index)
    return " ".join(
        name if name in _SINGLE and found == [0] else f"{name}[{','.join(map(str, found))}]"
        for name, found in indices.items()
    )


_SINGLE = {
    "rows_sent",
    "scratch_host",
    *("requests", "batch", "rows", "q", "attended", "inter"),
    *("final", "logits", "sampled", "scratch", "baton"),
}
