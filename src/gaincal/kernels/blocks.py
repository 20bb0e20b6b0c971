"""Run a program over blocks of frames: choose the evaluator, split the work, keep the threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import Program
from gaincal.kernels.memory import ALIGNMENT
from gaincal.kernels.packed import Packed
from gaincal.kernels.rows import Rows
from gaincal.kernels.runs import split_runs
from gaincal.kernels.threads import run_all

Array = npt.NDArray[Any]
MIN_WORDS_PER_TASK = 1 << 18
PIXELS_PER_TASK = 1 << 14
PIXELS_PER_WORD = 64
STREAMED_BYTES = 4 << 20
"""Larger results bypass the cache, where they would take the place of the constants."""


def evaluate(
    program: Program,
    arrays: Mapping[str, Array | Rows],
    value: Array | Rows,
    flags: npt.NDArray[np.uint32] | Rows | None = None,
    threads: int = 1,
    still: Still | None = None,
    groups: Sequence[tuple[int, int]] = (),
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
    still : Still, optional
        What is known already of these very maps, and takes what becomes known.
    groups : sequence of (int, int)
        First and last frames that are taken together, one group after the other; all if there are none.
    """
    frames, pixels = value.shape
    results = [_result(r, d, value.shape) for r, d in ((value, program.dtype), (flags, "uint32")) if r is not None]
    runs = prepare(program, arrays, frames, pixels)
    streaming = all(leaves_cache(result, run.first) for run in runs for result in results)
    kernel = compiled(program, runs[0], flags is not None, streaming)
    kept, tasks = [], []
    for run in runs:
        rows = [a.addresses if name in run.by_row else a for name, a in run.given.items()]
        rows += [result.addresses for result in results]
        conditions = known_conditions(kernel, run, pixels, threads, still)
        table = np.array([*(a.ctypes.data for a in rows), *conditions_of(run, conditions)], np.int64)
        kept += [table, conditions, *rows]  # as `runs` the arrays: the kernel knows only where they lie
        for begin, end in groups or [(0, frames)]:
            parts = _split(end - begin, run.first, run.last, threads)
            tasks += [partial(kernel, table.ctypes.data, begin, end, pixels, *part) for part in parts]
    run_all(tasks, threads)


def _result(result: Array | Rows, dtype: str, shape: tuple[int, ...]) -> Rows:
    """Where results go; raises ValueError if they do not fit there."""
    if isinstance(result, np.ndarray):
        if not result.flags.writeable:
            raise ValueError("a result must be writable")
        result = Rows.of(result)
    if result.dtype != dtype or result.shape != shape:
        raise ValueError(f"a result must be {dtype}{shape}, not {result.dtype}{result.shape}")
    return result


class Still:
    """Conditions on maps alone, one bit a pixel: they are the same for all frames, so they are computed once."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int, int], tuple[Any, Array]] = {}


def known_conditions(kernel: Any, run: Run, pixels: int, threads: int, still: Still | None) -> Array:
    """The conditions of a run (condition, byte) that a kernel wants to know beforehand."""
    key = kernel.address, run.first, run.last
    if still is not None and key in still.found:
        return still.found[key][1]
    room = -(-(run.last - run.first) // PIXELS_PER_WORD) * PIXELS_PER_WORD // 8
    conditions = np.zeros((kernel.conditions, room), np.uint8)
    # Neither words nor results: no frame is looked at.
    addresses = [0 if name in run.by_row else a.ctypes.data for name, a in run.given.items()]
    results = [0] * kernel.results
    table = np.array([*addresses, *results, *conditions_of(run, conditions)], np.int64)
    parts = _split(1, run.first, run.last, threads)
    jobs = [partial(kernel.prepare, table.ctypes.data, pixels, *part) for part in parts]
    run_all(jobs if kernel.conditions else [], threads)
    if still is not None:
        still.found[key] = kernel, conditions
    return conditions


def conditions_of(run: Run, conditions: Array) -> list[int]:
    """What a kernel's table says of conditions: the pixel with which they begin, and where each lies."""
    return [run.first, *(row.ctypes.data for row in conditions)]


@dataclass(frozen=True)
class Run:
    """Pixels of a block along which every input and constant is what the kernel takes.

    Parameters
    ----------
    first, last : int
        The pixels.
    given : dict of str to ndarray, Rows or Packed
        In the order in which the kernel takes them, checked to fit.
    by_row : frozenset of str
        Those with values for each pixel of each frame: words, and constants that are another for each frame.
    """

    first: int
    last: int
    given: dict[str, Any]
    by_row: frozenset[str]


def prepare(program: Program, arrays: Mapping[str, Array | Packed | Rows], frames: int, pixels: int) -> list[Run]:
    """Take a block apart into runs, and check everything: the kernel trusts its addresses."""
    types = dict(program.types)
    by_row = frozenset(i.name for i in program.given if types[i.name].dims > {FRAME})
    lying = {n: a for n, a in arrays.items() if not isinstance(a, np.ndarray)}
    plain = {n: a for n, a in arrays.items() if isinstance(a, np.ndarray)}
    lying |= {n: Rows.reading(a) for n, a in plain.items() if n in by_row}
    whole = {n: a if n in program.partial else np.ascontiguousarray(a) for n, a in plain.items() if n not in by_row}
    runs = []
    for first, last, own in split_runs(program, whole, pixels):
        given = {i.name: lying[i.name] if i.name in lying else own[i.name] for i in program.given}
        fit = {n: a if n in lying else np.ascontiguousarray(a) for n, a in given.items()}
        _check_shapes(program, fit, frames, pixels)
        runs.append(Run(first, last, fit, by_row))
    return runs


def leaves_cache(result: Rows, first: int) -> bool:
    """Whether a result is too large for the cache, and every frame and run of it begins at a cache line."""
    size = result.dtype.itemsize
    aligned = bool(np.all((result.addresses + first * size) % ALIGNMENT == 0))
    return aligned and len(result.addresses) * result.shape[-1] * size >= STREAMED_BYTES


def compiled(program: Program, run: Run, flags: bool, streaming: bool = False, marks: bool = False) -> Any:
    """The kernel of a program for what a run is given; see `gaincal.kernels.groups.Layout`."""
    from gaincal.kernels.compiler import compile_program
    from gaincal.kernels.groups import Layout

    arrays = tuple((n, a.dtype.name) for n, a in run.given.items())
    return compile_program(program, Layout(arrays, flags, marks, streaming))


def _check_shapes(program: Program, given: Mapping[str, Array | Packed | Rows], frames: int, pixels: int) -> None:
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
