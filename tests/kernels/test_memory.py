"""Arrays begin at a cache line, whatever their shape and type."""

from __future__ import annotations

import numpy as np
import pytest

from gaincal.kernels.memory import ALIGNMENT, aligned, empty_aligned


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (7, 5), (512, 1024)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "f8", "i8"])
def test_an_array_is_aligned_contiguous_and_writable(shape: tuple[int, ...], dtype: str) -> None:
    array = empty_aligned(shape, dtype)
    assert array.shape == shape
    assert array.dtype == np.dtype(dtype)
    assert array.flags.carray
    assert array.ctypes.data % ALIGNMENT == 0 or array.size == 0


def test_a_copy_holds_what_the_array_holds() -> None:
    array = np.arange(30, dtype="f8").reshape(5, 6)[:, ::2]
    copy = aligned(array, "f4")
    assert copy.dtype == np.float32
    assert np.array_equal(copy, array)
    assert copy.ctypes.data % ALIGNMENT == 0
    copy[0, 0] = 99
    assert array[0, 0] == 0
