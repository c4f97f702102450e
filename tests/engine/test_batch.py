"""Batch jobs through the whole engine: answered, resumed, killed, interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from headrace.engine import batch as batch_module
from headrace.engine.batch import Progress, job_shape, plan_job, run_job, store_plan
from headrace.engine.jobs import Job
from headrace.errors import BudgetError, SignatureError, StorageError, TaskError

from .batches import (
    DEFAULTS,
    LINES,
    batch_line,
    essence,
    opened,
    results,
    run,
    write_lines,
)
from .engines import least_memory, open_llm, workload
from .processes import running


@pytest.fixture(scope="module")
def memory(mixtral) -> int:
    """A budget under which the tests' jobs stream."""
    return least_memory(mixtral, workload([(5,) * 200], 20)) * 5 // 4


@pytest.fixture(scope="module")
def llm(mixtral, memory):
    with open_llm(mixtral, memory) as llm:
        yield llm


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_lines(tmp_path_factory.mktemp("batch") / "in.jsonl", LINES)


@pytest.fixture(scope="module")
def undisturbed(llm, source):
    """What a run that nobody disturbs leaves behind."""
    output = source.with_name("undisturbed.jsonl")
    run(llm, source, output)
    return essence(output)


# -- a run -------------------------------------------------------------------------------


def test_lines_that_cannot_run_do_not_wait_for_a_sweep(llm, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_module, "BAD_GROUP", 2)
    lines = [batch_line(str(i), prompt=[100000 + i]) for i in range(7)]
    source, written = write_lines(tmp_path / "in.jsonl", lines), []
    real = Job.write
    monkeypatch.setattr(
        Job, "write", lambda job, group: (written.append(len(group)), real(job, group))[1]
    )
    run(llm, source, tmp_path / "out.jsonl")
    assert len(results(tmp_path / "out.jsonl")) == 7
    assert max(written) == 2


def test_every_line_is_answered_and_counted(llm, source, tmp_path):
    output, seen = tmp_path / "out.jsonl", []
    with opened(llm, source, output, model="m") as job:
        plan_job(llm, job)
        summary = run_job(llm, job, progress=seen.append)
    assert (summary.lines, summary.done, summary.failed) == (13, 13, 3)
    found = {r["custom_id"]: r for r in results(output)}
    assert {n for n, r in found.items() if r["error"]} == {None, "d", "i"}
    assert found["d"]["error"]["code"] == "context_length_exceeded"
    assert found["i"]["error"]["code"] == "invalid_parameter"
    assert found["i"]["error"]["line"] == 10
    body = found["b"]["response"]["body"]
    assert body["usage"]["prompt_tokens"] == 4
    assert body["usage"]["completion_tokens"] <= 18
    assert [c["index"] for c in body["choices"]] == [0, 1]
    assert found["h"]["response"]["body"]["usage"]["completion_tokens"] == 4
    assert len(found["e"]["response"]["body"]["choices"][0]["logprobs"]["tokens"]) <= 7
    assert found["c"]["response"]["body"]["object"] == "chat.completion"
    answered = [r["response"]["body"]["usage"] for r in found.values() if not r["error"]]
    assert summary.generated_tokens == sum(u["completion_tokens"] for u in answered)
    assert summary.bytes_read >= summary.bytes_needed > 0
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert isinstance(seen[-1], Progress)
    assert (seen[-1].total, seen[-1].generated_tokens) == (13, summary.generated_tokens)


def test_lines_are_durable_before_the_sweep_after_next_begins(llm, source, tmp_path):
    """The shortest answer stands in the output long before the longest has ended."""
    output, sizes = tmp_path / "out.jsonl", []
    with opened(llm, source, output) as job:
        plan_job(llm, job)
        run_job(llm, job, progress=lambda p: sizes.append((p.done, len(results(output)))))
    assert all(done <= lines for done, lines in sizes)
    assert sizes[0][0] < sizes[-1][0] == 13


def test_the_trace_holds_planned_beside_measured_lanes(llm, source, tmp_path):
    with opened(llm, source, tmp_path / "out.jsonl") as job:
        plan_job(llm, job)
        run_job(llm, job, trace_path=tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {"planned", "measured"}
    assert {e["cat"] for e in events if e["ph"] == "X"} >= {"read_page", "bind", "sample"}


def test_equal_jobs_give_equal_answers(llm, source, undisturbed, tmp_path):
    run(llm, source, tmp_path / "out.jsonl")
    assert essence(tmp_path / "out.jsonl") == undisturbed


def test_a_budget_in_which_all_stays_gives_the_same_answers(mixtral, source, undisturbed, tmp_path):
    with open_llm(mixtral) as llm:
        run(llm, source, tmp_path / "out.jsonl")
        assert llm.current_plan.policy.schedule == "resident"
    assert essence(tmp_path / "out.jsonl") == undisturbed


# -- resumed -----------------------------------------------------------------------------


def test_a_trial_run_and_the_rest_make_a_whole(llm, source, undisturbed, tmp_path):
    output = tmp_path / "out.jsonl"
    assert run(llm, source, output, limit=4).done == 4
    assert len(results(output)) == 4
    assert run(llm, source, output).done == 13
    assert run(llm, source, output) is None
    assert essence(output) == undisturbed


def test_a_torn_last_line_is_done_again(llm, source, undisturbed, tmp_path):
    output = tmp_path / "out.jsonl"
    run(llm, source, output)
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) - 20])
    run(llm, source, output)
    assert essence(output) == undisturbed


def test_errors_are_done_again_on_request_and_fresh_starts_over(llm, source, undisturbed, tmp_path):
    output = tmp_path / "out.jsonl"
    run(llm, source, output)
    answered = [r for r in results(output) if not r["error"]]
    assert run(llm, source, output, retry_errors=True).failed == 3
    assert results(output)[: len(answered)] == answered
    assert essence(output) == undisturbed
    run(llm, source, output, fresh=True)
    assert essence(output) == undisturbed


def test_another_run_is_refused(mixtral, memory, llm, source, tmp_path):
    output = tmp_path / "out.jsonl"
    run(llm, source, output, limit=1)
    with (
        open_llm(mixtral, memory, seed=1) as other,
        pytest.raises(SignatureError, match="these differ: seed"),
    ):
        run(other, source, output)


def test_the_plan_of_the_first_run_is_kept(mixtral, memory, source, tmp_path):
    output = tmp_path / "out.jsonl"
    with open_llm(mixtral, memory) as llm, opened(llm, source, output) as job:
        first, shape = plan_job(llm, job)
        store_plan(llm, job, {"shown": 1})
        assert shape.workload.requests == 11  # one of them has two choices
        job.write([(next(iter(job)), SignatureError("any"))])
    with open_llm(mixtral, memory) as llm, opened(llm, source, output) as job:
        assert job.plan["shown"] == 1
        again, _ = plan_job(llm, job)
        assert again.policy == first.policy
        assert "kept" in again.notes[-1]
    with open_llm(mixtral, memory * 2) as llm, opened(llm, source, output) as job:
        larger, _ = plan_job(llm, job)
        assert "kept" not in larger.notes[-1]


# -- shapes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "longest"),
    [
        ({"prompt": "c" * 150}, 151 + 6 - 1),
        ({"prompt": "c", "max_tokens": 90}, 2 + 90 - 1),
        ({"messages": [{"role": "user", "content": "d" * 90}]}, 115 + 6 - 1),
        ({"prompt": "c"}, 3 + 6 - 1),
    ],
)
def test_the_longest_line_is_found_beyond_the_sample(llm, tmp_path, monkeypatch, late, longest):
    monkeypatch.setattr(batch_module, "SAMPLED_LINES", 3)
    lines = [batch_line(f"{i}", prompt="ab") for i in range(9)]
    lines[6] = batch_line("6", **late)
    with opened(llm, write_lines(tmp_path / "in", lines), tmp_path / "out") as job:
        shape = job_shape(llm, job)
        plan, _ = plan_job(llm, job)
        assert shape.sampled == 3
        assert 9 <= shape.workload.requests <= 10
        assert shape.workload.longest == longest
        assert run_job(llm, job).failed == 0
        assert plan.policy.kv_blocks * plan.policy.kv_block >= longest


def test_prefixes_that_prompts_share_are_counted(llm, tmp_path):
    lines = [{"prompt": "same beginning " + x} for x in "abc"]
    with opened(llm, write_lines(tmp_path / "in", lines), tmp_path / "out") as job:
        shape = job_shape(llm, job)
    assert shape.shared_prefix_tokens >= 2 * len("same beginning ")


def test_lines_at_fault_only_are_answered_without_a_sweep(llm, tmp_path):
    source = write_lines(tmp_path / "in", ["{", {"prompt": ""}, {"prompt": [999]}])
    summary = run(llm, source, tmp_path / "out")
    assert (summary.failed, summary.generated_tokens) == (2, 1 * DEFAULTS["max_tokens"])


# -- disturbed ---------------------------------------------------------------------------


class Stop(BaseException):
    """As sudden as Ctrl-C, and nobody else's."""


@pytest.mark.parametrize("where", ["progress", "output.write", "output.fsync", "output.durable"])
@pytest.mark.parametrize("turn", [1, 3])
def test_an_interrupted_run_keeps_what_is_finished(llm, source, undisturbed, tmp_path, where, turn):
    output, left = tmp_path / "out.jsonl", [turn]

    def interrupt(name: str) -> None:
        left[0] -= name == where
        if name == where and not left[0]:
            raise Stop

    with opened(llm, source, output, faults=interrupt) as job:
        plan_job(llm, job)
        with pytest.raises(Stop):
            run_job(llm, job, progress=lambda _: interrupt("progress"))
        assert job.done == len(results(output)) >= 1
    assert llm.session.batcher.free_blocks == llm.session.policy.kv_blocks
    run(llm, source, output)
    assert essence(output) == undisturbed


def test_a_full_disk_stops_the_run_and_loses_nothing(llm, source, undisturbed, tmp_path):
    output, room = tmp_path / "out.jsonl", [2]

    def full(name: str) -> None:
        room[0] -= name == "output.fsync"
        if name == "output.fsync" and room[0] < 0:
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space"):
        run(llm, source, output, faults=full)
    assert 0 < len(results(output)) < 13
    run(llm, source, output)
    assert essence(output) == undisturbed


def test_a_failing_body_stops_the_run_after_saving(llm, source, undisturbed, tmp_path, monkeypatch):
    from headrace.engine import session as session_module

    make, left = session_module.make_bodies, [400]

    def made(*arguments):
        bodies = dict(make(*arguments))

        def read(op, task, views, sweep):
            left[0] -= 1
            if not left[0]:
                raise OSError(5, "Input/output error")
            bodies[op](task, views, sweep)

        return {op: (lambda *a, op=op: read(op, *a)) for op in bodies}

    output = tmp_path / "out.jsonl"
    monkeypatch.setattr(session_module, "make_bodies", made)
    with pytest.raises(TaskError, match="Input/output error"):
        run(llm, source, output)
    monkeypatch.undo()
    saved = len(results(output))
    assert 0 < saved < 13
    run(llm, source, output)
    assert essence(output) == undisturbed


# -- a machine that changes ------------------------------------------------------------------


def test_answers_from_a_checkpoint_that_was_written_to_are_not_kept(
    mixtral, memory, llm, source, undisturbed, tmp_path
):
    copy, output, written = tmp_path / "model", tmp_path / "out.jsonl", []
    shutil.copytree(mixtral, copy)
    shard = next(copy.glob("*.safetensors"))

    def spoil(progress: Progress) -> None:
        written.append(progress.done)
        os.utime(shard, ns=(1, 1))

    with open_llm(copy, memory) as other, opened(other, source, output) as job:
        plan_job(other, job)
        with pytest.raises(StorageError, match="was written to while it was in use"):
            run_job(other, job, progress=spoil)
    assert len(written) == 1
    assert len(results(output)) == written[0] < 13
    run(llm, source, output)
    assert essence(output) == undisturbed


def test_less_free_memory_than_planned_is_refused_before_any_work(
    mixtral, memory, source, tmp_path, monkeypatch
):
    output = tmp_path / "out.jsonl"
    monkeypatch.setattr("headrace.engine.llm.free_bytes", lambda: memory // 2)
    with (
        open_llm(mixtral, memory) as llm,
        pytest.raises(BudgetError, match="less memory is free") as refused,
    ):
        run(llm, source, output)
    assert refused.value.exit_code == 2
    assert not output.exists()


def test_what_tells_a_run_to_stop_is_heard_while_a_sweep_is_under_way(
    mixtral, memory, llm, source, undisturbed, tmp_path
):
    output, told = tmp_path / "out.jsonl", []

    def slow(point: str) -> None:
        if point == "sweep.commit" and len(told) > 20:
            time.sleep(0.3)

    def stop() -> None:
        told.append(1)
        if len(told) == 25:
            raise Stop

    with open_llm(mixtral, memory, faults=slow) as other, opened(other, source, output) as job:
        plan_job(other, job)
        with pytest.raises(Stop):
            run_job(other, job, stop=stop)
        assert job.done == len(results(output))
    run(llm, source, output)
    assert essence(output) == undisturbed


def test_a_trace_that_cannot_be_written_costs_no_answers(
    mixtral, memory, source, undisturbed, tmp_path, caplog
):
    output = tmp_path / "out.jsonl"
    with open_llm(mixtral, memory) as llm, opened(llm, source, output) as job:
        plan_job(llm, job)
        assert run_job(llm, job, trace_path=Path("/dev/full")).done == 13
    assert "/dev/full could not be written: No space left" in caplog.text
    assert essence(output) == undisturbed


# -- the command itself --------------------------------------------------------------------


def test_ctrl_c_saves_what_is_finished_and_exits_130_in_two_seconds(mixtral, memory, tmp_path):
    lines = [batch_line(f"{i}", prompt="Hello", ignore_eos=True) for i in range(2000)]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    settings = ("--memory", memory, "--threads", 1, "--max-tokens", 20, "--kv-cache-dtype", "f32")
    with running("run-batch", mixtral, "-i", source, "-o", output, *settings) as process:
        patience = time.monotonic() + 80
        while not (output.exists() and output.stat().st_size):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < patience, "no answer yet"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=30)
        assert time.monotonic() - began < 2.0
        assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    saved = results(output)
    assert 0 < len(saved) < len(lines)
    assert len({r["custom_id"] for r in saved}) == len(saved)
    with open_llm(mixtral, memory, hardware=None) as llm:
        defaults = llm.sampling_defaults(20)
        with opened(llm, source, output, defaults=defaults) as job:
            assert (job.done, job.failed) == (len(saved), 0)
            assert job.plan["kept"]["policy"]["kv_dtype"] == "f32"
