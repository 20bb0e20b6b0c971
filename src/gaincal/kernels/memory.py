"""Arrays that begin where a vector register's worth of memory begins, and whose memory is used again.

The first touch of fresh memory costs more than calibrating what goes there, so large arrays are
made of blocks that come back when nobody refers to the array any more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Bytes of a cache line: a load or store that crosses one costs twice."""
RECYCLED_BYTES = 1 << 16
"""Smaller arrays are what the allocator itself uses again."""
IDLE_BYTES = 512 << 20
"""Most memory that waits to be used again."""
PIECE_BYTES = 32 << 20
"""Of a shelf: NumPy asks for large pages where an array has 4 MiB and more."""
_OWN_GROUPS = Path("/proc/self/cgroup")
_CONTROL_GROUPS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}
_STEPS = 8
"""Sizes per doubling: an array is at most an eighth smaller than its block."""


def available_memory() -> int:
    """Bytes that this process may use: what the machine has, a control group allows or Slurm granted."""
    allowed = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    granted = os.environ.get("SLURM_MEM_PER_NODE", "")
    allowed += [int(granted) << 20] if granted.isdecimal() and int(granted) > 0 else []
    with suppress(OSError, ValueError):  # no such groups here
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            root, limit = _CONTROL_GROUPS.get(controllers, ("", ""))
            allowed += [n for n in _limits(root, group, limit) if root]
    return min(allowed)


def _limits(root: str, group: str, limit: str) -> Iterator[int]:
    """What a control group and those above it allow."""
    own = PurePosixPath(group.lstrip("/"))
    for part in (own, *own.parents):
        with suppress(OSError, ValueError):
            yield int((Path(root) / part / limit).read_text())


def empty_aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised, contiguous array whose first element is aligned to a cache line."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size >= RECYCLED_BYTES:
        return np.asarray(_Lease(size))[:size].view(kind).reshape(shape)
    return _room(size)[:size].view(kind).reshape(shape)


def aligned(array: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An aligned, contiguous copy in another type."""
    copy = empty_aligned(array.shape, dtype)
    copy[...] = array
    return copy


class Shelf:
    """Room for arrays of some 100 KiB that are kept for long: many in one piece, whose pages are large."""

    def __init__(self) -> None:
        self._free = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An uninitialised array as of `empty_aligned`; a piece lives as long as one of its arrays."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        taken = -(-size // ALIGNMENT) * ALIGNMENT
        if taken > self._free.size:
            self._free = empty_aligned((max(taken, PIECE_BYTES),), np.uint8)
        found, self._free = self._free[:size], self._free[taken:]
        return found.view(dtype).reshape(shape)


def _room(size: int) -> npt.NDArray[np.uint8]:
    room = np.empty(size + ALIGNMENT, np.uint8)
    skip = -room.ctypes.data % ALIGNMENT
    return room[skip : skip + size]


class _Lease:
    """A block of memory on loan to an array, which refers to it; taken back when the array is gone."""

    block: npt.NDArray[np.uint8] | None = None

    def __init__(self, size: int) -> None:
        step = 1 << max(0, size.bit_length() - _STEPS.bit_length())
        self.size = -(-size // step) * step
        self.block = _IDLE.take(self.size)
        # NumPy keeps what offers this interface alive for as long as the array, and all views of it.
        self.__array_interface__ = {**self.block.__array_interface__}

    def __del__(self) -> None:
        if self.block is not None:
            _IDLE.give(self.block)


class _Idle:
    """Blocks that nobody uses.

    Blocks come back whenever the interpreter drops an array, possibly in the middle of these very
    lines, so nothing here takes a lock: every step is one operation on a dict.
    """

    def __init__(self) -> None:
        self.blocks: dict[int, npt.NDArray[np.uint8]] = {}

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        for key, block in reversed(self.blocks.copy().items()):
            if block.size == size and self.blocks.pop(key, None) is not None:
                return block
        return _room(size)

    def give(self, block: npt.NDArray[np.uint8]) -> None:
        self.blocks[id(block)] = block
        held = 0
        for key, idle in reversed(self.blocks.copy().items()):
            held += idle.size
            if held > IDLE_BYTES:
                self.blocks.pop(key, None)


_IDLE = _Idle()
