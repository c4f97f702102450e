"""A clock only: predicts when each task would run, from work vectors and a machine's roofs.

Running tasks share every roof they touch, max-min fair: the speeds of all rise together, relative
to what each reaches alone, until a roof is full; who draws on it stays there, the others rise on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from headrace.errors import ScheduleError
from headrace.machines.machine import Cancelled, Sink
from headrace.machines.run import Run, RunTicket
from headrace.machines.trace import SweepTrace
from headrace.schedule.lanes import GPU
from headrace.schedule.task import Schedule, Task
from headrace.schedule.waits import Hazards, TaskWaits
from headrace.schedule.work_vector import Work, alone
from headrace.specs.hardware import Hardware

WorkOf = Callable[[Task, Any], Work]
"""``work_of(task, sweep)``: asked when the task starts."""


class Virtual:
    """Simulates schedules on ``hardware``; ``now`` is its clock, in seconds.

    Time passes only while a ticket is waited for, and only until that sweep ends: a schedule
    appended before that starts in its tail, as on the machines that work. A task takes at least
    its amounts over the roofs' rates, divided by the op's efficiency, plus what any of its op
    takes.
    """

    def __init__(self, work_of: WorkOf, hardware: Hardware, sink: Sink | None = None) -> None:
        self.now = 0.0
        self._work_of = work_of
        self._hardware = hardware
        self._sink = sink
        self._appended = 0
        self._forget()

    def append(self, schedule: Schedule, sweep: Any) -> RunTicket:
        """Add ``schedule`` behind all that was appended before."""
        run = Run(self._appended, schedule, sweep)
        self._appended += 1
        if not schedule.tasks:
            run.trace = run.finished()
        for index, waits in enumerate(self._hazards.append(schedule)):
            task = schedule.tasks[index]
            self._queues.setdefault(task.lane, deque()).append(_Item(run, index, task, waits))
        return RunTicket(self, run)

    def wait(self, run: Run, timeout: float | None = None) -> SweepTrace:
        """Let simulated time pass until ``run`` has ended; return its trace (see Ticket)."""
        while not run.over:
            self._start_ready()
            if not run.over:
                self._pass_time()
        if run.trace is None:
            raise Cancelled
        return run.trace

    def cancel(self) -> None:
        """Forget what has not ended; the clock stays where it is."""
        for queue in self._queues.values():
            for item in queue:
                item.run.dropped = True
        for running in self._running.values():
            running.item.run.dropped = True
        self._forget()

    def close(self) -> None:
        """Cancel; there are no threads to give back."""
        self.cancel()

    def _forget(self) -> None:
        self._hazards = Hazards()
        self._queues: dict[str, deque[_Item]] = {}
        self._running: dict[str, _Running] = {}
        self._done: dict[str, int] = {}

    def _start_ready(self) -> None:
        """Start the head of every idle lane that has nothing left to wait for."""
        again = True
        while again:  # a task that takes no time may free others
            again = False
            for lane, queue in self._queues.items():
                if queue and lane not in self._running and self._ready(queue[0]):
                    again |= self._start(lane, queue.popleft())

    def _ready(self, item: _Item) -> bool:
        return all(self._done.get(lane, 0) > position for lane, position in item.waits)

    def _start(self, lane: str, item: _Item) -> bool:
        """Start a task; True when it took no time and has ended already."""
        running = _Running(item, self.now, self._work_of(item.task, item.run.sweep), self._hardware)
        if running.alone:
            self._running[lane] = running
            return False
        self._end(running)
        return True

    def _pass_time(self) -> None:
        """Go on to the next moment at which a task ends."""
        running = list(self._running.values())
        if not running:
            raise ScheduleError("no task can start: the schedule waits for itself")
        speeds = fair_speeds([task.demand for task in running])
        step = min(task.left / speed for task, speed in zip(running, speeds, strict=True))
        self.now += step
        for task, speed in zip(running, speeds, strict=True):
            task.left -= step * speed
            if task.left <= 1e-9 * task.alone:
                del self._running[task.item.task.lane]
                self._end(task)

    def _end(self, running: _Running) -> None:
        run, place, task, _ = running.item
        self._done[task.lane] = self._done.get(task.lane, 0) + 1
        if run.record(place, running.start, self.now):
            run.trace = run.finished()
            if self._sink:
                self._sink(run.trace)


def fair_speeds(demands: Sequence[Mapping[str, float]]) -> list[float]:
    """Max-min fair speeds, each at most 1, of tasks that draw ``demands`` (shares of roofs) at
    speed 1: on no roof does the sum of speed x demand exceed 1."""
    speeds = [1.0] * len(demands)
    room: dict[str, float] = {}
    rising = list(range(len(demands)))
    while rising:
        load: dict[str, float] = {}
        for task in rising:
            for roof, demand in demands[task].items():
                load[roof] = load.get(roof, 0.0) + demand
        full, level = None, 1.0
        for roof, drawn in load.items():
            reached = room.get(roof, 1.0) / drawn
            if reached < level:
                full, level = roof, reached
        if full is None:
            break
        for task in rising:
            if full in demands[task]:
                speeds[task] = level
                for roof, demand in demands[task].items():
                    room[roof] = max(0.0, room.get(roof, 1.0) - level * demand)
        rising = [task for task in rising if full not in demands[task]]
    return speeds


class _Item(NamedTuple):
    run: Run
    place: int
    task: Task
    waits: TaskWaits


class _Running:
    """A task under way: ``alone`` seconds it takes by itself, of which ``left`` remain, and the
    share of each roof it draws then."""

    __slots__ = ("alone", "demand", "item", "left", "start")

    def __init__(self, item: _Item, start: float, work: Work, hardware: Hardware) -> None:
        op = item.task.op.value if item.task.lane != GPU else f"gpu.{item.task.op.value}"
        found, behind = alone(work, hardware, op), work.exchange_seconds(hardware)
        seconds = dict(found.roofs)
        self.item = item
        self.start = start
        self.alone = found.seconds + max(behind.values(), default=0.0)
        self.alone += hardware.fixed_seconds_of(op, work.chance)
        for roof, time in behind.items():
            seconds[roof] = seconds.get(roof, 0.0) + time
        self.left = self.alone
        self.demand = {roof: time / self.alone for roof, time in seconds.items() if time}
