"""Products with one weight, and with a layer's experts. Shapes: M rows, N x K weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from headrace.cli.kernelbench.case import Case, Run
from headrace.cli.kernelbench.weights import bytes_of, cold_set, copy_of, flops_roof, stored
from headrace.cli.overhead import policy_for
from headrace.kernels.routed import Routed, Routing
from headrace.kernels.select import Kernels
from headrace.specs.model import ModelSpec
from headrace.specs.scratch import scratch_bytes, tile_elements

ROWS, QUICK_ROWS = (1, 4, 16, 64, 256), (1, 16, 256)
TOKENS, QUICK_TOKENS = (1, 8, 32, 128), (1, 32)

LAYERS = {
    "mixtral-like": ModelSpec("mixtral", 1, 1024, 16, 4, 64, 3584, 32000, experts=8, top_k=2),
    "olmoe-like": ModelSpec("olmoe", 1, 1024, 16, 16, 64, 512, 32000, experts=64, top_k=8),
}
"""One layer of few wide experts, and of many narrow ones."""


def linear(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """Gate of an expert, a square projection; all rows counts."""
    for rows, columns in ((3584, 1024),) if quick else ((3584, 1024), (4096, 4096)):
        yield from _products(kernels, "linear", form, QUICK_ROWS if quick else ROWS, rows, columns)


def logits(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """The head of a vocabulary of 32,000."""
    yield from _products(kernels, "logits", form, (1, 32) if quick else (1, 32, 128), 32000, 1024)


def experts(kernels: Kernels, form: str, quick: bool) -> Iterator[Case]:
    """All experts of a layer that T tokens visit, in one call: gather, gated product, down, add."""
    for name, model in LAYERS.items():
        if quick and name != "mixtral-like":
            continue
        layer = _layer(model, form)
        layers = [layer, [{k: copy_of(w) for k, w in e.items()} for e in layer]]
        for tokens in QUICK_TOKENS if quick else TOKENS:
            yield _experts_case(kernels, name, model, layers, tokens, form)


def _products(
    kernels: Kernels, kernel: str, form: str, rows: tuple[int, ...], N: int, K: int
) -> Iterator[Case]:
    weights = cold_set(stored(N, K, form))
    tile = torch.empty(tile_elements(N, K))
    for M in rows:
        x, out = torch.randn(M, K), torch.empty(M, N)

        def run(i: int, x: Tensor = x, out: Tensor = out) -> None:
            kernels.linear(x, weights[i % len(weights)], out, tile)

        yield Case(
            kernel=kernel,
            shape=f"{M}x{N}x{K}",
            format=form,
            run=run,
            bytes=bytes_of(weights[0]) + 4.0 * M * (N + K),
            flops=2.0 * M * N * K,
            flops_on=flops_roof(form),
            torch_ways=_torch_linear(M, N, K),
        )


def _torch_linear(M: int, N: int, K: int) -> Callable[[], Mapping[str, Run]]:
    """fp32 weights and bf16 ones, whatever our format: what a user of torch would keep."""

    def way(form: torch.dtype) -> Run:
        weights = cold_set(torch.randn(N, K).to(form))
        x = torch.randn(M, K).to(form)
        return lambda i: functional.linear(x, weights[i % len(weights)])

    return lambda: {"fp32": way(torch.float32), "bf16": way(torch.bfloat16)}


def _layer(model: ModelSpec, form: str) -> list[dict[str, Any]]:
    D, W = model.hidden, model.ffn_width
    first = {"gate": stored(W, D, form), "up": stored(W, D, form), "down": stored(D, W, form)}
    return [{k: copy_of(w) for k, w in first.items()} for _ in range(model.experts)]


def _experts_case(
    kernels: Kernels,
    name: str,
    model: ModelSpec,
    layers: list[list[dict[str, Any]]],
    tokens: int,
    form: str,
) -> Case:
    routing = _routing(model, tokens)
    x, hidden = torch.randn(tokens, model.hidden), torch.zeros(tokens, model.hidden)
    memory = torch.empty(scratch_bytes(model, policy_for(model, "resident")), dtype=torch.uint8)
    visited = [e for e in range(model.experts) if routing.visits(e)]
    batch = [Routed(tokens, x, hidden, routing)]
    weight_bytes = sum(bytes_of(w) for e in visited for w in layers[0][e].values())
    return Case(
        kernel="experts",
        shape=f"{name} T={tokens}",
        format=form,
        run=lambda i: kernels.experts(batch, 0, layers[i % len(layers)], memory),
        bytes=weight_bytes + 4.0 * tokens * model.hidden * (model.top_k + 2),
        flops=6.0 * tokens * model.top_k * model.hidden * model.ffn_width,
        flops_on=flops_roof(form),
        torch_ways=lambda: {
            way: _torch_experts(model, routing, x, visited, dtype)
            for way, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        },
    )


def _torch_experts(
    model: ModelSpec, routing: Routing, x: Tensor, visited: list[int], dtype: torch.dtype
) -> Run:
    """The usual loop over experts: index, three products, weighted add."""
    D, W = model.hidden, model.ffn_width
    gates = [torch.randn(W, D).to(dtype) for _ in visited]
    ups, downs = [g.clone() for g in gates], [torch.randn(D, W).to(dtype) for _ in visited]
    rows = [routing.of(e) for e in visited]
    hidden, x = torch.zeros_like(x, dtype=dtype), x.to(dtype)

    def run(i: int) -> None:
        for (index, weight), gate, up, down in zip(rows, gates, ups, downs, strict=True):
            given = x[index]
            inner = functional.silu(functional.linear(given, gate)) * functional.linear(given, up)
            out = functional.linear(inner, down) * weight[:, None].to(dtype)
            hidden.index_add_(0, index, out)

    return run


def _routing(model: ModelSpec, tokens: int) -> Routing:
    """Every token to top-k experts drawn uniformly."""
    generator = torch.Generator().manual_seed(tokens)
    k, entries = model.top_k, tokens * model.top_k
    ids = torch.rand(tokens, model.experts, generator=generator).topk(k, -1).indices.int()
    order = ids.view(-1).argsort(stable=True)
    counts = torch.bincount(ids.view(-1).long(), minlength=model.experts)
    starts = torch.zeros(model.experts + 1, dtype=torch.int64)
    starts[1:] = counts.cumsum(0)
    gates = torch.full((tokens, k), 1.0 / k)
    return Routing(ids, gates, (order // k).int(), torch.full((entries,), 1.0 / k), starts)
