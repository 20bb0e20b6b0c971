"""LZ4 blocks for bit planes, which are runs of equal bytes and noise: nothing else is looked for.

A general encoder hashes its way through planes at 2 GB/s.  Here a run of equal bytes becomes a
match with the byte before it, and everything else literals; any LZ4 decoder reads that.

References
----------
.. [1] LZ4 Block Format Description, 2022-07-31 (lz4 1.9.4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from gaincal.kernels.machine import copy_bytes, equal_neighbours, store_byte, trailing_zeros

Array = npt.NDArray[Any]
WIDTH = 64
SHORTEST = 8
"""Equal bytes that are worth a match, of which the first is a literal of its own."""
MIN_MATCH = 4
LAST_MATCH, LAST_LITERALS = 12, 5
"""Bytes before the end in which no match begins, and which are always literals."""
NIBBLE = 15
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def squeeze(source: int, size: int, target: int, equal: Array, starts: Array) -> Any:
    """Write an LZ4 block.

    Parameters
    ----------
    source, size : int
        Address and number of the bytes, a multiple of 64 of them, behind which 64 more may be read.
    target : int
        Address of enough room: ``size + size // 255 + 16`` bytes.
    equal, starts : ndarray (size // 64 + 1,) of uint64
        Scratch.

    Returns
    -------
    length : int
        Of the block.
    """
    count = size // WIDTH
    _find_runs(source, count, equal, starts)
    anchor, done = 0, target
    position = 1
    while True:
        position = _next(starts, position, count)
        if position > size - LAST_MATCH:
            break
        end = min(_run_end(equal, position, count), size - LAST_LITERALS)
        done = _sequence(source, anchor, position, end - position, done)
        anchor = position = end
    return _literals(source, anchor, size, done) - target


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _find_runs(source: int, count: int, equal: Array, starts: Array) -> None:
    """Note, one bit a byte, which bytes equal the one before, and at which of them `SHORTEST` such bytes begin."""
    equal[0] = equal_neighbours(source + 1) << np.uint64(1)  # nothing lies before the first byte
    for k in range(1, count):
        equal[k] = equal_neighbours(source + k * WIDTH)
    equal[count] = starts[count] = np.uint64(0)
    for k in range(count):
        bits, following = equal[k], equal[k + 1]
        run = bits
        for shift in range(1, SHORTEST):
            run &= bits >> np.uint64(shift) | following << np.uint64(WIDTH - shift)
        starts[k] = run


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _next(bits: Array, position: int, count: int) -> Any:
    """The first set bit from a position on, or one behind all."""
    k = position // WIDTH
    if k >= count:
        return count * WIDTH
    found = bits[k] >> np.uint64(position % WIDTH) << np.uint64(position % WIDTH)
    while found == 0:
        k += 1
        if k >= count:
            return count * WIDTH
        found = bits[k]
    return k * WIDTH + trailing_zeros(found)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _run_end(equal: Array, position: int, count: int) -> Any:
    """The first byte from a position on that differs from the one before."""
    k = position // WIDTH
    found = ~equal[k] >> np.uint64(position % WIDTH) << np.uint64(position % WIDTH)
    while found == 0:
        k += 1
        if k >= count:
            return count * WIDTH
        found = ~equal[k]
    return k * WIDTH + trailing_zeros(found)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _sequence(source: int, anchor: int, position: int, match: int, target: int) -> Any:
    """Literals, then a match with the byte before; returns where the next sequence goes."""
    token = target
    target = _copied(source, anchor, position, token)
    store_byte(target, 1)
    store_byte(target + 1, 0)
    rest = match - MIN_MATCH
    literals = position - anchor
    store_byte(token, (min(literals, NIBBLE) << 4) | min(rest, NIBBLE))
    return _length(rest, target + 2)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _literals(source: int, anchor: int, size: int, target: int) -> Any:
    """The last sequence, of literals only."""
    store_byte(target, min(size - anchor, NIBBLE) << 4)
    return _copied(source, anchor, size, target)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _copied(source: int, anchor: int, end: int, token: int) -> Any:
    """The rest of the number of literals, and the literals, behind a token."""
    target = _length(end - anchor, token + 1)
    copy_bytes(source + anchor, target, end - anchor)
    return target + end - anchor


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _length(number: int, target: int) -> Any:
    """What does not fit the nibble of a token."""
    if number < NIBBLE:
        return target
    rest = number - NIBBLE
    while rest >= 255:
        store_byte(target, 255)
        target += 1
        rest -= 255
    store_byte(target, rest)
    return target + 1
