"""What becomes of calibrated frames on their way into a file: counted reasons, and chunks as HDF5 stores them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.program import MISSING_BIT
from gaincal.kernels.checksum import fletcher32
from gaincal.kernels.decode import CHECKSUM_BYTES, HEADER_BYTES, LENGTH_BYTES
from gaincal.kernels.libraries import function
from gaincal.kernels.memory import ALIGNMENT, empty_aligned
from gaincal.kernels.packed import BLOCK

Array = npt.NDArray[Any]
BITS = 32
LANES = 16
"""Pixels that are computed at a time; one mark says whether any of them has flags."""
MARKS_AT_ONCE = 8
ALL_BITS = np.uint32(0xFFFFFFFF)


class Tally:
    """Counts reasons, and remembers which a pixel has in every frame.

    Parameters
    ----------
    pixels : tuple of int
        Shape of a frame.

    Attributes
    ----------
    counts : ndarray (32,) of int64
        Pixels of all frames by bit of the flags.
    always : ndarray (*pixels) of uint32
        The reasons that a pixel had in all frames so far.
    held : ndarray (vector,) of uint8
        0 where none of `LANES` pixels has such a reason; a whole number of `MARKS_AT_ONCE`.
    missing_frames : int
        Frames without a single word.
    """

    def __init__(self, pixels: tuple[int, ...]) -> None:
        self.counts = np.zeros(BITS, np.int64)
        self.always = np.full(pixels, ALL_BITS)
        vectors = -(-self.always.size // LANES)
        self.held = np.ones(-(-vectors // MARKS_AT_ONCE) * MARKS_AT_ONCE, np.uint8)
        self.missing_frames = 0

    def add(self, flags: npt.NDArray[np.uint32]) -> None:
        """Count the flags (frame, pixel) of some frames."""
        self.held[...] = 1
        raised = flags[flags != 0]
        found = np.bitwise_or.reduce(raised) if raised.size else np.uint32(0)
        for bit in range(BITS):
            if found >> np.uint32(bit) & np.uint32(1):
                self.counts[bit] += int(np.count_nonzero(raised & np.uint32(1 << bit)))
        self.always &= np.bitwise_and.reduce(flags, axis=0).reshape(self.always.shape)
        if found >> np.uint32(MISSING_BIT) & np.uint32(1):
            self.missing_frames += int((flags >> np.uint32(MISSING_BIT)).astype(bool).all(axis=1).sum())


class Chunks:
    """Frames of values, each as the chunk that HDF5 stores: compressed or not, with its checksum behind.

    Parameters
    ----------
    frames, pixels : int
    dtype : numpy.dtype
    compressed : bool
        With bitshuffle and LZ4, in blocks of `BLOCK` elements; else as the values are.

    Attributes
    ----------
    values : ndarray (frame, pixel) or None
        Where the values go that are not compressed.
    stored : list of ndarray of uint8
        The chunks, once there are any.
    """

    def __init__(self, frames: int, pixels: int, dtype: np.dtype[Any], compressed: bool) -> None:
        self.frames, self.pixels, self.dtype, self.compressed = frames, pixels, dtype, compressed
        self.stored: list[Array] = []
        self.values: Array | None = None
        if not compressed:
            self._size = pixels * dtype.itemsize
            stride = -(-(self._size + CHECKSUM_BYTES) // ALIGNMENT) * ALIGNMENT
            self._room = empty_aligned((frames, stride), np.uint8)
            self.values = self._room[:, : self._size].view(dtype)

    def add(self, values: Array) -> None:
        """Take values (frame, pixel) that are there as a whole, one frame after the other."""
        if self.values is not None:
            self.values[...] = values
            self.finish()
            return
        for frame in values:
            self.stored.append(_with_checksum(_compressed(np.ascontiguousarray(frame)), fletcher32))

    def finish(self, checksum: Any = fletcher32) -> None:
        """Put the checksums behind the values that are not compressed."""
        for chunk in self._room[:, : self._size + CHECKSUM_BYTES]:
            _seal(chunk, checksum)
            self.stored.append(chunk)

    def join(self, parts: Sequence[tuple[Array, Array]], checksum: Any = fletcher32) -> None:
        """Put chunks together from the blocks that tasks have compressed: bytes (frame, room) and lengths (frame,)."""
        for frame in range(self.frames):
            pieces = [part[frame, : lengths[frame]] for part, lengths in parts]
            chunk = np.concatenate([_header(self.pixels * self.dtype.itemsize, self.dtype.itemsize), *pieces])
            self.stored.append(_with_checksum(chunk, checksum))


def can_compress() -> bool:
    """Whether frames can be compressed here; else HDF5 does it with its plug-in."""
    return function("bshuf_compress_lz4") is not None


def compressed_room(elements: int, size: int) -> int:
    """Most bytes that the blocks of so many elements of `size` bytes can take."""
    blocks, block = -(-elements // BLOCK), BLOCK * size
    return blocks * (LENGTH_BYTES + block + block // 255 + 16)


def _header(total: int, size: int) -> Array:
    return np.frombuffer(total.to_bytes(8, "big") + (BLOCK * size).to_bytes(4, "big"), np.uint8)


def _compressed(values: Array) -> Array:
    """A frame, bitshuffled and compressed by the library itself."""
    room = np.empty(HEADER_BYTES + compressed_room(values.size, values.itemsize), np.uint8)
    room[:HEADER_BYTES] = _header(values.nbytes, values.itemsize)
    length = function("bshuf_compress_lz4")(
        values.ctypes.data, room.ctypes.data + HEADER_BYTES, values.size, values.itemsize, BLOCK
    )
    if length < 0:
        raise RuntimeError(f"bitshuffle refuses to compress {values.dtype}{values.shape}: {length}")
    return room[: HEADER_BYTES + length]


def _with_checksum(chunk: Array, checksum: Any) -> Array:
    sealed = np.empty(chunk.size + CHECKSUM_BYTES, np.uint8)
    sealed[:-CHECKSUM_BYTES] = chunk
    _seal(sealed, checksum)
    return sealed


def _seal(chunk: Array, checksum: Any) -> None:
    found = int(checksum(chunk[:-CHECKSUM_BYTES])) & 0xFFFFFFFF
    chunk[-CHECKSUM_BYTES:] = np.frombuffer(found.to_bytes(CHECKSUM_BYTES, "little"), np.uint8)
