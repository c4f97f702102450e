"""``python -m fuzz.run --minutes 5``: a coverage-guided search (atheris), one process a target.

A finding is any exception but a HeadraceError, more than a second of processor time for one
input, or memory that grows by more than 50 MB. Its input lands in ``.fuzz/findings``; once
fixed, keep it in ``fuzz/corpus/TARGET``: the tests replay that folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from fuzz.mutate import mutate

CORPUS = Path(__file__).with_name("corpus")
WORK = Path(".fuzz")
MOST_SECONDS = 1.0
MOST_GROWTH = 50 << 20
SETTLED = 20_000
"""Executions after which memory is measured first: tables of coverage have grown by then."""


class TooSlowError(Exception):
    """One input took longer than MOST_SECONDS of processor time."""


class GrowthError(Exception):
    """Memory grew by more than MOST_GROWTH."""


def main() -> int:
    """Fuzz every target (or one) and print a table; 1 when there was a finding."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--minutes", type=float, default=2.0, help="in all, shared by the targets")
    options.add_argument("--target", help="only this one")
    options.add_argument("--child", type=float, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child is not None:
        fuzz_here(given.target, given.child)
    names = [given.target] if given.target else target_names()
    rows = [fuzz(name, 60 * given.minutes / len(names)) for name in names]
    print("| target | executions | per second | branches | RSS growth | findings |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['target']} | {row['executions']:,} | {row['rate']:,.0f} | {row['covered']} "
              f"| {row['growth'] / 1e6:.1f} MB | {row['finding'] or 'none'} |")  # fmt: skip
    print(json.dumps(rows), file=sys.stderr)
    return int(any(row["finding"] for row in rows))


def target_names() -> list[str]:
    """Names of all targets."""
    from fuzz.targets import TARGETS

    return list(TARGETS)


def fuzz(name: str, seconds: float) -> dict[str, object]:
    """Run one target in a process of its own."""
    (WORK / "findings").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fuzz.run", "--target", name, "--child", str(seconds)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stderr
    finding = ""
    if done.returncode:
        fault = re.findall(r"^ *=== Uncaught Python exception: ===\n(.*)", text, re.MULTILINE)
        finding = (fault or re.findall(r"^(?:==\d+== )?ERROR: .*", text, re.MULTILINE) or ["?"])[0]
        print(text[-4000:], file=sys.stderr)
    count = re.findall(r"stat::number_of_executed_units: *(\d+)", text)
    runs = (
        int(count[0]) if count else max(map(int, re.findall(r"^#(\d+)\t", text, re.M)), default=0)
    )
    covered = re.findall(r"cov: (\d+)", text)
    growth = [int(g) for g in re.findall(r"^growth (-?\d+)$", text, re.MULTILINE)]
    return {
        "target": name,
        "executions": runs,
        "rate": runs / (time.monotonic() - began),
        "covered": int(covered[-1]) if covered else 0,
        "growth": max(growth, default=0),
        "finding": finding,
    }


def fuzz_here(name: str, seconds: float) -> None:
    """Fuzz in this process until the time is over, or something is found. Does not return."""
    import atheris

    # An editable install finds the package by a hook of its own, which atheris cannot look into.
    sys.meta_path = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
    sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
    with atheris.instrument_imports(include=["headrace"]):
        from fuzz.targets import TARGETS, seeds
    from headrace.errors import HeadraceError

    found = WORK / "corpus" / name
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()[name]):
        (found / f"seed-{number}").write_bytes(seed)
    target, watch = TARGETS[name], Watch()

    def once(data: bytes) -> None:
        began = time.process_time()
        with contextlib.suppress(HeadraceError):
            target(data)
        watch.after(time.process_time() - began)

    arguments = [
        sys.argv[0],
        f"-max_total_time={max(1, round(seconds))}",
        "-timeout=20",
        "-max_len=4096",
        "-print_final_stats=1",
        f"-dict={Path(__file__).with_name('tokens.dict')}",
        f"-artifact_prefix={WORK}/findings/{name}-",
        str(found),
        str(CORPUS / name),
    ]

    def changed(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        tree = mutate(data, random) if random.random() < 0.7 else None
        return atheris.Mutate(data, most) if tree is None or len(tree) > most else tree

    atheris.Setup(arguments, once, custom_mutator=changed)
    atheris.Fuzz()


class Watch:
    """Time of every call, and memory every 5000 calls (to stderr, as ``growth BYTES``)."""

    def __init__(self) -> None:
        self.calls = 0
        self.settled = 0

    def after(self, seconds: float) -> None:
        """Count one call. Raises TooSlowError, GrowthError."""
        if seconds > MOST_SECONDS:
            raise TooSlowError(f"{seconds:.2f} s")
        self.calls += 1
        if self.calls == SETTLED:
            self.settled = resident_bytes()
        elif self.calls > SETTLED and not self.calls % 5000:
            growth = resident_bytes() - self.settled
            os.write(2, f"growth {growth}\n".encode())
            if growth > MOST_GROWTH:
                raise GrowthError(f"{growth} bytes")


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
