"""A block of frames, from what is stored to what is wanted: arrays, or chunks for a file and counted reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import MISSING_BIT, Program
from gaincal.kernels import blocks, reference
from gaincal.kernels.blocks import Run, Still
from gaincal.kernels.libraries import lz4_decoder
from gaincal.kernels.memory import empty_aligned
from gaincal.kernels.packed import BLOCK, STEP, WORD_BYTES, Packed
from gaincal.kernels.results import BITS, LANES, Chunks, Tally, compressed_room
from gaincal.kernels.rows import Rows
from gaincal.kernels.threads import Job, running

Array = npt.NDArray[Any]
Missing = npt.NDArray[np.bool_] | None
TASKS_PER_THREAD, WORDS_PER_TASK = 3, 1 << 19
UNCOMPILED_WORDS = 2 << 20
"""So many words are computed faster by NumPy than a program is compiled."""


@dataclass
class Results:
    """Where the results of a block go.

    Parameters
    ----------
    value : ndarray (frame, pixel) or Chunks
    flags : ndarray (frame, pixel) of uint32, or Tally, optional
    """

    value: Array | Chunks
    flags: npt.NDArray[np.uint32] | Tally | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and pixels."""
        if isinstance(self.value, Chunks):
            return self.value.frames, self.value.pixels
        frames, pixels = self.value.shape
        return frames, pixels

    def take(self, value: Array, flags: npt.NDArray[np.uint32] | None) -> None:
        """Take results that are there as arrays."""
        if isinstance(self.value, Chunks):
            self.value.add(value)
        elif self.value is not value:
            self.value[...] = value
        if isinstance(self.flags, Tally):
            assert flags is not None
            self.flags.add(flags)
        elif self.flags is not None and flags is not None and self.flags is not flags:
            self.flags[...] = flags


def worth_compiling(program: Program, words: int) -> bool:
    """Whether a program has so much to do that compiling it pays, with these words and all that came before."""
    history = _history(program)
    history[0] += words
    return history[0] > UNCOMPILED_WORDS


@lru_cache(maxsize=256)
def _history(program: Program) -> list[int]:  # noqa: ARG001
    return [0]


def interpret(program: Program, arrays: Mapping[str, Array], results: Results, missing: Missing) -> None:
    """Compute a block with NumPy alone: the same bits, and nothing to compile."""
    value, flags = empty_aligned(results.shape, program.dtype), empty_aligned(results.shape, np.uint32)
    types = dict(program.types)
    by_frame = {
        item.name
        for item in program.given
        if FRAME in types[item.name].dims or not (types[item.name].dims or item.name in program.labelled)
    }
    for frame in range(len(value)):  # one at a time: every step makes an array of its own
        own = {n: a[frame : frame + 1] if n in by_frame else a for n, a in arrays.items()}
        value[frame], flags[frame] = reference.evaluate(program, own)
    blank(program, value, flags, missing)
    results.take(value, flags)


def evaluate(
    program: Program,
    arrays: Mapping[str, Array | Packed],
    results: Results,
    threads: int,
    missing: Missing,
    still: Still | None = None,
) -> None:
    """Compute a block with compiled code; see `evaluating`."""
    with evaluating(program, arrays, results, threads, missing, still):
        pass


@contextmanager
def evaluating(
    program: Program,
    arrays: Mapping[str, Array | Packed],
    results: Results,
    threads: int,
    missing: Missing,
    still: Still | None = None,
    beside: Sequence[Job] = (),
) -> Iterator[None]:
    """Compute a block with compiled code, where it `streams` while the calling thread does something else.

    Parameters
    ----------
    program : Program
    arrays : mapping of str to ndarray or Packed
        As for `gaincal.kernels.blocks.evaluate`; words may still be compressed where the block `streams`.
    results : Results
    threads : int
    missing : ndarray of bool (frame, pixel), optional
        Where words are missing, beside what compressed ones know themselves.
    still : Still, optional
        As for `gaincal.kernels.blocks.evaluate`.
    beside : sequence of callables
        What else to do meanwhile.
    """
    plain = isinstance(results.value, np.ndarray) and not isinstance(results.flags, Tally)
    packed = any(isinstance(a, Packed) for a in arrays.values())
    if packed or not plain:
        if streams(program, arrays, results):
            with _streaming(program, arrays, results, threads, missing, still, beside):
                yield
            return
        assert not packed
    value = results.value if isinstance(results.value, np.ndarray) else empty_aligned(results.shape, program.dtype)
    flags = results.flags if isinstance(results.flags, np.ndarray) else None
    if isinstance(results.flags, Tally):
        flags = empty_aligned(results.shape, np.uint32)
    blocks.evaluate(program, arrays, value, flags, threads, still)  # type: ignore[arg-type]
    blank(program, value, flags, missing)
    results.take(value, flags)
    with running(beside, threads):
        yield


def blank(program: Program, value: Array, flags: npt.NDArray[np.uint32] | None, missing: Missing) -> None:
    """Give pixels without words the fill, and their reason."""
    if missing is None:
        return
    value[missing] = np.nan if program.fill is None else program.fill
    if flags is not None:
        flags[missing] = np.uint32(1 << MISSING_BIT)


def streams(program: Program, arrays: Mapping[str, Array | Packed], results: Results) -> bool:
    """Whether a block can be computed tile by tile: its runs are made of whole tiles, and their libraries are there."""
    _, pixels = results.shape
    counts = {a.shape[-1] for n, a in arrays.items() if n in program.partial}
    whole = whole_tiles(tuple(counts), (pixels,))
    compressed = isinstance(results.value, Chunks) and results.value.compressed
    packed = any(isinstance(a, Packed) for a in arrays.values())
    return whole and (pixels % STEP == 0 or not (compressed or packed))


def whole_tiles(runs: tuple[int, ...], pixels: tuple[int, ...]) -> bool:
    """Whether the runs of a frame, so many along its leading dims, begin with a tile."""
    count = math.prod(runs)
    return count == 1 or math.prod(pixels) // count % BLOCK == 0


@dataclass
class _Task:
    """Some tiles of a run, with everything that nobody else may touch while they are computed."""

    run: Run
    tiles: tuple[int, int]
    rows: npt.NDArray[np.int64]
    table: npt.NDArray[np.int64]
    packed: npt.NDArray[np.int64]
    pieces: Array
    lengths: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BITS, np.int64))
    lacking: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


@contextmanager
def _streaming(
    program: Program,
    arrays: Mapping[str, Array | Packed],
    results: Results,
    threads: int,
    missing: Missing,
    still: Still | None,
    beside: Sequence[Job],
) -> Iterator[None]:
    from gaincal.kernels.stream import fletcher32, make_stream

    frames, pixels = results.shape
    value, reasons = results.value, results.flags
    target = value.values if isinstance(value, Chunks) else value
    runs = blocks.prepare(program, arrays, frames, pixels)
    streaming = False
    if reasons is None and isinstance(value, np.ndarray):
        streaming = all(blocks.leaves_cache(Rows.of(value), run.first) for run in runs)
    counting = isinstance(reasons, Tally)
    kernel = blocks.compiled(program, runs[0], reasons is not None, streaming, counting)
    stream = make_stream(np.dtype(program.dtype).itemsize, target is None, counting)
    packed = {n: a for n, a in arrays.items() if isinstance(a, Packed)}
    shared = {
        "blocks": np.stack([a.blocks for a in packed.values()]) if packed else np.zeros((0, 0, 0, 2), np.int64),
        "absent": np.zeros((0, 0), bool) if missing is None else missing.reshape(frames, pixels),
        "fill": np.array([np.nan if program.fill is None else program.fill], program.dtype).view(np.uint8),
        "always": reasons.always.reshape(-1) if isinstance(reasons, Tally) else np.zeros(0, np.uint32),
        "held": reasons.held if isinstance(reasons, Tally) else np.zeros(0, np.uint8),
    }
    known = [blocks.known_conditions(kernel, run, pixels, threads, still) for run in runs]
    most = min(threads * TASKS_PER_THREAD, frames * pixels // WORDS_PER_TASK) if threads > 1 else 1
    tasks = [
        _task(run, conditions, tiles, list(packed), target, results)
        for run, conditions in zip(runs, known, strict=True)
        for tiles in _split(run, max(1, most // len(runs)))
    ]
    failed = [-1] * len(tasks)

    def work(number: int) -> None:
        task = tasks[number]
        failed[number] = _run_task(stream, kernel.address, task, pixels, shared, target is None, reasons)

    with running([*(partial(work, k) for k in range(len(tasks))), *beside], threads):
        yield
    for bad in failed:
        if bad >= 0:
            tiles = shared["blocks"].shape[2]
            list(packed.values())[bad // tiles // frames].complain(bad // tiles % frames, bad % tiles)
    if isinstance(reasons, Tally):
        reasons.counts += sum(task.counts for task in tasks)
        reasons.missing_frames += int(np.count_nonzero(sum(task.lacking for task in tasks) == pixels))
    if isinstance(value, Chunks):
        value.take([(task.pieces, task.lengths) for task in tasks] if target is None else [], fletcher32)


def _split(run: Run, most: int) -> list[tuple[int, int]]:
    """At most so many ranges of tiles, in order."""
    first, last = run.first // BLOCK, -(-run.last // BLOCK)
    count = min(last - first, most)
    edges = [first + (last - first) * k // count for k in range(count + 1)]
    return list(pairwise(edges))


def _task(
    run: Run, conditions: Array, tiles: tuple[int, int], packed: list[str], target: Array | None, results: Results
) -> _Task:
    (frames, _), reasons = results.shape, results.flags
    names = [n for n in run.given if n in run.by_row]
    rows = np.zeros((len(names) + 3, frames), np.int64)
    for row, name in zip(rows, names, strict=False):
        array = run.given[name]
        if isinstance(array, Rows):
            row[...] = array.addresses
    if target is not None:
        rows[-3] = Rows.of(target).addresses
    if isinstance(reasons, np.ndarray):
        rows[-2] = Rows.of(reasons).addresses
    starts = {n: row.ctypes.data for n, row in zip(names, rows, strict=False)}
    table = [starts.get(n) or np.asarray(a).ctypes.data for n, a in run.given.items()]
    stored = 1 if reasons is None else 2 if isinstance(reasons, np.ndarray) else 3
    table += [row.ctypes.data for row in rows[-3:][:stored]]
    table += blocks.conditions_of(run, conditions)
    room = compressed_room((tiles[1] - tiles[0]) * BLOCK, results.value.dtype.itemsize) if target is None else 0
    return _Task(
        run,
        tiles,
        rows,
        np.array(table, np.int64),
        np.array([names.index(n) for n in packed], np.int64),
        empty_aligned((frames, room), np.uint8),
        np.zeros(frames, np.int64),
        lacking=np.zeros(frames, np.int64),
    )


def _run_task(
    stream: Any, kernel: int, task: _Task, pixels: int, shared: Mapping[str, Array], compressed: bool, reasons: Any
) -> int:
    """Compute a task; returns -1 or which block could not be decoded."""
    from gaincal.kernels.stream import GROUP, PLANES_BYTES

    size = shared["fill"].size
    room = PLANES_BYTES + GROUP * BLOCK * (task.packed.size * WORD_BYTES + (size if compressed else 0))
    counted = GROUP if isinstance(reasons, Tally) else 0
    return int(
        stream(
            kernel,
            lz4_decoder() or 0,
            task.table,
            task.rows,
            task.packed,
            shared["blocks"],
            shared["absent"],
            shared["fill"],
            pixels,
            task.tiles,
            empty_aligned((room,), np.uint8),
            np.empty((2, (BLOCK * size // STEP + 1) if compressed else 0), np.uint64),
            empty_aligned((counted, BLOCK), np.uint32),
            empty_aligned((counted, BLOCK // LANES), np.uint8),
            shared["always"],
            shared["held"],
            task.counts,
            task.lacking,
            task.pieces,
            task.lengths,
        )
    )
