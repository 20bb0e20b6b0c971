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
WORDS_PER_RANGE = 1 << 20
"""Words, of all frames, that a thread takes at a time."""
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
class _Worker:
    """What nobody but one thread may touch: addresses, and what it counts."""

    rows: npt.NDArray[np.int64]
    tables: npt.NDArray[np.int64]
    counting: bool
    lacking: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BITS, np.int64))
    failed: int = -1


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
    known = [blocks.known_conditions(kernel, run, pixels, threads, still) for run in runs]
    shared = _shared(program, runs[0], packed, results, missing, _split(runs, frames, threads))
    workers = [_worker(runs, known, target, results) for _ in range(min(threads, len(shared["ranges"])))]
    jobs = [partial(_work, stream, kernel.address, worker, pixels, shared, target is None) for worker in workers]
    with running([*jobs, *beside], threads):
        yield
    for bad in (worker.failed for worker in workers):
        if bad >= 0:
            tiles = shared["blocks"].shape[2]
            list(packed.values())[bad // tiles // frames].complain(bad // tiles % frames, bad % tiles)
    if isinstance(reasons, Tally):
        reasons.counts += sum(worker.counts for worker in workers)
        reasons.missing_frames += int(np.count_nonzero(sum(worker.lacking for worker in workers) == pixels))
    if isinstance(value, Chunks):
        value.take(shared["pieces"], shared["lengths"], fletcher32)


def _split(runs: Sequence[Run], frames: int, threads: int) -> list[tuple[int, int, int]]:
    """Ranges of tiles, in order: number of the run, first and last tile."""
    ranges = []
    for number, run in enumerate(runs):
        first, last = run.first // BLOCK, -(-run.last // BLOCK)
        most = frames * (run.last - run.first) // WORDS_PER_RANGE if threads > 1 else 1
        count = min(last - first, max(1, most))
        edges = [first + (last - first) * k // count for k in range(count + 1)]
        ranges += [(number, *edge) for edge in pairwise(edges)]
    return ranges


def _shared(
    program: Program,
    run: Run,
    packed: Mapping[str, Packed],
    results: Results,
    missing: Missing,
    ranges: Sequence[tuple[int, int, int]],
) -> dict[str, Array]:
    """What all threads use, by the names that `gaincal.kernels.stream.make_stream` has for it."""
    (frames, pixels), value, reasons = results.shape, results.value, results.flags
    names, room = [n for n in run.given if n in run.by_row], 0
    if isinstance(value, Chunks) and value.compressed:
        room = compressed_room(max(last - first for _, first, last in ranges) * BLOCK, value.dtype.itemsize)
    count = len(ranges) if room else 0
    return {
        "packed": np.array([names.index(n) for n in packed], np.int64),
        "blocks": np.stack([a.blocks for a in packed.values()]) if packed else np.zeros((0, 0, 0, 2), np.int64),
        "absent": np.zeros((0, 0), bool) if missing is None else missing.reshape(frames, pixels),
        "fill": np.array([np.nan if program.fill is None else program.fill], program.dtype).view(np.uint8),
        "ranges": np.array(ranges, np.int64),
        "counter": np.zeros(1, np.int64),
        "always": reasons.always.reshape(-1) if isinstance(reasons, Tally) else np.zeros(0, np.uint32),
        "held": reasons.held if isinstance(reasons, Tally) else np.zeros(0, np.uint8),
        "pieces": empty_aligned((count, frames, room), np.uint8),
        "lengths": np.zeros((count, frames), np.int64),
    }


def _worker(runs: Sequence[Run], known: Sequence[Array], target: Array | None, results: Results) -> _Worker:
    """Where everything lies, for one thread: it moves the addresses of rows from tile to tile."""
    (frames, _), reasons = results.shape, results.flags
    given = runs[0].given
    names = [n for n in given if n in runs[0].by_row]
    rows = np.zeros((len(names) + 3, frames), np.int64)
    for row, name in zip(rows, names, strict=False):
        if isinstance(given[name], Rows):
            row[...] = given[name].addresses
    if target is not None:
        rows[-3] = Rows.of(target).addresses
    if isinstance(reasons, np.ndarray):
        rows[-2] = Rows.of(reasons).addresses
    starts = dict(zip(names, (row.ctypes.data for row in rows), strict=False))
    wanted = 1 if reasons is None else 3 if isinstance(reasons, Tally) else 2
    stored = [row.ctypes.data for row in rows[-3:][:wanted]]
    tables = [
        [starts.get(n) or a.ctypes.data for n, a in run.given.items()] + stored + blocks.conditions_of(run, conditions)
        for run, conditions in zip(runs, known, strict=True)
    ]
    return _Worker(rows, np.array(tables, np.int64), isinstance(reasons, Tally), np.zeros(frames, np.int64))


def _work(
    stream: Any, kernel: int, worker: _Worker, pixels: int, shared: Mapping[str, Array], compressed: bool
) -> None:
    """Compute ranges of tiles as long as there are any; notes which block could not be decoded."""
    from gaincal.kernels.stream import GROUP, PLANES_BYTES

    size = shared["fill"].size
    room = PLANES_BYTES + GROUP * BLOCK * (shared["packed"].size * WORD_BYTES + (size if compressed else 0))
    counted = GROUP if worker.counting else 0
    worker.failed = int(
        stream(
            kernel,
            lz4_decoder() or 0,
            worker.tables,
            worker.rows,
            shared["packed"],
            shared["blocks"],
            shared["absent"],
            shared["fill"],
            pixels,
            shared["ranges"],
            shared["counter"],
            empty_aligned((room,), np.uint8),
            np.empty((2, (BLOCK * size // STEP + 1) if compressed else 0), np.uint64),
            empty_aligned((counted, BLOCK), np.uint32),
            empty_aligned((counted, BLOCK // LANES), np.uint8),
            shared["always"],
            shared["held"],
            worker.counts,
            worker.lacking,
            shared["pieces"],
            shared["lengths"],
        )
    )
