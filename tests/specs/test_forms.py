"""Bytes and cuts of tensors in their stored form."""

from __future__ import annotations

import pytest

from headrace.errors import UnsupportedModelError
from headrace.specs.forms import Form
from headrace.specs.model import ModelSpec
from headrace.specs.pages import page_layout

FORMS = {
    "f32": (Form("f32"), 4 * 24 * 64),
    "bf16": (Form("bf16"), 2 * 24 * 64),
    "int8": (Form("i8", None, "bf16"), 24 * 64 + 2 * 24),
    "int8 in groups of 32": (Form("u8", 32, "bf16"), 24 * 64 + 2 * 24 * 2),
    "int4 in groups of 32": (Form("u4", 32, "f32"), 24 * 32 + 4 * 24 * 2),
    "int4 in groups of 32, asymmetric": (
        Form("u4", 32, "bf16", True),
        24 * 32 + 48 * 2 + 3 * 2 * 4,
    ),
}


@pytest.mark.parametrize("name", list(FORMS))
def test_bytes_of_rows_add_up_to_those_of_the_parts(name):
    form, whole = FORMS[name]
    assert form.label == name
    assert form.nbytes(0, 24, 64) == whole
    assert form.nbytes(0, 8, 64) + form.nbytes(8, 24, 64) == whole


@pytest.mark.parametrize("dtype", ["i16", "f8_e4m3"])
def test_formats_that_do_not_run_are_refused(dtype):
    with pytest.raises(UnsupportedModelError, match="format"):
        Form(dtype)
    with pytest.raises(UnsupportedModelError, match="format of scales"):
        Form("i8", None, dtype)


@pytest.mark.parametrize("cut_bytes", [200, 3000, 10**6])
def test_a_model_of_integers_is_laid_out_by_their_bytes(cut_bytes):
    sizes = {"layers": 1, "hidden": 64, "heads": 2, "kv_heads": 2, "head_dim": 32}
    model = ModelSpec("x", **sizes, ffn_width=96, vocab=40, integers=Form("u4", 32, "bf16", True))
    pages = page_layout(model, cut_bytes)
    slices = [s for page in pages for s in page.slices]
    assert {s.tensor for s in slices if s.form.integer} == {
        "q",
        "k",
        "v",
        "o",
        "gate",
        "up",
        "down",
    }
    assert all(s.start % 8 == 0 for s in slices if s.form.integer)
    assert sum(p.bytes for p in pages) == sum(
        model.form_of(n).nbytes(0, s[0], s[1] if len(s) > 1 else 0)
        for n, s in (
            model.layer_tensors() | model.expert_tensors() | model.global_tensors()
        ).items()
    )
