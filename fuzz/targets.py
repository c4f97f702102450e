"""What is fuzzed: each target takes any bytes and must return, or raise a HeadraceError.

Anything else that comes out is a finding. Targets are cheap (tens of microseconds) and keep
nothing between calls.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from headrace.cli.documents import document_text, read_document
from headrace.cli.main import make_command
from headrace.cli.settings import key_of, leaves, read_config, settings_for
from headrace.engine.bodies import error_line
from headrace.engine.lines import BadLine, LineParser, identify
from headrace.engine.sidecar import Sidecar
from headrace.engine.tokenizer_files import check_files
from headrace.memory.checkpoint import INDEX, SINGLE, Checkpoint
from headrace.memory.headers import parse_object, read_header
from headrace.memory.pages import PageTable
from headrace.models.load import architecture, checkpoint_spec
from headrace.planner.candidates import Situation
from headrace.planner.hardware_file import hardware_document, read_hardware
from headrace.planner.plan import Overrides
from headrace.planner.plan_file import follow, plan_document, read_plan
from headrace.planner.rules import best_plan
from headrace.planner.stored import restore_plan, store_plan
from headrace.schedule.generate import generate
from headrace.specs.pages import page_layout
from headrace.specs.registry import known_hardware
from headrace.specs.workload import Workload

Target = Callable[[bytes], None]

CONFIG: Mapping[str, Any] = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "vocab_size": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
"""A model as small as they come."""


def header(data: bytes) -> None:
    """A safetensors file: as it is, or (odd first byte) a header framed and padded to fit."""
    if data[:1] and data[0] & 1:
        text = data[1:]
        with (_folder() / "framed").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + _claimed(text))
        read_header(_folder() / "framed")
        return
    (_folder() / "raw").write_bytes(data[1:])
    read_header(_folder() / "raw")


def index(data: bytes) -> None:
    """model.safetensors.index.json of a checkpoint in two shards."""
    (_shards() / INDEX).write_bytes(data)
    Checkpoint.open(_shards())


def config(data: bytes) -> None:
    """config.json over the weights of a small model, up to the page table."""
    whole = _checkpoint()
    checkpoint = replace(whole, config=parse_object(data, "config.json"))
    model = checkpoint_spec(checkpoint)
    names = architecture(checkpoint.config).tensor_name
    PageTable(page_layout(model), checkpoint, names, model).close()


def tokenizer(data: bytes) -> None:
    """tokenizer.json, as far as it is looked over before a library opens it."""
    (_folder() / "tokenizer.json").write_bytes(data)
    check_files(_folder())


def line(data: bytes) -> None:
    """A line of a batch file; a line at fault must still give an output line that is JSON."""
    parsed = LineParser({"max_tokens": 8}, ["m"]).parse(identify(data), 1, 0)
    if isinstance(parsed, BadLine):
        record = error_line(parsed, parsed.error)
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()


def plan(data: bytes) -> None:
    """The sidecar of an output, and a run under the plan that it holds."""
    sidecar = Sidecar(_folder() / "out.jsonl")
    sidecar.path.write_bytes(data)
    sidecar.read()
    kept = sidecar.plan.get("kept") if isinstance(sidecar.plan, dict) else None
    restored = restore_plan(kept, _situation(), None)
    if restored is not None:
        generate(_situation().model, _situation().pages, restored.policy)


def settings(data: bytes) -> None:
    """A configuration file, for every command."""
    path = _folder() / "settings.yaml"
    path.write_bytes(data)
    content = read_config(path)
    for command in (("inspect",), ("run-batch",), ("bench", "throughput")):
        settings_for(command, content, _command(), "settings.yaml")


def plan_file(data: bytes) -> None:
    """A plan that ``run-batch --plan`` is given, and the schedule of the run that follows it."""
    path = _folder() / "plan.yaml"
    path.write_bytes(data)
    at = _situation()
    found = follow(read_plan(read_document(path), "plan.yaml"), at, "plan.yaml")
    generate(at.model, at.pages, found.policy)


def hardware(data: bytes) -> None:
    """A machine in a file, in our own form or the classic one, and a plan for it."""
    path = _folder() / "hardware.yaml"
    path.write_bytes(data)
    machine = read_hardware(read_document(path), "hardware.yaml")
    best_plan(replace(_situation(), hardware=replace(machine, roofs=_host_only(machine.roofs))))


def _host_only(roofs: Mapping[str, float]) -> dict[str, float]:
    """Without an accelerator a plan takes a millisecond, and reads the same fields."""
    return {roof: roofs[roof] for roof in ("cpu_flops", "dram", "disk", "host")}


TARGETS: Mapping[str, Target] = {
    t.__name__: t
    for t in (header, index, config, tokenizer, line, plan, settings, plan_file, hardware)
}


def seeds() -> dict[str, list[bytes]]:
    """Where the search begins: valid inputs of every target."""
    tensors = {"a": _tensor("F32", [2, 3], 0, 24), "b": _tensor("BF16", [4], 24, 32)}
    text = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    whole = len(text).to_bytes(8, "little") + text + bytes(32)
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "seed": 1}
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    plain = {"prompt": "hi", "id": 1, "temperature": 0.5, "stop": ["x"], "logit_bias": {"3": 1}}
    at = _situation()
    kept = store_plan(best_plan(at), at, None)
    stored = {"format": 1, "signature": {"weights": "w", "seed": 0}, "plan": {"kept": kept}}
    yaml = b"memory: 8GiB\nrun-batch:\n  max-tokens: 256\nbench:\n  throughput: {batch: 64}\n"
    names = {key_of(p) for c in leaves(_command()) for p in c.params} - {"config", "help"}
    options = "".join(f"{name}: 1\n" for name in sorted(names)).encode()
    return {
        "header": [b"\1" + text, b"\0" + whole],
        "index": [(_shards() / "first.json").read_bytes()],
        "config": [json.dumps(CONFIG).encode()],
        "tokenizer": [json.dumps(_TOKENIZER).encode()],
        "line": [json.dumps(request).encode(), json.dumps(plain).encode()],
        "plan": [json.dumps(stored).encode()],
        "settings": [yaml, options],
        "plan_file": [document_text(plan_document(best_plan(at), at, "m", "stock")).encode()],
        "hardware": [
            document_text(hardware_document(at.hardware)).encode(),
            b"like: cpu-2core\nroofs: {disk: 2GB/s}\ncapacity: {host: 8GB}\n",
            _CLASSIC,
        ],
    }


_CLASSIC = b"""hardware: {gpu_memory: 16384, cpu_memory: 65536, gpu_bandwidth: 320,
  cpu_bandwidth: 99, cpu_to_gpu_bandwidth: 16, gpu_compute: 65, cpu_compute: 2}
models: {m: {num_layers: 2}}
policies: {p: {batch_size: 36, micro_batch_size: 4}}
"""


_TOKENIZER: Mapping[str, Any] = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "_"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "_"},
            {"type": "Replace", "pattern": {"Regex": "x+"}, "content": "y"},
        ],
    },
    "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}]},
    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
}


@cache
def _temporary() -> TemporaryDirectory[str]:
    """In memory where there is a place for it; gone with the process."""
    shared = Path("/dev/shm")
    place = shared if os.access(shared, os.W_OK) else None
    return TemporaryDirectory(prefix="headrace-fuzz-", dir=place)


def _folder() -> Path:
    return Path(_temporary().name)


@cache
def _shards() -> Path:
    """A folder of two shards; its true index is kept as first.json."""
    folder = _folder() / "sharded"
    folder.mkdir()
    weight_map = {}
    shapes = small_tensors()
    for shard in (0, 1):
        file = f"model-{shard + 1:05}-of-00002.safetensors"
        share = dict(list(shapes.items())[shard::2])
        (folder / file).write_bytes(safetensors_file(share))
        weight_map |= dict.fromkeys(share, file)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "first.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@cache
def _checkpoint() -> Checkpoint:
    folder = _folder() / "single"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / SINGLE).write_bytes(safetensors_file(small_tensors()))
    return Checkpoint.open(folder)


@cache
def _situation() -> Situation:
    model = checkpoint_spec(_checkpoint())
    pages = page_layout(model)
    hardware = known_hardware("cpu-2core").hardware
    job = Workload.uniform(4, 8, 4)
    return Situation(model, pages, None, hardware, job, 100_000_000, Overrides())


@cache
def _command() -> Any:
    return make_command()


def small_tensors() -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape of every tensor of the model of ``CONFIG``."""
    names = architecture(CONFIG)
    spec = names.spec_from_config(CONFIG)
    found = {names.tensor_name(n, None, None): s for n, s in spec.global_tensors().items()}
    for layer in range(spec.layers):
        found |= {names.tensor_name(n, layer, None): s for n, s in spec.layer_tensors().items()}
        for e in range(spec.experts):
            found |= {names.tensor_name(n, layer, e): s for n, s in spec.expert_tensors().items()}
    return found


def safetensors_file(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A file of bf16 values between 2^-6 and 1/2 in size, the same for the same names."""
    entries, end, data = {}, 0, bytearray()
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = _tensor("BF16", list(shape), end, end + size)
        random = Random(name)
        for _ in range(size // 2):
            data += bytes((random.randrange(256), random.choice((0x3C, 0x3D, 0x3E, 0xBD, 0xBE))))
        end += size
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def _tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _claimed(text: bytes) -> int:
    """Bytes of data that a header announces, when that can be made out; the file is sparse."""
    try:
        entries = json.loads(text).values()
        ends = [e["data_offsets"][1] for e in entries if isinstance(e, dict) and "dtype" in e]
        return min(max((e for e in ends if type(e) is int and e > 0), default=0), 1 << 30)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return 0
