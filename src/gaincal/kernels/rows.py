"""Values for each pixel of each frame, wherever each frame's lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Rows:
    """Arrays of frames that are told apart by address: they need not follow each other.

    Parameters
    ----------
    addresses : ndarray (frame,) of int64
        Where each frame begins; its pixels are contiguous.
    shape : tuple of int
        (frame, pixel), as it would be of one array.
    dtype : numpy.dtype
    kept : object
        What owns the memory.
    """

    addresses: npt.NDArray[np.int64]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kept: object

    @classmethod
    def of(cls, array: Array) -> Rows:
        """The frames of an array (frame, pixel); raises ValueError if their pixels do not follow each other."""
        if array.size and array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
            raise ValueError("pixels of a frame must follow each other")
        addresses = array.ctypes.data + np.arange(len(array), dtype=np.int64) * array.strides[0]
        return cls(addresses, array.shape, array.dtype, array)

    @classmethod
    def reading(cls, array: Array) -> Rows:
        """The frames of an array that is only read: a copy where their pixels do not follow each other."""
        try:
            return cls.of(array)
        except ValueError:
            return cls.of(np.ascontiguousarray(array))

    def take(self, frames: Array) -> Rows:
        """Some of the frames, in another order."""
        return Rows(self.addresses[frames], (len(frames), self.shape[1]), self.dtype, self.kept)
