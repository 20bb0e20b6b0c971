"""Modules of a frame, and which frames of each there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.nexus import names
from gaincal.nexus.account import read_account, read_arrangement
from gaincal.nexus.boxes import Box, intersection
from gaincal.nexus.read import Master
from gaincal.nexus.words import Words

Array = npt.NDArray[Any]
MODULE = "module"
WHOLE = "detector"


@dataclass(frozen=True)
class Part:
    """A module, or the whole detector where the words do not tell modules apart.

    Parameters
    ----------
    name : str
    box : Box
        First index and length along the pixel dims.
    """

    name: str
    box: Box

    @property
    def index(self) -> tuple[slice, ...]:
        """The box as an index of a frame."""
        return tuple(slice(s, s + n) for s, n in zip(*self.box, strict=True))

    @property
    def pixels(self) -> int:
        """How many it has."""
        return int(np.prod(self.box[1]))


def parts_of(master: Master) -> tuple[Part, ...]:
    """The modules along the dim ``module``, those that were assembled to an image, else one part that is everything."""
    calibration = master.calibration
    pixels, dims = calibration.layout.pixels, calibration.formula.checked.pixel_dims
    if dims[0] == MODULE:
        return _stacked(pixels)
    account = master.resolver.find(names.ACCOUNT_GROUP, master.detector)
    if account is not None:
        modules = len(read_account(master.resolver, account).modules)
        lies = read_arrangement(master.resolver, account, pixels, modules)
        boxes = [lies.box(0, 1, k) for k in range(modules)]
        return tuple(_module(k, (start[1:], count[1:])) for k, (start, count) in enumerate(boxes))
    return (Part(WHOLE, ((0,) * len(pixels), pixels)),)


def parts_of_pixels(pixels: tuple[int, ...]) -> tuple[Part, ...]:
    """The modules of frames of which only the shape is known: three dims are a stack."""
    return _stacked(pixels) if len(pixels) > 2 else (Part(WHOLE, ((0,) * len(pixels), pixels)),)


def _stacked(pixels: tuple[int, ...]) -> tuple[Part, ...]:
    rest = pixels[1:]
    return tuple(_module(k, ((k, *(0 for _ in rest)), (1, *rest))) for k in range(pixels[0]))


def _module(number: int, box: Box) -> Part:
    return Part(f"{MODULE} {number}", box)


def missing_shares(words: Mapping[str, Words], parts: tuple[Part, ...], frames: int) -> Array:
    """The share of each part's words that a frame lacks, of all frames, without reading any word.

    Parameters
    ----------
    words : mapping of str to Words
    parts : tuple of Part
    frames : int

    Returns
    -------
    ndarray (frame, part) of float32
        Of the words input that lacks most; 0 where all is there.
    """
    worst = np.zeros((frames, len(parts)), np.float32)
    for item in words.values():
        lost = np.zeros((frames, len(parts)), np.float64)
        for start, count in _absent(item):
            here = slice(start[0], start[0] + count[0])
            for k, part in enumerate(parts):
                common = intersection((start[1:], count[1:]), part.box)
                lost[here, k] += 0 if common is None else int(np.prod(common[1])) / part.pixels
        worst = np.maximum(worst, np.minimum(lost, 1).astype(np.float32))
    return worst


def _absent(words: Words) -> Iterator[Box]:
    """Boxes of words that no file holds, and of chunks that were never written."""
    for piece in words.pieces:
        if piece.source is None:
            yield piece.box
        elif piece.source.unwritten():
            for box in piece.source.holes(piece.source_box):
                yield piece.part(box)
