"""Jobs killed at every kind of moment, resumed, sometimes killed again, and compared."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tools.soak import rig as rigs
from tools.soak.rig import Rig

POINTS = {
    "fsync": ("output.fsync",),
    "sweep": ("page.read", "sweep.commit", "page.arrived", "sweep.committed"),
    "start": (
        *("start.model", "start.plan", "start.memory", "start.loaded", "input.line"),
        *("replace.write", "replace.fsync", "replace.rename", "replace.done"),
    ),
    "write": ("output.write", "output.chunk", "output.durable"),
    "command": ("output.fsync", "sweep.commit", "start.plan", "output.durable"),
}
"""Kind of moment -> fault points at which it is brought about; ``clock`` has none."""

SHARES = {"fsync": 50, "sweep": 50, "start": 28, "write": 22, "clock": 40, "command": 10}
"""Kind of moment -> kills of it among the 200: between write and fsync, in the middle of a sweep,
in start-up, around writes, by somebody else's clock, and of the command itself."""

PATIENCE = 60.0


@dataclass(frozen=True)
class Kill:
    """One moment: a fault point and its turn, or (``point`` empty) once the output has ``turn``
    lines. ``again`` is where the resumed run is killed, if it gets there."""

    kind: str
    point: str
    turn: int
    again: Kill | None = None

    def __str__(self) -> str:
        first = f"{self.point}@{self.turn}" if self.point else f"{self.turn} lines"
        return f"{self.kind} {first}" + (f", then {self.again}" if self.again else "")


def moments(passed: Counter[str], lines: int, count: int, seed: int = 0) -> list[Kill]:
    """``count`` moments in the proportions of SHARES, spread evenly over the ``passed`` points
    of an undisturbed run; every third resumed run is killed too."""
    draw, whole = Random(seed), sum(SHARES.values())
    kills: list[Kill] = []
    for kind, share in SHARES.items():
        number = max(1, round(share * count / whole))
        places = [i / max(1, number - 1) for i in range(number)]
        kills += [_moment(kind, i, at, passed, lines) for i, at in enumerate(places)]
    kills = kills[:count]
    return [
        Kill(k.kind, k.point, k.turn, draw.choice(kills) if i % 3 == 0 else None)
        for i, k in enumerate(kills)
    ]


def random_moments(passed: Counter[str], lines: int, seed: int) -> Iterator[Kill]:
    """Moments for as long as somebody asks; the command itself is left out, it is slow."""
    draw = Random(seed)
    kinds = [kind for kind in SHARES if kind != "command"]
    while True:
        yield _moment(draw.choice(kinds), draw.randrange(1 << 20), draw.random(), passed, lines)


def _moment(kind: str, number: int, at: float, passed: Counter[str], lines: int) -> Kill:
    """The moment ``at`` (0 to 1) of a run; ``number`` picks the point, in turn.

    Of many passings the last tenth is left out: when a request is admitted depends on timing, so
    that another run may have a few less."""
    if kind == "clock":
        return Kill(kind, "", int(at * 0.9 * lines))
    points = POINTS[kind]
    point = points[number % len(points)]
    most = passed[point] if passed[point] < 10 else passed[point] * 9 // 10
    return Kill(kind, point, 1 + round(at * max(0, most - 1)))


# -- one case ------------------------------------------------------------------------------


def forks() -> Any:
    """Processes that have imported everything when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.soak.imported"])
    return context


def killed_and_resumed(
    context: Any, rig: Rig, output: Path, kill: Kill, undisturbed: Counter[str]
) -> str:
    """Kill a new job at ``kill``, resume until it is whole, compare; "" or what is wrong."""
    durable = 0
    step: Kill | None = kill
    while step is not None:
        code = _run_and_kill(context, rig, output, step)
        reached = code == -signal.SIGKILL
        if not reached and (step is kill or code != 0):
            return f"the run ended with {code}, not by kill -9"
        whole = output.read_bytes().count(b"\n") if output.exists() else 0
        if whole < durable:
            return f"{durable - whole} durable lines were lost"
        durable, step = whole, step.again
    code = _run_and_kill(context, rig, output, None)
    if code:
        return f"the resumed run ended with {code}"
    return difference(undisturbed, rigs.essence(output))


def difference(expected: Counter[str], found: Counter[str]) -> str:
    """ "" for equal outputs, else the first line that is missing, changed or repeated."""
    if expected == found:
        return ""
    missing, extra = expected - found, found - expected
    return f"missing: {next(iter(missing), '-')[:200]}; instead: {next(iter(extra), '-')[:200]}"


def _run_and_kill(context: Any, rig: Rig, output: Path, kill: Kill | None) -> int:
    """The exit code (negative: the signal) of a run."""
    fault = f"{kill.point}@{kill.turn}=kill" if kill is not None and kill.point else ""
    if kill is not None and kill.kind == "command":
        return command(rig, output, "--faults", fault).returncode
    process = context.Process(target=rigs.run, args=(rig, output, fault))
    process.start()
    if kill is not None and not kill.point:
        _kill_at(process, output, kill.turn)
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        return 124
    return int(process.exitcode)


def _kill_at(process: Any, output: Path, lines: int) -> None:
    """Kill -9 from outside, as soon as the output has so many lines."""
    end = time.monotonic() + PATIENCE
    while process.is_alive() and time.monotonic() < end:
        if output.exists() and output.read_bytes().count(b"\n") >= lines:
            os.kill(process.pid, signal.SIGKILL)
            return
        time.sleep(0.001)


def command(
    rig: Rig, output: Path, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The job by the command line, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "headrace", *rig.arguments(output, *more)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, **environment},
    )
