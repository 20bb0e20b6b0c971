"""Frames grouped by their labels: how a program is computed whose constants are larger than memory.

Frames of one memory cell need the planes of that cell only.  So the frames of a block are taken
cell by cell and module by module, with constants that have lost the axis of the cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal import constants
from gaincal.calibration import Calibration, Chosen
from gaincal.constants import SLAB_DIMS
from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import Program, fix_axes
from gaincal.kernels.blocks import Plan, Share
from gaincal.kernels.prepared import KNOWN_BYTES, Prepared
from gaincal.kernels.rows import Rows
from gaincal.kernels.runs import split_runs
from gaincal.kernels.threads import run_all

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.uint32]
PLANES_BYTES = 64 << 20
"""Of large constants that are in use at a time."""
HELD_BLOCKS = 2
"""Labels of so many blocks are held: those of the one before must not go because of those that come."""


@dataclass(frozen=True, eq=False)
class _Wanted:
    """Planes of a label of a module, with its maps that are the same for all labels."""

    label: tuple[int, ...]
    module: tuple[int, ...]
    maps: Mapping[str, Array]
    pixels: int

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from others of a block."""
        return self.label, self.module


class GroupedProgram:
    """A program whose large constants are taken label by label.

    Parameters
    ----------
    calibration : Calibration
    program : Program
    """

    def __init__(self, calibration: Calibration, program: Program) -> None:
        self.calibration = calibration
        self.outer, self.fixed = fix_axes(program, frozenset(calibration.large))
        self.inner = replace(self.outer, partial=frozenset())
        self.index = sorted({name for axes in self.fixed.values() for name in axes.values()})

    def plan(self, words: Mapping[str, Array], frames: Chosen, threads: int) -> tuple[Plan, dict[str, Any]]:
        """What computes whole frames, of which those of a label follow each other, and what is given for each.

        Parameters
        ----------
        words : mapping of str to ndarray (frame, *pixels)
        frames : slice or ndarray of int
        threads : int
            Most threads to read planes with.
        """
        arrays, window = self._block(words, frames, ())
        count, pixels = next(iter(words.values())).shape[0], math.prod(self.calibration.layout.pixels)
        wanted: list[_Wanted] = []
        runs = []
        for module, first, last, own in self._modules(arrays, window, pixels):
            keys = self._keys(own, count)
            edges = [0, *(np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1).tolist(), count]
            maps = self._maps(own, module, window, slice(first, last))
            wanted += [_Wanted(tuple(label), module, maps, last - first) for label in keys[edges[:-1]].tolist()]
            runs.append([(first, *part) for part in pairwise(edges)])
        prepared = iter(self._prepared(wanted, window, threads))
        shares = [[Share(next(prepared), 0, *part) for part in run] for run in runs]
        return Plan(self.outer, pixels, shares), arrays

    def evaluate(
        self,
        words: Mapping[str, Array],
        frames: Chosen,
        window: tuple[slice, ...],
        value: Array,
        flags: Flags | None,
        threads: int,
    ) -> None:
        """Compute some frames and a window of pixels.

        Parameters
        ----------
        words : mapping of str to ndarray (frame, *window)
        frames : slice or ndarray of int
        window : tuple of slice
            One slice per pixel dim.
        value : ndarray (frame, pixel)
            Receives the value.
        flags : ndarray (frame, pixel) of uint32, or None
            Receives the flags.
        threads : int
            Most threads to use.
        """
        arrays, _ = self._block(words, frames, window)
        for module, first, last, own in self._modules(arrays, window, value.shape[1]):
            found, group = np.unique(self._keys(own, len(value)), axis=0, return_inverse=True)
            order = np.argsort(group.reshape(-1), kind="stable")  # a label's planes are used in a row
            edges = np.searchsorted(group.reshape(-1)[order], np.arange(len(found) + 1))
            values = Rows.of(value[:, first:last])
            reasons = None if flags is None else Rows.of(flags[:, first:last])
            maps = self._maps(own, module, window, slice(first, last))
            most = self._labels_at_once(last - first)
            for begin in range(0, len(found), most):
                labels, edge = found[begin : begin + most].tolist(), edges[begin : begin + most + 1]
                chosen = order[edge[0] : edge[-1]]
                wanted = [_Wanted(tuple(label), module, maps, last - first) for label in labels]
                prepared = self._prepared(wanted, window, threads)
                ranges = pairwise((edge - edge[0]).tolist())
                shares = [Share(p, 0, 0, *part) for p, part in zip(prepared, ranges, strict=True)]
                given = self._given(own, chosen, slice(first, last))
                taken = values.take(chosen), reasons and reasons.take(chosen)
                Plan(self.inner, last - first, [shares]).evaluate(given, *taken, threads)

    def _block(
        self, words: Mapping[str, Array], frames: Chosen, window: tuple[slice, ...]
    ) -> tuple[dict[str, Any], tuple[slice, ...]]:
        """What is given but for large constants, and the window, all pixels if there is none."""
        whole = tuple(slice(0, n) for n in self.calibration.layout.pixels)
        return self.calibration.block(self.outer, words, frames, window), window or whole

    def _modules(
        self, arrays: Mapping[str, Any], window: tuple[slice, ...], pixels: int
    ) -> Iterator[tuple[tuple[int, ...], int, int, dict[str, Array]]]:
        """For each run of pixels: its module, the first pixel and the one behind the last, and its own arrays."""
        leading = [list(range(s.start, s.stop)) for s in window[:-SLAB_DIMS]]
        lengths = tuple(len(places) for places in leading)
        for run, (first, last, own) in enumerate(split_runs(self.outer, arrays, pixels, math.prod(lengths))):
            places = np.unravel_index(run, lengths) if lengths else ()
            yield tuple(p[int(k)] for p, k in zip(leading, places, strict=True)), first, last, own

    def _keys(self, arrays: Mapping[str, Array], frames: int) -> Array:
        """The labels (frame, index) of a module."""
        return np.stack([arrays[n] for n in self.index] or [np.zeros(frames)], axis=1)

    def holds(self, frames: Array) -> bool:
        """Whether the planes of all labels of some frames can be held."""
        return int(self._numbered(frames).max()) < self._labels_held

    def blocks(self, frames: Array, most: int) -> list[Array]:
        """Frames label by label, in blocks of at most so many whose planes can be held.

        In the order of the run the planes would come from memory, if not from the file, again for every train.
        """
        group = self._numbered(frames)
        order = np.argsort(group, kind="stable")
        cuts = np.flatnonzero(np.diff(group[order] // max(1, self._labels_held // HELD_BLOCKS))) + 1
        parts = np.split(frames[order], cuts)
        return [own[begin : begin + most] for own in parts for begin in range(0, len(own), most)]

    def _numbered(self, frames: Array) -> npt.NDArray[np.intp]:
        """For each frame the number of its labels, those of all modules, among those that there are."""
        given = [self.calibration.arrays[name] for name in self.index]
        chosen = [a[frames].reshape(len(frames), -1) for a in given if a.ndim]
        if not chosen:
            return np.zeros(len(frames), np.intp)
        _, group = np.unique(np.concatenate(chosen, axis=1), axis=0, return_inverse=True)
        return group.reshape(-1)

    @property
    def _labels_held(self) -> int:
        """Of so many labels the planes of all modules can be held."""
        modules = math.prod(self.calibration.layout.pixels[:-SLAB_DIMS])
        return max(1, constants.CACHE.most // max(1, modules * self._label_bytes))

    def _labels_at_once(self, pixels: int) -> int:
        """So many labels that their planes take no more than `PLANES_BYTES`."""
        slab = math.prod(self.calibration.layout.pixels[-SLAB_DIMS:])
        return max(1, PLANES_BYTES * slab // max(1, self._label_bytes * pixels))

    @property
    def _label_bytes(self) -> int:
        """Of what is held for a label of a module."""
        planes = sum(
            math.prod(len(a) for k, a in enumerate(self.calibration.large[name].labels) if k not in axes)
            for name, axes in self.fixed.items()
            if axes
        )
        slab = math.prod(self.calibration.layout.pixels[-SLAB_DIMS:])
        return slab * (planes * np.dtype(self.inner.compute).itemsize + KNOWN_BYTES)

    def _given(self, arrays: Mapping[str, Array], chosen: Array, pixels: slice) -> dict[str, Array | Rows]:
        """What is given for each frame, of some frames."""
        given: dict[str, Array | Rows] = {}
        for item in self.inner.given:
            if item.name in self.inner.by_row:
                given[item.name] = Rows.reading(arrays[item.name][:, pixels]).take(chosen)
            elif item.name in self.inner.by_frame:
                given[item.name] = arrays[item.name][chosen]
        return given

    def _maps(
        self, arrays: Mapping[str, Array], module: tuple[int, ...], window: tuple[slice, ...], pixels: slice
    ) -> dict[str, Array]:
        """What is the same in all frames, whatever their labels."""
        types, large, found = dict(self.inner.types), self.calibration.large, dict[str, Array]()
        for name in [item.name for item in self.inner.given if item.name not in self.inner.by_frame]:
            if name not in large:
                own = arrays[name][..., pixels] if types[name].dims - {FRAME} else arrays[name]
                found[name] = np.ascontiguousarray(own)  # one copy for all labels
            elif not self.fixed[name]:
                found[name] = large[name].part({}, module, window[-SLAB_DIMS:])
        return found

    def _prepared(self, wanted: Sequence[_Wanted], window: tuple[slice, ...], threads: int) -> list[Prepared]:
        """Planes of labels as the kernel takes them; held for later if they are whole."""
        inner, slab = window[-SLAB_DIMS:], self.calibration.layout.pixels[-SLAB_DIMS:]
        whole = all(s.indices(n) == (0, n, 1) for s, n in zip(inner, slab, strict=True))
        found: dict[tuple[object, ...], Prepared] = {}

        def prepare(one: _Wanted) -> Prepared:
            planes = {}
            for name, axes in self.fixed.items():
                if axes:
                    fixed = {axis: one.label[self.index.index(index)] for axis, index in axes.items()}
                    planes[name] = self.calibration.large[name].part(fixed, one.module, inner)
            return Prepared(self.inner, {**one.maps, **planes}, one.pixels)

        def find(one: _Wanted) -> None:
            make = partial(prepare, one)
            found[one.key] = constants.CACHE.get((self.calibration, self.inner, *one.key), make) if whole else make()

        run_all([partial(find, one) for one in {one.key: one for one in wanted}.values()], threads)
        return [found[one.key] for one in wanted]
