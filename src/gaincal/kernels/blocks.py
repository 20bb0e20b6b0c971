"""Run a compiled program over blocks of frames: maps laid out once, everything checked, the work cut up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import Program
from gaincal.kernels.memory import ALIGNMENT, empty_aligned
from gaincal.kernels.packed import Packed
from gaincal.kernels.rows import Rows
from gaincal.kernels.runs import split_runs
from gaincal.kernels.threads import run_all

Array = npt.NDArray[Any]
MIN_WORDS_PER_TASK = 1 << 18
PIXELS_PER_TASK = 1 << 14
PIXELS_PER_WORD = 64
KNOWN_BYTES = 4
"""Taken to be what kernels of one program want to know of a pixel: an end of 16 bits, and a few conditions."""
STREAMED_BYTES = 4 << 20
"""Larger results bypass the cache, where they would take the place of the constants."""


def evaluate(
    program: Program,
    arrays: Mapping[str, Array | Rows],
    value: Array | Rows,
    flags: npt.NDArray[np.uint32] | Rows | None = None,
    threads: int = 1,
) -> None:
    """Compute a program for a block of frames.

    Parameters
    ----------
    program : Program
    arrays : mapping of str to ndarray or Rows
        As for `gaincal.kernels.reference.evaluate`; inputs and constants in the types the program
        declares, constants and real inputs in its compute type.
    value : ndarray (frame, pixel) or Rows
        Receives the value, in the program's dtype.
    flags : ndarray (frame, pixel) of uint32, or Rows, optional
        Receives the flags.
    threads : int
        Most threads to use.
    """
    _, pixels = value.shape
    Prepared.of(program, arrays, pixels).evaluate(arrays, value, flags, threads)


def evaluate_groups(
    groups: Sequence[tuple[Prepared, int, int]],
    arrays: Mapping[str, Array | Rows],
    value: Array | Rows,
    flags: npt.NDArray[np.uint32] | Rows | None = None,
    threads: int = 1,
) -> None:
    """Compute a block of frames of which some have other maps than others.

    Parameters
    ----------
    groups : sequence of (Prepared, int, int)
        What computes frames from the first number to the one before the second: one program and frames of one size,
        and, where they are several, of one run.
    arrays : mapping of str to ndarray or Rows
        What is given for each frame.
    value, flags, threads
        As for `evaluate`.
    """
    frames, pixels = value.shape
    some, _, _ = groups[0]
    wanted = ((value, some.program.dtype), (flags, "uint32"))
    results = [_result(r, dtype, (frames, some.pixels)) for r, dtype in wanted if r is not None]
    streaming = all(leaves_cache(result, run.first) for run in some.runs for result in results)
    found = [prepared.tables(flags is not None, False, streaming, threads) for prepared, _, _ in groups]
    kernel, tables = found[0][0], np.concatenate([own for _, own in found])
    kept = some.place(tables, arrays, frames)  # the kernel knows only where things lie
    for number, result in enumerate(results, len(some.program.given)):
        tables[:, number] = result.addresses.ctypes.data
    runs = [(run, begin, end) for prepared, begin, end in groups for run in prepared.runs]
    jobs = [
        partial(kernel, table, begin, end, pixels, *part)
        for (run, begin, end), table in zip(runs, addresses_of(tables), strict=True)
        for part in _split(end - begin, run.first, run.last, threads)
    ]
    run_all(jobs, threads)
    del kept


def _result(result: Array | Rows, dtype: str, shape: tuple[int, ...]) -> Rows:
    """Where results go; raises ValueError if they do not fit there."""
    if isinstance(result, np.ndarray):
        if not result.flags.writeable:
            raise ValueError("a result must be writable")
        result = Rows.of(result)
    if result.dtype != dtype or result.shape != shape:
        raise ValueError(f"a result must be {dtype}{shape}, not {result.dtype}{result.shape}")
    return result


@dataclass(frozen=True)
class Run:
    """Pixels of a block along which every map is what the kernel takes.

    Parameters
    ----------
    first, last : int
        The pixels.
    maps : dict of str to ndarray
        Checked to fit, and contiguous.
    """

    first: int
    last: int
    maps: dict[str, Array]


class Prepared:
    """A program and its maps, checked and laid out once: what no frame changes.

    Parameters
    ----------
    program : Program
    maps : mapping of str to ndarray
        Inputs and constants that are the same in all frames, as for `evaluate`.
    pixels : int
        Of a frame.
    runs : int
        Into how many runs of pixels what is given for each frame takes them apart.

    Attributes
    ----------
    nbytes : int
        Of the maps, and of what kernels want to know of each pixel beforehand.

    Raises
    ------
    ValueError
        If a map does not fit.
    """

    def __init__(self, program: Program, maps: Mapping[str, Array], pixels: int, runs: int = 1) -> None:
        self.program, self.pixels = program, pixels
        self._items = {item.name: item for item in program.given}
        self._types, self._labels = dict(program.types), dict(program.labels)
        whole = {n: a if n in program.partial else np.ascontiguousarray(a) for n, a in maps.items()}
        self.runs = []
        for first, last, own in split_runs(program, whole, pixels, runs):
            fit = {i.name: np.ascontiguousarray(own[i.name]) for i in program.given if i.name not in program.by_frame}
            for name, array in fit.items():
                self._check(name, array, 0)
            self.runs.append(Run(first, last, fit))
        self.nbytes = sum(a.nbytes for run in self.runs for a in run.maps.values()) + KNOWN_BYTES * pixels
        self._tables: dict[tuple[bool, ...], tuple[Any, Array, list[list[Array]]]] = {}

    @classmethod
    def of(cls, program: Program, arrays: Mapping[str, Array | Rows | Packed], pixels: int) -> Prepared:
        """From all that `evaluate` is given."""
        counts = {arrays[n].shape[-1] for n in program.partial}
        maps = {n: a for n, a in arrays.items() if n not in program.by_frame and isinstance(a, np.ndarray)}
        return cls(program, maps, pixels, max(counts, default=1))

    def evaluate(
        self,
        arrays: Mapping[str, Array | Rows],
        value: Array | Rows,
        flags: npt.NDArray[np.uint32] | Rows | None = None,
        threads: int = 1,
    ) -> None:
        """Compute a block of frames.

        Parameters
        ----------
        arrays : mapping of str to ndarray or Rows
            What is given for each frame, as for `gaincal.kernels.blocks.evaluate`.
        value, flags, threads
            As for `gaincal.kernels.blocks.evaluate`.
        """
        evaluate_groups([(self, 0, value.shape[0])], arrays, value, flags, threads)

    def tables(self, flags: bool, marks: bool, streaming: bool, threads: int) -> tuple[Any, npt.NDArray[np.int64]]:
        """The kernel, and for every run what it wants to know, with 0 for what is given by frame, and the results.

        Parameters
        ----------
        flags, marks, streaming : bool
            See `gaincal.kernels.groups.Layout`.
        threads : int
            Most threads to use.
        """
        key = flags, marks, streaming
        found = self._tables.get(key)
        if found is None:
            kernel = compiled(self.program, *key)
            known = [self._known(kernel, run, threads) for run in self.runs]
            rows = [self._table(kernel, *own) for own in zip(self.runs, known, strict=True)]
            # The first of several threads decides: what is known must live as long as anybody has its address.
            found = self._tables.setdefault(key, (kernel, np.array(rows, np.int64), known))
        return found[0], found[1].copy()

    def place(
        self, tables: npt.NDArray[np.int64], arrays: Mapping[str, Array | Rows | Packed], frames: int
    ) -> dict[str, Array | Rows]:
        """Note in tables where all that is given by frame lies, but for packed words.

        Returns
        -------
        dict of str to Rows or ndarray
            What must live as long as the tables are used.
        """
        program, placed = self.program, dict[str, Array | Rows]()
        for number, item in enumerate(program.given):
            name = item.name
            if name not in program.by_frame:
                continue
            array = arrays[name]
            self._check(name, array, frames)
            if name in program.by_row:
                if isinstance(array, Packed):
                    continue
                rows = Rows.reading(array) if isinstance(array, np.ndarray) else array
                placed[name], tables[:, number] = rows, rows.addresses.ctypes.data
            else:  # frame by frame for each run
                lying = np.ascontiguousarray(np.asarray(array).T)
                placed[name] = lying
                tables[:, number] = addresses_of(lying) if lying.ndim > 1 else lying.ctypes.data
        return placed

    def _table(self, kernel: Any, run: Run, known: list[Array]) -> list[int]:
        maps = [run.maps[i.name].ctypes.data if i.name in run.maps else 0 for i in self.program.given]
        return [*maps, *[0] * kernel.results, run.first, *(a.ctypes.data for a in known)]

    def _known(self, kernel: Any, run: Run, threads: int) -> list[Array]:
        """What a kernel wants to know beforehand of the pixels of a run: no frame is looked at."""
        pixels = -(-(run.last - run.first) // PIXELS_PER_WORD) * PIXELS_PER_WORD
        known = [empty_aligned((pixels * width // 8,), np.uint8) for width in kernel.known]
        for array in known:
            array[...] = 0
        table = np.array(self._table(kernel, run, known), np.int64)
        parts = _split(1, run.first, run.last, threads)
        jobs = [partial(kernel.prepare, table.ctypes.data, self.pixels, *part) for part in parts]
        run_all(jobs if known else [], threads)
        return known

    def _check(self, name: str, array: Array | Packed | Rows, frames: int) -> None:
        """Whether an array is what the kernel takes for granted: for one run, or partial and for all of them."""
        program, item = self.program, self._items[name]
        dims, axes = self._types[name].dims, [len(axis) for axis in self._labels.get(name, ())]
        by_frame = [frames] if name in program.by_frame else []
        runs = [len(self.runs)] if by_frame and name in program.partial else []
        wanted = (*axes, *by_frame, *([self.pixels] if dims - {FRAME} else [1] if axes else runs))
        stored = np.dtype(item.dtype or program.compute)
        if array.shape != wanted or array.dtype != stored:
            raise ValueError(f"{name} is {array.dtype}{array.shape}, not {stored}{wanted}")


def addresses_of(array: Array) -> list[int]:
    """Where each row of a contiguous array begins."""
    return [array.ctypes.data + k * array.strides[0] for k in range(len(array))]


def leaves_cache(result: Rows, first: int) -> bool:
    """Whether a result is too large for the cache, and every frame and run of it begins at a cache line."""
    size = result.dtype.itemsize
    if len(result.addresses) * result.shape[-1] * size < STREAMED_BYTES:
        return False
    return not np.bitwise_or.reduce(result.addresses + first * size) % ALIGNMENT


def compiled(program: Program, flags: bool, marks: bool, streaming: bool) -> Any:
    """The kernel of a program; see `gaincal.kernels.groups.Layout`."""
    from gaincal.kernels.compiler import compile_program
    from gaincal.kernels.groups import Layout

    arrays = tuple((i.name, np.dtype(i.dtype or program.compute).name) for i in program.given)
    return compile_program(program, Layout(arrays, flags, marks, streaming))


def _split(frames: int, first: int, last: int, threads: int) -> list[tuple[int, int]]:
    """Ranges of pixels: each task keeps its own constants in its cache, for all frames."""
    pixels = last - first
    worthwhile = max(1, frames * pixels // MIN_WORDS_PER_TASK)
    count = min(worthwhile, -(-pixels // PIXELS_PER_TASK)) if threads > 1 else 1
    if count <= 1:
        return [(first, last)]
    step = -(-pixels // count // PIXELS_PER_TASK) * PIXELS_PER_TASK
    return [(start, min(start + step, last)) for start in range(first, last, step)]
