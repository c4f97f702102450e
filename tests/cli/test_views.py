"""Plan, summary, JSON and log: what is printed from plain data."""

from __future__ import annotations

import io
import json
import logging

import pytest
from rich.console import Console

from headrace.cli.logfile import log_beside
from headrace.cli.output import emit_json, error_dict
from headrace.cli.plan_view import plan_dict, plan_text
from headrace.cli.summary_view import error_text, print_summary
from headrace.errors import BudgetError
from headrace.planner.memory_map import MemoryMap
from headrace.planner.plan import Plan
from headrace.planner.simulate import Prediction
from headrace.specs.policy import Policy

POLICY = Policy(
    "stream",
    max_rows=256,
    max_seqs=64,
    micro_batches=4,
    resident=frozenset({1, 2}),
    ring_slots=6,
    slot_bytes=8_000_000,
    kv_blocks=100,
)


def plan() -> Plan:
    parts = {"resident weights": 300_000_000, "ring": 48_000_000, "kv cache": 100_000_000}
    return Plan(
        policy=POLICY,
        memory=MemoryMap(parts, margin_bytes=2_000_000, budget_bytes=600_000_000),
        prediction=Prediction(
            seconds=90.0,
            low=70.0,
            high=140.0,
            sweeps=30,
            prompt_tokens=9000,
            gen_tokens=1800,
            lanes={"cpu": 60.0, "disk": 85.0},
        ),
        on_demand_rows=3,
        smallest_bytes=100_000_000,
        notes=("12 prefix tokens are shared",),
    )


def page(summary: dict) -> str:
    text = io.StringIO()
    print_summary(summary, Console(file=text, width=100))
    return text.getvalue()


def test_plan_shows_memory_time_interval_and_bound():
    text = plan_text(plan())
    for part in ("300 MB", "600 MB", "6 slots of 8 MB", "1 min 30 s (1 min 10 s to 2 min 20 s"):
        assert part in text
    for part in ("output lengths guessed", "decode 20.0 tok/s", "bound by: disk"):
        assert part in text
    assert "note: 12 prefix tokens" in text


def test_plan_is_json():
    data = json.loads(json.dumps(plan_dict(plan())))
    assert data["policy"]["resident_pages"] == 2
    assert data["memory"] | {"ring": 48_000_000, "total": 450_000_000} == data["memory"]
    assert (data["prediction"]["low"], data["prediction"]["bound_by"]) == (70.0, "disk")


def test_summary_sets_predicted_beside_measured():
    text = page(
        {
            "lines": 130,
            "done": 128,
            "failed": 1,
            "prefill_tokens_per_second": 100.0,
            "decode_tokens_per_second": 50.126,
            "wall_seconds": 100.0,
            "predicted_seconds": 90.0,
            "bound_seconds": 80.0,
            "bytes_read": 1_400_000_000,
            "bytes_needed": 1_390_000_000,
            "direct_io": True,
            "lanes": {
                "cpu": {"busy_seconds": 50.0, "utilisation": 0.5, "predicted_busy_seconds": 55.0},
                "disk0": {"busy_seconds": 90.0},
            },
            "tiers": {"host": {"planned_bytes": 600_000_000, "used_bytes": 590_000_000}},
        }
    )
    for part in (
        "128 of 130 done, 1 of them failed",
        "Output token throughput (tok/s)",
        "50.13",
        "(-10 %)",
    ):
        assert part in text
    for part in ("wall is 1.25 x", "1.4 GB direct", "+10 %", "50%", "600 MB", "590 MB"):
        assert part in text


def test_summary_says_buffered_and_leaves_out_what_is_missing():
    assert "buffered" in page({"bytes_read": 1, "direct_io": False})
    assert "Wall" not in page({"bytes_read": 1})
    assert error_text(None, 1.0) == "-"


def test_json_has_no_infinities():
    page = io.StringIO()
    emit_json({"a": float("inf"), "b": [float("nan"), (1, 2.5)], 3: None}, page)
    assert json.loads(page.getvalue()) == {"a": None, "b": [None, [1, 2.5]], "3": None}


def test_budget_error_carries_the_smallest_that_works():
    error = error_dict(BudgetError("too small", smallest_bytes=7, expected=7, got=3))
    assert (error["smallest_bytes"], error["expected"]) == (7, "7")


def test_log_lies_beside_the_output_and_names_how_it_ended(tmp_path):
    with log_beside(tmp_path / "out.jsonl") as path:
        logging.getLogger("headrace.run_batch").info("hello")
    with pytest.raises(KeyboardInterrupt), log_beside(tmp_path / "out.jsonl"):
        raise KeyboardInterrupt
    logging.getLogger("headrace.run_batch").warning("outside")
    assert path.name == "out.jsonl.log"
    text = path.read_text()
    assert "hello" in text
    assert "ended by KeyboardInterrupt" in text
    assert "outside" not in text


def test_dry_run_keeps_no_log(tmp_path):
    with log_beside(tmp_path / "out.jsonl", keep=False):
        pass
    assert list(tmp_path.iterdir()) == []
