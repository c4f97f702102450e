"""The native module equals its NumPy definition on every input, or says that it is missing."""

import importlib
import logging
import sys

import numpy as np
import pytest

from headrace.kernels import native

FORMS = ("bf16", "fp16")
ALL_HALVES = np.arange(65536, dtype=np.uint16)

needs_native = pytest.mark.skipif(not native.available(), reason="native kernels not built")


def definition(source: np.ndarray, form: str) -> np.ndarray:
    out = np.empty(source.shape, np.float32)
    native._widen_numpy(source, out, form)
    return out


def paths(form: str) -> list[str]:
    needed = {"avx2"} if form == "bf16" else {"avx2", "f16c"}
    return ["auto", "plain"] + (["avx2"] if needed <= native.cpu_features() else [])


@needs_native
@pytest.mark.parametrize("form", FORMS)
def test_every_path_gives_the_same_bits_for_every_input(form):
    for path in paths(form):
        out = np.empty(65536, np.float32)
        native.widen(ALL_HALVES, out, form, path)
        assert np.array_equal(out.view(np.uint32), definition(ALL_HALVES, form).view(np.uint32))


@needs_native
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 15, 16, 17, 1000])
def test_any_length_and_alignment_and_nothing_beyond_the_end(form, count):
    for path in paths(form):
        for shift in (0, 1, 3):
            source = ALL_HALVES[15000 + shift : 15000 + shift + count]
            out = np.full(count + 4, -1, np.float32)
            native.widen(source, out[1 : count + 1], form, path)
            assert np.array_equal(out[1 : count + 1], definition(source, form))
            assert out[0] == -1
            assert np.all(out[count + 1 :] == -1)


@needs_native
def test_tensors_are_written_in_place():
    torch = pytest.importorskip("torch")
    weights = torch.randn(333).to(torch.bfloat16)
    out = torch.empty(333)
    native.widen(weights.view(torch.uint16), out, "bf16")
    assert torch.equal(out, weights.float())


@needs_native
def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="same length"):
        native.widen(ALL_HALVES, np.empty(3, np.float32), "bf16")
    with pytest.raises(TypeError):
        native.widen(ALL_HALVES, np.empty(65536, np.float64), "bf16")
    with pytest.raises(TypeError):
        native.widen(ALL_HALVES[::2], np.empty(32768, np.float32), "bf16")
    with pytest.raises(ValueError, match="path"):
        native.widen(ALL_HALVES, np.empty(65536, np.float32), "bf16", "sse")


@needs_native
def test_cpu_features_are_names():
    assert native.cpu_features() <= {
        "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
        "amx_bf16", "neon",
    }  # fmt: skip


def test_the_definition_agrees_with_numpy_and_with_shifting():
    assert np.array_equal(
        definition(ALL_HALVES, "fp16"),
        ALL_HALVES.view(np.float16).astype(np.float32),
        equal_nan=True,
    )
    assert definition(np.array([0x3F80, 0xC000], np.uint16), "bf16").tolist() == [1.0, -2.0]


def test_without_the_module_it_says_so_once_and_still_widens(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "headrace.kernels.native._native", None)
    with caplog.at_level(logging.WARNING):
        bare = importlib.reload(native)
        out = np.empty(2, np.float32)
        bare.widen(np.array([0x3F80, 0x4000], np.uint16), out, "bf16")
        bare.widen(np.array([0x3C00, 0x4000], np.uint16), out, "fp16")
    try:
        assert not bare.available()
        assert bare.cpu_features() == frozenset()
        assert out.tolist() == [1.0, 2.0]
        assert len([r for r in caplog.records if "native kernels" in r.message]) == 1
        with pytest.raises(ValueError, match="same length"):
            bare.widen(ALL_HALVES, np.empty(3, np.float32), "bf16")
        with pytest.raises(TypeError):
            bare.widen(ALL_HALVES, np.empty(65536), "bf16")
    finally:
        monkeypatch.undo()
        importlib.reload(native)
