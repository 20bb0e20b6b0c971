"""Whole frames as they are stored: which compressed block holds which pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from gaincal.kernels.codecs import Bytes
from gaincal.kernels.packed import BLOCK, STEP, Packed
from gaincal.kernels.threads import run_all
from gaincal.nexus.dataset import Box, PlainDataset, intersection


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


@dataclass(frozen=True)
class _Chunk:
    """A stored chunk, and the tiles of a frame that it holds."""

    source: PlainDataset
    offset: tuple[int, ...]
    frame: int
    tiles: slice

    def holds(self, frame: int, tile: int) -> bool:
        return frame == self.frame and self.tiles.start <= tile < self.tiles.stop


def pack(shape: tuple[int, ...], pieces: Sequence[Piece], first: int, count: int, threads: int = 1) -> Packed | None:
    """Words of whole frames, still compressed.

    Parameters
    ----------
    shape : tuple of int
        Of the words.
    pieces : sequence of Piece
        Those that hold some of these frames; no two of them overlap.
    first, count : int
        Frames.
    threads : int
        Most threads to read with.

    Returns
    -------
    Packed or None
        None if the chunks are not made of whole tiles of one frame, or compressed in another way.

    Raises
    ------
    FileError
        If a chunk cannot be one.
    """
    pixels = int(np.prod(shape[1:]))
    if pixels % STEP or not all(p.source is None or p.source.packable for p in pieces):
        return None
    chunks = []
    for piece in pieces:
        part = intersection(piece.box, ((first, *(0,) * (len(shape) - 1)), (count, *shape[1:])))
        for chunk in _chunks(piece, part, shape, first) if part else ():
            if chunk is None:
                return None
            chunks.append(chunk)
    blocks = np.zeros((count, -(-pixels // BLOCK), 2), np.int64)
    kept: list[Bytes | None] = [None] * len(chunks)

    def index(number: int) -> None:
        chunk = chunks[number]
        kept[number] = chunk.source.index(chunk.offset, blocks[chunk.frame, chunk.tiles])

    run_all([partial(index, k) for k in range(len(chunks))], threads)
    stored = [k for k in kept if k is not None]
    return Packed(blocks, pixels, stored, _complaint(chunks)) if len(stored) == len(chunks) else None


def _complaint(chunks: Sequence[_Chunk]) -> Callable[[int, int], None]:
    def complain(frame: int, tile: int) -> None:
        chunk = next(c for c in chunks if c.holds(frame, tile))
        raise chunk.source.fault(chunk.offset)

    return complain


def _chunks(piece: Piece, part: Box, shape: tuple[int, ...], first: int) -> Iterator[_Chunk | None]:
    """The chunks that hold a part of a piece; None for one that is not made of whole tiles of a frame."""
    source = piece.source
    if source is None:
        return
    box = piece.source_part(part)
    pixels = shape[1:]
    for offset in source.offsets(box):
        inside = intersection((offset, source.chunks), box)
        if inside != (offset, source.chunks):
            yield None
            return
        start, count = piece.part(inside)
        begin = int(np.ravel_multi_index(start[1:], pixels))
        end = begin + int(np.prod(count[1:]))
        whole = begin % BLOCK == 0 and (end % BLOCK == 0 or end == np.prod(pixels))
        if count[0] != 1 or not whole or not _in_a_row(count[1:], pixels):
            yield None
            return
        yield _Chunk(source, offset, start[0] - first, slice(begin // BLOCK, -(-end // BLOCK)))


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
