"""``python -m fuzz.refusals``: how long each of the 300 damaged checkpoints takes to refuse."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz.checkpoints import build, cases
from headrace.cli.inspection import inspect_model
from headrace.engine.loaded import Loaded
from headrace.engine.tokenizer import Tokenizer
from headrace.errors import ModelError

MOST_SECONDS = 1.0


def main() -> int:
    """Print a table by kind; 1 when one took longer than MOST_SECONDS or ended otherwise."""
    times: dict[str, list[float]] = defaultdict(list)
    wrong = 0
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        warm_up(folder / "whole")
        for number, (case, random) in enumerate(cases()):
            built = build(folder / str(number), case, random)
            began = time.perf_counter()
            refused = _refused(built)
            times[f"{case.name} ({case.outcome})"].append(time.perf_counter() - began)
            if refused != (case.outcome == "refused"):
                wrong += 1
                print(f"{case.name}: {'refused' if refused else 'loaded'}", file=sys.stderr)
    print("| damage (what must follow) | checkpoints | slowest, ms |\n|---|---|---|")
    for name, each in sorted(times.items()):
        print(f"| {name} | {len(each)} | {1000 * max(each):.1f} |")
    slow = max(max(each) for each in times.values())
    count = sum(map(len, times.values()))
    print(f"\n{count} checkpoints, slowest {1000 * slow:.0f} ms, {wrong} wrong")
    return int(wrong > 0 or slow > MOST_SECONDS)


def warm_up(folder: Path) -> None:
    """Import what a first load imports, by loading what is sound."""
    case, random = next((c, r) for c, r in cases() if c.outcome == "the same")
    Tokenizer.load(build(folder, case, random)).close()


def _refused(folder: Path) -> bool:
    """Whether ``inspect``, or a run that opens the folder and its tokenizer, refuses it."""
    try:
        inspect_model(str(folder))
        loaded = Loaded.open(folder)
        try:
            loaded.tokenizer.encode("abc")
        finally:
            loaded.close()
    except ModelError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
