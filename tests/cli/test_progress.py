"""Progress: rates, time left, and where it is shown."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass

import pytest
from rich.console import Console

from headrace.cli.progress import describe, seconds_left, show_progress, tokens_per_second


@dataclass
class Now:
    done: int = 0
    failed: int = 0
    total: int | None = 10
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0


def test_nothing_done_yet_falls_back_on_the_plan():
    assert seconds_left(Now(), None, None) is None
    assert seconds_left(Now(seconds=4), 10.0, None) == 6.0
    assert seconds_left(Now(seconds=40), 10.0, None) == 0.0
    assert tokens_per_second(Now()) == 0.0


def test_time_left_follows_tokens_when_foreseen_else_lines():
    now = Now(done=5, prompt_tokens=100, generated_tokens=100, seconds=20)
    assert seconds_left(now, None, 800) == 60.0
    assert seconds_left(now, None, None) == 20.0
    assert seconds_left(Now(done=5, total=None, seconds=20), None, None) is None


def test_more_tokens_than_foreseen_is_nearly_done():
    assert 0 < seconds_left(Now(generated_tokens=900, seconds=10), None, 800) < 1


def test_text_names_rate_eta_plan_and_failures():
    text = describe(Now(done=5, failed=2, generated_tokens=100, seconds=10), 25.0, None)
    assert text == "10.0 tok/s, ETA 10.0 s (predicted 25.0 s in all), 2 failed"


def test_nothing_is_drawn_unless_on_a_terminal():
    page = io.StringIO()
    with show_progress(Console(file=page)) as report:
        report(Now(done=1, seconds=1))
    assert page.getvalue() == ""


def test_bar_shows_lines_on_a_terminal():
    page = io.StringIO()
    with show_progress(Console(file=page, force_terminal=True, width=120), 25.0) as report:
        report(Now(done=10, generated_tokens=100, seconds=10))
    assert "10/10" in page.getvalue()
    assert "10.0 tok/s" in page.getvalue()


def test_log_hears_now_and_then(caplog):
    with (
        caplog.at_level(logging.INFO, "headrace"),
        show_progress(Console(file=io.StringIO())) as report,
    ):
        for second in range(100):
            report(Now(done=1, seconds=float(second)))
    assert len(caplog.records) == pytest.approx(3, abs=1)
    assert "1 of 10 lines" in caplog.text
