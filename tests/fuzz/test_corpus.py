"""Inputs that fuzzing found, and mutations with fixed seeds: no target may raise what is not ours.

``make fuzz`` searches further; what it finds is kept in ``fuzz/corpus``.
"""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.mutate import INTERESTING, mutate
from fuzz.run import CORPUS, TooSlowError, Watch
from fuzz.targets import TARGETS, seeds
from headrace.errors import HeadraceError

NAMES = list(TARGETS)
YAML = ("settings", "plan_file", "hardware")


@pytest.fixture(scope="module")
def valid() -> dict[str, list[bytes]]:
    return seeds()


def run(name: str, data: bytes) -> HeadraceError | None:
    """What a target refused an input with. Nothing but a HeadraceError may come out."""
    try:
        TARGETS[name](data)
    except HeadraceError as refused:
        return refused
    return None


@pytest.mark.parametrize("name", NAMES)
def test_the_seeds_are_valid(valid: dict[str, list[bytes]], name: str) -> None:
    assert [run(name, data) for data in valid[name]] == [None] * len(valid[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_refused_or_read(name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    assert files, "an empty corpus tests nothing"
    for file in files:
        run(name, file.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_mutations_of_valid_inputs(valid: dict[str, list[bytes]], name: str) -> None:
    random = Random(name)
    for _ in range(30 if name == "plan" else 150):
        data = random.choice(valid[name])
        changed = mutate(data, random)
        if changed is None:  # not JSON: a byte of it
            at = random.randrange(len(data))
            changed = data[:at] + random.randbytes(random.randrange(3)) + data[at + 1 :]
        run(name, changed)


JSON = st.recursive(
    st.sampled_from([v for v in INTERESTING if not isinstance(v, list | dict)])
    | st.integers()
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in YAML])
@settings(max_examples=30, deadline=None)
@given(JSON)
def test_any_json(name: str, tree: object) -> None:
    import json

    text = json.dumps(tree).encode()
    run(name, text)
    run(name, b"\1" + text)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"\n #,1.", max_size=60) | st.binary(max_size=40))
def test_any_yaml(text: str | bytes) -> None:
    for name in YAML:
        run(name, text.encode() if isinstance(text, str) else text)


def test_the_watch_notices_a_slow_input() -> None:
    watch = Watch()
    watch.after(0.5)
    with pytest.raises(TooSlowError):
        watch.after(1.5)


def test_a_target_lets_other_errors_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.targets.read_header", lambda path: {}["fault"])
    with pytest.raises(KeyError), suppress(HeadraceError):
        TARGETS["header"](b"\0")
