"""The link to an accelerator: what is timed is what has arrived, each way, by size."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from headrace.engine.link import (
    MOST_BYTES,
    Accelerator,
    CopyRate,
    accelerator_here,
    copy,
    link_roofs,
    measure_link,
)
from headrace.engine.profiles import machine_profile
from headrace.errors import StorageError
from headrace.planner.hardware_file import hardware_document, read_hardware
from headrace.planner.profile import profile_from
from headrace.specs.hardware import D2H, H2D
from headrace.specs.registry import known_hardware


class Link:
    """A link of known rates, and the clock beside it: copies queue up and take their time when
    they are waited for, with ``latency`` seconds each."""

    def __init__(self, to_device: float, to_host: float, latency: float = 0.0) -> None:
        self.now, self._queued = 0.0, 0.0
        self._to_device, self._to_host, self._latency = to_device, to_host, latency
        device = torch.device("meta")  # has no memory
        self.accelerator = Accelerator("a card", device, self._wait, pins=False, copy=self._copy)

    def clock(self) -> float:
        return self.now

    def _copy(self, source: torch.Tensor, into: torch.Tensor) -> None:
        assert source.nbytes == into.nbytes
        assert {source.device.type, into.device.type} == {"cpu", "meta"}
        rate = self._to_device if into.device.type == "meta" else self._to_host
        self._queued += self._latency + source.nbytes / rate

    def _wait(self) -> None:
        self.now, self._queued = self.now + self._queued, 0.0


def test_known_rates_are_found_each_way():
    link = Link(12e9, 6e9)
    rates = measure_link(link.accelerator, 1_000_000, link.clock, 0.1)
    assert [rate.request_bytes for rate in rates] == [1_000_000, 4_000_000]
    for rate in rates:
        assert rate.h2d == pytest.approx(12e9)
        assert rate.d2h == pytest.approx(6e9)


def test_larger_copies_hide_what_each_costs_and_count():
    link = Link(10e9, 10e9, latency=1e-4)
    small, large = measure_link(link.accelerator, 1_000_000, link.clock, 0.1)
    assert small.h2d == pytest.approx(5e9)
    assert large.h2d == pytest.approx(8e9)
    assert link_roofs([small, large]) == {H2D: large.h2d, D2H: large.d2h}
    assert link_roofs([]) == {}


def test_no_copy_is_larger_than_pinned_memory_should_be_asked_for():
    link = Link(10e9, 10e9)
    (only,) = measure_link(link.accelerator, 10 * MOST_BYTES, link.clock, 0.01)
    assert only.request_bytes == MOST_BYTES


def test_torchs_own_copies_are_timed():
    here = Accelerator("processor", torch.device("cpu"), lambda: None, pins=False)
    rates = measure_link(here, 1 << 16, time.perf_counter, 0.01)
    assert all(isinstance(rate, CopyRate) and min(rate) > 0 for rate in rates)
    into = torch.zeros(3)
    copy(torch.arange(3.0), into)
    assert into.tolist() == [0.0, 1.0, 2.0]


def test_an_accelerator_that_cannot_be_used_is_named():
    def fails() -> None:
        raise RuntimeError("out of memory")

    broken = Accelerator("a card", torch.device("cpu"), fails, pins=False)
    with pytest.raises(StorageError, match=r"link to a card .* out of memory"):
        measure_link(broken, 1 << 16, time.perf_counter, 0.01)


def test_torch_says_what_there_is(monkeypatch):
    waited = []
    there = SimpleNamespace(
        is_available=lambda: True,
        current_accelerator=lambda: torch.device("cpu"),
        synchronize=waited.append,
    )
    monkeypatch.setattr(torch, "accelerator", there, raising=False)
    found = accelerator_here()
    assert found is not None
    assert (found.name, found.device) == ("cpu", torch.device("cpu"))
    found.synchronize()
    assert waited == [torch.device("cpu")]
    named = SimpleNamespace(get_device_name=lambda device: "NVIDIA L4")
    monkeypatch.setattr(torch, "get_device_module", lambda device: named)
    assert accelerator_here().name == "NVIDIA L4"
    there.is_available = lambda: False
    assert accelerator_here() is None
    monkeypatch.delattr(torch, "accelerator")  # as before 2.6
    assert accelerator_here() is None


def test_a_profile_keeps_the_link_and_plans_do_not():
    stock = known_hardware("cpu-2core").hardware
    made = machine_profile([stock], [], "2026-11-27", link={H2D: 12e9, D2H: 6e9})
    assert made.hardware.roofs == {**stock.roofs, H2D: 12e9, D2H: 6e9}
    assert profile_from(made.to_dict()) == made
    assert not made.hardware.has_device
    document = hardware_document(made.hardware)
    assert read_hardware(document, "plan.yaml").roofs == stock.roofs
    t4 = known_hardware("t4").hardware
    assert hardware_document(t4)["roofs"] == dict(t4.roofs)
