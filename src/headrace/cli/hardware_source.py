"""The machine that ``--hardware`` names: this one, one of the registry, or one in a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from headrace.errors import UsageError
from headrace.specs.hardware import CPU_FLOPS, DISK, Hardware
from headrace.specs.units import format_bytes

AUTO = "auto"
SUFFIXES = (".yaml", ".yml", ".json")
SHARE = 0.9
"""Of a machine elsewhere, what a run may take: the system, Python and torch have the rest."""

LOADED_BYTES = 450_000_000
"""What Python, torch and a tokenizer take once loaded: a plan made without them must leave it."""


@dataclass(frozen=True)
class Machine:
    """A machine and where its figures come from. ``here``: this machine, whose free memory is
    asked, and whose kernels and cores a run would use."""

    hardware: Hardware
    source: str
    here: bool = False

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
    """Stock figures scaled to the cores of this machine."""
    from headrace.specs.registry import known_hardware

    stock = known_hardware("cpu-2core")
    cores = usable_cores()
    roofs = dict(stock.hardware.roofs)
    roofs[CPU_FLOPS] *= cores / 2
    capacity = {"host": _memory_bytes()}
    hardware = replace(
        stock.hardware, name=f"this machine, {cores} cores", roofs=roofs, capacity=capacity
    )
    said = "stock figures for its cores, not measured; headrace calibrate measures them"
    assert DISK in hardware.roofs
    return Machine(hardware, said, here=True)


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
