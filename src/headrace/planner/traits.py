"""How published runtimes differ from this one in what they do with a policy, not in the policy.

Sources: the published code of MoE-Lightning (Cao et al., arXiv 2411.11217), FlexGen (Sheng et al.,
arXiv 2303.06865), DeepSpeed ZeRO-Inference (Aminabadi et al., arXiv 2207.00032).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from headrace.errors import UsageError
from headrace.specs.hardware import Hardware
from headrace.specs.policy import Policy

STAGE_SLOTS = 2
"""Pinned buffers that a runtime stages its pages through."""


@dataclass(frozen=True)
class Traits:
    """``schedule`` of decodes and ``prefill_schedule`` of prompts, None: the policy's own.

    ``pageable``: experts lie in pageable memory and pass pinned buffers. ``drain``: the next step
    starts when the last one has ended. ``own_prefill``: prompts are read in a phase of their own.
    ``refill``: a request that ends makes room for the next; without it a batch runs to its end.
    ``padded``: every request is as long as the longest, in prompt and in output. ``pipelined``:
    several devices have whole layers each and as many batches on their way, instead of a share
    of each layer; ``several``: how it uses them is known at all. ``queued``: operations and copies
    are queued ahead of the device, so that starting one costs no time of its own.
    ``tensor_cores``: its products run on them, by the vendor's library. ``expands_kv``: its
    attention on the processor makes fp32 of KV and repeats it for each query head before it reads.
    """

    name: str
    schedule: str | None = None
    prefill_schedule: str | None = None
    pageable: bool = False
    drain: bool = False
    own_prefill: bool = False
    refill: bool = True
    padded: bool = False
    pipelined: bool = False
    several: bool = True
    queued: bool = False
    tensor_cores: bool = False
    expands_kv: bool = False
    kv_on_device: float | None = None

    @property
    def is_published(self) -> bool:
        """Whether it is not this program's own."""
        return not self.refill

    def batches(self, hardware: Hardware) -> int:
        """Batches on their way at once."""
        return hardware.devices if self.pipelined else 1

    def hardware(self, hardware: Hardware) -> Hardware:
        """``hardware`` as this runtime uses it. n devices with a batch each take as long for n
        batches as a device of n times the rates, whose operations cost an n-th to start; what the
        pipeline takes to fill is left out. Raises UsageError for more devices than are known."""
        if hardware.devices > 1 and not self.several:
            raise UsageError(
                f"{self.name} on {hardware.devices} devices",
                expected="one: how it brings a layer's shares together is not simulated",
            )
        seconds = 0.0 if self.queued else hardware.task_seconds / self.batches(hardware)
        devices = 1 if self.pipelined else hardware.devices
        return replace(hardware, devices=devices, task_seconds=seconds)

    def policy(self, policy: Policy, schedule: str | None) -> Policy:
        """``policy`` as this runtime executes it, under ``schedule`` if one is named."""
        name = schedule or policy.schedule
        changed = replace(policy, schedule=name, kv_on_device=0.0)
        share = policy.kv_on_device if self.kv_on_device is None else self.kv_on_device
        if changed.attention_on_device and name != "resident":
            changed = replace(changed, kv_on_device=share)
        if self.pageable and policy.on_device:
            slots = max(policy.stage_slots, STAGE_SLOTS)
            changed = replace(changed, pageable=True, stage_slots=slots)
        return changed


_PUBLISHED = {"drain": True, "own_prefill": True, "refill": False}
# max(weights over the link, arithmetic) a layer: prefetched by the library's own queue, products by
# PyTorch in half precision
_ZERO = {"padded": True, "several": False, "queued": True, "tensor_cores": True}
_FLEXGEN = {"pageable": True, "padded": True, "pipelined": True}

RUNTIMES = {
    traits.name: traits
    for traits in (
        Traits("headrace"),
        Traits("moe-lightning", "cgopipe", "flexgen", pageable=True, **_PUBLISHED),
        Traits("flexgen", "flexgen", "flexgen", **_FLEXGEN, **_PUBLISHED),
        Traits("flexgen_c", "flexgen_c", "flexgen", expands_kv=True, **_FLEXGEN, **_PUBLISHED),
        Traits("zero", "flexgen", "flexgen", kv_on_device=1.0, **_ZERO, **_PUBLISHED),
    )
}
"""By name, as ``--as`` takes them. What MoE-Lightning prints as (p) is padded besides."""


def runtime(name: str) -> Traits:
    """The traits of runtime ``name``. Raises UsageError."""
    if name not in RUNTIMES:
        raise UsageError("--as", expected=" | ".join(RUNTIMES), got=name)
    return RUNTIMES[name]
