"""NaN and infinity in stored weights are found by their bits, wherever they lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace.errors import StorageError
from headrace.memory import nonfinite
from headrace.memory.checkpoint import Checkpoint
from headrace.memory.nonfinite import find_nonfinite

from .folders import safetensors_bytes

FORMATS = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f8_e5m2": torch.float8_e5m2,
    "f8_e4m3": torch.float8_e4m3fn,
}


def stored(folder: Path, tensors: dict[str, tuple[str, torch.Tensor]]) -> Checkpoint:
    entries = {
        name: (dtype, tuple(t.shape), t.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, (dtype, t) in tensors.items()
    }
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(entries))
    return Checkpoint.open(folder)


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_bit_pattern_of_a_format(tmp_path: Path, dtype: str) -> None:
    kind = FORMATS[dtype]
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16)
    if dtype in ("bf16", "f16"):
        values = patterns.view(kind)
    elif dtype.startswith("f8"):
        values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(kind)
    else:  # the high bits decide
        wide = torch.zeros(1 << 16, kind.itemsize // 2, dtype=torch.uint16)
        wide[:, -1] = patterns
        wide[7::2, 0] = 1
        values = wide.view(kind)[:, 0]
    bad = ~values.double().isfinite()
    (found,) = find_nonfinite(stored(tmp_path, {"t": (dtype, values)}))
    assert found.count == int(bad.sum())
    assert found.index == (int(bad.nonzero()[0]),)


def test_tensors_are_named_with_layer_and_expert(tmp_path: Path) -> None:
    bad = torch.ones(3, 5)
    bad[1, 2], bad[2, 4] = torch.nan, -torch.inf
    tensors = {
        "model.layers.7.mlp.experts.12.up_proj.weight": ("f32", bad),
        "model.norm.weight": ("f32", torch.full((4,), torch.inf)),
        "model.embed_tokens.weight": ("f32", torch.ones(4, 4)),
        "ids": ("i32", torch.full((4,), -1, dtype=torch.int32)),
        "scalar": ("f32", torch.tensor(torch.nan)),
    }
    found = list(find_nonfinite(stored(tmp_path, tensors)))
    assert [(f.layer, f.expert, f.count, f.index) for f in found] == [
        (7, 12, 2, (1, 2)),
        (None, None, 4, (0,)),
        (None, None, 1, (0,)),
    ]
    assert "up_proj.weight (layer 7, expert 12) holds 2 NaN" in str(found[0])


def test_chunks_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonfinite, "CHUNK_BYTES", 16)
    values = torch.zeros(50)
    values[[21, 22, 49]] = torch.nan
    pulses: list[None] = []
    (found,) = find_nonfinite(stored(tmp_path, {"t": ("f32", values)}), lambda: pulses.append(None))
    assert (found.count, found.index) == (3, (21,))
    assert len(pulses) == 13


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, {"t": ("f32", torch.zeros(50))})
    with checkpoint.files[0].open("r+b") as file:
        file.truncate(100)
    with pytest.raises(StorageError, match="shorter"):
        list(find_nonfinite(checkpoint))
