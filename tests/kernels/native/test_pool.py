"""How many helper threads there are, and that what they ask for ahead of time changes nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from headrace.kernels.native import available, matrix, native_module

pytestmark = pytest.mark.skipif(not available(), reason="native kernels not built")

CALLS = """
import os
from headrace.kernels.native import native_module
before = set(os.listdir("/proc/self/task"))
for _ in range(300):
    native_module().multiply_floats({threads}, 100)
print(len(set(os.listdir("/proc/self/task")) - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_calls_one_after_the_other_share_the_same_helpers(threads):
    """A helper that has not looked up yet from the call before is not replaced by a new one."""
    ran = subprocess.run(
        [sys.executable, "-c", CALLS.format(threads=threads)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(ran.stdout) == threads - 1


def test_what_is_asked_for_ahead_changes_no_result():
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 200, generator=draw), torch.randn(150, 200, generator=draw)
    tile = torch.empty(1 << 16)
    wanted = matrix.linear(x, weight, torch.empty(3, 150), tile, threads=3)
    for at, nbytes in ((0, 1 << 20), (weight.data_ptr(), 4 * weight.numel()), (1, 1), (64, 0)):
        native_module().fetch(at, nbytes, 3)
        got = matrix.linear(x, weight, torch.empty(3, 150), tile, threads=3)
        assert torch.equal(got, wanted)
    matrix.fetch(weight, threads=3)
    assert torch.equal(matrix.linear(x, weight, torch.empty(3, 150), tile, threads=3), wanted)
