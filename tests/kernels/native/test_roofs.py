"""The loops behind the roofs: every byte is read, and FLOPs are told by threads and steps."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.kernels.native import available, native_module

pytestmark = pytest.mark.skipif(not available(), reason="native kernels were not built")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 256, 1000, (1 << 20) + 264])
def test_every_byte_is_read(size, threads):
    data = np.zeros(size + 8, np.uint8)
    for place in {0, size // 2, size - 1} - {-1}:
        data[:] = 0
        assert native_module().read_all(data.ctypes.data, size, threads) == 0
        data[place] = 1
        if place < size:
            assert native_module().read_all(data.ctypes.data, size, threads) != 0


def test_bytes_beyond_the_end_do_not_count():
    data = np.full(128, 7, np.uint8)
    data[:64] = 0
    assert native_module().read_all(data.ctypes.data, 64, 1) == 0


def test_flops_grow_with_threads_and_steps():
    native = native_module()
    one = native.multiply_floats(1, 100)
    assert one > 0
    assert native.multiply_floats(2, 300) == 6 * one
    assert native.multiply_bytes(2, 300) == 6 * native.multiply_bytes(1, 100)
    assert native.multiply_pairs(2, 300) == 6 * native.multiply_pairs(1, 100)
