"""Frames of many files matched by train and pulse, and the boxes of words in which they lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.sources.euxfel_files import Stretch
from gaincal.sources.run import Box, Part

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Module:
    """The frames of a module, sorted.

    Parameters
    ----------
    stretches : list of Stretch
        As they were recorded.
    at, kept : ndarray (frame,)
        Which frame of the run each is, and which of those in the stretches.
    repeated, unreceived : int
        Frames that were left out: recorded before, or received by no module.
    """

    stretches: list[Stretch]
    at: Array
    kept: Array
    repeated: int
    unreceived: int

    def column(self, name: str) -> Array:
        """A column of the stretches, one value per frame."""
        return np.asarray(np.concatenate([getattr(s, name) for s in self.stretches])[self.kept])

    @cached_property
    def which(self) -> Array:
        """The stretch of each frame."""
        ends = np.cumsum([len(s.train) for s in self.stretches])
        return np.searchsorted(ends, self.kept, side="right")

    @cached_property
    def runs(self) -> tuple[Array, Array, bool]:
        """Runs of frames that also follow each other in a file: their beginnings and lengths, and if within entries."""
        columns = (self.at, self.which, self.column("entry"), self.column("inner"))
        frame, file, entry, inner = (np.diff(c.astype(np.int64)) for c in columns)
        together = (frame == 1) & (file == 0)
        across, within = together & (entry == 1) & (inner == 0), together & (entry == 0) & (inner == 1)
        inside = bool(np.count_nonzero(within) > np.count_nonzero(across))
        breaks = np.flatnonzero(~(within if inside else across)) + 1
        starts = np.concatenate([[0], breaks]).astype(np.int64)[: len(self.at)]
        return starts, np.diff(starts, append=len(self.at)), inside

    def parts(self, word: str, plane: int, pixels: tuple[int, ...], where: tuple[int, ...]) -> Iterator[Part]:
        """The parts of some words; `where` is the place of the module among several."""
        starts, lengths, inside = self.runs
        columns = (self.at, self.which, self.column("entry"), self.column("inner"))
        origin, one = (0,) * len(pixels), (1,) * len(where)
        for length, *first in zip(lengths.tolist(), *(c[starts].tolist() for c in columns), strict=True):
            at, stretch, entry, inner = first
            file, dataset = self.stretches[stretch].places[word]
            target: Box = ((at, *where, *origin), (length, *one, *pixels))
            counts = (1, length) if inside else (length, 1)
            yield Part(target, file, dataset, ((entry, inner + plane, *origin), (*counts, *pixels)))


def matched(stretches: list[Stretch]) -> tuple[Array, Array, dict[int, Module]]:
    """Match the frames of all modules.

    Parameters
    ----------
    stretches : list of Stretch
        In the order of the files.

    Returns
    -------
    train, second : ndarray (frame,)
        What identifies the frames, sorted: all that any module received.
    modules : dict of int to Module
        By number.
    """
    trains, seconds = _distinct(stretches, "train"), _distinct(stretches, "second")
    width = max(len(seconds), 1)
    keys = [np.searchsorted(trains, s.train) * width + np.searchsorted(seconds, s.second) for s in stretches]
    received = [k[s.received] for k, s in zip(keys, stretches, strict=True)]
    union = reduce(np.union1d, received, np.empty(0, np.int64))
    modules = {}
    for number in sorted({s.number for s in stretches}):
        own = [k for k, s in zip(keys, stretches, strict=True) if s.number == number]
        modules[number] = _module(union, own, [s for s in stretches if s.number == number])
    return trains[union // width], seconds[union % width], modules


def _distinct(stretches: list[Stretch], name: str) -> Array:
    values = [np.unique(getattr(s, name)) for s in stretches]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *values]))


def _module(union: Array, keys: list[Array], stretches: list[Stretch]) -> Module:
    """Which frames of the run a module has; the first where it recorded one again."""
    key, first = np.unique(np.concatenate(keys), return_index=True)
    # Where a frame would stand is not where it stands: only what is equal matches.
    equal = np.isin(key, union, assume_unique=True)
    at = np.searchsorted(union, key[equal])
    return Module(stretches, at, first[equal], sum(map(len, keys)) - len(key), int(np.count_nonzero(~equal)))
