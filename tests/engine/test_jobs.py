"""Jobs: what is pending, what counts, what a crash at any point leaves behind."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.engine.jobs import Job
from headrace.engine.lines import JobLine
from headrace.engine.outputs import CompletionOutput, RequestOutput
from headrace.errors import (
    InputFileError,
    JobError,
    LineError,
    LockedError,
    SignatureError,
    StorageError,
)

SIGNATURE = {"weights": "abc", "seed": 0}


class Files:
    """An input and an output in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.sidecar = folder / "out.jsonl.headrace.json"

    def put(self, *lines: Any) -> None:
        raw = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
        self.input.write_bytes(b"".join(r + b"\n" for r in raw))

    def open(self, signature: Any = SIGNATURE, **kwargs: Any) -> Job:
        return Job.open(self.input, self.output, signature, **kwargs)

    def run(self, group: int = 2, **kwargs: Any) -> list[str]:
        """Answer everything pending; return the prompts answered."""
        prompts = []
        with self.open(**kwargs) as job:
            waiting = []
            for line in job:
                prompts.append(line.prompt)
                waiting.append((line, answer(line)))
                if len(waiting) == group:
                    job.write(waiting)
                    waiting = []
            job.write(waiting)
        return prompts

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(x) for x in self.output.read_bytes().splitlines()]

    def answered(self) -> set[str]:
        """Keys of the complete lines that are no errors."""
        records = [json.loads(x) for x in self.output.read_bytes().split(b"\n")[:-1]]
        return {r["key"] for r in records if not r["error"]}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def answer(line: JobLine) -> RequestOutput:
    choice = CompletionOutput(0, f"re: {line.prompt}", (1, 2), "stop")
    return RequestOutput(line.key, str(line.prompt), (1,), (choice,))


def plain(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": p} for p in prompts]


def batch(custom_id: str, **body: Any) -> dict[str, Any]:
    body = {"prompt": "x"} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def test_every_line_is_answered_once(files: Files) -> None:
    files.put(*plain("a", "b", "c"))
    assert files.run() == ["a", "b", "c"]
    assert [r["text"] for r in files.results()] == ["re: a", "re: b", "re: c"]
    assert files.run() == []
    assert len(files.results()) == 3


def test_a_job_goes_on_where_it_stopped(files: Files) -> None:
    files.put(*plain("a", "b", "c"))
    with files.open() as job:
        lines = list(job)
        job.write([(lines[1], answer(lines[1]))])
        assert (job.total, job.done, job.pending, job.failed) == (3, 1, 2, 0)
        assert [x.prompt for x in job] == ["a", "c"]
    with files.open() as job:
        assert (job.total, job.done, job.pending) == (3, 1, 2)
    assert files.run() == ["a", "c"]


def test_equal_plain_lines_are_told_apart_by_their_occurrence(files: Files) -> None:
    files.put(*plain("a", "b", "a", "a"))
    with files.open() as job:
        lines = list(job)
        assert len({x.key for x in lines}) == 4
        job.write([(lines[2], answer(lines[2]))])
    assert files.run() == ["a", "b", "a"]
    files.put(*plain("a", "a", "new", "b", "a"))
    assert files.run() == ["new"]


def test_lines_may_move_between_runs(files: Files) -> None:
    files.put(batch("1"), batch("2"))
    files.run()
    files.put(batch("0"), batch("2"), batch("1", temperature=0))
    with files.open() as job:
        assert [x.custom_id for x in job] == ["0", "1"]


def test_lines_at_fault_become_error_lines(files: Files) -> None:
    files.put(batch("1"), b"{", batch("2", stream=True), b"", batch("3"))
    files.run()
    errors = {r["custom_id"]: r["error"] for r in files.results() if r["error"]}
    assert errors[None]["code"] == "invalid_json"
    assert errors[None]["line"] == 2
    assert errors["2"]["code"] == "unsupported_parameter"
    assert errors["2"]["line"] == 3
    with files.open() as job:
        assert (job.total, job.done, job.failed, job.pending) == (4, 4, 2, 0)


def test_unreadable_lines_take_the_shape_of_their_neighbours(files: Files) -> None:
    files.put(b"\xff", {"prompt": "a"}, b"\xff")
    files.run()
    bad = [r for r in files.results() if r["error"]]
    assert [r["key"][-2:] for r in bad] == ["-0", "-1"]
    assert all(r["text"] is None for r in bad)


def test_many_lines_at_fault_are_written_in_groups(files: Files) -> None:
    files.put(*(b"{" for _ in range(600)))
    writes: list[str] = []
    files.run(faults=writes.append)
    assert writes.count("output.durable") == 3
    assert len(files.results()) == 600


def test_errors_of_lines_that_are_no_longer_in_the_input_do_not_count(files: Files) -> None:
    files.put(batch("1"), batch("2", stream=True))
    files.run()
    with files.open() as job:
        assert (job.total, job.done, job.failed) == (2, 2, 1)
    with files.open(limit=1) as job:
        assert (job.total, job.done, job.failed) == (1, 1, 0)
    files.put(batch("1"), batch("3"))
    files.run()
    with files.open() as job:
        assert (job.total, job.done, job.failed) == (2, 2, 0)


def test_a_group_that_is_durable_is_never_written_again(files: Files, monkeypatch) -> None:
    """Ctrl-C as soon as anything was counted."""
    files.put(*plain("a", "b"))

    class Interrupting(set):
        def update(self, *others: Any) -> None:
            super().update(*others)
            raise KeyboardInterrupt

    with files.open() as job:
        lines = list(job)
        job._done = Interrupting(job._done)
        with pytest.raises(KeyboardInterrupt):
            job.write([(line, answer(line)) for line in lines])
        job._done = set(job._done)
        job.write([(line, answer(line)) for line in lines])
    assert len(files.results()) == 2


def test_errors_are_retried_on_request_only(files: Files) -> None:
    files.put(*plain("a", "b"), b"{")
    with files.open() as job:
        first, second = job
        job.write([(first, answer(first)), (second, LineError("full", code="x"))])
        assert job.failed == 2
    assert files.run() == []
    assert files.run(retry_errors=True) == ["b"]
    assert [r["text"] for r in files.results()] == ["re: a", None, "re: b"]
    assert not list(files.output.parent.glob("*.tmp"))


def test_a_retried_job_keeps_its_lock(files: Files) -> None:
    files.put(*plain("a"), b"{")
    files.run()
    with files.open(retry_errors=True), pytest.raises(LockedError):
        files.open()


def test_limit_takes_the_first_lines(files: Files) -> None:
    files.put(*plain("a", "b", "c"))
    assert files.run(limit=2) == ["a", "b"]
    assert files.run(limit=2) == []
    assert files.run() == ["c"]


def test_fresh_starts_over(files: Files) -> None:
    files.put(*plain("a", "b"))
    files.run()
    with pytest.raises(SignatureError):
        files.open(signature={"seed": 1})
    files.run(signature={"seed": 1}, fresh=True)
    assert len(files.results()) == 2


def test_fresh_drops_nothing_when_the_input_is_refused(files: Files) -> None:
    files.put(*plain("a"))
    files.run()
    files.put(batch("1"), batch("1", n=2))
    with pytest.raises(InputFileError, match="line 2"):
        files.open(fresh=True)
    assert len(files.results()) == 1


def test_a_different_run_is_refused_and_its_parts_named(files: Files) -> None:
    files.put(*plain("a"))
    files.run()
    with pytest.raises(SignatureError, match="seed") as caught:
        files.open(signature={"weights": "abc", "seed": 1})
    assert "weights" not in str(caught.value.expected)
    files.sidecar.unlink()
    with pytest.raises(SignatureError, match="but no out"):
        files.open()


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', "[]", "\x00"])
def test_a_damaged_sidecar_is_refused(files: Files, text: str) -> None:
    files.put(*plain("a"))
    files.run()
    files.sidecar.write_text(text)
    with pytest.raises(SignatureError, match="cannot be read"):
        files.open()
    assert files.run(fresh=True) == ["a"]


def test_the_plan_is_kept_with_the_output_and_not_compared(files: Files) -> None:
    files.put(*plain("a", "b"))
    with files.open() as job:
        assert job.plan is None
        job.store_plan({"N": 8})
        line = next(iter(job))
        job.write([(line, answer(line))])
    with files.open() as job:
        assert job.plan == {"N": 8}


def test_an_unused_run_leaves_no_files(files: Files) -> None:
    files.put(*plain("a"))
    files.open().close()
    assert [p.name for p in files.input.parent.iterdir()] == ["in.jsonl"]


def test_scanning_writes_nothing(files: Files) -> None:
    files.put(*plain("a"), b"{")
    with files.open() as job:
        assert [x.number for x in job.scan()] == [1, 2]
        assert files.output.read_bytes() == b""


def test_a_line_written_twice_counts_once(files: Files) -> None:
    files.put(*plain("a"))
    with files.open() as job:
        line = next(iter(job))
        job.write([(line, answer(line))])
        job.write([(line, answer(line))])
        assert job.done == 1
    assert len(files.results()) == 1


def test_the_model_and_the_time_are_in_the_answer(files: Files) -> None:
    files.put(batch("1", model="m"))
    files.run(model="m", model_names={"m"}, now=lambda: 17.9, defaults={"max_tokens": 3})
    body = files.results()[0]["response"]["body"]
    assert (body["model"], body["created"]) == ("m", 17)


def test_a_duplicate_custom_id_stops_before_work(files: Files) -> None:
    files.put(batch("1"), batch("2"), batch("1", n=2))
    with pytest.raises(InputFileError, match="line 3"):
        files.open()
    assert not files.output.exists()


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_input_is_refused(files: Files, content: bytes) -> None:
    files.input.write_bytes(content)
    with pytest.raises(InputFileError, match="at least one line"):
        files.open()


def test_unusable_paths_are_named(files: Files, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"in\.jsonl"):
        files.open()
    files.put(*plain("a"))
    with pytest.raises(InputFileError, match="same file"):
        Job.open(files.input, files.input, SIGNATURE)
    with pytest.raises(InputFileError, match="read twice"):
        Job.open(tmp_path, files.output, SIGNATURE)
    with pytest.raises(JobError, match="no"):
        Job.open(files.input, tmp_path / "no" / "out", SIGNATURE)


@pytest.mark.parametrize("text", [b"a note without an end", b'{"mine": 1', b'{"id"x'])
def test_a_foreign_line_without_an_end_is_not_taken_for_a_torn_one(files: Files, text) -> None:
    files.put({"prompt": "a"})
    files.output.write_bytes(text)
    with pytest.raises(JobError, match="not an output of Headrace"):
        files.open()
    assert files.output.read_bytes() == text


def test_a_foreign_file_is_not_touched(files: Files) -> None:
    files.put(*plain("a"))
    files.output.write_bytes(b"my diary\n")
    with pytest.raises(JobError, match="not an output"):
        files.open()
    assert files.output.read_bytes() == b"my diary\n"


def test_windows_line_ends_a_mark_and_no_last_newline_are_read(files: Files) -> None:
    files.input.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}')
    assert files.run() == ["a", "b"]


def test_a_line_too_long_is_an_error_line(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.engine.inputs.LONGEST_LINE", 40)
    files.put({"prompt": "x" * 100}, {"prompt": "b"})
    assert files.run() == ["b"]
    assert [r["error"]["code"] for r in files.results() if r["error"]] == ["invalid_line"]


def test_two_runs_on_one_output_are_refused(files: Files) -> None:
    files.put(*plain("a"))
    context = multiprocessing.get_context("spawn")
    with files.open(), context.Pool(1) as pool:
        assert pool.apply(is_locked, (files,))
    assert files.run() == ["a"]


def is_locked(files: Files) -> bool:
    try:
        files.open().close()
    except LockedError:
        return True
    return False


TAILS = [b"{", b'{"id": "batch_req_1", "error": null}', b"\0\0\0", b"{\n\0"]


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.parametrize(
    "tail", [b"{", b'{"id": "batch_req_1", "error": null}', b"\0\0\0", b"{\n\0"]
)
def test_a_torn_last_line_is_dropped_and_redone(files: Files, tail: bytes) -> None:
    files.put(*plain("a", "b"))
    files.run(limit=1)
    with files.output.open("ab") as file:
        file.write(tail)
    assert files.run() == ["b"]
    assert [r["text"] for r in files.results()] == ["re: a", "re: b"]


def test_damage_before_good_lines_is_refused(files: Files) -> None:
    files.put(*plain("a", "b"))
    files.run()
    files.output.write_bytes(b"{\n" + files.output.read_bytes())
    with pytest.raises(JobError, match="byte 0"):
        files.open()


POINTS = ["output.write", "output.chunk", "output.fsync", "output.durable"]
POINTS += ["replace.fsync", "replace.rename", "input.line"]


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    crashes=st.lists(st.tuples(st.sampled_from(POINTS), st.integers(0, 4)), max_size=4),
    group=st.integers(1, 5),
    torn=st.integers(0, 60),
)
def test_crashes_lose_and_repeat_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    crashes: list[tuple[str, int]],
    group: int,
    torn: int,
) -> None:
    files = Files(tmp_path_factory.mktemp("crash"))
    files.put(*plain("a", "b", "a", "c" * 200), b"{", *plain("d", "e"))
    counted: set[str] = set()
    for point, after in crashes:
        with contextlib.suppress(Crash):
            files.run(group, faults=crash_at(point, after), retry_errors=True)
        if files.output.exists() and torn:
            with files.output.open("ab") as file:
                file.write(b'{"key": "torn", "error": null, "text": "' + b"x" * torn)
        if files.output.exists():
            durable = files.answered()
            assert counted <= durable
            counted = durable
    files.run(group)
    results = files.results()
    assert len(results) == len({r["key"] for r in results}) == 7
    assert sorted(r["text"] for r in results if not r["error"]) == sorted(
        "re: " + p for p in ("a", "b", "a", "c" * 200, "d", "e")
    )


def crash_at(point: str, after: int) -> Any:
    seen = 0

    def faults(name: str) -> None:
        nonlocal seen
        seen += name == point
        if name == point and seen > after:
            raise Crash(point)

    return faults


def test_a_full_disk_adds_nothing_and_the_job_can_go_on(files: Files) -> None:
    files.put(*plain("a", "b"))
    broken = True

    def faults(name: str) -> None:
        if broken and name == "output.fsync":
            raise OSError(28, "No space left on device")

    with files.open(faults=faults) as job:
        lines = list(job)
        with pytest.raises(StorageError, match="No space"):
            job.write([(x, answer(x)) for x in lines])
        assert job.done == 0
        broken = False
        job.write([(lines[1], answer(lines[1]))])
    assert [r["text"] for r in files.results()] == ["re: b"]


def test_a_full_disk_while_rewriting_leaves_the_old_output(files: Files) -> None:
    files.put(*plain("a"), b"{")
    files.run()
    before = files.output.read_bytes()

    def faults(name: str) -> None:
        if name == "replace.fsync":
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space"):
        files.open(retry_errors=True, faults=faults)
    assert files.output.read_bytes() == before


def test_a_full_disk_at_the_signature_is_a_storage_error_and_nothing_is_begun(
    files: Files,
) -> None:
    files.put(*plain("a"))

    def faults(name: str) -> None:
        if name == "replace.fsync":
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space"):
        files.open(faults=faults)
    assert not files.output.exists()


def test_what_a_full_disk_took_of_a_group_is_cut_at_once(files: Files) -> None:
    files.put(*plain("a", "b"))
    files.run(limit=1)
    before = files.output.read_bytes()

    def faults(name: str) -> None:
        if name == "output.chunk":
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="free some space"):
        files.run(faults=faults)
    assert files.output.read_bytes() == before


def test_zeros_that_a_power_cut_left_are_cut_with_all_behind_them(files: Files) -> None:
    files.put(*plain("a", "b", "c"))
    files.run(group=1)
    first, second, third = files.output.read_bytes().splitlines(keepends=True)
    files.output.write_bytes(first + bytes(len(second)) + third)
    assert files.run() == ["b", "c"]
    assert [r["text"] for r in files.results()] == ["re: a", "re: b", "re: c"]


def test_a_killed_rewriting_leaves_nothing_behind(files: Files) -> None:
    files.put(*plain("a"), b"{")
    files.run()
    with pytest.raises(Crash):
        files.run(retry_errors=True, faults=crash_at("replace.write", 0))
    (files.output.parent / "out.jsonl.headrace.tmp").write_bytes(b"half a line")
    assert files.run() == []
    assert not list(files.output.parent.glob("*.tmp"))


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 1, "signature": {}, "plan": []}',
        '{"format": 1, "signature": [["seed", 0]], "plan": null}',
        '{"format": 1, "signature": ' + "[" * 100_000,
    ],
)
def test_a_sidecar_of_another_shape_is_refused(files: Files, text: str) -> None:
    files.put(*plain("a"))
    files.run()
    files.sidecar.write_text(text)
    with pytest.raises(SignatureError, match="cannot be read"):
        files.open()


def test_two_questions_alike_but_for_their_id_stay_apart_when_they_change_places(
    files: Files,
) -> None:
    """Were the id no part of the key, the second answer would carry the first one's id."""
    lines = [{"id": n, "prompt": "same"} for n in (1, 2)]
    files.put(*lines)
    files.run(limit=1)
    files.put(*reversed(lines))
    files.run()
    assert sorted(r["id"] for r in files.results()) == [1, 2]
