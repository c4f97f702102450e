"""The machine that ``--hardware`` names: this one, one of the registry, or one in a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.output import warn
from headrace.errors import UsageError
from headrace.specs.hardware import CPU_FLOPS, Hardware
from headrace.specs.units import format_bytes

if TYPE_CHECKING:
    from headrace.planner.candidates import Situation
    from headrace.planner.profile import Profile

AUTO = "auto"
SUFFIXES = (".yaml", ".yml", ".json")
SHARE = 0.9
"""Of a machine elsewhere, what a run may take: the system, Python and torch have the rest."""

LOADED_BYTES = 450_000_000
"""What Python, torch and a tokenizer take once loaded: a plan made without them must leave it."""


@dataclass(frozen=True)
class Machine:
    """A machine and where its figures come from. ``here``: this machine, whose free memory is
    asked, and whose kernels and cores a run would use; ``profile`` is what was measured of it."""

    hardware: Hardware
    source: str
    here: bool = False
    profile: Profile | None = None

    def meeting(self, at: Situation) -> Situation:
        """``at`` on this machine as a run of its model meets it: with the curves of the nearest
        shape that was measured, experts streaming or not, where there is a profile."""
        if self.profile is None:
            return at
        found = self.profile.hardware_for(at.model, *_of_rates(at))
        name, capacity = self.hardware.name, self.hardware.capacity
        return replace(at, hardware=replace(found, name=name, capacity=capacity))

    def knows(self, at: Situation) -> bool:
        """Whether a model in such a format was measured."""
        profile = self.profile
        return profile is not None and profile.known_for(at.model, *_of_rates(at)) is not None

    def host_bytes(self) -> int:
        """Host memory that a run may take when nobody says."""
        if not self.here:
            return int(SHARE * self.hardware.capacity.get("host", 0))
        from headrace.memory.tiers import default_budget

        return default_budget(LOADED_BYTES).budget_bytes

    def budget_note(self) -> str:
        """Where ``host_bytes`` comes from."""
        if self.here:
            taken = format_bytes(LOADED_BYTES)
            return f"budget: 0.9 x what is free now, less {taken} for Python, torch and tokenizer"
        return (
            f"budget: 0.9 x the {format_bytes(self.hardware.capacity.get('host', 0))} of the host"
        )


def _of_rates(at: Situation) -> tuple[str, bool, str]:
    """What the rates of a profile depend on beside the model: KV format, whether experts stream,
    and what weights are multiplied with."""
    streams = sum(page.bytes for page in at.pages) > at.budget_bytes
    return at.overrides.kv_dtype, streams, at.overrides.activations


def find_machine(text: str) -> Machine:
    """The machine called ``text``: ``auto``, a file (``file.yaml``, or ``file.yaml#name`` where it
    holds several), or a name of the registry. Raises UsageError and DocumentError."""
    if text == AUTO:
        return this_machine()
    file, _, profile = text.partition("#")
    if file.endswith(SUFFIXES) or "/" in file:
        return machine_in(Path(file).expanduser(), profile or None)
    from headrace.specs.registry import known_hardware

    known = known_hardware(text)
    if not known.hardware.capacity.get("host"):
        raise UsageError(f"{text} has no host memory", hint="--memory SIZE")
    return Machine(known.hardware, f"stock figures: {known.source}")


def machine_in(path: Path, profile: str | None) -> Machine:
    """The machine in a YAML file, ours or classic."""
    from headrace.cli.documents import read_document
    from headrace.planner.hardware_file import read_hardware

    content = read_document(path)
    if "hardware" in content and "kind" in content:  # a plan keeps its machine
        machine = content["hardware"]
        if isinstance(machine, Mapping):
            content = {key: value for key, value in machine.items() if key != "source"}
    return Machine(read_hardware(content, path.name, profile), str(path))


def this_machine() -> Machine:
    """This machine: by its calibrated profile if there is one, else stock figures scaled to its
    cores. Warns of a profile that cannot be used."""
    from headrace.engine.profiles import profile_path, read_profile

    cores = usable_cores()
    name, capacity = f"this machine, {cores} cores", {"host": _memory_bytes()}
    try:
        profile = read_profile(profile_path(os.environ))
    except UsageError as fault:
        warn(f"the calibrated profile is not used: {fault.message}")
        profile = None
    if profile is None:
        return Machine(_stock(name, cores, capacity), _STOCK, here=True)
    hardware = replace(profile.hardware, name=name, capacity=capacity)
    return Machine(hardware, f"measured: profile of {profile.made}", here=True, profile=profile)


_STOCK = "stock figures for its cores, not measured; headrace calibrate measures them"


def _stock(name: str, cores: int, capacity: Mapping[str, int]) -> Hardware:
    """A machine like the smallest of the registry, but for its cores and memory."""
    from headrace.specs.registry import known_hardware

    stock = known_hardware("cpu-2core").hardware
    roofs = {**stock.roofs, CPU_FLOPS: stock.roofs[CPU_FLOPS] * cores / 2}
    return replace(stock, name=name, roofs=roofs, capacity=capacity)


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
