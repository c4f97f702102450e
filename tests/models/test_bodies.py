"""Whole sweeps against transformers on tiny random checkpoints."""

from __future__ import annotations

import random
from importlib import import_module

import pytest
import torch

from tests.models.tiny import CASES, Runner, build, reference

PROMPT = [5, 17, 80, 3, 44, 9, 61, 100, 23, 71, 12, 34, 56]


@pytest.fixture(scope="module", params=list(CASES))
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param, folder)
    return folder


def expected(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def close(got, wanted):
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_prefill_and_decode_logits_equal_transformers(checkpoint):
    runner, model = Runner(checkpoint), reference(checkpoint)
    wanted = expected(model, PROMPT * 3)
    sequence = runner.sequence(PROMPT)
    close(runner.sweep([sequence.segment(0, len(PROMPT))])[0], wanted[len(PROMPT) - 1])
    for token in PROMPT * 2:
        sequence.tokens.append(token)
        logits = runner.sweep([sequence.segment(0, 1)])
        close(logits[0], wanted[len(sequence.tokens) - 1])


def test_64_greedy_tokens_equal_transformers(checkpoint):
    runner, model = Runner(checkpoint, schedule="stream"), reference(checkpoint)
    with torch.no_grad():
        wanted = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=64, min_new_tokens=64, do_sample=False
        )[0].tolist()
    sequence, rows = runner.sequence(PROMPT), len(PROMPT)
    while len(sequence.tokens) < len(wanted):
        logits = runner.sweep([sequence.segment(0, rows)])[0]
        logits[2] = -torch.inf  # generate keeps the end token out as well
        sequence.tokens.append(int(logits.argmax()))
        rows = 1
    assert sequence.tokens == wanted


@pytest.mark.parametrize("schedule", ["resident", "stream", "on_demand", "one_by_one"])
def test_mixed_chunked_micro_batches_and_cut_pages_equal_transformers(checkpoint, schedule):
    runner = Runner(checkpoint, schedule, rows=120, micro_batches=3, cut_bytes=3000)
    model, draw = reference(checkpoint), random.Random(3)
    prompts = [[draw.randrange(3, 101) for _ in range(n)] for n in (1, 5, 18, 33, 33, 40, 7)]
    wanted = [expected(model, p) for p in prompts]
    sequences = [runner.sequence(p) for p in prompts]
    while any(s.cached < len(s.tokens) for s in sequences):
        micro_batches = [[], [], []]
        sampled = []
        for number, sequence in enumerate(sequences):
            left = len(sequence.tokens) - sequence.cached
            rows = min(left, draw.choice([1, 2, 9, 17]))
            if left:
                micro_batches[number % 2].append(sequence.segment(number, rows))
        for micro_batch in micro_batches:
            sampled += [s.sequence for s in micro_batch if s.sample]
        logits = runner.sweep(*micro_batches)
        assert len(logits) == len(sampled)
        for row, number in zip(logits, sampled, strict=True):
            close(row, wanted[number][-1])


def test_arena_holds_exactly_the_declared_sizes(checkpoint):
    runner = Runner(checkpoint, "stream")
    assert runner.arena.used == runner.arena.capacity_bytes


@pytest.mark.parametrize("schedule", ["stream", "on_demand"])
def test_threads_equal_list_order_bit_for_bit(schedule, tmp_path):
    build("mixtral-e8", tmp_path, torch.bfloat16)
    runners = [
        Runner(tmp_path, schedule, micro_batches=2, cut_bytes=3000, threads=threads)
        for threads in (False, True)
    ]
    sequences = [[runner.sequence(PROMPT), runner.sequence(PROMPT[::-1])] for runner in runners]
    for step in range(8):
        logits = []
        for runner, pair in zip(runners, sequences, strict=True):
            rows = 1 if step else len(PROMPT)
            logits.append(runner.sweep(*([s.segment(i, rows)] for i, s in enumerate(pair))))
            for sequence, row in zip(pair, logits[-1], strict=True):
                sequence.tokens.append(int(row.argmax()))
        assert torch.equal(*logits)
    runners[1].machine.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_are_multiplied_in_32(dtype, tmp_path):
    build("olmoe-e64", tmp_path, dtype)
    runner, wanted = Runner(tmp_path), expected(reference(tmp_path), PROMPT)
    close(runner.sweep([runner.sequence(PROMPT).segment(0, len(PROMPT))])[0], wanted[-1])


@pytest.mark.parametrize("case", ["llama-gqa", "mixtral-e8"])
@pytest.mark.parametrize("cut_bytes", [1 << 20, 3000])
def test_rows_beyond_a_block_are_multiplied_in_several(case, cut_bytes, tmp_path, monkeypatch):
    module = import_module("headrace.kernels.reference.experts")  # the name is a function's too
    monkeypatch.setattr(module, "ROW_BLOCK", 4)
    build(case, tmp_path)
    runner = Runner(tmp_path, micro_batches=2, cut_bytes=cut_bytes, kernels="reference")
    wanted = expected(reference(tmp_path), PROMPT)
    pair = [[runner.sequence(PROMPT).segment(i, len(PROMPT))] for i in range(2)]
    close(runner.sweep(*pair), wanted[-1].repeat(2, 1))


def test_on_demand_reads_routed_experts_only_and_says_so(tmp_path):
    build("olmoe-e64", tmp_path)
    runner = Runner(tmp_path, "on_demand")
    sweep = runner.run([runner.sequence(PROMPT[:2]).segment(0, 2)])
    counts = [c for layer in range(runner.model.layers) for c in sweep.binding.routed[layer]]
    assert sum(counts) == 2 * runner.model.top_k * runner.model.layers
    experts = [p.id for p in runner.pages if p.expert is not None]
    moved = [sweep.binding.page_bytes[i] for i in experts]
    assert [bool(m) for m in moved] == [bool(c) for c in counts]
    assert max(moved) <= max(runner.table.read_bytes(i) for i in experts)


def test_a_sweep_without_rows_to_sample_still_fills_the_cache(tmp_path):
    build("llama-gqa", tmp_path)
    runner, wanted = Runner(tmp_path), expected(reference(tmp_path), PROMPT)
    sequence = runner.sequence(PROMPT)
    assert runner.sweep([sequence.segment(0, 6)]).shape == (0, runner.model.vocab)
    assert runner.sweep([]).shape == (0, runner.model.vocab)
    close(runner.sweep([sequence.segment(0, 7)])[0], wanted[-1])
