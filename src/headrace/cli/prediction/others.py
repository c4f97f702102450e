"""What other programs take of the machine while something is timed."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Others:
    """Processor seconds of everybody else on this machine, from now on. What its host takes does
    not count: it takes most of it for our own reads (lab, "a core that is taken away")."""

    def __init__(self) -> None:
        self._before = self._used()

    def share(self, wall: float) -> float:
        """Share of one core over ``wall`` seconds; 0 where the system does not say."""
        return max(0.0, self._used() - self._before) / max(wall, 1e-9)

    def _used(self) -> float:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        except OSError:
            return 0.0
        busy = sum(int(fields[i]) for i in (1, 2, 3, 6, 7))  # not: idle, waiting, stolen
        return busy / os.sysconf("SC_CLK_TCK") - time.process_time()
