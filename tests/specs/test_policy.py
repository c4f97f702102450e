"""Policies, workloads and hardware: checks at construction, derived figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UsageError
from headrace.specs.hardware import Hardware
from headrace.specs.policy import Policy
from headrace.specs.workload import Workload


def test_mu_covers_all_rows():
    assert Policy("stream", 10, 4, micro_batches=3).mu == 4


@pytest.mark.parametrize(
    ("schedule", "fields"),
    [
        ("psychic", {}),
        ("stream", {"max_seqs": 11}),
        ("stream", {"micro_batches": 0}),
        ("stream", {"chunk": 0}),
        ("stream", {"threads": 0}),
        ("stream", {"kv_dtype": "f4"}),
    ],
)
def test_policies_that_cannot_be_are_refused(schedule, fields):
    with pytest.raises(UsageError):
        Policy(schedule, 10, fields.pop("max_seqs", 4), **fields)


def test_a_workload_counts_its_tokens():
    job = Workload.uniform(3, 5, 7)
    assert (job.requests, job.prompt_tokens, job.gen_tokens, job.assumed) == (3, 15, 21, False)
    assert Workload((1,), (2,)).assumed


CURVE = ((1.0, 0.1), (16.0, 0.4), (256.0, 1.0))


def test_efficiency_is_one_unless_measured():
    assert Hardware("x", {}).efficiency_of("expert", 3) == 1.0


def test_efficiency_meets_its_points_and_is_flat_outside():
    machine = Hardware("x", {}, efficiency={"expert": CURVE})
    for rows, share in CURVE:
        assert machine.efficiency_of("expert", rows) == pytest.approx(share)
    assert machine.efficiency_of("expert", 0) == 0.1
    assert machine.efficiency_of("expert", 1e6) == 1.0
    assert machine.efficiency_of("expert", 4) == pytest.approx(0.2)  # halfway in log(rows)


@given(st.floats(1, 1e4), st.floats(1, 1e4))
def test_efficiency_rises_with_a_rising_curve(a, b):
    machine = Hardware("x", {}, efficiency={"expert": CURVE})
    low, high = sorted((a, b))
    assert machine.efficiency_of("expert", low) <= machine.efficiency_of("expert", high) + 1e-12
