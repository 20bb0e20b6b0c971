"""Sweeps of an acquisition: which of its frames, in which order, and how the goniometer moved."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError

Frames = npt.NDArray[np.int64]
Range = tuple[int, int]
"""First frame, and how many."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_SWEEPS = 10_000
HALF_TURN = 180.0
REST = "rest"


@dataclass(frozen=True)
class Motion:
    """How an axis moves during a sweep.

    Parameters
    ----------
    start : float
        Where it is when the first frame begins.
    step : float
        From frame to frame, which for a rotation is the range of a frame, too; 0 for an axis that stands still.
    """

    start: float
    step: float = 0.0

    def positions(self, count: int) -> npt.NDArray[np.float64]:
        """Where the axis is when each frame begins."""
        return self.start + self.step * np.arange(count, dtype=np.float64)


@dataclass(frozen=True)
class Direction:
    """An axis that the file of the run does not describe.

    Parameters
    ----------
    vector : tuple of float
        (x, y, z) in the frame of NeXus: z along the beam, y up.
    units : str
        ``deg`` for a rotation; a length for a translation.
    """

    vector: tuple[float, float, float]
    units: str


@dataclass(frozen=True)
class Sweep:
    """Frames that belong together.

    Parameters
    ----------
    name : str
        Becomes a part of a file name.
    ranges : tuple of (int, int)
        First frame and number of frames of every run of frames, in the order of the sweep.
    motions : mapping of str to Motion
        Of the axes of the goniometer, as far as somebody states them.
    """

    name: str
    ranges: tuple[Range, ...]
    motions: Mapping[str, Motion] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many frames."""
        return sum(count for _, count in self.ranges)

    @property
    def frames(self) -> Frames:
        """Their numbers in the run."""
        parts = [np.arange(first, first + count, dtype=np.int64) for first, count in self.ranges]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


@dataclass(frozen=True)
class Account:
    """Where every frame of a run went: those in one sweep, in several and in none are all there are.

    Parameters
    ----------
    frames : int
        Of the run.
    in_one, in_several, in_none : int
        How many of them are in so many sweeps.
    several, none : list of (int, int)
        Which these are: first, and number.
    """

    frames: int
    in_one: int
    in_several: int
    in_none: int
    several: list[Range]
    none: list[Range]


def every(total: int, count: int, allow_rest: bool = False) -> list[Sweep]:
    """Sweeps of `count` frames each; what remains is a shorter one called ``rest``, if that is allowed."""
    if count < 1:
        raise RequestError(f"sweeps of {count} frames: at least 1")
    whole, rest = divmod(total, count)
    if rest and not allow_rest:
        problem = f"{total} frames are {whole} sweeps of {count}, and {rest} frames remain"
        raise RequestError(f"{problem}: was a trigger lost? Name the frames in a table, or say --allow-rest")
    digits = max(3, len(str(whole)))
    sweeps = [Sweep(f"{k + 1:0{digits}}", ((k * count, count),)) for k in range(whole)]
    return sweeps + ([Sweep(REST, ((whole * count, rest),))] if rest else [])


def inverse_beam(total: int, wedge: int) -> tuple[list[Sweep], list[str]]:
    """Sweeps A and B out of interleaved wedges A, B, A, B ..., and what the user should know."""
    if wedge < 1:
        raise RequestError(f"wedges of {wedge} frames: at least 1")
    if total <= wedge:
        raise RequestError(f"the run has {total} frames: with wedges of {wedge} there is no B")
    wedges = [(first, min(wedge, total - first)) for first in range(0, total, wedge)]
    sweeps = [Sweep("A", tuple(wedges[::2])), Sweep("B", tuple(wedges[1::2]))]
    notes = []
    if wedges[-1][1] < wedge:
        notes.append(f"the last wedge has {wedges[-1][1]} frames instead of {wedge}")
    if len(wedges) % 2:
        notes.append(f"{len(wedges)} wedges: the last one of A has no opposite")
    return sweeps, notes


def check_sweeps(sweeps: Sequence[Sweep], total: int) -> None:
    """Raise RequestError for names that cannot be those of files, and frames that are not there or named twice."""
    if not 0 < len(sweeps) <= MAX_SWEEPS:
        raise RequestError(f"{len(sweeps)} sweeps: 1 to {MAX_SWEEPS} can be made")
    seen: set[str] = set()
    for sweep in sweeps:
        if not NAME.fullmatch(sweep.name):
            raise RequestError(f"sweep '{sweep.name}': names are letters, digits, '.', '_' and '-', at most 64")
        if sweep.name.lower() in seen:
            raise RequestError(f"there are two sweeps called '{sweep.name}' (case does not count)")
        seen.add(sweep.name.lower())
        for first, count in sweep.ranges:
            if first < 0 or count < 1 or first + count > total:
                listed = f"{first} to {first + count - 1}"
                raise RequestError(f"sweep '{sweep.name}': frames {listed} of a run that has 0 to {total - 1}")
        if not sweep.ranges:
            raise RequestError(f"sweep '{sweep.name}' has no frames")
        frames = np.sort(sweep.frames)
        twice = frames[1:][np.diff(frames) == 0]
        if twice.size:
            raise RequestError(f"sweep '{sweep.name}' names frame {twice[0]} twice")


def account_for(sweeps: Sequence[Sweep], total: int) -> Account:
    """Count the sweeps that each frame of a run is in."""
    found = np.zeros(total, np.int64)
    for sweep in sweeps:
        found[sweep.frames] += 1
    several, none = ranges_of(np.flatnonzero(found > 1)), ranges_of(np.flatnonzero(found == 0))
    counts = [int(np.count_nonzero(m)) for m in (found == 1, found > 1, found == 0)]
    return Account(total, counts[0], counts[1], counts[2], several, none)


def ranges_of(frames: npt.NDArray[np.int64]) -> list[Range]:
    """Runs of frames that follow each other."""
    if not frames.size:
        return []
    parts = np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1)
    return [(int(p[0]), len(p)) for p in parts]
