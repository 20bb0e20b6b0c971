"""Words of frames that lie in files as they are, to be read where they are summed: tile by tile, into the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

NOWHERE = -1
"""In place of a descriptor: there are no words."""


@dataclass(frozen=True)
class Unread:
    """Where the words of some frames lie.

    Parameters
    ----------
    places : ndarray (frame, module, 2) of int64
        File descriptor, or `NOWHERE`, and where in the file the words of a module begin, which follow each other.
    pixels : int
        Of a frame.
    kept : object
        What owns the descriptors.
    complain : callable (frame, module) -> None
        Raises what is wrong with words that cannot be read.
    """

    places: npt.NDArray[np.int64]
    pixels: int
    kept: object
    complain: Callable[[int, int], None]

    def part(self, first: int, last: int) -> Unread:
        """Some of the modules, given by their first and last pixel."""
        size = self.pixels // self.places.shape[1]
        moved = partial(_complain_behind, self.complain, first // size)
        return Unread(self.places[:, first // size : last // size], last - first, self.kept, moved)

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and pixels."""
        return len(self.places), self.pixels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the words."""
        return np.dtype(np.uint16)


def _complain_behind(complain: Callable[[int, int], None], first: int, frame: int, module: int) -> None:
    complain(frame, first + module)
