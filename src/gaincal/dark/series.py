"""The frames of dark runs: whose words they are, which stage they should be in, and block after block of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.constants import SLAB_DIMS
from gaincal.dark.recipe import CELL_AXIS, HIGH_GAIN, Recipe, by_frame_and_module, join_code
from gaincal.dark.translation import ANY
from gaincal.errors import FileError, RequestError
from gaincal.kernels.darks import Block, tell_stages
from gaincal.kernels.packed import BLOCK
from gaincal.kernels.unread import NOWHERE
from gaincal.nexus.direct import Direct, find_direct
from gaincal.nexus.words import Readable
from gaincal.sources.run import RawRun

Array = npt.NDArray[Any]
BLOCK_BYTES, UNREAD_BYTES = 32 << 20, 1 << 30
LEAST_FRAMES, MOST_FRAMES = 16, 256
UNKNOWN, NONE = -1, -2
FIXED = {"fixed_high": 0, "fixed_medium": 1, "fixed_low": 2}
"""Stages of AGIPD by the gain mode that a run states; in ``adaptive`` it is patterns that force them."""
REJECTED = ("other_stage", "undecided", "missing", "no_cell")


@dataclass(frozen=True, eq=False)
class Series:
    """A dark run.

    Parameters
    ----------
    file : Path
    recipe : Recipe
    words : mapping of str to Readable
    expected : ndarray (frame, module) of int
        The stage that somebody states, or `UNKNOWN`.
    cells : ndarray (frame, module) of int
        Memory cells; 0 where the constants have none, `NONE` for frames that were not recorded.
    high : ndarray (frame, module) of int
        1 where the frame was taken with high gain.
    direct : mapping of str to Direct
        Words that need not be read before they are summed.
    table : ndarray, optional
        What words are replaced by; see `Recipe`.
    """

    file: Path
    recipe: Recipe
    words: dict[str, Readable]
    expected: Array
    cells: Array
    high: Array
    direct: dict[str, Direct]
    table: Array | None

    @property
    def pixels(self) -> tuple[int, ...]:
        """Shape of a frame."""
        return self.words[self.recipe.value].shape[1:]

    @property
    def modules(self) -> int:
        """Of a frame."""
        return math.prod(self.pixels[:-SLAB_DIMS])

    def frames_at_once(self, name: str) -> int:
        """Frames of a block: so many that sums stay in the cache from one to the next, so few that words fit memory."""
        size = 2 * math.prod(self.pixels)
        most = UNREAD_BYTES if name in self.direct else BLOCK_BYTES
        return min(MOST_FRAMES, max(LEAST_FRAMES, most // size))

    def candidates(self, label: int, cell: int) -> Array:
        """Frames that may belong to a stage and cell; (frame,) of bool."""
        own = (self.expected == label) | (self.expected == UNKNOWN)
        return np.asarray((own & (self.cells == cell)).any(axis=1))

    def block(self, name: str, first: int, count: int, threads: int) -> tuple[Block, Array]:
        """Words of some frames, and where those of a module are missing; (frame, module)."""
        source = self.words[name]
        unread = self.direct[name].unread(first, count) if name in self.direct else None
        if unread is not None:
            return unread, unread.places[:, :, 0] == NOWHERE
        size = math.prod(self.pixels) // self.modules
        whole = self.modules == 1 or size % BLOCK == 0
        plain = not self.recipe.code and self.table is None
        stored = source.packed(first, count, threads) if whole and plain else None
        if stored is not None:
            return stored, (stored.blocks[:, :, 0] == 0).reshape(count, self.modules, -1).any(axis=2)
        words, missing = self._read(name, first, count, threads)
        lost: Array = np.zeros((count, self.modules), bool)
        if missing is not None:
            lost = np.asarray(missing.reshape(count, self.modules, -1).any(axis=2))
        return words.reshape(count, -1), lost

    def _read(self, name: str, first: int, count: int, threads: int) -> tuple[Array, Array | None]:
        origin, shape = (first, *(0 for _ in self.pixels)), (count, *self.pixels)
        words, missing = self.words[name].read(origin, shape, threads)
        if self.table is not None:
            return self.table[words], missing
        if name != self.recipe.value or not self.recipe.code:
            return words, missing
        codes, lost = self.words[self.recipe.code].read(origin, shape, threads)
        both = missing if lost is None else lost if missing is None else missing | lost
        return join_code(words, codes), both


@dataclass
class Ledger:
    """How many frames of modules were used and rejected, by stage and reason."""

    used: dict[int, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REJECTED, 0))


def make_series(
    file: Path, run: RawRun | None, recipe: Recipe, words: dict[str, Readable], stage: int | None
) -> Series:
    """A dark run, with what it, or its user, says of its frames.

    Raises
    ------
    RequestError
        If a stage is stated that the formula does not have, or must be stated.
    FileError
        If words are of another type than uint16.
    """
    shape = words[recipe.value].shape
    if words[recipe.value].dtype != np.uint16:
        raise FileError(file, "", f"has words of {words[recipe.value].dtype}, darks need uint16", code="not-words")
    if stage is not None and stage not in recipe.labels:
        raise RequestError(f"formula '{recipe.formula.name}' has no stage {stage}; it has {_listed(recipe.labels)}")
    modules, inputs = math.prod(shape[1:-SLAB_DIMS]), dict(run.inputs) if run else {}
    high = by_frame_and_module(inputs.get(HIGH_GAIN, np.zeros(shape[0], np.int64)), modules)
    cells = np.zeros((shape[0], modules), np.int64)
    if CELL_AXIS in recipe.axes:
        if CELL_AXIS not in inputs:
            raise FileError(
                file, "", f"says nothing of memory cells, which '{recipe.formula.name}' needs", code="no-cells"
            )
        stated = by_frame_and_module(inputs[CELL_AXIS], modules)
        cells = np.where(stated == np.iinfo(stated.dtype).max, NONE, stated.astype(np.int64))
    high = np.where(high == 1, 1, 0) if len(recipe.stages) > 1 else np.zeros(high.shape, np.int64)
    table = recipe.table(ANY if stage is None else stage)
    direct = (
        {}
        if recipe.code or table is not None
        else {n: d for n, w in words.items() if (d := find_direct(w)) is not None}
    )
    return Series(file, recipe, words, _expected(recipe, run, high, stage), cells, high, direct, table)


def _expected(recipe: Recipe, run: RawRun | None, high: Array, stage: int | None) -> Array:
    """The stage of every frame and module that is stated: by the user, or where gains were forced, by the files."""
    if stage is not None:
        return np.full(high.shape, stage)
    if len(recipe.labels) == 1:
        return np.full(high.shape, recipe.labels[0])
    if run is None or run.forced is None or not run.forced.any():
        if recipe.must_be_stated:
            fixed = FIXED.get(str(run.facts.get("gain_mode"))) if run else None
            if fixed is not None:
                return np.full(high.shape, fixed)
            remedy = f"--stage {recipe.labels[0]}=RUN for each of {_listed(recipe.labels)}"
            lacking = "thresholds" if recipe.digital else "settings"
            raise RequestError(f"formula '{recipe.formula.name}' does not tell stages without {lacking}: {remedy}")
        return np.full(high.shape, UNKNOWN)
    forced = by_frame_and_module(run.forced, high.shape[1])
    label = np.vectorize(lambda code: UNKNOWN if (s := recipe.forced(int(code))) is None else s, otypes=[int])(forced)
    first = recipe.stages[-1][-1].label if len(recipe.stages) > 1 else 0
    return np.where((label == 0) & (high == 1), first, label)


def _listed(labels: Sequence[int]) -> str:
    return ", ".join(str(label) for label in labels)


def told(series: Series, block: Block, frames: Array, majority: float, threads: int) -> tuple[Array, Array]:
    """The stage that most words of a module are in, and whether most are.

    Returns
    -------
    label : ndarray (frame, module) of int
    decided : ndarray (frame, module) of bool
    """
    expected, high = series.expected[frames], series.high[frames]
    if len(series.recipe.labels) == 1 or series.recipe.digital:
        return expected, np.ones(expected.shape, bool)
    if series.recipe.must_be_stated:
        own = tell_stages(block, series.modules, [series.recipe.stage(series.recipe.labels[0]).right], threads)
        return expected, own[..., 0] > majority
    ranges = sorted({stage.right for stages in series.recipe.stages for stage in stages})
    shares = tell_stages(block, series.modules, ranges, threads)
    names = np.full((2, len(ranges)), UNKNOWN)
    for setting, stages in enumerate(series.recipe.stages):
        for stage in stages:
            names[setting, ranges.index(stage.right)] = stage.label
    best = shares.argmax(axis=2)
    return names[high, best], np.take_along_axis(shares, best[..., None], axis=2)[..., 0] > majority


def stretches(chosen: Array, most: int) -> Iterator[tuple[int, int]]:
    """First frame and number of the blocks that hold the chosen frames."""
    frames = np.flatnonzero(chosen)
    position = 0
    while position < len(frames):
        first = int(frames[position])
        taken = int(np.searchsorted(frames, first + most)) - position
        yield first, int(frames[position + taken - 1]) - first + 1
        position += taken
