"""What bodies take beside their operands stays within the formulas of specs/scratch.py."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from headrace.kernels import scratch as scratch_module
from headrace.schedule.task import Buffer
from headrace.specs.scratch import attention_tile, routing_bytes, scratch_bytes, torch_bytes
from tests.models.tiny import Runner, build


def peak_allocated(run):
    """Most bytes held by torch's CPU allocator while ``run`` runs, above the start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    moves = [e for e in events if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(moves, key=lambda e: e.start_ns())))


def batches(runner):
    """A full sweep of prefill, one of decodes at long context, one of both."""
    draw, n, seqs = random.Random(1), runner.policy.max_rows, runner.policy.max_seqs
    tokens = [draw.randrange(3, 101) for _ in range(max(n, 90))]
    decoders = [runner.sequence(tokens[:90], capacity=92) for _ in range(seqs)]
    mu, blocks = runner.policy.mu, runner.policy.micro_batches
    long = runner.sequence(tokens[:n], capacity=n)
    yield [[long.segment(0, min(mu, n - mb * mu))] for mb in range(blocks)]
    for s in decoders:
        s.cached = 89
    share = -(-seqs // blocks)
    parts = [decoders[i * share : (i + 1) * share] for i in range(blocks)]
    yield [[s.segment(i, 1) for i, s in enumerate(part)] for part in parts]
    long.cached = 0
    for s in decoders:
        s.cached = 60
    rows = max(1, n // seqs)
    yield [[s.segment(i, min(rows, 30)) for i, s in enumerate(part)] for part in parts]


@pytest.mark.parametrize(
    "case", ["llama-mha-tied-biases", "mistral-window", "mixtral-e8", "olmoe-e64"]
)
@pytest.mark.parametrize(
    ("rows", "seqs", "micro_batches", "cut_bytes"),
    [(250, 16, 1, 1 << 20), (240, 12, 3, 3000), (16, 16, 1, 1 << 20)],
)
def test_torch_allocates_no_more_than_declared(
    case, rows, seqs, micro_batches, cut_bytes, tmp_path
):
    build(case, tmp_path, torch.bfloat16)
    runner = Runner(tmp_path, "resident", rows, seqs, micro_batches, cut_bytes, "f16", ring_slots=2)
    for micro_batches_ in batches(runner):
        peak = peak_allocated(lambda m=micro_batches_: runner.run(*m))
        assert peak <= torch_bytes(runner.model, runner.policy)


@pytest.mark.parametrize("case", ["llama-gqa", "mixtral-e8", "olmoe-e64"])
@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "bf16", "int8"])
def test_scratch_suffices_and_is_not_twice_what_is_used(case, kv_dtype, tmp_path, monkeypatch):
    build(case, tmp_path, torch.bfloat16)
    runner = Runner(tmp_path, kv_dtype=kv_dtype, rows=200, kernels="reference")
    used, take = [0], scratch_module.Scratch.take

    def watched(self, *shape, dtype=torch.float32):
        piece = take(self, *shape, dtype=dtype)
        used.append(runner.space.view(Buffer("scratch")).numel() - self.rest().numel())
        return piece

    monkeypatch.setattr(scratch_module.Scratch, "take", watched)
    long = runner.sequence([3] * 2048, capacity=2048)  # as long as the cache, and one chunk
    long.cached = 1848
    runner.sweep([long.segment(0, 200)])
    declared = scratch_bytes(runner.model, runner.policy)
    assert declared / 2 <= max(used) <= declared


def test_routing_buffer_holds_its_five_tensors(tmp_path):
    build("mixtral-e8", tmp_path)
    runner = Runner(tmp_path)
    routing = runner.space.view(Buffer("routing", 0))
    held = sum(part.numel() * part.element_size() for part in routing)
    assert held <= routing_bytes(runner.model, runner.policy) <= held + 5 * 64


def test_attention_tile_holds_a_block_however_small_the_cache(tmp_path):
    build("llama-gqa", tmp_path)
    runner = Runner(tmp_path, rows=1, seqs=1)
    tile = attention_tile(runner.model, runner.policy)
    assert tile.kv_tokens >= runner.policy.kv_block
    assert tile.pairs >= tile.query_rows * runner.policy.kv_block
