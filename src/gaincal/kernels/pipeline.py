"""A block of frames, from what is stored to what is wanted: arrays, or chunks for a file and counted reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.program import MISSING_BIT, Program
from gaincal.kernels import blocks, reference
from gaincal.kernels.blocks import Plan
from gaincal.kernels.libraries import lz4_decoder
from gaincal.kernels.memory import empty_aligned
from gaincal.kernels.packed import BLOCK, STEP, WORD_BYTES, OddWords, Packed
from gaincal.kernels.results import BITS, LANES, Chunks, Tally, compressed_room
from gaincal.kernels.rows import Rows
from gaincal.kernels.threads import Job, Work

Array = npt.NDArray[Any]
Missing = npt.NDArray[np.bool_] | None
WORDS_PER_RANGE = 1 << 18
"""Words, of all frames, that a thread takes at a time: small ones are shared more evenly."""
WORDS_PER_PIECE = 1 << 20
"""The same where their values are compressed: each makes a piece of every chunk."""
MIN_SHARED_WORDS = 1 << 20
"""Fewer are computed sooner than another thread is awake."""
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

    def arrays(self, dtype: np.dtype[Any]) -> tuple[Array, npt.NDArray[np.uint32] | None]:
        """Where results are computed before they are taken: what there is of arrays itself."""
        value = self.value.values if isinstance(self.value, Chunks) else self.value
        value = empty_aligned(self.shape, dtype) if value is None else value
        flags = empty_aligned(self.shape, np.uint32) if isinstance(self.flags, Tally) else self.flags
        return value, flags

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
    for frame in range(len(value)):  # one at a time: every step makes an array of its own
        own = {n: a[frame : frame + 1] if n in program.by_frame else a for n, a in arrays.items()}
        value[frame], flags[frame] = reference.evaluate(program, own)
    blank(program, value, flags, missing)
    results.take(value, flags)


def begin(
    plan: Plan,
    arrays: Mapping[str, Array | Packed],
    results: Results,
    threads: int,
    missing: Missing = None,
    beside: Sequence[Job] = (),
) -> Work:
    """Begin to compute a block with compiled code; where it `streams`, the calling thread may do something else.

    Parameters
    ----------
    plan : Plan
    arrays : mapping of str to ndarray or Packed
        What is given for each frame, as for `Plan.evaluate`; words may be compressed where the block `streams`.
    results : Results
    threads : int
    missing : ndarray of bool (frame, pixel), optional
        Where words are missing, beside what compressed ones know themselves.
    beside : sequence of callables
        What else to do meanwhile.

    Returns
    -------
    Work
        To be finished, which raises OddWords if compressed words are not as they must be; nothing was computed then.
    """
    plain = isinstance(results.value, np.ndarray) and not isinstance(results.flags, Tally)
    packed = any(isinstance(a, Packed) for a in arrays.values())
    if packed or not plain:
        if streams(plan, packed, results):
            return _stream(plan, arrays, results, threads, missing, beside)
        assert not packed
    value, flags = results.arrays(np.dtype(plan.program.dtype))
    plan.evaluate(arrays, value, flags, threads)  # type: ignore[arg-type]
    blank(plan.program, value, flags, missing)
    results.take(value, flags)
    return Work(beside, threads)


def blank(program: Program, value: Array, flags: npt.NDArray[np.uint32] | None, missing: Missing) -> None:
    """Give pixels without words the fill, and their reason."""
    if missing is None:
        return
    value[missing] = np.nan if program.fill is None else program.fill
    if flags is not None:
        flags[missing] = np.uint32(1 << MISSING_BIT)


def streams(plan: Plan, packed: bool, results: Results) -> bool:
    """Whether a block can be computed tile by tile: its runs are made of whole tiles, and their libraries are there."""
    whole = whole_tiles((len(plan.runs),), (plan.pixels,))
    compressed = isinstance(results.value, Chunks) and results.value.compressed
    return whole and (plan.pixels % STEP == 0 or not (compressed or packed))


def whole_tiles(runs: tuple[int, ...], pixels: tuple[int, ...]) -> bool:
    """Whether the runs of a frame, so many along its leading dims, begin with a tile."""
    count = math.prod(runs)
    return count == 1 or math.prod(pixels) // count % BLOCK == 0


@dataclass
class _Worker:
    """What nobody but one thread may touch: addresses, what owns the memory there, and what it counts."""

    tables: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    lacking: npt.NDArray[np.int64]
    kept: object
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BITS, np.int64))
    failed: int = -1


def _stream(
    plan: Plan,
    arrays: Mapping[str, Array | Packed],
    results: Results,
    threads: int,
    missing: Missing,
    beside: Sequence[Job],
) -> Work:
    """Begin to compute tile by tile."""
    from gaincal.kernels.stream import make_stream

    (frames, pixels), program = results.shape, plan.program
    value, reasons = results.value, results.flags
    target = value.values if isinstance(value, Chunks) else value
    streaming, counting = False, isinstance(reasons, Tally)
    if target is not None and not isinstance(reasons, np.ndarray):
        rows = Rows.of(target)
        streaming = all(blocks.leaves_cache(rows, first) for first, _ in plan.edges)
    kernel, tables = plan.tables(reasons is not None, counting, streaming, threads)
    placed = plan.place(tables, arrays, frames)
    stream = make_stream(np.dtype(program.dtype).itemsize, target is None, counting)
    shared = _shared(plan, arrays, results, missing, _split(plan.edges, frames, threads, target is None))
    count = min(threads, len(shared["ranges"]))
    workers = [_worker(plan, tables, placed, target, results) for _ in range(count)]
    words = [a for a in arrays.values() if isinstance(a, Packed)]
    jobs = [partial(_work, stream, kernel.address, worker, pixels, shared, words, target is None) for worker in workers]
    halt = partial(shared["counter"].fill, len(shared["ranges"]))
    return Work([*jobs, *beside], threads, partial(_complete, results, workers, words, shared), halt)


def _complete(
    results: Results, workers: Sequence[_Worker], words: Sequence[Packed], shared: Mapping[str, Array]
) -> None:
    """Put together what all threads have found."""
    from gaincal.kernels.compiled_checksum import fletcher32

    if not all(packed.arrive() for packed in words):
        raise OddWords
    (frames, pixels), value, reasons = results.shape, results.value, results.flags
    for bad in (worker.failed for worker in workers):
        if bad >= 0:
            tiles = words[0].blocks.shape[1]
            words[bad // tiles // frames].complain(bad // tiles % frames, bad % tiles)
    if isinstance(reasons, Tally):
        reasons.counts += sum(worker.counts for worker in workers)
        reasons.missing_frames += int(np.count_nonzero(sum(worker.lacking for worker in workers) == pixels))
    if isinstance(value, Chunks):
        value.take(shared["pieces"], shared["lengths"], fletcher32)


def _split(edges: Sequence[tuple[int, int]], frames: int, threads: int, compressed: bool) -> list[tuple[int, int, int]]:
    """Ranges of tiles, in order: number of the run, first and last tile."""
    ranges = []
    for number, (begin, end) in enumerate(edges):
        first, last = begin // BLOCK, -(-end // BLOCK)
        words = frames * (end - begin)
        least = WORDS_PER_PIECE if compressed else WORDS_PER_RANGE
        most = words // least if threads > 1 and words >= MIN_SHARED_WORDS else 1
        count = min(last - first, max(1, most))
        tiles = [first + (last - first) * k // count for k in range(count + 1)]
        ranges += [(number, *part) for part in pairwise(tiles)]
    return ranges


def _shared(
    plan: Plan,
    arrays: Mapping[str, Array | Packed],
    results: Results,
    missing: Missing,
    ranges: Sequence[tuple[int, int, int]],
) -> dict[str, Array]:
    """What all threads use, by the names that `gaincal.kernels.stream.make_stream` has for it."""
    (frames, pixels), value, reasons = results.shape, results.value, results.flags
    room, program = 0, plan.program
    packed = {n: a for n, a in arrays.items() if isinstance(a, Packed)}
    names = _by_row(program)
    if isinstance(value, Chunks) and value.compressed:
        room = compressed_room(max(last - first for _, first, last in ranges) * BLOCK, value.dtype.itemsize)
    count = len(ranges) if room else 0
    return {
        "packed": np.array([names.index(n) for n in packed], np.int64),
        "absent": np.zeros((0, 0), bool) if missing is None else missing.reshape(frames, pixels),
        "fill": np.array([np.nan if program.fill is None else program.fill], program.dtype).view(np.uint8),
        "ranges": np.array(ranges, np.int64),
        "counter": np.zeros(1, np.int64),
        "groups": plan.groups[0],
        "shares": plan.groups[1],
        "always": reasons.always.reshape(-1) if isinstance(reasons, Tally) else np.zeros(0, np.uint32),
        "held": reasons.held if isinstance(reasons, Tally) else np.zeros(0, np.uint8),
        "pieces": empty_aligned((count, frames, room), np.uint8),
        "lengths": np.zeros((count, frames), np.int64),
    }


def _by_row(program: Program) -> list[str]:
    """What has a value for each pixel of each frame, in the order in which a kernel takes it."""
    return [item.name for item in program.given if item.name in program.by_row]


def _worker(
    plan: Plan,
    tables: npt.NDArray[np.int64],
    placed: Mapping[str, Array | Rows],
    target: Array | None,
    results: Results,
) -> _Worker:
    """Where everything lies, for one thread: it moves the addresses of rows from tile to tile."""
    (frames, _), program = results.shape, plan.program
    names = _by_row(program)
    rows, own = np.zeros((len(names) + 3, frames), np.int64), tables.copy()
    for row, name in zip(rows, names, strict=False):
        words = placed.get(name)
        if isinstance(words, Rows):
            row[...] = words.addresses
    if target is not None:
        rows[-3] = Rows.of(target).addresses
    if isinstance(results.flags, np.ndarray):
        rows[-2] = Rows.of(results.flags).addresses
    starts, given = blocks.addresses_of(rows), [item.name for item in program.given]
    for name, start in zip(names, starts, strict=False):
        own[:, given.index(name)] = start
    wanted = 1 if results.flags is None else 3 if isinstance(results.flags, Tally) else 2
    own[:, len(given) : len(given) + wanted] = starts[-3:][:wanted]
    return _Worker(own, rows, np.zeros(frames, np.int64), (plan, placed, results))


def _work(
    stream: Any,
    kernel: int,
    worker: _Worker,
    pixels: int,
    shared: Mapping[str, Array],
    words: Sequence[Packed],
    compressed: bool,
) -> None:
    """Compute ranges of tiles as long as there are any, of words as they must be; notes which block was not decoded."""
    from gaincal.kernels.stream import GROUP, PLANES_BYTES

    if not all(packed.arrive() for packed in words):
        return
    size = shared["fill"].size
    room = PLANES_BYTES + GROUP * BLOCK * (shared["packed"].size * WORD_BYTES + (size if compressed else 0))
    counted = GROUP if shared["held"].size else 0
    worker.failed = int(
        stream(
            kernel,
            lz4_decoder() or 0,
            worker.tables,
            worker.rows,
            shared["packed"],
            np.stack([packed.blocks for packed in words]) if words else np.zeros((0, 0, 0, 2), np.int64),
            shared["absent"],
            shared["fill"],
            pixels,
            shared["ranges"],
            shared["counter"],
            shared["groups"],
            shared["shares"],
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
