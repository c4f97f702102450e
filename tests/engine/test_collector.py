"""Old objects are out of the collector's sight during a run, and back in it afterwards."""

from __future__ import annotations

import gc

import pytest

from headrace.engine.answers import Prompt
from headrace.engine.collector import standing_objects_spared

from .engines import PROMPTS, greedy, open_llm, workload


def test_what_stood_before_a_run_is_spared_while_it_lasts(mixtral):
    with open_llm(mixtral) as llm:
        llm.plan(workload(tokens=2))
        run = llm.events(Prompt(str(i), p, greedy(2)) for i, p in enumerate(PROMPTS))
        assert gc.get_freeze_count() == 0
        next(run)
        assert gc.get_freeze_count() > 1000
        run.close()
        assert gc.get_freeze_count() == 0
        assert len(llm.generate(PROMPTS, greedy(2))) == len(PROMPTS)
    assert gc.get_freeze_count() == 0


def test_an_error_ends_it_too():
    with pytest.raises(ZeroDivisionError), standing_objects_spared():
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0


def test_what_the_caller_has_frozen_stays_frozen():
    gc.freeze()
    try:
        with standing_objects_spared():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
