"""Resident pages turned as they are loaded: what is turned, and that no bit of a result tells."""

from __future__ import annotations

import pytest
import torch

from headrace.engine.recipe import Recipe
from headrace.kernels.turned import TurnedWeight
from headrace.models.weights import TurnedPage, Weights
from headrace.schedule.task import Buffer
from headrace.specs.pages import Role
from tests.kernels.native.test_turned import turns
from tests.models.quantized import quantized
from tests.models.tiny import Runner, build

pytestmark = pytest.mark.skipif(
    not turns("auto"), reason="no kernels here that read turned weights"
)

PROMPT = [5, 11, 7, 3, 99, 41, 23, 64, 8, 17, 2, 90]
WIDE = {"hidden_size": 96, "intermediate_size": 64, "head_dim": 16}


def logits(runner, steps=4):
    """Of a prompt and some greedy tokens after it."""
    sequence, found = runner.sequence(PROMPT), []
    for step in range(steps):
        rows = 1 if step else len(PROMPT)
        found.append(runner.sweep([sequence.segment(0, rows)]))
        sequence.tokens.append(int(found[-1].argmax()))
    return torch.cat(found)


def names_turned(runner):
    """Role of a page -> logical names that some page of it has turned."""
    found: dict[Role, set[str]] = {}
    for page in runner.pages:
        view = runner.space.view(Buffer("page", page.id))
        assert isinstance(view, TurnedPage)
        found.setdefault(page.role, set()).update(view.names)
    return found


@pytest.mark.parametrize("cut_bytes", [1 << 20, 9000])
@pytest.mark.parametrize("case", ["mixtral-e5-window-tied", "olmoe-e64", "llama-gqa"])
def test_logits_keep_their_bits(case, cut_bytes, tmp_path):
    build(case, tmp_path, torch.bfloat16, **WIDE)
    plain, turned = (Runner(tmp_path, cut_bytes=cut_bytes, turned=t) for t in (False, True))
    assert torch.equal(logits(plain), logits(turned))
    names = names_turned(turned)
    assert names[Role.LAYER] == {"q", "k", "v", "o"}
    assert names[Role.HEAD] == (set() if "tied" in case else {"head"})
    assert not names.get(Role.EMBED)
    assert not names[Role.FINAL]
    experts = set().union(*(n for role, n in names.items() if "expert" in role))
    assert experts == {"gate", "up", "down"}


def test_logits_of_integer_weights_keep_their_bits(tmp_path):
    folder = quantized("mixtral-e8", tmp_path, Recipe("int8"), hidden_size=128)
    plain, turned = (Runner(folder, turned=t) for t in (False, True))
    assert torch.equal(logits(plain), logits(turned))
    assert {"gate", "up", "down"} <= names_turned(turned)[Role.EXPERT]


@pytest.mark.parametrize(("kernels", "activations"), [("reference", "int8"), ("auto", "bf16")])
def test_kernels_that_read_rows_find_them_as_stored(kernels, activations, tmp_path):
    build("llama-gqa", tmp_path, torch.bfloat16, **WIDE)
    runner = Runner(tmp_path, kernels=kernels, activations=activations, turned=True)
    if kernels == "auto" and turns("bf16"):
        pytest.skip("rounded activations meet turned weights here")
    assert not set().union(*names_turned(runner).values())


def test_an_exchanged_page_is_turned_like_one_that_was_loaded(tmp_path):
    build("mixtral-e8", tmp_path, torch.bfloat16, **WIDE)
    whole = Runner(tmp_path, turned=True)
    part = Runner(tmp_path, "on_demand", turned=True, resident_experts=1)
    out = next(b.index for b in part.space.buffers if b.name == "page" and
               part.pages[b.index].expert is not None)  # fmt: skip
    into = next(p.id for p in part.pages if p.expert is not None and p.id != out)
    part.space.exchange(out, into)
    view, wanted = (r.space.view(Buffer("page", into)) for r in (part, whole))
    assert view.names == wanted.names >= {"gate", "up", "down"}
    found, expected = Weights(part.table).of(into, view), Weights(whole.table).of(into, wanted)
    for name in view.names:
        assert isinstance(found[name], TurnedWeight)
        assert torch.equal(found[name].lies_in, expected[name].lies_in)
