"""Jobs killed at 25 moments; ``python -m tools.soak`` has 200, and everything else."""

from __future__ import annotations

import pytest

from tools.soak import kills
from tools.soak.rig import Rig, essence, passings

CASES = 25
LINES = 24


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    return Rig.make(tmp_path_factory.mktemp("soak"), LINES)


@pytest.fixture(scope="module")
def whole(rig, tmp_path_factory):
    """An undisturbed run: how often it passed every point, and what it left."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    passed = passings(rig, output)
    assert passed["page.read"] > 10 * passed["sweep.commit"] > 0, "it must stream"
    return passed, essence(output)


@pytest.fixture(scope="module")
def forks():
    return kills.forks()


@pytest.mark.parametrize("number", range(CASES))
def test_a_killed_job_loses_and_repeats_nothing(rig, whole, forks, tmp_path, number):
    passed, undisturbed = whole
    kill = kills.moments(passed, LINES, CASES)[number]
    fault = kills.killed_and_resumed(forks, rig, tmp_path / "out.jsonl", kill, undisturbed)
    assert not fault, str(kill)


def test_every_kind_of_moment_has_its_share_of_the_whole_soak(whole):
    passed, _ = whole
    found = [k.kind for k in kills.moments(passed, LINES, sum(kills.SHARES.values()))]
    assert len(found) == 200
    assert {kind: found.count(kind) for kind in kills.SHARES} == kills.SHARES


def test_a_lost_a_changed_and_a_repeated_line_are_seen(whole):
    _, undisturbed = whole
    line = next(iter(undisturbed))
    assert not kills.difference(undisturbed, undisturbed.copy())
    assert "missing" in kills.difference(undisturbed, undisturbed - type(undisturbed)({line: 1}))
    twice = undisturbed + type(undisturbed)({line: 1})
    assert line[:50] in kills.difference(undisturbed, twice)
