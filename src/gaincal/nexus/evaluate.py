"""Calibrated blocks out of a master: the one way in which views, files and previews are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration
from gaincal.formulas.program import MISSING_BIT, Program
from gaincal.grouped import GroupedProgram
from gaincal.kernels import blocks
from gaincal.kernels.memory import empty_aligned
from gaincal.nexus.words import Readable

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.uint32]
BLOCK_BYTES = 32 << 20
"""Words read at a time: large enough for the kernel's constants to pay, small enough to bound memory."""


class Evaluation:
    """Computes one program from words, block by block.

    Parameters
    ----------
    calibration : Calibration
    words : mapping of str to Readable
    program : Program
    threads : int
        Most threads to compute with.
    """

    def __init__(
        self, calibration: Calibration, words: Mapping[str, Readable], program: Program, threads: int = 1
    ) -> None:
        self.calibration, self.words, self.program, self.threads = calibration, words, program, threads
        self.shape = calibration.layout.shape
        self.dtype = np.dtype(program.dtype)
        needed = calibration.large.keys() & {c.name for c in program.constants}
        self.grouped = GroupedProgram(calibration, program) if needed else None

    def read(
        self, start: tuple[int, ...], count: tuple[int, ...], with_flags: bool = False
    ) -> tuple[Array, Flags | None]:
        """Values (and flags) of a box.

        Parameters
        ----------
        start, count : tuple of int
            First index and length along every dim, frames first.
        with_flags : bool

        Returns
        -------
        values : ndarray
        flags : ndarray of uint32, or None
        """
        values = empty_aligned(count, self.dtype)
        flags = empty_aligned(count, np.uint32) if with_flags else None
        for first, frames in split_frames(start[0], count[0], self._frames_at_once(count[1:])):
            here = slice(first - start[0], first - start[0] + frames)
            part = None if flags is None else flags[here]
            self._compute((first, *start[1:]), (frames, *count[1:]), values[here], part)
        return values, flags

    def _frames_at_once(self, pixels: tuple[int, ...]) -> int:
        words = max(w.dtype.itemsize for w in self.words.values()) * len(self.words)
        return max(1, BLOCK_BYTES // max(1, words * int(np.prod(pixels))))

    def _compute(self, start: tuple[int, ...], count: tuple[int, ...], values: Array, flags: Flags | None) -> None:
        wanted = {i.name for i in self.program.inputs}
        words, missing = {}, None
        for name, source in self.words.items():
            if name not in wanted:
                continue
            words[name], absent = source.read(start, count, self.threads)
            if absent is not None:
                missing = absent if missing is None else missing | absent
        frames = slice(start[0], start[0] + count[0])
        window = tuple(slice(s, s + n) for s, n in zip(start[1:], count[1:], strict=True))
        shape = (count[0], int(np.prod(count[1:])))
        flat = None if flags is None else flags.reshape(shape)
        if 0 in shape:
            return
        if self.grouped is not None:
            self.grouped.evaluate(words, frames, window, values.reshape(shape), flat, self.threads)
        else:
            arrays = self.calibration.block(self.program, words, frames, window)
            blocks.evaluate(self.program, arrays, values.reshape(shape), flat, self.threads)
        if missing is not None:
            values[missing] = np.nan if self.program.fill is None else self.program.fill
            if flags is not None:
                flags[missing] = np.uint32(1 << MISSING_BIT)


def split_frames(first: int, count: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges (first, number) of at most `most` frames that make up `count` frames."""
    for begin in range(first, first + count, most):
        yield begin, min(most, first + count - begin)
