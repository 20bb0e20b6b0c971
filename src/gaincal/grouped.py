"""Frames grouped by their labels: how a program is computed whose constants are larger than memory.

Frames of one memory cell need the planes of that cell only.  So the frames of a block are taken
cell by cell and module by module, with constants that have lost the axis of the cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal import constants
from gaincal.calibration import Calibration
from gaincal.constants import SLAB_DIMS
from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import Program, fix_axes
from gaincal.kernels.blocks import Prepared, evaluate_groups
from gaincal.kernels.rows import Rows
from gaincal.kernels.runs import split_runs
from gaincal.kernels.threads import run_all

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
            order = np.argsort(group, kind="stable")  # a label's planes are used in a row
            edges = np.searchsorted(group[order], np.arange(len(found) + 1))
            values = Rows.of(value[:, first:last])
            reasons = None if flags is None else Rows.of(flags[:, first:last])
            maps = self._maps(own, slice(first, last))
            most = self._labels_at_once(last - first)
            for begin in range(0, len(found), most):
                labels, edge = found[begin : begin + most].tolist(), edges[begin : begin + most + 1]
                chosen = order[edge[0] : edge[-1]]
                prepared = self._prepared(labels, module, window, maps, threads)
                ranges = pairwise((edge - edge[0]).tolist())
                groups = [(p, *frames_of) for p, frames_of in zip(prepared, ranges, strict=True)]
                given = self._given(own, chosen, slice(first, last))
                evaluate_groups(groups, given, values.take(chosen), reasons and reasons.take(chosen), threads)

    def _labels_at_once(self, pixels: int) -> int:
        """So many labels that their planes take no more than `PLANES_BYTES`."""
        large = self.calibration.large
        planes = sum(
            int(np.prod([len(a) for k, a in enumerate(large[n].labels) if k not in self.fixed[n]])) for n in self.fixed
        )
        return max(1, PLANES_BYTES // max(1, planes * pixels * np.dtype(self.inner.compute).itemsize))

    def _given(self, arrays: Mapping[str, Array], chosen: Array, pixels: slice) -> dict[str, Array | Rows]:
        """What is given for each frame, of some frames."""
        given: dict[str, Array | Rows] = {}
        for item in self.inner.given:
            if item.name in self.inner.by_row:
                given[item.name] = Rows.reading(arrays[item.name][:, pixels]).take(chosen)
            elif item.name in self.inner.by_frame:
                given[item.name] = arrays[item.name][chosen]
        return given

    def _maps(self, arrays: Mapping[str, Array], pixels: slice) -> dict[str, Array]:
        """What is the same in all frames, but for large constants."""
        types, found = dict(self.inner.types), dict[str, Array]()
        for item in self.inner.given:
            if item.name not in self.inner.by_frame and item.name not in self.calibration.large:
                array = arrays[item.name]
                found[item.name] = array[..., pixels] if types[item.name].dims - {FRAME} else array
        return found

    def _prepared(
        self,
        labels: Sequence[Sequence[int]],
        module: tuple[int, ...],
        window: tuple[slice, ...],
        maps: Mapping[str, Array],
        threads: int,
    ) -> list[Prepared]:
        """The planes of each label, as the kernel takes them; held for later if they are whole."""
        inner, pixels = window[-SLAB_DIMS:], self.calibration.layout.pixels[-SLAB_DIMS:]
        whole = all(s.indices(n) == (0, n, 1) for s, n in zip(inner, pixels, strict=True))
        found: list[Prepared | None] = [None] * len(labels)

        def find(k: int) -> None:
            make = partial(self._prepare, labels[k], module, inner, maps)
            found[k] = constants.CACHE.get((self, tuple(labels[k]), module), make) if whole else make()

        run_all([partial(find, k) for k in range(len(labels))], threads)
        return [p for p in found if p is not None]

    def _prepare(
        self, label: Sequence[int], module: tuple[int, ...], window: tuple[slice, ...], maps: Mapping[str, Array]
    ) -> Prepared:
        planes = {}
        for name in self.fixed:
            large = self.calibration.large[name]
            fixed = {axis: label[self.index.index(index)] for axis, index in self.fixed[name].items()}
            planes[name] = large.part(fixed, module, window)
        pixels = next(iter(planes.values())).shape[-1]
        return Prepared(self.inner, {**maps, **planes}, pixels)
