"""Overlap efficiency and the repetition of drifting rounds, from plain summaries."""

from __future__ import annotations

import pytest

from headrace.cli.overlap import (
    busy_seconds,
    drift,
    median_run,
    overlap_efficiency,
    steady_rounds,
    throughput_report,
)


def summary(wall: float, disk: float = 6.0, cpu: float = 4.0) -> dict:
    half = {"busy_seconds": disk / 2}
    lanes = {"disk0": half, "disk1": half, "cpu": {"busy_seconds": cpu}}
    return {"wall_seconds": wall, "lanes": lanes, "schedule": "stream"}


def test_perfect_overlap_hides_all_of_the_shorter_side():
    assert overlap_efficiency([summary(6.0)], [summary(10.0)]) == pytest.approx(1.0)
    assert overlap_efficiency([summary(10.0)], [summary(10.0)]) == 0.0


def test_time_with_any_read_in_flight_counts_once():
    lanes = {"disk0": {"busy_seconds": 3.0}, "disk1": {"busy_seconds": 3.0}}
    assert busy_seconds({"lanes": lanes}, "disk") == 6.0
    assert busy_seconds({"lanes": {**lanes, "disk": {"busy_seconds": 4.0}}}, "disk") == 4.0


def test_medians_count_and_nothing_to_overlap_is_none():
    streams = [summary(w) for w in (6.2, 6.0, 99.0)]
    assert overlap_efficiency(streams, [summary(10.2)] * 3) == pytest.approx(1.0)
    assert overlap_efficiency(streams, []) is None
    assert overlap_efficiency(streams, [summary(1.0, disk=0.0)]) is None


def test_figures_of_the_report_come_from_one_run():
    runs = [{**summary(w), "bytes_read": w * 10} for w in (3.0, 1.0, 2.0)]
    assert median_run(runs)["bytes_read"] == 20.0
    report = throughput_report(runs, [summary(5.0)], [(1.0, 1.05)])
    assert (report["wall_seconds"], report["one_by_one_seconds"]) == (2.0, 5.0)
    assert report["disk_drift"] == pytest.approx(0.05 / 1.05)
    assert report["disk_busy_seconds"] == 6.0


def test_report_without_comparison_has_empty_places():
    report = throughput_report([summary(3.0)], [])
    assert report["one_by_one_seconds"] is None
    assert report["overlap_efficiency"] is None
    assert report["disk_drift"] is None


def test_round_is_played_again_when_the_disk_drifted():
    rates = iter([100.0, 50.0, 100.0, 95.0])
    plays = iter([(summary(1.0), None), (summary(2.0), summary(3.0))])
    streams, others, kept = steady_rounds(lambda: next(plays), lambda: next(rates), 1)
    assert [s["wall_seconds"] for s in streams] == [2.0]
    assert len(others) == 1
    assert kept == [(100.0, 95.0)]


def test_a_disk_that_never_settles_is_taken_as_it_is():
    rates = iter([1.0, 2.0] * 10)
    streams, _, kept = steady_rounds(lambda: (summary(1.0), None), lambda: next(rates), 2, 3)
    assert len(streams) == len(kept) == 2
    assert drift(*kept[0]) == 0.5
    assert drift(0.0, 0.0) == 0.0


def test_rounds_without_a_disk_need_no_rate():
    assert steady_rounds(lambda: (summary(1.0), None), None, 2)[2] == []
