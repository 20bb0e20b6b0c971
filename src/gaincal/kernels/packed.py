"""Words of some frames as they lie in a file, bitshuffled and compressed, to be decoded while they are calibrated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BLOCK = 4096
"""Elements of a block, which is what bitshuffle itself chooses for 16-bit words; whole tiles of the kernel."""
WORD_BYTES = 2
STEP = 64
"""Elements that are exchanged with bit planes at a time: blocks of other lengths are decoded by the library."""


class OddWords(Exception):
    """A chunk is not just as it must be: nothing was computed, and reading it in the usual way says what is wrong."""


def _there() -> bool:
    return True


@dataclass(frozen=True)
class Packed:
    """The compressed blocks of some frames.

    Parameters
    ----------
    blocks : ndarray (frame, tile, 2) of int64
        Address and length of each block of `BLOCK` words; 0 where it was never written.
    pixels : int
        Of a frame.
    kept : object
        What owns the memory that the addresses point to.
    complain : callable (frame, tile) -> None
        Raises what is wrong with a block that cannot be decoded.
    arrive : callable () -> bool, optional
        Returns when all blocks are there: whether they are as they must be.  Every thread calls it.
    """

    blocks: npt.NDArray[np.int64]
    pixels: int
    kept: object
    complain: Callable[[int, int], None]
    arrive: Callable[[], bool] = _there

    def part(self, first: int, last: int) -> Packed:
        """Some of the pixels; `first` begins a block, and so does `last` unless it is the end."""
        begin, end = first // BLOCK, -(-last // BLOCK)
        moved = partial(_complain_behind, self.complain, begin)
        return Packed(np.ascontiguousarray(self.blocks[:, begin:end]), last - first, self.kept, moved)

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and pixels."""
        return len(self.blocks), self.pixels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the words."""
        return np.dtype(np.uint16)


def _complain_behind(complain: Callable[[int, int], None], first: int, frame: int, tile: int) -> None:
    complain(frame, first + tile)
