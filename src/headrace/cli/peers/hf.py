"""transformers as a contestant, resident or with accelerate's offload to disk.

``python hf.py ...`` is the process: it needs torch and transformers (and accelerate), not this
package, so that a peer's environment may be another one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.cli.peers.shape import Shape, Times

HOST_SHARE = 0.3
"""Of a bound on memory, what accelerate may fill with weights: its best here. It maps the pages on
disk; at 0.6 the interpreter and the layer at work left no page cache, and a step took minutes."""


@dataclass(frozen=True)
class Transformers:
    """The checkpoint folder in ``dtype`` (float32, bfloat16) under interpreter ``python``.
    ``offload_bytes``: accelerate keeps at most these in memory and the rest on disk."""

    python: str
    model: str
    dtype: str
    offload_bytes: int | None = None

    @property
    def name(self) -> str:
        """Engine and format."""
        engine = "transformers" if self.offload_bytes is None else "accelerate"
        return f"{engine} {self.dtype}"

    @property
    def files(self) -> tuple[str, ...]:
        """The folder."""
        return (self.model,)

    @property
    def scratch(self) -> str | None:
        """Beside the checkpoint, when offloading: it is the disk that is raced on."""
        return None if self.offload_bytes is None else str(Path(self.model).resolve().parent)

    def command(self, shape: Shape) -> list[str]:
        """This file under ``python``. Raises UsageError where a package is missing."""
        from headrace.errors import UsageError

        needed = ("torch", "transformers", *(("accelerate",) if self.offload_bytes else ()))
        missing = missing_packages(self.python, needed)
        if missing:
            raise UsageError(
                f"{self.python} lacks {', '.join(missing)}",
                hint="install it there, or give another interpreter: --peer-python",
            )
        numbers = [shape.batch, shape.prompt_len, shape.gen_len, shape.threads]
        offload = "0" if self.offload_bytes is None else str(self.offload_bytes)
        return [self.python, __file__, self.model, *map(str, numbers), self.dtype, offload]

    def times(self, output: str, shape: Shape) -> Times:
        """The last line."""
        from headrace.cli.peers.ours import last_line

        return last_line(output)


def missing_packages(python: str, names: tuple[str, ...]) -> list[str]:
    """Those that ``python`` cannot find; all of them where it does not run."""
    code = (
        "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if not u.find_spec(n)])"
    )
    try:
        done = subprocess.run(
            [python, "-c", code, *names], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return list(names)
    return done.stdout.split()


def main(arguments: list[str]) -> None:
    """MODEL BATCH PROMPT_LEN GEN_LEN THREADS DTYPE OFFLOAD_BYTES: run once, print times."""
    batch, prompt_len, gen_len, threads = map(int, arguments[1:5])
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, version = load(arguments[0], arguments[5], int(arguments[6]))
    prompts = torch.randint(0, model.config.vocab_size, (batch, prompt_len))
    with torch.inference_mode():
        say("loaded")
        model(input_ids=prompts[:1, :1], use_cache=True)  # the first call pays for itself
        say("first call done")
        began = perf_counter()
        out = model(input_ids=prompts, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        read = perf_counter()
        for step in range(1, gen_len):
            say(f"{step} of {gen_len} tokens after {perf_counter() - began:.0f} s")
            past = out.past_key_values
            out = model(input_ids=token, past_key_values=past, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        ended = perf_counter()
    times = {
        "prefill_tokens": batch * prompt_len,
        "prefill_seconds": read - began,
        "decode_tokens": batch * (gen_len - 1),
        "decode_seconds": ended - read,
        "seconds": ended - began,
        "version": f"transformers {transformers.__version__}, torch {torch.__version__}{version}",
    }
    print(json.dumps(times))


def say(stage: str) -> None:
    """How far it is, for whoever waits in vain for the end."""
    print(stage, file=sys.stderr, flush=True)


def load(folder: str, dtype: str, offload_bytes: int) -> tuple[Any, str]:
    """The model, and what to add to the version."""
    import torch
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    if not offload_bytes:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
        return model.eval(), ""
    import accelerate

    place = tempfile.mkdtemp(prefix="offload-")
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=kind,
        device_map="auto",
        max_memory={"cpu": offload_bytes},
        offload_folder=place,
    )
    return model.eval(), f", accelerate {accelerate.__version__}"


if __name__ == "__main__":
    main(sys.argv[1:])
