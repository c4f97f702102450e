"""What a run did, in figures that agree with the disk, the batcher and the traces."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from headrace.engine.answers import Prompt
from headrace.engine.engine import SweepEnd
from headrace.engine.summary import summarise
from headrace.engine.timeline import planned_traces
from headrace.schedule.binding import Binding
from headrace.schedule.task import Op

from .engines import (
    PROMPTS,
    STOCK,
    answers_of,
    greedy,
    least_memory,
    open_llm,
    policy_of,
    workload,
)

MACHINE = replace(STOCK, attention_seconds=1e-4)


@pytest.fixture(scope="module")
def run(mixtral):
    """A streamed run, recorded with its traces."""
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4, hardware=MACHINE) as llm:
        policy_of(llm)
        reader, record = llm.loaded.reader, llm.new_record(keep_traces=True)
        session = llm.session  # resident pages are read here, and do not count
        before = reader.bytes_read
        answers_of(session, record=record)
        yield llm, record, reader.bytes_read - before


def test_bytes_are_those_that_the_disk_delivered(run):
    _, record, delivered = run
    assert record.bytes_read == delivered > 0
    assert 0 < record.needed_bytes <= record.bytes_read
    assert record.needed_bytes == sum(s.needed_bytes for s in record.sweeps)


def test_flops_are_those_of_every_task_as_it_was_routed(run):
    _, record, _ = run
    for trace, amounts in zip(record.traces, record.sweeps, strict=True):
        totals = record.work.sweep_work(trace.schedule, trace.sweep.binding)
        assert amounts.flops == pytest.approx(totals["cpu_flops"], rel=1e-12)


def test_predicted_seconds_are_those_of_every_task_that_computes(run):
    _, record, _ = run
    expected: dict[str, float] = {}
    for trace in record.traces:
        known = Binding(trace.sweep.binding.extents, trace.sweep.binding.samples)
        for task in trace.schedule.tasks:
            if task.op not in (Op.READ_PAGE, Op.READ_ROWS):
                work, op = record.work.work(task, known), task.op.value
                seconds = 0.0
                for part in work.parts or (work,):
                    share = STOCK.efficiency_of(op, part.rows)
                    seconds += max(part.seconds(STOCK, share).values(), default=0.0)
                if task.op is Op.ATTN:
                    seconds += MACHINE.attention_seconds
                expected[op] = expected.get(op, 0.0) + seconds
    assert record.predicted == pytest.approx(expected)
    assert record.predicted["expert"] > 0


def test_needed_are_pages_that_rows_used_and_rows_of_the_table(run):
    llm, record, _ = run
    table = llm.loaded.table
    trace, amounts = record.traces[-1], record.sweeps[-1]
    sweep = trace.sweep
    used = 0
    for task in trace.schedule.tasks:
        if task.op is Op.READ_PAGE:
            routed = task.expert is None or sweep.binding.routed[task.layer][task.expert] > 0
            used += table.needed_bytes(task.page) * routed
    tokens = {t for m in sweep.batch.micro_batches for s in m.segments for t in s.tokens}
    assert amounts.needed_bytes == used + len(tokens) * table.row_bytes()


def test_rows_and_seconds_add_up(run):
    _, record, _ = run
    assert sum(s.prefill_rows for s in record.sweeps) == sum(map(len, PROMPTS))
    assert sum(s.decode_rows for s in record.sweeps) == 7 * len(PROMPTS)
    wall = record.traces[-1].end - record.traces[0].start
    assert sum(s.seconds for s in record.sweeps) == pytest.approx(wall)
    prefill, decode = record.rates()
    assert min(prefill, decode) > 0
    assert (
        0
        < record.disk_seconds
        <= sum(b.seconds for n, b in record.totals.lanes.items() if n.startswith("disk"))
    )


def test_the_bound_is_the_longer_of_reading_and_multiplying(run):
    _, record, _ = run
    assert record.bound_seconds(STOCK) == pytest.approx(
        sum(
            max(s.needed_bytes / STOCK.roofs["disk"], s.flops / STOCK.roofs["cpu_flops"])
            for s in record.sweeps
        )
    )
    assert all(s.flops > 0 for s in record.sweeps)


def test_a_long_run_keeps_the_spans_of_its_first_sweeps(run, monkeypatch, caplog):
    llm, record, _ = run
    few = sum(len(trace.spans) for trace in record.traces[:3])
    monkeypatch.setattr("headrace.engine.record.MOST_SPANS", few + 1)
    again = llm.new_record(keep_traces=True)
    for trace in record.traces:
        again.add(trace)
    assert again.traces == record.traces[:3]
    assert again.totals.tasks == record.totals.tasks
    assert [r.getMessage() for r in caplog.records] == [
        "the trace holds the first 3 sweeps, not all"
    ]


def test_without_traces_the_totals_are_kept_all_the_same(run):
    llm, record, _ = run
    again = llm.new_record()
    answers_of(llm.session, record=again)
    assert again.traces == []
    assert again.needed_bytes == record.needed_bytes
    assert len(again.sweeps) == len(record.sweeps)


def test_the_plan_of_a_run_is_played_with_what_really_happened(run):
    _, record, _ = run
    planned = planned_traces(record, STOCK)
    assert [len(t.spans) for t in planned] == [len(t.spans) for t in record.traces]
    assert all(a.end < b.end for a, b in itertools.pairwise(planned))
    assert planned[1].start < planned[0].end, "two sweeps in flight, as in the engine"


def test_a_summary_is_of_one_run_even_if_the_session_had_others(run):
    llm, record, _ = run
    summary = summarise(llm, record, 2.0, workload(), {"lines": 6, "done": 6, "failed": 0})
    again = llm.new_record()
    answers_of(llm.session, PROMPTS[:2], record=again)
    second = summarise(llm, again, 1.0, workload(PROMPTS[:2]), {"lines": 2, "done": 2, "failed": 0})
    assert second.generated_tokens == 16
    assert second.prompt_tokens == sum(map(len, PROMPTS[:2]))
    assert second.sweeps == len(again.sweeps)
    plain = json.loads(json.dumps(summary.to_dict()))
    assert plain["tiers"]["host"]["used_bytes"] == plain["tiers"]["host"]["planned_bytes"]
    assert plain["tiers"]["host"]["used_bytes"] <= plain["budget_bytes"]
    assert plain["bytes_read"] == record.bytes_read
    assert {"cpu", "disk", "disk0", "host", "rows"} <= plain["lanes"].keys()
    assert plain["lanes"]["cpu"]["predicted_busy_seconds"] > 0
    assert plain["numerics"].startswith(("native-", "torch-"))


def test_a_run_that_was_left_counts_what_it_read(run):
    llm, *_ = run
    record, reader = llm.new_record(), llm.loaded.reader
    before = reader.bytes_read
    events = llm.session.run(iter([Prompt("a", PROMPTS[0], greedy())]), record)
    next(e for e in events if isinstance(e, SweepEnd))
    events.close()
    assert record.bytes_read == reader.bytes_read - before
