"""Calibrated blocks out of a master: the one way in which views, files and previews are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration
from gaincal.formulas.program import Program
from gaincal.grouped import GroupedProgram
from gaincal.kernels.arithmetic import ieee
from gaincal.kernels.memory import empty_aligned
from gaincal.kernels.pipeline import Results, blank, evaluating, interpret, whole_tiles, worth_compiling
from gaincal.kernels.results import Chunks, Tally
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
        self.tiled = self.grouped is None and whole_tiles(calibration.runs(program), calibration.layout.pixels)

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
        shape = (-1, int(np.prod(count[1:])))
        if 0 in count:
            return values, flags
        for first, frames in split_frames(start[0], count[0], self._frames_at_once(count[1:])):
            here = slice(first - start[0], first - start[0] + frames)
            part = None if flags is None else flags[here].reshape(shape)
            with self._computing((first, *start[1:]), (frames, *count[1:]), Results(values[here].reshape(shape), part)):
                pass
        return values, flags

    @contextmanager
    def storing(self, first: int, count: int, chunks: Chunks, tally: Tally) -> Iterator[None]:
        """Compute whole frames on their way into a file, where possible while the caller does something else.

        Parameters
        ----------
        first, count : int
            Frames.
        chunks : Chunks
            Receives the values.
        tally : Tally
            Counts the reasons.
        """
        origin = (0,) * len(self.shape[1:])
        with self._computing((first, *origin), (count, *self.shape[1:]), Results(chunks, tally)):
            yield

    def _frames_at_once(self, pixels: tuple[int, ...]) -> int:
        words = max(w.dtype.itemsize for w in self.words.values()) * len(self.words)
        return max(1, BLOCK_BYTES // max(1, words * int(np.prod(pixels))))

    @contextmanager
    def _computing(self, start: tuple[int, ...], count: tuple[int, ...], results: Results) -> Iterator[None]:
        with ieee(), self._begun(start, count, results):
            yield

    def _begun(self, start: tuple[int, ...], count: tuple[int, ...], results: Results) -> AbstractContextManager[None]:
        """What computes a box: all of it is done when it is left, and all that needs HDF5 already."""
        fast = self.grouped is None and worth_compiling(self.program, int(np.prod(count)))
        words, missing = self._words(start, count, fast and self.tiled and count[1:] == self.shape[1:])
        frames = slice(start[0], start[0] + count[0])
        window = tuple(slice(s, s + n) for s, n in zip(start[1:], count[1:], strict=True))
        if self.grouped is not None:
            value = empty_aligned(results.shape, self.dtype)
            flags = None if results.flags is None else empty_aligned(results.shape, np.uint32)
            self.grouped.evaluate(words, frames, window, value, flags, self.threads)
            blank(self.program, value, flags, missing)
            results.take(value, flags)
            return nullcontext()
        arrays = self.calibration.block(self.program, words, frames, window)
        if fast:
            still = self.calibration.still(self.program, window)
            return evaluating(self.program, arrays, results, self.threads, missing, still)
        interpret(self.program, arrays, results, missing)
        return nullcontext()

    def _words(
        self, start: tuple[int, ...], count: tuple[int, ...], packed: bool
    ) -> tuple[dict[str, Any], npt.NDArray[np.bool_] | None]:
        """The words of a box, compressed where they may be, and where they are missing."""
        wanted = {i.name for i in self.program.inputs}
        words: dict[str, Any] = {}
        missing = None
        for name, source in self.words.items():
            if name not in wanted:
                continue
            stored = source.packed(start[0], count[0], self.threads) if packed else None
            if stored is not None:
                words[name] = stored
                continue
            words[name], absent = source.read(start, count, self.threads)
            if absent is not None:
                absent = absent.reshape(count[0], -1)
                missing = absent if missing is None else missing | absent
        return words, missing


def split_frames(first: int, count: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges (first, number) of at most `most` frames that make up `count` frames."""
    for begin in range(first, first + count, most):
        yield begin, min(most, first + count - begin)
