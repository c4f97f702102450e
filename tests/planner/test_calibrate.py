"""Calibration recovers a machine whose rates are known, on a clock that only it moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.planner.calibrate import Probes, curves, measure
from headrace.planner.timed import BETWEEN, PASSED, Timed
from headrace.specs.hardware import CPU_FLOPS, DISK, DRAM, HOST


class Toy:
    """A machine with 100 GFLOP/s, 20 GB/s of memory, and an op at half its roof."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def spend(self, seconds: float, units: float) -> float:
        self.now += seconds
        return units

    def probes(self) -> Probes:
        def timed(rows: int, slower: float) -> Timed:
            amounts = {CPU_FLOPS: 1e8 * rows, DRAM: 1e8}
            least = max(1e8 * rows / 100e9, 1e8 / 20e9)
            return Timed("expert", rows, amounts, slower * least)

        return Probes(
            read_rate=lambda depth: {1: 0.6e9, 2: 0.9e9, 4: 0.8e9}[depth],
            sgemm=lambda: self.spend(0.01, 1e9),
            sweep_memory=lambda: self.spend(0.05, 1e9),
            rehearse=lambda: (
                [[timed(rows, slower)] * 3 for slower in (1.9, 2.0, 2.1)] for rows in (1, 16, 256)
            ),
            sample=lambda: int(self.spend(0.002, 100)),
        )


def test_roofs_and_efficiencies_are_recovered():
    toy = Toy()
    found = measure(toy.probes(), toy.clock, capacity={"host": 5})
    assert found.measured
    assert found.roofs[CPU_FLOPS] == pytest.approx(100e9)
    assert found.roofs[DRAM] == pytest.approx(20e9)
    assert found.roofs[DISK] == 0.9e9
    assert found.roofs[HOST] == 1.0
    assert found.lane_rate == 0.6e9
    assert found.row_seconds == pytest.approx(20e-6)
    assert found.capacity == {"host": 5}
    for rows in (1, 16, 256):
        assert found.efficiency_of("expert", rows) == pytest.approx(0.5)


def test_a_share_never_exceeds_the_roof():
    toy = Toy()
    slow_roof = Probes(
        read_rate=lambda depth: 1e9,
        sgemm=lambda: toy.spend(1.0, 1e9),
        sweep_memory=lambda: toy.spend(1.0, 1e9),
        rehearse=lambda: [[[Timed("expert", 1, {CPU_FLOPS: 1e9}, 1e-3)]]],
    )
    found = measure(slow_roof, toy.clock)
    assert found.efficiency_of("expert", 7) == 1.0
    assert found.roofs[CPU_FLOPS] == pytest.approx(1e12), "where the rehearsal was"
    assert found.row_seconds > 0


def test_tasks_of_one_load_count_together_and_rows_by_what_they_take():
    roofs = {DRAM: 1.0}
    sweep = [
        Timed("moe", 1, {DRAM: 1.0}, 2.0),
        Timed("moe", 3, {DRAM: 3.0}, 6.0),
        Timed("moe", 0, {DRAM: 1.0}, 50.0),  # nobody came
        Timed("bind", 3, {"host sequences": 1.0}, 1.0),  # a roof that was not measured
    ]
    found = curves([[sweep]], roofs)
    assert found["moe"] == ((2.5, 0.5),)
    assert found["expert"] == found["expert_up"] == found["moe"], "nothing else is known of them"
    assert "bind" not in found


def test_slow_sweeps_count_but_disturbed_ones_only_as_slow_ones():
    sweeps = [[Timed("moe", 1, {DRAM: 1.0}, seconds)] for seconds in (2.0, 2.0, 2.0, 3.0, 90.0)]
    found = curves([sweeps], {DRAM: 1.0})
    assert found["moe"] == ((1.0, pytest.approx(5 / (2 + 2 + 2 + 3 + 4))),)


def test_a_disk_faster_in_the_rehearsal_raises_its_roof():
    toy = Toy()
    loads = [
        [[Timed("read_page", 4, {DISK: 3e9}, 2.0)]],
        [[Timed("read_page", 64, {DISK: 1e9}, 2.0)]],
    ]
    found = measure(replace(toy.probes(), rehearse=lambda: loads), toy.clock)
    assert found.roofs[DISK] == pytest.approx(1.5e9)
    assert found.lane_rate == pytest.approx(0.6e9 * 1.5 / 0.9), "one request, too"
    assert found.efficiency_of("read_page", 4) == pytest.approx(1.0)
    assert found.efficiency_of("read_page", 64) == pytest.approx(1 / 3)


def test_an_expert_of_many_rows_is_not_one_of_few_in_the_same_sweep():
    few, many = Timed("expert", 2, {DRAM: 1.0}, 4.0), Timed("expert", 20, {DRAM: 1.0}, 1.25)
    wider, alone = Timed("expert", 30, {DRAM: 1.0}, 1.25), Timed("expert", 1, {DRAM: 1.0}, 5.0)
    found = curves([[[few, few, many]], [[alone]], [[wider, alone]]], {DRAM: 1.0})
    assert found["expert"] == ((1.0, 0.2), (2.0, 0.25), (25.0, 0.8))


def test_rows_are_read_as_fast_as_alone_where_that_was_seen():
    toy = Toy()

    def reads(op: str, seconds: float) -> list[list[Timed]]:
        return [[Timed(op, 10, {DISK: 1.0, "lane:rows": 1.0}, seconds)] * 3]

    names = "read_rows", "read_rows of one_by_one", "read_rows of on_demand"
    loads = [reads(op, seconds) for op, seconds in zip(names, (0.9, 0.02, 0.04), strict=True)]
    found = measure(replace(toy.probes(), rehearse=lambda: loads), toy.clock)
    assert found.row_read_seconds == pytest.approx(0.002)
    assert found.efficiency_of("read_rows", 10) == pytest.approx(1.0), "not behind pages"
    assert found.efficiency_of("read_rows of on_demand", 10) == pytest.approx(0.5)
    assert "read_rows of one_by_one" not in found.efficiency, "it is the same"


def test_a_task_of_attention_has_a_cost_of_its_own():
    def decodes(count: int) -> list[list[Timed]]:
        amounts = {CPU_FLOPS: 1e5 * count, DRAM: 2e5 * count}
        return [[Timed("attn", 1, amounts, 5e-6 + 20e-6 * count, count)] * 3]  # at half its roof

    toy = Toy()
    prompt = [[Timed("attn", 30, {CPU_FLOPS: 1e6, DRAM: 0.0}, 45e-6)]]
    loads = [decodes(16), decodes(1), decodes(4), prompt]
    found = measure(replace(toy.probes(), rehearse=lambda: loads), toy.clock)
    assert found.attention_seconds == pytest.approx(5e-6)
    assert found.efficiency_of("attn", 1) == pytest.approx(0.5), "whatever the load"
    assert found.efficiency_of("attn", 30) == pytest.approx(0.25)
    fixed = found.task_seconds + found.attention_seconds
    assert found.fixed_seconds_of("attn") == fixed > found.fixed_seconds_of("expert")


def test_sequences_that_attend_to_little_show_what_each_takes_anyway():
    def decodes(count: int, tokens: int) -> list[list[Timed]]:
        amounts = {DRAM: 4e3 * tokens * count}
        seconds = 5e-6 + count * (10e-6 + 0.4e-6 * tokens)  # at half its roof
        return [[Timed("attn", 1, amounts, seconds, count)] * 3]

    toy = Toy()
    loads = [decodes(1, 192), decodes(4, 192), decodes(16, 32), decodes(64, 192), decodes(256, 32)]
    found = measure(replace(toy.probes(), rehearse=lambda: loads), toy.clock)
    assert found.attention_seconds == pytest.approx(5e-6)
    assert found.attended_seconds == pytest.approx(10e-6)
    assert found.efficiency_of("attn", 1) == pytest.approx(0.5)


@pytest.mark.parametrize(("counts", "seconds"), [((1,), 1.0), ((1, 4), 0.25)])
def test_attention_keeps_a_part_of_what_it_took(counts: tuple[int, ...], seconds: float):
    """One load tells nothing; two that differ the wrong way are not all call."""
    loads = [[[Timed("attn", 1, {DRAM: 20e9 * n}, 4.0 * seconds, n)]] for n in counts]
    toy = Toy()
    found = measure(replace(toy.probes(), rehearse=lambda: loads), toy.clock)
    assert found.attention_seconds == pytest.approx(0.0 if len(counts) == 1 else 0.9)
    assert 0 < found.efficiency_of("attn", 1) <= 1


def test_host_work_is_a_share_of_its_own_least():
    toy = Toy()

    def host(count: int) -> list[list[Timed]]:
        drawn = Timed("sample", count, {HOST: count, DRAM: 1.0}, 80e-6 + 20e-6 * count)
        return [[drawn, Timed("commit", count, {"host tokens": count}, 45e-6 + 5e-6 * count)]]

    loads = [host(1), host(9)]
    found = measure(replace(toy.probes(), rehearse=lambda: loads), toy.clock)
    assert found.row_seconds == pytest.approx(20e-6), "of many rows, sampled alone"
    slow = replace(found, row_seconds=1.0)
    again = measure(replace(toy.probes(), rehearse=lambda: loads), toy.clock, known=slow)
    assert again.efficiency_of("sample", 1) / again.row_seconds == pytest.approx(1 / 100e-6)
    assert found.efficiency_of("sample", 1) == pytest.approx(0.2)
    assert found.efficiency_of("sample", 9) == pytest.approx(9 / 13)
    assert found.token_seconds == pytest.approx(10e-6)
    assert found.efficiency_of("commit", 1) == pytest.approx(0.2)
    assert found.efficiency_of("commit", 9) == pytest.approx(1.0)


def test_points_of_equal_rows_are_one():
    loads = [[[Timed("attn", 0.5, {DRAM: 1.0}, took)]] for took in (2.0, 4.0)]
    assert curves(loads, {DRAM: 1.0}) == {"attn": ((1.0, 0.375),)}


@pytest.mark.parametrize(("rate", "disk"), [(0.9e9, 0.9e9), (1.0e9, 0.9e9), (1.8e9, 1.8e9)])
def test_known_roofs_are_kept_unless_the_disk_is_another(rate: float, disk: float):
    toy = Toy()
    known = measure(toy.probes(), toy.clock)
    probes = replace(toy.probes(), read_rate=lambda depth: rate, sgemm=_never, sample=_never)
    found = measure(probes, toy.clock, known=known)
    assert found.roofs[DISK] == pytest.approx(disk)
    assert found.lane_rate == pytest.approx(known.lane_rate * disk / 0.9e9)
    assert found.roofs[CPU_FLOPS] == known.roofs[CPU_FLOPS]
    assert "expert" in found.efficiency


def _never() -> float:
    raise AssertionError("this was known")


def test_what_no_roof_explains_is_timed_by_row_and_task():
    toy = Toy()
    loads = [
        [[Timed("read_rows", 20, {DISK: 1.0, "lane:rows": 1.0}, 0.04)] * 3],
        [[Timed("read_rows", 1, {DISK: 1.0, "lane:rows": 1.0}, 0.5)] * 9],
        [[Timed(BETWEEN, 1.0, {}, 15e-6), Timed("expert", 1, {DRAM: 1e8}, 1.0)]],
        [[Timed(f"{BETWEEN} of on_demand", 1.0, {}, 1.0)]],
        [[Timed(PASSED, 1.0, {}, 1.0)]],  # where reads are not waited for it would be a wait
        [[Timed(f"{PASSED} of on_demand", 1.0, {}, s * 1e-6) for s in (6, 6, 6, 500)]],
    ]
    probes = replace(toy.probes(), rehearse=lambda: loads)
    found = measure(probes, toy.clock)
    assert found.row_read_seconds == pytest.approx(0.002)
    assert found.efficiency_of("read_rows", 20) == pytest.approx(1.0)
    assert found.efficiency_of("read_rows", 1) == pytest.approx(0.002 / 0.5), "it waits alone"
    assert found.task_seconds == pytest.approx(15e-6)
    assert found.passed_seconds == pytest.approx(6e-6), "waits are not its own"
    assert not {BETWEEN, PASSED, f"{PASSED} of on_demand"} & found.efficiency.keys()
    stock = replace(found, task_seconds=1.0, passed_seconds=2.0)
    again = measure(replace(probes, rehearse=tuple), toy.clock, known=stock)
    assert (again.task_seconds, again.passed_seconds) == (1.0, 2.0), "where none was seen"


def test_one_request_reaches_what_it_reached_in_the_rehearsal():
    """However slow it was alone: its time is not counted twice."""
    toy = Toy()
    reads = [[[Timed("read_page", 4, {DISK: 8e8, "lane:": 8e8}, 1.0)]]]  # one at a time
    found = measure(replace(toy.probes(), rehearse=lambda: reads), toy.clock)
    assert found.lane_rate == pytest.approx(0.8e9)
    assert found.efficiency_of("read_page", 4) == pytest.approx(1.0)
    slower = [[[Timed("read_page", 4, {DISK: 3e8, "lane:": 3e8}, 1.0)]]]
    found = measure(replace(toy.probes(), rehearse=lambda: slower), toy.clock)
    assert found.lane_rate * found.efficiency_of("read_page", 4) == pytest.approx(0.3e9)
