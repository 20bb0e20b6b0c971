"""`RawRun`: what a source says about a run, the same for every facility."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.nexus.account import Account
from gaincal.nexus.arrangement import Arrangement
from gaincal.nexus.boxes import Box

Array = npt.NDArray[Any]
CHIP = 256
"""Rows and columns of a chip of JUNGFRAU."""


@dataclass(frozen=True)
class Part:
    """A box of the words, and the equally large box (up to dims of length 1) of an HDF5 dataset that holds it.

    Parameters
    ----------
    target : Box
        In the words (frame, *pixels).
    file : Path
        Absolute.
    path : str
        Of the dataset.
    source : Box
    """

    target: Box
    file: Path
    path: str
    source: Box


@dataclass(frozen=True)
class RawWords:
    """The words of one input: parts of HDF5 datasets that a master can map, or something to copy.

    Parameters
    ----------
    dtype : numpy.dtype
        Unsigned, in native byte order.
    parts : tuple of Part
        What no part covers is missing.
    read : callable (first, count) -> (words, missing), optional
        Reads frames of a format that HDF5 cannot map; then there are no parts. ``words`` is (count, *pixels);
        ``missing`` is where there are none (bool, of the same shape; the words are 0 there), None if nowhere.
    """

    dtype: np.dtype[Any]
    parts: tuple[Part, ...] = ()
    read: Callable[[int, int], tuple[Array, npt.NDArray[np.bool_] | None]] | None = None


@dataclass(frozen=True)
class RawRun:
    """A run as it was recorded.

    Parameters
    ----------
    kind : str
        Which source recognised it: ``swissfel``, ``euxfel``, ``slsdet`` ...
    description : str
        One line for people: what was recognised.
    detector : str
        The facility's name of the detector.
    formula : str or None
        The formula of the catalogue that reads it, if the files say so.
    frames : int
    pixels : tuple of int
        (y, x) or (module, y, x) or (x,): the shape of a frame.
    words : mapping of str to RawWords
        By the name of the formula's input.
    inputs : mapping of str to ndarray
        Further inputs of the formula that come by frame: (frame,) or (frame, module).
    maps : mapping of str to ndarray (*pixels)
        Further inputs that do not: what is known of each pixel of such a detector.
    ids : mapping of str to ndarray (frame,)
        What identifies the frames.
    files : tuple of Path
        All files that were read.
    notes : tuple of str
        What the user should know: modules that are absent, frames marked bad ...
    lies : Arrangement, optional
        How modules lie in a frame, where the frames were put together here.
    account : Account, optional
        What became of all that the modules recorded, where their frames were matched here.
    forced : ndarray (frame,) or (frame, module), optional
        The gain code that the files say was forced in each frame, 0 for none; None where they say nothing of it.
    facts : mapping of str to str or float
        What else they say, by the names of constants files: detector_name, start_time, exposure_time in s ...
    """

    kind: str
    description: str
    detector: str
    formula: str | None
    frames: int
    pixels: tuple[int, ...]
    words: Mapping[str, RawWords]
    inputs: Mapping[str, Array] = field(default_factory=dict)
    maps: Mapping[str, Array] = field(default_factory=dict)
    ids: Mapping[str, Array] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    lies: Arrangement | None = None
    account: Account | None = None
    forced: Array | None = None
    facts: Mapping[str, str | float] = field(default_factory=dict)


def by_frame(values: Array) -> Array:
    """(frame, module) as (frame,) where the modules of every frame agree."""
    return values[:, 0] if (values == values[:, :1]).all() else values


def jungfrau_formula(inputs: Mapping[str, Array]) -> str | None:
    """Formula that a JUNGFRAU run calls for: with storage cells, with high gain, or plain; None if nobody knows."""
    if "high_gain" not in inputs:
        return None
    if "cell" in inputs:
        return "jungfrau_cells"
    return "jungfrau_hg0" if inputs["high_gain"].any() else "jungfrau"


def jungfrau_maps(pixels: tuple[int, ...]) -> dict[str, Array]:
    """The area of each pixel of JUNGFRAU modules: inside a module, pixels at borders between chips are wide."""
    area = np.ones(pixels, np.uint8)
    for axis in (-2, -1):
        length = pixels[axis]
        wide = [k for border in range(CHIP, length, CHIP) for k in (border - 1, border)]
        index = (..., wide, slice(None)) if axis == -2 else (..., wide)
        area[index] *= 2
    return {"pixel_area": area}
