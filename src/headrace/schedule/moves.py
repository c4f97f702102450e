"""What it costs to move activations and KV between host and accelerator.

Everything that crosses the link is read from one memory and written to the other: a copy draws on
the link, on DRAM and on the accelerator's memory at once. Activations cross in 16 bits.
"""

from __future__ import annotations

from headrace.schedule.binding import Binding
from headrace.schedule.task import Task
from headrace.schedule.work_vector import Work
from headrace.specs.hardware import D2H, DRAM, H2D, HBM
from headrace.specs.model import ITEM_BYTES, ModelSpec
from headrace.specs.policy import Policy

SENT_ITEM = 2
"""Bytes per activation on the link."""


def to_device(count: float, rows: float) -> Work:
    """``count`` bytes from pinned memory to the device."""
    return Work({H2D: count, DRAM: count, HBM: count}, rows)


def to_host(count: float, rows: float) -> Work:
    """``count`` bytes from the device into pinned memory."""
    return Work({D2H: count, HBM: count, DRAM: count}, rows)


def sent_widths(model: ModelSpec) -> tuple[int, int]:
    """Width of a row's queries, and of what attention makes of them, as they cross the link. The
    processor attends in the latent space, if there is one: it needs no weights for that."""
    if model.mla:
        return model.heads * model.mla.cached, model.heads * model.mla.kv_rank
    return model.q_size, model.attended_size


class Moves:
    """Work of the tasks that move what a micro-batch computes."""

    def __init__(self, model: ModelSpec, policy: Policy, devices: int = 1) -> None:
        self._model = model
        self._devices = devices
        self._kv_row = model.kv_layer_bytes(policy.kv_dtype)
        self._row = model.hidden * ITEM_BYTES[model.weight_dtype]
        self._queries, self._attended = sent_widths(model)

    def load_rows(self, task: Task, binding: Binding) -> Work:
        """Embedding rows of the sweep, to each device."""
        return to_device(binding.rows * self._row * self._devices, binding.rows)

    def offload_qkv(self, task: Task, binding: Binding) -> Work:
        """Queries, and keys and values in the format of the cache."""
        m = binding.mb_rows(task.mb or 0)
        return to_host(m * (self._queries * SENT_ITEM + self._kv_row), m)

    def load_hidden(self, task: Task, binding: Binding) -> Work:
        """What attention on the processor computed."""
        m = binding.mb_rows(task.mb or 0)
        return to_device(m * self._attended * SENT_ITEM, m)

    def offload_hidden(self, task: Task, binding: Binding) -> Work:
        """Normed rows, with expert and gate of each visit, for experts of the processor."""
        m = binding.mb_rows(task.mb or 0)
        visits = self._model.visits_in(task.layer or 0)
        return to_host(m * (self._model.hidden * SENT_ITEM + visits * 8), m)

    def load_partial(self, task: Task, binding: Binding) -> Work:
        """What they add to each row."""
        m = binding.mb_rows(task.mb or 0)
        return to_device(m * self._model.hidden * SENT_ITEM, m)

    def load_kv(self, task: Task, binding: Binding) -> Work:
        """Keys and values of the tokens before this sweep's."""
        mb = task.mb or 0
        tokens = binding.cached_tokens(mb, self._model.window_of(task.layer or 0))
        return to_device(tokens * self._kv_row, binding.mb_rows(mb))

    def store_kv(self, task: Task, binding: Binding) -> Work:
        """Keys and values of this sweep's tokens."""
        m = binding.mb_rows(task.mb or 0)
        return to_host(m * self._kv_row, m)
