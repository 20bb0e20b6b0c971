"""Dark frames summed, or counted in histograms, pixel by pixel: blocks of frames cut up for threads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.kernels.dark_rules import ABOVE, BELOW, BINS, GROUP, MOST_COUNTED, PLACES, TILE, WARM, Stage
from gaincal.kernels.libraries import lz4_decoder
from gaincal.kernels.memory import empty_aligned
from gaincal.kernels.packed import BLOCK, WORD_BYTES, Packed
from gaincal.kernels.rows import Rows
from gaincal.kernels.threads import run_all
from gaincal.kernels.unread import Unread

Array = npt.NDArray[Any]
Block = Packed | Unread | Array
"""Words of some frames: compressed, still in a file, or an array (frame, pixel) of uint16."""
TASKS_PER_THREAD = 2
SAMPLED = 16
"""Of so many tiles one is asked which stage a frame is in."""
SUM_BYTES = 32 + 2 * WARM
COUNT_BYTES = 2 * PLACES + 13 + 2 * WARM
"""Memory for a pixel of a bin."""


class _Gathering:
    """What both ways of looking at dark frames have in common.

    Parameters
    ----------
    stages : sequence of Stage
        Of each bin: a gain stage, or a stage in one memory cell.
    modules, pixels : int
        Modules of a frame, and pixels of a module.
    clip : float
        Half width of the windows that the first frames open, in standard deviations; 0 for none.
    """

    counting: bool

    def __init__(self, stages: Sequence[Stage], modules: int, pixels: int, clip: float) -> None:
        self.stages, self.modules, self.pixels = list(stages), modules, pixels
        self.clip = round(2 * clip)
        self.held = np.zeros((len(self.stages), modules), np.int64)
        self.offered = np.zeros((len(self.stages), modules), np.int64)
        rows = WARM if self.clip else 0
        self.kept = [np.empty((rows, modules * pixels), np.uint16) for _ in self.stages]
        self.states = [self._state(stage, modules * pixels) for stage in self.stages]

    def _state(self, stage: Stage, pixels: int) -> tuple[Array, ...]:
        raise NotImplementedError

    def add(self, block: Block, bins: Array, threads: int = 1) -> None:
        """Take some frames.

        Parameters
        ----------
        block : Block
        bins : ndarray (frame, module) of int
            The bin that the words of a module belong to; -1 for none.
        threads : int

        Raises
        ------
        FileError
            If words cannot be read or decoded.
        """
        present = [(int(b), m) for m in range(self.modules) for b in np.unique(bins[:, m]) if b >= 0]
        parts = [(b, m, np.flatnonzero(bins[:, m] == b)) for b, m in present]
        jobs = [
            (b, m, frames, window)
            for b, m, frames in parts
            for window in self._windows(m, -(-TASKS_PER_THREAD * threads // max(1, len(parts))) if threads > 1 else 1)
        ]
        failed = [-1] * len(jobs)

        def work(number: int) -> None:
            b, m, frames, window = jobs[number]
            failed[number] = self._gather(block, (b, m), frames, int(self.held[b, m]), window, self.clip)

        run_all([partial(work, k) for k in range(len(jobs))], threads)
        complain(block, failed)
        for b, m, frames in parts:
            self.offered[b, m] += len(frames)
            self.held[b, m] = min(WARM, self.held[b, m] + len(frames))

    def finish(self) -> None:
        """Take what was kept of bins with too few frames to open windows."""
        for b, m in zip(*np.nonzero((self.held > 0) & (self.held < WARM)), strict=True):
            if self.clip:
                held = int(self.held[b, m])
                window = (m * self.pixels, (m + 1) * self.pixels)
                self._gather(self.kept[b], (int(b), m), np.arange(held), WARM, window, 0)
        self.kept = []

    def _windows(self, module: int, most: int) -> list[tuple[int, int]]:
        """A module cut into at most so many ranges of whole tiles."""
        tiles = -(-self.pixels // TILE)
        count, first = min(most, tiles), module * self.pixels
        edges = [min(tiles * k // count * TILE, self.pixels) for k in range(count)] + [self.pixels]
        return [(first + begin, first + end) for begin, end in pairwise(edges)]

    def _gather(
        self, block: Block, where: tuple[int, int], frames: Array, held: int, window: tuple[int, int], clip: int
    ) -> int:
        from gaincal.kernels.dark_loops import make_loop

        number, module = where
        limits = np.array(self.stages[number].limits, np.int64)
        given = (_source(block, module, self.pixels), frames, held, (*window, self.modules * self.pixels), clip)
        return int(make_loop(self.counting)(*given, limits, self.states[number], self.kept[number], _scratch()))


class Sums(_Gathering):
    """Number, sum and sum of squares of the words of each pixel that lie in its window.

    Parameters
    ----------
    stages, modules, pixels, clip
        See `_Gathering`.
    windows : sequence of (ndarray, ndarray), optional
        First word, and how many follow, of each pixel; by bin.  All good words if not given.
    """

    counting = False

    def __init__(
        self,
        stages: Sequence[Stage],
        modules: int,
        pixels: int,
        clip: float = 0.0,
        windows: Sequence[tuple[Array, Array]] | None = None,
    ) -> None:
        super().__init__(stages, modules, pixels, clip)
        for (low, width, *_), given in zip(self.states, windows or (), strict=False):
            low[...], width[...] = given

    def _state(self, stage: Stage, pixels: int) -> tuple[Array, ...]:
        low, width = (
            np.full(pixels, stage.good[0], np.uint16),
            np.full(pixels, stage.good[1] - stage.good[0], np.uint16),
        )
        kinds = (np.uint32, np.uint32, np.uint32, np.uint64, np.uint64)
        return (low, width, *(np.zeros(pixels, kind) for kind in kinds))

    def result(self, number: int) -> dict[str, Array]:
        """The sums of a bin, by the names of `gaincal.kernels.dark_reference.sums`, with ``low`` and ``width``."""
        names = ("low", "width", "used", "right", "undefined", "total", "squares")
        return _without_undefined(self.stages[number], dict(zip(names, self.states[number], strict=True)))


class Histograms(_Gathering):
    """Histogram of the good words of each pixel, around the middle of its first frames."""

    counting = True

    def __init__(self, stages: Sequence[Stage], modules: int, pixels: int) -> None:
        super().__init__(stages, modules, pixels, 1.0)

    def _state(self, stage: Stage, pixels: int) -> tuple[Array, ...]:
        whole = next(k for k in range(17) if BINS << k > stage.good[1] - stage.good[0])
        base, shift = np.full(pixels, stage.good[0], np.int32), np.full(pixels, whole, np.uint8)
        return (base, shift, np.zeros((pixels, PLACES), np.uint16), *(np.zeros(pixels, np.uint32) for _ in range(2)))

    def add(self, block: Block, bins: Array, threads: int = 1) -> None:
        """As `_Gathering.add`; raises ValueError for more frames than the counters hold."""
        if self.offered.size and self.offered.max() + len(bins) > MOST_COUNTED:
            raise ValueError(f"more than {MOST_COUNTED} frames")
        super().add(block, bins, threads)

    def result(self, number: int) -> dict[str, Array]:
        """The histograms of a bin, by the names of `gaincal.kernels.dark_reference.histograms`, with their grid."""
        base, shift, counts, right, undefined = self.states[number]
        ends = {"below": counts[:, BELOW].astype(np.uint32), "above": counts[:, ABOVE].astype(np.uint32)}
        found = {"base": base, "shift": shift, "counts": counts[:, :BINS], **ends, "right": right}
        return _without_undefined(self.stages[number], {**found, "undefined": undefined})

    def quantiles(self, number: int, parts: Sequence[float], threads: int = 1) -> Array:
        """Quantiles of a bin, as `gaincal.kernels.dark_rules.quantile` has them; (part, pixel) of float64."""
        from gaincal.kernels.dark_loops import quantiles

        base, shift, counts, *_ = self.states[number]
        wanted, found = np.array(parts, np.float64), np.empty((len(parts), len(base)))
        edges = [len(base) * k // threads for k in range(threads + 1)]

        def work(first: int, last: int) -> None:
            own = slice(first, last)
            quantiles(wanted, counts[own], base[own], shift[own], self.stages[number].zero, found[:, own])

        run_all([partial(work, *ends) for ends in pairwise(edges)], threads)
        return found


def tell_stages(block: Block, modules: int, limits: Sequence[tuple[int, int]], threads: int = 1) -> Array:
    """How large a part of the words of each module lies within limits, asked in one of `SAMPLED` tiles.

    Parameters
    ----------
    block : Block
    modules : int
    limits : sequence of (int, int)
        First and last word of each range.
    threads : int

    Returns
    -------
    ndarray (frame, module, range) of float64
    """
    from gaincal.kernels.dark_loops import count_words

    frames, pixels = block.shape
    size = pixels // modules
    found = np.zeros((modules, frames, len(limits)), np.int64)
    table = np.array(limits, np.int64).reshape(-1, 2)
    shares = [range(k * frames // threads, (k + 1) * frames // threads) for k in range(threads)]
    jobs = [(module, share) for module in range(modules) for share in shares if share]
    failed = [-1] * len(jobs)

    def work(number: int) -> None:
        module, share = jobs[number]
        window = (module * size, (module + 1) * size, pixels)
        given = (_source(block, module, size), (share.start, share.stop), window, SAMPLED * BLOCK, table)
        failed[number] = int(count_words(*given, found[module], _scratch()))

    run_all([partial(work, k) for k in range(len(jobs))], threads)
    complain(block, failed)
    asked = sum(min(BLOCK, size - first) for first in range(0, size, SAMPLED * BLOCK))
    return np.asarray(np.moveaxis(found, 0, 1) / max(1, asked))


def complain(block: Block, failed: Sequence[int]) -> None:
    """Raise what is wrong with the first words that could not be decoded or read."""
    for frame, pixel in (divmod(bad, block.shape[1]) for bad in failed if bad >= 0):
        if isinstance(block, Packed):
            block.complain(frame, pixel // BLOCK)
        elif isinstance(block, Unread):
            block.complain(frame, pixel // (block.pixels // block.places.shape[1]))


def _source(block: Block, module: int, pixels: int) -> tuple[int, int, Array, Array, Array]:
    """The words of a module of so many pixels, as `gaincal.kernels.dark_loops.make_loop` takes them."""
    from gaincal.kernels.libraries import system

    blocks, words, places = np.zeros((0, 0, 2), np.int64), np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    if isinstance(block, Packed):
        blocks = block.blocks
    elif isinstance(block, Unread):
        places = block.places[:, module] - np.array([0, module * pixels * WORD_BYTES])
    elif block.dtype != np.uint16:
        raise ValueError(f"words must be uint16, not {block.dtype}")
    else:
        words = Rows.of(block).addresses
    return lz4_decoder() or 0, system("pread"), blocks, words, places


def _scratch() -> Array:
    from gaincal.kernels.dark_loops import ROW_BYTES
    from gaincal.kernels.stream import PLANES_BYTES

    return empty_aligned((PLANES_BYTES + GROUP * ROW_BYTES,), np.uint8)


def _without_undefined(stage: Stage, found: dict[str, Array]) -> dict[str, Array]:
    """Where every word tells a stage, vectors have compared with a range that is none."""
    if stage.undefined[0] > stage.undefined[1]:
        found["undefined"][...] = 0
    return found
