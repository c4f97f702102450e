"""The page layout: every weight in exactly one page, in order of use, none cut along a sum."""

from __future__ import annotations

import itertools
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from headrace.specs.model import ITEM_BYTES, ModelSpec, SharedExpert
from headrace.specs.pages import Role, page_layout


@st.composite
def models(draw):
    kv = draw(st.integers(1, 3))
    experts = draw(st.sampled_from([1, 2, 4, 7]))
    mixture = {}
    if experts > 1 and draw(st.booleans()):
        gated = draw(st.booleans())
        mixture = {"shared": SharedExpert(draw(st.integers(1, 40)), gated), "dense_layers": 1}
        mixture["dense_width"] = draw(st.integers(1, 40))
    return ModelSpec(
        architecture="x",
        layers=draw(st.integers(1, 3)),
        hidden=draw(st.integers(1, 24)),
        heads=kv * draw(st.integers(1, 3)),
        kv_heads=kv,
        head_dim=draw(st.sampled_from([2, 4, 6])),
        ffn_width=draw(st.integers(1, 30)),
        vocab=draw(st.integers(1, 60)),
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        weight_dtype=draw(st.sampled_from(sorted(ITEM_BYTES))),
        **mixture,
    )


@given(models(), st.integers(1, 4000))
def test_every_row_of_every_tensor_belongs_to_exactly_one_page(model, cut):
    covered = defaultdict(list)
    for page in page_layout(model, cut):
        for piece in page.slices:
            covered[page.layer, page.expert, piece.tensor].append((piece.start, piece.stop))
    wanted = {(None, None, n): s[0] for n, s in model.global_tensors().items()}
    for layer in range(model.layers):
        wanted |= {(layer, None, n): s[0] for n, s in model.layer_tensors(layer).items()}
        for expert in range(model.experts_in(layer)):
            shapes = model.expert_tensors(layer, expert)
            wanted |= {(layer, expert, n): s[0] for n, s in shapes.items()}
    assert covered.keys() == wanted.keys()
    for key, pieces in covered.items():
        edges = sorted(pieces)
        assert edges[0][0] == 0
        assert edges[-1][1] == wanted[key]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))


@given(models(), st.integers(1, 4000))
def test_bytes_add_up_and_stay_under_the_cut(model, cut):
    pages = page_layout(model, cut)
    item = ITEM_BYTES[model.weight_dtype]
    assert [p.id for p in pages] == list(range(len(pages)))
    assert sum(p.bytes for p in pages) == model.parameters() * item
    one_row = item * (2 * model.hidden + model.widest + 2)
    for page in pages:
        if page.role not in (Role.LAYER, Role.FINAL):
            biases = sum(s.elements for s in page.slices if not s.columns) * item
            assert page.bytes - biases <= max(cut, one_row)


@given(models(), st.integers(1, 4000))
def test_pages_stand_in_the_order_of_use(model, cut):
    rank = {Role.EMBED: -1, Role.FINAL: model.layers, Role.HEAD: model.layers + 1}
    inner = [Role.LAYER, Role.EXPERT, Role.EXPERT_UP, Role.EXPERT_DOWN]
    keys = [
        (rank[p.role], 0, 0, 0)
        if p.layer is None
        else (p.layer, p.expert if p.expert is not None else -1, inner.index(p.role), p.part)
        for p in page_layout(model, cut)
    ]
    assert keys == sorted(keys)


def test_labels_are_short_and_distinct():
    model = ModelSpec("x", 2, 8, 2, 1, 4, 64, 40, experts=2, top_k=1)
    labels = [p.label for p in page_layout(model, 600)]
    assert len(set(labels)) == len(labels)
    assert {"embed.0", "L0", "L1.E1.up0", "L1.E1.down1", "final.0", "head.1"} <= set(labels)
    assert "L1.E0" in [p.label for p in page_layout(model)]
