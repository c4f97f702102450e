"""The figures of a study, by hand."""

from __future__ import annotations

import math

import pytest

from headrace.cli.prediction.verdict import Outcome, verdict_of


def outcome(predicted: float, *measured: float, half: float = 1.0) -> Outcome:
    return Outcome(predicted, predicted - half, predicted + half, measured)


def test_a_run_is_its_median_and_its_spread_the_middle_half():
    run = outcome(11.0, 9.0, 10.0, 13.0)
    assert run.seconds == 10.0
    assert run.error == pytest.approx(0.1)
    assert run.spread == pytest.approx((11.5 - 9.5) / 10)
    assert run.half_width == pytest.approx(1 / 11)
    assert run.inside
    assert not outcome(12.0, 10.0).inside
    assert outcome(12.0, 10.0).spread == 0.0


def test_bounds_follow_the_spread():
    quiet = verdict_of([outcome(10.5, 10.0), outcome(9.5, 10.0)])
    assert quiet.mean_error == pytest.approx(0.05)
    assert quiet.mean_signed_error == pytest.approx(0.0)
    assert [check.bound for check in quiet.checks] == [0.06, 0.15, 0.9, 0.10]
    assert [check.holds for check in quiet.checks] == [True, True, True, False]
    noisy = verdict_of([outcome(14.0, 6.0, 10.0, 14.0)])
    assert noisy.spread == pytest.approx(0.4)
    assert [check.bound for check in noisy.checks] == pytest.approx([0.6, 1.0, 0.9, 0.8])
    assert [check.holds for check in noisy.checks] == [True, True, False, True]


def test_what_earlier_runs_showed_is_told_apart():
    run = Outcome(11.0, 10.0, 12.0, (11.0,), bias=math.log(1.1))
    assert run.error == 0.0
    assert run.error_as_played == pytest.approx(10 / 11 - 1)
    found = verdict_of([run])
    assert (found.mean_error, found.mean_error_as_played) == pytest.approx((0.0, 1 / 11))


def test_plain_data_says_what_holds():
    data = verdict_of([outcome(10.0, 10.0)]).to_dict()
    assert data["runs"] == 1
    assert [check["holds"] for check in data["checks"]] == [True, True, True, True]
