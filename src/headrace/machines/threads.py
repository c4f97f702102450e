"""One worker per lane: the machine for CPUs and their disks.

A worker runs the first task in list order, of its lanes' heads, whose waits are over; else it
sleeps. Whoever ends a task wakes the sleepers that it made ready, and no others.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from headrace.errors import ScheduleError, TaskError
from headrace.machines.machine import Bodies, Cancelled, Clock, Sink, ViewOf, Views
from headrace.machines.run import Run, RunTicket
from headrace.machines.trace import SweepTrace
from headrace.schedule.task import Schedule, Task
from headrace.schedule.waits import Hazards, TaskWaits


class Threads:
    """Runs each lane on a thread of its own; ``inline`` maps a lane to the one whose thread it
    shares (``{"host": "cpu"}``). ``on_start(lane)`` runs first on each thread.

    After a body raised, nothing more runs until a ticket's wait has re-raised it or ``cancel``
    was called; then the machine starts afresh. Its methods must not be called from bodies.
    """

    def __init__(
        self,
        bodies: Bodies,
        view_of: ViewOf,
        clock: Clock,
        *,
        inline: Mapping[str, str] | None = None,
        on_start: Callable[[str], None] | None = None,
        sink: Sink | None = None,
    ) -> None:
        self._bodies = bodies
        self._view_of = view_of
        self._clock = clock
        self._inline = inline or {}
        self._on_start = on_start
        self._sink = sink
        self._appending = threading.Lock()  # guards what append derives, outside the lock of all
        self._hazards = Hazards()
        self._appended = 0
        self._serial = 0
        self._views: dict[int, list[Views]] = {}  # by identity of the schedule, while it lives
        self._lock = threading.Lock()  # guards everything below
        self._changed = threading.Condition(self._lock)  # a sweep is over, or a worker asleep
        self._workers: dict[str, _Worker] = {}
        self._done: dict[str, int] = {}
        self._runs: list[Run] = []
        self._failure: TaskError | None = None
        self._dropped = False
        self._closed = False

    def append(self, schedule: Schedule, sweep: Any) -> RunTicket:
        """Add ``schedule`` behind all that was appended before; returns at once."""
        with self._appending:
            self._start_afresh()
            run = Run(self._appended, schedule, sweep)
            self._appended += 1
            items = self._items(run)
            with self._lock:
                self._enqueue(run, items)
        return RunTicket(self, run)

    def wait(self, run: Run, timeout: float | None = None) -> SweepTrace:
        """Block until ``run`` has ended and return its trace (see Ticket)."""
        with self._changed:
            if not self._changed.wait_for(lambda: run.over and self._settled(), timeout):
                raise TimeoutError(f"sweep {run.index} has not ended after {timeout} s")
            if run.trace is not None:
                return run.trace
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        raise Cancelled

    def cancel(self) -> None:
        """Forget what has not started, return once what has started has ended."""
        with self._changed:
            self._drop()
            self._failure = None
            self._changed.wait_for(self._settled)

    def close(self) -> None:
        """Cancel, then end the threads. Idempotent."""
        self.cancel()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for worker in self._workers.values():
                worker.wake()
        for worker in self._workers.values():
            worker.thread.join()
        self._views.clear()  # whoever keeps a schedule must not keep memory with it

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- appending -----------------------------------------------------------------------

    def _start_afresh(self) -> None:
        """After a cancel or a failure that was told: no waits for what came before."""
        with self._changed:
            if self._closed:
                raise ScheduleError("the machine is closed")
            if self._dropped and self._failure is None:
                self._changed.wait_for(self._settled)
                self._hazards = Hazards()
                self._done = {}
                self._dropped = False

    def _items(self, run: Run) -> dict[str, list[_Item]]:
        """The tasks of ``run`` per lane, with their waits."""
        items: dict[str, list[_Item]] = {}
        waits, views = self._hazards.append(run.schedule), self._views_of(run.schedule)
        for index, task in enumerate(run.schedule.tasks):
            item = _Item(self._serial + index, run, index, task, waits[index], views[index])
            items.setdefault(task.lane, []).append(item)
        self._serial += len(waits)
        return items

    def _views_of(self, schedule: Schedule) -> list[Views]:
        """What each task may see: a schedule is replayed many times, its tasks name many pages."""
        found = self._views.get(id(schedule))
        if found is None:
            found = [
                {buffer: self._view_of(buffer) for buffer in (*task.reads, *task.writes)}
                for task in schedule.tasks
            ]
            self._views[id(schedule)] = found
            forget = weakref.finalize(schedule, self._views.pop, id(schedule), None)
            forget.atexit = False
        return found

    def _enqueue(self, run: Run, items: dict[str, list[_Item]]) -> None:
        if self._dropped:  # it failed, or was cancelled, meanwhile
            run.dropped = True
            return
        if not items:
            run.trace = run.finished()
            return
        self._runs.append(run)
        for lane, new in items.items():
            self._worker(lane).queues.setdefault(lane, deque()).extend(new)
        self._wake_ready()

    def _worker(self, lane: str) -> _Worker:
        name = self._inline.get(lane, lane)
        worker = self._workers.get(name)
        if worker is None:
            thread = threading.Thread(
                target=self._loop, args=(name,), name=f"headrace-{name}", daemon=True
            )
            worker = self._workers[name] = _Worker(thread, threading.Condition(self._lock))
            thread.start()
        return worker

    # -- working -------------------------------------------------------------------------

    def _loop(self, name: str) -> None:
        with self._lock:
            worker = self._workers[name]
        prepare = self._on_start
        while (item := self._take(worker)) is not None:
            try:
                if prepare is not None:
                    prepare(name)
                    prepare = None
                self._run(item)
            except BaseException as cause:  # whatever it is, it must reach whoever waits
                self._fail(item.run.error(item.task, cause))

    def _take(self, worker: _Worker) -> _Item | None:
        """The worker's next task, once there is one; None when the machine closes."""
        with self._lock:
            while (queue := worker.ready(self._done)) is None:
                worker.asleep = True
                if self._closed:
                    return None
                if self._dropped:
                    self._changed.notify_all()
                worker.condition.wait()
                worker.asleep = False
            return queue.popleft()

    def _run(self, item: _Item) -> None:
        task, run, clock = item.task, item.run, self._clock
        body = self._bodies[task.op]
        start = clock()
        body(task, item.views, run.sweep)
        end = clock()
        with self._lock:
            self._done[task.lane] = self._done.get(task.lane, 0) + 1
            last = run.record(item.place, start, end)
            self._wake_ready()
        if last:
            trace = run.finished()
            if self._sink is not None:
                self._sink(trace)
            with self._lock:
                run.trace = trace
                if run in self._runs:
                    self._runs.remove(run)
                self._changed.notify_all()

    def _wake_ready(self) -> None:
        for worker in self._workers.values():
            if worker.asleep and worker.ready(self._done) is not None:
                worker.wake()

    # -- stopping ------------------------------------------------------------------------

    def _fail(self, error: TaskError) -> None:
        with self._lock:
            if not self._dropped:
                self._failure = error
                self._drop()

    def _drop(self) -> None:
        self._dropped = True
        for run in self._runs:
            run.dropped = True
        self._runs.clear()
        for worker in self._workers.values():
            for queue in worker.queues.values():
                queue.clear()
        self._changed.notify_all()

    def _settled(self) -> bool:
        """Whether no body runs that was dropped."""
        return not self._dropped or all(worker.asleep for worker in self._workers.values())


class _Item(NamedTuple):
    serial: int
    run: Run
    place: int
    task: Task
    waits: TaskWaits
    views: Views


class _Worker:
    """A thread and the queues of the lanes it serves."""

    def __init__(self, thread: threading.Thread, condition: threading.Condition) -> None:
        self.thread = thread
        self.condition = condition
        self.queues: dict[str, deque[_Item]] = {}
        self.asleep = False

    def ready(self, done: Mapping[str, int]) -> deque[_Item] | None:
        """The queue whose head comes first of those that may start."""
        first: deque[_Item] | None = None
        for queue in self.queues.values():
            if queue and (first is None or queue[0].serial < first[0].serial):
                for lane, position in queue[0].waits:
                    if done.get(lane, 0) <= position:
                        break
                else:
                    first = queue
        return first

    def wake(self) -> None:
        self.asleep = False
        self.condition.notify()
