"""Which kernels are benchmarked in which formats, and the run over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from headrace.cli.kernelbench import attention_cases, linear_cases, row_cases, weights
from headrace.cli.kernelbench.case import Bench, Case, Row
from headrace.cli.kernelbench.read_cases import disk_roof, read_file, read_pages
from headrace.cli.kernelbench.roofs import Reads, Roofs, measure_roofs
from headrace.cli.kernelbench.timing import Watch
from headrace.errors import UsageError
from headrace.kernels.select import Kernels, select
from headrace.specs.policy import ACTIVATIONS

Cases = Callable[[Kernels, str, bool], Iterator[Case]]

SECONDS, QUICK_SECONDS = 0.15, 0.02
"""Of repetitions for each figure."""

SUITE: dict[str, tuple[Cases, tuple[str, ...]]] = {
    "linear": (linear_cases.linear, weights.FORMATS),
    "experts": (linear_cases.experts, weights.FORMATS),
    "logits": (linear_cases.logits, ("bf16", "fp16")),
    "attention-decode": (attention_cases.decode, attention_cases.FORMATS),
    "attention-prefill": (attention_cases.prefill, attention_cases.FORMATS),
    "attention-latent": (attention_cases.latent, attention_cases.FORMATS),
    "append": (attention_cases.append, attention_cases.FORMATS),
    "embed": (row_cases.embed, ("bf16",)),
    "rms_norm": (row_cases.rms_norm, ("fp32",)),
    "rope": (row_cases.rope, ("fp32",)),
    "router": (row_cases.router, ("bf16",)),
    "sample": (row_cases.sample, ("fp32",)),
}
"""Cases and formats by name. ``read`` comes beside these."""

PRODUCTS = ("linear", "experts", "logits")
"""Those whose weights may meet other activations."""

NAMES = (*SUITE, "read")
FORMATS = tuple(dict.fromkeys(form for _, forms in SUITE.values() for form in forms))


@dataclass(frozen=True)
class Choice:
    """What to run. ``folder`` is where ``read`` puts its file; empty tuples choose everything.
    Weights that ``activations`` are for meet them."""

    kernels: str
    threads: int
    names: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    quick: bool = False
    folder: Path = Path()
    activations: str | None = None

    def __post_init__(self) -> None:
        if self.activations not in (None, *ACTIVATIONS):
            expected = " | ".join(ACTIVATIONS)
            raise UsageError("--activations", expected=expected, got=self.activations)
        for flag, given, known in (
            ("--kernel", self.names, NAMES),
            ("--format", self.formats, FORMATS),
        ):
            for name in given:
                if name not in known:
                    raise UsageError(flag, expected=", ".join(known), got=name)
        if not self.pairs and not self.reads:
            raise UsageError(
                "no kernel has that format", expected="another pair", got=f"{self.names}"
            )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Kernel and format of every group of rows."""
        return [
            (name, form)
            for name, (_, forms) in SUITE.items()
            for form in forms
            if name in (self.names or NAMES) and form in (self.formats or forms)
        ]

    def label(self, name: str, form: str) -> str:
        """The format of a row: that of the weights, and of activations that were asked for."""
        return weights.with_activations(form, self.activations) if name in PRODUCTS else form

    @property
    def reads(self) -> bool:
        """Whether pages are read: when asked for, or when everything is."""
        return "read" in self.names or not (self.names or self.formats)


def run_suite(
    choice: Choice, clock: Callable[[], float], told: Callable[[Roofs], object]
) -> Iterator[Row]:
    """Measure the roofs, tell them, then every row as it is ready. torch's setting of threads
    is put back at the end."""
    kernels = select(choice.kernels, choice.threads, choice.activations or ACTIVATIONS[0])
    watch = Watch(clock, QUICK_SECONDS if choice.quick else SECONDS)
    before = torch.get_num_threads()
    torch.manual_seed(0)
    try:
        with torch.inference_mode():
            reads = Reads(choice.threads, choice.quick)
            roofs = measure_roofs(reads, replace(watch, seconds=2 * watch.seconds), choice.quick)
            told(roofs)
            # Beside native kernels the engine gives torch one thread; so the same here.
            own = 1 if kernels.name == "native" else choice.threads
            bench = Bench(roofs, reads, watch, own)
            for name, form in choice.pairs:
                for case in SUITE[name][0](kernels, choice.label(name, form), choice.quick):
                    yield bench.row(case)
            if choice.reads:
                yield from _reads(choice, roofs, clock)
    finally:
        torch.set_num_threads(before)


def _reads(choice: Choice, roofs: Roofs, clock: Callable[[], float]) -> Iterator[Row]:
    with read_file(choice.folder, choice.quick) as reader:
        with_disk = replace(roofs, disk=disk_roof(reader, clock, choice.quick))
        for case, seconds in read_pages(reader, clock, choice.quick):
            roof, least = with_disk.binding(case.amounts)
            yield Row(
                kernel=case.kernel,
                shape=case.shape,
                format=case.format,
                threads=choice.threads,
                gb_per_s=case.bytes / seconds / 1e9,
                gflop_per_s=0.0,
                roof=roof,
                percent_of_roof=100.0 * least / seconds,
                torch_ratio=None,
                torch_way=None,
                torch_seconds={},
                seconds=seconds,
            )
