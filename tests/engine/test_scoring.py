"""Teacher-forced log-probabilities against transformers, in memory and streamed."""

from __future__ import annotations

import math
import time
from contextlib import closing

import pytest
import torch

from headrace.engine import scoring
from headrace.engine.layer_outputs import KEPT_TOKENS, LayerOutputs
from headrace.engine.loaded import Loaded
from headrace.engine.scoring import Score, perplexity
from headrace.errors import BudgetError, UsageError
from tests.models.tiny import reference

TEXT = "a machine that runs never dry, " * 5


def wanted(folder, tokens):
    with torch.no_grad():
        logits = reference(folder)(torch.tensor([tokens])).logits[0]
    picked = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])
    return picked[:, 0].tolist()


def score(folder, text=TEXT, memory=1 << 28, **settings):
    with closing(Loaded.open(folder)) as loaded:
        return perplexity(loaded, text, memory=memory, clock=time.perf_counter, **settings)


@pytest.mark.parametrize("case", ["mixtral-e8", "llama-gqa"])
def test_perplexity_is_that_of_transformers_whatever_the_memory(case, checkpoint_of):
    folder = checkpoint_of(case)
    with closing(Loaded.open(folder)) as loaded:
        tokens = loaded.tokenizer.encode(TEXT)
    logprobs = wanted(folder, tokens)
    right = math.exp(-sum(logprobs) / len(logprobs))
    with pytest.raises(BudgetError) as refused:
        score(folder, memory=1)
    for memory in (1 << 28, refused.value.smallest_bytes):
        heard: list[int] = []
        found = score(folder, memory=memory, on_tokens=heard.append)
        assert found.perplexity == pytest.approx(right, rel=2e-3)  # KV is rounded to f16
        assert found.tokens == len(tokens) - 1 == sum(heard)


def test_outputs_of_layers_are_those_of_transformers(mixtral):
    with closing(Loaded.open(mixtral)) as loaded:
        tokens = loaded.tokenizer.encode(TEXT)
    with torch.no_grad():
        states = reference(mixtral)(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    outputs = score(mixtral).outputs
    assert outputs.step > 1
    for layer in range(outputs.layers - 1):  # the last state of theirs is normed
        rows = torch.stack(outputs.rows[layer])
        right = states[layer + 1][0, :-1][:: outputs.step]
        torch.testing.assert_close(rows, right, rtol=5e-3, atol=5e-3)
    assert len(outputs.rows[outputs.layers - 1]) == len(outputs.rows[0]) <= KEPT_TOKENS


def test_outputs_of_a_long_text_are_of_tokens_all_over_its_windows(mixtral, monkeypatch):
    monkeypatch.setattr(scoring, "WINDOW", 8)
    monkeypatch.setattr("headrace.engine.layer_outputs.KEPT_TOKENS", 9)
    outputs = score(mixtral).outputs
    with closing(Loaded.open(mixtral)) as loaded:
        count = len(loaded.tokenizer.encode(TEXT))
    # the last token of a window predicts nothing: no row is made of it
    kept = [i for i in range(0, count - 1, outputs.step) if i % 8 != 7]
    assert outputs.step > 8
    assert [len(rows) for rows in outputs.rows.values()] == [len(kept)] * outputs.layers


def test_error_of_an_output_is_relative_to_it():
    one, other = LayerOutputs(1, 1), LayerOutputs(1, 1)
    one.rows[0] = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])]
    other.rows[0] = [torch.tensor([3.0, 1.0]), torch.tensor([0.0, 4.0])]
    assert one.relative_error(other, 0) == pytest.approx(0.2)
    assert one.relative_error(one, 0) == 0


def test_change_of_perplexity_and_its_standard_error():
    before = Score((-1.0, -2.0, -3.0, -2.0), LayerOutputs(1, 1))
    after = Score((-1.1, -2.1, -3.3, -2.3), LayerOutputs(1, 1))
    change = before.change(after)
    assert change.relative == pytest.approx(after.perplexity / before.perplexity - 1)
    # losses 0.1, 0.1, 0.3, 0.3: mean 0.2, standard deviation 0.2 / sqrt(3), of the mean half of it
    assert change.error == pytest.approx(math.exp(0.2) * 0.1 / math.sqrt(3))
    assert before.change(before) == (0.0, 0.0)


def test_long_texts_are_scored_in_windows(mixtral, monkeypatch):
    monkeypatch.setattr(scoring, "WINDOW", 16)
    with closing(Loaded.open(mixtral)) as loaded:
        tokens = loaded.tokenizer.encode(TEXT)
    windows = [tokens[i : i + 16] for i in range(0, len(tokens), 16)]
    logprobs = [p for window in windows if len(window) > 1 for p in wanted(mixtral, window)]
    found = score(mixtral)
    assert found.tokens == len(logprobs)
    assert found.perplexity == pytest.approx(math.exp(-sum(logprobs) / len(logprobs)), rel=2e-3)


def test_a_text_without_a_second_token_is_refused(mixtral):
    with pytest.raises(UsageError, match="at least 2 tokens"):
        score(mixtral, text="")
