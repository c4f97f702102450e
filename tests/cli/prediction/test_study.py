"""A whole study of two tiny models: made, measured, predicted, run, cut and taken up again."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.cli.prediction.draw import Shape, draw_cases
from headrace.cli.prediction.kept import Kept, Predicted, Request
from headrace.cli.prediction.report import markdown, report
from headrace.cli.prediction.study import Study
from headrace.errors import UsageError
from headrace.planner.interval import bias, half_width

SIZES = {"layers": 2, "hidden": 64, "heads": 4, "ffn_width": 128, "vocab": 300}
SHAPES = {
    "one": Shape("mixtral", "bf16", {**SIZES, "experts": 4, "top_k": 2}),
    "two": Shape("llama", "bf16", SIZES),
}
REQUEST = Request(seed=3, runs=2, repeats=2, run_seconds=0.05, shapes=SHAPES)


class CutError(Exception):
    pass


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study that is cut at its third run, taken up and finished; what each part said."""
    folder = tmp_path_factory.mktemp("study")
    said: list[str] = []

    def until_third(text: str) -> None:
        said.append(text)
        if sum("repeat" in line and line.startswith("run") for line in said) == 3:
            raise CutError

    with pytest.raises(CutError), study(folder, until_third) as cut:
        cut.run()
    lines = (folder / "study.jsonl").read_bytes()
    with (folder / "study.jsonl").open("ab") as file:
        file.write(b'{"kind": "run", "ind')  # what a cut may leave
    again: list[str] = []
    with study(folder, again.append) as taken_up:
        rows = taken_up.run()
        about = taken_up.about()
    return folder, lines, again, rows, about


def study(folder: Path, said) -> Study:
    return Study(
        folder,
        REQUEST,
        time.perf_counter,
        said,
        measure_seconds=0.3,
        pilots=1,
        attempts=1,
    )


def test_what_was_done_is_not_done_again(done):
    folder, before, again, rows, _ = done
    assert (folder / "study.jsonl").read_bytes().startswith(before)
    assert not any("measuring" in line or "making" in line or "requests" in line for line in again)
    assert sum("repeat" in line for line in again) == 2, "the one that was cut, and the last"
    assert [len(outcome.measured) for _, outcome in rows] == [2, 2]


def test_every_case_is_measured_then_predicted_then_run_and_pilots_come_first(done):
    folder, *_ = done
    kinds = [json.loads(line) for line in (folder / "study.jsonl").read_text().splitlines()]
    names = [(line["kind"], line.get("index", line.get("case", {}).get("index"))) for line in kinds]
    assert names == [
        ("request", None),
        *((kind, -1) for kind in ("measured", "pilot", "run")),
        *((kind, 0) for kind in ("measured", "case", "run", "run")),
        *((kind, 1) for kind in ("measured", "case", "run", "run")),
    ]


def test_pilots_make_the_bias_and_the_interval(done):
    folder, _, _, rows, _ = done
    lines = [json.loads(line) for line in (folder / "study.jsonl").read_text().splitlines()]
    pilot, run = (next(line for line in lines if line["kind"] == kind) for kind in ("pilot", "run"))
    residual = math.log(run["seconds"] / pilot["seconds"])
    for (predicted, _), line in zip(
        rows, [line for line in lines if line["kind"] == "measured"][1:], strict=True
    ):
        wide = half_width([residual], line["profile"]["hardware"]["noise"])
        assert math.log(predicted.high / predicted.seconds) == pytest.approx(wide, rel=1e-6)
        assert predicted.bias == bias([residual]) != 0.0


def test_jobs_are_as_long_as_asked_for_by_the_prediction(done):
    _, _, _, rows, _ = done
    for predicted, outcome in rows:
        assert predicted.low < predicted.seconds < predicted.high
        assert outcome.predicted == predicted.seconds
        assert predicted.requests >= 1


def test_the_report_has_every_run(done):
    _, _, _, rows, about = done
    table = markdown(rows, about)
    assert table.count("\n| 1 |") == table.count("\n| 2 |") == 1
    assert "--seed 3" in table
    found = report(rows)
    assert [run["case"]["index"] for run in found["runs"]] == [0, 1]
    assert found["verdict"]["runs"] == 2
    json.dumps(found)


def test_another_request_is_refused_and_a_fresh_one_taken(done, tmp_path):
    (tmp_path / "study.jsonl").write_text('{"kind": "request", "seed": 1}\n')
    with pytest.raises(UsageError, match="another study"):
        Kept(tmp_path, REQUEST.to_dict())
    assert Kept(tmp_path, REQUEST.to_dict(), fresh=True).runs == {}
    assert not (tmp_path / "study.jsonl").exists()


def test_a_folder_of_another_version_is_refused_before_its_lines_are_read(tmp_path):
    lines = [{"kind": "request", **REQUEST.to_dict()}, {"kind": "measured", "name": "one"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "study.jsonl").write_text(text)
    with pytest.raises(UsageError, match="another study"):
        study(tmp_path, print)
    assert (tmp_path / "study.jsonl").read_text() == text


def test_a_case_keeps_its_plan_as_plain_data():
    case = draw_cases(1, 1)[0]
    made = Predicted(case, 3, 1000, "stream", "disk", 2.0, 1.0, 3.0, 0.1)
    assert Predicted.of(json.loads(json.dumps(made.to_dict()))) == made
    assert replace(made, requests=4) != made
