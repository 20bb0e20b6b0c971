"""Run a program over blocks of frames: choose the evaluator, split the work, keep the threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import Program
from gaincal.kernels.memory import ALIGNMENT
from gaincal.kernels.packed import Packed
from gaincal.kernels.runs import split_runs
from gaincal.kernels.threads import run_all

Array = npt.NDArray[Any]
MIN_WORDS_PER_TASK = 1 << 18
PIXELS_PER_TASK = 1 << 14
STREAMED_BYTES = 32 << 20
"""Results beyond this leave the cache before anybody reads them."""


def evaluate(
    program: Program,
    arrays: Mapping[str, Array],
    value: Array,
    flags: npt.NDArray[np.uint32] | None = None,
    threads: int = 1,
) -> None:
    """Compute a program for a block of frames.

    Parameters
    ----------
    program : Program
    arrays : mapping of str to ndarray
        As for `gaincal.kernels.reference.evaluate`; inputs and constants in the types the program
        declares, constants and real inputs in its compute type.
    value : ndarray (frame, pixel)
        Receives the value, in the program's dtype.
    flags : ndarray (frame, pixel) of uint32, optional
        Receives the flags.
    threads : int
        Most threads to use.
    """
    frames, pixels = value.shape
    results = [value] if flags is None else [value, flags]
    for result, dtype in zip(results, (program.dtype, "uint32"), strict=False):
        if result.dtype != dtype or result.shape != value.shape or not result.flags.carray:
            raise ValueError(f"a result must be a contiguous, writable {dtype}{value.shape}")
    runs = prepare(program, arrays, frames, pixels)
    streaming = all(leaves_cache(result, run.first) for run in runs for result in results)
    kernel = compiled(program, runs[0], flags is not None, streaming)
    kept, tasks = [], []
    for run in runs:
        rows = [start_of_rows(a) if name in run.by_row else a for name, a in run.given.items()]
        rows += map(start_of_rows, results)
        addresses = np.array([a.ctypes.data for a in rows], np.int64)
        kept += [addresses, *rows]  # as `runs` the arrays: the kernel knows only where they lie
        table = addresses.ctypes.data
        tasks += [(table, 0, frames, pixels, *t) for t in _split(frames, run.first, run.last, threads)]
    run_all([partial(kernel, *task) for task in tasks], threads)


@dataclass(frozen=True)
class Run:
    """Pixels of a block along which every input and constant is what the kernel takes.

    Parameters
    ----------
    first, last : int
        The pixels.
    given : dict of str to ndarray or Packed
        In the order in which the kernel takes them, checked to fit.
    by_row : frozenset of str
        Those with a value for each pixel of each frame: the words.
    """

    first: int
    last: int
    given: dict[str, Any]
    by_row: frozenset[str]


def prepare(program: Program, arrays: Mapping[str, Array | Packed], frames: int, pixels: int) -> list[Run]:
    """Take a block apart into runs, and check everything: the kernel trusts its addresses."""
    types = dict(program.types)
    by_row = frozenset(i.name for i in program.inputs if types[i.name].dims > {FRAME})
    packed = {n: a for n, a in arrays.items() if isinstance(a, Packed)}
    plain = {n: a for n, a in arrays.items() if not isinstance(a, Packed)}
    whole = {n: a if n in program.partial else np.ascontiguousarray(a) for n, a in plain.items()}
    runs = []
    for first, last, own in split_runs(program, whole, pixels):
        given = {i.name: packed.get(i.name, own.get(i.name)) for i in program.given}
        fit = {n: a if isinstance(a, Packed) else np.ascontiguousarray(a) for n, a in given.items()}
        _check_shapes(program, fit, frames, pixels)
        runs.append(Run(first, last, fit, by_row))
    return runs


def start_of_rows(array: Array) -> npt.NDArray[np.int64]:
    """Where the frames of an array begin."""
    return array.ctypes.data + np.arange(array.shape[0], dtype=np.int64) * array.strides[0]


def leaves_cache(result: Array, first: int) -> bool:
    """Whether a result is too large for the cache, and every frame and run of it begins at a cache line."""
    aligned = result.ctypes.data % ALIGNMENT == 0 and result.shape[1] * result.itemsize % ALIGNMENT == 0
    return aligned and first * result.itemsize % ALIGNMENT == 0 and result.nbytes >= STREAMED_BYTES


def compiled(program: Program, run: Run, flags: bool, streaming: bool) -> Any:
    """The kernel of a program for what a run is given."""
    from gaincal.kernels.compiler import Layout, compile_program

    return compile_program(program, Layout(tuple((n, a.dtype.name) for n, a in run.given.items()), flags, streaming))


def _check_shapes(program: Program, given: Mapping[str, Array | Packed], frames: int, pixels: int) -> None:
    types, labels = dict(program.types), dict(program.labels)
    for item in program.given:
        array, dims = given[item.name], types[item.name].dims
        wanted = [len(axis) for axis in labels.get(item.name, ())]
        wanted += [frames] if FRAME in dims or not (dims or wanted) else []
        wanted += [pixels] if dims - {FRAME} else [1] if item.name in program.labelled else []
        stored = np.dtype(item.dtype or program.compute)
        if array.shape != tuple(wanted) or array.dtype != stored:
            raise ValueError(f"{item.name} is {array.dtype}{array.shape}, not {stored}{tuple(wanted)}")


def _split(frames: int, first: int, last: int, threads: int) -> list[tuple[int, int]]:
    """Ranges of pixels: each task keeps its own constants in its cache, for all frames."""
    pixels = last - first
    worthwhile = max(1, frames * pixels // MIN_WORDS_PER_TASK)
    count = min(worthwhile, -(-pixels // PIXELS_PER_TASK)) if threads > 1 else 1
    if count <= 1:
        return [(first, last)]
    step = -(-pixels // count // PIXELS_PER_TASK) * PIXELS_PER_TASK
    return [(start, min(start + step, last)) for start in range(first, last, step)]
