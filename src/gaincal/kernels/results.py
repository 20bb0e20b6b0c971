"""What becomes of calibrated frames on their way into a file: counted reasons, and chunks as HDF5 stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """

    def __init__(self, frames: int, pixels: int, dtype: np.dtype[Any], compressed: bool) -> None:
        self.frames, self.pixels, self.dtype, self.compressed = frames, pixels, dtype, compressed
        self._pieces: list[tuple[Sequence[Array], list[int]]] = []
        self._checksum: Any = fletcher32
        self.values: Array | None = None
        if not compressed:
            self._size = pixels * dtype.itemsize
            stride = -(-(self._size + CHECKSUM_BYTES) // ALIGNMENT) * ALIGNMENT
            self._room = empty_aligned((frames, stride), np.uint8)
            self.values = self._room[:, : self._size].view(dtype)

    def add(self, values: Array) -> None:
        """Take values (frame, pixel) that are there as a whole."""
        if self.values is not None:
            if values is not self.values:
                self.values[...] = values
            return
        blocks = [_compressed(np.ascontiguousarray(frame)) for frame in values]
        self._pieces = [(blocks, [b.size for b in blocks])]

    def take(self, pieces: Array, lengths: Array, checksum: Any) -> None:
        """Take blocks that are compressed already, in order: bytes (range, frame, room) and lengths (range, frame)."""
        self._checksum = checksum
        self._pieces = list(zip(pieces, lengths.tolist(), strict=True))

    def stored(self) -> Iterator[Array]:
        """The chunks, bytes of frame after frame."""
        if self.values is not None:
            for chunk in self._room[:, : self._size + CHECKSUM_BYTES]:
                yield self._sealed(chunk)
            return
        header = _header(self.pixels * self.dtype.itemsize, self.dtype.itemsize)
        for k in range(self.frames):
            parts = [piece[k][: own[k]] for piece, own in self._pieces]
            chunk = empty_aligned((HEADER_BYTES + sum(p.size for p in parts) + CHECKSUM_BYTES,), np.uint8)
            np.concatenate([header, *parts], out=chunk[:-CHECKSUM_BYTES])
            yield self._sealed(chunk)

    def _sealed(self, chunk: Array) -> Array:
        """A chunk, its checksum put into the bytes that it has for it."""
        found = int(self._checksum(chunk[:-CHECKSUM_BYTES])) & 0xFFFFFFFF
        chunk[-CHECKSUM_BYTES:] = np.frombuffer(found.to_bytes(CHECKSUM_BYTES, "little"), np.uint8)
        return chunk


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
    """The blocks of a frame, bitshuffled and compressed by the library itself."""
    room = np.empty(compressed_room(values.size, values.itemsize), np.uint8)
    length = function("bshuf_compress_lz4")(values.ctypes.data, room.ctypes.data, values.size, values.itemsize, BLOCK)
    if length < 0:
        raise RuntimeError(f"bitshuffle refuses to compress {values.dtype}{values.shape}: {length}")
    return room[:length]
