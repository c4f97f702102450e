"""What is asked for ahead, and what is not."""

from __future__ import annotations

import pytest

from headrace.models.ahead import Ahead
from headrace.specs.model import ModelSpec
from headrace.specs.pages import Role, page_layout

MODEL = ModelSpec("mixtral", 2, 64, 4, 2, 16, 32, 256, experts=2, top_k=1)
PAGES = page_layout(MODEL, cut_bytes=20_000)
ALL = frozenset(page.id for page in PAGES)


class Names:
    """Stands for Weights: a tensor is its page's label and its name."""

    def __init__(self, unknown=()):
        self.unknown = unknown

    def known(self, page):
        label = PAGES[page].label
        names = ("q", "o", "gate", "head")
        return None if label in self.unknown else {name: (label, name) for name in names}


def asked(resident=ALL, unknown=()):
    told = []
    return Ahead(PAGES, resident, Names(unknown), told.append), told


def test_a_sweep_asks_for_what_its_next_task_reads():
    ahead, told = asked()
    for layer in (0, 1):
        ahead.output(layer)
        ahead.expert(layer, 1)
        ahead.layer(layer + 1)
    parts = sum(page.role is Role.HEAD for page in PAGES)
    assert parts == 2
    for part in range(parts):
        ahead.head(part + 1)
    assert told == [
        ("L0", "o"), ("L0.E1", "gate"), ("L1", "q"),
        ("L1", "o"), ("L1.E1", "gate"), ("head.0", "head"),
        ("head.1", "head"), ("L0", "q"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("role", "left"),
    [
        (Role.LAYER, ["gate", "head"]),
        (Role.EXPERT, ["o", "q", "head", "q"]),
        (Role.HEAD, ["o", "gate", "q", "q"]),
    ],
)
def test_pages_that_move_are_not_asked_for(role, left):
    ahead, told = asked(resident=frozenset(p.id for p in PAGES if p.role is not role))
    ahead.output(0)
    ahead.expert(0, 0)
    ahead.layer(1)
    ahead.head(1)
    ahead.head(2)
    assert [name for _, name in told] == left


def test_pages_never_used_before_are_not_asked_for():
    ahead, told = asked(unknown={"L0", "L1.E0"})
    ahead.output(0)
    ahead.expert(1, 0)
    assert told == []
