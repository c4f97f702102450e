"""Native matrix kernels: close to the torch reference, and law 10: a row's bits depend on its own
values, the weights and the instruction set, on nothing else."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.kernels import native, reference
from headrace.kernels.native import matrix
from headrace.kernels.routed import Routed, Routing
from headrace.specs.scratch import tile_elements

pytestmark = pytest.mark.skipif(not native.available(), reason="built without native kernels")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PATHS = ("amx", "avx512", "avx2", "neon", "plain")


def paths(dtype: torch.dtype) -> list[str]:
    """Paths that this processor has for weights of ``dtype``, best first."""
    found = []
    for path in PATHS:
        try:
            name = matrix.path_of(dtype, path)
        except ValueError:
            continue
        if name == path:
            found.append(path)
    return found


KINDS = [(dtype, path) for dtype in DTYPES for path in (paths(dtype) if native.available() else [])]
kinds = st.sampled_from(KINDS) if KINDS else st.nothing()
sizes = st.integers(1, 70) | st.sampled_from([96, 127, 128, 129, 192, 255])
columns = st.integers(1, 100) | st.sampled_from([511, 512, 513, 1023, 1024, 1025, 1100, 2080])


def made(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def unaligned(values: torch.Tensor) -> torch.Tensor:
    """The same values, one element off whatever alignment they had."""
    memory = torch.empty(values.numel() + 1, dtype=values.dtype)[1:]
    return memory.view(values.shape).copy_(values)


def product(x, weight, bias=None, *, path="auto", threads=1, scratch=None):
    out = torch.full((x.shape[0], weight.shape[0]), float("nan"))
    tile = torch.empty(scratch or tile_elements(*weight.shape))
    return matrix.linear(x, weight, out, tile, bias, path=path, threads=threads)


def check_any_company(x, weight, path, data, moved=unaligned):
    """Some row of ``x`` alone, among all, and behind some others has the same bits."""
    (m, k), n = x.shape, weight.shape[0]
    row = data.draw(st.integers(0, m - 1))
    alone = product(x[row : row + 1], weight, path=path)
    threads = data.draw(st.integers(1, 3))
    scratch = tile_elements(n, k) + data.draw(st.integers(0, 3)) * 40 * k
    whole = product(x, weight, path=path, threads=threads, scratch=scratch)
    assert same_bits(whole[row], alone[0])
    first = data.draw(st.integers(0, row))
    part = product(x[first:], moved(weight), path=path)
    assert same_bits(part[row - first], alone[0])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@settings(max_examples=150, deadline=None)
@given(kind=kinds, m=sizes, n=sizes, k=columns, threads=st.integers(1, 3), bias=st.booleans())
@example(kind=KINDS[0] if KINDS else None, m=600, n=3, k=64, threads=2, bias=True)
def test_linear_is_close_to_the_reference(kind, m, n, k, threads, bias):
    dtype, path = kind
    x, weight = unaligned(made(m, k)), unaligned((made(n, k, seed=1) * k**-0.5).to(dtype))
    b = made(n, seed=2).to(dtype) if bias else None
    wanted = x.double() @ weight.double().T + (0 if b is None else b.double())
    got = product(x, weight, b, path=path, threads=threads)
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)


@settings(max_examples=150, deadline=None)
@given(kind=kinds, m=sizes, n=sizes, k=columns, data=st.data())
def test_a_row_has_the_same_bits_in_any_company(kind, m, n, k, data):
    dtype, path = kind
    x, weight = made(m, k), made(n, k, seed=1).to(dtype)
    check_any_company(x, weight, path, data)


@pytest.mark.parametrize(("dtype", "path"), KINDS)
@pytest.mark.parametrize("k", [576, 1024, 1037, 2080])
def test_bits_do_not_depend_on_rows_for_any_tile_shape(dtype, path, k):
    x, weight = made(300, k), made(101, k, seed=1).to(dtype)
    whole = product(x, weight, path=path, threads=2, scratch=300 * 2 * k)
    for m in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 20, 32, 33, 48, 49, 130):
        assert same_bits(product(x[:m], weight, path=path), whole[:m]), m


@pytest.mark.parametrize(("dtype", "path"), KINDS)
@pytest.mark.parametrize("m", [340, 400, 440])
def test_partial_sums_of_many_rows_and_many_weight_rows_have_room(dtype, path, m):
    """K takes several blocks, so that partial sums of all rows of a task are kept."""
    x, weight = made(m, 1100), made(1301, 1100, seed=1).to(dtype)
    whole = product(x, weight, path=path, threads=2, scratch=m * 2 * 1100)
    for row in (0, 15, 16, 321, m - 1):
        assert same_bits(product(x[row : row + 1], weight, path=path)[0], whole[row]), row


@pytest.mark.parametrize(("dtype", "path"), KINDS)
@pytest.mark.parametrize("m", [1, 6, 9, 65])
def test_many_weight_rows_have_the_bits_of_few(dtype, path, m):
    """A task may take hundreds of rows, some after the other."""
    x, weight, bias = made(m, 1100), made(1301, 1100, seed=1).to(dtype), made(1301, seed=2)
    few = [product(x, weight[i : i + 90], bias[i : i + 90], path=path) for i in range(0, 1301, 90)]
    assert same_bits(product(x, weight, bias, path=path, threads=2), torch.cat(few, 1))


@pytest.mark.parametrize(("dtype", "path"), KINDS)
def test_strided_rows_accumulate_in_place_and_touch_nothing_else(dtype, path):
    x, weight, bias = made(9, 40)[:, 3:36], made(29, 33, seed=1).to(dtype), made(29).to(dtype)
    wide = torch.full((9, 50), 7.0)
    out, tile = wide[:, 10:39], torch.empty(tile_elements(29, 33))
    matrix.linear(x, weight, out, tile, bias, path=path)
    once = out.clone()
    matrix.linear(x, weight, out, tile, bias, accumulate=True, path=path)
    torch.testing.assert_close(out, 2 * once, atol=1e-6, rtol=1e-6)
    assert (wide[:, :10] == 7).all()
    assert (wide[:, 39:] == 7).all()


@pytest.mark.parametrize(("dtype", "path"), KINDS)
def test_no_rows_and_no_columns(dtype, path):
    assert product(made(0, 5), made(3, 5).to(dtype), path=path).shape == (0, 3)
    assert (product(made(4, 0), made(3, 0).to(dtype), path=path, scratch=4096) == 0).all()


@pytest.mark.parametrize(("dtype", "path"), KINDS)
def test_nan_and_infinity_stay_in_their_rows(dtype, path):
    x, weight = made(21, 50), made(19, 50, seed=1).to(dtype)
    clean = product(x, weight, path=path)
    x[3, 7], x[5, 49], x[20, 0] = float("nan"), float("inf"), -float("inf")
    got = product(x, weight, path=path)
    wanted = x @ weight.float().T
    assert got[3].isnan().all()
    assert torch.equal(got[5], wanted[5])  # an infinity of every sign
    assert torch.equal(got[20], wanted[20])
    kept = [i for i in range(21) if i not in (3, 5, 20)]
    assert same_bits(got[kept], clean[kept])


@pytest.mark.parametrize(("dtype", "path"), KINDS)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_extreme_scales_keep_their_precision(dtype, path, scale):
    x, weight = made(6, 300) * scale, (made(20, 300, seed=1) * 0.05).to(dtype)
    wanted = x.double() @ weight.double().T
    got = product(x, weight, path=path).double()
    assert ((got - wanted).norm() / wanted.norm()) < 5e-6


@pytest.mark.parametrize("path", paths(torch.float16) if native.available() else [])
def test_subnormal_halves_count(path):
    weight = torch.full((3, 64), 3e-7, dtype=torch.float16)
    got = product(torch.ones(2, 64), weight, path=path)
    torch.testing.assert_close(got, weight.float().sum(1).expand(2, 3), rtol=1e-5, atol=0)


def test_wrong_operands_are_refused():
    x, weight, out, tile = made(4, 8), made(5, 8), made(4, 5), torch.empty(4096)
    with pytest.raises(ValueError, match="x: expected fp32"):
        matrix.linear(x[:, :7], weight, out, tile)
    with pytest.raises(ValueError, match="out: expected fp32"):
        matrix.linear(x, weight, out.double(), tile)
    with pytest.raises(ValueError, match="contiguous rows"):
        matrix.linear(made(8, 4).T, weight, out, tile)
    with pytest.raises(TypeError, match="weight: expected contiguous"):
        matrix.linear(x, made(8, 5).T, out, tile)
    with pytest.raises(TypeError, match="bias: expected"):
        matrix.linear(x, weight, out, tile, made(4))
    with pytest.raises(ValueError, match="scratch: expected at least"):
        matrix.linear(x, weight, out, torch.empty(2))
    with pytest.raises(ValueError, match="path: expected"):
        matrix.linear(x, weight, out, tile, path="abacus")


# --- experts ---


def routing_of(rows: int, experts: int, k: int, seed: int) -> Routing:
    """k experts of each row; the last expert is never chosen when there is a choice."""
    torch.manual_seed(seed)
    ids = torch.stack([torch.randperm(max(k, experts - 1))[:k] for _ in range(rows)])
    gates = torch.rand(rows, k)
    order = ids.view(-1).sort(stable=True).indices
    starts = torch.zeros(experts + 1, dtype=torch.int64)
    starts[1:] = ids.view(-1).bincount(minlength=experts).cumsum(0)
    return Routing(ids.int(), gates, (order // k).int(), gates.view(-1)[order].contiguous(), starts)


def expert_weights(D: int, W: int, dtype: torch.dtype, seed: int, bias: bool):
    shapes = {"gate": (W, D), "up": (W, D), "down": (D, W)}
    weights = {n: made(*s, seed=seed + i, scale=s[1] ** -0.5).to(dtype)
               for i, (n, s) in enumerate(shapes.items())}  # fmt: skip
    if bias:
        for i, (name, shape) in enumerate(shapes.items()):
            weights[f"{name}_bias"] = made(shape[0], seed=seed + 9 + i).to(dtype)
    return weights


def layer(rows, D, k, experts, seed=0):
    """One micro-batch per entry of ``rows``; an entry of k None is dense."""
    return [
        Routed(m, made(m, D, seed=seed + i), made(m, D, seed=seed + 50 + i),
               None if k is None else routing_of(m, experts, k, seed + i))
        for i, m in enumerate(rows)
    ]  # fmt: skip


def copied(batches):
    return [b._replace(hidden=b.hidden.clone()) for b in batches]


@settings(max_examples=60, deadline=None)
@given(
    kind=kinds,
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    D=st.integers(1, 80),
    W=st.integers(1, 80),
    experts=st.integers(2, 5),
    dense=st.booleans(),
    bias=st.booleans(),
    threads=st.integers(1, 3),
)
def test_experts_are_close_to_the_reference(kind, rows, D, W, experts, dense, bias, threads):
    dtype, path = kind
    batches = layer(rows, D, None if dense else 2, experts)
    weights = [expert_weights(D, W, dtype, 20 * e, bias) for e in range(1 if dense else experts)]
    memory = torch.empty(1 << 21, dtype=torch.uint8)
    ours, wanted = copied(batches), copied(batches)
    matrix.experts(ours, 0, weights, memory, path=path, threads=threads)
    reference.experts(wanted, 0, weights, memory)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a.hidden, b.hidden, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("dtype", "path"), KINDS)
@pytest.mark.parametrize("dense", [True, False])
def test_a_row_gets_the_same_bits_whoever_shares_its_experts(dtype, path, dense):
    D, W, experts = 70, 90, 4
    batches = layer([600, 7], D, None if dense else 2, experts)
    weights = [expert_weights(D, W, dtype, 20 * e, True) for e in range(1 if dense else experts)]
    together = copied(batches)
    matrix.experts(together, 0, weights, torch.empty(1 << 22, dtype=torch.uint8), path=path,
                   threads=2)  # fmt: skip
    for batch, whole in zip(batches, together, strict=True):
        for row in (0, 3, batch.rows - 1):
            routing = batch.routing
            if routing is not None:
                ids, gates = routing.ids[row], routing.gates[row]
                order = ids.long().sort().indices
                starts = torch.zeros(experts + 1, dtype=torch.int64)
                starts[1:] = ids.long().bincount(minlength=experts).cumsum(0)
                routing = Routing(ids[None], gates[None], torch.zeros(2, dtype=torch.int32),
                                  gates[order], starts)  # fmt: skip
            alone = Routed(1, batch.x[row : row + 1], batch.hidden[row : row + 1].clone(), routing)
            for e, w in enumerate(weights):  # one call each, as when pages stream
                matrix.experts([alone], e, [w], torch.empty(1 << 17, dtype=torch.uint8), path=path)
            assert same_bits(alone.hidden[0], whole.hidden[row])


@pytest.mark.parametrize(("dtype", "path"), KINDS)
@pytest.mark.parametrize(("cut", "W"), [((17, 40), 64), ((1, 52), 64), ((90, 40), 1301)])
def test_a_cut_expert_has_the_bits_of_the_whole_one(dtype, path, cut, W):
    D, memory = 53, torch.empty(1 << 20, dtype=torch.uint8)
    batches = layer([5, 30], D, 2, 3)
    weights = expert_weights(D, W, dtype, 0, True)
    whole, parts = copied(batches), copied(batches)
    matrix.experts(whole, 1, [weights], memory, path=path, threads=2)
    inter = torch.full((40, W), float("nan"))
    for a, b in itertools.pairwise((0, cut[0], W)):
        part = {n: weights[n][a:b] for n in ("gate", "gate_bias", "up", "up_bias")}
        ups = [p._replace(hidden=None) for p in parts]
        matrix.expert_up(ups, 1, part, inter[:, a:b], memory, path=path)
    for a, b in itertools.pairwise((0, cut[1], D)):
        part = {n: weights[n][a:b] for n in ("down", "down_bias")}
        downs = [p._replace(x=None) for p in parts]
        matrix.expert_down(downs, 1, inter, part, slice(a, b), memory, path=path)
    for a, b in zip(whole, parts, strict=True):
        assert same_bits(a.hidden, b.hidden)


def test_reference_parts_equal_the_whole():
    D, W, memory = 20, 24, torch.empty(1 << 20, dtype=torch.uint8)
    batches = layer([5, 9], D, 2, 3)
    weights = expert_weights(D, W, torch.bfloat16, 0, True)
    whole, parts = copied(batches), copied(batches)
    reference.experts(whole, 1, [weights], memory)
    inter = torch.empty(14, W)
    reference.expert_up(parts, 1, weights, inter, memory)
    reference.expert_down(parts, 1, inter, weights, slice(0, D), memory)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.hidden, b.hidden)


def test_an_expert_without_rows_changes_nothing_and_bad_operands_are_refused():
    batches = layer([4], 16, 2, 4)
    before = batches[0].hidden.clone()
    weights = expert_weights(16, 8, torch.float32, 0, False)
    memory = torch.empty(1 << 18, dtype=torch.uint8)
    matrix.experts(batches, 3, [weights], memory)
    matrix.experts(batches, 0, [], memory)
    assert same_bits(batches[0].hidden, before)
    with pytest.raises(ValueError, match="routing: expected"):
        matrix.experts(batches, 3, [weights, weights], memory)
    with pytest.raises(ValueError, match="inter: expected"):
        matrix.expert_up(batches, 0, weights, torch.empty(0, 8), memory)
    with pytest.raises(ValueError, match="x: expected"):
        matrix.expert_up([batches[0]._replace(x=None)], 0, weights, torch.empty(9, 8), memory)
    with pytest.raises(ValueError, match="hidden: expected"):
        matrix.expert_down(batches, 0, torch.empty(9, 8), weights, slice(1, 17), memory)
    with pytest.raises(ValueError, match="columns: expected"):
        matrix.expert_down(batches, 0, torch.empty(9, 8), weights, slice(0, 15), memory)


def test_silu_is_right_at_both_ends():
    D = 9
    batch = Routed(1, torch.ones(1, D), torch.zeros(1, D), None)
    gate = torch.tensor([-1e30, -200.0, -100.0, -20.0, -1e-3, 0.0, 1e-3, 50.0, 1e30])
    weights = {"gate": torch.diag(gate), "up": torch.eye(D), "down": torch.eye(D)}
    for path in paths(torch.float32):
        fresh = batch._replace(hidden=torch.zeros(1, D))
        matrix.experts([fresh], 0, [weights], torch.empty(1 << 16, dtype=torch.uint8), path=path)
        wanted = torch.nn.functional.silu(gate)
        torch.testing.assert_close(fresh.hidden[0], wanted, rtol=1e-5, atol=1e-30)
