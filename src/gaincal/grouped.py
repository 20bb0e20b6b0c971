"""Frames grouped by their labels: how a program is computed whose constants are larger than memory.

Frames of one memory cell need the planes of that cell only.  So the frames of a block are taken
cell by cell and module by module, with constants that have lost the axis of the cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration
from gaincal.constants import SLAB_DIMS
from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import Program, fix_axes
from gaincal.kernels import blocks
from gaincal.kernels.memory import empty_aligned
from gaincal.kernels.runs import split_runs

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.uint32]


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
            for number, labels in enumerate(found):
                chosen = np.flatnonzero(group.reshape(-1) == number)
                known = dict(zip(self.index, (int(v) for v in labels), strict=False))
                given = self._given(own, chosen, slice(first, last)) | self._planes(known, module, window[-SLAB_DIMS:])
                shape = (len(chosen), last - first)
                part = empty_aligned(shape, value.dtype)
                raised = None if flags is None else empty_aligned(shape, np.uint32)
                blocks.evaluate(self.inner, given, part, raised, threads)
                value[chosen, first:last] = part
                if flags is not None and raised is not None:
                    flags[chosen, first:last] = raised

    def _given(self, arrays: Mapping[str, Array], chosen: Array, pixels: slice) -> dict[str, Array]:
        types, given = dict(self.inner.types), {}
        for item in self.inner.given:
            if item.name in self.calibration.large:
                continue
            array, dims = arrays[item.name], types[item.name].dims
            if FRAME in dims or not (dims or item.name in self.inner.labelled):
                array = array[chosen]
            given[item.name] = array[..., pixels] if dims - {FRAME} else array
        return given

    def _planes(
        self, labels: Mapping[str, int], module: tuple[int, ...], window: tuple[slice, ...]
    ) -> dict[str, Array]:
        """The planes of large constants for the labels of some frames."""
        return {
            item.name: self.calibration.large[item.name].part(
                {axis: labels[name] for axis, name in self.fixed[item.name].items()}, module, window
            )
            for item in self.inner.constants
            if item.name in self.calibration.large
        }
