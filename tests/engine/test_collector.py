"""Old objects are out of the collector's sight during a run, and back in it afterwards."""

from __future__ import annotations

import gc

import pytest

from headrace.engine.answers import Prompt
from headrace.engine.collector import standing_objects_spared
from headrace.engine.engine import LONG_RUN, SweepEnd

from .engines import PROMPTS, greedy, open_llm, workload


def test_what_stood_before_a_long_run_is_spared_while_it_lasts(mixtral):
    with open_llm(mixtral) as llm:
        llm.plan(workload(tokens=LONG_RUN + 9))
        prompts = (Prompt(str(i), p, greedy(LONG_RUN + 9)) for i, p in enumerate(PROMPTS))
        run = llm.events(prompts)
        frozen = [gc.get_freeze_count() > 1000 for event in run if isinstance(event, SweepEnd)]
        assert frozen == [False] * (LONG_RUN - 1) + [True] * (len(frozen) - LONG_RUN + 1)
        assert frozen[-1]
        assert gc.get_freeze_count() == 0
        run = llm.events(Prompt(str(i), p, greedy(LONG_RUN + 9)) for i, p in enumerate(PROMPTS))
        while not gc.get_freeze_count():
            next(run)
        run.close()
    assert gc.get_freeze_count() == 0


def test_an_error_ends_it_too():
    with pytest.raises(ZeroDivisionError), standing_objects_spared():
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0


def test_what_the_caller_has_frozen_is_left_alone(monkeypatch):
    calls: list[str] = []
    gc.freeze()
    try:
        with monkeypatch.context() as patched:
            for name in ("freeze", "unfreeze"):
                patched.setattr(gc, name, lambda name=name: calls.append(name))
            with standing_objects_spared():
                assert gc.get_freeze_count() > 0
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    assert calls == []
