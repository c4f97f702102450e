"""The classic profile form: hardware, models and policies in one YAML file, in MB, GB/s, TFLOPS.

::

    hardware:
      my-t4: {gpu_memory: 16384, cpu_memory: 65536, gpu_bandwidth: 320, cpu_bandwidth: 100,
              cpu_to_gpu_bandwidth: 16, gpu_compute: 65, cpu_compute: 1.6}
    models: {...}
    policies: {...}

Units are taken as written, in thousands (MB = 10^6 bytes), never as 1024s: memory that is not
there cannot be planned with. One link rate holds both ways. The form knows no disk: one of
ASSUMED_DISK is taken, unless ``disk_bandwidth`` (GB/s, an addition of ours) stands beside the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import DocumentError
from headrace.planner.fields import known_fields, mapping, number
from headrace.specs.hardware import CPU_FLOPS, D2H, DISK, DRAM, GPU_FLOPS, H2D, HBM, HOST, Hardware

MB, GB, TERA = 1e6, 1e9, 1e12

SECTIONS = ("hardware", "models", "policies")
FIELDS = {
    "gpu_memory": MB,
    "cpu_memory": MB,
    "gpu_bandwidth": GB,
    "cpu_bandwidth": GB,
    "cpu_to_gpu_bandwidth": GB,
    "gpu_compute": TERA,
    "cpu_compute": TERA,
}
OPTIONAL = {"disk_bandwidth": GB}
ASSUMED_DISK = 1e9
"""Bytes/s of a disk where the profile names none."""


def is_profile(section: Mapping[str, Any]) -> bool:
    """Whether a ``hardware`` section is one machine, not a mapping of names to machines."""
    return not any(isinstance(value, Mapping) for value in section.values())


def classic_hardware(document: object, name: str, profile: str | None = None) -> Hardware:
    """The machine of a classic file; ``profile`` names one where there are several.

    Raises DocumentError naming what is missing, unknown or out of range."""
    section = mapping(known_fields(document, name, SECTIONS)["hardware"], f"hardware of {name}")
    if is_profile(section):
        if profile is not None:
            raise DocumentError(f"{name} holds one machine", got=f"the name {profile[:80]}")
        return _machine(section, name)
    if profile is None and len(section) != 1:
        raise DocumentError(
            f"{name} holds several machines",
            expected=f"one of {', '.join(sorted(section))[:400]}",
            hint=f"--hardware {name}#{next(iter(sorted(section)), 'NAME')}",
        )
    chosen = profile or next(iter(section))
    if chosen not in section:
        raise DocumentError(
            f"no machine {chosen[:80]!r} in {name}", expected=", ".join(sorted(section))[:400]
        )
    return _machine(section[chosen], chosen)


def _machine(section: object, name: str) -> Hardware:
    given = known_fields(section, f"hardware {name}", FIELDS.keys() | OPTIONAL.keys())
    missing = [field for field in FIELDS if field not in given]
    if missing:
        raise DocumentError(f"hardware {name}", expected=", ".join(missing))
    si = {
        field: number(given[field], f"{field} of {name}", 1e-3, 1e9) * unit
        for field, unit in {**FIELDS, **OPTIONAL}.items()
        if field in given
    }
    return Hardware(
        name,
        {
            CPU_FLOPS: si["cpu_compute"],
            DRAM: si["cpu_bandwidth"],
            DISK: si.get("disk_bandwidth", ASSUMED_DISK),
            HOST: 1.0,
            GPU_FLOPS: si["gpu_compute"],
            HBM: si["gpu_bandwidth"],
            H2D: si["cpu_to_gpu_bandwidth"],
            D2H: si["cpu_to_gpu_bandwidth"],
        },
        {"host": int(si["cpu_memory"]), "device": int(si["gpu_memory"])},
    )
