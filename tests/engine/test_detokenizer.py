"""Streaming text equals the whole text, and never shows part of a stop string."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.detokenizer import LONGEST_WAIT, Detokenizer, StopStrings
from headrace.engine.tokenizer import Tokenizer
from headrace.specs.sampling import SamplingParams

TEXTS = st.text(st.sampled_from("helo w. STOP!é漢😀👩‍👩‍👧\n"), min_size=1, max_size=30)


def body(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of ``text`` without BOS."""
    return tokenizer.encode(text)[1:]


def stream(tokenizer: Tokenizer, ids: list[int], **kwargs: object) -> tuple[str, Detokenizer]:
    prompt = kwargs.pop("prompt", ())
    detokenizer = Detokenizer(tokenizer, SamplingParams(**kwargs), prompt)  # type: ignore[arg-type]
    pieces = [detokenizer.push(t) for t in ids]
    return "".join(pieces) + detokenizer.finish(), detokenizer


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_the_pieces_make_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    ids = body(tokenizer, text)
    assert stream(tokenizer, ids, max_tokens=None)[0] == tokenizer.decode(ids)


@settings(max_examples=150, deadline=None)
@given(prompt=TEXTS, answer=TEXTS)
def test_an_answer_continues_its_prompt(tokenizer: Tokenizer, prompt: str, answer: str) -> None:
    ids = body(tokenizer, prompt + "." + answer)
    before = len(body(tokenizer, prompt + "."))
    whole, head = tokenizer.decode(ids), tokenizer.decode(ids[:before])
    if whole.startswith(head) and not head.endswith("\ufffd"):
        text, _ = stream(tokenizer, ids[before:], prompt=tokenizer.encode("")[:1] + ids[:before])
        assert head + text == whole


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, stops=st.lists(st.text("helo w.STé", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_the_text_where_the_first_one_is_complete(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    ids = body(tokenizer, text)
    whole = tokenizer.decode(ids)
    ends = [(whole.find(s) + len(s), whole.find(s), s) for s in stops if s in whole]
    got, detokenizer = stream(tokenizer, ids, stop=tuple(stops), max_tokens=None)
    assert detokenizer.stopped == bool(ends)
    if not ends:
        assert got == whole
        return
    assert got == whole[: min(ends)[1]]
    assert detokenizer.stop_string == min(ends)[2]


def test_text_that_may_become_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop=("STOP",)))
    pieces = [detokenizer.push(t) for t in body(tokenizer, "a ST")]
    assert "".join(pieces) == "a "
    assert detokenizer.finish() == "ST"


def test_nothing_comes_after_a_stop(tokenizer: Tokenizer) -> None:
    text, detokenizer = stream(tokenizer, body(tokenizer, "hello STOP hello"), stop=("STOP",))
    assert (text, detokenizer.push(5), detokenizer.finish()) == ("hello ", "", "")


def test_a_stop_string_does_not_count_before_min_tokens(tokenizer: Tokenizer) -> None:
    ids = body(tokenizer, "a.b.c")
    first = len(body(tokenizer, "a."))
    text, detokenizer = stream(tokenizer, ids, stop=(".",), min_tokens=first + 1)
    assert text == "a.b"
    assert detokenizer.stopped


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 256), max_size=80))
def test_any_bytes_give_text_and_no_error(tokenizer: Tokenizer, ids: list[int]) -> None:
    text, _ = stream(tokenizer, ids, max_tokens=None)
    assert isinstance(text, str)


def test_an_incomplete_character_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    ids = body(tokenizer, "a😀")[:-1]
    detokenizer = Detokenizer(tokenizer, SamplingParams())
    assert "".join(detokenizer.push(t) for t in ids) == "a"
    assert set(detokenizer.finish()) == {"\ufffd"}


def test_the_wait_for_a_character_is_bounded(tokenizer: Tokenizer) -> None:
    lead = body(tokenizer, "😀")[-1]
    detokenizer = Detokenizer(tokenizer, SamplingParams(max_tokens=None))
    pieces = [detokenizer.push(lead) for _ in range(3 * LONGEST_WAIT)]
    assert len([p for p in pieces if p]) == 3
    unknown = [detokenizer.push(10**6) for _ in range(3 * LONGEST_WAIT)]
    assert "".join(unknown) == ""


def test_a_prompt_that_ends_in_many_byte_tokens_leaves_no_trace(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("hello 😀漢😀")
    answer = body(tokenizer, "漢")[-3:]
    assert stream(tokenizer, answer, prompt=prompt)[0] == "漢"


def test_special_tokens_are_shown_on_request_only(tokenizer: Tokenizer) -> None:
    end = tokenizer.encode("<s></s>")[-1]
    ids = [*body(tokenizer, "a"), end]
    assert stream(tokenizer, ids)[0] == "a"
    assert stream(tokenizer, ids, skip_special_tokens=False)[0] == "a</s>"


@pytest.mark.parametrize(("stop", "text"), [("aab", "aaab"), ("abab", "abaabab")])
def test_overlapping_starts_of_a_stop_string_are_found(stop: str, text: str) -> None:
    stops = StopStrings((stop,))
    assert "".join(stops.feed(c) for c in text) == text[: text.find(stop)]
    assert stops.found == stop


def test_the_cut_does_not_depend_on_how_text_arrives() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice("ab.") for _ in range(20))
        stops = [("ab.", "b"), ("a.a", "bb"), ("..",)][rng.randrange(3)]
        whole, parts = StopStrings(stops), StopStrings(stops)
        expected = whole.feed(text)
        got = ""
        for char in text:
            if parts.found is None:
                got += parts.feed(char)
        assert (got, parts.found) == (expected, whole.found)
