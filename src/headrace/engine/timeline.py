"""The plan of a run that has happened: its own schedules and amounts on the virtual machine."""

from __future__ import annotations

from typing import Any

from headrace.engine.record import Record
from headrace.machines.trace import SweepTrace
from headrace.machines.virtual import Virtual
from headrace.schedule.task import Task
from headrace.schedule.work_vector import Work
from headrace.specs.hardware import Hardware


def planned_traces(record: Record, hardware: Hardware) -> list[SweepTrace]:
    """What ``hardware`` was expected to make of every recorded sweep, one after the other, two
    in flight as in the engine."""

    ran = {id(trace.sweep): trace.schedule.name for trace in record.traces}
    works = {name: record.work.under(name) for name in set(ran.values())}

    def work_of(task: Task, sweep: Any) -> Work:
        return works[ran[id(sweep)]].work(task, sweep.binding)

    machine = Virtual(work_of, hardware)
    tickets = [machine.append(t.schedule, t.sweep) for t in record.traces[:2]]
    planned = []
    for index in range(len(record.traces)):
        planned.append(tickets[index].wait())
        if index + 2 < len(record.traces):
            later = record.traces[index + 2]
            tickets.append(machine.append(later.schedule, later.sweep))
    return planned
