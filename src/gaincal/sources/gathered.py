"""Frames put together from runs of single modules in formats that HDF5 cannot map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.nexus.arrangement import Arrangement
from gaincal.sources.matching import Matched, Module
from gaincal.sources.run import RawRun, RawWords

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
ReadFrames = Callable[[int, int], tuple[Array, Flags | None]]


def gathered(
    word: str, dtype: np.dtype[Any], runs: Mapping[int, RawRun], matched: Matched, lies: Arrangement
) -> RawWords:
    """Words of modules that HDF5 cannot map, read module by module.

    Parameters
    ----------
    word : str
        Which words.
    dtype : numpy.dtype
    runs : mapping of int to RawRun
        By their place in a frame.
    matched : Matched
    lies : Arrangement
    """
    sources = {}
    for number, run in runs.items():
        read = run.words[word].read
        assert read is not None
        sources[number] = (read, _rows(matched.modules[number], matched.frames))

    def frames(first: int, count: int) -> tuple[Array, Flags | None]:
        words, missing = np.zeros((count, *lies.stack), dtype), np.ones((count, *lies.stack), bool)
        for number, (read, rows) in sources.items():
            _read_rows(read, rows[first : first + count], words[:, number], missing[:, number])
        whole = lies.arranged(missing, True)
        return lies.arranged(words), whole if whole.any() else None

    return RawWords(dtype, read=frames)


def _rows(module: Module, frames: int) -> Array:
    """The row of each frame in the file of a module; -1 where it has none."""
    rows = np.full(frames, -1, np.int64)
    rows[module.at] = module.kept
    return rows


def _read_rows(read: ReadFrames, rows: Array, words: Array, missing: Flags) -> None:
    """Read some rows of a module, runs of them at once."""
    breaks = np.flatnonzero((np.diff(rows) != 1) | (rows[:-1] < 0)) + 1
    for place in np.split(np.arange(len(rows)), breaks):
        if len(place) and rows[place[0]] >= 0:
            here = slice(int(place[0]), int(place[-1]) + 1)
            words[here], absent = read(int(rows[place[0]]), len(place))
            missing[here] = False if absent is None else absent
