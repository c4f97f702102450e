"""What a model is, in numbers. A dense model is one expert that every row visits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.errors import UnsupportedModelError

ITEM_BYTES: Mapping[str, int] = {"f32": 4, "bf16": 2, "f16": 2}
"""Bytes per element of the formats in which weights may be stored."""


class KvFormat(NamedTuple):
    """Bytes of one number in the KV cache, and of the scale of each token and head."""

    item: int
    scale: int = 0


KV_FORMATS: Mapping[str, KvFormat] = {
    **{name: KvFormat(item) for name, item in ITEM_BYTES.items()},
    "int8": KvFormat(1, scale=4),
}
"""The formats in which keys and values may be stored."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base frequency and the scaling of config.json, if any.

    ``scaling`` holds the checkpoint's own keys (``rope_type`` and its parameters).
    """

    theta: float = 10000.0
    scaling: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """Dimensions and switches of one model.

    Shapes use: D hidden, H heads, KV kv_heads, d head_dim, E experts, k top_k, W ffn_width,
    V vocab. ``experts == 1`` means dense (no router). Weights are ``[out, in]``.
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    vocab: int
    experts: int = 1
    top_k: int = 1
    renormalise: bool = True
    tied_embeddings: bool = False
    norm_eps: float = 1e-5
    rope: Rope = field(default_factory=Rope)
    max_positions: int = 4096
    sliding_window: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    clip_qkv: float | None = None
    weight_dtype: str = "bf16"

    def __post_init__(self) -> None:
        sizes = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn_width", "vocab")
        for name in (*sizes, "experts", "top_k", "max_positions"):
            if getattr(self, name) < 1:
                raise UnsupportedModelError(
                    f"{name} of the model", expected="at least 1", got=getattr(self, name)
                )
        if self.heads % self.kv_heads:
            raise UnsupportedModelError(
                "query heads must be a multiple of KV heads",
                got=f"{self.heads} query and {self.kv_heads} KV heads",
            )
        if self.top_k > self.experts:
            raise UnsupportedModelError(
                "top_k above the number of experts", got=f"{self.top_k} of {self.experts}"
            )
        if self.weight_dtype not in ITEM_BYTES:
            raise UnsupportedModelError(
                "weight format", expected=", ".join(ITEM_BYTES), got=self.weight_dtype
            )

    @property
    def is_moe(self) -> bool:
        """Whether rows are routed (more than one expert)."""
        return self.experts > 1

    @property
    def q_size(self) -> int:
        """Width of the query projection, H d."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the key (or value) projection, KV d."""
        return self.kv_heads * self.head_dim

    def kv_bytes_per_token(self, kv_dtype: str) -> int:
        """Bytes of KV one token takes over all layers."""
        return self.layers * self.kv_layer_bytes(kv_dtype)

    def kv_layer_bytes(self, kv_dtype: str) -> int:
        """Bytes of KV one token takes in one layer: 2 KV (d x item + scale)."""
        form = KV_FORMATS[kv_dtype]
        return 2 * self.kv_heads * (self.head_dim * form.item + form.scale)

    def layer_tensors(self) -> dict[str, tuple[int, ...]]:
        """Logical name -> shape of the tensors every row of a layer uses (not the experts)."""
        D, Q, KV = self.hidden, self.q_size, self.kv_size
        shapes: dict[str, tuple[int, ...]] = {"attn_norm": (D,), "ffn_norm": (D,)}
        shapes |= {"q": (Q, D), "k": (KV, D), "v": (KV, D), "o": (D, Q)}
        if self.qkv_bias:
            shapes |= {"q_bias": (Q,), "k_bias": (KV,), "v_bias": (KV,)}
        if self.o_bias:
            shapes["o_bias"] = (D,)
        if self.qk_norm:
            shapes |= {"q_norm": (Q,), "k_norm": (KV,)}
        if self.is_moe:
            shapes["router"] = (self.experts, D)
        return shapes

    def expert_tensors(self) -> dict[str, tuple[int, ...]]:
        """Logical name -> shape of one expert (of the FFN, when dense)."""
        D, W = self.hidden, self.ffn_width
        shapes: dict[str, tuple[int, ...]] = {"gate": (W, D), "up": (W, D), "down": (D, W)}
        if self.mlp_bias:
            shapes |= {"gate_bias": (W,), "up_bias": (W,), "down_bias": (D,)}
        return shapes

    def global_tensors(self) -> dict[str, tuple[int, ...]]:
        """Logical name -> shape of the tensors outside the layers. A tied head is ``embed``."""
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab, self.hidden)}
        if not self.tied_embeddings:
            shapes["head"] = (self.vocab, self.hidden)
        shapes["final_norm"] = (self.hidden,)
        return shapes

    def parameters(self) -> int:
        """Number of weights stored."""
        return self._count(self.experts)

    def active_parameters(self) -> int:
        """Number of weights one token is multiplied with or looked up in."""
        return self._count(self.top_k)

    def _count(self, experts: int) -> int:
        def total(shapes: Mapping[str, tuple[int, ...]]) -> int:
            return sum(map(math.prod, shapes.values()))

        per_layer = total(self.layer_tensors()) + experts * total(self.expert_tensors())
        return self.layers * per_layer + total(self.global_tensors())
