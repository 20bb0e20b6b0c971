"""Constants as they come from files: whole in memory, or read slab by slab where they are larger."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gaincal.formulas.program import Labels
from gaincal.kernels.memory import Shelf, available_memory

Array = npt.NDArray[Any]
SLAB_DIMS = 2
CACHE_BYTES = 512 << 20
"""Held of large constants at least, and more where there is memory."""
CACHE_SHARE = 8
"""One part in so many of the memory that there is."""
CACHE_VARIABLE = "GAINCAL_CONSTANTS_MIB"
Held = TypeVar("Held", bound="Sized")
Fixed = tuple[tuple[int, int], ...]
"""Numbers of axes, and a label along each."""


class Slabs(Protocol):
    """A constant that is read slab by slab: what its last two dims hold."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Along the dims that the formula declares."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values as they are stored."""

    def slab(self, place: tuple[int, ...], out: Array | None = None) -> Array:
        """The values at some indices of all dims but the last two: in `out`, or else in another array."""


@dataclass(frozen=True)
class ConstantMap:
    """A constant as it comes from a file.

    Parameters
    ----------
    values : ndarray (axis, ..., *pixels) or Slabs
        Along the dims that the formula declares.
    labels : tuple of tuple of int
        Labels along each named axis.
    """

    values: Array | Slabs
    labels: Labels


class LargeConstant:
    """A real constant of which only what is needed is in memory.

    Parameters
    ----------
    values : Slabs
    labels : tuple of tuple of int
        Along each named axis.
    compute : str
        The type in which it is computed.
    """

    def __init__(self, values: Slabs, labels: Labels, compute: str) -> None:
        self.values, self.labels, self.compute = values, labels, np.dtype(compute)
        self._places = tuple({label: k for k, label in enumerate(axis)} for axis in labels)

    def part(self, fixed: Mapping[int, int], leading: tuple[int, ...], window: tuple[slice, ...]) -> Array:
        """The values at one label along some axes, for a run of pixels.

        Parameters
        ----------
        fixed : mapping of int to int
            Label by number of the axis; NaN everywhere for one that does not exist.
        leading : tuple of int
            Indices along all pixel dims but the last two.
        window : tuple of slice
            Along the last two.

        Returns
        -------
        ndarray (other axes ..., pixel)
            Whole slabs of a label are for the caller to remember; what else is read is held.
        """
        lengths = [len(axis) for k, axis in enumerate(self.labels) if k not in fixed]
        size = self.values.shape[-SLAB_DIMS:]
        if any(label not in self._places[k] for k, label in fixed.items()):
            rows, columns = (len(range(*s.indices(n))) for s, n in zip(window, size, strict=True))
            return np.full((*lengths, rows * columns), np.nan, self.compute)
        known = tuple(fixed.items())
        if known and all(s.indices(n) == (0, n, 1) for s, n in zip(window, size, strict=True)):
            return self._planes(known, leading).reshape(*lengths, -1)
        planes = CACHE.get((self, known, leading), lambda: self._planes(known, leading))
        return np.ascontiguousarray(planes[(slice(None), *window)]).reshape(*lengths, -1)

    def _planes(self, fixed: Fixed, leading: tuple[int, ...]) -> Array:
        """Read the slabs of some labels (slab, *window) into the type in which they are computed."""
        known = dict(fixed)
        chosen = [[p[known[k]]] if k in known else range(len(p)) for k, p in enumerate(self._places)]
        places = list(product(*chosen))
        planes = CACHE.room((len(places), *self.values.shape[-SLAB_DIMS:]), self.compute)
        with np.errstate(over="ignore"):
            for plane, place in zip(planes, places, strict=True):
                found = self.values.slab((*place, *leading), plane)
                if found is not plane:
                    plane[...] = found
        return planes


class Sized(Protocol):
    """What takes memory."""

    @property
    def nbytes(self) -> int:
        """So many bytes, always the same number."""


class Cache:
    """What was read last of all large constants of the process, and what was made of it.

    What came first goes first, used or not: planes that lie in one piece of the shelf then go together, and with
    them the piece.

    Parameters
    ----------
    most : int
        Bytes that it holds; what came last is held whatever its size.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._found: OrderedDict[Hashable, Sized] = OrderedDict()
        self._lock, self._shelf = threading.Lock(), Shelf()

    def forget(self) -> None:
        """Start anew: another thread may have held the lock when the process was forked."""
        self._found.clear()
        self.held, self._lock, self._shelf = 0, threading.Lock(), Shelf()

    def room(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Room for planes, which lie behind each other."""
        with self._lock:
            return self._shelf.empty(shape, dtype)

    def get(self, key: Hashable, make: Callable[[], Held]) -> Held:
        """What is held under a key, which is made unless it is there."""
        with self._lock:
            if key in self._found:
                return self._found[key]  # type: ignore[return-value]
        made = make()
        with self._lock:
            if key not in self._found:
                self._found[key] = made
                self.held += made.nbytes
            while self.held > self.most and len(self._found) > 1:
                self.held -= self._found.popitem(last=False)[1].nbytes
        return made


def cache_bytes(memory: int) -> int:
    """How many bytes of large constants a process holds that may use so much memory, unless the user said it."""
    said = os.environ.get(CACHE_VARIABLE, "")
    return int(said) << 20 if said.isdecimal() else max(CACHE_BYTES, memory // CACHE_SHARE)


CACHE = Cache(cache_bytes(available_memory()))
os.register_at_fork(after_in_child=CACHE.forget)
