"""Buffers as tensors over one arena."""

from __future__ import annotations

import pytest
import torch

from headrace.errors import BudgetError
from headrace.memory.arena import Arena
from headrace.models.workspace import Workspace
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Buffer
from tests.models.tiny import Runner, build


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtral")
    build("mixtral-e8", folder, torch.bfloat16)
    return Runner(folder, "stream", rows=64, seqs=8, micro_batches=2)


def test_views_have_the_shapes_that_buffer_documents(runner):
    model, view = runner.model, runner.space.view
    assert view(Buffer("hidden", 1)).shape == (32, model.hidden)
    assert view(Buffer("q")).shape == (32, model.q_size)
    assert view(Buffer("logits")).shape == (8, model.vocab)
    assert view(Buffer("rows")).dtype == torch.bfloat16
    assert view(Buffer("kv", 1)).values.shape == (2, 512, model.kv_heads, 4, model.head_dim)
    assert view(Buffer("routing", 0)).ids.shape == (32, model.top_k)
    assert view(Buffer("requests")) is None


def test_pages_and_slots_start_at_memory_pages(runner):
    for name, region in runner.arena.layout.items():
        if name.startswith(("page", "slot")):
            assert region.offset % 4096 == 0


def test_poison_shows_as_nan_and_spares_resident_pages(runner):
    final = next(b for b in runner.space.buffers if b.name == "page")
    before = runner.space.view(final).clone()
    runner.space.poison()
    assert runner.space.view(Buffer("hidden", 0)).isnan().all()
    assert runner.space.view(Buffer("kv", 0)).values.isnan().all()
    assert torch.equal(runner.space.view(final), before)
    runner.space.view(Buffer("q")).zero_()
    runner.space.poison(Buffer("q"))
    assert runner.space.view(Buffer("q")).isnan().all()


def test_resident_pages_are_loaded_with_progress(tmp_path):
    build("llama-gqa", tmp_path)
    runner, seen = Runner(tmp_path), []
    total = runner.space.load_resident(seen.append)
    assert len(seen) == sum(b.name == "page" for b in runner.space.buffers)
    assert sum(seen) == total >= sum(runner.table.needed_bytes(p.id) for p in runner.pages) / 2


def test_an_arena_too_small_is_refused(runner):
    sizes = buffer_sizes(runner.model, runner.pages, runner.policy, runner.slots)
    with pytest.raises(BudgetError):
        Workspace(runner.model, runner.table, runner.policy, sizes, Arena("host", 10000))
