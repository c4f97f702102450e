"""Calibration recovers a machine whose rates are known, on a clock that only it moves."""

from __future__ import annotations

import pytest

from headrace.planner.calibrate import OpProbe, Probes, measure
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
        def amounts(rows: int) -> dict[str, float]:
            return {CPU_FLOPS: 1e8 * rows, DRAM: 1e8}

        def run(rows: int) -> None:
            self.spend(2 * max(1e8 * rows / 100e9, 1e8 / 20e9), 0)

        return Probes(
            read_rate=lambda depth: {1: 0.6e9, 2: 0.9e9, 4: 0.8e9}[depth],
            sgemm=lambda: self.spend(0.01, 1e9),
            sweep_memory=lambda: self.spend(0.05, 1e9),
            ops={"expert": OpProbe(run, amounts, rows=(1, 16, 256))},
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
        ops={"expert": OpProbe(lambda rows: toy.spend(1e-3, 0), lambda rows: {CPU_FLOPS: 1e9})},
    )
    found = measure(slow_roof, toy.clock)
    assert found.efficiency_of("expert", 7) == 1.0
    assert found.row_seconds > 0
