"""Constants as they come from files: whole in memory, or read slab by slab where they are larger."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gaincal.formulas.program import Labels
from gaincal.kernels.memory import Shelf

Array = npt.NDArray[Any]
SLAB_DIMS = 2
CACHE_BYTES = 512 << 20
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

    def slab(self, place: tuple[int, ...]) -> Array:
        """The values at some indices of all dims but the last two."""


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
        """
        lengths = [len(axis) for k, axis in enumerate(self.labels) if k not in fixed]
        if any(label not in self._places[k] for k, label in fixed.items()):
            rows, columns = (
                len(range(*s.indices(n))) for s, n in zip(window, self.values.shape[-SLAB_DIMS:], strict=True)
            )
            return np.full((*lengths, rows * columns), np.nan, self.compute)
        planes = _CACHE.planes(self, tuple(fixed.items()), leading)[(slice(None), *window)]
        return np.ascontiguousarray(planes).reshape(*lengths, -1)

    def shape(self, fixed: Fixed) -> tuple[int, ...]:
        """Of all slabs of some labels (slab, *window): whole ones, one behind the other."""
        known = dict(fixed)
        slabs = math.prod(len(axis) for k, axis in enumerate(self.labels) if k not in known)
        return (slabs, *self.values.shape[-SLAB_DIMS:])

    def load(self, fixed: Fixed, leading: tuple[int, ...], out: Array) -> None:
        """Read the slabs of some labels into the type in which they are computed."""
        known = dict(fixed)
        chosen = [[p[known[k]]] if k in known else range(len(p)) for k, p in enumerate(self._places)]
        with np.errstate(over="ignore"):
            for plane, place in zip(out, product(*chosen), strict=True):
                plane[...] = self.values.slab((*place, *leading))


class _SlabCache:
    """The slabs that were read last, of all constants of the process; those of one label lie together.

    Who came first goes first, used or not: those that lie in one piece of the shelf then go together, and with
    them the piece.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._slabs: OrderedDict[tuple[int, Fixed, tuple[int, ...]], tuple[LargeConstant, Array]] = OrderedDict()
        self._lock, self._shelf = threading.Lock(), Shelf()

    def forget(self) -> None:
        """Start anew: another thread may have held the lock when the process was forked."""
        self._slabs.clear()
        self.held, self._lock, self._shelf = 0, threading.Lock(), Shelf()

    def planes(self, constant: LargeConstant, fixed: Fixed, leading: tuple[int, ...]) -> Array:
        """The slabs of some labels (slab, *window), which are read unless they are held."""
        key = (id(constant), fixed, leading)
        with self._lock:
            if key in self._slabs:
                return self._slabs[key][1]
            values = self._shelf.empty(constant.shape(fixed), constant.compute)
        constant.load(fixed, leading, values)
        with self._lock:
            if key not in self._slabs:
                self._slabs[key] = (constant, values)  # with its owner, whose id is the key
                self.held += values.nbytes
            while self.held > self.most and len(self._slabs) > 1:
                self.held -= self._slabs.popitem(last=False)[1][1].nbytes
        return values


_CACHE = _SlabCache(CACHE_BYTES)
os.register_at_fork(after_in_child=_CACHE.forget)
