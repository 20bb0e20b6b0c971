"""Run a program over blocks of frames: choose the evaluator, split the work, keep the threads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import Program
from gaincal.kernels.memory import ALIGNMENT
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
    whole = {n: a if n in program.partial else np.ascontiguousarray(a) for n, a in arrays.items()}
    results = [value] if flags is None else [value, flags]
    runs = []
    for first, last, own in split_runs(program, whole, pixels):
        given = [np.ascontiguousarray(own[item.name]) for item in program.given]
        _check_shapes(program, given, value, flags)
        runs.append((first, last, given))
    streaming = all(_streams(result, first) for first, _, _ in runs for result in results)
    kernel = _kernel(program, tuple(a.dtype.name for a in runs[0][2]), flags is not None, streaming)
    by_row = _by_row(program)
    kept, tasks = [], []
    for first, last, given in runs:
        rows = [_rows(a) if item.name in by_row else a for item, a in zip(program.given, given, strict=True)]
        rows += map(_rows, results)
        addresses = np.array([a.ctypes.data for a in rows], np.int64)
        kept += [addresses, *rows]  # as `runs` the arrays: the kernel knows only where they lie
        tasks += [(addresses.ctypes.data, 0, frames, pixels, *t) for t in _split(frames, first, last, threads)]
    run_all([partial(kernel, *task) for task in tasks], threads)


def _by_row(program: Program) -> frozenset[str]:
    """Inputs with a value for each pixel of each frame: the words."""
    types = dict(program.types)
    return frozenset(i.name for i in program.inputs if types[i.name].dims > {FRAME})


def _rows(array: Array) -> npt.NDArray[np.int64]:
    """Where the frames of an array begin."""
    return array.ctypes.data + np.arange(array.shape[0], dtype=np.int64) * array.strides[0]


def _check_shapes(program: Program, given: list[Array], value: Array, flags: npt.NDArray[np.uint32] | None) -> None:
    """The kernel trusts its addresses: nothing may reach it that does not fit."""
    frames, pixels = value.shape
    types, labels = dict(program.types), dict(program.labels)
    for item, array in zip(program.given, given, strict=True):
        dims = types[item.name].dims
        wanted = [len(axis) for axis in labels.get(item.name, ())]
        wanted += [frames] if FRAME in dims or not (dims or wanted) else []
        wanted += [pixels] if dims - {FRAME} else [1] if item.name in program.labelled else []
        stored = np.dtype(item.dtype or program.compute)
        if array.shape != tuple(wanted) or array.dtype != stored:
            raise ValueError(f"{item.name} is {array.dtype}{array.shape}, not {stored}{tuple(wanted)}")
    for result, dtype in ((value, program.dtype), (flags, "uint32")):
        if result is None:
            continue
        if result.dtype != dtype or result.shape != value.shape or not result.flags.carray:
            raise ValueError(f"a result must be a contiguous, writable {dtype}{value.shape}")


def _streams(result: Array, first: int) -> bool:
    """Whether a result is too large for the cache, and every frame and run of it begins at a cache line."""
    aligned = result.ctypes.data % ALIGNMENT == 0 and result.shape[1] * result.itemsize % ALIGNMENT == 0
    return aligned and first * result.itemsize % ALIGNMENT == 0 and result.nbytes >= STREAMED_BYTES


def _kernel(program: Program, dtypes: tuple[str, ...], flags: bool, streaming: bool) -> Any:
    from gaincal.kernels.compiler import Layout, compile_program

    names = (item.name for item in program.given)
    return compile_program(program, Layout(tuple(zip(names, dtypes, strict=True)), flags, streaming))


def _split(frames: int, first: int, last: int, threads: int) -> list[tuple[int, int]]:
    """Ranges of pixels: each task keeps its own constants in its cache, for all frames."""
    pixels = last - first
    worthwhile = max(1, frames * pixels // MIN_WORDS_PER_TASK)
    count = min(worthwhile, -(-pixels // PIXELS_PER_TASK)) if threads > 1 else 1
    if count <= 1:
        return [(first, last)]
    step = -(-pixels // count // PIXELS_PER_TASK) * PIXELS_PER_TASK
    return [(start, min(start + step, last)) for start in range(first, last, step)]
