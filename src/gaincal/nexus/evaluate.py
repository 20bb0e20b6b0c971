"""Calibrated blocks out of a master: the one way in which views, files and previews are computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration
from gaincal.errors import FileError
from gaincal.formulas.program import Program
from gaincal.grouped import GroupedProgram
from gaincal.kernels.arithmetic import ieee
from gaincal.kernels.memory import empty_aligned
from gaincal.kernels.packed import OddWords
from gaincal.kernels.pipeline import (
    MIN_SHARED_WORDS,
    Results,
    begin,
    blank,
    interpret,
    whole_tiles,
    worth_compiling,
)
from gaincal.kernels.results import Chunks, Tally
from gaincal.kernels.threads import Job, Work
from gaincal.nexus.packing import Packing
from gaincal.nexus.words import Readable

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.uint32]
Frames = range | npt.NDArray[np.int_]
BLOCK_BYTES = 32 << 20
"""Words read at a time: large enough for the kernel's constants to pay, small enough to bound memory."""


@dataclass(frozen=True)
class Fetch:
    """Frames whose words are on their way into memory.

    Parameters
    ----------
    frames : range or ndarray (frame,) of int
    start, count : tuple of int
        Which of their pixels: first index and length along every pixel dim.
    compiled : bool
        Whether it is computed by compiled code.
    packings : dict of str to Packing
        Words that stay compressed until they are calibrated.
    """

    frames: Frames
    start: tuple[int, ...]
    count: tuple[int, ...]
    compiled: bool
    packings: dict[str, Packing]

    @property
    def jobs(self) -> list[Job]:
        """What is left to read, without HDF5."""
        return [job for packing in self.packings.values() for job in packing.jobs]


@dataclass(frozen=True)
class Begun:
    """Frames that threads have begun to compute: where their words and results are, and what is left to do."""

    fetch: Fetch
    results: Results
    work: Work


class Block(NamedTuple):
    """A block whose results are arrays of its own."""

    values: Array
    flags: Flags | None
    begun: Begun


@dataclass(frozen=True)
class Wanted:
    """A box of values that somebody may ask for.

    Parameters
    ----------
    start, count : tuple of int
        First index and length along every dim, frames first.
    with_flags : bool
    """

    start: tuple[int, ...]
    count: tuple[int, ...]
    with_flags: bool

    def behind(self, frames: int) -> Wanted | None:
        """The same of as many frames behind these, or of those that a run has left."""
        first = self.start[0] + self.count[0]
        number = min(self.count[0], frames - first)
        return replace(self, start=(first, *self.start[1:]), count=(number, *self.count[1:])) if number > 0 else None


@dataclass(frozen=True)
class Expected:
    """What follows the last block, and the block itself if threads have begun to compute it."""

    wanted: Wanted
    block: Block | None


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
        self._lock = Lock()
        self._expected: Expected | None = None
        self.tiled = whole_tiles(calibration.runs(program), calibration.layout.pixels)

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
        wanted, most = Wanted(start, count, with_flags), self._frames_at_once(count[1:])
        if 0 in count:
            return self._empty(wanted)
        blocks = self._blocks(start[0], count[0], most)
        if len(blocks) == 1 and isinstance(blocks[0], range):
            return self._block(wanted)
        values, flags = self._empty(wanted)
        last: Begun | None = None
        for frames in blocks:
            here = _moved(as_slice(frames), start[0])
            value, reasons = _room(values, here), None if flags is None else _room(flags, here)
            try:
                begun = self._begin(self._fetch(frames, start[1:], count[1:]), Results(value, reasons))
            finally:
                self._finish(last)
            last = begun if isinstance(here, slice) else None
            if last is None:
                self._finish(begun)
                values[here] = value.reshape(len(frames), *count[1:])
                if flags is not None and reasons is not None:
                    flags[here] = reasons.reshape(len(frames), *count[1:])
        self._finish(last)
        return values, flags

    def _block(self, wanted: Wanted) -> tuple[Array, Flags | None]:
        """Compute a block; where it follows the last one, threads that are done go on with the one behind it."""
        with self._lock:
            expected, self._expected = self._expected, None
        in_order = expected is not None and expected.wanted == wanted
        block = None if expected is None else expected.block
        if block is not None and not in_order:
            block.begun.work.abandon()
            block = None
        values, flags, begun = block or self._begin_block(wanted, self._fetch_block(wanted))
        behind = wanted.behind(self.shape[0])
        shared = self.threads > 1 and math.prod(wanted.count) >= MIN_SHARED_WORDS
        if behind is not None and shared and begun.fetch.packings:
            following = Expected(behind, self._ahead(behind) if in_order else None)
            with self._lock:
                self._expected = following
        self._finish(begun)
        return values, flags

    def _ahead(self, wanted: Wanted) -> Block | None:
        """Begin with a block that nobody has asked for, if it can be done without HDF5."""
        with suppress(FileError, MemoryError):  # whoever asks for these frames is told
            fetch = self._fetch_block(wanted)
            if len(fetch.packings) == len(self._wanted()):
                return self._begin_block(wanted, fetch)
        return None

    def _begin_block(self, wanted: Wanted, fetch: Fetch) -> Block:
        """Begin with a block whose results are arrays of its own."""
        values, flags = self._empty(wanted)
        frames = len(values)
        results = Results(values.reshape(frames, -1), None if flags is None else flags.reshape(frames, -1))
        return Block(values, flags, self._begin(fetch, results))

    def _fetch_block(self, wanted: Wanted) -> Fetch:
        first, number = wanted.start[0], wanted.count[0]
        return self._fetch(range(first, first + number), wanted.start[1:], wanted.count[1:])

    def _empty(self, wanted: Wanted) -> tuple[Array, Flags | None]:
        """Arrays for values, and flags if they are wanted."""
        flags = empty_aligned(wanted.count, np.uint32) if wanted.with_flags else None
        return empty_aligned(wanted.count, self.dtype), flags

    def blocks(self, first: int, count: int, most: int) -> Sequence[Frames]:
        """Frames that are computed together, at most so many, in the order in which constants serve longest."""
        if self.grouped is not None:
            return self.grouped.blocks(np.arange(first, first + count), most)
        return self._in_order(first, count, most)

    def _blocks(self, first: int, count: int, most: int) -> Sequence[Frames]:
        """The same in the order of the run, if constants can be held: results need not be put into order."""
        if self.grouped is not None and not self.grouped.holds(np.arange(first, first + count)):
            return self.blocks(first, count, most)
        return self._in_order(first, count, most)

    @staticmethod
    def _in_order(first: int, count: int, most: int) -> Sequence[Frames]:
        return [range(first + k, first + min(k + most, count)) for k in range(0, count, most)]

    def fetch(self, frames: Frames) -> Fetch:
        """Begin with whole frames: everything that needs HDF5 to know where they lie."""
        return self._fetch(frames, (0,) * len(self.shape[1:]), self.shape[1:])

    def storing(self, fetch: Fetch, chunks: Chunks, tally: Tally, beside: Sequence[Job] = ()) -> Work:
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
        fit = {name: packing for name, packing in fetch.packings.items() if packing.arrive()}
        return self._begin(replace(fetch, packings=fit), Results(chunks, tally), beside).work

    def _frames_at_once(self, pixels: tuple[int, ...]) -> int:
        words = max(w.dtype.itemsize for w in self.words.values()) * len(self.words)
        return max(1, BLOCK_BYTES // max(1, words * math.prod(pixels)))

    def _fetch(self, frames: Frames, start: tuple[int, ...], count: tuple[int, ...]) -> Fetch:
        number = len(frames)
        work = number * math.prod(count)
        self._compiled = self._compiled or (self.grouped is None and worth_compiling(self.program, work))
        packings = {}
        if self._compiled and self.tiled and count == self.shape[1:]:
            for name in self._wanted():
                packing = self.words[name].packing(int(frames[0]), number, self.threads)
                if packing is not None:
                    packings[name] = packing
        return Fetch(frames, start, count, self._compiled, packings)

    def _finish(self, begun: Begun | None) -> None:
        """Finish a block; where compressed words are not as they must be, what reads the others finds out why."""
        if begun is None:
            return
        try:
            begun.work.finish()
        except OddWords:
            self._begin(replace(begun.fetch, packings={}), begun.results).work.finish()

    @ieee()
    def _begin(self, fetch: Fetch, results: Results, beside: Sequence[Job] = ()) -> Begun:
        """Begin to compute a box: what needs HDF5 is done, and all of it where it cannot be done in pieces."""
        words, missing = self._words(fetch)
        frames = as_slice(fetch.frames)
        window = tuple(slice(s, s + n) for s, n in zip(fetch.start, fetch.count, strict=True))
        if fetch.compiled:
            arrays = self.calibration.by_frame(self.program, words, frames, window)
            plan = self.calibration.plan(self.program, len(fetch.frames), window)
            return Begun(fetch, results, begin(plan, arrays, results, self.threads, missing, beside))
        if self.grouped is not None and self.tiled and not isinstance(results.value, np.ndarray):
            plan, arrays = self.grouped.plan(words, frames, self.threads)
            return Begun(fetch, results, begin(plan, arrays, results, self.threads, missing, beside))
        if self.grouped is not None:
            value, flags = results.arrays(self.dtype)
            self.grouped.evaluate(words, frames, window, value, flags, self.threads)
            blank(self.program, value, flags, missing)
            results.take(value, flags)
        else:
            interpret(self.program, self.calibration.block(self.program, words, frames, window), results, missing)
        return Begun(fetch, results, Work(beside, self.threads))

    def _wanted(self) -> list[str]:
        """The words that are needed."""
        return [item.name for item in self.program.inputs if item.name in self.words]

    def _words(self, fetch: Fetch) -> tuple[dict[str, Any], npt.NDArray[np.bool_] | None]:
        """The words of a box, compressed where they may be, and where they are missing."""
        words: dict[str, Any] = {}
        missing = None
        for name in self._wanted():
            if name in fetch.packings:
                words[name] = fetch.packings[name].packed()
                continue
            words[name], absent = self._read(name, fetch)
            if absent is not None:
                absent = absent.reshape(len(fetch.frames), -1)
                missing = absent if missing is None else missing | absent
        return words, missing

    def _read(self, name: str, fetch: Fetch) -> tuple[Array, npt.NDArray[np.bool_] | None]:
        """Words of frames that need not follow each other."""
        parts = [
            self.words[name].read((first, *fetch.start), (number, *fetch.count), self.threads)
            for first, number in stretches(fetch.frames)
        ]
        if len(parts) == 1:
            return parts[0]
        absent = None
        if any(a is not None for _, a in parts):
            absent = np.concatenate([np.zeros(w.shape, bool) if a is None else a for w, a in parts])
        words = empty_aligned((len(fetch.frames), *fetch.count), parts[0][0].dtype)
        return np.concatenate([w for w, _ in parts], out=words), absent


def stretches(frames: Frames) -> Iterator[tuple[int, int]]:
    """Ranges (first, number) of frames that follow each other."""
    if isinstance(frames, range):
        yield frames.start, len(frames)
        return
    for part in np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1):
        yield int(part[0]), len(part)


def as_slice(frames: Frames) -> slice | npt.NDArray[np.int_]:
    """Frames as a slice, if they follow each other."""
    parts = list(stretches(frames))
    return slice(parts[0][0], sum(parts[0])) if len(parts) == 1 else np.asarray(frames)


def _moved(frames: slice | npt.NDArray[np.int_], by: int) -> slice | npt.NDArray[np.int_]:
    """Frames counted from another one on."""
    return slice(frames.start - by, frames.stop - by) if isinstance(frames, slice) else frames - by


def _room(whole: Array, here: slice | npt.NDArray[np.int_]) -> Array:
    """Where some frames (frame, pixel) of an array are computed: in it if they follow each other."""
    part = whole[here] if isinstance(here, slice) else empty_aligned((len(here), *whole.shape[1:]), whole.dtype)
    return part.reshape(len(part), -1)
