"""A checkpoint three times the size of the memory it may use, run by the command itself."""

from __future__ import annotations

import json

import pytest

from headrace.cli.make_checkpoint import make_checkpoint, small_spec
from headrace.memory.tiers import page_cache_bytes

from .batches import write_lines
from .processes import running

SHAPE = {"layers": 6, "hidden": 512, "ffn_width": 1792, "vocab": 4096}
BUDGET = 100_000_000
BESIDE = 450_000_000  # interpreter, torch, tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The summary of the run, and the files of weights."""
    folder = tmp_path_factory.mktemp("large")
    size = make_checkpoint(small_spec("mixtral", "bf16", SHAPE), folder / "m")
    assert size > 2.8 * BUDGET
    lines = [{"prompt": f"{i} bottles", "max_tokens": 4, "ignore_eos": True} for i in range(24)]
    source = write_lines(folder / "in.jsonl", lines)
    files = ("-i", source, "-o", folder / "out.jsonl")
    command = ("run-batch", folder / "m", *files, "--memory", BUDGET, "--json", "--threads", 1)
    with running(*command) as process:
        output, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    return json.loads(output), sorted((folder / "m").glob("*.safetensors"))


def test_peak_memory_stays_within_the_budget(run):
    summary, _ = run
    assert summary["peak_rss_bytes"] < BUDGET + BESIDE
    host = summary["tiers"]["host"]
    assert host["used_bytes"] == host["planned_bytes"] <= summary["budget_bytes"] == BUDGET


def test_the_checkpoint_was_streamed_and_is_not_in_the_page_cache(run):
    summary, files = run
    assert (summary["done"], summary["failed"], summary["generated_tokens"]) == (24, 0, 96)
    assert summary["schedule"] in ("stream", "on_demand")
    assert summary["bytes_read"] > 3 * sum(file.stat().st_size for file in files) / 2
    if not summary["direct_io"]:
        assert summary["direct_io_reason"]
    assert sum(map(page_cache_bytes, files)) < 2_000_000
