"""Experts that stay change with the routing: which ones, when it pays, what a run shows of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.engine.followers import HORIZON, Exchange, Followers
from headrace.errors import StorageError
from headrace.schedule.task import Buffer
from headrace.specs.model import ModelSpec
from headrace.specs.pages import page_layout

from .engines import PROMPTS, exactly, greedy, least_memory, open_llm, workload

MODEL = ModelSpec(
    "mixtral", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn_width=64, vocab=64,
    experts=8, top_k=2,
)  # fmt: skip
PAGES = page_layout(MODEL, 1 << 30)
ID = {(p.layer, p.expert): p.id for p in PAGES if p.expert is not None}


def followers(stay: list[tuple[int, int]], odd: int | None = None) -> Followers:
    sizes = {page.id: 4096 * (1 + (page.id == odd)) for page in PAGES}
    return Followers(MODEL, PAGES, frozenset(ID[place] for place in stay), sizes)


def routed(*often: int) -> dict[int, list[float]]:
    """Layer 0 has 30 rows for each of ``often``, one for the others; layer 1 is even."""
    return {0: [30.0 if e in often else 1.0 for e in range(8)], 1: [10.0] * 8}


def test_what_is_visited_often_takes_the_place_of_what_is_not():
    found = followers([(0, 0), (0, 4), (1, 0)])
    found.saw(routed(4, 7))
    assert found.exchanges(rows=1, sweeps_left=100) == [Exchange(ID[0, 0], ID[0, 7])]
    found.exchanged(Exchange(ID[0, 0], ID[0, 7]))
    assert found.resident == {ID[0, 7], ID[0, 4], ID[1, 0]}
    assert found.exchanges(rows=1, sweeps_left=100) == []


def test_it_must_pay_before_the_job_ends():
    found = followers([(0, 0)])
    found.saw(routed(7))
    assert found.exchanges(rows=1, sweeps_left=2) == []
    assert found.exchanges(rows=1, sweeps_left=HORIZON)
    assert found.exchanges(rows=200, sweeps_left=HORIZON) == [], "so many rows visit all of them"


def test_pages_of_other_sizes_stay_where_they_are():
    found = followers([(0, 0)], odd=ID[0, 7])
    found.saw(routed(7))
    assert found.exchanges(rows=1, sweeps_left=100) == []


def test_what_was_seen_long_ago_fades():
    found = followers([(0, 0)])
    found.saw(routed(0))
    assert found.exchanges(rows=1, sweeps_left=100) == []
    for _ in range(20):
        found.saw(routed(7))
    assert found.exchanges(rows=1, sweeps_left=100) == [Exchange(ID[0, 0], ID[0, 7])]


def test_looks_become_rare():
    found, looks = followers([(0, 0)]), []
    for sweep in range(1, 70):
        found.saw(routed())
        if found.due():
            looks.append(sweep)
            found.exchanges(rows=1, sweeps_left=100)
    assert looks == [1, 2, 4, 8, 16, 32, 48, 64]


@pytest.fixture(scope="module")
def skewed(checkpoint_of):
    """A mixture under a budget in which some of its experts stay."""
    folder = checkpoint_of("olmoe-e64")
    job = workload(PROMPTS, 24)
    return folder, least_memory(folder, job) * 3 // 2


def on_demand(llm):
    """A plan whose every sweep reads what is routed."""
    plan = llm.plan(workload(PROMPTS, 24))
    return replace(plan, on_demand_rows=0, policy=replace(plan.policy, schedule="on_demand"))


def test_answers_are_those_of_experts_that_stay_put(skewed):
    folder, memory = skewed
    found, read = {}, {}
    for moving in (False, True):
        with open_llm(folder, memory, follow_routing=moving) as llm:
            llm.use(on_demand(llm))
            record = llm.new_record()
            found[moving] = exactly(
                event.output
                for event in llm.session.run(iter(llm_prompts(llm)), record)
                if hasattr(event, "output")
            )
            read[moving] = record.bytes_read
            stay = llm.session._schedules._policy.resident
            assert (stay != llm.session.policy.resident) is moving
            held = {b.index for b in llm.session._workspace.buffers if b.name == "page"}
            assert stay <= held
            assert len(held) == len(llm.session.policy.resident)
    assert sorted(found[True]) == sorted(found[False])
    assert read[True] < read[False], "random routers have favourites"


def llm_prompts(llm):
    from headrace.engine.answers import Prompt

    return [Prompt(str(i), tokens, greedy(24)) for i, tokens in enumerate(PROMPTS)]


def test_a_failed_exchange_changes_nothing(skewed, monkeypatch):
    folder, memory = skewed
    with open_llm(folder, memory, follow_routing=True) as llm:
        llm.use(on_demand(llm))
        session = llm.session
        with monkeypatch.context() as patch:
            patch.setattr(session._workspace, "exchange", _fails)
            with pytest.raises(StorageError):
                list(session.run(iter(llm_prompts(llm))))
        assert session._followers.resident == session.policy.resident
        again = [e for e in session.run(iter(llm_prompts(llm))) if hasattr(e, "output")]
        assert len(again) == len(PROMPTS)


def test_a_page_that_cannot_be_read_leaves_the_other_in_place(skewed, monkeypatch):
    folder, memory = skewed
    with open_llm(folder, memory, follow_routing=True) as llm:
        llm.use(on_demand(llm))
        space, pages = llm.session._workspace, llm.loaded.pages
        stay = llm.session.policy.resident
        out = next(p.id for p in pages if p.expert is not None and p.id in stay)
        into = next(p.id for p in pages if p.expert is not None and p.id not in stay)
        before = bytes(space._memory[Buffer("page", out)])
        with monkeypatch.context() as patch:
            patch.setattr(space.table, "read", _fails)
            with pytest.raises(StorageError):
                space.exchange(out, into)
        assert bytes(space._memory[Buffer("page", out)]) == before


def _fails(*_):
    raise StorageError("gone")
