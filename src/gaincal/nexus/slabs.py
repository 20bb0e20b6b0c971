"""Constants slab by slab: a slab is what the last two dims hold, and has a checksum of its own.

So a constant larger than memory is written, and read where it is needed, without losing the check.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.constants import SLAB_DIMS, Slabs
from gaincal.nexus.dataset import PlainDataset
from gaincal.nexus.trust import Place

Array = npt.NDArray[Any]
DIGEST_BYTES = 32


def type_name(dtype: np.dtype[Any]) -> str:
    """Name of an element type in a checksum."""
    return "b1" if dtype == np.dtype(bool) else f"{dtype.kind}{dtype.itemsize}"


def array_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Type and shape of an array, as a checksum takes them."""
    return f"{type_name(dtype)}|{','.join(str(n) for n in shape)}|".encode()


def little_endian(values: Array) -> memoryview:
    """Values of an array, as a checksum takes them: contiguous bytes."""
    dtype = values.dtype if values.dtype.kind in "Sb" else values.dtype.newbyteorder("<")
    return np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8).data


def array_digest(values: Array) -> bytes:
    """SHA-256 of type, shape and values of an array."""
    digest = hashlib.sha256(array_header(values.dtype, values.shape))
    digest.update(little_endian(values))
    return digest.digest()


def slab_places(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Where the slabs of an array of some shape lie."""
    yield from np.ndindex(shape[:-SLAB_DIMS])


def checksums_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the checksums of a constant's slabs."""
    return (*shape[:-SLAB_DIMS], DIGEST_BYTES)


def slab(values: Array | Slabs, place: tuple[int, ...]) -> Array:
    """One slab of an array, or of what is read slab by slab."""
    return np.asarray(values[place]) if isinstance(values, np.ndarray) else values.slab(place)


class FieldSlabs:
    """A field of a file, read slab by slab.

    Parameters
    ----------
    place : Place
        The field.
    """

    def __init__(self, place: Place) -> None:
        self.place, self.stored = place, PlainDataset(place)
        self.shape = tuple(int(n) for n in place.dataset.shape)
        self.dtype = self.stored.dtype.newbyteorder("=")
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def slab(self, place: tuple[int, ...], out: Array | None = None) -> Array:
        """Read one slab, into `out` if that is of its type; raises FileError if it is damaged or was never written."""
        inner = self.shape[len(place) :]
        box = ((*place, *(0,) * len(inner)), (*(1,) * len(place), *inner))
        found = np.empty(inner, self.dtype) if out is None or out.dtype != self.dtype else out
        missing = np.zeros(box[1], bool)
        if found.size:
            self.stored.read(box, found.reshape(box[1]), missing)
        if missing.any():
            raise self.place.error(f"was never written at {place}", code="incomplete")
        return found


class StoredSlabs(FieldSlabs):
    """A constant of a calibration, each slab checked when it is read.

    Parameters
    ----------
    place : Place
        The field.
    checksums : ndarray of uint8 (..., 32)
        Of the slabs.
    """

    def __init__(self, place: Place, checksums: Array) -> None:
        super().__init__(place)
        self.checksums = checksums
        if checksums.shape != checksums_shape(self.shape) or checksums.dtype != np.uint8:
            problem = f"has checksums of shape {checksums.shape}, expected {checksums_shape(self.shape)}"
            raise place.error(problem, "embed the calibration again", code="no-checksum")

    def slab(self, place: tuple[int, ...], out: Array | None = None) -> Array:
        """Read one slab as `FieldSlabs` does; raises FileError also if it was changed."""
        found = super().slab(place, out)
        if array_digest(found) != self.checksums[place].tobytes():
            problem = "its checksum differs: the constant was changed after it was written"
            raise self.place.error(problem, "embed it again", code="checksum-differs")
        return found

    def whole(self) -> Array:
        """Read everything."""
        values: Array = np.empty(self.shape, self.dtype)
        for place in slab_places(self.shape):
            self.slab(place, values[place] if place else values)
        return values
