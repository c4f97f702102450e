"""The long test: 200 kills, 1,000 small jobs, every change of the machine; a table; 1 on a fault.

::

    python -m tools.soak [--minutes 30] [--only kills,jobs,changes,NAME,...] [--output FILE]

After the fixed list come further kills at random moments until the minutes are over.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import headrace
from tools.soak import kills, small_jobs
from tools.soak.changes import CHANGES, Stage
from tools.soak.rig import LINES, Rig, essence, passings

SMALL_LINES = 6


class Verdict(NamedTuple):
    """One row of the table."""

    name: str
    figures: str
    fault: str
    seconds: float


def main(arguments: list[str]) -> int:
    """Run what was asked for; 1 if anything is wrong."""
    asked = _options().parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background or by
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, they are ignored, and stay so in children
    began = time.monotonic()
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="headrace-soak-") as folder:
        for verdict in _verdicts(Path(folder), asked.only, began + 60 * asked.minutes):
            verdicts.append(verdict)
            print(_row(verdict), flush=True)
    if not verdicts:
        print(f"nothing is called {asked.only}", file=sys.stderr)
        return 2
    page = _page(verdicts, arguments, time.monotonic() - began)
    if asked.output is not None:
        asked.output.write_text(page)
    faults = [v for v in verdicts if v.fault]
    print(f"{len(verdicts)} rows, {len(faults)} faults, {time.monotonic() - began:.0f} s")
    return 1 if faults else 0


def _verdicts(folder: Path, only: list[str], deadline: float) -> Iterator[Verdict]:
    context = kills.forks()
    (folder / "rig").mkdir()
    (folder / "small").mkdir()
    rig = Rig.make(folder / "rig")
    output = folder / "undisturbed.jsonl"
    passed = passings(rig, output)
    stage = Stage(rig, essence(output), folder, context)

    def wanted(name: str) -> bool:
        return not only or name in only

    cases = kills.moments(passed, LINES, sum(kills.SHARES.values()))
    yield from _killed(stage, [c for c in cases if wanted("kills") or c.kind in only])
    for change in CHANGES:
        if wanted("changes") or change.__name__ in only:
            yield _changed(stage, change)
    if wanted("jobs"):
        small = Rig.make(folder / "small", SMALL_LINES)
        for run in (small_jobs.in_one_process, small_jobs.in_many_processes):
            began = time.monotonic()
            figures, fault = run(small, folder / "small", context)
            yield Verdict(run.__name__.replace("_", " "), figures, fault, time.monotonic() - began)
    if wanted("kills"):
        yield from _more_kills(stage, passed, deadline)


def _killed(stage: Stage, cases: list[kills.Kill]) -> Iterator[Verdict]:
    """One row per kind of moment."""
    for kind in dict.fromkeys(case.kind for case in cases):
        mine = [case for case in cases if case.kind == kind]
        began, faults = time.monotonic(), []
        for number, case in enumerate(mine, 1):
            if fault := _case(stage, case):
                faults.append(f"{case}: {fault}")
            if not number % 10:
                print(f"  {kind}: {number} of {len(mine)}, {len(faults)} faults", file=sys.stderr)
        again = sum(case.again is not None for case in mine)
        figures = f"{len(mine)} killed, {again} of them again when resumed"
        yield Verdict(f"kill -9: {kind}", figures, "; ".join(faults), time.monotonic() - began)


def _more_kills(stage: Stage, passed: Counter[str], deadline: float) -> Iterator[Verdict]:
    began, done, faults = time.monotonic(), 0, []
    for case in kills.random_moments(passed, LINES, seed=int(time.time())):
        if time.monotonic() > deadline:
            break
        done += 1
        if fault := _case(stage, case):
            faults.append(f"{case}: {fault}")
    if done:
        figures = f"{done} killed at random moments"
        yield Verdict("kill -9: more", figures, "; ".join(faults), time.monotonic() - began)


def _case(stage: Stage, case: kills.Kill) -> str:
    output = Path(tempfile.mkdtemp(dir=stage.folder)) / "out.jsonl"
    fault = kills.killed_and_resumed(stage.context, stage.rig, output, case, stage.undisturbed)
    if not fault:
        shutil.rmtree(output.parent)
    return fault


def _changed(stage: Stage, change: Any) -> Verdict:
    name = change.__name__
    folder = stage.folder / name
    folder.mkdir()
    began = time.monotonic()
    try:
        fault = change(replace(stage, folder=folder))
    except Exception as error:  # a change that fails otherwise than it may is a fault, not an end
        fault = f"{type(error).__name__}: {error}"
    return Verdict(name.replace("_", " "), "", fault, time.monotonic() - began)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="random kills fill what is left"
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        help=f"kills, or kinds of them ({', '.join(kills.SHARES)}); jobs; changes, or names of "
        "them: " + ", ".join(change.__name__ for change in CHANGES),
    )
    parser.add_argument("--output", type=Path, help="write the table there, as Markdown")
    return parser


def _row(verdict: Verdict) -> str:
    said = verdict.fault or "holds"
    return f"{verdict.name:32} {verdict.seconds:7.1f} s  {said}  {verdict.figures}".rstrip()


def _page(verdicts: list[Verdict], arguments: list[str], seconds: float) -> str:
    rows = "\n".join(
        f"| {v.name} | {v.figures} | {v.fault.replace('|', '/') or 'holds'} | {v.seconds:.0f} |"
        for v in verdicts
    )
    words = " ".join(["python -m tools.soak", *arguments])
    return f"""# Soak test, {date.today()}

`{words}`: {len(verdicts)} rows, {sum(bool(v.fault) for v in verdicts)} faults, {seconds:.0f} s.
Headrace {headrace.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores,
Linux {platform.release()}. Every row ends with the job resumed and its lines compared with those
of an undisturbed run: the same keys, each once, with equal `choices` and `usage`. Limits of the
small jobs: no more threads or descriptors, at most {small_jobs.MOST_RSS_GROWTH >> 20} MiB more RSS
after the first {small_jobs.WARM} jobs; the last processes at most {small_jobs.MOST_SPREAD:.0%}
above the first.

| what | how much | verdict | seconds |
|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
