"""What a seed draws is always the same, and covers what the study is about."""

from __future__ import annotations

from collections import Counter

from headrace.cli.make_checkpoint import shape_spec
from headrace.cli.prediction.draw import SEED, SHAPES, draw_cases
from headrace.specs.model import ITEM_BYTES


def test_a_seed_always_draws_the_same():
    assert draw_cases(SEED, 30) == draw_cases(SEED, 30)
    assert draw_cases(SEED, 30)[:7] == draw_cases(SEED, 7)
    assert draw_cases(SEED, 30) != draw_cases(SEED + 1, 30)


def test_thirty_runs_cover_shapes_budgets_batches_lengths_and_schedules():
    cases = draw_cases(SEED, 30)
    assert set(Counter(case.shape for case in cases).values()) == {5}
    for field in ("budget", "batch", "prompt_len", "gen_len", "schedule"):
        assert len({getattr(case, field) for case in cases}) >= 4, field
    assert all(case.schedule is None for case in cases if case.budget is None)


def test_the_order_of_the_runs_is_part_of_the_seed():
    first, *_ = draw_cases(3, 1)
    assert (first.index, first.seed) == (0, "3-0")


def test_lengths_are_known_and_vary():
    case = draw_cases(1, 1)[0]
    job = case.workload(40)
    assert not job.assumed
    assert case.workload(40) == job
    for lengths, middle in ((job.prompt_lens, case.prompt_len), (job.gen_lens, case.gen_len)):
        assert middle // 2 <= min(lengths) < max(lengths) <= middle * 3 // 2


def test_all_checkpoints_take_less_than_six_gigabytes():
    specs = [shape_spec(s.arch, None, s.dtype, s.sizes) for s in SHAPES.values()]
    assert sum(spec.parameters() * ITEM_BYTES[spec.weight_dtype] for spec in specs) < 6e9
