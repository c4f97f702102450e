"""Tiny random checkpoints as transformers writes them, and a bare runner of sweeps over them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from headrace.batching.batch import Batch, MicroBatch, Segment
from headrace.kernels.select import select
from headrace.machines.machine import Machine
from headrace.machines.stepper import Stepper
from headrace.machines.threads import Threads
from headrace.memory.arena import Arena
from headrace.memory.checkpoint import Checkpoint
from headrace.memory.pages import PageTable
from headrace.models.bodies import make_bodies
from headrace.models.load import architecture, checkpoint_pages, checkpoint_spec
from headrace.models.sweep import RowIndex
from headrace.models.workspace import Workspace
from headrace.planner.memory_map import arena_bytes
from headrace.schedule.binding import Binding, Extent
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.sizes import buffer_sizes
from headrace.schedule.task import Buffer, Op
from headrace.specs.pages import Role
from headrace.specs.policy import Policy

_SMALL = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("Llama", {}),
    "llama-mha-tied-biases": (
        "Llama",
        {
            "num_key_value_heads": 6,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "llama3-rope-wide-heads": ("Llama", {"rope_parameters": _LLAMA3, "head_dim": 12}),
    "llama-yarn": ("Llama", {"rope_parameters": _YARN}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "mistral-window": ("Mistral", {"sliding_window": 9}),
    "mixtral-e8": ("Mixtral", {"num_local_experts": 8}),
    "mixtral-e5-window-tied": (
        "Mixtral",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 20,
            "tie_word_embeddings": True,
        },
    ),
    "olmoe-e64": (
        "Olmoe",
        {"num_experts": 64, "num_experts_per_tok": 8, "num_key_value_heads": 6, "clip_qkv": 0.9},
    ),
    "olmoe-e4-gqa-renormalised-biases": (
        "Olmoe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "attention_bias": True,
        },
    ),
}


def build(case: str, folder: Path, dtype: torch.dtype = torch.float32, **larger: int) -> None:
    """Save a random checkpoint whose every parameter matters, norms and biases included.

    ``larger`` are entries of the config that differ from the case's."""
    family, changes = CASES[case]
    config = getattr(transformers, f"{family}Config")(**(_SMALL | changes | larger))
    torch.manual_seed(7)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter) + ("norm" in name))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    model.to(dtype).save_pretrained(folder)


def reference(folder: Path) -> Any:
    """transformers' own model in fp32, attention written out."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()


@dataclass
class Toy:
    """A sequence being run: its tokens so far, how many are in the cache, its blocks."""

    tokens: list[int]
    blocks: tuple[int, ...]
    cached: int = 0

    def segment(self, number: int, rows: int) -> Segment:
        """The next ``rows`` tokens; draws when they are the last."""
        stop = self.cached + rows
        new = tuple(self.tokens[self.cached : stop])
        segment = Segment(number, new, self.cached, self.blocks, stop == len(self.tokens))
        self.cached = stop
        return segment


@dataclass
class ToySweep:
    batch: Batch
    binding: Binding
    indices: dict[int, RowIndex] = field(default_factory=dict)


class Runner:
    """Runs sweeps over one checkpoint, tasks in list order, declared buffers only."""

    def __init__(
        self,
        folder: Path,
        schedule: str = "resident",
        rows: int = 256,
        seqs: int = 16,
        micro_batches: int = 1,
        cut_bytes: int = 1 << 20,
        kv_dtype: str = "f32",
        kv_block: int = 4,
        ring_slots: int = 3,
        threads: bool = False,
        kernels: str = "auto",
        activations: str = "int8",
        kernel_threads: int = 1,
        turned: bool = False,
        resident_experts: int = 0,
    ) -> None:
        checkpoint = Checkpoint.open(folder)
        module = architecture(checkpoint.config)
        self.model = checkpoint_spec(checkpoint)
        self.pages = checkpoint_pages(checkpoint, self.model, cut_bytes)
        self.table = PageTable(self.pages, checkpoint, module.tensor_name, self.model)
        everything = frozenset(p.id for p in self.pages)
        final = frozenset(p.id for p in self.pages if p.role is Role.FINAL)
        stay = [p.id for p in self.pages if p.expert is not None][:resident_experts]
        self.policy = Policy(
            schedule=schedule,
            max_rows=rows,
            max_seqs=seqs,
            micro_batches=micro_batches,
            resident=everything if schedule == "resident" else final | frozenset(stay),
            ring_slots=ring_slots,
            slot_bytes=self.table.max_slot_bytes(everything),
            kv_blocks=512,
            kv_block=kv_block,
            kv_dtype=kv_dtype,
            kernels=kernels,
            activations=activations,
            threads=kernel_threads,
        )
        slots = {p.id: self.table.slot_bytes(p.id) for p in self.pages}
        sizes = buffer_sizes(self.model, self.pages, self.policy, slots)
        arena = Arena("host", sum(arena_bytes(s.bytes) for s in sizes.values()))
        chosen = select(kernels, kernel_threads, activations)
        turn = chosen.turn if turned else None
        self.space = Workspace(self.model, self.table, self.policy, sizes, arena, turn)
        self.space.load_resident()
        self.space.poison()
        self.arena = arena
        idle = dict.fromkeys((Op.BIND, Op.SAMPLE, Op.COMMIT), lambda *_: None)
        bodies = {**make_bodies(self.model, self.table, self.policy, chosen), **idle}
        self.machine: Machine = Stepper(bodies, self.space.view, poison=self._poison)
        if threads:
            self.machine = Threads(bodies, self.space.view, time.perf_counter)
        self.slots = slots
        self.phase = 0
        self._free = list(range(512))

    def _poison(self, buffer: Buffer) -> None:
        if buffer.name not in ("page", "kv", "logits"):  # these outlive the sweep
            self.space.poison(buffer)

    def sequence(self, tokens: Sequence[int], capacity: int = 128) -> Toy:
        """A sequence with blocks (scattered ones) for ``capacity`` tokens."""
        count = -(-capacity // self.policy.kv_block)
        blocks = tuple(self._free.pop((7 * i) % len(self._free)) for i in range(count))
        return Toy(list(tokens), blocks)

    def sweep(self, *micro_batches: Sequence[Segment]) -> Tensor:
        """Run one sweep; logits [s, V] in the order of ``Batch.sampled``."""
        sampled = len(self.run(*micro_batches).batch.sampled)
        return self.space.view(Buffer("logits"))[:sampled].clone()

    def run(self, *micro_batches: Sequence[Segment]) -> ToySweep:
        """Run one sweep, and nothing else."""
        padded = [*micro_batches, *[()] * (self.policy.micro_batches - len(micro_batches))]
        batch = Batch(tuple(MicroBatch(tuple(m)) for m in padded))
        extents = tuple(
            tuple(Extent(s.rows, s.kv_len) for s in m.segments) for m in batch.micro_batches
        )
        sweep = ToySweep(batch, Binding(extents))
        schedule = generate(self.model, self.pages, self.policy, self.phase, self.slots)
        self.machine.append(schedule, sweep).wait()
        self.phase = next_phase(self.pages, self.policy, self.phase)
        return sweep
