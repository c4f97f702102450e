"""A compiler launcher for CMake: sources of AVX-512 are compiled for AVX2, with ``avx512.h`` in
place of the intrinsics, so that their arithmetic can be tested where no processor has them."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TAKEN = ("-mavx512", "-mamx")  # the files of AMX are empty then


def translated(command: list[str]) -> list[str]:
    """The command that compiles the emulation."""
    kept = [word for word in command if not word.startswith(TAKEN)]
    if len(kept) < len(command):
        kept[1:1] = ["-include", str(HERE / "avx512.h"), "-Wno-psabi"]
    source = Path(kept[-1])
    if source.name == "features.cpp":
        kept[-1] = str(HERE / "features.cpp")
    if source.name == "roofs.cpp":  # measures the processor, with instructions of its own
        kept.insert(1, "-Dfeatures=features_of_the_processor")
    return kept


if __name__ == "__main__":
    command = translated(sys.argv[1:])
    os.execvp(command[0], command)
