"""Answers that are timed and never end."""

from __future__ import annotations

import pytest

from headrace.engine.endless import EndlessAnswers
from headrace.engine.sampler import SampledToken
from headrace.errors import NumericsError


class Letters:
    """Token 97 is ``a``, and so on."""

    special_ids = frozenset({0})
    eos_ids = frozenset({2})

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i) for i in ids if i)

    def token_bytes(self, token):
        return bytes([token])


@pytest.mark.parametrize("count", [1, 3])
def test_every_answer_goes_on_whatever_is_drawn(count):
    answers = EndlessAnswers(count, Letters())
    fault = NumericsError("row 0 is not finite")
    for sweep, drawn in enumerate(
        (SampledToken(97), SampledToken(2), SampledToken(5, fault=fault), SampledToken(98))
    ):
        rows = answers.rows()
        assert [row.position for row in rows] == [sweep] * count
        assert all(row.greedy for row in rows)
        answers.accept([drawn] * count)
    assert [list(row.generated) for row in answers.rows()] == [[97, 2, 0, 98]] * count
