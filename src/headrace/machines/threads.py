"""One worker per lane: the machine for CPUs and their disks.

A worker runs the first task in list order, of its lanes' heads, whose waits are over; else it
sleeps. Whoever ends a task wakes the sleepers that it made ready, and no others.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from headrace.errors import ScheduleError, TaskError
from headrace.machines import quick_turns
from headrace.machines.machine import Bodies, Cancelled, Clock, Passes, Sink, ViewOf, Views
from headrace.machines.run import Run, RunTicket
from headrace.machines.trace import SweepTrace
from headrace.schedule.task import Schedule
from headrace.schedule.waits import Hazards, Placed


class Threads:
    """Runs each lane on a thread of its own; ``inline`` maps a lane to the one whose thread it
    shares (``{"host": "cpu"}``). ``on_start(lane)`` runs first on each thread. ``passes(task,
    sweep)``, if given, is asked when a task may start and says whether its body would do nothing:
    then it is over there and then, in a fraction of what a body costs. It is asked with a lock
    held, so it must be quick and must not call the machine. The last one left of a sweep runs.

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
        passes: Passes | None = None,
    ) -> None:
        self._bodies = bodies
        self._view_of = view_of
        self._clock = clock
        self._inline = inline or {}
        self._on_start = on_start
        self._sink = sink
        self._passes = passes
        self._appending = threading.Lock()  # guards what append derives, outside the lock of all
        self._hazards = Hazards()
        self._appended = 0
        self._tasks = 0
        self._known: dict[int, _Known] = {}  # by identity of the schedule, while it lives
        self._lock = threading.Lock()  # guards everything below
        self._changed = threading.Condition(self._lock)  # a sweep is over, or a worker asleep
        self._workers: dict[str, _Worker] = {}
        self._done: dict[str, int] = {}
        self._runs: list[Run] = []
        self._failure: TaskError | None = None
        self._dropped = False
        self._closed = False
        quick_turns.begin()

    def append(self, schedule: Schedule, sweep: Any) -> RunTicket:
        """Add ``schedule`` behind all that was appended before; returns at once."""
        with self._appending:
            self._start_afresh()
            run = Run(self._appended, schedule, sweep)
            self._appended += 1
            parts = self._parts(run)
            with self._lock:
                self._enqueue(run, parts)
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
        self._known.clear()  # whoever keeps a schedule must not keep memory with it
        quick_turns.end()

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

    def _parts(self, run: Run) -> list[_Part]:
        """The tasks of ``run``, lane by lane, with their waits. A schedule is appended many times:
        nothing is made per task again."""
        placed, known = self._hazards.place(run.schedule), self._known_of(run.schedule)
        serial, self._tasks = self._tasks, self._tasks + len(placed.waits)
        return [
            _Part(lane, run, serial, places, placed, known.views)
            for lane, places in known.places.items()
        ]

    def _known_of(self, schedule: Schedule) -> _Known:
        found = self._known.get(id(schedule))
        if found is None:
            places: dict[str, list[int]] = {}
            for place, task in enumerate(schedule.tasks):
                places.setdefault(task.lane, []).append(place)
            views = [
                {buffer: self._view_of(buffer) for buffer in (*task.reads, *task.writes)}
                for task in schedule.tasks
            ]
            found = self._known[id(schedule)] = _Known(places, views)
            forget = weakref.finalize(schedule, self._known.pop, id(schedule), None)
            forget.atexit = False
        return found

    def _enqueue(self, run: Run, parts: list[_Part]) -> None:
        if self._dropped:  # it failed, or was cancelled, meanwhile
            run.dropped = True
            return
        if not parts:
            run.trace = run.finished()
            return
        self._runs.append(run)
        for part in parts:
            self._worker(part.lane).append(part)
        self._wake_ready()

    def _worker(self, lane: str) -> _Worker:
        name = self._inline.get(lane, lane)
        worker = self._workers.get(name)
        if worker is None:
            thread = threading.Thread(
                target=self._loop, args=(name,), name=f"headrace-{name}", daemon=True
            )
            thread.start()  # it waits for the lock; where it cannot start there is no worker
            worker = self._workers[name] = _Worker(thread, threading.Condition(self._lock))
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
                self._run(*item)
            except BaseException as cause:  # whatever it is, it must reach whoever waits
                run, place = item[0].run, item[1]
                self._fail(run.error(run.schedule.tasks[place], cause))

    def _take(self, worker: _Worker) -> tuple[_Part, int] | None:
        """Part and place of the worker's next task, once there is one; None when the machine
        closes."""
        with self._lock:
            while (queue := self._ready(worker)) is None:
                worker.asleep = True
                if self._closed:
                    return None
                if self._dropped:
                    self._changed.notify_all()
                worker.condition.wait()
                worker.asleep = False
            return _popped(queue)

    def _ready(self, worker: _Worker) -> deque[_Part] | None:
        """The queue of the worker's next task with something to do; what has nothing to do before
        it is over now."""
        passed = False
        while (queue := worker.ready(self._done)) is not None and self._passed(queue):
            passed = True
        if passed:
            self._wake_ready()
        return queue

    def _passed(self, queue: deque[_Part]) -> bool:
        """Whether the next task of ``queue`` was passed over."""
        run, place = queue[0].run, queue[0].next
        if self._passes is None or run.left == 1:  # to end a run takes more than this lock
            return False
        try:
            passes = self._passes(run.schedule.tasks[place], run.sweep)
        except Exception:  # its body looks at the same, and what that raises reaches whoever waits
            passes = False
        if not passes:
            return False
        now = self._clock()
        self._ended(run, place, now, now)
        _popped(queue)
        return True

    def _run(self, part: _Part, place: int) -> None:
        run, clock = part.run, self._clock
        task, views = run.schedule.tasks[place], part.views[place]
        body = self._bodies[task.op]
        start = clock()
        body(task, views, run.sweep)
        end = clock()
        with self._lock:
            last = self._ended(run, place, start, end)
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

    def _ended(self, run: Run, place: int, start: float, end: float) -> bool:
        """Count a task as done; True when it was the last of its run."""
        lane = run.schedule.tasks[place].lane
        self._done[lane] = self._done.get(lane, 0) + 1
        return run.record(place, start, end)

    def _wake_ready(self) -> None:
        for worker in self._workers.values():
            if worker.asleep and worker.made_ready(self._done):
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


class _Known(NamedTuple):
    """A schedule's tasks: their places by lane, and what each may see."""

    places: Mapping[str, Sequence[int]]
    views: Sequence[Views]


class _Part:
    """What is left of a run on one lane. ``next`` is the place of its next task in the list."""

    __slots__ = ("_at", "_places", "_serial", "_start", "_waits", "lane", "next", "run", "views")

    def __init__(
        self,
        lane: str,
        run: Run,
        serial: int,
        places: Sequence[int],
        placed: Placed,
        views: Sequence[Views],
    ) -> None:
        self.lane = lane
        self.run = run
        self.views = views
        self.next = places[0]
        self._at = 0
        self._places = places
        self._serial = serial
        self._waits, self._start = placed

    @property
    def serial(self) -> int:
        """Number of the next task among all that were appended."""
        return self._serial + self.next

    def waits_for(self, done: Mapping[str, int]) -> tuple[str, int] | None:
        """The first wait of the next task that is not over: a lane, and how many of its tasks must
        be done; None when it may start."""
        for lane, position in self._waits[self.next]:
            least = self._start.get(lane, 0) + position + 1
            if done.get(lane, 0) < least:
                return lane, least
        return None

    def advance(self) -> bool:
        """Go on to the task after the next one; True when there is none."""
        self._at += 1
        if self._at == len(self._places):
            return True
        self.next = self._places[self._at]
        return False


def _popped(queue: deque[_Part]) -> tuple[_Part, int]:
    """Part and place of the next task of ``queue``, taken from it."""
    part = queue[0]
    place = part.next
    if part.advance():
        queue.popleft()
    return part, place


class _Worker:
    """A thread and the queues of the lanes it serves. ``blocked`` holds, when nothing was ready,
    the wait of each queue's head that was not over."""

    def __init__(self, thread: threading.Thread, condition: threading.Condition) -> None:
        self.thread = thread
        self.condition = condition
        self.queues: dict[str, deque[_Part]] = {}
        self.asleep = False
        self.blocked: list[tuple[str, int]] = []

    def append(self, part: _Part) -> None:
        """Queue a part. It may be ready: that is as a wait that is over."""
        self.queues.setdefault(part.lane, deque()).append(part)
        self.blocked.append((part.lane, 0))

    def ready(self, done: Mapping[str, int]) -> deque[_Part] | None:
        """The queue whose head comes first of those that may start."""
        first: deque[_Part] | None = None
        self.blocked = []
        for queue in self.queues.values():
            if queue and (first is None or queue[0].serial < first[0].serial):
                wait = queue[0].waits_for(done)
                if wait is None:
                    first = queue
                else:
                    self.blocked.append(wait)
        return first

    def made_ready(self, done: Mapping[str, int]) -> bool:
        """Whether something is ready by now: asked after every task of every lane, so most of the
        time one comparison must do."""
        for lane, least in self.blocked:
            if done.get(lane, 0) >= least:
                return self.ready(done) is not None
        return False

    def wake(self) -> None:
        self.asleep = False
        self.condition.notify()
