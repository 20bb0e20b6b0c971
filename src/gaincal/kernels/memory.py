"""Arrays that begin where a vector register's worth of memory begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Bytes of a cache line: a load or store that crosses one costs twice."""


def empty_aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised, contiguous array whose first element is aligned to a cache line."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    skip = -room.ctypes.data % ALIGNMENT
    return room[skip : skip + size].view(kind).reshape(shape)


def aligned(array: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An aligned, contiguous copy in another type."""
    copy = empty_aligned(array.shape, dtype)
    copy[...] = array
    return copy
