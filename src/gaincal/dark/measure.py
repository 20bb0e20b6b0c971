"""Pedestal and noise of every stage and memory cell, batch by batch of them so that memory is bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.dark.recipe import Recipe
from gaincal.dark.series import NONE, REJECTED, Series, stretches, told
from gaincal.errors import RequestError
from gaincal.kernels.dark_rules import ONE_SIGMA, WARM, Moments, gate, moments
from gaincal.kernels.darks import COUNT_BYTES, SUM_BYTES, Histograms, Sums

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
MEAN, MEDIAN, GATED = "mean", "median", "gated"
METHODS = (MEAN, MEDIAN, GATED)
USED = 1


@dataclass(frozen=True)
class Method:
    """How pedestals are taken.

    Parameters
    ----------
    name : {'mean', 'median', 'gated'}
    clip : float
        Mean: words further away than this from the middle of the first frames, in their standard deviations, are
        left out; 0 leaves out none.
    gate : float
        Gated: half width of the gate around the median, in standard deviations from quantiles.
    majority : float
        A module whose words are not in its stage to more than this part is rejected.
    """

    name: str = MEAN
    clip: float = 6.0
    gate: float = 5.0
    majority: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise RequestError(f"no method '{self.name}'; there are {', '.join(METHODS)}")
        if not (self.clip >= 0 and self.gate > 0 and 0 <= self.majority < 1):
            raise RequestError("clip must not be negative, gate must be above 0, majority between 0 and 1")

    @property
    def passes(self) -> int:
        """How often the words are read."""
        return 2 if self.name == GATED else 1


@dataclass(frozen=True, eq=False)
class Found:
    """What a stage gives in one memory cell; arrays are (pixel,) over all modules.

    Parameters
    ----------
    label, cell : int
    frames : ndarray (module,) of int
        That were taken.
    moments : Moments
    right, undefined : ndarray of uint32
        Words that tell this stage, and that tell none.
    """

    label: int
    cell: int
    frames: Array
    moments: Moments
    right: Array
    undefined: Array


@dataclass
class Survey:
    """All dark runs of a set, and what became of their frames.

    Parameters
    ----------
    series : sequence of Series
    method : Method
    memory : int
        Bytes for sums and histograms.
    threads : int
    progress : callable (done, total) -> None
        Counts frames.
    """

    series: Sequence[Series]
    method: Method
    memory: int
    threads: int
    progress: Progress
    done: int = 0
    states: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.states = [np.zeros(s.expected.shape, np.uint8) for s in self.series]
        for state, series in zip(self.states, self.series, strict=True):
            state[series.cells == NONE] = _code("no_cell")

    @property
    def recipe(self) -> Recipe:
        """Of all of them."""
        return self.series[0].recipe

    @property
    def bins(self) -> list[tuple[int, int]]:
        """Stages and memory cells that frames may be in."""
        cells = np.unique(np.concatenate([s.cells.reshape(-1) for s in self.series]))
        every = [(label, int(cell)) for label in self.recipe.labels for cell in cells if cell != NONE]
        return [b for b in every if any(s.candidates(*b).any() for s in self.series)]

    def measure(self, name: str) -> Iterator[Found]:
        """What every stage and cell gives, in order; those that no frame was in are left out.

        Parameters
        ----------
        name : str
            The words that are averaged.
        """
        pixels = math.prod(self.series[0].pixels)
        size = SUM_BYTES if self.method.name == MEAN else COUNT_BYTES
        most = max(1, self.memory // (size * pixels))
        bins, bands = self.bins, self._bands(size)
        batches = [bins[k : k + most] for k in range(0, len(bins), most)]
        total = sum(self._frames(batch) for batch in batches) * self.method.passes * len(bands)
        for batch in batches:
            parts = [self._measured(name, batch, total, band) for band in bands]
            joined = (_joined([part[k] for part in parts]) for k in range(len(batch)))
            yield from (found for found in joined if found.frames.any())

    def _bands(self, size: int) -> list[tuple[int, int]]:
        """First and last module of those that are taken together: all, unless a single stage is too much for them."""
        modules = self.series[0].modules
        own = size * math.prod(self.series[0].pixels) // modules
        most = min(modules, max(1, self.memory // own))
        count = -(-modules // most)
        return [(modules * k // count, modules * (k + 1) // count) for k in range(count)]

    def rejected(self) -> dict[str, int]:
        """Frames of modules that were not used, by reason."""
        return {name: sum(int(np.count_nonzero(s == _code(name))) for s in self.states) for name in REJECTED}

    def _frames(self, batch: Sequence[tuple[int, int]]) -> int:
        return sum(int(np.count_nonzero(_chosen(s, batch))) for s in self.series)

    def _measured(self, name: str, batch: list[tuple[int, int]], total: int, band: tuple[int, int]) -> list[Found]:
        modules = band[1] - band[0]
        stages = [self.recipe.stage(label) for label, _ in batch]
        size = math.prod(self.series[0].pixels) // self.series[0].modules
        if self.method.name == MEAN:
            sums = Sums(stages, modules, size, self.method.clip)
            self._pass(name, sums, batch, total, band)
            return [self._of_sums(sums, k, b) for k, b in enumerate(batch)]
        histograms = Histograms(stages, modules, size)
        self._pass(name, histograms, batch, total, band)
        found = [self._of_histogram(histograms, k, b) for k, b in enumerate(batch)]
        if self.method.name == MEDIAN:
            self._require_enough(histograms)
            return found
        del histograms
        width = self.method.gate
        windows = [gate(f.moments.mean, f.moments.noise, width, stage) for f, stage in zip(found, stages, strict=True)]
        sums = Sums(stages, modules, size, 0.0, windows)
        self._pass(name, sums, batch, total, band)
        return [self._of_sums(sums, k, b) for k, b in enumerate(batch)]

    @staticmethod
    def _require_enough(histograms: Histograms) -> None:
        """Raise RequestError if a stage has too few frames to find bins as narrow as its noise."""
        few = histograms.offered[(histograms.offered > 0) & (histograms.offered < WARM)]
        if few.size:
            problem = f"the median of a stage needs {WARM} frames of every module, here are {few.min()}"
            raise RequestError(f"{problem}: record more, or say --method mean")

    def _pass(
        self,
        name: str,
        gathering: Sums | Histograms,
        batch: Sequence[tuple[int, int]],
        total: int,
        band: tuple[int, int],
    ) -> None:
        """Give all frames that may belong to a batch to what gathers them, those modules of them."""
        size = gathering.pixels
        for series, state in zip(self.series, self.states, strict=True):
            chosen = _chosen(series, batch)
            for first, count in stretches(chosen, series.frames_at_once(name)):
                frames = np.arange(first, first + count)
                block, lost = series.block(name, first, count, self.threads)
                label, decided = told(series, block, frames, self.method.majority, self.threads)
                bins = self._assigned(series, state, frames, lost, label, decided, batch)
                if band != (0, series.modules):
                    pixels = band[0] * size, band[1] * size
                    block = block[:, slice(*pixels)] if isinstance(block, np.ndarray) else block.part(*pixels)
                gathering.add(block, bins[:, slice(*band)], self.threads)
                self.done += int(np.count_nonzero(chosen[frames]))
                self.progress(self.done, max(total, self.done))
        gathering.finish()

    def _assigned(
        self,
        series: Series,
        state: Array,
        frames: Array,
        lost: Array,
        label: Array,
        decided: Array,
        batch: Sequence[tuple[int, int]],
    ) -> Array:
        """The bin of every frame and module, -1 for none; notes why one is rejected."""
        expected, cells = series.expected[frames], series.cells[frames]
        fits = (expected == label) | (expected < 0)
        usable = ~lost & decided & fits & (label >= 0) & (cells != NONE)
        own = state[frames]
        for bad, reason in ((~fits, "other_stage"), (~decided | (label < 0), "undecided"), (lost, "missing")):
            own[bad & (cells != NONE)] = _code(reason)
        own[usable] = USED
        state[frames] = own
        bins = np.full(label.shape, -1)
        for k, (wanted, cell) in enumerate(batch):
            bins[usable & (label == wanted) & (cells == cell)] = k
        return bins

    def _of_sums(self, sums: Sums, number: int, where: tuple[int, int]) -> Found:
        r = sums.result(number)
        result = moments(r["used"], r["total"], r["squares"], r["low"], sums.stages[number].zero)
        return Found(*where, sums.offered[number], result, r["right"], r["undefined"])

    def _of_histogram(self, histograms: Histograms, number: int, where: tuple[int, int]) -> Found:
        r = histograms.result(number)
        middle, low, high = histograms.quantiles(number, (0.5, ONE_SIGMA, 1 - ONE_SIGMA), self.threads)
        used = (r["below"] + r["above"] + r["counts"].sum(axis=1, dtype=np.uint32)).astype(np.uint32)
        result = Moments(used, middle, (high - low) / 2)
        return Found(*where, histograms.offered[number], result, r["right"], r["undefined"])


def _joined(parts: list[Found]) -> Found:
    """What all bands of modules give."""
    if len(parts) == 1:
        return parts[0]
    moments_of = Moments(*(np.concatenate([getattr(p.moments, n) for p in parts]) for n in ("used", "mean", "noise")))
    frames, right, undefined = (
        np.concatenate([getattr(p, n) for p in parts]) for n in ("frames", "right", "undefined")
    )
    return Found(parts[0].label, parts[0].cell, frames, moments_of, right, undefined)


def _chosen(series: Series, batch: Sequence[tuple[int, int]]) -> Array:
    chosen: Array = np.logical_or.reduce([series.candidates(*b) for b in batch])
    return chosen


def _code(reason: str) -> int:
    return USED + 1 + REJECTED.index(reason)
