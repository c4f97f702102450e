"""``bench kernels``: rows, roofs, formats and refusals. Timings are taken, never judged."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch

from headrace.cli.kernelbench import attention_cases, linear_cases, row_cases
from headrace.cli.kernelbench.case import Bench, Case
from headrace.cli.kernelbench.roofs import DEFAULT_CACHE, Reads, Roofs, cache_bytes
from headrace.cli.kernelbench.suite import SUITE
from headrace.cli.kernelbench.timing import Turn, Watch
from headrace.cli.kernelbench.weights import FORMATS, bytes_of, cold_set, flops_roof, stored
from headrace.cli.main import run
from headrace.kernels.quantized import QuantizedWeight
from headrace.kernels.select import select
from headrace.specs.model import ModelSpec

KEYS = {
    *("kernel", "shape", "format", "threads", "gb_per_s", "gflop_per_s", "roof"),
    *("percent_of_roof", "torch_ratio"),
}


class Ticks:
    """A clock that moves by one second a look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Sets of weights of a megabyte, so that tests stay quick."""
    for module in ("weights", "attention_cases"):
        monkeypatch.setattr(f"headrace.cli.kernelbench.{module}.cache_bytes", lambda: 1 << 18)


def test_rows_have_the_promised_keys(capsys):
    arguments = ["bench", "kernels", "--quick", "--threads", "1", "--kernel", "rms_norm"]
    assert run([*arguments, "--kernel", "rope", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in rows] == ["rms_norm"] * 2 + ["rope"] * 2
    for row in rows:
        assert set(row) >= KEYS
        assert row["threads"] == 1
        assert row["gb_per_s"] > 0
        assert row["percent_of_roof"] > 0
        assert row["torch_ratio"] > 0


def test_tables_name_roofs_and_versions(capsys):
    arguments = ["bench", "kernels", "--quick", "--kernel", "rms_norm"]
    assert run([*arguments, "-o", "md"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("headrace ")
    assert "roofs on" in text
    assert "| rms_norm | 1x1024 | fp32 |" in text
    assert run([*arguments, "-o", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 2
    assert set(rows[0]) >= KEYS


def test_reads_are_timed_where_they_are_asked_for(tmp_path, capsys):
    arguments = ["bench", "kernels", "--quick", "--kernel", "read", "--folder", str(tmp_path)]
    assert run([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["roof"] == "disk"
    assert row["torch_ratio"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kernel", "nothing"],
        ["--format", "fp64"],
        ["--kernel", "rope", "--format", "int4"],
        ["-o", "html"],
        ["--activations", "int3"],
    ],
)
def test_unknown_choices_are_refused(arguments, capsys):
    assert run(["bench", "kernels", *arguments]) == 2


def test_the_binding_roof_takes_longest():
    roofs = Roofs(dram=10.0, cache=100.0, fma=1000.0, sgemm=900.0)
    assert roofs.binding({"dram": 20.0, "fma": 1000.0}) == ("dram", 2.0)
    assert roofs.binding({"dram": 20.0, "fma": 3000.0}) == ("fma", 3.0)
    assert roofs.binding({"cache": 1.0, "int8_dot": 5.0}) == ("cache", 0.01)


def test_a_row_is_work_over_the_median_time():
    roofs = Roofs(dram=8.0, cache=100.0, fma=1000.0, sgemm=900.0)
    case = Case("k", "s", "f", lambda i: None, bytes=4.0, torch_ways=lambda: {"w": lambda i: None})
    reads = Reads(2, quick=True)
    row = Bench(roofs, reads, Watch(Ticks(), 3.0), 1, rest=0.0).row(case)
    assert row.seconds == 1.0
    assert row.threads == 2
    assert row.gb_per_s == 4e-9
    assert row.percent_of_roof == 100.0 * 4.0 / reads.bytes  # of a read that took as long
    assert (row.torch_ratio, row.torch_way) == (1.0, "w")


def test_what_is_bound_by_arithmetic_is_a_share_of_the_roof_measured_before():
    roofs = Roofs(dram=8.0, cache=100.0, fma=1000.0, sgemm=900.0)
    case = Case("k", "s", "f", lambda i: None, flops=500.0)
    row = Bench(roofs, Reads(1, quick=True), Watch(Ticks(), 3.0), 1, rest=0.0).row(case)
    assert row.roof == "fma"
    assert row.percent_of_roof == 50.0
    assert row.torch_ratio is None


def test_samples_are_taken_in_turn_after_what_comes_before_them():
    seen = []
    first = Turn(lambda i: seen.append(("first", i)), lambda: seen.append("before"))
    one, two = Watch(Ticks(), 3.0).in_turn([first, Turn(lambda i: seen.append(("second", i)))])
    assert len(one) == len(two) >= 5
    assert seen[:6] == [
        "before",
        ("first", 0),
        ("second", 0),
        "before",
        ("first", 1),
        ("second", 1),
    ]


def test_a_read_passes_over_all_memory_part_by_part():
    reads = Reads(1, quick=True)
    seen = []
    reads.read = lambda block: seen.append((block.data_ptr(), block.numel()))
    for i in range(5):
        reads(i)
    first = reads.memory.data_ptr()
    assert seen[:4] == [(first + n * reads.bytes, reads.bytes) for n in range(4)]
    assert seen[4] == seen[0]
    assert 4 * reads.bytes == reads.memory.numel()


def test_rows_say_what_weights_met(capsys, monkeypatch):
    cases = {"logits": (lambda *given: iter([_tiny(*given)]), ("bf16", "fp16"))}
    monkeypatch.setattr("headrace.cli.kernelbench.suite.SUITE", cases)
    flags = ["--kernel", "logits", "--activations", "bf16", "--threads", "1", "--quick", "--json"]
    assert run(["bench", "kernels", *flags]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["format"] for row in rows] == ["bf16 x bf16", "fp16"]
    forms = ("bf16 x bf16", "bf16", "int8", "int8 x f32")
    assert [flops_roof(form) for form in forms] == ["bf16_dot", "fma", "int8_dot", "fma"]


def _tiny(kernels, form, quick):
    (case,) = list(linear_cases._products(kernels, "logits", form, (2,), 8, 32))
    return case


def test_calls_are_counted_so_that_sets_are_gone_through():
    seen: list[int] = []
    Watch(Ticks(), 3.0).median(seen.append)
    assert seen == list(range(len(seen)))
    assert len(seen) >= 5


@pytest.mark.parametrize("form", FORMATS)
def test_sets_of_weights_are_larger_than_asked_and_lie_apart(form):
    weights = cold_set(stored(64, 128, form), 100_000)
    assert sum(bytes_of(w) for w in weights) > 100_000
    data = [w.values if isinstance(w, QuantizedWeight) else w for w in weights]
    assert len({d.data_ptr() for d in data}) == len(data)


@pytest.mark.parametrize("name", [n for n in SUITE if n not in ("experts", "logits")])
def test_every_quick_case_runs(name):
    cases, formats = SUITE[name]
    kernels = select("auto", 1)
    for case in cases(kernels, formats[-1], True):
        case.run(0)
        assert case.amounts
        for way in case.torch_ways().values():
            way(0)


def test_experts_count_the_weights_that_tokens_visit():
    model = ModelSpec("mixtral", 1, 64, 4, 2, 16, 96, 128, experts=16, top_k=2)
    routing = linear_cases._routing(model, 3)
    assert sorted(routing.rows.tolist()) == [0, 0, 1, 1, 2, 2]
    visited = sum(routing.visits(e) for e in range(16))
    assert visited <= 6
    layer = linear_cases._layer(model, "fp32")
    case = linear_cases._experts_case(select("reference"), "small", model, [layer], 3, "fp32")
    case.run(0)
    for way in case.torch_ways().values():
        way(0)
    assert case.flops == 6.0 * 3 * 2 * 64 * 96
    assert case.bytes == visited * 3 * 4 * 64 * 96 + 4.0 * 3 * 64 * (2 + 2)


def test_attention_counts_the_pairs_that_are_seen():
    (case,) = attention_cases.prefill(select("auto", 1), "fp32", True)
    pairs = 4 * sum(range(256 - 64 + 1, 257))
    assert case.flops == 4.0 * 32 * 128 * pairs


def test_latent_attention_counts_a_vector_of_each_token_once():
    (case,) = attention_cases.latent(select("auto", 1), "int8", True)
    assert case.flops == 2.0 * 16 * (576 + 512) * 16 * 512
    assert case.bytes == 16 * 512 * (576 + 4) + 4.0 * 16 * 16 * (576 + 512)


def test_torch_appends_rows_to_their_slots():
    k, v = torch.randn(2, 3, 8)
    slots = [torch.tensor([1, 2, 3]), torch.tensor([7, 0, 9])]
    cache = torch.zeros(2, 10, 8, dtype=torch.bfloat16)
    attention_cases._torch_append(k, v, slots, cache)(3)  # the second, again
    assert torch.equal(cache[:, slots[1]], torch.stack([k, v]).bfloat16())
    assert (cache[:, 1:7] == 0).all()


def test_torch_rope_is_ours():
    x = torch.randn(3, 2, 8)
    angles = torch.rand(3, 4)
    expected = row_cases._torch_rope(x, angles.cos(), angles.sin(), 0)
    select("reference").apply_rope(x, angles.cos(), angles.sin(), torch.empty(x.numel()))
    assert torch.allclose(x, expected, atol=1e-6)


def test_cache_size_is_read_or_assumed(tmp_path):
    assert cache_bytes(tmp_path) == DEFAULT_CACHE
    for index, size in enumerate(("48K", "2048K", "33M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert cache_bytes(tmp_path) == 33 << 20
