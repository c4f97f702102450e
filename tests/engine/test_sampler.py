"""The sampler against slow, obvious definitions."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.sampler import Sampler, SampleRow, check_params, keyed_uniform
from headrace.errors import HeadraceError, ParameterError
from headrace.kernels.draws import Draw
from headrace.kernels.reference.draws import truncate
from headrace.specs.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0)


def row(key: str = "r", **kwargs: object) -> SampleRow:
    names = ("choice", "position", "prompt", "generated", "eos_ids")
    where = {n: kwargs.pop(n) for n in names if n in kwargs}
    return SampleRow(SamplingParams(**kwargs), key, **where)  # type: ignore[arg-type]


def draw(logits: list[float], *rows: SampleRow, seed: int = 0) -> list[int]:
    sampler = Sampler(seed, len(logits))
    return [s.token for s in sampler.sample(torch.tensor([logits] * len(rows)), rows)]


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    assert draw([0.0, 3.0, 3.0, 1.0], SampleRow(GREEDY, "a")) == [1]


def test_no_rows_draw_nothing() -> None:
    assert Sampler(0, 4).sample(torch.empty(0, 4), ()) == []


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(HeadraceError, match="shape"):
        Sampler(0, 5).sample(torch.zeros(1, 4), (row(),))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("asked", [{}, {"temperature": 0.0}, {"logprobs": 2, "top_p": 0.5}])
def test_an_invalid_logit_costs_its_request_only(bad: float, asked: dict[str, float]) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 3)
    rows = [row("first", **asked), row("second", position=7, **asked), row("third", **asked)]
    whole = Sampler(0, 4).sample(logits, rows)
    logits[1, 2] = bad
    drawn = Sampler(0, 4).sample(logits, rows)
    assert "'second' at generated token 7" in str(drawn[1].fault)
    assert (drawn[0], drawn[2]) == (whole[0], whole[2])


def test_the_logits_are_left_as_they_are() -> None:
    logits = torch.randn(3, 50)
    before = logits.clone()
    rows = (row(top_k=3), row(repetition_penalty=2.0, prompt=(1, 2)), row(logprobs=2, min_p=0.1))
    Sampler(0, 50).sample(logits, rows)
    assert torch.equal(logits, before)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=40),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 8),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.1, 0.9]),
    position=st.integers(0, 99),
)
def test_a_draw_inverts_the_cumulative_distribution(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, position: int
) -> None:
    kwargs = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    token = draw(logits, row("x", position=position, **kwargs), seed=3)[0]
    weights = reference_weights(logits, temperature, top_k, top_p, min_p)
    below, total = sum(weights[:token]), sum(weights)
    u = keyed_uniform(3, None, "x", 0, position)
    assert weights[token] > 0
    assert below / total <= u + 1e-5
    assert (below + weights[token]) / total >= u - 1e-5


def reference_weights(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> list[float]:
    """Weights of all tokens, by the book, in Python floats of the fp32 exponentials."""
    x = torch.tensor([logits])
    x = x.sub(x.max()).div(torch.tensor([temperature])).exp()[0]
    weights = [w if w >= min_p else 0.0 for w in x.double().tolist()]
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    if top_k:
        order = order[:top_k]
    kept: list[int] = []
    mass, limit = 0.0, top_p * sum(weights[i] for i in order)
    for i in order:
        if top_p < 1 and kept and mass >= limit:
            break
        kept.append(i)
        mass += weights[i]
    return [w if i in kept else 0.0 for i, w in enumerate(weights)]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_row_draws_the_same_whoever_stands_beside_it(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn(9, 3001, generator=generator) * 3
    pool = [
        row("a", temperature=0),
        row("b"),
        row("c", top_k=5, logprobs=3),
        row("d", top_p=0.8),
        row("e", min_p=0.05, temperature=2.0),
        row("f", repetition_penalty=1.3, prompt=(1, 2, 3), generated=(4, 4)),
        row("g", seed=5, logprobs=0),
        row("h", temperature=0, logit_bias={7: 50.0}),
        row("i", top_p=0.999, top_k=2000),
    ]
    sampler = Sampler(1, 3001)
    alone = [sampler.sample(logits[i : i + 1], (pool[i],))[0] for i in range(9)]
    order = data.draw(st.permutations(range(9)))[: data.draw(st.integers(1, 9))]
    together = sampler.sample(logits[torch.tensor(order)], [pool[i] for i in order])
    assert together == [alone[i] for i in order]


def test_draws_follow_the_distribution() -> None:
    rows = [row("k", position=i) for i in range(4000)]
    counts = Counter(draw([0.0, math.log(2), math.log(5)], *rows))
    for token, share in enumerate((1 / 8, 2 / 8, 5 / 8)):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


def test_the_uniform_depends_on_each_part_of_its_key() -> None:
    base = (1, None, "key", 0, 0)
    others = [(2, None, "key", 0, 0), (1, 0, "key", 0, 0), (1, None, "kez", 0, 0)]
    others += [(1, None, "key", 1, 0), (1, None, "key", 0, 1)]
    values = {keyed_uniform(*args) for args in (base, *others)}
    assert len(values) == 6
    assert all(0 <= v < 1 for v in values)
    assert keyed_uniform(*base) == keyed_uniform(*base)


def test_choices_of_one_request_differ() -> None:
    rows = [row("k", choice=c) for c in range(64)]
    assert len(set(draw([0.0] * 1000, *rows))) > 50


def test_the_end_is_not_drawn_before_min_tokens() -> None:
    logits = [9.0, 8.0, 1.0]
    early = row(temperature=0, min_tokens=3, position=2, eos_ids={0}, stop_token_ids=(1,))
    late = row(temperature=0, min_tokens=3, position=3, eos_ids={0}, stop_token_ids=(1,))
    unbound = row(temperature=0, min_tokens=3, position=0, eos_ids={0}, ignore_eos=True)
    assert draw(logits, early, late, unbound) == [2, 0, 0]


def test_bias_and_allowed_ids_move_the_greedy_token() -> None:
    logits = [5.0, 4.0, 3.0, 2.0]
    biased = row(temperature=0, logit_bias={3: 100.0})
    allowed = row(temperature=0, allowed_token_ids=(2, 3))
    assert draw(logits, biased, allowed, row(temperature=0)) == [3, 2, 0]


def test_penalties_count_as_vllm_counts() -> None:
    logits = [4.0, 3.9, -1.0, -1.05]
    seen = {"prompt": (0,), "generated": (0, 0, 1)}
    assert draw(logits, row(temperature=0, repetition_penalty=1.5, prompt=(0,))) == [1]
    assert draw(logits, row(temperature=0, frequency_penalty=0.1, **seen)) == [1]
    assert draw(logits, row(temperature=0, presence_penalty=2.0, generated=(1,))) == [0]
    assert draw(logits, row(temperature=0, presence_penalty=2.0, prompt=(0,))) == [0]
    negative = [-1.0, -1.1, -9.0, -9.0]
    assert draw(negative, row(temperature=0, repetition_penalty=1.5, prompt=(0,))) == [1]


def test_top_k_of_one_is_greedy_even_among_ties() -> None:
    rows = [row("k", position=i, top_k=1) for i in range(50)]
    assert set(draw([1.0, 2.0, 2.0, 2.0], *rows)) == {1}


def test_top_p_cuts_a_flat_distribution_in_token_id_order() -> None:
    flat = torch.ones(1, 3000)
    flat[0, 0] = 0.5
    truncate(flat, [Draw(0, 1.0, 1.0, 0.0, 0, 0.5, 0.0)])
    assert int((flat > 0).sum()) == math.ceil(0.5 * (3000 - 0.5))
    assert bool((flat[0, 1:1000] == 1).all())
    assert flat[0, 0] == 0


def test_a_tiny_temperature_is_greedy() -> None:
    assert draw([0.0, 1.0, 0.5], row(temperature=1e-9)) == [1]


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 3.0]])
    rows = (row(temperature=0, logit_bias={0: 100.0}, logprobs=3),)
    result = Sampler(0, 4).sample(logits, rows)[0]
    expected = logits.log_softmax(-1)[0].tolist()
    assert result.token == 0
    assert result.logprob == pytest.approx(expected[0], abs=1e-5)
    assert result.top is not None
    assert [t for t, _ in result.top] == [2, 3, 1]
    assert [v for _, v in result.top] == pytest.approx([expected[2], expected[3], expected[1]])


def test_zero_logprobs_give_the_drawn_token_only() -> None:
    result = Sampler(0, 3).sample(torch.zeros(1, 3), (row(logprobs=0),))[0]
    assert result.top == ()
    assert result.logprob == pytest.approx(-math.log(3), abs=1e-5)


def test_many_rows_are_drawn_in_bounded_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 64)
    rows = [row(str(i), logprobs=1) for i in range(7)]
    whole = Sampler(0, 64).sample(logits, rows)
    monkeypatch.setattr("headrace.engine.sampler.BLOCK_BYTES", 2 * 24 * 64)
    assert Sampler(0, 64).sample(logits, rows) == whole


@pytest.mark.parametrize(
    "kwargs",
    [
        {"logit_bias": {50: 1.0}},
        {"allowed_token_ids": (-1,)},
        {"stop_token_ids": (10,)},
        {"logit_bias": {1: math.nan}},
        {"allowed_token_ids": (3, 4), "min_tokens": 1, "stop_token_ids": (3,)},
    ],
)
def test_parameters_the_vocabulary_rules_out_are_refused(kwargs: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        check_params(SamplingParams(**kwargs), 10, frozenset({4}))  # type: ignore[arg-type]


def test_fitting_parameters_pass() -> None:
    check_params(SamplingParams(logit_bias={3: 1.0}, allowed_token_ids=(3,)), 10, frozenset({4}))


def test_a_row_with_nothing_left_to_draw_names_the_request() -> None:
    logits = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    rows = (row("hopeless", min_tokens=1, eos_ids={0, 1}), row("fine"))
    hopeless, fine = Sampler(0, 2).sample(logits, rows)
    assert "adjusted logits of request 'hopeless' at generated token 0" in str(hopeless.fault)
    assert fine.fault is None
