"""Tensors over the bytes of a page."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from headrace.memory.pages import Place
from headrace.models import weights
from headrace.models.weights import Weights

PLACES = {"a": Place(0, "f32", (2, 3), 24), "b": Place(64, "bf16", (4,), 8)}
TABLE = SimpleNamespace(geometry=lambda page: PLACES)


def test_tensors_lie_over_the_pages_own_bytes():
    view = torch.zeros(128, dtype=torch.uint8)
    found = Weights(TABLE).of(0, view)
    found["a"][1, 2] = 1.0
    assert view[20:24].view(torch.float32).item() == 1.0
    assert (found["b"].shape, found["b"].dtype) == ((4,), torch.bfloat16)


def test_tensors_are_kept_while_the_page_stays_where_it_is(monkeypatch):
    monkeypatch.setattr(weights, "KEPT_PAGES", 2)
    cut = Weights(TABLE)
    here, there = (torch.zeros(128, dtype=torch.uint8) for _ in range(2))
    first = cut.of(0, here)
    assert cut.of(0, here) is first
    moved = cut.of(0, there)
    assert moved["a"].data_ptr() == there.data_ptr()
    assert cut.of(0, here)["a"].data_ptr() == here.data_ptr()
    for page in range(5):
        assert cut.of(page, there)["a"].data_ptr() == there.data_ptr()
