"""Calibrated blocks out of a master: the one way in which views, files and previews are computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
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
from gaincal.kernels.threads import Job, run_all, running
from gaincal.nexus.packing import Packing
from gaincal.nexus.words import Readable

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.uint32]
BLOCK_BYTES = 32 << 20
"""Words read at a time: large enough for the kernel's constants to pay, small enough to bound memory."""


@dataclass(frozen=True)
class Fetch:
    """A box whose words are on their way into memory.

    Parameters
    ----------
    start, count : tuple of int
        The box, frames first.
    compiled : bool
        Whether it is computed by compiled code.
    packings : dict of str to Packing
        Words that stay compressed until they are calibrated.
    """

    start: tuple[int, ...]
    count: tuple[int, ...]
    compiled: bool
    packings: dict[str, Packing]

    @property
    def jobs(self) -> list[Job]:
        """What is left to read, without HDF5."""
        return [job for packing in self.packings.values() for job in packing.jobs]


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
        self._compiled = False
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
        shape = (-1, math.prod(count[1:]))
        if 0 in count:
            return values, flags
        for first, frames in split_frames(start[0], count[0], self._frames_at_once(count[1:])):
            here = slice(first - start[0], first - start[0] + frames)
            part = None if flags is None else flags[here].reshape(shape)
            fetch = self._fetch((first, *start[1:]), (frames, *count[1:]))
            run_all(fetch.jobs, self.threads)
            with self._computing(fetch, Results(values[here].reshape(shape), part), ()):
                pass
        return values, flags

    def fetch(self, first: int, count: int) -> Fetch:
        """Begin with whole frames: everything that needs HDF5 to know where they lie."""
        return self._fetch((first, *(0 for _ in self.shape[1:])), (count, *self.shape[1:]))

    @contextmanager
    def storing(self, fetch: Fetch, chunks: Chunks, tally: Tally, beside: Sequence[Job] = ()) -> Iterator[None]:
        """Compute whole frames on their way into a file, where possible while the caller does something else.

        Parameters
        ----------
        fetch : Fetch
            Of whole frames, its jobs done.
        chunks : Chunks
            Receives the values.
        tally : Tally
            Counts the reasons.
        beside : sequence of callables
            What else to do meanwhile.
        """
        with self._computing(fetch, Results(chunks, tally), beside):
            yield

    def _frames_at_once(self, pixels: tuple[int, ...]) -> int:
        words = max(w.dtype.itemsize for w in self.words.values()) * len(self.words)
        return max(1, BLOCK_BYTES // max(1, words * math.prod(pixels)))

    def _fetch(self, start: tuple[int, ...], count: tuple[int, ...]) -> Fetch:
        self._compiled = self._compiled or (self.grouped is None and worth_compiling(self.program, math.prod(count)))
        packings = {}
        if self._compiled and self.tiled and count[1:] == self.shape[1:]:
            for name in self._wanted():
                packing = self.words[name].packing(start[0], count[0], self.threads)
                if packing is not None:
                    packings[name] = packing
        return Fetch(start, count, self._compiled, packings)

    @contextmanager
    def _computing(self, fetch: Fetch, results: Results, beside: Sequence[Job]) -> Iterator[None]:
        with ieee(), self._begun(fetch, results, beside):
            yield

    def _begun(self, fetch: Fetch, results: Results, beside: Sequence[Job]) -> AbstractContextManager[None]:
        """What computes a box: all of it is done when it is left, and all that needs HDF5 already."""
        words, missing = self._words(fetch)
        start, count = fetch.start, fetch.count
        frames = slice(start[0], start[0] + count[0])
        window = tuple(slice(s, s + n) for s, n in zip(start[1:], count[1:], strict=True))
        if fetch.compiled:
            arrays = self.calibration.by_frame(self.program, words, frames, window)
            prepared = self.calibration.prepared(self.program, window)
            return evaluating(prepared, arrays, results, self.threads, missing, beside)
        if self.grouped is not None:
            value = empty_aligned(results.shape, self.dtype)
            flags = None if results.flags is None else empty_aligned(results.shape, np.uint32)
            self.grouped.evaluate(words, frames, window, value, flags, self.threads)
            blank(self.program, value, flags, missing)
            results.take(value, flags)
        else:
            interpret(self.program, self.calibration.block(self.program, words, frames, window), results, missing)
        return running(beside, self.threads)

    def _wanted(self) -> list[str]:
        """The words that are needed."""
        return [item.name for item in self.program.inputs if item.name in self.words]

    def _words(self, fetch: Fetch) -> tuple[dict[str, Any], npt.NDArray[np.bool_] | None]:
        """The words of a box, compressed where they may be, and where they are missing."""
        words: dict[str, Any] = {}
        missing = None
        for name in self._wanted():
            stored = fetch.packings[name].packed() if name in fetch.packings else None
            if stored is not None:
                words[name] = stored
                continue
            words[name], absent = self.words[name].read(fetch.start, fetch.count, self.threads)
            if absent is not None:
                absent = absent.reshape(fetch.count[0], -1)
                missing = absent if missing is None else missing | absent
        return words, missing


def split_frames(first: int, count: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges (first, number) of at most `most` frames that make up `count` frames."""
    for begin in range(first, first + count, most):
        yield begin, min(most, first + count - begin)
