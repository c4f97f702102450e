"""What a study has done so far: a folder with a line for each thing done, and what they hold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli.prediction.draw import Case, Shape
from headrace.errors import UsageError

if TYPE_CHECKING:
    from headrace.planner.profile import Profile


@dataclass(frozen=True)
class Request:
    """What was asked for. A folder that holds the study of another request is refused."""

    seed: int
    runs: int
    repeats: int
    run_seconds: float
    shapes: Mapping[str, Shape]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the folder."""
        shapes = {name: [s.arch, s.dtype, dict(s.sizes)] for name, s in self.shapes.items()}
        return {
            "seed": self.seed,
            "runs": self.runs,
            "repeats": self.repeats,
            "run_seconds": self.run_seconds,
            "shapes": shapes,
        }


@dataclass(frozen=True)
class Predicted:
    """A case, sized and planned: ``requests`` of it take about as long as was asked for. ``bias``
    is what pilots let expect of ln(measured / played)."""

    case: Case
    requests: int
    memory: int
    schedule: str
    bound_by: str
    seconds: float
    low: float
    high: float
    bias: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**self.__dict__, "case": self.case.to_dict()}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Predicted:
        """From plain data."""
        return cls(**{**data, "case": Case(**data["case"])})


@dataclass(frozen=True)
class Measured:
    """One run: wall seconds, the share of the processor that other programs took meanwhile, and
    busy seconds by lane and op, predicted (lengths as given) beside."""

    index: int
    repeat: int
    seconds: float
    others: float
    lanes: Mapping[str, Mapping[str, float]]
    ops: Mapping[str, tuple[float, float]]


class Kept:
    """What the folder holds: the request, the profile, and a line for everything done."""

    def __init__(self, folder: Path, request: Mapping[str, Any], fresh: bool = False) -> None:
        self._lines = folder / "study.jsonl"
        self._request = {"kind": "request", **request}
        if fresh:
            self._lines.unlink(missing_ok=True)
        self.cases: dict[str, dict[int, Predicted]] = {"case": {}, "pilot": {}}
        self.runs: dict[tuple[int, int], Mapping[str, Any]] = {}
        self.measured: dict[int, Profile] = {}
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._read()
        if lines and lines[0] != self._request:
            raise UsageError(
                "the folder holds another study",
                expected=json.dumps(request)[:200],
                got=json.dumps(lines[0])[:200],
                hint="another --folder, or --fresh",
            )
        for line in lines[1:]:
            self._take(line)

    def add(self, kind: str, data: Mapping[str, Any]) -> None:
        """Keep one thing done, durably."""
        if not self._lines.exists():
            self._append(self._request)
        line = json.loads(json.dumps({"kind": kind, **data}))
        self._append(line)
        self._take(line)

    def seconds_of(self, index: int) -> tuple[float, ...]:
        """Wall seconds of the runs of one case."""
        return tuple(run["seconds"] for (at, _), run in sorted(self.runs.items()) if at == index)

    def _take(self, line: Mapping[str, Any]) -> None:
        data = {k: v for k, v in line.items() if k != "kind"}
        if line["kind"] == "run":
            self.runs[data["index"], data["repeat"]] = data
        elif line["kind"] == "measured":
            from headrace.planner.profile import profile_from

            self.measured[data["index"]] = profile_from(data["profile"])
        else:
            predicted = Predicted.of(data)
            self.cases[line["kind"]][predicted.case.index] = predicted

    def _read(self) -> list[Any]:
        """All whole lines; what a cut left torn is dropped."""
        if not self._lines.exists():
            return []
        data = self._lines.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._lines.write_bytes(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._lines.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
