"""A program and its maps as the kernel takes them: checked and laid out once, whatever the frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import Program
from gaincal.kernels.memory import empty_aligned
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


@dataclass(frozen=True)
class Tables:
    """A kernel, and what it wants to know of maps.

    Parameters
    ----------
    kernel : gaincal.kernels.compiler.Kernel
    rows : ndarray (run, number) of int64
        For every run the numbers that the kernel takes, with 0 for what is given by frame, and the results.
    steps : ndarray (number,) of int64
        By how much each of them is less for each pixel that lies in front of the first.
    known : list of list of ndarray
        For every run what the kernel wants to know beforehand: it has the addresses.
    """

    kernel: Any
    rows: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    known: list[list[Array]]


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
        self._types, self._labels = dict(program.types), dict(program.labels)
        whole = {n: a if n in program.partial else np.ascontiguousarray(a) for n, a in maps.items()}
        self.runs = []
        for first, last, own in split_runs(program, whole, pixels, runs):
            fit = {i.name: np.ascontiguousarray(own[i.name]) for i in program.given if i.name not in program.by_frame}
            for name, array in fit.items():
                self._check(name, array)
            self.runs.append(Run(first, last, fit))
        self.nbytes = sum(a.nbytes for run in self.runs for a in run.maps.values()) + KNOWN_BYTES * pixels
        self._tables: dict[tuple[bool, ...], Tables] = {}

    @classmethod
    def of(cls, program: Program, arrays: Mapping[str, Array | Rows | Packed], pixels: int) -> Prepared:
        """From all that `evaluate` is given."""
        counts = {arrays[n].shape[-1] for n in program.partial}
        maps = {n: a for n, a in arrays.items() if n not in program.by_frame and isinstance(a, np.ndarray)}
        return cls(program, maps, pixels, max(counts, default=1))

    def tables(self, flags: bool, marks: bool, streaming: bool, threads: int) -> Tables:
        """The kernel, and what it wants to know.

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
            found = self._tables.setdefault(key, Tables(kernel, np.array(rows, np.int64), self._steps(kernel), known))
        return found

    def _steps(self, kernel: Any) -> npt.NDArray[np.int64]:
        """By how much each number of a table is less for each pixel in front of the first."""
        maps = self.runs[0].maps
        pixelwise = [i.name in maps and bool(self._types[i.name].dims - {FRAME}) for i in self.program.given]
        given = [maps[i.name].itemsize if p else 0 for i, p in zip(self.program.given, pixelwise, strict=True)]
        return np.array([*given, *[0] * kernel.results, -1, *[0] * len(kernel.known)], np.int64)

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
        parts = split_pixels(1, run.first, run.last, threads)
        owners = table, known, run
        jobs = [partial(owning, owners, kernel.prepare, table.ctypes.data, self.pixels, *part) for part in parts]
        run_all(jobs if known else [], threads)
        return known

    def _check(self, name: str, array: Array) -> None:
        """Whether a map of a run is what the kernel takes for granted."""
        pixelwise, axes = self._types[name].dims - {FRAME}, [len(axis) for axis in self._labels.get(name, ())]
        require(self.program, name, array, (*axes, *([self.pixels] if pixelwise else [1] if axes else [])))


def compiled(program: Program, flags: bool, marks: bool, streaming: bool) -> Any:
    """The kernel of a program; see `gaincal.kernels.groups.Layout`."""
    from gaincal.kernels.compiler import compile_program
    from gaincal.kernels.groups import Layout

    return compile_program(program, Layout(tuple(program.stored.items()), flags, marks, streaming))


def owning(_owners: object, compute: Callable[..., None], *given: int) -> None:
    """Compute what compiled code is given as addresses, whose owners live as long as the job does."""
    compute(*given)


def split_pixels(frames: int, first: int, last: int, threads: int) -> list[tuple[int, int]]:
    """Ranges of pixels: each task keeps its own constants in its cache, for all frames."""
    pixels = last - first
    worthwhile = max(1, frames * pixels // MIN_WORDS_PER_TASK)
    count = min(worthwhile, -(-pixels // PIXELS_PER_TASK)) if threads > 1 else 1
    if count <= 1:
        return [(first, last)]
    step = -(-pixels // count // PIXELS_PER_TASK) * PIXELS_PER_TASK
    return [(start, min(start + step, last)) for start in range(first, last, step)]


def require(program: Program, name: str, array: Array | Packed | Rows, shape: tuple[int, ...]) -> None:
    """Whether an array has a shape, and the type that a program declares; raises ValueError if not."""
    stored = np.dtype(program.stored[name])
    if array.shape != shape or array.dtype != stored:
        raise ValueError(f"{name} is {array.dtype}{array.shape}, not {stored}{shape}")
