"""Frames grouped by their labels: how a program is computed whose constants are larger than memory.

Frames of one memory cell need the planes of that cell only.  So the frames of a block are taken
cell by cell and module by module, with constants that have lost the axis of the cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration
from gaincal.constants import SLAB_DIMS
from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import Program, fix_axes
from gaincal.kernels.blocks import Prepared
from gaincal.kernels.rows import Rows
from gaincal.kernels.runs import split_runs

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.uint32]
PLANES_BYTES = 64 << 20
"""Of large constants that are in use at a time."""


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

    def evaluate(
        self,
        words: Mapping[str, Array],
        frames: slice,
        window: tuple[slice, ...],
        value: Array,
        flags: Flags | None,
        threads: int,
    ) -> None:
        """Compute some frames and a window of pixels.

        Parameters
        ----------
        words : mapping of str to ndarray (frame, *window)
        frames : slice
        window : tuple of slice
            One slice per pixel dim.
        value : ndarray (frame, pixel)
            Receives the value.
        flags : ndarray (frame, pixel) of uint32, or None
            Receives the flags.
        threads : int
            Most threads to use.
        """
        arrays = self.calibration.block(self.outer, words, frames, window)
        leading = [list(range(s.start, s.stop)) for s in window[:-SLAB_DIMS]]
        lengths = tuple(len(places) for places in leading)
        runs = split_runs(self.outer, arrays, value.shape[1], int(np.prod(lengths)))
        for run, (first, last, own) in enumerate(runs):
            places = np.unravel_index(run, lengths) if lengths else ()
            module = tuple(p[int(k)] for p, k in zip(leading, places, strict=True))
            keys = np.stack([own[n] for n in self.index] or [np.zeros(len(value))], axis=1)
            found, group = np.unique(keys, axis=0, return_inverse=True)
            results = [Rows.of(r[:, first:last]) for r in (value, flags) if r is not None]
            prepared: Prepared | None = None
            for begin in range(0, len(found), self._labels_at_once(last - first)):
                labels = found[begin : begin + self._labels_at_once(last - first)]
                chosen = np.flatnonzero((group >= begin) & (group < begin + len(labels)))
                order = chosen[np.argsort(group[chosen], kind="stable")]  # a label's planes are used in a row
                given = self._given(own, order, slice(first, last))
                given |= self._planes(labels, group[order] - begin, module, window[-SLAB_DIMS:])
                edges = np.searchsorted(group[order], np.arange(begin, begin + len(labels) + 1)).tolist()
                own_value, *own_flags = (r.take(order) for r in results)
                taken = own_value, own_flags[0] if own_flags else None
                prepared = prepared or Prepared.of(self.inner, given, last - first)
                prepared.evaluate(given, *taken, threads, list(pairwise(edges)))

    def _labels_at_once(self, pixels: int) -> int:
        """So many labels that their planes take no more than `PLANES_BYTES`."""
        large = self.calibration.large
        planes = sum(
            int(np.prod([len(a) for k, a in enumerate(large[n].labels) if k not in self.fixed[n]])) for n in self.fixed
        )
        return max(1, PLANES_BYTES // max(1, planes * pixels * np.dtype(self.inner.compute).itemsize))

    def _given(self, arrays: Mapping[str, Array], chosen: Array, pixels: slice) -> dict[str, Array | Rows]:
        types = dict(self.inner.types)
        given: dict[str, Array | Rows] = {}
        for item in self.inner.given:
            if item.name in self.calibration.large:
                continue
            array, dims = arrays[item.name], types[item.name].dims
            if dims > {FRAME}:
                given[item.name] = Rows.reading(array[:, pixels]).take(chosen)
                continue
            if FRAME in dims or not (dims or item.name in self.inner.labelled):
                array = array[chosen]
            given[item.name] = array[..., pixels] if dims - {FRAME} else array
        return given

    def _planes(
        self, labels: Array, group: Array, module: tuple[int, ...], window: tuple[slice, ...]
    ) -> dict[str, Array | Rows]:
        """The planes of large constants: for each frame those of its label, of which there is one copy."""
        found: dict[str, Array | Rows] = {}
        for item in self.inner.constants:
            if item.name not in self.calibration.large:
                continue
            large, fixed = self.calibration.large[item.name], self.fixed[item.name]
            columns = {axis: labels[:, self.index.index(name)].tolist() for axis, name in fixed.items()}
            parts = [
                large.part({axis: column[k] for axis, column in columns.items()}, module, window)
                for k in range(len(labels))
            ]
            *axes, pixels = parts[0].shape
            addresses = np.array([p.ctypes.data for p in parts], np.int64)[group]
            found[item.name] = Rows(addresses, (*axes, len(group), pixels), parts[0].dtype, parts)
        return found
