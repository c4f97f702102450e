"""What a model is, in numbers. A dense model is one expert that every row visits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.errors import UnsupportedModelError
from headrace.specs.forms import MATRICES, Form

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

EXPERT_BITS: Mapping[str, float] = {"f32": 32, "bf16": 16, "f16": 16, "f8": 8, "mxfp4": 4.25}
"""Bits per weight of the formats in which published experts come, scales included: ``mxfp4``
shares a byte of scale among 32 weights, ``f8`` a float among 16,384 (not counted)."""

ROUTERS = ("softmax", "sigmoid")

Shapes = dict[str, tuple[int, ...]]
"""Logical name -> shape of tensors."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base frequency and the scaling of config.json, if any.

    ``scaling`` holds the checkpoint's own keys (``rope_type`` and its parameters).
    """

    theta: float = 10000.0
    scaling: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): per token, one latent vector
    of ``kv_rank`` and a rotary key of ``rope_dim``, shared by all heads, are all that is cached.

    A head's key is ``nope_dim`` out of the latent and the rotary part, its value ``v_dim``;
    queries pass through ``q_rank`` dimensions, or none when it is None.
    """

    kv_rank: int
    rope_dim: int
    nope_dim: int
    v_dim: int
    q_rank: int | None = None

    @property
    def cached(self) -> int:
        """Elements that the cache holds per token and layer."""
        return self.kv_rank + self.rope_dim

    @property
    def qk_dim(self) -> int:
        """Width of one head's query and key."""
        return self.nope_dim + self.rope_dim


@dataclass(frozen=True)
class SharedExpert:
    """An expert of ``width`` that every row of a routed layer visits besides its own; ``gated``
    scales its output by the sigmoid of one more product per row."""

    width: int
    gated: bool = False


@dataclass(frozen=True)
class Router:
    """How scores become gates, beyond ``renormalise`` and ``top_k`` of the model.

    ``bias`` is one number per expert, added to its score (to choose, only, when ``kind`` is
    sigmoid); experts stand in ``groups`` of which the best ``top_groups`` may be chosen from;
    gates are multiplied by ``scale``.
    """

    kind: str = "softmax"
    bias: bool = False
    groups: int = 1
    top_groups: int = 1
    scale: float = 1.0


@dataclass(frozen=True)
class ModelSpec:
    """Dimensions and switches of one model.

    Shapes use: D hidden, H heads, KV kv_heads, d head_dim, E experts, k top_k, W ffn_width,
    V vocab. ``experts == 1`` means dense (no router). Weights are ``[out, in]``. The first
    ``dense_layers`` of a mixture have one expert of ``dense_width`` and no router. A shared
    expert has number E. Where ``sliding_window`` is set, every ``window_every``-th layer keeps
    to it, the first included. ``qk_norm_heads`` normalises each head by itself, with one weight
    [d] for all. ``expert_dtype`` is the format of matrices of experts where it is not
    ``weight_dtype``, ``integers`` the form of all matrices of layers that quantising turned into
    integers. A model that is not ``causal`` lets every row see all tokens of its
    sequence.
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
    mla: Mla | None = None
    shared: SharedExpert | None = None
    router: Router = field(default_factory=Router)
    dense_layers: int = 0
    dense_width: int = 0
    qk_norm_heads: bool = False
    sinks: bool = False
    window_every: int = 1
    causal: bool = True
    expert_dtype: str | None = None
    integers: Form | None = None

    def __post_init__(self) -> None:
        sizes = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn_width", "vocab")
        for name in (*sizes, "experts", "top_k", "max_positions", "window_every"):
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
        self._check_mixture()

    def _check_mixture(self) -> None:
        if self.expert_dtype not in (None, *EXPERT_BITS):
            raise UnsupportedModelError(
                "format of experts", expected=", ".join(EXPERT_BITS), got=self.expert_dtype
            )
        if self.router.kind not in ROUTERS:
            raise UnsupportedModelError(
                "router", expected=" or ".join(ROUTERS), got=self.router.kind
            )
        if self.experts % self.router.groups or self.router.top_groups > self.router.groups:
            raise UnsupportedModelError(
                "router groups",
                expected="groups of equal size, and no more chosen than there are",
                got=f"{self.router.top_groups} of {self.router.groups} over {self.experts} experts",
            )
        if not self.is_moe and (self.shared or self.dense_layers):
            raise UnsupportedModelError("shared experts and dense layers belong to mixtures")
        if not 0 <= self.dense_layers <= self.layers or (
            self.dense_layers and not self.dense_width
        ):
            raise UnsupportedModelError(
                "dense first layers",
                expected=f"at most {self.layers}, with dense_width",
                got=f"{self.dense_layers} of width {self.dense_width}",
            )

    # -- attention -----------------------------------------------------------------------

    @property
    def q_size(self) -> int:
        """Width of all queries of a row: H d, or H (nope + rope) of latent attention."""
        return self.heads * (self.mla.qk_dim if self.mla else self.head_dim)

    @property
    def kv_size(self) -> int:
        """Width of the key (or value) projection, KV d."""
        return self.kv_heads * self.head_dim

    @property
    def attended_size(self) -> int:
        """Width of what attention hands to the output projection: H d, or H v_dim."""
        return self.heads * (self.mla.v_dim if self.mla else self.head_dim)

    @property
    def kv_elements(self) -> int:
        """Elements that the cache holds per token and layer: 2 KV d, or the latent vector."""
        return self.mla.cached if self.mla else 2 * self.kv_size

    def kv_bytes_per_token(self, kv_dtype: str) -> int:
        """Bytes of KV one token takes over all layers."""
        return self.layers * self.kv_layer_bytes(kv_dtype)

    def kv_layer_bytes(self, kv_dtype: str) -> int:
        """Bytes of KV one token takes in one layer: its elements, and a scale for the key and
        the value of each head, or for the latent vector."""
        form = KV_FORMATS[kv_dtype]
        scales = 1 if self.mla else 2 * self.kv_heads
        return self.kv_elements * form.item + scales * form.scale

    def window_of(self, layer: int) -> int | None:
        """How many tokens a row of ``layer`` sees at most; None without a limit."""
        return None if layer % self.window_every else self.sliding_window

    # -- experts -------------------------------------------------------------------------

    @property
    def is_moe(self) -> bool:
        """Whether rows are routed (more than one expert)."""
        return self.experts > 1

    def is_routed(self, layer: int) -> bool:
        """Whether rows of ``layer`` are routed."""
        return self.is_moe and layer >= self.dense_layers

    def experts_in(self, layer: int) -> int:
        """Experts of ``layer``: E and the shared one, or one when it is dense."""
        return self.experts + bool(self.shared) if self.is_routed(layer) else 1

    def visits_in(self, layer: int) -> int:
        """Experts that a row of ``layer`` visits: k and the shared one, or one."""
        return self.top_k + bool(self.shared) if self.is_routed(layer) else 1

    def visited_by_all(self, layer: int, expert: int) -> bool:
        """Whether every row visits ``expert`` of ``layer``: it is shared, or the layer dense."""
        return not self.is_routed(layer) or expert >= self.experts

    @property
    def widest(self) -> int:
        """Width of the widest expert of any layer."""
        shared = self.shared.width if self.shared else 0
        dense = self.dense_width if self.dense_layers else 0
        return max(self.ffn_width, shared, dense)

    # -- tensors -------------------------------------------------------------------------

    def layer_tensors(self, layer: int | None = None) -> Shapes:
        """Tensors that every row of a layer uses (not the experts). Without a ``layer``, those
        of the last one: routed, in a mixture."""
        D = self.hidden
        shapes: Shapes = {"attn_norm": (D,), "ffn_norm": (D,), **self._attention_tensors()}
        if self.o_bias:
            shapes["o_bias"] = (D,)
        if self.qk_norm:
            Q, KV = (self.head_dim,) * 2 if self.qk_norm_heads else (self.q_size, self.kv_size)
            shapes |= {"q_norm": (Q,), "k_norm": (KV,)}
        if self.sinks:
            shapes["sinks"] = (self.heads,)
        if self.is_routed(self.layers - 1 if layer is None else layer):
            shapes["router"] = (self.experts, D)
            if self.router.bias:
                shapes["router_bias"] = (self.experts,)
            if self.shared and self.shared.gated:
                shapes["shared_gate"] = (1, D)
        return shapes

    def _attention_tensors(self) -> Shapes:
        if self.mla:
            return _latent_tensors(self.mla, self.hidden, self.heads)
        D, Q, KV = self.hidden, self.q_size, self.kv_size
        shapes: Shapes = {"q": (Q, D), "k": (KV, D), "v": (KV, D), "o": (D, Q)}
        if self.qkv_bias:
            shapes |= {"q_bias": (Q,), "k_bias": (KV,), "v_bias": (KV,)}
        return shapes

    def expert_tensors(self, layer: int | None = None, expert: int = 0) -> Shapes:
        """Tensors of one expert (of the FFN, when dense). Without a ``layer``, of a routed one."""
        D, W = self.hidden, self.ffn_width
        if layer is not None and layer < self.dense_layers:
            W = self.dense_width
        elif self.shared and expert >= self.experts:
            W = self.shared.width
        shapes: Shapes = {"gate": (W, D), "up": (W, D), "down": (D, W)}
        if self.mlp_bias:
            shapes |= {"gate_bias": (W,), "up_bias": (W,), "down_bias": (D,)}
        return shapes

    def global_tensors(self) -> Shapes:
        """Tensors outside the layers. A tied head is ``embed``."""
        shapes: Shapes = {"embed": (self.vocab, self.hidden)}
        if not self.tied_embeddings:
            shapes["head"] = (self.vocab, self.hidden)
        shapes["final_norm"] = (self.hidden,)
        return shapes

    def expert_bytes(self, elements: int, matrix: bool = True) -> int:
        """Bytes that ``elements`` weights of experts take as stored; vectors keep weight_dtype."""
        if matrix and self.expert_dtype:
            return math.ceil(elements * EXPERT_BITS[self.expert_dtype] / 8)
        return elements * ITEM_BYTES[self.weight_dtype]

    def form_of(self, logical: str) -> Form:
        """How a tensor is stored, if all layers are stored alike."""
        if self.integers is not None and logical in MATRICES:
            return self.integers
        if self.expert_dtype is not None and logical in ("gate", "up", "down"):
            return Form(self.expert_dtype)
        return Form(self.weight_dtype)

    # -- totals --------------------------------------------------------------------------

    def parameters(self) -> int:
        """Number of weights stored."""
        return self._count(self.experts)

    def active_parameters(self) -> int:
        """Number of weights one token is multiplied with or looked up in."""
        return self._count(self.top_k)

    def _count(self, experts: int) -> int:
        """Weights with ``experts`` of the routed experts in each layer that has them."""
        dense = self.dense_layers if self.is_moe else 0
        routed = experts * _elements(self.expert_tensors())
        if self.shared:
            routed += _elements(self.expert_tensors(None, self.experts))
        first = dense * _elements(self.expert_tensors(0)) if dense else 0
        layers = sum(_elements(self.layer_tensors(layer)) for layer in range(self.layers))
        rest = layers + _elements(self.global_tensors())
        return first + (self.layers - dense) * routed + rest


def _latent_tensors(mla: Mla, D: int, H: int) -> Shapes:
    """Projections down to the latent vectors, their norms, and up again to the heads."""
    queries, keys_values = H * mla.qk_dim, H * (mla.nope_dim + mla.v_dim)
    shapes: Shapes = {"q": (queries, D)}
    if mla.q_rank:
        shapes = {"q_a": (mla.q_rank, D), "q_a_norm": (mla.q_rank,), "q": (queries, mla.q_rank)}
    shapes |= {"kv_a": (mla.cached, D), "kv_a_norm": (mla.kv_rank,)}
    return shapes | {"kv_b": (keys_values, mla.kv_rank), "o": (D, H * mla.v_dim)}


def _elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))
