"""Whole frames as they are stored: which compressed block holds which pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np

from gaincal.kernels.libraries import system
from gaincal.kernels.memory import ALIGNMENT, empty_aligned
from gaincal.kernels.packed import BLOCK, WORD_BYTES, Packed
from gaincal.kernels.threads import Job
from gaincal.nexus.boxes import Box, intersection
from gaincal.nexus.dataset import PlainDataset


@dataclass(frozen=True)
class Piece:
    """A box of the words, and the equally large box of the plain dataset that holds it.

    ``source`` is None where there is no such dataset, for the `reason` given.
    """

    box: Box
    source: PlainDataset | None
    source_box: Box
    reason: str = ""

    def source_part(self, part: Box) -> Box:
        """Where a part of the box lies in the source, whose dims are the same up to dims of length 1."""
        return _moved(part, self.box, self.source_box)

    def part(self, source_part: Box) -> Box:
        """Where a part of the source's box lies in the words."""
        return _moved(source_part, self.source_box, self.box)


Plan = list[tuple[tuple[int, ...], slice]]
"""Of the first frame of a piece: where each chunk begins in its dataset, and the tiles of the frame that it holds."""
CHUNK_ITEMS, TARGET, SIZE = 8, 2, 3
"""What `gaincal.kernels.stream.read_chunks` wants to know of a chunk: among others where it goes, and its bytes."""


def plan(piece: Piece, shape: tuple[int, ...]) -> Plan | None:
    """How frames are made of the chunks of a piece of words of some shape; None if not of whole tiles of one frame."""
    source, pixels = piece.source, shape[1:]
    if source is None:
        return []
    if not source.packable:
        return None
    first = piece.source_part(((piece.box[0][0], *piece.box[0][1:]), (1, *piece.box[1][1:])))
    found = []
    for offset in source.offsets(first):
        if intersection((offset, source.chunks), first) != (offset, source.chunks):
            return None
        start, count = piece.part((offset, source.chunks))
        begin = int(np.ravel_multi_index(start[1:], pixels))
        end = begin + math.prod(count[1:])
        whole = begin % BLOCK == 0 and (end % BLOCK == 0 or end == math.prod(pixels))
        if not whole or not _in_a_row(count[1:], pixels):
            return None
        found.append((offset, slice(begin // BLOCK, -(-end // BLOCK))))
    return found


class Packing:
    """Words of whole frames on their way into memory, still compressed.

    Parameters
    ----------
    shape : tuple of int
        Of the words.
    pieces : sequence of (Piece, Plan)
        Those that hold some of these frames; no two of them overlap.
    first, count : int
        Frames.
    shares : int
        Most jobs to make of the reading.

    Raises
    ------
    FileError
        If a chunk cannot be one.
    """

    def __init__(
        self, shape: tuple[int, ...], pieces: Sequence[tuple[Piece, Plan]], first: int, count: int, shares: int
    ) -> None:
        self._pixels, self._pieces, self._frames = math.prod(shape[1:]), pieces, (first, count)
        self._blocks = np.zeros((count, -(-self._pixels // BLOCK), 2), np.int64)
        rows = [row for piece, planned in pieces for row in self._rows(piece, planned)]
        self._wanted = np.array(rows, np.int64).reshape(len(rows), CHUNK_ITEMS)
        edges = np.cumsum(-(-self._wanted[:, SIZE] // ALIGNMENT) * ALIGNMENT)
        # One room for all chunks: pages of large memory are large.
        self._room = empty_aligned((int(edges[-1]) if rows else 0,), np.uint8)
        self._wanted[1:, TARGET] = edges[:-1]
        self._wanted[:, TARGET] += self._room.ctypes.data
        self._fits, self._counters = np.zeros(len(rows), np.uint8), np.zeros(2, np.int64)
        self._shares, self._arrived = min(shares, len(rows)), False

    @property
    def jobs(self) -> list[Job]:
        """What there is to do, at the same time and without HDF5."""
        return [self.read] * self._shares

    def _rows(self, piece: Piece, planned: Plan) -> Iterator[tuple[int, ...]]:
        """What `gaincal.kernels.stream.read_chunks` wants to know of each chunk, but for where it goes."""
        source = piece.source
        if source is None:
            return
        elements, checksummed = source.pipeline.chunk_bytes // WORD_BYTES, source.pipeline.checksummed
        (by_frame, by_tile, _), begin = self._blocks.strides, self._blocks.ctypes.data
        for offset, frame, tiles in _chunks(piece, planned, *self._frames):
            descriptor, place, size = source.lies(offset)
            if size:
                blocks = begin + frame * by_frame + tiles.start * by_tile
                yield descriptor, place, 0, size, checksummed, elements, blocks, tiles.stop - tiles.start

    def read(self) -> None:
        """Read what no other thread reads."""
        from gaincal.kernels.stream import read_chunks

        read_chunks(system("pread"), self._wanted, self._counters, self._fits)

    def arrive(self) -> bool:
        """Read what no other thread reads, and wait for the rest; False if a chunk is not just as it must be."""
        from gaincal.kernels.stream import wait_for_chunks

        if not self._arrived:
            self.read()
            wait_for_chunks(system("sched_yield"), len(self._fits), self._counters)
            self._arrived = True
        return bool(self._fits.all())

    def packed(self) -> Packed:
        """The words, which may still be on their way."""
        complain = partial(_complain, self._pieces, *self._frames)
        return Packed(self._blocks, self._pixels, self._room, complain, self.arrive)


def _complain(pieces: Sequence[tuple[Piece, Plan]], first: int, count: int, frame: int, tile: int) -> NoReturn:
    """Raise what is wrong with the chunk that holds a tile of one of some frames."""
    for piece, planned in pieces:
        for offset, place, tiles in _chunks(piece, planned, first, count):
            if place == frame and tiles.start <= tile < tiles.stop and piece.source is not None:
                raise piece.source.fault(offset)
    raise AssertionError(f"no chunk holds tile {tile} of frame {frame}")


def _chunks(piece: Piece, planned: Plan, first: int, count: int) -> Iterator[tuple[tuple[int, ...], int, slice]]:
    """The chunks of a piece that hold some frames: where each begins, its frame among these, and the tiles it holds."""
    begin, length = piece.box[0][0], piece.box[1][0]
    # Along which dim of the dataset the frames lie: its first that is longer than 1, as that of the words is.
    axis = next((k for k, n in enumerate(piece.source_box[1]) if n != 1), 0)
    for frame in range(max(first, begin), min(first + count, begin + length)):
        for offset, tiles in planned:
            moved = (*offset[:axis], offset[axis] + frame - begin, *offset[axis + 1 :]) if length > 1 else offset
            yield moved, frame - first, tiles


def _in_a_row(lengths: tuple[int, ...], pixels: tuple[int, ...]) -> bool:
    """Whether the pixels of a box follow each other: dims are whole behind the first that is longer than 1."""
    longer = next((k for k, n in enumerate(lengths) if n > 1), len(lengths))
    return lengths[longer + 1 :] == pixels[longer + 1 :]


def _moved(part: Box, origin: Box, target: Box) -> Box:
    """The same part of another box, of the same lengths up to dims of length 1."""
    inside = iter(
        (p - b, n) for p, b, n, whole in zip(part[0], origin[0], part[1], origin[1], strict=True) if whole != 1
    )
    start, count = list(target[0]), list(target[1])
    for axis, length in enumerate(target[1]):
        if length != 1:
            offset, count[axis] = next(inside)
            start[axis] += offset
    return tuple(start), tuple(count)
