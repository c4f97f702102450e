"""Answers in the making: when they end, what they hold, and in which order they come out."""

from __future__ import annotations

import pytest

from headrace.batching.batcher import Batcher
from headrace.batching.limits import Limits
from headrace.engine.answers import Answered, Answers, Delta, Prompt, as_request, most_tokens
from headrace.engine.detokenizer import Detokenizer
from headrace.engine.sampler import SampledToken
from headrace.errors import LineError
from headrace.specs.sampling import SamplingParams

EOS = 2
CONTEXT = 32


class Letters:
    """Token 97 is ``a``, and so on; 0 and 2 are special."""

    special_ids = frozenset({0, EOS})

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i) for i in ids if i > 2)


class Table:
    """Answers with the batcher that numbers their sequences."""

    def __init__(self, deltas: bool = False) -> None:
        self.batcher = Batcher(Limits(max_rows=64, max_seqs=16, kv_blocks=64))
        self.answers = Answers(
            frozenset({EOS}),
            lambda prompt: Detokenizer(Letters(), prompt.params, prompt.tokens),
            lambda token: bytes([token]),
            CONTEXT,
            deltas,
        )

    def open(self, key: str = "k", tokens: tuple[int, ...] = (65, 66), **params) -> list[int]:
        """Ask; the numbers of the sequences."""
        prompt = Prompt(key, tokens, SamplingParams(**params), "AB")
        sequences = self.batcher.add(as_request(prompt, CONTEXT))
        self.answers.open(sequences, prompt)
        return [s.id for s in sequences]

    def feed(self, sequence: int, tokens: str | list[int]) -> bool:
        """Draw ``tokens`` one sweep at a time, until the answer ends; whether it did."""
        for token in tokens:
            drawn = SampledToken(ord(token) if isinstance(token, str) else token)
            accepted, ended = self.answers.accept([sequence], [drawn])
            assert accepted == {sequence: drawn.token}
            if ended:
                assert ended == {sequence}
                return True
        return False

    def ready(self) -> list[Answered | Delta]:
        """All that can be popped."""
        return list(iter(self.answers.pop, None))


def finished(table: Table):
    (event,) = table.ready()
    (choice,) = event.output.outputs
    return choice.text, choice.token_ids, choice.finish_reason, choice.stop_reason


def test_an_answer_ends_at_its_limit():
    table = Table()
    (s,) = table.open(max_tokens=3)
    assert not table.feed(s, "ab")
    assert table.ready() == []
    assert table.feed(s, "c")
    assert finished(table) == ("abc", (97, 98, 99), "length", None)


def test_an_answer_ends_where_the_context_does():
    table = Table()
    (s,) = table.open(tokens=(65,) * 30, max_tokens=None)
    assert table.feed(s, "abc")
    assert finished(table)[2:] == ("length", None)


def test_eos_ends_and_is_no_text():
    table = Table()
    (s,) = table.open(max_tokens=9)
    assert table.feed(s, [97, EOS])
    assert finished(table) == ("a", (97, EOS), "stop", None)


def test_eos_may_be_ignored_and_min_tokens_come_first():
    table = Table()
    (s,) = table.open(max_tokens=3, ignore_eos=True)
    assert table.feed(s, [97, EOS, 98])
    assert finished(table) == ("ab", (97, EOS, 98), "length", None)
    (s,) = table.open(max_tokens=9, min_tokens=2)
    assert table.feed(s, [EOS, 97, EOS, 98])
    assert finished(table)[1:] == ((EOS, 97, EOS), "stop", None)


def test_a_stop_token_is_named_and_left_out_of_the_text():
    table = Table()
    (s,) = table.open(max_tokens=9, stop_token_ids=(99,))
    assert table.feed(s, "abcd")
    assert finished(table) == ("ab", (97, 98, 99), "stop", 99)


def test_a_stop_string_cuts_the_text_across_tokens():
    table = Table()
    (s,) = table.open(max_tokens=9, stop=("cd",))
    assert table.feed(s, "abcde")
    assert finished(table) == ("ab", (97, 98, 99, 100), "stop", "cd")


def test_text_that_might_have_become_a_stop_string_comes_at_the_end():
    table = Table()
    (s,) = table.open(max_tokens=3, stop=("cd",))
    assert table.feed(s, "abc")
    assert finished(table)[0] == "abc"
    (s,) = table.open(max_tokens=9, stop=("cd",))
    assert table.feed(s, ["a", "c", EOS])
    assert finished(table)[0] == "ac"


def test_choices_come_out_together_and_in_order():
    table = Table()
    first, second = table.open(n=2, max_tokens=2)
    assert table.feed(second, "xy")
    assert table.ready() == []
    assert table.feed(first, "ab")
    (event,) = table.ready()
    assert [(o.index, o.text) for o in event.output.outputs] == [(0, "ab"), (1, "xy")]
    assert (event.output.request_id, event.output.prompt) == ("k", "AB")
    assert event.output.prompt_token_ids == (65, 66)


def test_requests_of_one_key_are_not_mixed_up():
    table = Table()
    a = table.open(n=2, max_tokens=1)
    b = table.open(n=2, max_tokens=1)
    for sequence, letter in zip((a[0], b[0], b[1], a[1]), "abcd", strict=True):
        assert table.feed(sequence, letter)
    texts = [[o.text for o in event.output.outputs] for event in table.ready()]
    assert texts == [["b", "c"], ["a", "d"]]


def test_deltas_add_up_to_the_text_and_come_before_the_answer():
    table = Table(deltas=True)
    (s,) = table.open(max_tokens=4, stop=("cz",))
    table.feed(s, "abcd")
    events = table.ready()
    assert [e.text for e in events[:-1]] == ["a", "b", "cd"]
    assert events[-1].output.outputs[0].text == "abcd"
    assert {(e.key, e.choice) for e in events[:-1]} == {("k", 0)}


def test_rows_tell_the_sampler_who_asks_and_where_it_stands():
    table = Table()
    first, second = table.open(n=2, max_tokens=5)
    table.feed(second, "ab")
    rows = table.answers.rows([second, first])
    assert [(r.key, r.choice, r.position) for r in rows] == [("k", 1, 2), ("k", 0, 0)]
    assert (list(rows[0].generated), rows[0].prompt) == ([97, 98], (65, 66))
    assert rows[0].eos_ids == {EOS}


def test_log_probabilities_are_kept_when_asked_for():
    table = Table()
    (s,) = table.open(max_tokens=2, logprobs=1)
    for token, value in ((97, -0.5), (98, -0.25)):
        drawn = SampledToken(token, value, ((97, -0.1),))
        table.answers.accept([s], [drawn])
    (event,) = table.ready()
    (choice,) = event.output.outputs
    assert choice.cumulative_logprob == -0.75
    assert [list(entries) for entries in choice.logprobs] == [[97], [98, 97]]


def test_clearing_forgets_the_open_and_keeps_the_ready():
    table = Table()
    (done,) = table.open("done", max_tokens=1)
    half, other = table.open("half", n=2, max_tokens=1)
    table.feed(done, "a")
    table.feed(half, "a")
    table.answers.clear()
    assert [e.output.request_id for e in table.ready()] == ["done"]
    with pytest.raises(KeyError):
        table.answers.rows([other])


def test_prompts_without_room_or_tokens_are_refused():
    fine = Prompt("k", (5,) * (CONTEXT - 1), SamplingParams(max_tokens=9))
    assert as_request(fine, CONTEXT).max_tokens == most_tokens(fine, CONTEXT) == 1
    with pytest.raises(LineError) as caught:
        as_request(Prompt("k", (5,) * CONTEXT, SamplingParams()), CONTEXT)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(LineError, match="no tokens"):
        as_request(Prompt("k", (), SamplingParams()), CONTEXT)
