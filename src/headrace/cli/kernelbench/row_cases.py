"""Kernels of one pass over rows: look-up, norm, rotation, router, sampling. Shapes: M rows of D."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from headrace.cli.kernelbench.case import Case, Run
from headrace.cli.kernelbench.linear_cases import LAYERS
from headrace.engine.sampler import Sampler, SampleRow
from headrace.kernels.routed import RouterRule, Routing
from headrace.kernels.scratch import Scratch
from headrace.kernels.select import Kernels
from headrace.specs.model import ModelSpec
from headrace.specs.sampling import SamplingParams

ROWS, QUICK_ROWS = (1, 32, 256), (1, 256)
TOP_P = 0.9


def embed(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """Rows of 2,048 of a table of 32,000 tokens (131 MB), none twice before all were taken."""
    for M in QUICK_ROWS if quick else ROWS:
        yield _embed_case(kernels, form, M, 32000, 2048)


def rms_norm(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """Rows of 1,024, which the op before has left in the cache."""
    for M in QUICK_ROWS if quick else ROWS:
        yield _norm_case(kernels, form, M, 1024)


def rope(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """Heads of 64 rotated in place, halves against each other."""
    for M in QUICK_ROWS if quick else ROWS:
        yield _rope_case(kernels, form, M, 16, 64)


def router(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """Scores, softmax, top-k, and rows sorted by expert, of 8 and of 64 experts."""
    for model in LAYERS.values():
        for M in QUICK_ROWS if quick else ROWS:
            yield _router_case(kernels, form, M, model)


def sample(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """Tokens drawn from a vocabulary of 32,000: greedily, and with temperature and top-p."""
    for name, params in (
        ("greedy", SamplingParams(temperature=0.0)),
        ("top_p", SamplingParams(top_p=TOP_P)),
    ):
        for M in (32,) if quick else (1, 32, 128):
            yield _sample_case(kernels, form, M, 32000, name, params)


def _embed_case(kernels: Kernels, form: str, M: int, V: int, D: int) -> Case:
    table, out = torch.ones(V, D, dtype=torch.bfloat16), torch.empty(M, D)
    order = torch.randperm(V)
    tokens = [order[i : i + M] for i in range(0, V - M + 1, M)]
    memory = torch.empty(6 * M * D, dtype=torch.uint8)
    return Case(
        kernel="embed",
        shape=f"{M}x{D} of {V}",
        format=form,
        run=lambda i: kernels.embed(tokens[i % len(tokens)], table, 0, out, Scratch(memory)),
        bytes=2.0 * M * D,
        torch_ways=lambda: {
            "embedding": lambda i: functional.embedding(tokens[i % len(tokens)], table).float()
        },
    )


def _norm_case(kernels: Kernels, form: str, M: int, D: int) -> Case:
    x, out, weight = torch.randn(M, D), torch.empty(M, D), torch.ones(D).to(torch.bfloat16)
    wide = weight.float()
    return Case(
        kernel="rms_norm",
        shape=f"{M}x{D}",
        format=form,
        run=lambda i: kernels.rms_norm(x, weight, 1e-5, out),
        bytes=8.0 * M * D,
        bytes_from="cache",
        torch_ways=lambda: {"rms_norm": lambda i: functional.rms_norm(x, (D,), wide, 1e-5)},
    )


def _rope_case(kernels: Kernels, form: str, M: int, heads: int, d: int) -> Case:
    x, temp = torch.randn(M, heads, d), torch.empty(M * heads * d)
    angles = torch.rand(M, d // 2)
    cos, sin = angles.cos(), angles.sin()
    return Case(
        kernel="rope",
        shape=f"{M}x{heads}x{d}",
        format=form,
        run=lambda i: kernels.apply_rope(x, cos, sin, temp),
        bytes=8.0 * M * heads * d,
        bytes_from="cache",
        torch_ways=lambda: {"eager": partial(_torch_rope, x, cos, sin)},
    )


def _torch_rope(x: Tensor, cos: Tensor, sin: Tensor, i: int) -> Tensor:
    """As transformers does it."""
    low, high = x.chunk(2, -1)
    twice = torch.cat((cos, cos), -1)[:, None], torch.cat((sin, sin), -1)[:, None]
    return x * twice[0] + torch.cat((-high, low), -1) * twice[1]


def _router_case(kernels: Kernels, form: str, M: int, model: ModelSpec) -> Case:
    E, k, D = model.experts, model.top_k, model.hidden
    x, weight = torch.randn(M, D), torch.randn(E, D).to(torch.bfloat16)
    rule = RouterRule(renormalise=True)
    memory, routing = torch.empty(4 << 20, dtype=torch.uint8), _empty_routing(M, E, k)
    return Case(
        kernel="router",
        shape=f"{M}x{D}, {k} of {E}",
        format=form,
        run=lambda i: kernels.route(x, weight, rule, routing, Scratch(memory)),
        bytes=2.0 * E * D + 4.0 * M * D,
        flops=2.0 * M * E * D,
        bytes_from="cache",
        torch_ways=lambda: {"eager": partial(_torch_route, x, weight.float(), k)},
    )


def _torch_route(x: Tensor, weight: Tensor, k: int, i: int) -> Tensor:
    gates, ids = functional.linear(x, weight).softmax(-1).topk(k, -1)
    gates /= gates.sum(-1, keepdim=True)
    return ids.view(-1).argsort(stable=True)


def _empty_routing(rows: int, experts: int, k: int) -> Routing:
    return Routing(
        torch.empty(rows, k, dtype=torch.int32),
        torch.empty(rows, k),
        torch.empty(rows * k, dtype=torch.int32),
        torch.empty(rows * k),
        torch.zeros(experts + 1, dtype=torch.int64),
    )


def _sample_case(
    kernels: Kernels, form: str, M: int, V: int, name: str, params: SamplingParams
) -> Case:
    sampler, logits = Sampler(0, V, kernels), torch.randn(M, V)
    rows = [SampleRow(params, str(i)) for i in range(M)]
    ways: dict[str, Run] = {
        "greedy": lambda i: logits.argmax(-1),
        "top_p": partial(_torch_top_p, logits),
    }
    return Case(
        kernel="sample",
        shape=f"{M}x{V}, {name}",
        format=form,
        run=lambda i: sampler.sample(logits, rows),
        bytes=4.0 * M * V,
        bytes_from="cache",
        torch_ways=lambda: {"eager": ways[name]},
    )


def _torch_top_p(logits: Tensor, i: int) -> Tensor:
    ordered, ids = logits.softmax(-1).sort(-1, descending=True)
    kept = torch.where(ordered.cumsum(-1) - ordered < TOP_P, ordered, 0.0)
    return ids.gather(-1, torch.multinomial(kept, 1))
