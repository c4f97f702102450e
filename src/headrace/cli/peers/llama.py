"""llama.cpp as a contestant: its own ``llama-batched-bench``, given by path.

The program reads all prompts, then draws for all sequences together, and prints a line of JSON
for each batch. It draws no tokens from logits: the tokens it goes on with are random.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from headrace.cli.peers.shape import Shape, Times
from headrace.errors import UsageError


@dataclass(frozen=True)
class Llama:
    """A GGUF file under ``program``; ``extra`` arguments are passed on as they are."""

    program: str
    gguf: str
    extra: str = ""

    @property
    def name(self) -> str:
        """Engine and file."""
        return f"llama.cpp {Path(self.gguf).stem}"

    @property
    def files(self) -> tuple[str, ...]:
        """The GGUF."""
        return (self.gguf,)

    @property
    def scratch(self) -> None:
        """Needs none."""
        return None

    def command(self, shape: Shape) -> list[str]:
        """One batch. The context holds every sequence to its end. Raises UsageError."""
        if shutil.which(self.program) is None:
            raise UsageError(
                "no llama-batched-bench",
                expected="an executable",
                got=self.program,
                hint="build llama.cpp and give the path of its llama-batched-bench",
            )
        if not Path(self.gguf).is_file():
            raise UsageError("--gguf", expected="a file", got=self.gguf)
        tokens = shape.batch * (shape.prompt_len + shape.gen_len)
        return [
            *(self.program, "-m", self.gguf, "-c", str(tokens)),
            *("-npp", str(shape.prompt_len), "-ntg", str(shape.gen_len), "-npl", str(shape.batch)),
            *("-t", str(shape.threads), "-tb", str(shape.threads), "--output-format", "jsonl"),
            *shlex.split(self.extra),
        ]

    def times(self, output: str, shape: Shape) -> Times:
        """The line of this batch."""
        for line in output.splitlines():
            found = _times(line, shape)
            if found is not None:
                return found
        raise ValueError(f"no line of batch {shape.batch} in the output of {self.program}")

    def version(self) -> str:
        """What ``--version`` says, or that it says nothing. Never raises."""
        try:
            done = subprocess.run(
                [self.program, "--version"], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.SubprocessError):
            return "llama.cpp, version unknown"
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return f"llama.cpp {said[0].strip()}" if said else "llama.cpp, version unknown"


def _times(line: str, shape: Shape) -> Times | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        fields = json.loads(line)
        if fields["pl"] != shape.batch:
            return None
        prefill, decode = float(fields["t_pp"]), float(fields["t_tg"])
        rows, drawn = fields["pl"] * fields["pp"], fields["pl"] * fields["tg"]
    except (KeyError, TypeError, ValueError):
        return None
    return Times(int(rows), prefill, int(drawn), decode, prefill + decode)
