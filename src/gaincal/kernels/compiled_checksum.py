"""HDF5's fletcher32 checksum, compiled: as fast as memory, once numba is there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from gaincal.kernels.checksum import MODULUS
from gaincal.kernels.machine import WEIGHED, load_byte, load_word, weigh_words
from gaincal.kernels.packed import Array

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _rest(total: Any) -> Any:
    """A sum modulo 65535, in which only nothing at all gives 0."""
    rest = total % np.uint64(MODULUS)
    return np.uint64(MODULUS) if rest == 0 and total != 0 else rest


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _exchanged(rest: Any) -> Any:
    return (rest & np.uint64(0xFF)) << np.uint64(8) | rest >> np.uint64(8)


@njit("int64(int64, int64)", **_OPTIONS)  # type: ignore[untyped-decorator]
def fletcher32_at(start: int, size: int) -> Any:
    """The checksum of so many bytes from an address on."""
    first, second = np.uint64(0), np.uint64(0)
    even = size // 2
    whole = even - even % WEIGHED
    for begin in range(0, whole, WEIGHED):
        sums = weigh_words(start + 2 * begin)
        second = _rest(second + np.uint64(WEIGHED) * first + (sums & np.uint64(0xFFFFFFFF)))
        first = _rest(first + (sums >> np.uint64(32)))
    for k in range(whole, even):
        first = _rest(first + load_word(start + 2 * k))
        second = _rest(second + first)
    if size % 2:
        first = _rest(first + load_byte(start + size - 1))
        second = _rest(second + first)
    return np.int64(_exchanged(second) << np.uint64(16) | _exchanged(first))


def fletcher32(data: Array) -> int:
    """As `gaincal.kernels.checksum.fletcher32`."""
    return int(fletcher32_at(data.ctypes.data, data.size))
